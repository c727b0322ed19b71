"""The Swin transformer with prompt tokens."""

from collections.abc import Sequence

import torch
from mmpretrain.models import backbones
from torch import Tensor

from vpt_dense.adapters import Block
from vpt_dense.arguments import check_stages, to_pair
from vpt_dense.backbones.swin_block import (
    PromptedShiftWindowMSA,
    PromptedSwinBlock,
    PromptedWindowMSA,
)
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.backbones.tuned_block import what_to_recompute
from vpt_dense.prompts import StagePrompts, TokenLayout
from vpt_dense.registry import MODELS
from vpt_dense.sizes import resize_positions


@MODELS.register_module()
class SwinTransformer(TunedBackbone, backbones.SwinTransformer):
    """mmpretrain's Swin transformer with prompts, adapters and a choice of what trains.

    Without a prompt it computes what :class:`mmpretrain.SwinTransformer` computes, bit for bit.
    With one, every window of a block attends to the prompts of its image beside its own patches
    (:class:`vpt_dense.backbones.swin_block.PromptedShiftWindowMSA`). Prompts that flow on from a
    block (VPT-shallow) are averaged over the windows of their image and merged between stages as
    four equal patches would be. Outputs never contain prompts: a classifier pools the patches,
    where the original pools prompts and patches. ``pad_small_map=True`` is what segmentation
    needs: windows stay whole where the map is smaller than one, as in mmseg.

    Args:
        img_size: Training image size in pixels, a number or (height, width). Other sizes work.
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
        memory: 'default' or 'lean': as in :class:`vpt_dense.backbones.PromptedVisionTransformer`.
        with_cp: Recompute every block in backward from its input.
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

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        prompt: dict | None = None,
        image_prompt: dict | None = None,
        adapters: Sequence[dict] | None = None,
        trainable: Sequence[str] | None = None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        if kwargs.get('frozen_stages', -1) >= 0:
            raise ValueError(
                f'frozen_stages={kwargs["frozen_stages"]} and `trainable` are two ways to say the '
                r"same: name what trains, for instance trainable=[r'^stages\.3\.', r'^norm3\.']"
            )
        arch = kwargs.get('arch')
        stages = len(arch['depths']) if isinstance(arch, dict) and 'depths' in arch else 4
        check_stages(kwargs.get('out_indices', (3,)), stages)
        image_hw = to_pair('img_size', img_size)
        front = self.build_image_prompt(image_prompt, image_hw, in_channels)
        if front is not None:
            image_hw = tuple(n + 2 * front.border for n in image_hw)
            in_channels += front.extra_channels
            patch_hw = to_pair('patch_size', kwargs.get('patch_size', 4))
            kwargs['patch_cfg'] = {**front.patch_cfg(patch_hw), **kwargs.get('patch_cfg', {})}
        super().__init__(img_size=image_hw, in_channels=in_channels, init_cfg=init_cfg, **kwargs)
        for block in (block for stage in self.stages for block in stage.blocks):
            block.__class__ = PromptedSwinBlock  # same parameters, more ways to run
            block.attn.__class__ = PromptedShiftWindowMSA
            block.attn.w_msa.__class__ = PromptedWindowMSA
            block.recompute = what_to_recompute(memory, with_cp)
        built = None
        if prompt is not None:
            self.check_part('prompt', prompt)
            built = StagePrompts(
                prompt,
                embed_dims=[stage.embed_dims for stage in self.stages],
                depths=self.depths,
                num_heads=self.num_heads,
                patch_size=self.patch_embed.projection.kernel_size,
            )
        if prompts_as not in ('keys_values', 'tokens'):
            raise ValueError(f"prompts_as must be 'keys_values' or 'tokens', found {prompts_as!r}")
        self.keys_values_layers = [
            i for i in range(sum(self.depths))
            if prompts_as == 'keys_values' and built is not None and built.is_discarded(i)
        ]
        self.tune(built, front, adapters, trainable)
        for i, block in enumerate(self.blocks()):
            block.module.adapters, block.module.index = tuple(self.adapters), i

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`TunedBackbone.map_strides`."""
        height, width = self.patch_embed.projection.stride
        strides = []
        for i in self.out_indices:
            merged = i + (self.out_after_downsample and self.stages[i].downsample is not None)
            strides.append((height * 2**merged, width * 2**merged))
        return strides

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: Images, (B, in_channels, H, W).

        Returns:
            One map (B, C_s, H / s, W / s) for each stage of ``out_indices``, s = 4, 8, 16, 32
            pixels for patches of 4. Prompts are never among the outputs.
        """
        images = x
        x = images if self.image_prompt is None else self.image_prompt(images)
        x, hw_shape = self.patch_embed(x)  # (B, N, C)
        if self.use_abs_pos_embed:
            x = x + resize_positions(
                self.absolute_pos_embed, self.patch_resolution, hw_shape,
                self.interpolate_mode, self.num_extra_tokens,
            )
        x = self.drop_after_pos(x)

        prepared = None if self.prompt is None else self.prompt.prepare(self._embed)
        num_prompts, index, outs = 0, 0, []  # prompts are the first tokens
        for s, stage in enumerate(self.stages):
            for block in stage.blocks:
                x, num_prompts = self._block(block, index, x, num_prompts, hw_shape, prepared)
                index += 1
            size = hw_shape
            if stage.downsample is not None and self.out_after_downsample:
                x, size = self._merge(stage.downsample, x, num_prompts, hw_shape)
            if s in self.out_indices:
                out = getattr(self, f'norm{s}')(x[:, num_prompts:])
                outs.append(out.unflatten(1, size).permute(0, 3, 1, 2).contiguous())
            if stage.downsample is not None and not self.out_after_downsample:
                x, size = self._merge(stage.downsample, x, num_prompts, hw_shape)
            hw_shape = size
        outs = self.crop_border(outs)
        for adapter in self.adapters:
            outs = adapter.after_backbone(outs, images)
        return outs

    def _embed(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to patch tokens (b, n, C), without positions."""
        return self.patch_embed(images)[0]

    def _block(
        self,
        block: PromptedSwinBlock,
        i: int,
        x: Tensor,
        num_prompts: int,
        hw_shape: tuple[int, int],
        prepared: object,
    ) -> tuple[Tensor, int]:
        """Run block i with its prompts and adapters; tells how many prompts are in what it returns.

        Args and returns: tokens (B, P + N, C) and P.
        """
        layout = TokenLayout(0, num_prompts, hw_shape)
        for adapter in self.adapters:
            x = adapter.before_block(x, i, layout)
        prompts = keys_values = None
        if self.prompt is not None:
            tokens, keys_values = self.prompt(x, i, prepared, layout), self.prompt.keys_values(i)
            if i in self.keys_values_layers:
                prompts = tokens
                x, num_prompts = layout.patches(x), 0  # those of earlier blocks end here
            elif tokens is not None:
                tokens = tokens.expand(x.shape[0], -1, -1).to(x.dtype)
                x, num_prompts = torch.cat((tokens, layout.patches(x)), dim=1), tokens.shape[1]
            layout = TokenLayout(0, num_prompts, hw_shape)
        x = block(
            x, hw_shape, num_prompts=num_prompts, prompts=prompts, keys_values=keys_values)
        for adapter in self.adapters:
            x = adapter.after_block(x, i, layout)
        return x, num_prompts

    @staticmethod
    def _merge(
        downsample: torch.nn.Module, x: Tensor, num_prompts: int, hw_shape: tuple[int, int]
    ) -> tuple[Tensor, tuple[int, int]]:
        """Merge patches, (B, P + N, C), and prompts, each as if it were all patches of a place."""
        merged, size = downsample(x[:, num_prompts:], hw_shape)
        if num_prompts:
            kernel = tuple(downsample.sampler.kernel_size)
            prompts = x[:, :num_prompts].flatten(0, 1)[:, None]  # (B * P, 1, C)
            prompts, _ = downsample(prompts.expand(-1, kernel[0] * kernel[1], -1), kernel)
            merged = torch.cat((prompts.unflatten(0, (x.shape[0], -1))[:, :, 0], merged), dim=1)
        return merged, size

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        if self.prompt is None:
            return ''
        layers = self.keys_values_layers
        return f'prompts as keys and values in layers {layers}' if layers else 'prompts as tokens'

    def blocks(self) -> list[Block]:
        """See :meth:`TunedBackbone.blocks`."""
        return [
            Block(
                name=f'stages.{s}.blocks.{i}',
                module=block,
                embed_dims=stage.embed_dims,
                num_heads=block.attn.w_msa.num_heads,
                norm1=block.norm1,
                qkv=block.attn.w_msa.qkv,
                proj=block.attn.w_msa.proj,
                norm2=block.norm2,
                ffn=block.ffn,
                mlp=block.ffn.layers,
                fc1=block.ffn.layers[0][0],
                fc2=block.ffn.layers[1],
            )
            for s, stage in enumerate(self.stages)
            for i, block in enumerate(stage.blocks)
        ]
