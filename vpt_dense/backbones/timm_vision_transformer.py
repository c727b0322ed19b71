"""The vision transformers of timm as backbones of configs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import vpt_dense.weights.guard  # noqa: F401  checkpoints for our backbones are read safely
from vpt_dense import pretraining
from vpt_dense.adapters import Block
from vpt_dense.argument_checks import check_choice, check_flag, check_number, check_stages, to_pair
from vpt_dense.backbones.in_place import adopt
from vpt_dense.backbones.timm_vit import TimmBackbone, create
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.errors import UserError
from vpt_dense.registry import MODELS
from vpt_dense.weights.base import FrozenBase


@MODELS.register_module()
class TimmVisionTransformer(TimmBackbone):
    """Any vision transformer of timm by its name: DINOv3, SigLIP 2, PE, EVA-02, RADIO, ...

    It holds timm's own modules under timm's own names and runs timm's own forward; without a method
    it computes what timm computes, bit for bit. It serves mmpretrain's ``ImageClassifier`` and
    mmseg's ``EncoderDecoder``, at any size of images that the patches divide.

    Args:
        model: timm's name, with or without a tag: ``vit_small_patch16_dinov3.lvd1689m``.
        pretrained: Load the weights that timm names, from the hub's cache or the hub. The same as
            ``init_cfg=dict(type='Pretrained', checkpoint='timm://NAME')``.
        img_size: Image size in pixels that position embeddings are made for, where there are any,
            a number or (height, width); None: that of pretraining.
        in_channels: Channels of the images.
        out_indices: Blocks whose outputs are returned, negative ones counted from the end.
        out_type: 'featmap', maps of patches; 'cls_token', the first token; 'avg_tokens', the mean
            of the patches; 'pooled', what timm's classifier reads, from the last block alone;
            'raw', all tokens.
        norm_outputs: Send the output of every block that is returned through the model's last norm,
            as DINOv2 and DINOv3 are read. False: none; None: the last block's alone, as a plain
            forward does.
        rope_rescale: R of DINOv3's augmentation of places while training: both axes are scaled by
            exp(U(-ln R, ln R)), once a batch; the published recipe has 2. None: off.
        prompt: As in :class:`vpt_dense.backbones.VisionTransformer`.
        image_prompt: As there.
        adapters: As there.
        trainable: As there.
        prompts_as: As there.
        memory: As there.
        with_cp: As there.
        frozen_dtype: As there.
        init_cfg: As there; files in timm's, the authors' or Hugging Face's format.
        **kwargs: Further arguments of the model in timm: ``drop_path_rate``, ``embed_dim``, ...

    Raises:
        ValueError: If an argument is out of its range, timm has no such model or it cannot be
            tuned; the message names it.
    """

    offers = TokenTuning.offers | {'hidden tokens'}
    last_norm_key = 'norm_outputs'
    OUT_TYPES = ('featmap', 'cls_token', 'avg_tokens', 'pooled', 'raw')

    def __init__(
        self,
        model: str,
        pretrained: bool = False,
        img_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        norm_outputs: bool | None = None,
        rope_rescale: float | None = None,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        frozen_dtype: str | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        check_choice(out_type, 'out_type', self.OUT_TYPES)
        check_flag(pretrained, 'pretrained')
        if norm_outputs is not None:
            check_flag(norm_outputs, 'norm_outputs')
        if rope_rescale is not None:
            kwargs['rope_rescale_coords'] = check_number(rope_rescale, 'rope_rescale', True)
        if pretrained and init_cfg is not None:
            raise ValueError('pretrained=True and init_cfg both name weights; leave one out')
        front, image_hw = None, None
        if image_prompt is not None:
            image_hw = to_pair('img_size', img_size or pretraining.of(model).input_size[1:])
            front = self.build_image_prompt(image_prompt, image_hw, in_channels)
            img_size = tuple(side + 2 * front.border for side in image_hw)
        channels = in_channels + (0 if front is None else front.extra_channels)
        try:
            built = create(model, img_size, channels, kwargs)
        except UserError as error:
            if front is None or not front.border:
                raise
            raise UserError(
                f'{error}; image_prompt puts {front.border} pixels on each side') from error
        self.__dict__ = vars(built)
        adopt(TimmVisionTransformer, self, type(built))
        if kwargs.get('rope_rescale_coords') is None:
            self._keep_scale()
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        check_stages(indices, len(self.blocks), from_end=True)
        self.out_indices = [i % len(self.blocks) for i in indices]
        if self.out_indices != sorted(set(self.out_indices)):
            raise ValueError(f'out_indices must rise from block to block, found {indices}')
        if out_type == 'pooled' and self.out_indices != [len(self.blocks) - 1]:
            raise ValueError(
                f"out_type='pooled' is made of the last block, out_indices are {indices}")
        if out_type == 'cls_token' and self.cls_token is None:
            raise ValueError(
                f"out_type='cls_token': {model} has no class token; take 'pooled' or 'avg_tokens'")
        self.out_type, self.norm_outputs = out_type, norm_outputs
        self._leave_out_unread()
        self.init_cfg = init_cfg
        if pretrained:
            self.init_cfg = dict(type='Pretrained', checkpoint=pretraining.address(self))
        self._is_init = False
        self.tune(prompt, front, adapters, trainable, prompts_as, memory, with_cp)
        if frozen_dtype is not None:
            self.hold_frozen_in(frozen_dtype)

    @property
    def with_cls_token(self) -> bool:
        """Whether it has a class token."""
        return self.cls_token is not None

    def _keep_scale(self) -> None:
        """Switch off the augmentation of places that some of timm's models have by default."""
        rope = getattr(self, 'rope', None)
        if rope is not None and rope.rescale_coords is not None:
            rope.rescale_coords = None
            rope.aug_active = rope.shift_coords is not None or rope.jitter_coords is not None

    def _leave_out_unread(self) -> None:
        """Take out what no output goes through: nothing of it would get a gradient."""
        if self.out_type != 'pooled':
            self.attn_pool, self.fc_norm = None, nn.Identity()
        last = len(self.blocks) - 1
        if not self.norm_outputs and (self.norm_outputs is False or last not in self.out_indices):
            self.norm = nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of a batch of images.

        Args:
            x: Images, (B, in_channels, H, W).

        Returns:
            One tensor for each of ``out_indices``, by ``out_type``: 'featmap' (B, C, H / ph,
            W / pw); 'raw' (B, F + N, C); all others (B, C). Prompts are never among them. Behind
            them what :meth:`.Guests.outputs` says, where a head has been invited.
        """
        return self.run(self._outputs, x, raw=x)

    def _outputs(self, x: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
        grid, last = self.patch_grid(x), len(self.blocks) - 1
        first = self.num_prefix_tokens > 0 and self.out_type not in ('featmap', 'avg_tokens')
        found: Sequence[Any] = self.original.forward_intermediates(
            self, x, indices=self.out_indices, return_prefix_tokens=first,
            norm=bool(self.norm_outputs), output_fmt='NLC', intermediates_only=True,
            stop_early=True)
        outs = []
        for i, each in zip(self.out_indices, found, strict=True):
            tokens = torch.cat(each[::-1], dim=1) if first else each  # (B, N, C) or (B, F + N, C)
            if self.norm_outputs is None and i == last:
                tokens = self.norm(tokens)
            outs.append(self._formatted(tokens, grid))
        features = self.crop_border(outs)
        for change in self.changes():
            features = change.after_backbone(features, raw)
        return (*features, *self.of_guests())

    def last_norm(self) -> nn.Module | None:
        """See :meth:`.TokenTuning.last_norm`."""
        return self.norm if self.norm_outputs is not False else None

    def _formatted(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Patches (B, N, C) or all tokens (B, F + N, C) as ``out_type`` says."""
        if self.out_type == 'featmap':
            return tokens.unflatten(1, grid).permute(0, 3, 1, 2)
        if self.out_type == 'avg_tokens':
            return tokens.mean(1)
        if self.out_type == 'cls_token':
            return tokens[:, 0].clone()  # a view would keep all tokens until backward
        return self.forward_head(tokens, pre_logits=True) if self.out_type == 'pooled' else tokens

    def init_weights(self) -> None:
        """See :meth:`.TunedBackbone.init_weights`."""
        if self._init_keys().get('type') == 'Pretrained':
            self.load_base(self.init_cfg['checkpoint'])
            self._is_init = True
        self.start()

    def complete(self, state_dict: dict[str, Tensor], prefix: str = '') -> None:
        """See :meth:`.FrozenBase.complete`."""
        FrozenBase.complete(self, state_dict, prefix)

    def read_blocks(self) -> list[Block]:
        """See :meth:`.TokenTuning.read_blocks`."""
        blocks = self.block_list()
        return blocks[:-1] if self.out_type == 'cls_token' else blocks

    def out_dims(self) -> list[int]:
        """See :meth:`.TokenTuning.out_dims`."""
        return [] if self.out_type == 'raw' else [self.embed_dim] * len(self.out_indices)

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        maps = len(self.out_indices) if self.out_type == 'featmap' else 0
        return [self.patch_size_pixels()] * maps
