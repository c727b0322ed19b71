"""Which class tunes a model of another library in place."""

import importlib

from torch import nn

from vpt_dense.backbones.in_place import InPlaceBackbone, refuse
from vpt_dense.errors import UserError

#: Package -> the module here and its class, for that package's models.
_HOSTS = {
    'timm': ('timm_vit', 'TimmBackbone'),
    'transformers': ('transformers_vit', 'TransformersBackbone'),
    'torchvision': ('torchvision_vit', 'TorchvisionBackbone'),
}
_SUPPORTED = (
    "timm's VisionTransformer and Eva, transformers' ViTModel, Dinov2Model, "
    'Dinov2WithRegistersModel, DINOv3ViTModel, CLIPVisionModel and SiglipVisionModel, '
    "torchvision's VisionTransformer")


def host_of(model: nn.Module) -> type[InPlaceBackbone]:
    """Find the class that tunes a model in place.

    Nothing of a library is imported that the model itself did not bring along.

    Args:
        model: A model of timm, transformers or torchvision.

    Returns:
        The class, for its ``take_over``.

    Raises:
        UserError: If there is none, or the model has a part that it does not know; the message
            names a child of the model that could be tuned, if there is one.
    """
    if isinstance(model, InPlaceBackbone):
        refuse(model, 'it is tuned already; undo that first')
    host, reason = _judge(model)
    if reason is None:
        return host
    for name, child in model.named_modules():
        if name and isinstance(child, InPlaceBackbone):
            refuse(model, f'its part {name}, a {type(child).__name__}, is tuned already')
        if name and _judge(child)[1] is None:
            refuse(model, f'tune model.{name}, a {type(child).__name__}, instead')
    refuse(model, reason)


def _judge(model: nn.Module) -> tuple[type[InPlaceBackbone] | None, str | None]:
    """The class for a model of such a library, and why it would refuse; None: it would not."""
    packages = [kind.__module__.partition('.')[0] for kind in type(model).__mro__]
    package = next((package for package in packages if package in _HOSTS), None)
    if package is None:
        return None, f'supported are {_SUPPORTED}'
    module, name = _HOSTS[package]
    host = getattr(importlib.import_module(f'vpt_dense.backbones.{module}'), name)
    try:
        host.check(model)
    except UserError as error:
        return None, str(error).partition(': ')[2]
    return host, None
