"""Prompts: objects that yield tokens for the blocks of a transformer. They know no backbone."""

from vpt_dense.prompts.base import Prompt, TokenLayout
from vpt_dense.prompts.folded_prompt import FoldedPrompt
from vpt_dense.prompts.token_prompt import TokenPrompt

__all__ = ['FoldedPrompt', 'Prompt', 'TokenLayout', 'TokenPrompt']
