"""A head's queries among the tokens of the last blocks (EoMT)."""

from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.backbones.beside import quietly
from vpt_dense.prompts import TokenLayout


class Guests:
    """The queries of a head in one forward pass.

    They stand behind class and register tokens while tokens pass a block, and are taken out behind
    it: what lies between the blocks knows nothing of them.

    Args:
        head: A :class:`vpt_dense.heads.EoMTHead`.
        start: The first block that they pass.
        norm: The backbone's last norm.
    """

    def __init__(self, head: nn.Module, start: int, norm: nn.Module) -> None:
        self.head, self.start, self.norm = head, start, norm
        self.shares = head.bound() if head.training else None
        self.tokens: Tensor | None = None  # (B, Q, C)
        self.inside: Tensor | None = None  # (B, Q, N)
        self.found: list[Tensor] = []

    def enter(self, x: Tensor, i: int, layout: TokenLayout) -> tuple[Tensor, TokenLayout]:
        """Let queries in.

        Args:
            x: The tokens in front of block i, (B, F + P + N, C).
            i: Index of the block.
            layout: What they are.

        Returns:
            The tokens (B, F + Q + P + N, C), and what they are: queries count as first tokens.
        """
        if i < self.start:
            return x, layout
        if self.tokens is None:
            self.tokens = self.head.q.weight.expand(x.shape[0], -1, -1)
        if self.shares is not None:
            maps = layout.maps(quietly(self.norm, x))
            masks, classes = self.head.predict_from(quietly(self.norm, self.tokens), maps)
            self.found += [masks, classes]
            self.inside = self.head.inside(masks, layout.grid, self.shares[i - self.start])
        first = layout.num_first
        x = torch.cat((x[:, :first], self.tokens.to(x.dtype), x[:, first:]), dim=1)
        return x, layout._replace(num_first=first + self.tokens.shape[1])

    def arguments(self, layout: TokenLayout) -> dict[str, Any]:
        """Further arguments of the block that they have entered, ``layout`` being its tokens."""
        if self.inside is None:
            return {}
        queries = self.tokens.shape[1]
        stop, rows, columns = layout.num_first, *layout.grid
        number = stop + layout.num_prompts + rows * columns
        sees = self.inside.new_ones(len(self.inside), number, number)
        sees[:, stop - queries : stop, stop + layout.num_prompts :] = self.inside
        self.inside = None
        return dict(sees=sees)

    def leave(self, x: Tensor, i: int, layout: TokenLayout) -> tuple[Tensor, TokenLayout]:
        """Take queries out again, behind block i."""
        if i < self.start:
            return x, layout
        queries, stop = self.tokens.shape[1], layout.num_first
        first = stop - queries
        self.tokens = x[:, first:stop]
        x = torch.cat((x[:, :first], x[:, stop:]), dim=1)
        return x, layout._replace(num_first=first)

    def outputs(self) -> tuple[Tensor, ...]:
        """What follows the backbone's own outputs.

        Returns:
            Queries behind the last norm (B, Q, C); in training masks and classes in front of each
            block, in turn.
        """
        return quietly(self.norm, self.tokens), *self.found
