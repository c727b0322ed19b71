"""Prompted backbones, one file a family. They place prompt tokens and know no method."""

from vpt_dense.backbones.prompted_vit import PromptedVisionTransformer
from vpt_dense.backbones.swin import SwinTransformer

__all__ = ['PromptedVisionTransformer', 'SwinTransformer']
