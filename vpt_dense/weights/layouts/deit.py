"""DeiT and DeiT III, as their authors publish them; plain DeiT is timm's format as it is."""

from vpt_dense.weights.layouts.timm import TIMM

#: The distillation token is a second constant token beside cls: what this package calls a
#: register. With its position row added to it, it is one exactly.
DEIT_DISTILLED = TIMM._replace(
    name='DeiT, distilled',
    marks=(r'(^|\.)dist_token$',),
    rules=(('dist_token', 'register_tokens'), *TIMM.rules),
    ignored=(*TIMM.ignored, r'^head_dist\.'),
)

DEIT3 = TIMM._replace(
    name='DeiT III',
    marks=(r'(^|\.)blocks\.\d+\.gamma_1$',),
    rules=(
        ('blocks.*.gamma_1', 'layers.*.attn.gamma1.weight'),
        ('blocks.*.gamma_2', 'layers.*.ffn.gamma2.weight'),
        *TIMM.rules,
    ),
)

LAYOUTS = (DEIT_DISTILLED, DEIT3)
