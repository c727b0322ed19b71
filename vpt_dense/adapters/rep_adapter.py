"""Linear bottlenecks before attention and MLP, which become part of the layers behind them."""

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter, Change, check_merge, names_of
from vpt_dense.argument_checks import check_count, check_dropout, check_number
from vpt_dense.parts import register


@register
class RepAdapter(Adapter):
    """RepAdapter (Luo et al., 2023, https://arxiv.org/abs/2302.08106, section 3.3).

    Before attention and before the MLP, u + s (B dropout(A u + a) + b) takes the place of the
    normalised tokens u: A is dense, C to r; B maps r back to C in groups, each from a part of the
    r numbers to a part of the channels. Merged, the layer behind it (queries, keys and values;
    the first of the MLP) has W' = W (I + s B A) and the bias b' = W s (B a + b) more.

    It acts on the inputs of these layers, which is the same as the outputs of the norms but for
    the zeros that a Swin pads its windows with: those go through it too, so that merging is exact.

    Args:
        rank: r, a multiple of ``groups``.
        groups: Of B; divides the width of the backbone.
        scale: s, not trained.
        dropout: Inside the bottleneck, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs = frozenset({'tokens', 'parts'})
    mergeable = True
    changes_inputs = True

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 8,
        groups: int = 2,
        scale: float = 1.0,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_count(groups, 'adapters.groups')
        check_number(scale, 'adapters.scale', positive=True)
        check_dropout(dropout, 'adapters.dropout')
        inputs = [layers for block in backbone.block_list() for layers in (block.qkv, block.fc1)]
        for size in {rank, *(linear.in_features for layers in inputs for linear in layers)}:
            if size % groups:
                raise ValueError(
                    f'adapters.groups={groups} must divide adapters.rank={rank} and the width of '
                    f'the backbone, found {size}'
                )
        self.names = [names_of(backbone, layers) for layers in inputs]
        self.updates = nn.ModuleList()
        for layers in inputs:
            update = GroupedLowRank(layers[0].in_features, rank, groups, scale, dropout)
            update.handles = [
                linear.register_forward_pre_hook(update.change) for linear in layers]
            self.updates.append(update)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, sum(self.names, []), needs_bias=True)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for names, update in zip(self.names, self.updates, strict=True):
            change, shift = update.matrix()
            for linear in map(backbone.get_submodule, names):
                weight = linear.weight.double()
                linear.bias.copy_(linear.bias.double() + weight @ shift)
                linear.weight.copy_(weight + weight @ change)
            for handle in update.handles:
                handle.remove()


class GroupedLowRank(Change):
    """s (B dropout(A u + a) + b), (..., C) to (..., C).

    Attributes:
        down: A and a.
        up: B, (groups, C / groups, r / groups).
        bias: b, (C,).
    """

    def __init__(self, dims: int, rank: int, groups: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down = nn.Linear(dims, rank)
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.up = nn.Parameter(torch.zeros(groups, dims // groups, rank // groups))
        self.bias = nn.Parameter(torch.zeros(dims))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def matrix(self) -> tuple[Tensor, Tensor]:
        """As one matrix (C, C) and a shift (C,), float64."""
        up = torch.block_diag(*self.up.double())  # (C, r)
        change = self.scale * up @ self.down.weight.double()
        return change, self.scale * (up @ self.down.bias.double() + self.bias.double())

    def forward(self, u: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        low = self.dropout(self.down(u))
        # One dense product: the groups are too narrow for products of their own to be faster.
        return nn.functional.linear(low, torch.block_diag(*self.up), self.bias) * self.scale

    def change(self, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        """Forward hook, before the linear layer."""
        return (args[0] + self(args[0]), *args[1:])
