"""What backbones with timm's own names take: ``vpt_dense.TimmVisionTransformer``.

Every format of the vision transformers is one here too, its names turned from mmpretrain's into
timm's. timm's classes call two things by two names each: LayerScale, and the first layer of a
gated MLP.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from vpt_dense.weights.layouts import clip, dino, eomt, google, huggingface, mae, mm, moco, vpt
from vpt_dense.weights.layouts.base import Layout

_SCALES = tuple(
    (f'{left}{i}{rest}', f'blocks.*.ls{i}.gamma|blocks.*.gamma_{i}')
    for i in (1, 2)
    for left, rest in (('blocks.*.ls', '.gamma'), ('blocks.*.gamma_', ''))
)

#: Starts of mmpretrain's names and of timm's.
_NAMES = (
    ('layers.*.ln1.', 'blocks.*.norm1.'),
    ('layers.*.ln2.', 'blocks.*.norm2.'),
    ('layers.*.attn.gamma1.weight', _SCALES[0][1]),
    ('layers.*.ffn.gamma2.weight', _SCALES[2][1]),
    ('layers.*.ffn.layers.0.0.', 'blocks.*.mlp.fc1.'),
    ('layers.*.ffn.layers.1.', 'blocks.*.mlp.fc2.'),
    ('layers.*.ffn.w12.', 'blocks.*.mlp.fc1.'),
    ('layers.*.ffn.w3.', 'blocks.*.mlp.fc2.'),
    ('layers.*.', 'blocks.*.'),
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('pre_norm.', 'norm_pre.'),
    ('ln1.', 'norm.'),
    ('ln2.', 'fc_norm.'),
    ('register_tokens', 'reg_token'),
)


def _renamed(template: str) -> str:
    """A template of mmpretrain's names as one of timm's."""
    for ours, theirs in _NAMES:
        if template.startswith(ours):
            return theirs + template[len(ours) :]
    return template


def _for_timm(layout: Layout, more: Sequence[tuple[str, str]] = ()) -> Layout:
    """A format of mmpretrain's vision transformer as one of timm's."""
    rules = [(left, '|'.join(map(_renamed, right.split('|')))) for left, right in layout.rules]
    return layout._replace(
        rules=(*more, *rules, *_NAMES), zeros=tuple(map(_renamed, layout.zeros)), family='timm'
    )


# --- attention pooling, which is loaded where the backbone has it ------------------------------


def _pool(probe: str, attention: str, norm: str, mlp: str) -> tuple[tuple[str, str], ...]:
    return (
        (probe, 'attn_pool.latent'),
        (f'{attention}in_proj_weight', 'attn_pool.in_proj.weight'),
        (f'{attention}in_proj_bias', 'attn_pool.in_proj.bias'),
        (f'{attention}out_proj.', 'attn_pool.proj.'),
        (norm, 'attn_pool.norm.'),
        *((f'{mlp}{theirs}.', f'attn_pool.mlp.{ours}.') for theirs, ours in (
            ('c_fc', 'fc1'), ('c_proj', 'fc2'), ('fc1', 'fc1'), ('fc2', 'fc2'))),
    )  # fmt: skip


#: Perception Encoder's: its vision tower has CLIP's names.
_PE_POOL = _pool(
    'attn_pool.probe', 'attn_pool.attn.', 'attn_pool.layernorm.', 'attn_pool.mlp.')


def _behind(prefix: str, rules: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((prefix + left, right) for left, right in rules)


# --- DINOv3 ----------------------------------------------------------------------------------

#: https://github.com/facebookresearch/dinov3; also LingBot and EUPE, which trained with its code.
DINOV3 = Layout(
    name='DINOv3',
    signature='blocks.*.attn.qkv.weight',
    marks=(r'(^|\.)storage_tokens$',),
    rules=(
        ('storage_tokens', 'reg_token'),
        ('blocks.*.mlp.w1.', 'blocks.*.mlp.fc1_g.'),
        ('blocks.*.mlp.w2.', 'blocks.*.mlp.fc1_x.'),
        ('blocks.*.mlp.w3.', 'blocks.*.mlp.fc2.'),
        *_SCALES,
    ),
    # local_cls_norm: of small crops in training; projectors: of distillation. The mask of the
    # biases is applied before.
    ignored=(r'^mask_token$', r'\.bias_mask$', r'\.periods$', r'^local_cls_norm\.',
             r'^projectors\.', r'^head\.'),
    family='timm',
)

HF_DINOV3 = Layout(
    name='Hugging Face DINOv3',
    signature='layer.*.attention.q_proj.weight',
    marks=(r'(^|\.)layer\.0\.layer_scale1\.lambda1$',),
    rules=(
        ('embeddings.cls_token', 'cls_token'),
        ('embeddings.register_tokens', 'reg_token'),
        ('embeddings.patch_embeddings.', 'patch_embed.proj.'),
        *((f'layer.*.attention.{q}_proj.weight', f'blocks.*.attn.qkv#{part}.weight')
          for part, q in enumerate('qkv')),
        *((f'layer.*.attention.{q}_proj.bias', f'blocks.*.attn.{q}_bias') for q in 'qkv'),
        ('layer.*.attention.o_proj.', 'blocks.*.attn.proj.'),
        ('layer.*.layer_scale1.lambda1', _SCALES[0][1]),
        ('layer.*.layer_scale2.lambda1', _SCALES[2][1]),
        ('layer.*.mlp.gate_proj.', 'blocks.*.mlp.fc1_g.'),
        ('layer.*.mlp.up_proj.', 'blocks.*.mlp.fc1_x.|blocks.*.mlp.fc1.'),
        ('layer.*.mlp.down_proj.', 'blocks.*.mlp.fc2.'),
        ('layer.*.', 'blocks.*.'),
    ),
    ignored=(r'^embeddings\.mask_token$', r'^rope_embeddings\.'),
    family='timm',
)  # fmt: skip

#: Not with a SwiGLU: which activation that has is in the configuration alone.
HF_EOMT_DINOV3 = HF_DINOV3._replace(
    name=eomt.EOMT_DINOV3.name, signature=eomt.EOMT_DINOV3.signature,
    marks=eomt.EOMT_DINOV3.marks,
    rules=(('layernorm.', 'norm.'), *(
        (f'layers.{left[6:]}' if left.startswith('layer.') else left, right)
        for left, right in HF_DINOV3.rules if 'gate' not in left)),
    ignored=(*eomt.HEAD, *HF_DINOV3.ignored))

# --- SigLIP ----------------------------------------------------------------------------------


def _as_convolution(weight: Tensor) -> Tensor:
    """Pixels of a patch in one row, (C, rows * columns * 3) -> (C, 3, rows, columns).

    SigLIP 2 for images of any shape has them so.
    """
    if weight.ndim != 2:
        return weight
    side = math.isqrt(weight.shape[1] // 3)
    return weight.reshape(-1, side, side, 3).permute(0, 3, 1, 2)


_SIGLIP_RULES = (*huggingface._clip(''), *_pool('head.probe', 'head.attention.',
                                                'head.layernorm.', 'head.mlp.'))  # fmt: skip
_SIGLIP = huggingface.CLIP_VISION._replace(
    name='Hugging Face SigLIP image tower',
    marks=(r'(^|\.)embeddings\.patch_embedding\.weight$',),
    rules=_SIGLIP_RULES,
    transforms=(*huggingface.CLIP_VISION.transforms,
                (r'embeddings\.patch_embedding\.weight$', _as_convolution)),
)  # fmt: skip
HF_SIGLIP_VISION = _for_timm(_SIGLIP)
HF_SIGLIP = _for_timm(_SIGLIP._replace(
    name='Hugging Face SigLIP', signature=huggingface.CLIP.signature,
    rules=_behind('vision_model.', _SIGLIP_RULES), ignored=huggingface.CLIP.ignored,
))  # fmt: skip

# --- timm, and what bears its names ----------------------------------------------------------

#: Of every model that timm has: its names are the backbone's.
OWN = Layout(
    name='timm',
    signature='blocks.*.attn.proj.weight',
    # In files from before a name was changed; and a distilled DeiT's second token, with its
    # position added, is a register exactly.
    rules=(*_SCALES, ('dist_token', 'dist_token|reg_token')),
    ignored=(r'^mask_token$', r'^lm_head\.', r'(^|\.)rope\.(?!freqs$)'),
    family='timm',
)
#: Of the same, blocks whose parts lie beside each other.
OWN_PARALLEL = OWN._replace(signature='blocks.*.in_proj.weight')
OWN_SEVERAL = OWN._replace(signature='blocks.*.attns.*.attn.proj.weight')

#: https://github.com/baaivision/EVA, EVA-02 and EVA-02-CLIP.
EVA02 = OWN._replace(
    name='EVA-02',
    marks=(r'(^|\.)blocks\.0\.(mlp\.(w1|w12|ffn_ln)|attn\.inner_attn_ln)\.',),
    rules=(
        ('blocks.*.mlp.w12.', 'blocks.*.mlp.fc1.'),
        ('blocks.*.mlp.w1.', 'blocks.*.mlp.fc1_g.'),
        ('blocks.*.mlp.w2.', 'blocks.*.mlp.fc1_x.'),
        ('blocks.*.mlp.w3.', 'blocks.*.mlp.fc2.'),
        ('blocks.*.mlp.ffn_ln.', 'blocks.*.mlp.norm.'),
        ('blocks.*.attn.inner_attn_ln.', 'blocks.*.attn.norm.'),
        *OWN.rules,
    ),
)

#: Other formats that timm's own code converts, and the name by which each is known.
CONVERTED_BY_TIMM = (
    ('C-RADIO', r'^radio_model\.model\.patch_generator\.embedder\.weight$'),
    ('AIMv2', r'^preprocessor\.patchifier\.proj\.weight$'),
    ('BEiT-3', r'^beit3\.'),
    ('Sapiens2', r'^blocks\.0\.attn\.wq\.weight$'),
)

#: In the order in which they are tried. Of the others' formats of Swin, ResNet and ConvNeXt no
#: such backbone takes any.
TIMM_LAYOUTS: tuple[Layout, ...] = (
    *map(_for_timm, vpt.LAYOUTS),
    _for_timm(clip.CLIP, _behind('visual.', _PE_POOL)),
    _for_timm(clip.CLIP_VISUAL, _PE_POOL),
    HF_EOMT_DINOV3,
    *map(_for_timm, (eomt.EOMT, *huggingface.LAYOUTS)),
    HF_SIGLIP,
    HF_SIGLIP_VISION,
    HF_DINOV3,
    *map(_for_timm, (*google.LAYOUTS, *mm.LAYOUTS)),
    DINOV3,
    *map(_for_timm, (dino.DINOV2_CHUNKS, dino.DINOV2, *mae.LAYOUTS, *moco.LAYOUTS)),
    EVA02,
    OWN,
    OWN_PARALLEL,
    OWN_SEVERAL,
)
