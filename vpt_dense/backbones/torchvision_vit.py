"""torchvision's vision transformer, tuned in place."""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from vpt_dense.backbones.attention import attention
from vpt_dense.backbones.beside import beside, spread
from vpt_dense.backbones.in_place import InPlaceBackbone, InPlaceBlock, adopt, refuse
from vpt_dense.backbones.tuned_block import TunedBlock


class InProjection(nn.Linear):
    """Queries, keys and values of PyTorch's attention as a layer, for adapters.

    It has no parameters: it shows those of the attention, under whose names they stay.

    Args:
        own: The attention.
    """

    def __init__(self, own: nn.MultiheadAttention) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = own.embed_dim, 3 * own.embed_dim
        self.attention = (own,)  # in a tuple it is no submodule

    @property
    def weight(self) -> nn.Parameter:
        """(3 C, C)."""
        return self.attention[0].in_proj_weight

    @property
    def bias(self) -> nn.Parameter:
        """(3 C,)."""
        return self.attention[0].in_proj_bias


class TorchAttention(nn.Module):
    """PyTorch's attention, with prompts of which keys and values alone are made."""

    def forward(
        self,
        query: Tensor,
        *arguments: Any,
        prompts: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        **further: Any,
    ) -> tuple[Tensor, None]:
        """Compute attention of tokens to themselves.

        Args:
            query: Tokens as attention gets them, (B, 1 + P + N, C).
            *arguments: PyTorch's: they are keys and values as well.
            prompts: Prompts of which keys and values alone are made, (b, P', C), b being B or 1.
            keys_values: Further keys and values, each (b, heads, P'', d).
            **further: PyTorch's.

        Returns:
            (B, 1 + P + N, C), and no weights. Without prompts and adapters it is PyTorch's, bit
            for bit.
        """
        layers = (self.qkv, self.out_proj)
        hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        if prompts is None and keys_values is None and not hooked:
            return super().forward(query, *arguments, **further)
        projected, of_prompts = beside(self.qkv, query, prompts)
        queries, keys, values = map(self._split, projected.chunk(3, -1))
        extra = [] if prompts is None else [
            tuple(map(self._split, of_prompts.chunk(3, -1)))[1:]]
        extra += [] if keys_values is None else [keys_values]
        if extra:
            keys, values = (
                torch.cat([own, *(spread(e.to(own.dtype), len(own)) for e in others)], 2)
                for own, *others in zip((keys, values), *extra, strict=True)
            )  # (B, heads, 1 + N + P, d)
        out = attention(queries, keys, values, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(out.transpose(1, 2).flatten(2)), None

    def _split(self, tokens: Tensor) -> Tensor:
        """(b, n, heads * d) to (b, heads, n, d)."""
        return tokens.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class TorchvisionBlock(InPlaceBlock):
    """torchvision's ``EncoderBlock``: norm, attention, dropout; norm, MLP."""

    def parts(self) -> dict[str, Any]:
        """See :meth:`.TunedBlock.parts`."""
        own = self.self_attention
        return dict(
            embed_dims=own.embed_dim, num_heads=own.num_heads, norm1=self.ln_1, qkv=(own.qkv,),
            proj=own.out_proj, norm2=self.ln_2, fc1=(self.mlp[0],), fc2=self.mlp[3])

    def _attention(
        self, x: Tensor, prompts: Tensor | None = None, **further: Any
    ) -> Tensor:
        tokens, prompts = beside(self.ln_1, x, prompts)
        if prompts is not None:
            further['prompts'] = prompts
        out, _ = self.self_attention(tokens, tokens, tokens, need_weights=False, **further)
        return self.dropout(out) + x

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.ln_2(x))


class TorchvisionBackbone(InPlaceBackbone):
    """torchvision's ``VisionTransformer``, under its own names; images have one size."""

    offers = InPlaceBackbone.offers - {'open sizes'}
    stem = ('class_token', 'conv_proj')
    output_norm = r'encoder\.ln\.'
    interpolate_mode = 'bicubic'
    num_first = num_extra_tokens = 1

    def forward(self, x: Tensor) -> Tensor:
        """As torchvision's: images (B, 3, H, W) to (B, classes)."""
        return self.run(self.original.forward.__get__(self), x)

    @staticmethod
    def image_size(model: nn.Module) -> dict[str, Any]:
        """See :meth:`.InPlaceBackbone.image_size`."""
        size = (model.image_size,) * 2
        return dict(img_size=size, in_channels=model.conv_proj.in_channels)

    @staticmethod
    def check(model: nn.Module) -> None:
        """See :meth:`.InPlaceBackbone.check`."""
        if type(model).forward is not VisionTransformer.forward:
            refuse(model, "it is no VisionTransformer of torchvision's")
        if not isinstance(model.conv_proj, nn.Conv2d):
            refuse(model, 'conv_proj is no single convolution; leave conv_stem_configs out')
        for name, block in model.encoder.layers.named_children():
            if type(block).forward is not EncoderBlock.forward:
                refuse(model, f'encoder.layers.{name} is no EncoderBlock')

    def adopt_block(self, block: nn.Module) -> None:
        """See :meth:`.TokenTuning.adopt_block`."""
        adopt(TorchvisionBlock, block)
        adopt(TorchAttention, block.self_attention)
        own = block.self_attention
        own._modules = {'qkv': InProjection(own), **own._modules}  # in the order of use

    def give_back(self) -> nn.Module:
        """See :meth:`.InPlaceBackbone.give_back`."""
        for _, block in self.named_blocks():
            block.self_attention._modules.pop('qkv', None)
        return super().give_back()

    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """See :meth:`.TokenTuning.named_blocks`."""
        return [(f'encoder.layers.{n}', b) for n, b in self.encoder.layers.named_children()]

    def patch_layers(self) -> list[nn.Module]:
        """See :meth:`.TunedBackbone.patch_layers`."""
        return [self.conv_proj]

    def output_norms(self) -> list[nn.Module]:
        """See :meth:`.TunedBackbone.output_norms`."""
        return [self.encoder.ln]

    def patch_grid(self, images: Tensor) -> tuple[int, int]:
        """See :meth:`.InPlaceBackbone.patch_grid`."""
        return self.patch_resolution

    def embed_patches(self, images: Tensor) -> Tensor:
        """See :meth:`.TokenTuning.embed_patches`."""
        return self.conv_proj(images).flatten(2).transpose(1, 2)

    @property
    def patch_resolution(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def embed_dims(self) -> int:
        """Width C."""
        return self.hidden_dim

    @property
    def num_layers(self) -> int:
        """Number of blocks."""
        return len(self.encoder.layers)

    @property
    def pre_norm(self) -> nn.Module:
        """The norm in front of the blocks: there is none."""
        return nn.Identity()

    def describe(self) -> str:
        """See :meth:`.FrozenBase.describe`."""
        rows, columns = self.patch_resolution
        return f'VisionTransformer of width {self.hidden_dim} on {rows}x{columns} patches'

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """See :meth:`.TunedBackbone.get_layer_depth`."""
        number = self.num_layers + 2
        name = param_name.removeprefix(prefix)
        if not param_name.startswith(prefix):
            return number - 1, number
        for i, (block, _) in enumerate(self.named_blocks()):
            if name.startswith(f'{block}.'):
                return i + 1, number
        in_stem = name.split('.')[0] in self.stem or name == 'encoder.pos_embedding'
        return (0 if in_stem else number - 1), number
