"""MoCo v3: two encoders with timm's names, each with a projection for a head.

The base encoder is taken, as in the authors' linear evaluation; the momentum encoder is left out.
"""

from vpt_dense.weights.layouts.timm import TIMM

MOCO_V3 = TIMM._replace(
    name='MoCo v3',
    marks=(r'(^|\.)base_encoder\.', r'(^|\.)momentum_encoder\.|(^|\.)base_encoder\.head\.'),
)

LAYOUTS = (MOCO_V3,)
