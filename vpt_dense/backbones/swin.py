"""The Swin transformer with prompt tokens."""

from collections.abc import Sequence
from itertools import accumulate

import torch
from mmpretrain.models import backbones
from torch import Tensor, nn

from vpt_dense.argument_checks import check_stages
from vpt_dense.backbones.swin_block import PromptedSwinBlock
from vpt_dense.backbones.token_backbone import TokenBackbone
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.prompts import TokenLayout
from vpt_dense.registry import MODELS


@MODELS.register_module()
class SwinTransformer(TokenBackbone, backbones.SwinTransformer):
    """mmpretrain's Swin transformer with prompts, adapters and a choice of what trains.

    Without a prompt it computes what :class:`mmpretrain.SwinTransformer` computes, bit for bit.
    With one, every window of a block attends to the prompts of its image beside its own patches
    (:class:`vpt_dense.backbones.swin_block.PromptedShiftWindowMSA`). Prompts that flow on from a
    block (VPT-shallow) are averaged over the windows of their image and merged between stages as
    four equal patches would be. It puts out a map (B, C_s, H / s, W / s) for each stage of
    ``out_indices``, s = 4, 8, 16, 32 pixels for patches of 4, which never contain prompts: a
    classifier pools the patches, where the original pools prompts and patches.
    ``pad_small_map=True`` is what segmentation needs: windows stay whole where the map is smaller
    than one, as in mmseg.

    Args:
        img_size: Training image size in pixels, a number or (height, width). Other sizes work.
        patch_size: Patch size in pixels, a number or (height, width).
        in_channels: Channels of the images.
        prompt: Config of a :class:`vpt_dense.prompts.Prompt` that fits Swin, for instance
            ``dict(type='vpt_dense.TokenPrompt', num_tokens=10, deep=True)``; one is built for each
            stage (:class:`vpt_dense.prompts.StagePrompts`), their parameters are
            ``prompt.stages.<stage>.*``. Layers count through all stages. None: no prompt.
        image_prompt: Config of a :class:`vpt_dense.image_prompts.ImagePrompt`, in front of the
            patch embedding. ``img_size`` and ``in_channels`` are those of the images before it.
        adapters: Configs of :class:`vpt_dense.adapters.Adapter`, applied in their order.
        trainable: Regular expressions, searched in the names of this backbone's parameters; those
            that match train, all others are frozen here and now. Default: prompts and adapters if
            there are any, else everything. While anything but these is frozen, everything but
            these stays in eval mode (dropout, stochastic depth).
        prompts_as: 'keys_values' (default): blocks whose outputs at prompt positions are thrown
            away compute nothing but keys and values for their prompts, which is exact. 'tokens':
            prompts pass through every block like other tokens, for comparison.
        memory: 'default' or 'lean': as in :class:`vpt_dense.backbones.VisionTransformer`.
        with_cp: Recompute every block in backward from its input; ``stage_cfgs`` can say it for
            some.
        patch_cfg: Further arguments of mmpretrain's ``PatchEmbed``.
        init_cfg: ``dict(type='Pretrained', checkpoint=ADDRESS)`` loads pretrained weights of any
            known format of a Swin; a tensor that is missing, left over or of another shape is an
            error (see :func:`vpt_dense.weights.compute`). The published weights hold the last
            norm alone: with several ``out_indices``, name the others in
            ``init_cfg.allow_missing`` and in ``trainable``.
        **kwargs: As in :class:`mmpretrain.SwinTransformer`.

    Attributes:
        keys_values_layers: The layers whose prompts are keys and values.

    Raises:
        ValueError: If an argument is out of its range, ``frozen_stages`` is set too, or a pattern
            of ``trainable`` matches no parameter; the message names it.
    """

    weights_family = 'swin'  # which formats of pretrained weights it takes
    stem = ('absolute_pos_embed',)
    offers = frozenset({'images', 'tokens', 'grid', 'parts', 'keys and values', 'outputs'})
    block_class = PromptedSwinBlock
    pos_embed_name = 'absolute_pos_embed'

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 4,
        in_channels: int = 3,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        patch_cfg: dict | None = None,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        self.refuse_frozen_stages(kwargs, 0, r"trainable=[r'^stages\.3\.', r'^norm3\.']")
        arch = kwargs.get('arch')
        stages = len(arch['depths']) if isinstance(arch, dict) and 'depths' in arch else 4
        check_stages(kwargs.get('out_indices', (3,)), stages)
        front, sizes = self.build_front(
            image_prompt, img_size, patch_size, in_channels, patch_cfg or {})
        super().__init__(init_cfg=init_cfg, with_cp=with_cp, **sizes, **kwargs)
        self.tune(prompt, front, adapters, trainable, prompts_as, memory)

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`TokenBackbone.named_blocks`."""
        return [
            (f'stages.{s}.blocks.{i}', block)
            for s, stage in enumerate(self.stages) for i, block in enumerate(stage.blocks)
        ]

    def output_blocks(self) -> list[int]:
        """See :meth:`TokenBackbone.output_blocks`."""
        stops = list(accumulate(self.depths))
        return [stops[i] - 1 for i in self.out_indices]

    def out_dims(self) -> list[int]:
        """See :meth:`TokenBackbone.out_dims`."""
        return [self.num_features[i] for i in self.out_indices]

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`.TunedBackbone.map_strides`."""
        height, width = self.patch_embed.projection.stride
        strides = []
        for i in self.out_indices:
            merged = i + (self.out_after_downsample and self.stages[i].downsample is not None)
            strides.append((height * 2**merged, width * 2**merged))
        return strides

    def embed(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """See :meth:`.TokenBackbone.embed`."""
        x, grid = self.patch_embed(images)  # (B, N, C)
        if self.use_abs_pos_embed:
            x = self.add_positions(x, grid)
        return self.drop_after_pos(x), TokenLayout(0, 0, grid)

    def block_arguments(self, grid: tuple[int, int]) -> tuple[tuple[int, int]]:
        """See :meth:`.TokenBackbone.block_arguments`."""
        return (grid,)

    def leave_block(
        self, x: Tensor, i: int, layout: TokenLayout, outs: list[Tensor]
    ) -> tuple[Tensor, TokenLayout]:
        """See :meth:`.TokenBackbone.leave_block`."""
        stops = list(accumulate(self.depths))
        if i + 1 not in stops:
            return x, layout
        s = stops.index(i + 1)
        downsample = self.stages[s].downsample
        if downsample is not None and self.out_after_downsample:
            x, layout = self._merge(downsample, x, layout)
        if s in self.out_indices:
            out = getattr(self, f'norm{s}')(layout.patches(x))
            outs.append(out.unflatten(1, layout.grid).permute(0, 3, 1, 2).contiguous())
        if downsample is not None and not self.out_after_downsample:
            x, layout = self._merge(downsample, x, layout)
        return x, layout

    @staticmethod
    def _merge(
        downsample: nn.Module, x: Tensor, layout: TokenLayout
    ) -> tuple[Tensor, TokenLayout]:
        """Merge patches, (B, P + N, C), and prompts, each as if it were all patches of a place."""
        merged, grid = downsample(layout.patches(x), layout.grid)
        if layout.num_prompts:
            kernel = tuple(downsample.sampler.kernel_size)
            prompts = layout.prompts(x).flatten(0, 1)[:, None]  # (B * P, 1, C)
            prompts, _ = downsample(prompts.expand(-1, kernel[0] * kernel[1], -1), kernel)
            merged = torch.cat((prompts.unflatten(0, (x.shape[0], -1))[:, :, 0], merged), dim=1)
        return merged, TokenLayout(0, layout.num_prompts, grid)
