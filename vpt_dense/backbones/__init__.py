"""Prompted backbones, one file a family. They place prompt tokens and know no method.

Those of mmpretrain are imported when they are asked for: plain PyTorch needs none of them.
"""

import importlib
from typing import Any

_PLACES = {
    'ConvNeXt': 'convnext', 'EVA02VisionTransformer': 'eva02',
    'PromptedVisionTransformer': 'vision_transformer', 'ResNet': 'resnet',
    'SwinTransformer': 'swin', 'TokenBackbone': 'token_backbone',
    'TimmVisionTransformer': 'timm_vision_transformer',
    'VisionTransformer': 'vision_transformer',
}  # fmt: skip

__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_PLACES[name]}'), name)
