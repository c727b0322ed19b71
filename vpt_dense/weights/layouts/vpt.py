"""The models of the original visual prompt tuning (https://github.com/KMnP/vpt).

Query, key and value are layers of their own. The prompts of the first block and those of the
others are two tensors there and one here, (blocks, tokens, width).
"""

from vpt_dense.weights.layouts.base import Layout
from vpt_dense.weights.layouts.timm import TIMM

_PROMPTS = (
    ('prompt_embeddings', 'prompt.tokens#0'),
    ('deep_prompt_embeddings', 'prompt.tokens#1'),
    ('prompt_proj.', 'prompt.project.'),
)

#: Supervised ViTs: everything is below ``enc.transformer.``, the classifier below ``head.``.
VPT = Layout(
    name='VPT',
    signature='encoder.layer.*.attn.query.weight',
    rules=(
        ('embeddings.cls_token', 'cls_token'),
        ('embeddings.position_embeddings', 'pos_embed'),
        ('embeddings.patch_embeddings.', 'patch_embed.projection.'),
        ('encoder.encoder_norm.', 'ln1.'),
        *(
            (f'encoder.layer.*.attn.{name}.', f'layers.*.attn.qkv#{part}.')
            for part, name in enumerate(('query', 'key', 'value'))
        ),
        ('encoder.layer.*.attn.out.', 'layers.*.attn.proj.'),
        ('encoder.layer.*.attention_norm.', 'layers.*.ln1.'),
        ('encoder.layer.*.ffn_norm.', 'layers.*.ln2.'),
        ('encoder.layer.*.ffn.fc1.', 'layers.*.ffn.layers.0.0.'),
        ('encoder.layer.*.ffn.fc2.', 'layers.*.ffn.layers.1.'),
        *_PROMPTS,
    ),
)

#: Prompted MAE and MoCo v3: timm's names below ``enc.``.
VPT_TIMM = Layout(
    name='VPT of MAE or MoCo v3',
    signature='blocks.*.attn.qkv.weight',
    marks=(r'(^|\.)prompt_embeddings$',),
    rules=(*_PROMPTS, *TIMM.rules),
    ignored=TIMM.ignored,
)

LAYOUTS = (VPT, VPT_TIMM)
