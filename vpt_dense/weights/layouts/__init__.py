"""The formats of pretrained weights that are understood: a table each, a module a family."""

from vpt_dense.weights.layouts import (
    beit,
    clip,
    convnext,
    deit,
    dino,
    eomt,
    eva02,
    google,
    huggingface,
    mae,
    mm,
    moco,
    resnet,
    swin,
    timm,
    vpt,
)
from vpt_dense.weights.layouts.base import Layout
from vpt_dense.weights.layouts.timm_models import TIMM_LAYOUTS

#: All formats in the order in which they are tried: those with more marks come before those that
#: share their signature.
LAYOUTS: tuple[Layout, ...] = (
    *clip.TEXT_LAYOUTS,
    *huggingface.TEXT_LAYOUTS,
    *swin.LAYOUTS,
    *vpt.LAYOUTS,
    *clip.LAYOUTS,
    *eomt.LAYOUTS,
    *huggingface.LAYOUTS,
    *beit.LAYOUTS,
    *eva02.LAYOUTS,
    *google.LAYOUTS,
    *mm.LAYOUTS,
    *dino.LAYOUTS,
    *mae.LAYOUTS,
    *moco.LAYOUTS,
    *deit.LAYOUTS,
    *timm.LAYOUTS,
    *convnext.LAYOUTS,
    *resnet.LAYOUTS,
)

__all__ = ['LAYOUTS', 'TIMM_LAYOUTS', 'Layout']
