"""Samples of torchgeo's data sets as if they were files: ``pip install 'vpt-dense[torchgeo]'``.

torchgeo's sets give tensors by number. A sample is named like a file here, so that all that goes by
names does: ``torchgeo://SET/NAME.tif`` is its image, ``torchgeo://SET.masks/NAME.tif`` its mask.
``SET`` says which set and how it was opened, ``NAME`` is that of the image's file where torchgeo
tells it, otherwise the sample's number.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense.datasets.layouts import layout_of
from vpt_dense.datasets.raster import ImageInfo, Opened, Wrong, reason
from vpt_dense.errors import UserError, is_programs, suggest
from vpt_dense.tree import kind_of

#: Data sets that read them.
KINDS = ('TorchGeo', 'TorchGeoClasses')
SCHEME = 'torchgeo://'
SUFFIX, _MASKS = '.tif', '.masks'

#: Classes that torchgeo does not name in the order of the labels.
_CLASSES = {'LoveDA': layout_of('loveda').classes}
#: Sets whose label 0 is no class: torchgeo gives LoveDA's masks as the files have them.
REDUCED = ('LoveDA',)
#: Arguments of torchgeo's that have another place, or none.
_ELSEWHERE = {
    'root': 'dataset.data_root', 'split': 'dataset.split',
    'transforms': 'the pipeline (dataset.pipeline)'}
#: Those that do not say which samples there are.
_OF_FETCHING = ('download', 'checksum')

_opened: dict[str, Source] = {}


def is_sample(path: str) -> bool:
    """Whether a path names a sample, or the place of samples."""
    return path.startswith(SCHEME)


def open_set(
    name: str, root: str, split: str | None = None, arguments: Mapping[str, Any] | None = None
) -> Source:
    """Open a set; the same one again is the same object.

    Args:
        name: Of a class of ``torchgeo.datasets``.
        root: Its folder.
        split: As its class has them; None: the class has none.
        arguments: Further arguments of the class, such as ``bands``.

    Raises:
        UserError: torchgeo is not installed or has no such set, an argument is wrong, or the files
            are not there.
    """
    kind = _kind(name)
    said = _plain(arguments or {})
    parameters = inspect.signature(kind).parameters
    for key in said:
        if key in _ELSEWHERE:
            raise UserError(f'dataset.arguments.{key}: {_ELSEWHERE[key]} says it; leave it out')
        if key not in parameters:
            raise UserError(
                f'dataset.arguments.{key}: torchgeo\'s {name} has no such argument; it has '
                f'{", ".join(sorted(set(parameters) - set(_ELSEWHERE)))}')
    if split is None and 'split' in parameters:
        raise UserError(
            f"dataset.split: say which of torchgeo's {name}"
            f'{": " + ", ".join(kind.splits) if _is_list(getattr(kind, "splits", None)) else ""}')
    if split is not None and 'split' not in parameters:
        raise UserError(f"dataset.split: torchgeo's {name} has no splits; leave it out")
    which = [name, root, split, {k: v for k, v in said.items() if k not in _OF_FETCHING}]
    digest = hashlib.sha256(json.dumps(which, sort_keys=True).encode()).hexdigest()[:8]
    key = '-'.join([name, *([split] if split else []), digest])
    if key not in _opened:
        _opened[key] = Source(key, kind, root, split, said)
    return _opened[key]


def check_installed() -> None:
    """Check that torchgeo is there.

    Raises:
        UserError: If not.
    """
    _datasets()


def refuse_places(said: dict[str, Any], kind: str) -> None:
    """Refuse arguments of data sets that say which files there are, or a loader of such.

    Args:
        said: Arguments of a data set, from which empty ones are removed.
        kind: Its class, for the message.

    Raises:
        UserError: If there is one.
    """
    for key in ('data_prefix', 'ann_file', 'img_suffix', 'seg_map_suffix'):
        if said.pop(key, None):
            raise UserError(
                f'dataset.{key}: torchgeo knows the files of a {kind}; leave it out (subset of a '
                'config takes some of the images)')
    check_pipeline(said.get('pipeline') or (), kind)


def check_pipeline(pipeline: Sequence[Any], kind: str) -> None:
    """Check that images are read by ``LoadBands``.

    Args:
        pipeline: Of a data set; an empty one is none.
        kind: The data set's class, for the message.

    Raises:
        UserError: If not.
    """
    names = [kind_of(step) for step in pipeline if isinstance(step, dict)]
    if names and 'LoadBands' not in names:
        raise UserError(
            f'the pipeline of a {kind} reads images by vpt_dense.LoadBands, with mean and std of '
            f'the bands (docs/fields.md), found {names[0]}')


def classes_of(dataset: Mapping[str, Any]) -> list[str] | None:
    """The classes of a data set's config, if they are known without its files, or these are there.

    Args:
        dataset: Config of a ``TorchGeo`` or ``TorchGeoClasses``.
    """
    name, root = dataset.get('name'), dataset.get('data_root')
    if name in _CLASSES:
        return list(_CLASSES[name])
    if not root or not Path(root).is_dir():
        return None
    with contextlib.suppress(UserError):  # which the run or the check tells
        found = open_set(name, root, dataset.get('split'), dataset.get('arguments')).classes
        return None if found is None else list(found)
    return None


def reader(path: str) -> Opened:
    """Open an image or a mask.

    Raises:
        ValueError: There is no such sample, or it holds no such thing.
    """
    place, _, name = path.removeprefix(SCHEME).partition('/')
    source = _opened.get(place.removesuffix(_MASKS))
    if source is None:
        raise Wrong(f'image {path}: no data set that was opened has it')
    number = source.numbers.get(name.removesuffix(SUFFIX))
    if number is None:
        raise Wrong(f'image {path}: there is no such sample')
    array = source.mask(number) if place.endswith(_MASKS) else source.image(number)
    return _Array(path, array)


class Source:
    """A set of torchgeo's that is open.

    Attributes:
        name: Of its class.
        data: torchgeo's object.
        images: The place of its samples' images, to which their names are added.
        masks: The place of their masks, likewise.
        numbers: Name -> number of a sample.
    """

    def __init__(
        self, key: str, kind: type, root: str, split: str | None, arguments: dict[str, Any]
    ) -> None:
        self.name, self._which = kind.__name__, (kind.__name__, root, split, arguments)
        self.images, self.masks = SCHEME + key, SCHEME + key + _MASKS
        self._lock, self._last = threading.Lock(), threading.local()
        try:
            self.data = kind(root=root, **({'split': split} if split else {}), **arguments)
            number = len(self.data)
        except Exception as error:
            if is_programs(error) and not isinstance(error, TypeError):  # which wrong arguments are
                raise
            said = ', '.join(filter(None, [
                f'root={root!r}', split and f'split={split!r}',
                *(f'{key}={value!r}' for key, value in arguments.items())]))
            raise UserError(
                f"dataset: torchgeo's {self.name}({said}): {' '.join(reason(error).split())}"
            ) from error
        if not number:
            raise UserError(f"dataset: torchgeo's {self.name} finds no sample in {root}")
        self.numbers = {name: i for i, name in enumerate(_names(self.data, number))}

    def __reduce__(self):
        """Worker processes open it anew."""
        return open_set, self._which

    def __deepcopy__(self, memo: dict) -> Source:
        return self

    @functools.cached_property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes by label, as far as they are known."""
        found = _CLASSES.get(self.name, getattr(self.data, 'classes', None))
        return tuple(map(str, found)) if _is_list(found) else None

    @property
    def palette(self) -> list[list[int]] | None:
        """Of each class [R, G, B], 0 to 255, if torchgeo has them."""
        for key in ('colormap', 'cmap'):
            found = getattr(self.data, key, None)
            if isinstance(found, Mapping):
                found = [found.get(i) for i in range(len(found))]
            if _is_list(found) and len(found) == len(self.classes or ()):
                with contextlib.suppress(TypeError, ValueError):
                    colours = [[int(value) for value in colour[:3]] for colour in found]
                    if all(len(colour) == 3 and 0 <= min(colour) and max(colour) <= 255
                           for colour in colours):
                        return colours
        return None

    def labels(self) -> list[int]:
        """The class of every sample: of torchvision's lists, else of all samples, read one by one.

        Raises:
            UserError: If samples have none, or several.
        """
        known = getattr(self.data, 'targets', None)
        if isinstance(known, list) and len(known) == len(self.data):
            return [int(label) for label in known]
        return [self._label(number) for number in self.numbers.values()]

    def has(self, key: str) -> bool:
        """Whether the first sample holds ``mask`` or ``label``."""
        return key in self._sample(0)

    def image(self, number: int) -> np.ndarray:
        """(H, W, bands) of a sample."""
        image = self._array(number, 'image', 'images that change, several of them, or none')
        if image.ndim == 2:
            image = image[None]
        if image.ndim != 3:
            raise Wrong(self._refusal(number, 'image', f'of the shape {image.shape}'))
        return image.transpose(1, 2, 0)

    def mask(self, number: int) -> np.ndarray:
        """(H, W, 1) of a sample, integers."""
        mask = self._array(number, 'mask', 'boxes, labels or numbers')
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.ndim != 2:
            raise Wrong(self._refusal(number, 'mask', f'of the shape {mask.shape}'))
        if mask.dtype.kind == 'f' and (mask == np.rint(mask)).all():
            mask = mask.astype(np.int64)
        if mask.dtype.kind not in 'iub':
            raise Wrong(self._refusal(number, 'mask', 'of numbers that are no labels'))
        return mask.astype(np.int64)[..., None]

    def _label(self, number: int) -> int:
        label = np.asarray(self._sample(number).get('label', ()))
        if label.size != 1 or label.dtype.kind not in 'iub':
            raise UserError(
                f"dataset: torchgeo's {self.name}, sample {number}: one class was expected, found "
                f'{"none" if not label.size else f"label {label.tolist()}"}')
        return int(label.reshape(()))

    def _array(self, number: int, key: str, others: str) -> np.ndarray:
        sample = self._sample(number)
        found = sample.get(key)
        if found is None or not hasattr(found, 'numpy'):
            raise Wrong(self._refusal(number, key, f'to be read: it has {", ".join(sample)}'))
        return found.numpy()

    def _refusal(self, number: int, key: str, what: str) -> str:
        return f"torchgeo's {self.name}, sample {number}: there is no {key} {what}"

    def _sample(self, number: int) -> dict[str, Any]:
        """Of a sample image and mask are read one after the other: the last one stays."""
        if getattr(self._last, 'number', None) != number:
            with self._lock:  # not all of torchgeo's readers are for several threads
                self._last.sample = self.data[number]
            self._last.number = number
        return self._last.sample


