"""Prompts with a memory over the blocks, after what the abstract of LSPT says."""

from collections.abc import Callable

from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class LSPTLikePrompt(TokenPrompt):
    """Follows the abstract of LSPT (Mo et al., 2024, https://arxiv.org/abs/2402.17406) alone.

    Its equations and code are not public: nothing was compared with the authors'. The abstract has
    an LSTM over the blocks, which carries what earlier blocks made of the prompts (long-range
    prompts), and a summary of the patches that is added to the prompts (spatial). So shallow
    prompts P enter block 0, and from block 1 on

        z_i = D (P_out + mean of the patches),   (h_i, c_i) = LSTM(z_i, (h_{i-1}, c_{i-1})),
        P_i = P_out + U h_i,

    P_out being what the block before put out at the prompts' places. D (C to r), U (r to C) and the
    LSTM (r to r) are of all blocks alike, each prompt has a state of its own, which starts at zero.
    U starts at zero, so that tuning starts as VPT-shallow.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        hidden_dims: r.
        dropout: As in :class:`vpt_dense.prompts.TokenPrompt`.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default the tokens start as those of
            VPT, D and the LSTM as PyTorch's.

    Attributes:
        tokens: P, (1, P, C).
        down: D, where there is more than one block.
        memory: The LSTM, likewise.
        up: U, likewise.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'grid', 'one width'})
    depends_on_input = True

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        hidden_dims: int = 112,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(site, num_tokens, dropout=dropout, init_cfg=init_cfg)
        check_count(hidden_dims, 'prompt.hidden_dims')
        if site.num_layers > 1:  # else nothing goes through it
            self.down = nn.Linear(site.dims, hidden_dims, bias=False)
            self.memory = nn.LSTMCell(hidden_dims, hidden_dims)
            self.up = nn.Linear(hidden_dims, site.dims, bias=False)
            nn.init.zeros_(self.up.weight)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> dict:
        """The tokens, and a place for the LSTM's state."""
        return dict(sets=super().prepare(embed), state=None)

    def forward(
        self, x: Tensor, layer: int, prepared: dict, layout: TokenLayout | None = None
    ) -> Tensor:
        """See :meth:`Prompt.forward`; all blocks of a pass, in order, get one ``prepared``."""
        if layer == 0:
            return super().forward(x, 0, prepared['sets'])  # (1 or B, P, C)
        left = layout.prompts(x)  # (B, P, C)
        seen = left + layout.patches(x).mean(1, keepdim=True)
        hidden, cell = self.memory(self.down(seen).flatten(0, 1), prepared['state'])  # (B P, r)
        prepared['state'] = hidden, cell
        return left + self.up(hidden).unflatten(0, left.shape[:2])

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`: what the last block puts out is never read."""
        return layer + 1 == self.num_layers
