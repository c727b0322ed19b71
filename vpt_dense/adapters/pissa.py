"""Low-rank updates that start from singular components of the weights: PiSSA."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.adapters.updates import LinearUpdates, Rows, Update, check_parts, find_rows
from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.parts import register


class ComponentUpdates(LinearUpdates):
    """The base of adapters whose low-rank updates start from singular components.

    Args:
        backbone: Filled in by the backbone.
        places: What is updated.
        rank: r.
        alpha: Numerator of the scale; None: the rank.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    #: Whether the largest singular values, not the smallest.
    largest = True

    def __init__(
        self, backbone: nn.Module, places: Sequence[Rows], rank: int, alpha: float | None,
        init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        scale = 1.0
        if alpha is not None:
            scale = check_number(alpha, 'adapters.alpha', positive=True) / rank
        for rows in places:
            most = min(rows.linear.in_features, rows.number)
            if rank > most:
                raise ValueError(
                    f'adapters.rank={rank} is above the {most} singular values of {rows.name}')
        self.attach(
            places, lambda rows: Moved(rows.linear.in_features, rows.number, rank, scale))

    def start_from(self, backbone: nn.Module) -> None:
        """Make both pairs of the weights' components; see :meth:`.Adapter.start_from`."""
        for name, update in zip(self.names, self.updates, strict=True):
            weight = backbone.get_submodule(name).weight
            before, behind = update.padding
            update.start(weight[before : len(weight) - behind], self.largest)


@register
class PiSSA(ComponentUpdates):
    r"""PiSSA (Meng et al., NeurIPS 2024, https://arxiv.org/abs/2404.02948).

    y = W x + b + s (B A - B0 A0) x, with B0 and A0 fixed and B = B0, A = A0 at the start. With
    W = U S V^T and the r largest singular values S_r,

        A0 = (S_r / s)^(1/2) V_r^T,    B0 = U_r (S_r / s)^(1/2),    s = alpha / r,

    so that s B0 A0 is the part of W that trains and W - s B0 A0 what the paper freezes. Merged, W
    becomes W + s (B A - B0 A0).

    Here the backbone keeps W as it is. A0 and B0 are buffers: checkpoints and deltas hold both
    pairs, and no singular value is computed when they are loaded. The pairs are made when the
    backbone has loaded its pretrained weights (``init_cfg``, :func:`vpt_dense.tune`); on a backbone
    that was never started they are those of :class:`LoRA`. Any of them is the backbone's function,
    exactly.

    Args:
        rank: r, at most the singular values of each layer.
        alpha: Numerator of the scale; None: the rank, so that the scale is 1.
        targets: As in :class:`LoRA`.
        parts: As there: each part has components of its own.
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
        init_cfg: dict | None = None,
    ) -> None:
        if parts is not None:
            check_parts(parts, targets, backbone)
        super().__init__(backbone, find_rows(backbone, targets, parts), rank, alpha, init_cfg)


class Moved(Update):
    """What a product of two factors has changed by since the start: s (B A - B0 A0).

    Attributes:
        down: A, (r, in).
        up: B, (number, r).
        first_down: A0, a buffer.
        first_up: B0, a buffer.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float) -> None:
        super().__init__()
        self.number, self.scale = out_features, scale
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.register_buffer('first_down', self.down.detach().clone())
        self.register_buffer('first_up', self.up.detach().clone())

    @torch.no_grad()
    def start(self, weight: Tensor, largest: bool) -> None:
        """Set both pairs to the largest or smallest components of weights (number, in)."""
        kind = torch.promote_types(weight.dtype, torch.float32)
        left, values, right = torch.linalg.svd(weight.to(kind), full_matrices=False)
        rank = len(self.down)
        components = slice(rank) if largest else slice(len(values) - rank, None)
        roots = (values[components] / self.scale).sqrt()
        for up in (self.up, self.first_up):
            up.copy_(left[:, components] * roots)
        for down in (self.down, self.first_down):
            down.copy_(roots[:, None] * right[components])

    def matrix(self, weight: Tensor | None = None) -> Tensor:
        """See :meth:`.RowsChange.matrix`; it does not depend on the weights."""
        now, first = self.up.double() @ self.down.double(), self.first_up.double()
        return self.scale * (now - first @ self.first_down.double())

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., number)."""
        # (B - B0) A + B0 (A - A0): no large numbers that cancel, and exactly 0 at the start.
        moved = nn.functional.linear(
            nn.functional.linear(x, self.down), self.up - self.first_up)
        moved = moved + nn.functional.linear(
            nn.functional.linear(x, self.down - self.first_down), self.first_up)
        return moved if self.scale == 1 else moved * self.scale
