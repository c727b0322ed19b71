"""Prompted backbones, one file a family. They place prompt tokens and know no method."""

from vpt_dense.backbones.convnext import ConvNeXt
from vpt_dense.backbones.eva02 import EVA02VisionTransformer
from vpt_dense.backbones.resnet import ResNet
from vpt_dense.backbones.swin import SwinTransformer
from vpt_dense.backbones.token_backbone import TokenBackbone
from vpt_dense.backbones.vision_transformer import VisionTransformer

PromptedVisionTransformer = VisionTransformer  # what it was called at first

__all__ = [
    'ConvNeXt', 'EVA02VisionTransformer', 'PromptedVisionTransformer', 'ResNet', 'SwinTransformer',
    'TokenBackbone', 'VisionTransformer',
]
