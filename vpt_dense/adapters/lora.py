"""Low-rank updates of linear layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.adapters.updates import (
    LinearUpdates,
    RowsChange,
    Update,
    check_parts,
    find_rows,
)
from vpt_dense.argument_checks import check_count, check_dropout, check_flag, check_number
from vpt_dense.parts import register


@register
class LoRA(LinearUpdates):
    r"""Low-rank adaptation (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1).

    y = W x + b + (alpha / r) U D dropout(x), with D (r, in) starting as PyTorch's linear layers do
    (kaiming uniform, a = sqrt(5)) and U (out, r) at zero: training starts from the backbone's
    function. Merged, W becomes W + (alpha / r) U D.

    With ``rslora`` the scale is alpha / sqrt(r) (Kalajdzievski 2023,
    https://arxiv.org/abs/2312.03732), with which updates of any rank learn at the same pace.

    Args:
        rank: r, at least 1.
        alpha: Numerator of the scale; None: the rank, so that the scale is 1.
        targets: Regular expressions, searched in the names of the backbone's linear layers, and in
            ``BLOCK.qkv``, ``BLOCK.proj``, ``BLOCK.fc1`` and ``BLOCK.fc2``, what those of a block
            are called in every family (``[r'\.(qkv|fc1)$']``). The default is the layer of
            queries, keys and values.
        parts: Of layers of queries, keys and values, update these parts alone, each with a D and a
            U of its own: ``('q', 'v')`` is what the paper does, 2 r (C + C) parameters a block.
            All targets must be such layers. None: one update for each whole layer.
        dropout: Of the input of the update, while training.
        rslora: Whether the scale is alpha / sqrt(rank) instead of alpha / rank; it needs ``alpha``.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no linear layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = (r'\.qkv$',),
        parts: Sequence[str] | None = None,
        dropout: float = 0.0,
        rslora: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_dropout(dropout, 'adapters.dropout')
        check_flag(rslora, 'adapters.rslora')
        if rslora and alpha is None:
            raise ValueError(
                'adapters.rslora=True divides adapters.alpha by sqrt(rank), found alpha=None; say '
                'adapters.alpha')
        scale = 1.0
        if alpha is not None:
            scale = check_number(alpha, 'adapters.alpha', positive=True)
            scale /= math.sqrt(rank) if rslora else rank
        if parts is not None:
            check_parts(parts, targets, backbone)
        self.attach(
            find_rows(backbone, targets, parts),
            lambda rows: self.make(
                LowRank(rows.linear.in_features, rows.number, rank, scale, dropout)))

    def make(self, update: 'LowRank') -> RowsChange:
        """The change of a layer, from its low-rank update."""
        return update


class LowRank(Update):
    """A linear map of low rank, (..., in) to (..., out), which starts at zero."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.number = out_features
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """See :meth:`.RowsChange.matrix`; it does not depend on the weights."""
        return self.scale * self.up.double() @ self.down.double()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        low = nn.functional.linear(self.dropout(x), self.down)
        return nn.functional.linear(low if self.scale == 1 else low * self.scale, self.up)
