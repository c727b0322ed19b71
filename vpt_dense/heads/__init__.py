"""Decode heads. Needs mmseg, so the registry imports it when one of them is asked for."""

from vpt_dense.heads.deconv import DeconvHead
from vpt_dense.heads.depth import DPTDepthHead, LinearDepthHead
from vpt_dense.heads.edges import EdgeLoss, LinearDistanceHead, LinearEdgeHead, MapL1Loss
from vpt_dense.heads.eomt import EoMTHead
from vpt_dense.heads.linear import LinearHead
from vpt_dense.heads.map_losses import GradientLoss, SigLoss
from vpt_dense.heads.normals import DPTNormalHead, LinearNormalHead, NormalLoss
from vpt_dense.heads.plain_mask import PlainMaskHead
from vpt_dense.heads.setr import SETRMLAHead, SETRUPHead
from vpt_dense.heads.upsampled import FCNHead, SegmenterMaskTransformerHead, UPerHead

__all__ = [
    'DPTDepthHead', 'DPTNormalHead', 'DeconvHead', 'EdgeLoss', 'EoMTHead', 'FCNHead',
    'GradientLoss', 'LinearDepthHead', 'LinearDistanceHead', 'LinearEdgeHead', 'LinearHead',
    'LinearNormalHead', 'MapL1Loss', 'NormalLoss', 'PlainMaskHead', 'SETRMLAHead', 'SETRUPHead',
    'SegmenterMaskTransformerHead', 'SigLoss', 'UPerHead',
]