class _Array(Opened):
    """A sample's image or mask."""

    def __init__(self, path: str, array: np.ndarray) -> None:
        super().__init__(path, 1)
        self.array = array
        self.info = ImageInfo(*array.shape, array.dtype, 'torchgeo')

    def close(self) -> None:
        """Nothing is open between reads."""

    def _read(self, bands: list[int], top: int, left: int, height: int, width: int) -> np.ndarray:
        window = self.array[top : top + height, left : left + width]
        return np.array(window[..., [band - 1 for band in bands]], order='C')


def _datasets() -> Any:
    try:
        return importlib.import_module('torchgeo.datasets')
    except ModuleNotFoundError as error:
        raise UserError(
            f"dataset: torchgeo's data sets need {error.name}; pip install 'vpt-dense[torchgeo]' "
            '(Python 3.11 or newer)'
        ) from error


def _kind(name: str) -> type:
    found = _datasets()
    kinds = {each: kind for each, kind in vars(found).items()
             if inspect.isclass(kind) and issubclass(kind, found.NonGeoDataset)
             and not each.startswith('NonGeo')}
    if name not in kinds:
        whole = inspect.isclass(getattr(found, str(name), None))
        raise UserError(
            f'dataset.name: {name!r} is ' + (
                "one of torchgeo's sets of whole scenes, from which its samplers cut; those that "
                'can be read here are sets of images' if whole else
                f"none of torchgeo's sets of images{suggest(str(name), kinds)}"))
    return kinds[name]


def _names(data: Any, number: int) -> list[str]:
    """Names of samples: those of files, where it is known which one a sample's image is."""
    found = getattr(data, 'image_fns', None)
    if isinstance(getattr(data, 'files', None), list):
        found = [each.get('image') if isinstance(each, dict) else None for each in data.files]
    elif isinstance(getattr(data, 'samples', None), list):  # torchvision's ImageFolder
        found = [each[0] for each in data.samples]
    if isinstance(found, list) and len(found) == number and all(
            isinstance(each, (str, os.PathLike)) for each in found):
        stems = [Path(each).stem for each in found]
        if len(set(stems)) == number:
            return stems
    return [f'{i:06d}' for i in range(number)]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _plain(value: Any) -> Any:
    """Configs' own dicts and lists as Python's, which JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise UserError(
        f'dataset.arguments: texts, numbers and lists of them were expected, found {value!r}')
