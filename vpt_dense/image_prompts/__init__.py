"""Prompts in image space, in front of any backbone. One file a method."""

from vpt_dense.image_prompts.base import ImagePrompt

__all__ = ['ImagePrompt']
