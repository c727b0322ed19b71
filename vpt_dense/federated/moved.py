"""What moves between clients and server: the tensors that a training changes, and their checks."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from vpt_dense import params
from vpt_dense.errors import UserError
from vpt_dense.weights.base import fingerprint, frozen_bases

#: Numbers of a tensor that :func:`sketch` looks at, and how far they may be apart, relatively:
#: other machines may round otherwise.
_LOOKED_AT, _APART = 16, 1e-3
_STATISTICS = ('running_mean', 'running_var')


class Kind(NamedTuple):
    """What all members of a federation must have in common.

    Attributes:
        bases: Prefix of each backbone with frozen tensors -> their SHA-256.
        classes: Names of the classes, in their order.
        shapes: Name of each tensor that moves -> its shape.
        rest: Name of each tensor of :func:`rest` -> its norm and some of its numbers, see
            :func:`sketch`.
    """

    bases: dict[str, str]
    classes: list[str]
    shapes: dict[str, list[int]]
    rest: dict[str, list[float]]

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(self._asdict())

    @classmethod
    def from_text(cls, text: str) -> 'Kind':
        """The reverse of :meth:`to_text`.

        Raises:
            UserError: If the text is something else.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise UserError(
                'the message is not of a federation of this version of vpt_dense') from error


def names(model: nn.Module) -> list[str]:
    """Names of the tensors that move: what trains, and running statistics beside it.

    Counters (``num_batches_tracked``) do not: their mean says nothing.

    Args:
        model: Unwrapped.
    """
    base = _of_bases(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    return [name for name in model.state_dict() if name in trained
            or (name not in base and name.rpartition('.')[2] in _STATISTICS)]


def rest(model: nn.Module) -> list[str]:
    """Names of what neither moves nor is of a frozen base.

    As a part of an adapter that does not train, which the job's seed draws, or vectors of texts.

    Args:
        model: Unwrapped.
    """
    known = _of_bases(model) | set(names(model))
    return [name for name in model.state_dict()
            if name not in known and name.rpartition('.')[2] != 'num_batches_tracked']


def rest_mark(model: nn.Module) -> str:
    """SHA-256 of :func:`rest`."""
    state = model.state_dict()
    return fingerprint({name: state[name] for name in rest(model)})


def sketch(model: nn.Module) -> dict[str, list[float]]:
    """The norm of each tensor of :func:`rest`, and some of its numbers, evenly spread."""
    state, found = model.state_dict(), {}
    for name in rest(model):
        numbers = state[name].detach().cpu().double().reshape(-1)
        places = torch.linspace(0, len(numbers) - 1, min(len(numbers), _LOOKED_AT)).long()
        found[name] = [float(numbers.norm()), *numbers[places].tolist()]
    return found


def _of_bases(model: nn.Module) -> set[str]:
    return {prefix + name for prefix, backbone in frozen_bases(model)
            for name in backbone.frozen_names}


def statistics(model: nn.Module) -> list[str]:
    """Those of :func:`names` that are no parameters: running statistics of batch norm."""
    parameters = dict(model.named_parameters())
    return [name for name in names(model) if name not in parameters]


def take(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors of :func:`names`, on the CPU."""
    model = params.unwrap(model)
    state = model.state_dict()
    return {name: state[name].detach().cpu().clone() for name in names(model)}


def kind(model: nn.Module, classes: Sequence[str]) -> Kind:
    """What a member of a federation is.

    Args:
        model: With its pretrained weights.
        classes: Names of its classes.
    """
    model = params.unwrap(model)
    state = model.state_dict()
    bases = {}
    for prefix, backbone in frozen_bases(model):
        if backbone.frozen_names:
            bases[prefix] = backbone.base.sha256 if backbone.base else fingerprint(
                {name: state[prefix + name] for name in backbone.frozen_names})
    shapes = {name: list(state[name].shape) for name in names(model)}
    return Kind(bases, list(classes), shapes, sketch(model))


def compare(found: Kind, wanted: Kind) -> None:
    """Refuse a member of another kind than the federation.

    Raises:
        UserError: What differs first, and the way out.
    """
    if found.classes != wanted.classes:
        raise UserError(
            f'classes {found.classes} are not those of the federation, {wanted.classes}: set '
            'dataset.classes to these, in this order, in the options of the client')
    if found.bases != wanted.bases:
        own, other = (', '.join(each.bases.values()) or 'none' for each in (found, wanted))
        raise UserError(
            f'the SHA-256 of the frozen tensors is {own}, that of the federation {other}: name '
            'the same pretrained weights (model.backbone.init_cfg.checkpoint)')
    if found.shapes != wanted.shapes:
        _check_shapes(found.shapes, wanted.shapes)
    for name in sorted(found.rest.keys() | wanted.rest.keys()):
        own, other = (np.array(each.rest.get(name, [])) for each in (found, wanted))
        apart = _APART * np.abs(np.nan_to_num(other)).max(initial=0)
        if own.shape != other.shape or not np.allclose(own, other, _APART, apart, equal_nan=True):
            raise UserError(
                f'{name}, which neither trains nor is of the frozen part, is not that of the '
                'federation: it must have its seed, method and versions')


def _check_shapes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    lacking, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    odd = lacking or more
    if odd:
        raise UserError(
            f'{len(odd)} tensors {"are missing" if lacking else "are too many"} ({odd[0]}): it '
            'must train what the federation trains (--method)')
    for name, shape in wanted.items():
        if list(found[name]) != list(shape):
            raise UserError(
                f'{name} has shape {tuple(found[name])} in place of {tuple(shape)}: it must be of '
                "the federation's model and method")


def check(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Sequence[int]]) -> None:
    """Refuse what must not come into a mean.

    Args:
        arrays: What a client sent.
        wanted: Shapes by name.

    Raises:
        UserError: If names, shapes or types differ, or numbers are not finite.
    """
    _check_shapes({name: array.shape for name, array in arrays.items()}, wanted)
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise UserError(f'{name} is of type {array.dtype}, not float32')
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise UserError(
                f'{name} holds {bad} of {array.size} numbers that are NaN or infinite: its '
                'training diverged, lower lr')


def put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors of :func:`names` into a model.

    Raises:
        UserError: If a shape differs, or there are other names.
    """
    model = params.unwrap(model)
    state = model.state_dict()
    _check_shapes({name: tensor.shape for name, tensor in tensors.items()},
                  {name: state[name].shape for name in names(model)})
    with torch.no_grad():
        for name, tensor in tensors.items():
            state[name].copy_(tensor)


def own(pattern: str, every: Sequence[str]) -> list[str]:
    """The tensors that a client keeps to itself.

    Args:
        pattern: A regular expression that is searched for in names; empty: none.
        every: Names of all that trains.

    Raises:
        UserError: If it is no expression, or matches nothing, or all.
    """
    if not pattern:
        return []
    try:
        found = [name for name in every if re.search(pattern, name)]
    except re.error as error:
        raise UserError(f'personal={pattern!r} is no regular expression: {error}') from error
    if not found or len(found) == len(every):
        raise UserError(
            f'personal={pattern!r} matches {"all" if found else "none"} of what trains '
            f'({", ".join(every[:3])}, ...): some must move and some stay')
    return found


def size(shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of float32 tensors of some shapes."""
    return 4 * sum(int(np.prod(shape)) for shape in shapes.values())
