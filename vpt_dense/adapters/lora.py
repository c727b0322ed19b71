"""Low-rank updates of linear layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import PARTS, Adapter, Change, check_merge, find_linears, names_of
from vpt_dense.argument_checks import check_count, check_dropout, check_number, is_list
from vpt_dense.parts import register


@register
class LoRA(Adapter):
    r"""Low-rank adaptation (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1).

    y = W x + b + (alpha / r) U D dropout(x), with D (r, in) starting as PyTorch's linear layers do
    (kaiming uniform, a = sqrt(5)) and U (out, r) at zero: training starts from the backbone's
    function. Merged, W becomes W + (alpha / r) U D.

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
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no linear layer.
    """

    mergeable = True

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = (r'\.qkv$',),
        parts: Sequence[str] | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(rank, 'adapters.rank')
        check_dropout(dropout, 'adapters.dropout')
        scale = 1.0
        if alpha is not None:
            scale = check_number(alpha, 'adapters.alpha', positive=True) / rank
        self.names: list[str] = []
        self.updates = nn.ModuleList()
        linears = find_linears(backbone, targets)
        if parts is not None:
            _check_parts(parts, linears, backbone)
        alone = {
            linear: part for block in backbone.block_list() if len(block.qkv) == len(PARTS)
            for part, linear in zip(PARTS, block.qkv, strict=True)
        }  # layers that are one part
        for name, linear in linears.items():
            out = linear.out_features
            rows = [(0, out)]
            if parts is not None and linear in alone:
                rows = rows if alone[linear] in parts else []
            elif parts is not None:
                rows = [(PARTS.index(part) * out // 3, out // 3) for part in parts]
            for start, number in rows:
                update = LowRank(linear.in_features, number, rank, scale, dropout)
                update.padding = (start, out - start - number)
                update.handle = linear.register_forward_hook(update.add)
                self.updates.append(update)
                self.names.append(name)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, self.names)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for name, update in zip(self.names, self.updates, strict=True):
            weight = backbone.get_submodule(name).weight
            weight.copy_(weight.double() + update.weight())
            update.handle.remove()


def _check_parts(parts: Sequence[str], linears: dict[str, nn.Linear], backbone: nn.Module) -> None:
    """Refuse parts that are none, or layers that have none."""
    known = is_list(parts) and all(part in PARTS for part in parts)
    if not known or not parts or len(set(parts)) != len(parts):
        raise ValueError(f"adapters.parts must be some of 'q', 'k', 'v', found {parts!r}")
    fused = set(names_of(backbone, (each for block in backbone.block_list() for each in block.qkv)))
    other = [name for name in linears if name not in fused]
    if other:
        raise ValueError(
            f'adapters.parts={tuple(parts)} needs layers of queries, keys and values, but '
            f'adapters.targets matches {other[0]}; give it an adapter of its own'
        )


def of_parts(linear: nn.Linear) -> 'list[list[LowRank]] | None':
    """The updates of a fused layer of queries, keys and values, if they are all that is on it.

    Returns:
        Those of the queries, of the keys and of the values; None: there are none, one is of the
        whole layer, or the layer has other hooks.
    """
    hooks = list(linear._forward_hooks.values())
    updates = [getattr(hook, '__self__', None) for hook in hooks]
    watched = linear._forward_pre_hooks or linear._backward_hooks or linear._backward_pre_hooks
    if not hooks or watched or type(linear) is not nn.Linear:
        return None
    third = linear.out_features // len(PARTS)
    found: list[list[LowRank]] = [[] for _ in PARTS]
    for update in updates:
        if not isinstance(update, LowRank) or len(update.up) != third:
            return None
        found[update.padding[0] // third].append(update)
    return found


class LowRank(Change):
    """A linear map of low rank, (..., in) to (..., out), which starts at zero."""

    #: Outputs of the layer before and behind those that it updates.
    padding = (0, 0)

    def __init__(
        self, in_features: int, out_features: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def weight(self) -> Tensor:
        """As one matrix for the whole layer, (out, in), float64."""
        product = self.scale * self.up.double() @ self.down.double()
        return nn.functional.pad(product, (0, 0, *self.padding))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        low = nn.functional.linear(self.dropout(x), self.down)
        return nn.functional.linear(low if self.scale == 1 else low * self.scale, self.up)

    def add(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        update = self(args[0])
        if any(self.padding):
            update = nn.functional.pad(update, self.padding)
        return output + update
