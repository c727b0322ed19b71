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

#: Stands for :func:`rest` among the bases of a :class:`Kind`.
REST = 'rest'
_STATISTICS = ('running_mean', 'running_var')


class Kind(NamedTuple):
    """What all members of a federation must have in common.

    Attributes:
        bases: Prefix of each backbone with frozen tensors -> their SHA-256; :data:`REST` -> that of
            :func:`rest`, if there is any.
        classes: Names of the classes, in their order.
        shapes: Name of each tensor that moves -> its shape.
    """

    bases: dict[str, str]
    classes: list[str]
    shapes: dict[str, list[int]]

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

    As a part of an adapter that does not train; the job's seed draws it, the same in all members.

    Args:
        model: Unwrapped.
    """
    known = _of_bases(model) | set(names(model))
    return [name for name in model.state_dict()
            if name not in known and name.rpartition('.')[2] != 'num_batches_tracked']


def rest_mark(model: nn.Module) -> str:
    """SHA-256 of :func:`rest`; empty: there is none."""
    state = model.state_dict()
    found = {name: state[name] for name in rest(model)}
    return fingerprint(found) if found else ''


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
    if mark := rest_mark(model):
        bases[REST] = mark
    return Kind(bases, list(classes), {name: list(state[name].shape) for name in names(model)})


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
        if _without_rest(found) == _without_rest(wanted):
            raise UserError(
                'what neither trains nor is pretrained is not that of the federation: it must '
                'have its seed, method and versions')
        own, other = (', '.join(_without_rest(each).values()) or 'none'
                      for each in (found, wanted))
        raise UserError(
            f'the SHA-256 of the frozen tensors is {own}, that of the federation {other}: name '
            'the same pretrained weights (model.backbone.init_cfg.checkpoint)')
    if found.shapes != wanted.shapes:
        _check_shapes(found.shapes, wanted.shapes)


def _without_rest(kind: Kind) -> dict[str, str]:
    return {prefix: mark for prefix, mark in kind.bases.items() if prefix != REST}


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
