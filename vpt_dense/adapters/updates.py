"""What adapters of linear layers share: which rows they change, and updates that are added."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from vpt_dense.adapters.base import PARTS, Adapter, Change, check_merge, find_linears, names_of
from vpt_dense.argument_checks import is_list


class Rows(NamedTuple):
    """Outputs of a linear layer that one change is of.

    Attributes:
        name: Of the layer, among the backbone's modules.
        linear: The layer.
        start: The first output.
        number: How many they are.
    """

    name: str
    linear: nn.Linear
    start: int
    number: int

    @property
    def padding(self) -> tuple[int, int]:
        """Outputs before and behind."""
        return self.start, self.linear.out_features - self.start - self.number


def find_rows(
    backbone: nn.Module, targets: Sequence[str], parts: Sequence[str] | None = None
) -> list[Rows]:
    """Find what adapters change of linear layers.

    Args:
        backbone: The backbone.
        targets: As in :func:`.find_linears`.
        parts: Of layers of queries, keys and values, these alone, each by itself; other layers are
            whole. None: all layers are.

    Returns:
        In the backbone's order.

    Raises:
        ValueError: As there.
    """
    linears = find_linears(backbone, targets)
    fused, alone = set(), {}  # layers of all parts; layers that are one part
    for block in backbone.block_list():
        if len(block.qkv) == len(PARTS):
            alone.update(zip(block.qkv, PARTS, strict=True))
        else:
            fused.update(block.qkv)
    found = []
    for name, linear in linears.items():
        out = linear.out_features
        if parts is not None and linear in fused:
            third = out // len(PARTS)
            found += [Rows(name, linear, PARTS.index(part) * third, third) for part in parts]
        elif parts is None or linear not in alone or alone[linear] in parts:
            found.append(Rows(name, linear, 0, out))
    return found


def check_parts(parts: Sequence[str], targets: Sequence[str], backbone: nn.Module) -> None:
    """Refuse parts that are none, or targets that have none.

    Raises:
        ValueError: If so; the message names the key.
    """
    known = is_list(parts) and all(part in PARTS for part in parts)
    if not known or not parts or len(set(parts)) != len(parts):
        raise ValueError(f"adapters.parts must be some of 'q', 'k', 'v', found {parts!r}")
    fused = set(names_of(backbone, (each for block in backbone.block_list() for each in block.qkv)))
    other = [name for name in find_linears(backbone, targets) if name not in fused]
    if other:
        raise ValueError(
            f'adapters.parts={tuple(parts)} needs layers of queries, keys and values, but '
            f'adapters.targets matches {other[0]}; give it an adapter of its own'
        )


class RowsChange(Change):
    """A change of some of the outputs of a linear layer, which stay a linear map of its inputs.

    Attributes:
        padding: Outputs of the layer before and behind those that it changes.
    """

    padding = (0, 0)

    def matrix(self, weight: Tensor) -> Tensor:
        """What is added to the weights of these outputs when it is merged, (number, in), float64.

        Args:
            weight: They, (number, in), float64.
        """
        raise NotImplementedError

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        raise NotImplementedError


class Update(RowsChange):
    """A linear map, (..., in) to (..., number), whose outputs are added to a layer's.

    Attributes:
        number: How many outputs of the layer it updates.
    """

    number: int

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """See :meth:`RowsChange.change`."""
        update = self(args[0])
        if any(self.padding):
            update = nn.functional.pad(update, self.padding)
        return output + update


class LinearUpdates(Adapter):
    """The base of adapters that change linear layers and can become part of their weights.

    Attributes:
        names: Of the layers, one for each change.
        updates: The changes.
        reads_weights: Whether what they do depends on the layer's own weights, so that no adapter
            may change its outputs before.
    """

    mergeable = True
    reads_weights = False

    def attach(self, places: Sequence[Rows], make: Callable[[Rows], RowsChange]) -> None:
        """Let changes act on rows of layers.

        Args:
            places: The rows.
            make: Makes the change of one of them.

        Raises:
            ValueError: If an adapter is there that may not be.
        """
        self.names: list[str] = []
        self.updates = nn.ModuleList()
        for rows in places if self.reads_weights else ():
            hooks = rows.linear._forward_hooks.values()
            if any(isinstance(getattr(hook, '__self__', None), Change) for hook in hooks):
                kind = type(self).__name__
                raise ValueError(
                    f'adapters: {kind} must act on what the weights of {rows.name} give, which '
                    f'another adapter has changed; list {kind} before it')
        for rows in places:
            update = make(rows)
            update.padding = rows.padding
            update.handle = rows.linear.register_forward_hook(update.change)
            self.updates.append(update)
            self.names.append(rows.name)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, self.names)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for name, update in zip(self.names, self.updates, strict=True):
            weight = backbone.get_submodule(name).weight
            own = weight[update.padding[0] : len(weight) - update.padding[1]]  # a view
            own.copy_(own.double() + update.matrix(own.double()))
            update.handle.remove()


def in_full_precision(tensor: Tensor) -> AbstractContextManager:
    """Where autocast is off, on a tensor's device."""
    kind = tensor.device.type
    known = is_autocast_available(kind)  # there is none on 'meta'
    return torch.autocast(kind, enabled=False) if known else nullcontext()


def of_parts(linear: nn.Linear) -> list[list[Update]] | None:
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
    found: list[list[Update]] = [[] for _ in PARTS]
    for update in updates:
        if not isinstance(update, Update) or update.number != third:
            return None
        found[update.padding[0] // third].append(update)
    return found
