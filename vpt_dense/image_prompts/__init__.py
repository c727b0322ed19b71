"""Prompts in image space, in front of any backbone. One file a method."""

from vpt_dense.image_prompts.base import ImagePrompt
from vpt_dense.image_prompts.concat_channel import ConcatChannelPrompt
from vpt_dense.image_prompts.lor_vp import LoRVP
from vpt_dense.image_prompts.pad import PadPrompt

__all__ = ['ConcatChannelPrompt', 'ImagePrompt', 'LoRVP', 'PadPrompt']
