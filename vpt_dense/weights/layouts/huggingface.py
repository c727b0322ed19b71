"""The vision transformers of Hugging Face transformers: ViT, DINOv2 and CLIP's towers.

Query, key and value are layers of their own there. Poolers, classifiers and the mask token of
DINOv2 are left out.
"""

from vpt_dense.weights.layouts.base import Layout
from vpt_dense.weights.layouts.clip import _TEXT, _add_batch


def _attention(block: str, query: str, key: str, value: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (f'{block}{name}.', f'layers.*.attn.qkv#{part}.')
        for part, name in enumerate((query, key, value))
    )


_EMBEDDINGS = (
    ('embeddings.cls_token', 'cls_token'),
    ('embeddings.position_embeddings', 'pos_embed'),
    ('embeddings.patch_embeddings.projection.', 'patch_embed.projection.'),
    ('embeddings.register_tokens', 'register_tokens'),
    ('layernorm.', 'ln1.'),
)
_ATTENTION = (
    *_attention('encoder.layer.*.attention.attention.', 'query', 'key', 'value'),
    ('encoder.layer.*.attention.output.dense.', 'layers.*.attn.proj.'),
)
_IGNORED = (r'^pooler\.', r'^embeddings\.mask_token$')

VIT = Layout(
    name='Hugging Face ViT',
    signature='encoder.layer.*.attention.attention.query.weight',
    marks=(r'(^|\.)encoder\.layer\.0\.layernorm_before\.weight$',),
    rules=(
        *_EMBEDDINGS,
        *_ATTENTION,
        ('encoder.layer.*.layernorm_before.', 'layers.*.ln1.'),
        ('encoder.layer.*.layernorm_after.', 'layers.*.ln2.'),
        ('encoder.layer.*.intermediate.dense.', 'layers.*.ffn.layers.0.0.'),
        ('encoder.layer.*.output.dense.', 'layers.*.ffn.layers.1.'),
    ),
    ignored=_IGNORED,
)

DINOV2 = Layout(
    name='Hugging Face DINOv2',
    signature='encoder.layer.*.attention.attention.query.weight',
    marks=(r'(^|\.)encoder\.layer\.0\.layer_scale1\.lambda1$',),
    rules=(
        *_EMBEDDINGS,
        *_ATTENTION,
        ('encoder.layer.*.norm1.', 'layers.*.ln1.'),
        ('encoder.layer.*.norm2.', 'layers.*.ln2.'),
        ('encoder.layer.*.layer_scale1.lambda1', 'layers.*.attn.gamma1.weight'),
        ('encoder.layer.*.layer_scale2.lambda1', 'layers.*.ffn.gamma2.weight'),
        ('encoder.layer.*.mlp.fc1.', 'layers.*.ffn.layers.0.0.'),
        ('encoder.layer.*.mlp.fc2.', 'layers.*.ffn.layers.1.'),
        ('encoder.layer.*.mlp.weights_in.', 'layers.*.ffn.w12.'),
        ('encoder.layer.*.mlp.weights_out.', 'layers.*.ffn.w3.'),
    ),
    ignored=_IGNORED,
)


_BLOCK = 'encoder.layers.*.'
_CLIP_BLOCKS = (
    *_attention(f'{_BLOCK}self_attn.', 'q_proj', 'k_proj', 'v_proj'),
    (f'{_BLOCK}self_attn.out_proj.', 'layers.*.attn.proj.'),
    (f'{_BLOCK}layer_norm1.', 'layers.*.ln1.'),
    (f'{_BLOCK}layer_norm2.', 'layers.*.ln2.'),
    (f'{_BLOCK}mlp.fc1.', 'layers.*.ffn.layers.0.0.'),
    (f'{_BLOCK}mlp.fc2.', 'layers.*.ffn.layers.1.'),
)


def _clip(prefix: str) -> tuple[tuple[str, str], ...]:
    rules = (
        ('embeddings.class_embedding', 'cls_token'),
        ('embeddings.position_embedding.weight', 'pos_embed'),
        ('embeddings.patch_embedding.', 'patch_embed.projection.'),
        ('pre_layrnorm.', 'pre_norm.'),  # sic
        ('post_layernorm.', 'ln1.'),
        *_CLIP_BLOCKS,
    )
    return tuple((prefix + left, right) for left, right in rules)


_MARK = r'(^|\.)pre_layrnorm\.weight$'
_TRANSFORMS = ((r'embeddings\.(class_embedding|position_embedding\.weight)$', _add_batch),)

#: A whole CLIP, or the image tower as transformers before 5 saved it.
CLIP = Layout(
    name='Hugging Face CLIP',
    signature='vision_model.encoder.layers.*.self_attn.q_proj.weight',
    marks=(_MARK,),
    rules=(*_clip('vision_model.'), ('visual_projection.', 'proj.')),
    # Older files hold the row numbers of the position embedding as a tensor.
    ignored=(
        r'^(?!vision_model\.|visual_projection\.)', r'^vision_model\.embeddings\.position_ids$'),
    transforms=_TRANSFORMS,
)

CLIP_VISION = Layout(
    name='Hugging Face CLIP image tower',
    signature='encoder.layers.*.self_attn.q_proj.weight',
    marks=(_MARK,),
    rules=_clip(''),
    ignored=(r'^embeddings\.position_ids$',),
    transforms=_TRANSFORMS,
)

#: The text tower of a whole CLIP, or one saved with its projection.
CLIP_TEXT = Layout(
    name='Hugging Face CLIP text tower',
    signature='text_model.encoder.layers.*.self_attn.q_proj.weight',
    rules=(
        *((f'text_model.{left}', right) for left, right in (
            ('embeddings.token_embedding.', 'token_embedding.'),
            ('embeddings.position_embedding.weight', 'pos_embed'),
            ('final_layer_norm.', 'ln1.'),
            *_CLIP_BLOCKS)),
        ('text_projection.', 'proj.'),
        ('logit_scale', 'logit_scale'),
    ),
    ignored=(
        r'^(vision_model|visual_projection)\.', r'^text_model\.embeddings\.position_ids$'),
    **{**_TEXT, 'transforms': _TRANSFORMS},
)

TEXT_LAYOUTS = (CLIP_TEXT,)
LAYOUTS = (VIT, DINOV2, CLIP, CLIP_VISION)
