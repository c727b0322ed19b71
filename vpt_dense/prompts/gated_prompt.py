"""Prompts that pass through the blocks at a learnt rate: gated prompt tuning."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class GatedPrompt(TokenPrompt):
    """Gated prompt tuning (Yoo et al., ICML 2023, https://arxiv.org/abs/2306.05067).

    Shallow prompts, one set P. What a block makes of them counts by a learnt gate:

        P <- g_i P_out + (1 - g_i) P_in,    g_i = sigmoid(gamma_i),

    P_in being what entered block i and P_out what it put out at these places. There is a gate
    behind each block but the last, behind which nothing reads the prompts (a gate there would
    never get a gradient). The method's learnable temperature of attention is left out.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        gate_init: gamma_i at the start; -5 lets 0.7 % of a block's output through.
        project_dims: As in :class:`vpt_dense.prompts.TokenPrompt`.
        dropout: As there.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default the tokens start as those
            of VPT.

    Attributes:
        gates: gamma, a parameter (N - 1,); None where there is one block.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width'})
    depends_on_input = True

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        gate_init: float = -5.0,
        project_dims: int | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            site, num_tokens, project_dims=project_dims, dropout=dropout, init_cfg=init_cfg)
        check_number(gate_init, 'prompt.gate_init')
        self.gates = None
        if site.num_layers > 1:
            self.gates = nn.Parameter(torch.full((site.num_layers - 1,), float(gate_init)))

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> dict:
        """The tokens, projected, and a place for the prompts that entered the last block."""
        return dict(sets=super().prepare(embed), entered=None)

    def forward(
        self, x: Tensor, layer: int, prepared: dict, layout: TokenLayout | None = None
    ) -> Tensor:
        """See :meth:`Prompt.forward`; all blocks of a pass, in order, get one ``prepared``."""
        if layer == 0:
            tokens = super().forward(x, 0, prepared['sets'])  # (1 or B, P, C)
        else:
            gate = self.gates[layer - 1].sigmoid()
            tokens = gate * layout.prompts(x) + (1 - gate) * prepared['entered']  # (B, P, C)
        prepared['entered'] = tokens
        return tokens

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`: what the last block puts out is never read."""
        return layer + 1 == self.num_layers
