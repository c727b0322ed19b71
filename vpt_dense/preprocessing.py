"""``preprocessing`` and ``normalize``: how a classifier's images are made, by name.

Papers on one data set differ in both, and the accuracy moves by points with them.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from vpt_dense import run_settings, tasks
from vpt_dense.argument_checks import check_choice, to_pair
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, as_list, kind_of, placed_datasets

KEYS = ('preprocessing', 'normalize')

_NAME = re.compile(r'(resize|crop)(\d+)?(?:-(bilinear|bicubic))?')
#: Mean and standard deviation of R, G, B, of 0 to 255.
STATISTICS = {
    'imagenet': ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    'half': ([127.5] * 3, [127.5] * 3),
}
#: Steps that read, which stay in front; and pack, which stay behind.
_READ = ('LoadImageFromFile', 'LoadBands')
_PACK = ('PackInputs',)


class Wanted(NamedTuple):
    """What a config asks for.

    Attributes:
        way: ``resize`` or ``crop``; empty: the config's own pipelines.
        interpolation: ``bilinear`` or ``bicubic``.
        statistics: A key of :data:`STATISTICS`; None: the config's own.
    """

    way: str
    interpolation: str
    statistics: str | None


def take(cfg: Config, options: Mapping[str, Any] | None = None) -> Wanted:
    """Remove ``preprocessing`` and ``normalize`` from a config; a size becomes its ``img_size``.

    - ``preprocessing='resize224'``: every image becomes 224x224, whatever its shape, and training
      is not augmented (VTAB in the VPT paper). ``'crop224'``: the short side becomes 256/224 of
      that; training takes a random crop and flips half of the images, tests take the middle (the
      paper's fine-grained sets). ``-bicubic`` behind it: instead of bilinear. Without a number the
      size is the config's.
    - ``normalize='imagenet'`` or ``'half'`` (mean and standard deviation 127.5).

    Args:
        cfg: The config.
        options: What the command line has put into it, dotted key -> value.

    Raises:
        UserError: If a value is none of these, the size is another than ``img_size``, what it sets
            is said beside it, or the config is not of classification.
    """
    name, statistics = (cfg.pop(key, None) for key in KEYS)
    task = tasks.of(cfg.get('model') or {})
    replaced = [  # pipelines that do more than read and pack
        f'{where}.pipeline' for loader in DATALOADERS
        for where, dataset in placed_datasets(cfg.get(loader), loader)
        if any(kind_of(step) not in _READ + _PACK for step in as_list(dataset.get('pipeline')))]
    means = [f'{node}.{key}' for node in ('model.data_preprocessor', 'data_preprocessor')
             for key in ('mean', 'std')]
    for key, value, places in ((KEYS[0], name, replaced), (KEYS[1], statistics, means)):
        if value is None:
            continue
        origin = run_settings.origin_of(cfg, key, value, options or {})
        for place in places:
            if origin.says(cfg, place):
                raise UserError(
                    f'{key} is {value}, but {place} is said beside it: say one of them')
    for key, value in zip(KEYS, (name, statistics), strict=True):
        if value is not None and (task is None or task.name != 'classification'):
            raise UserError(f'{key}: it is for classification')
    if statistics is not None:
        check_choice(statistics, 'normalize', STATISTICS)
    if name is None:
        return Wanted('', '', statistics)
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if not found:
        raise UserError(
            "preprocessing: 'resize224' or 'crop224' was expected, with or without -bicubic behind "
            f'it, found {name!r}')
    way, number, interpolation = found.groups(default='')
    if number and cfg.get('img_size') is not None and to_pair('img_size', cfg.img_size) != (
            int(number), int(number)):
        raise UserError(f'preprocessing is {name}, img_size {cfg.img_size}: say the size once')
    if number:
        cfg.img_size = int(number)
    return Wanted(way, interpolation or 'bilinear', statistics)


def place(cfg: Config, wanted: Wanted) -> None:
    """Put what was taken into pipelines and model, in place; ``img_size`` has been placed.

    Raises:
        UserError: If the config has no size, or one that is not square; or normalises where it
            reads; or a pipeline does not end in ``PackInputs``.
    """
    if wanted.way:
        _place_pipelines(cfg, wanted)
    if wanted.statistics is not None:
        _place_statistics(cfg, wanted.statistics)


def _place_pipelines(cfg: Config, wanted: Wanted) -> None:
    height, width = run_settings.trained_size(cfg) or (0, 0)
    if not height or height != width:
        raise UserError(
            'preprocessing: the config has no square size of images; say it: resize224')
    size = height
    how = dict(interpolation=wanted.interpolation, backend='pillow')
    edge = dict(type='ResizeEdge', scale=round(size * 256 / 224), edge='short', **how)
    whole = [dict(type='Resize', scale=(size, size), **how)]
    steps = {
        'resize': (whole, whole),
        'crop': ([edge, dict(type='RandomCrop', crop_size=size),
                  dict(type='RandomFlip', prob=0.5, direction='horizontal')],
                 [edge, dict(type='CenterCrop', crop_size=size)]),
    }[wanted.way]  # fmt: skip
    for loader in DATALOADERS:
        for where, dataset in placed_datasets(cfg.get(loader), loader):
            pipeline = as_list(dataset.get('pipeline'))
            front = [step for step in pipeline if kind_of(step) in _READ]
            back = [step for step in pipeline if kind_of(step) in _PACK]
            if len(back) != 1:
                raise UserError(
                    f'preprocessing: {where}.pipeline has no PackInputs at its end')
            middle = steps[loader != DATALOADERS[0]]
            dataset['pipeline'] = [*front, *map(ConfigDict, middle), *back]


def _place_statistics(cfg: Config, name: str) -> None:
    for loader in DATALOADERS:
        for where, dataset in placed_datasets(cfg.get(loader), loader):
            if any(kind_of(step) == 'LoadBands' for step in dataset.get('pipeline') or ()):
                raise UserError(
                    f'normalize: {where} is read by LoadBands, which normalises; set its mean and '
                    'std')
    node = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    if not node:
        node = cfg.model['data_preprocessor'] = ConfigDict(type='ClsDataPreprocessor', to_rgb=True)
    node['mean'], node['std'] = map(list, STATISTICS[name])
