"""EoMT of Hugging Face transformers: the encoder alone; its head loads the rest of the file."""

from vpt_dense.weights.layouts.base import Layout
from vpt_dense.weights.layouts.clip import _add_batch
from vpt_dense.weights.layouts.dino import _ROPE
from vpt_dense.weights.layouts.huggingface import _attention

#: What is not of the encoder.
HEAD = (
    r'^query\.', r'^upscale_block\.', r'^mask_head\.', r'^class_predictor\.',
    r'^attn_mask_probs$', r'^criterion\.')

#: On DINOv2: the position embedding is of patches alone.
EOMT = Layout(
    name='Hugging Face EoMT',
    signature='layers.*.attention.out_proj.weight',
    marks=(r'(^|\.)query\.weight$', r'(^|\.)embeddings\.position_embeddings\.weight$'),
    rules=(
        ('embeddings.cls_token', 'cls_token'),
        ('embeddings.register_tokens', 'register_tokens'),
        ('embeddings.patch_embeddings.projection.', 'patch_embed.projection.'),
        ('embeddings.position_embeddings.weight', 'pos_embed'),
        ('layernorm.', 'ln1.'),
        *_attention('layers.*.attention.', 'q_proj', 'k_proj', 'v_proj'),
        ('layers.*.attention.out_proj.', 'layers.*.attn.proj.'),
        ('layers.*.norm1.', 'layers.*.ln1.'),
        ('layers.*.norm2.', 'layers.*.ln2.'),
        ('layers.*.layer_scale1.lambda1', 'layers.*.attn.gamma1.weight'),
        ('layers.*.layer_scale2.lambda1', 'layers.*.ffn.gamma2.weight'),
        ('layers.*.mlp.fc1.', 'layers.*.ffn.layers.0.0.'),
        ('layers.*.mlp.fc2.', 'layers.*.ffn.layers.1.'),
        ('layers.*.mlp.gate_proj.', 'layers.*.ffn.w12#0.'),
        ('layers.*.mlp.up_proj.', 'layers.*.ffn.w12#1.'),
        ('layers.*.mlp.down_proj.', 'layers.*.ffn.w3.'),
    ),
    ignored=(*HEAD, r'^embeddings\.(mask_token|position_ids)$'),
    transforms=((r'^embeddings\.position_embeddings\.weight$', _add_batch),),
)

#: On DINOv3, whose blocks have timm's backbones alone.
EOMT_DINOV3 = Layout(
    name='Hugging Face EoMT on DINOv3', signature='layers.*.attention.o_proj.weight',
    marks=(r'(^|\.)query\.weight$',), refused=_ROPE,
)

LAYOUTS = (EOMT, EOMT_DINOV3)
