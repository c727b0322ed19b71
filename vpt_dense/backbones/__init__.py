"""Prompted backbones, one file a family. They place prompt tokens and know no method."""

from vpt_dense.backbones.prompted_vit import PromptedVisionTransformer

__all__ = ['PromptedVisionTransformer']
