"""Weights whose direction is updated at low rank, and whose magnitude trains by itself: DoRA."""

import torch
from torch import Tensor, nn

from vpt_dense.adapters.lora import LoRA, LowRank
from vpt_dense.adapters.updates import RowsChange, in_full_precision
from vpt_dense.parts import register


@register
class DoRA(LoRA):
    r"""DoRA (Liu et al., ICML 2024, https://arxiv.org/abs/2402.09353, sections 4.1 and 4.3).

    y = W' x + b,    W' = (n(W) + m) * (W + s U D) / n(W + s U D),

    n being the norms of the rows (of what makes one output), U, D and s those of :class:`LoRA`. The
    norm in the denominator counts as a constant in backward, as in the paper. Merged, W becomes W'.

    The paper's magnitude is n(W) + m here: it starts at n(W) and has the same gradient, and m = 0
    is the backbone's function whatever weights are loaded after it was built. Weight decay draws
    the magnitude to n(W); the paper's would draw it to 0. With dropout, y = W x + b + (g - 1) W x +
    g s U D dropout(x), g being (n(W) + m) / n(W + s U D).

    It acts on what the weights of a layer give: other adapters of the same layer come after it.

    Args:
        rank: As in :class:`LoRA`.
        alpha: As there.
        targets: As there.
        parts: As there.
        dropout: As there.
        rslora: As there.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: As there, or if another adapter has changed an output of a layer before.
    """

    reads_weights = True

    def make(self, update: LowRank) -> 'Decomposed':
        """See :meth:`vpt_dense.adapters.LoRA.make`."""
        return Decomposed(update)


class Decomposed(RowsChange):
    """Magnitudes, and directions that are updated.

    Attributes:
        low: s U D.
        magnitude: m, (number,), zero at the start.
    """

    def __init__(self, low: LowRank) -> None:
        super().__init__()
        self.low = low
        self.magnitude = nn.Parameter(torch.zeros(low.number))

    def norms(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """n(W), n(W + s U D) of the rows (number, in), each (number,) and without a gradient."""
        weight, low = weight.detach(), self.low
        with in_full_precision(weight):
            change = low.scale * low.up.detach() @ low.down.detach()
            weight = weight.to(change.dtype)
            before, now = (
                torch.linalg.vector_norm(each, dim=1) for each in (weight, weight + change))
        return before, now.clamp(min=torch.finfo(now.dtype).tiny)  # a row of zeros

    def matrix(self, weight: Tensor) -> Tensor:
        """See :meth:`.RowsChange.matrix`."""
        updated = weight + self.low.matrix()
        norm = updated.norm(dim=1).clamp(min=torch.finfo(updated.dtype).tiny)
        return ((weight.norm(dim=1) + self.magnitude.double()) / norm)[:, None] * updated - weight

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        rows = slice(self.padding[0], output.shape[-1] - self.padding[1])
        before, now = self.norms(module.weight[rows])
        share = (before + self.magnitude) / now
        own = output[..., rows]
        if module.bias is not None:
            own = own - module.bias[rows]
        # The difference, which is exactly 0 at the start.
        update = ((share - 1) * own + share * self.low(args[0])).to(output.dtype)
        if any(self.padding):
            update = nn.functional.pad(update, self.padding)
        return output + update
