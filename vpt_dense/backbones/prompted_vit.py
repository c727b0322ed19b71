"""The vision transformer with prompt tokens."""

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from vpt_dense.adapters import Block
from vpt_dense.adapters.base import output_norms
from vpt_dense.arguments import to_pair
from vpt_dense.backbones.attention import attention
from vpt_dense.backbones.beside import is_watched
from vpt_dense.backbones.encoder_layer import PromptedAttention, PromptedEncoderLayer, spread
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.backbones.tuned_block import what_to_recompute
from vpt_dense.prompts import Prompt, TokenLayout
from vpt_dense.registry import MODELS
from vpt_dense.sizes import resize_positions
from vpt_dense.tuning import is_added


@MODELS.register_module()
class PromptedVisionTransformer(TunedBackbone, VisionTransformer):
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
            :attr:`keys_values_layers` and ``print(model)`` tell which blocks are meant.
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

    weights_family = 'vit'  # which formats of pretrained weights it takes
    stem = ('register_tokens', 'pre_norm')
    OUT_TYPES = VisionTransformer.OUT_TYPES | {'avg_tokens'}

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
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
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        if kwargs.get('frozen_stages', -1) > 0:
            raise ValueError(
                f'frozen_stages={kwargs["frozen_stages"]} and `trainable` are two ways to say the '
                "same: name what trains, for instance trainable=[r'^layers\\.(10|11)\\.']"
            )
        indices = [out_indices] if isinstance(out_indices, int) else out_indices
        is_list = isinstance(indices, Sequence) and not isinstance(indices, str)
        if not is_list or not indices or not all(type(index) is int for index in indices):
            raise ValueError(
                f'out_indices must be the index of a block or a list of them, found {out_indices!r}'
            )
        patch_hw = to_pair('patch_size', patch_size)
        image_hw = to_pair('img_size', img_size)
        sizes = list(zip(image_hw, patch_hw, strict=True))
        if any(image % patch for image, patch in sizes):
            nearest = tuple(max(round(image / patch), 1) * patch for image, patch in sizes)
            raise ValueError(
                f'img_size {image_hw} is not a multiple of patch_size {patch_hw}; the nearest '
                f'that is: {nearest}'
            )
        front = self.build_image_prompt(image_prompt, image_hw, kwargs.get('in_channels', 3))
        if front is not None:
            image_hw = tuple(n + 2 * front.border for n in image_hw)
            kwargs['in_channels'] = front.in_channels + front.extra_channels
            kwargs['patch_cfg'] = {**front.patch_cfg(patch_hw), **kwargs.get('patch_cfg', {})}
        super().__init__(
            arch=arch,
            img_size=image_hw,
            patch_size=patch_hw,
            # A list, since the parent writes the resolved negative indices into it.
            out_indices=list(indices),
            init_cfg=init_cfg,
            **kwargs,
        )
        if any(not 0 <= index < self.num_layers for index in self.out_indices):
            raise ValueError(
                f'out_indices {out_indices} must lie in [-{self.num_layers}, {self.num_layers}) '
                f'for a backbone of {self.num_layers} layers'
            )
        if isinstance(num_registers, bool) or not isinstance(num_registers, int) or (
            num_registers < 0
        ):
            raise ValueError(
                f'num_registers must be a number of tokens, 0 or more, found {num_registers!r}'
            )
        self.num_registers = num_registers
        if num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, num_registers, self.embed_dims))
            nn.init.normal_(self.register_tokens, std=1e-6)  # as in DINOv2
        for layer in self.layers:
            layer.attn.scaled_dot_product_attention = attention
            layer.attn.__class__ = PromptedAttention
            layer.__class__ = PromptedEncoderLayer  # same parameters, more ways to run
            layer.recompute = what_to_recompute(memory, with_cp)
            for module in layer.modules():
                if isinstance(module, DropPath):  # upstream's is NumPy's, which splits the graph
                    module.drop_prob = float(module.drop_prob)  # of torch.compile
        built = None
        if prompt is not None:
            served = dict(
                embed_dims=self.embed_dims,
                num_layers=self.num_layers,
                num_heads=self.arch_settings['num_heads'],
                patch_size=patch_hw,
            )
            self.check_part('prompt', prompt)
            built = MODELS.build(prompt, default_args=served)
        if prompts_as not in ('keys_values', 'tokens'):
            raise ValueError(f"prompts_as must be 'keys_values' or 'tokens', found {prompts_as!r}")
        self.pool = self._check_pool(pool, built)
        read = self.out_indices if self.pool in ('prompts', 'both') else ()
        self.keys_values_layers = [
            i for i in range(self.num_layers)
            if prompts_as == 'keys_values' and built is not None and built.is_discarded(i)
            and i not in read
        ]
        self.tune(built, front, adapters, trainable)
        for i, layer in enumerate(self.layers):
            layer.adapters, layer.index = tuple(self.adapters), i
        self.frozen_dtype = None if frozen_dtype is None else self._hold_frozen_in(frozen_dtype)

    def blocks(self) -> list[Block]:
        """See :meth:`TunedBackbone.blocks`."""
        return [
            Block(
                name=f'layers.{i}',
                module=layer,
                embed_dims=self.embed_dims,
                num_heads=layer.attn.num_heads,
                norm1=layer.ln1,
                qkv=layer.attn.qkv,
                proj=layer.attn.proj,
                norm2=layer.ln2,
                ffn=layer.ffn,
                **_mlp_parts(layer.ffn),
            )
            for i, layer in enumerate(self.layers)
        ]

    def map_strides(self) -> list[tuple[int, int]]:
        """See :meth:`TunedBackbone.map_strides`."""
        patch = tuple(self.patch_embed.projection.stride)
        return [patch] * len(self.out_indices) if self.out_type == 'featmap' else []

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of a batch of images.

        Args:
            x: Images, (B, in_channels, H, W).

        Returns:
            One tensor for each of ``out_indices``, by ``out_type``: 'cls_token', 'avg_tokens' and
            'avg_featmap' (B, C); 'featmap' (B, C, H / ph, W / pw); 'raw' (B, cls + R + N, C). N
            counts patches: prompts are never among the outputs.
        """
        kind = x.device.type
        if self.frozen_dtype is not None and not torch.is_autocast_enabled(kind):
            with torch.autocast(kind, self.frozen_dtype):
                return self._forward(x)
        return self._forward(x)

    def _embed(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to patch tokens (b, n, C), without positions."""
        return self.patch_embed(images)[0]

    def _forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = images if self.image_prompt is None else self.image_prompt(images)
        x, patch_resolution = self.patch_embed(x)  # (B, N, C)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, cls + N, C)
        x = x + resize_positions(
            self.pos_embed, self.patch_resolution, patch_resolution, self.interpolate_mode,
            self.num_extra_tokens,
        )
        first = self.num_extra_tokens
        if self.num_registers:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            x = torch.cat((x[:, :first], registers, x[:, first:]), dim=1)  # (B, cls + R + N, C)
            first += self.num_registers
        x = self.drop_after_pos(x)
        x = self.pre_norm(x)

        # Prompts begin at ``first``, after the cls and register tokens.
        num_prompts = 0
        outs = []
        prepared = None
        if self.prompt is not None:
            prepared = self.prompt.prepare(self._embed)
        copies = 1 if self.prompt is None else self.prompt.copies
        for i, layer in enumerate(self.layers):
            if copies > 1 and i == self.prompt.first_layer:
                # What lies before was computed once for all sets of prompts of an ensemble.
                x = x.repeat(copies, 1, 1)  # (copies * B, cls + N, C)
                outs = [out.repeat(copies, *[1] * (out.ndim - 1)) for out in outs]
            layout = TokenLayout(first, num_prompts, patch_resolution)
            for adapter in self.adapters:
                x = adapter.before_block(x, i, layout)
            arguments = {}
            if i in self.keys_values_layers:
                arguments = dict(
                    prompts=self.prompt(x, i, prepared, layout),
                    keys_values=self.prompt.keys_values(i),
                )
                if num_prompts:  # those of earlier blocks end here
                    x = torch.cat((x[:, :first], x[:, first + num_prompts :]), dim=1)
                    layout = TokenLayout(first, num_prompts := 0, patch_resolution)
                arguments['only_first'] = self._reads_only_cls(i)
            elif self.prompt is not None:
                tokens = self.prompt(x, i, prepared, layout)
                if tokens is not None:
                    tokens = spread(tokens, x.shape[0]).to(x.dtype)
                    # (B, cls + P + N, C)
                    x = torch.cat((x[:, :first], tokens, layout.patches(x)), dim=1)
                    layout = TokenLayout(first, num_prompts := tokens.shape[1], patch_resolution)
                arguments['keys_values'] = self.prompt.keys_values(i)
            x = layer(x, **arguments)
            if not arguments.get('only_first'):
                for adapter in self.adapters:
                    x = adapter.after_block(x, i, layout)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                if self.pool is not None:
                    outs.append(self._mean(x, TokenLayout(first, num_prompts, patch_resolution)))
                    continue
                out = x
                if num_prompts:
                    out = torch.cat((x[:, :first], x[:, first + num_prompts :]), dim=1)
                out = self._format_output(out, patch_resolution)  # without prompts
                # A head keeps its input until backward, and a view would keep all tokens.
                outs.append(out.clone() if self.out_type == 'cls_token' else out)
        outs = self.crop_border(outs)
        for adapter in self.adapters:
            outs = adapter.after_backbone(outs, images)
        return outs

    def _format_output(self, x: Tensor, hw: tuple[int, int]) -> Tensor:
        """As upstream, which knows no registers and cannot shape maps of no images."""
        if self.out_type == 'featmap':
            patches = x[:, self.num_extra_tokens + self.num_registers :]
            return patches.unflatten(1, hw).permute(0, 3, 1, 2)
        return super()._format_output(x, hw)

    def _reads_only_cls(self, i: int) -> bool:
        """Whether nobody, hooks neither, reads what a block puts out at other places."""
        last = i == self.num_layers - 1 and self.out_type == 'cls_token'
        return last and not is_watched((self.layers[i], *output_norms(self)))

    def _check_pool(self, pool: str | None, prompt: Prompt | None) -> str | None:
        """What the outputs are a mean of; None: they are no mean."""
        averages = self.out_type in ('avg_tokens', 'avg_featmap')
        if pool not in (None, 'patches', 'prompts', 'both'):
            raise ValueError(
                f"pool must be 'patches', 'prompts', 'both' or None, found {pool!r}")
        if pool is not None and not averages:
            raise ValueError(
                f"pool={pool!r} is for out_type='avg_tokens' or 'avg_featmap', "
                f'out_type is {self.out_type!r}')
        if pool in ('prompts', 'both') and prompt is None:
            raise ValueError(f'pool={pool!r} needs prompts, but there is no `prompt`')
        if pool in ('prompts', 'both'):
            without = [i for i in self.out_indices if not prompt.leaves(i)]
            if without:
                raise ValueError(
                    f'pool={pool!r} needs prompts, but those of {type(prompt).__name__} are not '
                    f'among the tokens behind block {without[0]} of out_indices='
                    f"{self.out_indices}; take other blocks or prompts, or pool='patches'"
                )
        return (pool or 'patches') if averages else None

    def _mean(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """The mean of some tokens of (B, F + P + N, C), (B, C)."""
        if self.pool == 'patches':
            tokens = layout.patches(x)
        else:
            tokens = layout.prompts(x) if self.pool == 'prompts' else x[:, layout.num_first :]
        mean = tokens.mean(dim=1)
        return self.ln2(mean) if self.out_type == 'avg_featmap' else mean

    def prompt_keys_values(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Compute all keys and values of the prompts of a block whose outputs are discarded.

        Args:
            x: Tells type and device of tokens; prompts that depend on it have no such keys.
            i: Index of the block, one of :attr:`keys_values_layers`.

        Returns:
            Two tensors (1, heads, P, C / heads).
        """
        tokens, own = self.prompt(x, i), self.prompt.keys_values(i)
        parts = [] if own is None else [own]
        if tokens is not None:
            parts.append(self.layers[i].prompt_keys_values(tokens.to(x.dtype)))
        keys, values = (torch.cat(same, dim=2) for same in zip(*parts, strict=True))
        return keys, values

    def _hold_frozen_in(self, name: str) -> torch.dtype:
        """Turn the frozen weights of linear layers and convolutions into another type."""
        dtypes = {'bfloat16': torch.bfloat16, 'float16': torch.float16}
        if not isinstance(name, str) or name not in dtypes:
            raise ValueError(
                f'frozen_dtype must be None or one of {sorted(dtypes)}, found {name!r}')
        frozen = [
            parameter
            for own, module in self.named_modules()
            if isinstance(module, (nn.Linear, nn.Conv2d)) and not is_added(own)
            for parameter in module.parameters(recurse=False)
            if not parameter.requires_grad
        ]
        if not frozen:
            raise ValueError(
                f'frozen_dtype={name!r}, but trainable={self.trainable} leaves no weight of a '
                'linear layer or convolution frozen; leave frozen_dtype out'
            )
        for parameter in frozen:
            parameter.data = parameter.data.to(dtypes[name])
        return dtypes[name]

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        if self.prompt is None:
            return ''
        layers = self.keys_values_layers
        return f'prompts as keys and values in layers {layers}' if layers else 'prompts as tokens'


def _mlp_parts(ffn: nn.Module) -> dict[str, nn.Module]:
    """``mlp``, ``fc1`` and ``fc2`` of a :class:`Block`."""
    if hasattr(ffn, 'w12'):  # SwiGLU
        return dict(mlp=ffn, fc1=ffn.w12, fc2=ffn.w3)
    linears = [module for module in ffn.layers.modules() if isinstance(module, nn.Linear)]
    return dict(mlp=ffn.layers, fc1=linears[0], fc2=linears[-1])
