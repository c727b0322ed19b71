"""Linked prompts that strengthen salient patches, after what the abstract of iVPT says."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import is_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class IVPTLikePrompt(TokenPrompt):
    """Follows the abstract of iVPT (Zhou et al., 2024, https://arxiv.org/abs/2404.05207) alone.

    Its equations and code are not public: nothing was compared with the authors'. The abstract has
    a connection between the prompts of adjacent layers, of which a dynamic part chooses what is
    shared; and an attentive reinforcement, which finds salient image tokens and adds prompts to
    them. So the prompts of layer i are

        P'_i = P_i + a_i softmax(P_i P_{i-1}^T / sqrt(C)) P_{i-1}

    and the share ``salient`` of the patches x whose cosine with any of P'_i is highest becomes

        x + b_i softmax(x P'_i^T / sqrt(C)) P'_i

    before block i. The numbers a_i and b_i, one a layer, start at zero: tuning starts as VPT-deep.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        salient: Share of the patches, above 0 and at most 1; rounded up.
        layer_range: As in :class:`vpt_dense.prompts.TokenPrompt`; the first layer of the range has
            P_i alone.
        keep_outputs: As there.
        dropout: As there, of the prompts that enter a block.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default tokens start as VPT's.

    Attributes:
        tokens: P_i, (layers of the range, P, C).
        links: a_i of the layers but the first, a parameter; None where there is one.
        boosts: b_i, a parameter (layers of the range,).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'grid', 'one width'})
    depends_on_input = True  # its patches do: keys and values of the prompts are not all of it

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        salient: float = 0.1,
        layer_range: Sequence[int | None] = (0, None),
        keep_outputs: bool = True,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            site, num_tokens, deep=True, layer_range=layer_range, keep_outputs=keep_outputs,
            dropout=dropout, init_cfg=init_cfg,
        )  # fmt: skip
        if not is_number(salient) or not 0 < salient <= 1:
            raise ValueError(
                f'prompt.salient must be a number above 0 and at most 1, found {salient!r}')
        self.salient = salient
        number = len(self.tokens)
        self.links = nn.Parameter(torch.zeros(number - 1)) if number > 1 else None
        self.boosts = nn.Parameter(torch.zeros(number))

    def _linked(self, layer: int) -> Tensor:
        """P'_i, (1, P, C)."""
        row = layer - self.start
        own = self.tokens[row : row + 1]
        if row == 0:
            return own
        before = self.tokens[row - 1 : row]
        shares = (own @ before.transpose(1, 2) / math.sqrt(own.shape[-1])).softmax(-1)
        return own + self.links[row - 1] * (shares @ before)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """P'_i of all layers of the range, each (1, P, C)."""
        return tuple(self._linked(layer) for layer in range(self.start, self.stop))

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.before_block`: the salient patches get prompts added."""
        if not self.start <= layer < self.stop:
            return x
        prompts = self._linked(layer)[0].to(x.dtype)  # (P, C)
        patches = layout.patches(x)  # (B, N, C)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(prompts, dim=-1).T  # (B, N, P)
        number = math.ceil(self.salient * patches.shape[1])
        chosen = cosines.detach().amax(-1).topk(number, dim=1).indices  # (B, n)
        chosen = chosen.unsqueeze(-1).expand(-1, -1, patches.shape[-1])  # (B, n, C)
        found = patches.gather(1, chosen)
        shares = (found @ prompts.T / math.sqrt(found.shape[-1])).softmax(-1)
        added = self.boosts[layer - self.start] * (shares @ prompts)  # (B, n, C)
        patches = patches.scatter_add(1, chosen, added.to(patches.dtype))
        return torch.cat([x[:, : x.shape[1] - patches.shape[1]], patches], dim=1)

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: tuple[Tensor, ...] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`. While dropout acts the batch is B, else 1."""
        return super().forward(x, layer, prepared or self.prepare(), layout)
