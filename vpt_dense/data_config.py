"""``dataset``, what all data sets have in common, and the data sets of the dataloaders.

What is said closest to its use wins: a data set inside a dataloader over ``dataset``. But base
configs repeat ``dataset`` in their dataloaders, or say there for each split what a config above
says for all; such values follow ``dataset``. Which they are is seen by comparing with the files.
"""

import ast
import contextlib
import copy
import inspect
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config, ConfigDict

from vpt_dense import config_files, tasks, test_sets
from vpt_dense.datasets import coco, geo_samples, layouts, list_files, panoptic
from vpt_dense.datasets.checks import find_classes
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, kind_of, leaf_datasets, placed_datasets, walk

#: mmengine's wrappers, and what a data set has that none of them takes.
_WRAPPERS = ('ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset')
_OF_A_DATA_SET = ('data_root', 'data_prefix', 'ann_file', 'pipeline')


class _Layer(NamedTuple):
    """A config file that says something of dataloaders, with its bases; and the files above it."""

    cfg: Mapping[str, Any]
    above: tuple[ast.AST, ...]


def place(cfg: Config) -> list[str] | None:
    """Merge ``dataset`` into the data sets of every dataloader, in place.

    Returns:
        The class names of training, if they are known: of the data set or ``dataset``, or the
        folders or lists of a set of ours that is there (printing a config needs no data).

    Raises:
        UserError: If classes are no list of names or the palette is of another length; if parts of
            training have other classes than the first; if a split is validated that trains; if
            ``dataset`` says what would change nothing, or what would make parts equal; if one
            ``ann_file`` would be that of training and of a test; or a wrapper has the arguments of
            a data set.
    """
    common = _normal(cfg.get('dataset') or {}, 'dataset')
    for name in DATALOADERS:
        _check_wrapper(cfg.get(name), name)
    placed = [pair for name in DATALOADERS for pair in placed_datasets(cfg.get(name), name)]
    for where, dataset in placed:
        own = _normal(dataset, where)
        dataset.clear()
        dataset.update(own)
    if any(True for _, dataset in placed for _ in _conflicts(dataset, common)):
        history = _history(cfg)
        _follow(placed, common, history)
        _check_reach(placed, common, history)
    for _, dataset in placed:
        merged = _merge(common, dataset)
        prefix = merged.get('data_prefix')
        for key in {task.labels for task in tasks.TASKS.values()} - {''}:
            if isinstance(prefix, dict) and prefix.get(key, '') is None:  # no masks
                del prefix[key]
        dataset.clear()
        dataset.update(merged)
    _check_lists(cfg, common)
    _check_splits(cfg)
    classes = _classes(cfg)
    for _, dataset in placed:
        if classes is not None and not (dataset.get('metainfo') or {}).get('classes'):
            dataset['metainfo'] = ConfigDict(dataset.get('metainfo') or {}, classes=list(classes))
    return classes


def place_test_pipeline(cfg: Config) -> None:
    """Make ``test_pipeline``, which mmseg's inference reads, that of ``test_dataloader``, in place.

    There a ``LoadImageFromFile`` that reads nothing comes before ``vpt_dense.LoadBands``: mmseg's
    inferencers look for it. ``tta_pipeline`` loads images as ``test_dataloader`` does, unless it
    has a ``LoadBands`` of its own. Data samples get what it finds to have no data.
    """
    tests = leaf_datasets(cfg.get('test_dataloader'))
    for dataset in tests:
        pipeline = list(dataset.get('pipeline') or ())
        kinds = [kind_of(transform) for transform in pipeline]
        if 'LoadBands' in kinds:
            at = kinds.index('LoadBands')
            start = at - 1 if at and kinds[at - 1] == 'LoadImageFromFile' else at
            reader = ConfigDict(
                type='LoadImageFromFile', color_type='unchanged', imdecode_backend='cv2',
                backend_args=dict(backend='left_to_LoadBands'))  # fmt: skip
            dataset['pipeline'] = [*pipeline[:start], reader, *pipeline[at:]]
            augmented = list(cfg.get('tta_pipeline') or ())
            if augmented and [kind_of(t) for t in augmented].count('LoadBands') == 0:
                if kind_of(augmented[0]) == 'LoadImageFromFile':
                    cfg.tta_pipeline = [copy.deepcopy(pipeline[at]), *augmented[1:]]
    for dataset in (*tests, *leaf_datasets(cfg.get('val_dataloader'))):
        _pass_no_data(dataset.get('pipeline'))
    _pass_no_data(cfg.get('tta_pipeline'))
    if tests and tests[0].get('pipeline'):
        cfg.test_pipeline = test_sets.keep_tag([], copy.deepcopy(tests[0]['pipeline']))


