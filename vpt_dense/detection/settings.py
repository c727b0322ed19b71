"""What a detector's config says once: strides, padding, annotations of its metric, classes."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense import pretraining, tasks
from vpt_dense.argument_checks import is_int, is_number
from vpt_dense.datasets import coco, panoptic
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, as_list, get, kind_of, placed_datasets, walk

#: The pyramid whose strides heads follow, and its usual scales.
PYRAMID, SCALES = 'SimpleFeaturePyramid', (4, 2, 1, 0.5)


def place(cfg: Config, classes: Sequence[str] | None) -> None:
    """Put what a detector's config says once into the places that follow it, in place.

    - Strides of priors and of region extractors that are None follow the patches and scales of a
      ``vpt_dense.SimpleFeaturePyramid``, ``data_preprocessor.pad_size_divisor`` likewise.
    - ``ann_file`` of a COCO metric that is told none is that of its split; ``seg_prefix`` of a
      panoptic one likewise.
    - Numbers of classes of query heads (``num_things_classes``, ``num_stuff_classes``) and the
      weights of their classes; ``thing_classes`` of panoptic data sets, as their JSON says it.

    Args:
        cfg: A config whose data sets are merged, and ``pretrained`` placed.
        classes: The names of the classes, if they are known.

    Raises:
        UserError: If a stride, the padding or an ``ann_file`` contradicts these.
    """
    model = cfg.get('model') or {}
    model = model.get('module') or model
    task = tasks.of(model)
    if task is None or not task.regions:
        return
    patch = _patch(model)
    if patch is not None:
        _place_strides(model, patch)
        _place_padding(cfg, model, patch)
    _place_annotations(cfg)
    if classes is not None:
        _place_queries(cfg, model, classes, task.name == 'panoptic')


# --- strides and padding ---------------------------------------------------------------------


def _patch(model: dict) -> int | None:
    """Pixels of a side of a vision transformer's patches; None: it is another backbone."""
    backbone = model.get('backbone') or {}
    if not kind_of(backbone).endswith('VisionTransformer'):
        return None
    sides = {side for side in as_list(pretraining.patch_size(backbone)) if is_int(side, 1)}
    if len(sides) > 1:
        raise UserError(
            f'model.backbone.patch_size is {backbone.get("patch_size")!r}: detectors take square '
            'patches')
    return next(iter(sides), None)


def strides(patch: int, scales: Sequence[float], num_outs: int | None) -> list[float]:
    """Pixels from one place to the next, on each level of a simple feature pyramid."""
    found = [patch / scale for scale in scales]
    while len(found) < (len(scales) + 1 if num_outs is None else num_outs):
        found.append(2 * found[-1])
    return [int(each) if each == int(each) else each for each in found]


def _place_strides(model: dict, patch: int) -> None:
    neck = model.get('neck') or {}
    if kind_of(neck) != PYRAMID:
        return
    scales = tuple(neck.get('scales') or SCALES)
    levels = strides(patch, scales, neck.get('num_outs'))
    for where, key, node in _strided(model):
        value = node.get(key)
        wanted = levels[: len(scales)] if key == 'featmap_strides' else levels
        if value is None:
            node[key] = wanted
        elif key == 'featmap_strides':
            wanted = levels[: len(value)]
        if value is not None and list(map(_number, value)) != wanted:
            raise UserError(
                f'{where}.{key} is {list(value)}, but patches of {patch} pixels and '
                f'model.neck.scales {scales} make strides of {wanted}; set it to None, and it '
                'follows')


def _number(stride: Any) -> Any:
    """A stride, of both sides."""
    pair = as_list(stride)
    return pair[0] if pair and all(each == pair[0] for each in pair) else stride


def _strided(model: dict) -> Iterator[tuple[str, str, dict]]:
    """Where strides are said: (dotted place, key, its dict)."""
    for head in ('rpn_head', 'bbox_head', 'roi_head', 'mask_head', 'panoptic_head'):
        for where, node in walk(model.get(head), f'model.{head}'):
            for key in ('strides', 'featmap_strides'):
                if key in node:
                    yield where, key, node


