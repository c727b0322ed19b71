"""The vision transformer with prompt tokens."""

from collections.abc import Sequence

import torch
from mmpretrain.models import backbones
from torch import Tensor, nn

from vpt_dense.adapters import Block
from vpt_dense.argument_checks import check_choice, check_count, check_stages, to_pair
from vpt_dense.backbones.beside import is_watched
from vpt_dense.backbones.encoder_layer import PromptedEncoderLayer
from vpt_dense.backbones.half_precision import hold_frozen_in
from vpt_dense.backbones.token_backbone import TokenBackbone
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.prompts import TokenLayout
from vpt_dense.registry import MODELS


# The second name is what it was called at first: configs and checkpoints have it.
@MODELS.register_module(name=['VisionTransformer', 'PromptedVisionTransformer'])
class VisionTransformer(TokenBackbone, backbones.VisionTransformer):
    """mmpretrain's vision transformer with prompts, adapters and a choice of what trains.

    Without a prompt it computes what :class:`mmpretrain.VisionTransformer` computes, bit for bit.
    With one, a block sees ``[cls | registers | prompts | patches]``; outputs never contain prompts,
    and registers (none by default) are in ``out_type='raw'`` alone. It serves
    mmpretrain's ``ImageClassifier`` (``out_type='cls_token'``) and mmseg's ``EncoderDecoder``
    (``out_type='featmap'`` with ``out_indices``) alike, at any input size.

    A classifier may read a mean of tokens in place of the cls token (the paper's section 4.3
    compares them): ``out_type='avg_tokens'`` is the mean after the final norm, as in the original;
    'avg_featmap' is mmpretrain's, with a norm of its own behind the mean (MAE's ``fc_norm``). Of
    which tokens, ``pool`` says.

    Args:
        arch: As in mmpretrain: 'base', 'large', ... or a dict with embed_dims, num_layers,
            num_heads and feedforward_channels.
        img_size: Training image size in pixels, a number or (height, width); a multiple of the
            patch size. Other sizes work: the position embedding is resized on the fly.
        patch_size: Patch size in pixels, a number or (height, width).
        out_indices: Blocks whose outputs are returned, negative ones counted from the end.
        prompt: Config of a :class:`vpt_dense.prompts.Prompt`, for instance
            ``dict(type='vpt_dense.TokenPrompt', num_tokens=50, deep=True)``. None: no prompt.
        image_prompt: Config of a :class:`vpt_dense.image_prompts.ImagePrompt`, in front of the
            patch embedding. ``img_size`` and ``in_channels`` are those of the images before it.
        adapters: Configs of :class:`vpt_dense.adapters.Adapter`, applied in their order.
        trainable: Regular expressions, searched in the names of this backbone's parameters; those
            that match train, all others are frozen here and now. Default: prompts and adapters if
            there are any, else everything. While anything but these is frozen, everything but
            these stays in eval mode (dropout, stochastic depth).
        prompts_as: 'keys_values' (default): blocks whose outputs at prompt positions are thrown
            away compute nothing but keys and values for their prompts, which is exact.
            'tokens': prompts pass through every block like other tokens, for comparison.
            :attr:`.keys_values_layers` and ``print(model)`` tell which blocks are meant.
        memory: 'default': what backward needs is kept. 'lean': two tensors (B, N, C) a block are
            kept, the inputs of attention and of the MLP, and the rest is computed again in
            backward. Works for blocks that train too, with dropout, autocast, DDP and
            ``torch.compile``; results are the same.
        with_cp: Recompute every block in backward from its input: one tensor a block is kept.
        frozen_dtype: Hold frozen weights of linear layers and convolutions in this type,
            'bfloat16' or 'float16', half the memory of float32. The backbone then computes under
            autocast of this type wherever autocast is not on already, at test time too; what
            trains, the norms, the position embedding and the sums along the blocks stay float32.
        pool: What 'avg_tokens' and 'avg_featmap' are the mean of: 'patches', 'prompts' or 'both'.
            None: 'patches'. The outputs of pooled prompts are not discarded, so the blocks of
            ``out_indices`` compute them.
        num_registers: Number of register tokens R (Darcet et al., ICLR 2024,
            https://arxiv.org/abs/2309.16588): constant tokens after cls that belong to the
            backbone and have no position. 4 for DINOv2 with registers, 1 for a distilled DeiT.
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)`` loads pretrained weights of any
            known format; a tensor that is missing, left over or of another shape is an error.
            Further keys: allow_missing, source_grid, bands, prefix (see
            :func:`vpt_dense.weights.compute`).
        **kwargs: As in :class:`mmpretrain.VisionTransformer`.

    Raises:
        ValueError: If an argument is out of its range or a pattern of ``trainable`` matches no
            parameter; the message names it.
    """

    offers = TokenBackbone.offers | {'query', 'hidden prompts', 'hidden tokens', 'copies'}
    weights_family = 'vit'  # which formats of pretrained weights it takes
    stem = ('register_tokens', 'pre_norm')
    block_class = PromptedEncoderLayer
    pos_embed_name = 'pos_embed'
    OUT_TYPES = backbones.VisionTransformer.OUT_TYPES | {'avg_tokens'}

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        frozen_dtype: str | None = None,
        pool: str | None = None,
        num_registers: int = 0,
        patch_cfg: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        self.refuse_frozen_stages(kwargs, 1, r"trainable=[r'^layers\.(10|11)\.']")
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        known = arch if isinstance(arch, dict) else self.arch_zoo.get(str(arch).lower(), {})
        if 'num_layers' in known:  # else the parent says so
            check_stages(indices, known['num_layers'], from_end=True)
        patch_hw = to_pair('patch_size', patch_size)
        image_hw = to_pair('img_size', img_size)
        sizes = list(zip(image_hw, patch_hw, strict=True))
        if any(image % patch for image, patch in sizes):
            nearest = tuple(max(round(image / patch), 1) * patch for image, patch in sizes)
            raise ValueError(
                f'img_size {image_hw} is not a multiple of patch_size {patch_hw}; the nearest '
                f'that is: {nearest}')
        front, sizes = self.build_front(
            image_prompt, image_hw, patch_hw, in_channels, patch_cfg or {})
        # A list, since the parent writes the resolved negative indices into it.
        super().__init__(
            arch=arch, out_indices=list(indices), init_cfg=init_cfg, **sizes, **kwargs)
        self.num_registers = check_count(num_registers, 'num_registers', 0)
        if num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, num_registers, self.embed_dims))
            nn.init.normal_(self.register_tokens, std=1e-6)  # as in DINOv2
        self.pool = self._check_pool(pool, prompt)
        self.tune(prompt, front, adapters, trainable, prompts_as, memory, with_cp)
        self._check_pooled_prompts()
        self.frozen_dtype = None if frozen_dtype is None else hold_frozen_in(frozen_dtype, self)

    @property
    def num_first(self) -> int:
        """Tokens in front of the patches: cls and registers."""
        return self.num_extra_tokens + self.num_registers

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`TokenBackbone.named_blocks`."""
        return [(f'layers.{i}', layer) for i, layer in enumerate(self.layers)]

    def read_blocks(self) -> list[Block]:
        """See :meth:`TokenBackbone.read_blocks`."""
        last = max(self.out_indices)
        unread = self.out_type == 'cls_token' or self.pool == 'prompts'
        return self.block_list()[: last if unread else last + 1]

    def out_dims(self) -> list[int]:
        """See :meth:`TokenBackbone.out_dims`."""
        return [] if self.out_type == 'raw' else [self.embed_dims] * len(self.out_indices)

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        patch = tuple(self.patch_embed.projection.stride)
        return [patch] * len(self.out_indices) if self.out_type == 'featmap' else []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`.TokenBackbone.forward`.

        Returns:
            One tensor for each of ``out_indices``, by ``out_type``: 'cls_token', 'avg_tokens' and
            'avg_featmap' (B, C); 'featmap' (B, C, H / ph, W / pw); 'raw' (B, cls + R + N, C).
        """
        kind = x.device.type
        if self.frozen_dtype is not None and not torch.is_autocast_enabled(kind):
            with torch.autocast(kind, self.frozen_dtype):
                return super().forward(x)
        return super().forward(x)

    def embed(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """See :meth:`.TokenBackbone.embed`."""
        x, grid = self.patch_embed(images)  # (B, N, C)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, cls + N, C)
        x = self.add_positions(x, grid)
        first = self.num_extra_tokens
        if self.num_registers:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            x = torch.cat((x[:, :first], registers, x[:, first:]), dim=1)  # (B, cls + R + N, C)
            first += self.num_registers
        return self.pre_norm(self.drop_after_pos(x)), TokenLayout(first, 0, grid)

    def last_norm(self) -> nn.Module | None:
        """See :meth:`.TokenTuning.last_norm`."""
        return self.ln1 if self.final_norm else None

    def leave_block(
        self, x: Tensor, i: int, layout: TokenLayout, outs: list[Tensor]
    ) -> tuple[Tensor, TokenLayout]:
        """See :meth:`.TokenBackbone.leave_block`."""
        if i == self.num_layers - 1 and self.final_norm:
            x = self.ln1(x)
        if i in self.out_indices:
            if self.pool is not None:
                out = self._mean(x, layout)
            else:
                out = layout.replace(x, None)[0] if layout.num_prompts else x
                out = self._format_output(out, layout.grid)
                # A head keeps its input until backward, and a view would keep all tokens.
                out = out.clone() if self.out_type == 'cls_token' else out
            outs.append(out)
        return x, layout

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """As upstream, which knows no registers and cannot shape maps of no images."""
        if self.out_type == 'featmap':
            patches = x[:, self.num_extra_tokens + self.num_registers :]
            return patches.unflatten(1, hw).permute(0, 3, 1, 2)
        return super()._format_output(x, hw)

    def reads_prompts(self, i: int) -> bool:
        """See :meth:`TokenBackbone.reads_prompts`."""
        return self.pool in ('prompts', 'both') and i in self.out_indices

    def reads_only_first(self, i: int) -> bool:
        """See :meth:`TokenBackbone.reads_only_first`; hooks read everything."""
        last = i == self.num_layers - 1 and self.out_type == 'cls_token'
        return last and not is_watched((self.layers[i], *self.output_norms()))

    def _check_pool(self, pool: str | None, prompt: dict | None) -> str | None:
        """The tokens that the outputs are a mean of; None: the outputs are no mean."""
        averages = self.out_type in ('avg_tokens', 'avg_featmap')
        check_choice(pool, 'pool', ('patches', 'prompts', 'both', None))
        if pool is not None and not averages:
            raise ValueError(
                f"pool={pool!r} is for out_type='avg_tokens' or 'avg_featmap', "
                f'out_type is {self.out_type!r}')
        if pool in ('prompts', 'both') and prompt is None:
            raise ValueError(f'pool={pool!r} needs prompts, but there is no `prompt`')
        return (pool or 'patches') if averages else None

    def _check_pooled_prompts(self) -> None:
        """Refuse to pool prompts that are not there."""
        without = [
            i for i in self.out_indices if self.reads_prompts(i) and not self.prompt.leaves(i)]
        if without:
            raise ValueError(
                f'pool={self.pool!r} needs prompts, but those of {type(self.prompt).__name__} are '
                f'not among the tokens behind block {without[0]} of out_indices='
                f"{self.out_indices}; take other blocks or prompts, or pool='patches'")

    def _mean(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """The mean of some tokens of (B, F + P + N, C), (B, C)."""
        if self.pool == 'patches':
            tokens = layout.patches(x)
        else:
            tokens = layout.prompts(x) if self.pool == 'prompts' else x[:, layout.num_first :]
        mean = tokens.mean(dim=1)
        return self.ln2(mean) if self.out_type == 'avg_featmap' else mean


PromptedVisionTransformer = VisionTransformer  # what it was called at first
