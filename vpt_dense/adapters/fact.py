"""Updates of all layers from factors that they share: FacT."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.updates import LinearUpdates, Rows, Update
from vpt_dense.argument_checks import check_choice, check_count, check_dropout, check_number
from vpt_dense.parts import register


@register
class FacT(LinearUpdates):
    """FacT (Jie & Deng, AAAI 2023, https://arxiv.org/abs/2212.03145).

    The weights of a block are taken for 12 matrices (C, C): queries, keys, values, projection, four
    pieces of the outputs of the MLP's first layer and four of the inputs of its last. Matrix m gets

        W_m + s V G_m U,

    with U (r, C) and V (C, r) that all blocks share and G_m (r, r). FacT-TT (``form='tt'``) has a
    G_m for each matrix, FacT-TK (``form='tk'``) G_m = sum_k P_mk K_k with K (r, r, r) that all
    share and r numbers P_m for each. U and G_m start as PyTorch's linear layers do, K and P xavier
    uniform, V at zero: training starts from the backbone's function.

    A MLP of another width has so many pieces, the last one cut. Blocks of another width (the stages
    of a Swin) have factors of their own.

    Args:
        rank: r, at least 1.
        form: 'tt' or 'tk'.
        scale: s, not trained.
        dropout: Of the r numbers in front of V, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs = frozenset({'tokens', 'parts'})

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 16,
        form: str = 'tt',
        scale: float = 1.0,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_choice(form, 'adapters.form', ('tt', 'tk'))
        check_number(scale, 'adapters.scale', positive=True)
        check_dropout(dropout, 'adapters.dropout')
        names = {module: name for name, module in backbone.named_modules()}
        widths: dict[Rows, int] = {}
        for block in backbone.block_list():
            for linear in (*block.qkv, block.proj, *block.fc1, block.fc2):
                widths[Rows(names[linear], linear, 0, linear.out_features)] = block.embed_dims
        counts = dict.fromkeys(widths.values(), 0)
        for rows, width in widths.items():
            counts[width] += math.prod(_pieces(rows.linear, width))
        self.factors = nn.ModuleDict({
            str(width): Factors(width, rank, form == 'tk') for width in counts})
        self.attach([*widths], lambda rows: Shared(
            rows.linear, self.factors[str(widths[rows])], counts[widths[rows]], scale, dropout))


def _pieces(linear: nn.Linear, width: int) -> tuple[int, int]:
    """How many matrices of a width the outputs and the inputs of a layer are taken for."""
    return tuple(-(-size // width) for size in (linear.out_features, linear.in_features))


class Factors(nn.Module):
    """What the matrices of one width share.

    Attributes:
        down: U, (r, C).
        up: V, (C, r).
        core: K, (r, r, r); None: there is none.
    """

    def __init__(self, width: int, rank: int, has_core: bool) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.zeros(width, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.core = nn.Parameter(torch.empty(rank, rank, rank)) if has_core else None
        if has_core:
            nn.init.xavier_uniform_(self.core)


class Shared(Update):
    """The update of a layer, from what it shares with others.

    Args:
        linear: The layer.
        factors: What it shares.
        count: How many matrices share it.
        scale: s.
        dropout: See :class:`FacT`.

    Attributes:
        middle: With a core P, (matrices, r); without G, its matrices side by side for the pieces of
            the inputs, below each other for those of the outputs.
    """

    def __init__(
        self, linear: nn.Linear, factors: Factors, count: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        rank, self.width = factors.down.shape
        self.number, self.inputs = linear.out_features, linear.in_features
        self.pieces = _pieces(linear, self.width)  # of outputs, of inputs
        # In a tuple, where it is no submodule: its parameters have one name.
        self.factors, self.scale = (factors,), scale
        self.dropout = nn.Dropout(dropout)
        if factors.core is None:
            above, beside = self.pieces
            self.middle = nn.Parameter(torch.empty(above * rank, beside * rank))
            nn.init.kaiming_uniform_(self.middle, a=math.sqrt(5))
        else:
            bound = math.sqrt(6 / (rank + count))
            self.middle = nn.Parameter(torch.empty(math.prod(self.pieces), rank))
            nn.init.uniform_(self.middle, -bound, bound)

    def cores(self) -> Tensor:
        """All G_m of the layer, (pieces of outputs * r, pieces of inputs * r)."""
        core = self.factors[0].core
        if core is None:
            return self.middle
        matrices = torch.einsum('mk,abk->mab', self.middle, core)  # (matrices, r, r)
        above, beside = self.pieces
        return matrices.unflatten(0, (above, beside)).transpose(1, 2).flatten(2).flatten(0, 1)

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """See :meth:`.RowsChange.matrix`; it does not depend on the weights."""
        (factors,), (above, beside) = self.factors, self.pieces
        cores = self.cores().double().unflatten(0, (above, -1)).unflatten(2, (beside, -1))
        whole = torch.einsum('cr,arbs,sd->acbd', factors.up.double(), cores, factors.down.double())
        return self.scale * whole.flatten(2).flatten(0, 1)[: self.number, : self.inputs]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        (factors,), (above, beside) = self.factors, self.pieces
        lacking = beside * self.width - self.inputs
        x = F.pad(x, (0, lacking)) if lacking else x
        low = F.linear(x.unflatten(-1, (beside, self.width)), factors.down)  # (..., beside, r)
        low = self.dropout(F.linear(low.flatten(-2), self.cores()))  # (..., above * r)
        out = F.linear(low.unflatten(-1, (above, -1)), factors.up).flatten(-2)[..., : self.number]
        return out if self.scale == 1 else out * self.scale
