"""EVA-02: timm's, and this package's own."""

import torch
from torch import Tensor

from vpt_dense.weights.layouts.base import Layout


def _no_key_bias(bias: Tensor) -> Tensor:
    """The biases of queries, with zeros for those of keys behind them."""
    return torch.cat((bias, torch.zeros_like(bias)))


#: timm's 'tiny' and 'small'.
TIMM_EVA02 = Layout(
    name='timm EVA-02',
    signature='blocks.*.attn.q_bias',
    marks=(r'(^|\.)blocks\.0\.mlp\.fc1\.weight$', r'(^|\.)pos_embed$'),
    rules=(
        ('patch_embed.proj.', 'patch_embed.projection.'),
        ('blocks.*.norm1.', 'layers.*.ln1.'),
        ('blocks.*.norm2.', 'layers.*.ln2.'),
        ('blocks.*.attn.q_bias', 'layers.*.attn.qkv#0.bias'),
        ('blocks.*.attn.v_bias', 'layers.*.attn.qkv#2.bias'),
        ('blocks.*.attn.q_proj.', 'layers.*.attn.qkv#0.'),
        ('blocks.*.attn.k_proj.', 'layers.*.attn.qkv#1.'),
        ('blocks.*.attn.v_proj.', 'layers.*.attn.qkv#2.'),
        ('blocks.*.mlp.fc1.', 'layers.*.ffn.w12.'),
        ('blocks.*.mlp.fc1_g.', 'layers.*.ffn.w12#0.'),
        ('blocks.*.mlp.fc1_x.', 'layers.*.ffn.w12#1.'),
        ('blocks.*.mlp.norm.', 'layers.*.ffn.norm.'),
        ('blocks.*.mlp.fc2.', 'layers.*.ffn.w3.'),
        ('blocks.*.', 'layers.*.'),
        ('norm.', 'ln1.'),
        ('fc_norm.', 'ln2.'),
    ),
    ignored=(r'^head\.', r'^mask_token$', r'^rope\.'),
    transforms=((r'\.attn\.q_(bias|proj\.bias)$', _no_key_bias),),
    family='eva02',
)

#: Its 'base' and 'large'.
TIMM_EVA02_NORMED = TIMM_EVA02._replace(
    signature='blocks.*.mlp.fc1_g.weight', marks=(r'(^|\.)blocks\.0\.attn\.q_proj\.weight$',))

#: Ours; a vision transformer of mmpretrain with SwiGLU has the same names.
OWN = Layout(
    name='EVA-02', signature='layers.*.ffn.w12.weight', ignored=(r'^head\.',),
    family='eva02', own_family_alone=True)

LAYOUTS = (OWN, TIMM_EVA02, TIMM_EVA02_NORMED)
