"""Prompts with a residual link to the prompts of the block before."""

from collections.abc import Sequence

from torch import Tensor, nn

from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class ResidualPrompt(TokenPrompt):
    """VPT-deep with a residual link between the prompts of adjacent layers.

    The prompts of layer i are P'_i = P_i + A_i P_{i-1}, with A_i a linear layer (P to P, with
    bias) over the tokens, and P_{i-1} the parameter of the layer before, not what its block makes
    of it. Nothing depends on the input. Found in https://github.com/weeknan/ProPETL without a
    paper of its own; it is not iVPT, whose equations are not public.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        layer_range: As in :class:`vpt_dense.prompts.TokenPrompt`; the first layer of the range, and
            of each stage of a Swin, has P_i alone.
        keep_outputs: As there.
        project_dims: As there.
        dropout: As there; P_{i-1} gets a mask of its own.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default tokens start as those of
            VPT and A_i as PyTorch's linear layers do.

    Attributes:
        mixes: A_i, a ``ModuleList``, one less than there are layers in the range (of the stage).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        layer_range: Sequence[int | None] = (0, None),
        keep_outputs: bool = True,
        project_dims: int | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            site, num_tokens, deep=True, layer_range=layer_range, keep_outputs=keep_outputs,
            project_dims=project_dims, dropout=dropout, init_cfg=init_cfg,
        )  # fmt: skip
        self.mixes = nn.ModuleList(
            nn.Linear(num_tokens, num_tokens) for _ in range(1, len(self.tokens))
        )

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: tuple[Tensor, ...] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`. While dropout acts the batch is B, else 1."""
        own = super().forward(x, layer, prepared, layout)  # (1 or B, P, C)
        if not 0 < layer - self.first <= len(self.mixes):
            return own
        before = super().forward(x, layer - 1, prepared, layout)
        mix = self.mixes[layer - self.first - 1]
        return own + mix(before.transpose(1, 2)).transpose(1, 2)