def _pass_no_data(pipeline: list | None) -> None:
    """Have a pipeline hand on ``no_data`` of its ``LoadBands``, in place."""
    steps = [step for _, step in walk(pipeline, '')]
    if not any(kind_of(step) == 'LoadBands' for step in steps):
        return
    for step in steps:
        if kind_of(step) == 'PackSegInputs':
            with contextlib.redirect_stdout(io.StringIO()):  # it prints when it is imported
                from mmseg.datasets.transforms import PackSegInputs
            usual = inspect.signature(PackSegInputs).parameters['meta_keys'].default
            keys = step.get('meta_keys', usual)
            step['meta_keys'] = [key for key in keys if key != 'no_data'] + ['no_data']


def _normal(dataset: dict, where: str) -> ConfigDict:
    """A copy with ``classes`` and ``palette`` where data sets take them: in ``metainfo``."""
    dataset = ConfigDict(copy.deepcopy(dict(dataset)))
    said = {key: dataset.pop(key) for key in ('classes', 'palette') if key in dataset}
    # mmpretrain reads a file of names too; None is no news.
    if isinstance(said.get('classes'), str) and where != 'dataset':
        dataset['classes'] = said.pop('classes')
    classes = said.get('classes', (dataset.get('metainfo') or {}).get('classes'))
    if classes is not None:
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise UserError(f'{where}.classes must be a list of names, not {classes!r}')
        repeated = sorted({name for name in classes if list(classes).count(name) > 1})
        if repeated:
            raise UserError(f'{where}.classes names {repeated[0]!r} twice')
        palette = said.get('palette')
        if palette is not None and len(palette) != len(classes):
            raise UserError(
                f'{where}.palette has {len(palette)} colours for the {len(classes)} of '
                f'{where}.classes; give one [R, G, B] for each, or leave palette out'
            )
    if said:
        dataset['metainfo'] = _merge(dataset.get('metainfo') or {}, said)
    return dataset


def _merge(common: dict, own: dict) -> ConfigDict:
    """``own`` over ``common``, dicts key by key; a palette belongs to its classes."""
    merged = ConfigDict(copy.deepcopy(dict(common)))
    if 'classes' in own and 'palette' not in own:
        if list(own['classes']) != list(merged.get('classes') or ()):
            merged.pop('palette', None)
    for key, value in own.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged


# --- what follows ----------------------------------------------------------------------------


class _Old(NamedTuple):
    """The settings of one file, its bases included."""

    layer: _Layer
    datasets: dict[str, dict]  # by their places
    common: dict


def _history(cfg: Config) -> list[_Old]:
    file = Path(cfg.filename) if cfg.filename else None
    olds = []
    for layer in _layers(file) if file and file.is_file() else ():
        datasets = {where: _normal(dataset, where) for name in DATALOADERS
                    for where, dataset in placed_datasets(layer.cfg.get(name), name)}  # fmt: skip
        olds.append(_Old(layer, datasets, _normal(layer.cfg.get('dataset') or {}, 'dataset')))
    return olds


def _follow(placed: list[tuple[str, dict]], common: dict, history: list[_Old]) -> None:
    """Remove from the data sets what is to follow ``dataset``."""
    removed = []
    for where, dataset in placed:
        for path in _conflicts(dataset, common):
            value = _get(dataset, path)
            if not any(_repeats(old, where, path, value) for old in history):
                continue
            loader = where.partition('.')[0]
            values = [_get(other, path) for place_, other in placed if place_.startswith(loader)]
            is_copy = any(_get(old.common, path) == value for old in history)
            if not is_copy and any(other != value for other in values):
                raise UserError(
                    f'dataset.{_join(path)} is said for all, but the parts of {loader} have their '
                    f'own ({value!r} and others); set it there'
                )
            removed.append((dataset, path))
            colours = (*path[:-1], 'palette')  # those of the classes that go
            if path[-1] == 'classes' and _get(common, colours) is None:
                if any(_repeats(old, where, colours, _get(dataset, colours)) for old in history):
                    removed.append((dataset, colours))
    for dataset, path in removed:
        _get(dataset, path[:-1]).pop(path[-1], None)


def _conflicts(dataset: dict, common: dict, path: tuple = ()) -> Iterator[tuple[str, ...]]:
    """Paths below a data set of what ``dataset`` says otherwise."""
    for key in [key for key in common if key in dataset]:
        if isinstance(common[key], dict) and isinstance(dataset[key], dict):
            yield from _conflicts(dataset[key], common[key], (*path, key))
        elif dataset[key] != common[key]:
            yield (*path, key)


def _repeats(old: _Old, where: str, path: tuple[str, ...], value: Any) -> bool:
    """Whether a value of a data set is one that a file has and none above says anew.

    And the file's own ``dataset`` says the same, or nothing of it.
    """
    if _get(old.datasets.get(where), path) != value:
        return False
    if _get(old.common, path) not in (value, None):
        return False
    names = (*where.split('.'), *path)
    short = tuple(name for name in names if name != 'metainfo')
    return not any(
        config_files.says(tree, names) or config_files.says(tree, short)
        for tree in old.layer.above
    )


