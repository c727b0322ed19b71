"""Prompts: objects that yield tokens for the blocks of a transformer. They know no backbone."""

from vpt_dense.prompts.base import Part, Prompt, Site, TokenLayout
from vpt_dense.prompts.coda_prompt import CODAPrompt
from vpt_dense.prompts.context_prompt import ConditionalContext, ContextPrompt
from vpt_dense.prompts.coupled_prompt import CoupledPrompt
from vpt_dense.prompts.dual_prompt import DualPrompt
from vpt_dense.prompts.e2vpt_prompt import E2VPTPrompt
from vpt_dense.prompts.folded_prompt import FoldedPrompt
from vpt_dense.prompts.fourier_prompt import FourierPrompt
from vpt_dense.prompts.gated_prompt import GatedPrompt
from vpt_dense.prompts.ivpt_like_prompt import IVPTLikePrompt
from vpt_dense.prompts.l2p_prompt import L2PPrompt
from vpt_dense.prompts.lspt_like_prompt import LSPTLikePrompt
from vpt_dense.prompts.pae_prompt import PAEPrompt
from vpt_dense.prompts.pixel_prompt import PixelPrompt
from vpt_dense.prompts.prefix_prompt import PrefixPrompt
from vpt_dense.prompts.residual_prompt import ResidualPrompt
from vpt_dense.prompts.self_enhanced_prompt import SelfEnhancedPrompt
from vpt_dense.prompts.stage_prompts import StagePrompts
from vpt_dense.prompts.step_prompts import StepPrompts
from vpt_dense.prompts.task_prompts import TaskPrompts
from vpt_dense.prompts.tcpa_prompt import TCPAPrompt
from vpt_dense.prompts.token_prompt import TokenPrompt
from vpt_dense.prompts.vapt_prompt import VAPTPrompt

__all__ = [
    'CODAPrompt', 'ConditionalContext', 'ContextPrompt', 'CoupledPrompt', 'DualPrompt',
    'E2VPTPrompt', 'FoldedPrompt', 'FourierPrompt', 'GatedPrompt', 'IVPTLikePrompt', 'L2PPrompt',
    'LSPTLikePrompt', 'PAEPrompt', 'Part', 'PixelPrompt', 'PrefixPrompt', 'Prompt',
    'ResidualPrompt', 'SelfEnhancedPrompt', 'Site', 'StagePrompts', 'StepPrompts', 'TCPAPrompt',
    'TaskPrompts', 'TokenLayout', 'TokenPrompt', 'VAPTPrompt',
]
