"""MAE: its pretraining checkpoint is an encoder with timm's names and a decoder.

The published encoders and the fine-tuned models (``fc_norm``) are timm's format as they are.
"""

from vpt_dense.weights.layouts.timm import TIMM

MAE = TIMM._replace(
    name='MAE',
    marks=(r'(^|\.)decoder_blocks\.',),
    ignored=(*TIMM.ignored, r'^decoder_', r'^mask_token$'),
)

LAYOUTS = (MAE,)