def _place_padding(cfg: Config, model: dict, patch: int) -> None:
    """Batches are padded to whole patches, and to whole places of the smallest map."""
    where = 'model.data_preprocessor' if model.get('data_preprocessor') else 'data_preprocessor'
    node = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    key, value = f'{where}.pad_size_divisor', node.get('pad_size_divisor', 1)
    neck = model.get('neck') or {}
    scales = tuple(neck.get('scales') or SCALES) if kind_of(neck) == PYRAMID else (1,)
    whole = int(patch / min(1, *scales))
    if value is None:
        node['pad_size_divisor'] = whole
    elif not is_number(value) or value % patch:
        raise UserError(
            f'{key} is {value!r}, and patches have {patch} pixels: rows or columns of images would '
            f'be lost; set it to {whole}')


# --- the metric ------------------------------------------------------------------------------


def _place_annotations(cfg: Config) -> None:
    for split in ('val', 'test'):
        parts = placed_datasets(cfg.get(f'{split}_dataloader'), f'{split}_dataloader')
        files = [coco.ann_file_of(part) for _, part in parts if part.get('ann_file')]
        evaluator = f'{split}_evaluator'
        for where, metric in walk(cfg.get(evaluator), evaluator):
            if kind_of(metric) not in ('CocoMetric', 'PanopticMetric') or not files:
                continue
            said = metric.get('ann_file')
            if kind_of(metric) == 'PanopticMetric' and metric.get('seg_prefix') is None:
                metric['seg_prefix'] = str(panoptic.segment_folder(parts[0][1]))
            if len(files) != len(parts) or len(set(files)) > 1:
                if said is None:
                    raise UserError(
                        f'{where}.ann_file: {split}_dataloader has {len(parts)} parts; name one '
                        'file that holds the annotations of all')
            elif said is None:
                metric['ann_file'] = str(files[0])
            elif os.path.abspath(said) != os.path.abspath(files[0]):
                raise UserError(
                    f'{where}.ann_file is {said}, but {parts[0][0]} reads {files[0]}: predictions '
                    'would be compared with other images; set it to None, and it follows')


# --- classes ---------------------------------------------------------------------------------


def _place_queries(cfg: Config, model: dict, classes: Sequence[str], with_stuff: bool) -> None:
    """Heads of queries say things and stuff apart, and a weight for each class and for none."""
    number, stuff = len(classes), 0
    if with_stuff:
        things = _place_things(cfg, classes)
        if things is None:  # the data are not there: a config is counted or printed
            return
        number, stuff = len(things), len(classes) - len(things)
    for name in ('panoptic_head', 'panoptic_fusion_head'):
        head = model.get(name) or {}
        if 'num_things_classes' not in head:
            continue
        said = head.get('num_stuff_classes', 0)
        if said and not with_stuff:
            raise UserError(
                f'model.{name}.num_stuff_classes is {said}: instances are found here, of things '
                'alone; set it to 0')
        head['num_things_classes'] = number
        if with_stuff:
            head['num_stuff_classes'] = stuff
        weights = get(head, 'loss_cls.class_weight')
        if isinstance(weights, (list, tuple)) and len(weights) != len(classes) + 1:
            if len(set(weights[:-1])) != 1:
                raise UserError(
                    f'model.{name}.loss_cls.class_weight has {len(weights)} weights for '
                    f'{len(classes)} classes and the background; give one for each')
            head['loss_cls']['class_weight'] = [weights[0]] * len(classes) + [weights[-1]]


def _place_things(cfg: Config, classes: Sequence[str]) -> list[str] | None:
    """Say in each panoptic data set which classes are things, as that of training has it."""
    things = None
    for name in DATALOADERS:
        for _, dataset in placed_datasets(cfg.get(name), name):
            if kind_of(dataset) not in panoptic.KINDS:
                continue
            if things is None:
                things = panoptic.things_of(dataset, classes)
            if things is not None:
                metainfo = dataset.setdefault('metainfo', ConfigDict())
                metainfo.setdefault('thing_classes', list(things))
    return things