def _get(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _join(path: tuple[str, ...]) -> str:
    return '.'.join(name for name in path if name != 'metainfo')


def _layers(path: Path, above: tuple[ast.AST, ...] = ()) -> Iterator[_Layer]:
    """The files of a config that say something of dataloaders, the deepest first."""
    tree = config_files.statements(path)
    for base in config_files.bases(path):
        yield from _layers(base, (*above, tree))
    if not above or config_files.names(path)[0] & set(DATALOADERS):
        yield _Layer(config_files.content(path), above)


# --- checks ----------------------------------------------------------------------------------


def _check_wrapper(loader: dict | None, name: str) -> None:
    """A wrapper that was merged into the data set of a base config has that one's arguments."""
    for where, node in walk((loader or {}).get('dataset'), f'{name}.dataset'):
        wraps = kind_of(node) in _WRAPPERS and (node.get('dataset') or node.get('datasets'))
        found = [key for key in _OF_A_DATA_SET if wraps and key in node]
        if found:
            raise UserError(
                f'{where}: {kind_of(node)} takes no {", ".join(found)}, which the data set of a '
                'base config has; write _delete_=True in it'
            )


def _check_reach(
    placed: list[tuple[str, dict]], common: dict, history: list[_Old], path: tuple = ()
) -> None:
    """What ``dataset`` says and every data set says otherwise changes nothing.

    Unless a base says it, or a config that a run has written.
    """
    for key, value in common.items():
        here = (*path, key)
        own = [_get(dataset, here) for _, dataset in placed]
        if isinstance(value, dict):
            _check_reach(placed, value, history, here)
        elif own and all(other is not None and other != value for other in own):
            if not any(_get(old.common, here) == value for old in history
                       if old.layer.above or len(history) == 1):  # fmt: skip
                raise UserError(
                    f'dataset.{_join(here)} changes nothing: every data set of the dataloaders has '
                    f'its own ({placed[0][0]}.{_join(here)} is {own[0]!r}); set it there'
                )


def _check_lists(cfg: Config, common: dict) -> None:
    """One list of names for all splits must not make a test of the training images."""
    if not common.get('ann_file'):
        return

    def reads(dataset: dict) -> list:
        return [dataset.get(key) for key in ('data_root', 'data_prefix', 'ann_file')]

    trained = [reads(dataset) for dataset in leaf_datasets(cfg.get('train_dataloader'))]
    for name in DATALOADERS[1:]:
        for where, dataset in placed_datasets(cfg.get(name), name):
            if dataset.get('ann_file') == common['ann_file'] and reads(dataset) in trained:
                raise UserError(
                    f'dataset.ann_file is one list for all splits, and {where} would read the '
                    'training images; set train_dataloader.dataset.ann_file, val_... and test_...'
                )


def _check_splits(cfg: Config) -> None:
    """Images that train are no validation: a list of both parts is for the last training."""
    trained = {(dataset.get('data_root'), part)
               for dataset in leaf_datasets(cfg.get('train_dataloader'))
               for part in list_files.parts_of(dataset)}
    for name in DATALOADERS[1:]:
        for where, dataset in placed_datasets(cfg.get(name), name):
            both = [part for part in list_files.parts_of(dataset)
                    if (dataset.get('data_root'), part) in trained]
            if both:
                raise UserError(
                    f'{where}.split is {dataset.split}, but training reads {both[0]} too; to train '
                    'on both parts leave validation out: val_dataloader=None val_cfg=None '
                    'val_evaluator=None')


def _classes(cfg: Config) -> list[str] | None:
    """The class names of training, all parts of which must have the same."""
    first = None
    for where, dataset in placed_datasets(cfg.get('train_dataloader'), 'train_dataloader'):
        classes = (dataset.get('metainfo') or {}).get('classes')
        if classes is None:
            continue
        if first is None:
            first = where, classes
        elif list(classes) != list(first[1]):
            raise UserError(
                f'{where}.classes are {list(classes)}, those of {first[0]} {list(first[1])}: a '
                'label would mean two classes; give all parts the same'
            )
    if first is not None:
        return list(first[1])
    for dataset in leaf_datasets(cfg.get('train_dataloader')):
        root = dataset.get('data_root')
        if kind_of(dataset) == 'ImageFolder' and root and Path(root, 'train').is_dir():
            return find_classes(root)
        if kind_of(dataset) in list_files.KINDS and root and (
                Path(root).is_dir() or Path(root).name in list_files.VTAB_TASKS):
            return list_files.classes_of(dataset)
        if (known := layouts.classes_of(dataset)) is not None:
            return known
        if kind_of(dataset) in geo_samples.KINDS and (known := geo_samples.classes_of(dataset)):
            return known
        if kind_of(dataset) == 'CocoFolder' and coco.ann_file_of(dataset).is_file():
            return coco.classes_of(dataset)
        if kind_of(dataset) in panoptic.KINDS and coco.ann_file_of(dataset).is_file():
            return panoptic.classes_of(dataset)
    common = _normal(cfg.get('dataset') or {}, 'dataset').get('metainfo') or {}
    return list(common['classes']) if common.get('classes') else None
