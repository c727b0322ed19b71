"""timm's vision transformer, and other formats with timm's names of tensors."""

from vpt_dense.weights.layouts.base import Layout

#: timm; also DINO and MAE's published encoders and DeiT, which were built on timm's classes.
TIMM = Layout(
    name='timm',
    signature='blocks.*.attn.qkv.weight',
    rules=(
        ('patch_embed.proj.', 'patch_embed.projection.'),
        ('blocks.*.norm1.', 'layers.*.ln1.'),
        ('blocks.*.norm2.', 'layers.*.ln2.'),
        # The second names are those of SwiGLU, which timm packs into the same two layers.
        ('blocks.*.mlp.fc1.', 'layers.*.ffn.layers.0.0.|layers.*.ffn.w12.'),
        ('blocks.*.mlp.fc2.', 'layers.*.ffn.layers.1.|layers.*.ffn.w3.'),
        ('blocks.*.mlp.w12.', 'layers.*.ffn.w12.'),  # SwiGLU of DINOv2's own code
        ('blocks.*.mlp.w3.', 'layers.*.ffn.w3.'),
        ('blocks.*.ls1.gamma', 'layers.*.attn.gamma1.weight'),
        ('blocks.*.ls2.gamma', 'layers.*.ffn.gamma2.weight'),
        ('blocks.*.', 'layers.*.'),
        ('norm_pre.', 'pre_norm.'),
        ('norm.', 'ln1.'),
        ('fc_norm.', 'ln2.'),
        ('reg_token', 'register_tokens'),
    ),
    # Heads of IN-1k and IN-21k classifiers, and the latter's tanh layer before it.
    ignored=(r'^head\.', r'^pre_logits\.'),
)

LAYOUTS = (TIMM,)
