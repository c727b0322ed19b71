"""Updates of which two vectors train, between random matrices that layers share: VeRA."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.updates import LinearUpdates, Rows, Update, check_parts, find_rows
from vpt_dense.argument_checks import check_count, check_dropout, check_number
from vpt_dense.parts import register


@register
class VeRA(LinearUpdates):
    r"""VeRA (Kopiczko et al., ICLR 2024, https://arxiv.org/abs/2310.11454, section 3).

    y = W x + c + b * (B (d * (A dropout(x)))), with random A (r, in) and B (out, r) that do not
    train and that all layers of equal shape share; d (r,) starts at ``start``, b (out,) at zero:
    training starts from the backbone's function. Merged, W becomes W + diag(b) B diag(d) A.

    A and B are drawn from ``seed``, kaiming uniform. They are buffers, which checkpoints and deltas
    hold: what was trained is exact wherever it is loaded, whatever would be drawn there.

    Args:
        rank: r, at least 1.
        start: Of d.
        seed: Of A and B, at least 0.
        targets: As in :class:`LoRA`.
        parts: As there.
        dropout: Of the input of the update, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no linear layer.
    """

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 256,
        start: float = 0.1,
        seed: int = 0,
        targets: Sequence[str] = (r'\.qkv$',),
        parts: Sequence[str] | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_number(start, 'adapters.start')
        check_count(seed, 'adapters.seed', 0)
        check_dropout(dropout, 'adapters.dropout')
        if start == 0:
            raise ValueError('adapters.start=0 would never change, as b is zero too; say another')
        if parts is not None:
            check_parts(parts, targets, backbone)
        places = find_rows(backbone, targets, parts)
        generator = torch.Generator().manual_seed(seed)
        self.fixed = nn.ModuleDict()
        for name, rows in {_shape(rows): rows for rows in places}.items():
            self.fixed[name] = Fixed(rows.linear.in_features, rows.number, rank, generator)
        self.attach(places, lambda rows: Scaled(self.fixed[_shape(rows)], start, dropout))


def _shape(rows: Rows) -> str:
    return f'{rows.number}x{rows.linear.in_features}'


class Fixed(nn.Module):
    """Random matrices: buffers ``down``, A (r, in), and ``up``, B (out, r)."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        for name, shape in dict(down=(rank, in_features), up=(out_features, rank)).items():
            drawn = torch.rand(shape, generator=generator, device='cpu') * 2 - 1
            # An empty one first: under torch.device('meta') there is no memory for it.
            self.register_buffer(name, torch.empty(shape).copy_(drawn * math.sqrt(6 / shape[1])))


class Scaled(Update):
    """The update of a layer: vectors around matrices that do not train.

    Attributes:
        inner: d, (r,).
        outer: b, (number,).
    """

    def __init__(self, fixed: Fixed, start: float, dropout: float) -> None:
        super().__init__()
        self.number, rank = fixed.up.shape
        self.inner = nn.Parameter(torch.full((rank,), float(start)))
        self.outer = nn.Parameter(torch.zeros(self.number))
        # In a tuple, where it is no submodule: the matrices have one name.
        self.fixed = (fixed,)
        self.dropout = nn.Dropout(dropout)

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """See :meth:`.RowsChange.matrix`; it does not depend on the weights."""
        (fixed,) = self.fixed
        left = self.outer.double()[:, None] * fixed.up.double()
        return left * self.inner.double() @ fixed.down.double()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., number)."""
        (fixed,) = self.fixed
        low = F.linear(self.dropout(x), fixed.down) * self.inner
        return F.linear(low, fixed.up) * self.outer
