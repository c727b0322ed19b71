"""Adapters: objects that change what the blocks of a backbone compute. One file a method."""

from vpt_dense.adapters.base import Adapter, Block
from vpt_dense.adapters.lora import LoRA

__all__ = ['Adapter', 'Block', 'LoRA']
