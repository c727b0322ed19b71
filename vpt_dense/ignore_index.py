"""The ignored label: set once (``dataset.ignore_index``) and put wherever it is needed."""

from collections.abc import Iterable
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense import tasks
from vpt_dense.argument_checks import is_int
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, kind_of, placed_datasets, placed_heads, walk

#: The label that the stack leaves out, and fills borders with, unless it is told another.
DEFAULT = 255

#: Transforms (by their names without scope) and losses -> the argument that holds it.
_TRANSFORMS = {
    'LoadMask': 'ignore_index',
    'RandomCrop': 'ignore_index',
    'GenerateEdge': 'ignore_index',
    'RandomRotate': 'seg_pad_val',
    'RandomMosaic': 'seg_pad_val',
    'RandomCutOut': 'seg_fill_in',
}
_LOSSES = {
    'DiceLoss': 'ignore_index',
    'TverskyLoss': 'ignore_index',
    'HuasdorffDisstanceLoss': 'ignore_index',
    'OhemCrossEntropy': 'ignore_label',
}
_METRICS = ('IoUMetric', 'CityscapesMetric')

#: Data sets that make label 0 to 255 unless they are told not to.
_REDUCING = (
    'ADE20KDataset', 'LoveDADataset', 'PotsdamDataset', 'ISPRSDataset', 'PascalContextDataset59',
)


def place(cfg: Config) -> None:
    """Put the ignored label of the data into everything that must know it, in place.

    Training's goes into the heads, their losses, the borders that the data preprocessor adds; each
    split's into its pipeline (``cat_max_ratio`` of a crop, borders of rotations and paddings) and
    its metric; and into the drawing. What the data do not say, the heads (or the metric) may.

    A border of 255 follows, any other stays: it is a class.

    Args:
        cfg: A config whose data sets hold what they have in common already.

    Raises:
        UserError: If two places that must agree say different labels, or the label cannot be.
    """
    model = cfg.get('model') or {}
    task = tasks.of(model)
    if task is not None and not task.classes:
        return
    heads = placed_heads(model) if tasks.is_dense(model) else []
    said_by_heads = _one((f'{p}.ignore_index', h['ignore_index']) for p, h in heads
                         if h.get('ignore_index') is not None)
    trained = None
    for name in DATALOADERS:
        split = name.partition('_')[0]
        metrics = _metrics(cfg, split)
        said = said_by_heads if split == 'train' else _one(
            (f'{p}.ignore_index', m['ignore_index']) for p, m in metrics if 'ignore_index' in m
        )
        found = _of_data(cfg.get(name), name, said, said_by_heads)
        if found is None:
            continue
        _, label = found
        if split == 'train':
            trained = found
        if label != DEFAULT:
            _place_in_transforms(cfg[name], name, label)
            for _, dataset in placed_datasets(cfg[name], name):
                dataset['ignore_index'] = label
        for where, metric in metrics:
            _set(metric, 'ignore_index', label, where, found)
    if trained is not None:
        _, label = trained
        for where, head in heads:
            _set(head, 'ignore_index', label, where, trained)
            for _, node in walk(head.get('loss_decode'), ''):
                key = _LOSSES.get(kind_of(node))
                if key and label != DEFAULT:
                    node.setdefault(key, label)  # Dice may leave a class out beside
        for owner in (model, cfg):
            preprocessor = owner.get('data_preprocessor') or {}
            if heads and preprocessor.get('seg_pad_val', DEFAULT) == DEFAULT != label:
                preprocessor['seg_pad_val'] = label
    drawn = found or trained
    if drawn and drawn[1] != DEFAULT:
        for key in ('tta_pipeline', 'test_pipeline'):
            _place_in_transforms(cfg.get(key), key, drawn[1])
        visualizer = cfg.get('visualizer') or {}
        if kind_of(visualizer) == 'SegLocalVisualizer':
            visualizer.update(type='vpt_dense.SegLocalVisualizer', ignore_index=drawn[1])


def _metrics(cfg: Config, split: str) -> list[tuple[str, dict]]:
    place_ = f'{split}_evaluator'
    return [(where, node) for where, node in walk(cfg.get(place_), place_)
            if kind_of(node) in _METRICS or 'ignore_index' in node]


def _one(said: Iterable[tuple[str, Any]]) -> tuple[str, Any] | None:
    """The one label that several keys say; None if none says any."""
    first = None
    for key, label in said:
        if first is None:
            first = key, label
        elif label != first[1]:
            raise _disagreement(key, label, first)
    return first


def _disagreement(key: str, label: Any, other: tuple[str, Any]) -> UserError:
    return UserError(
        f'{key} is {label!r}, but {other[0]} is {other[1]!r}; set dataset.ignore_index alone: '
        'heads, losses, metrics, crops and borders follow'
    )


def _of_data(
    loader: dict | None, name: str, said_too: tuple[str, int] | None, else_: tuple[str, int] | None
) -> tuple[str, int] | None:
    """(Who says it, the ignored label) of a dataloader's data sets; None if nobody says one.

    ``said_too``, if it is said, must be the same; ``else_`` holds where neither is said.
    """
    placed = placed_datasets(loader, name)
    said = [(f'{where}.ignore_index', d['ignore_index']) for where, d in placed
            if d.get('ignore_index') is not None]
    if said and len(said) < len(placed):  # the others have the default
        silent = next(where for where, d in placed if d.get('ignore_index') is None)
        said.append((f'{silent}.ignore_index', DEFAULT))
    if placed and said_too:
        said.append(said_too)
    found = _one(said) or (else_ if placed else None)
    if found is None:
        return None
    key, label = found
    if not is_int(label, 0) or label > 255:
        raise UserError(f'{key} is {label!r}; it must be a label, an integer from 0 to 255')
    for where, dataset in placed if label != DEFAULT else ():
        if dataset.get('reduce_zero_label', kind_of(dataset) in _REDUCING):
            raise UserError(
                f'{key} is {label}, but {where}.reduce_zero_label makes label 0 to 255, which '
                'would not be ignored; leave one of them out (ignore_index=0 ignores label 0 and '
                'keeps the other labels as they are)'
            )
    return found


def _set(node: dict, key: str, label: int, place_: str, source: tuple[str, int]) -> None:
    if node.get(key) is None:
        if label != DEFAULT:  # a class that does not know the argument says so
            node[key] = label
    elif node[key] != label:
        raise _disagreement(f'{place_}.{key}', node[key], source)


def _place_in_transforms(tree: Any, place_: str, label: int) -> None:
    for where, node in walk(tree, place_):
        kind = kind_of(node)
        if kind in _TRANSFORMS:
            key = _TRANSFORMS[kind]
            default = None if kind == 'RandomCutOut' else DEFAULT  # that leaves labels as they are
            if node.get(key, default) == DEFAULT:
                node[key] = label
            elif key == 'ignore_index' and node[key] != label:
                raise _disagreement(f'{where}.{key}', node[key], ('the ignored label', label))
        elif kind == 'Pad':
            pad = node.get('pad_val', 0)
            pad = pad if isinstance(pad, dict) else dict(img=pad)
            if pad.get('seg', DEFAULT) == DEFAULT:
                node['pad_val'] = ConfigDict(pad, seg=label)
