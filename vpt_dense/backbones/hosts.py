"""Which class tunes a model in place."""

from torch import nn

from vpt_dense.backbones.in_place import InPlaceBackbone, refuse
from vpt_dense.backbones.timm_vit import TimmBackbone


def host_of(model: nn.Module) -> type[InPlaceBackbone]:
    """The class that tunes a model.

    Raises:
        UserError: If there is none.
    """
    if type(model).__module__.startswith('timm.') or any(
        kind.__module__.startswith('timm.') for kind in type(model).__mro__
    ):
        return TimmBackbone
    return refuse(model, 'it is none of timm')
