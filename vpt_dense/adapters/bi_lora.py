"""Low-rank updates whose weights have a few bits: Bi-LoRA."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense import few_bits
from vpt_dense.adapters.updates import LinearUpdates, Update, check_parts, find_rows
from vpt_dense.argument_checks import check_choice, check_count, check_dropout, check_number
from vpt_dense.parts import register


@register
class BiLoRA(LinearUpdates):
    r"""Bi-LoRA (S. Jie et al., ICCV 2023, https://arxiv.org/abs/2307.16867).

    y = W x + b + (alpha / r) q(U) dropout(q(D) x),

    with D (r, in), U (number, r) and q(w) = m + s c((w - m) / (s + 1e-5)), m and s being mean and
    standard deviation of all of w, and c the nearest of 2^b levels that have the least mean
    absolute error on a normal distribution: +-0.674 for one bit. In backward the rounding counts as
    the identity; m and s have gradients.

    In training U and D are float32. A delta holds their bits, m and s, so that of 1 bit and rank 32
    it is as large as LoRA's of rank 1. A training that starts from it keeps its m and s. Merged, W
    becomes W + (alpha / r) q(U) q(D).

    D starts as PyTorch's linear layers do, U with a standard deviation of 0.001, cut off at 0.002:
    rounded, neither is zero, so that training does not start at the backbone's function.

    Args:
        rank: r, at least 1.
        bits: b, 1, 2 or 4.
        alpha: Numerator of the scale; None: the rank, so that the scale is 1. The authors choose
            the scale of 0.01, 0.1, 1, 10 and 100 for each set.
        targets: As in :class:`LoRA`.
        parts: As there; the authors' are queries and values.
        dropout: Of what D gives, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no linear layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 32,
        bits: int = 1,
        alpha: float | None = None,
        targets: Sequence[str] = (r'\.qkv$',),
        parts: Sequence[str] | None = None,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_choice(bits, 'adapters.bits', (1, 2, 4))
        check_dropout(dropout, 'adapters.dropout')
        alpha = rank if alpha is None else check_number(alpha, 'adapters.alpha', positive=True)
        if parts is not None:
            check_parts(parts, targets, backbone)
        self.attach(
            find_rows(backbone, targets, parts),
            lambda rows: FewBits(
                rows.linear.in_features, rows.number, rank, bits, alpha / rank, dropout))


class FewBits(Update):
    """A linear map of low rank, (..., in) to (..., out), of two rounded matrices.

    Attributes:
        down_levels: Mean, standard deviation and bits of ``down``, a buffer; a deviation below 0:
            they are those of ``down`` now.
        up_levels: The same of ``up``.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bits: int, scale: float,
        dropout: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.number, self.bits, self.scale = out_features, bits, scale
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.trunc_normal_(self.up, std=0.001, a=-0.002, b=0.002)
        for name in ('down', 'up'):
            self.register_buffer(name + few_bits.LEVELS, torch.tensor([0.0, -1.0, bits]))
        self.dropout = nn.Dropout(dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        """q(D) and q(U)."""
        return (few_bits.rounded(self.down, self.down_levels, self.bits),
                few_bits.rounded(self.up, self.up_levels, self.bits))

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """See :meth:`.RowsChange.matrix`; it does not depend on the weights."""
        down, up = self.factors()
        return self.scale * up.double() @ down.double()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., number)."""
        down, up = self.factors()
        low = self.dropout(F.linear(x, down))
        return F.linear(low if self.scale == 1 else low * self.scale, up)
