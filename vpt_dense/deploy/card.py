"""The description inside an exported file: the model, and how an image becomes its input."""

import importlib
import json
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from vpt_dense.errors import UserError
from vpt_dense.tree import kind_of

#: Name of the entry in the file: a property of the metadata (ONNX), an extra file (torch.export).
KEY = 'vpt_dense'
FORMAT = 'vpt_dense export 1'

_ANNOTATIONS = (
    'LoadAnnotations', 'LoadMask', 'LoadDepth', 'LoadNormals', 'LoadPanopticAnnotations',
    'LoadTasks', 'LabelTargets')
_PACKING = ('PackInputs', 'PackSegInputs', 'PackDetInputs', 'PackNormals', 'PackTasks')
#: Transform -> the arguments that :mod:`vpt_dense.deploy.onnx_model` knows, with their defaults.
_KNOWN: dict[str, dict[str, Any]] = {
    'LoadImageFromFile': dict(
        to_float32=False, color_type='color', imdecode_backend='cv2', backend_args=None),
    'LoadBands': dict(mean=None, std=None, bands=None, nodata=None),
    'Resize': dict(
        scale=None, scale_factor=None, keep_ratio=False, backend='cv2', interpolation='bilinear'),
    'ResizeEdge': dict(scale=None, edge='short', backend='cv2', interpolation='bilinear'),
    'CenterCrop': dict(crop_size=None),
}


def needed(*names: str) -> tuple[ModuleType, ...]:
    """Import the packages of the extra ``export``.

    Raises:
        UserError: If one is not installed.
    """
    try:
        return tuple(map(importlib.import_module, names))
    except ImportError as error:
        raise UserError(
            f'{error.name or names[0]} is not installed; get what exported models need with: '
            'pip install vpt_dense[export]'
        ) from error


def to_text(card: Mapping[str, Any]) -> str:
    """The card as the file holds it."""
    return json.dumps(card, ensure_ascii=False)


def from_text(text: str | None, path: str) -> dict[str, Any]:
    """Read a card.

    Raises:
        UserError: If there is none, or it is of a later version.
    """
    try:
        card = json.loads(text or '')
        kind = card['format']
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f'{path} was not made by tools/export.py: it does not say how images are prepared and '
            'which classes there are'
        ) from error
    if kind != FORMAT:
        raise UserError(f'{path} is of format {kind!r}, this version reads {FORMAT!r}')
    return card


def loads_bands(steps: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a test's pipeline reads images by ``LoadBands``: bands in the file's order."""
    return any(kind_of(step) == 'LoadBands' for step in steps)


def pipeline_of(steps: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str | None]:
    """The steps of a test's pipeline that change an image, as plain data.

    Args:
        steps: The config's pipeline.

    Returns:
        The steps, annotations left out; and None, or what keeps :mod:`vpt_dense.deploy.onnx_model`
        from doing them.
    """
    found, problem = [], None
    reads_bands = loads_bands(steps)
    for step in steps:
        kind = kind_of(step)
        if kind in _ANNOTATIONS or kind in _PACKING:
            continue
        if kind == 'LoadImageFromFile' and reads_bands:
            continue  # it reads nothing, see vpt_dense.datasets.loading
        given = {key: value for key, value in step.items() if key != 'type'}
        if kind not in _KNOWN:
            problem = problem or f'it has {kind}'
        elif strange := [key for key in given if key not in _KNOWN[kind]]:
            problem = problem or f'{kind} has {strange[0]}={given[strange[0]]!r}'
        else:
            given = {**_KNOWN[kind], **given}
            plain = dict(color_type='color', imdecode_backend='cv2', backend_args=None)
            for key, value in plain.items():
                found_value = given.pop(key, value)
                if found_value != value:
                    problem = problem or f'{kind} has {key}={found_value!r}'
        found.append(dict(type=kind, **given))
    kinds = [step['type'] for step in found]
    if kinds[:1] not in (['LoadImageFromFile'], ['LoadBands']):
        problem = problem or 'it does not begin with LoadImageFromFile or LoadBands'
    try:
        found = json.loads(json.dumps(found))
    except TypeError:
        found, problem = [], problem or 'its arguments are more than plain data'
    return found, problem
