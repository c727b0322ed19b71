"""EVA-02: a vision transformer with rotary positions."""

import torch
from mmpretrain.models.utils import SwiGLUFFN
from torch import Tensor

from vpt_dense.backbones.encoder_layer import PromptedAttention, PromptedEncoderLayer
from vpt_dense.backbones.rotation import turn_last
from vpt_dense.backbones.vision_transformer import VisionTransformer
from vpt_dense.registry import MODELS


def _arch(dims: int, layers: int, heads: int, sub_norm: bool) -> dict:
    return dict(
        embed_dims=dims, num_layers=layers, num_heads=heads,
        feedforward_channels=int(dims * 4 * 2 / 3), sub_norm=sub_norm)


class RotaryAttention(PromptedAttention):
    """Attention whose queries and keys of patches are turned by their places."""

    def place(self, tokens: Tensor, positions: tuple[Tensor, Tensor]) -> Tensor:
        """Turn the patches, the last N of tokens (B, heads, n, d); prompts and cls have no place.

        Args:
            tokens: Queries or keys.
            positions: Sine and cosine of the angles, each (N, d); neighbours are a pair.

        Returns:
            (B, heads, n, d), x cos + rot(x) sin with rot(x0, x1, ...) = (-x1, x0, ...).
        """
        return turn_last(tokens, *positions)


class EVA02Block(PromptedEncoderLayer):
    """mmpretrain's transformer block with :class:`RotaryAttention`."""

    attention_class = RotaryAttention


@MODELS.register_module()
class EVA02VisionTransformer(VisionTransformer):
    """EVA-02 (Fang et al., 2023, https://arxiv.org/abs/2303.11331), as timm's ``eva02_*`` models.

    A :class:`.VisionTransformer` whose blocks have rotary positions beside the position embedding,
    a SwiGLU and, as 'base' and 'large' have it, a norm in it. Place i of n in a row or column has
    the angles 16 i / n * 10000^(-4 j / d), j = 0 ... d / 4 - 1, d being C / heads: images of any
    size show the same range. Prompts and adapters that give keys from outside (``PrefixPrompt``,
    ``E2VPTPrompt``, ``CVPT``) have no place either.

    The keys have a bias here, zero in pretrained weights, which EVA-02 does not have: it trains if
    ``trainable`` names it (``'bias$'``).

    Args:
        arch: 'tiny', 'small', 'base', 'large', or a dict as there with ``sub_norm`` too, whether
            there is a norm in the SwiGLU; ``feedforward_channels`` is the width of its product.
        **kwargs: As there. The published models have ``patch_size=14``; their classifiers take the
            mean over patches, then a norm: ``out_type='avg_featmap', final_norm=False``.
    """

    weights_family = 'eva02'
    block_class = EVA02Block
    arch_zoo = dict(
        tiny=_arch(192, 12, 3, False), small=_arch(384, 12, 6, False),
        base=_arch(768, 12, 12, True), large=_arch(1024, 24, 16, True))
    #: Rows and columns of patches that images had in pretraining: the angles are counted in these.
    REFERENCE = (16, 16)

    def tune(self, *args, **kwargs) -> None:
        """See :meth:`TokenBackbone.tune`; before, the blocks get their SwiGLU."""
        hidden = self.arch_settings['feedforward_channels']
        norm = dict(type='LN', eps=1e-6) if self.arch_settings.get('sub_norm') else None
        for layer in self.layers:
            ffn = SwiGLUFFN(self.embed_dims, hidden, norm_cfg=norm)
            ffn.dropout_layer = layer.ffn.dropout_layer
            layer.ffn = ffn
        super().tune(*args, **kwargs)

    def block_arguments(self, grid: tuple[int, int]) -> tuple[tuple[Tensor, Tensor]]:
        """See :meth:`.TokenBackbone.block_arguments`: sine and cosine, each (N, d)."""
        count = self.layers[0].attn.head_dims // 4
        kind = dict(
            device=self.pos_embed.device,
            dtype=torch.promote_types(self.pos_embed.dtype, torch.float32))
        frequencies = 10000 ** -(torch.arange(count, **kind) / count)
        places = [
            torch.arange(n, **kind) / n * reference
            for n, reference in zip(grid, self.REFERENCE, strict=True)
        ]
        places = torch.stack(torch.meshgrid(*places, indexing='ij'), dim=-1).flatten(0, 1)  # (N, 2)
        angles = (places[..., None] * frequencies).flatten(1).repeat_interleave(2, dim=-1)  # (N, d)
        return ((angles.sin(), angles.cos()),)
