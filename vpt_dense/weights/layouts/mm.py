"""The vision transformers of OpenMMLab."""

from vpt_dense.weights.layouts.base import Layout

MMPRETRAIN = Layout(
    name='mmpretrain',
    signature='layers.*.attn.qkv.weight',
    ignored=(r'^head\.',),
)

#: mmseg's ViT keeps its attention in an nn.MultiheadAttention inside a wrapper; by default it has
#: had no patch bias since 1.2, whatever its docstring says.
MMSEG = Layout(
    name='mmsegmentation',
    signature='layers.*.attn.attn.in_proj_weight',
    rules=(
        ('layers.*.attn.attn.in_proj_weight', 'layers.*.attn.qkv.weight'),
        ('layers.*.attn.attn.in_proj_bias', 'layers.*.attn.qkv.bias'),
        ('layers.*.attn.attn.out_proj.', 'layers.*.attn.proj.'),
    ),
    zeros=('patch_embed.projection.bias',),
)

LAYOUTS = (MMPRETRAIN, MMSEG)
