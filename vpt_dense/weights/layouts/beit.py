"""BEiT, refused: its blocks need what the backbone does not have."""

from vpt_dense.weights.layouts.base import Layout

_REASON = (
    'its blocks add a relative position bias to the attention, which vpt_dense has no place for'
)
_MARKS = (r'relative_position_bias_table$',)

BEIT = Layout(
    name='BEiT', signature='blocks.*.attn.qkv.weight', marks=_MARKS, refused=_REASON
)
BEIT_MM = BEIT._replace(name='BEiT of mmpretrain', signature='layers.*.attn.qkv.weight')
BEIT_HF = BEIT._replace(
    name='BEiT of transformers', signature='encoder.layer.*.attention.attention.query.weight'
)

LAYOUTS = (BEIT, BEIT_MM, BEIT_HF)
