"""DINO and DINOv2, as their authors publish them; DINOv3, which a plain ViT cannot be.

DINO's encoders bear timm's names (its training checkpoint: student and teacher, each ``backbone.``
and ``head.``; the teacher is what is evaluated).
"""

from vpt_dense.weights.layouts.base import Layout
from vpt_dense.weights.layouts.timm import TIMM

DINOV2 = Layout(
    name='DINOv2',
    signature='blocks.*.attn.qkv.weight',
    marks=(r'(^|\.)blocks\.\d+\.ls1\.gamma$', r'(^|\.)mask_token$'),
    rules=(
        ('blocks.*.mlp.w12.', 'layers.*.ffn.w12.'),  # before timm's, for the way back
        ('blocks.*.mlp.w3.', 'layers.*.ffn.w3.'),
        *TIMM.rules,
    ),
    ignored=(*TIMM.ignored, r'^mask_token$'),
)

#: While it trains with FSDP the blocks lie in chunks: ``blocks.<chunk>.<block>.``, the number of
#: the block counted through all chunks.
DINOV2_CHUNKS = DINOV2._replace(
    name='DINOv2 in chunks',
    signature='blocks.*.*.attn.qkv.weight',
    marks=(),
    rules=tuple((left.replace('blocks.*.', 'blocks.*.*.'), right) for left, right in DINOV2.rules),
)

_ROPE = (
    'its blocks rotate queries and keys by position (RoPE), as those of the backbone '
    'vpt_dense.TimmVisionTransformer do and those of this one do not'
)
DINOV3 = Layout(
    name='DINOv3', signature='blocks.*.attn.qkv.weight', marks=(r'(^|\.)storage_tokens$',),
    refused=_ROPE,
)
DINOV3_HF = Layout(
    name='Hugging Face DINOv3', signature='layer.*.attention.q_proj.weight', refused=_ROPE
)

LAYOUTS = (DINOV3, DINOV3_HF, DINOV2_CHUNKS, DINOV2)
