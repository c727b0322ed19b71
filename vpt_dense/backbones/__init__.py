"""Prompted backbones, one file a family. They place prompt tokens and know no method."""

from vpt_dense.backbones.convnext import ConvNeXt
from vpt_dense.backbones.prompted_vit import PromptedVisionTransformer
from vpt_dense.backbones.resnet import ResNet
from vpt_dense.backbones.swin import SwinTransformer

__all__ = ['ConvNeXt', 'PromptedVisionTransformer', 'ResNet', 'SwinTransformer']
