"""Predicting with models of several tasks that trained together."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from vpt_dense import visualization
from vpt_dense.datasets.label_maps import annotation_ids, ignored_id, to_ids
from vpt_dense.errors import UserError
from vpt_dense.predicting.results import OneTask, Result, Segmentation, SeveralTasks

if TYPE_CHECKING:
    from vpt_dense.predicting.model import ModelPredictor


def tasks_of(model: nn.Module, info: Mapping[str, Any]) -> dict[str, OneTask]:
    """What the tasks of a model predict.

    Args:
        model: With ``task_heads``; of another there are none.
        info: ``metainfo`` of the data, with ``task_classes`` and ``maps`` of a
            :class:`vpt_dense.datasets.task_folder.TaskFolder`; ``reduce_zero_label``,
            ``label_map`` and ``ignore_index`` of a data set of masks are of its task ``seg``.

    Raises:
        UserError: If a head finds what no file has a form for, or has other classes than the data.
    """
    heads = getattr(model, 'task_heads', None)
    if heads is None:
        return {}
    from vpt_dense.segmentors.multi_task_estimator import kind_of

    found, maps = {}, info.get('maps') or {}
    for name, head in heads.items():
        kind, how = kind_of(head), maps.get(name) or {}
        if not kind:
            raise UserError(
                f'model.task_heads.{name}: what a {type(head).__name__} finds cannot be predicted '
                'into files, nor exported')
        if kind != 'segmentation':
            farthest = getattr(head, 'max_depth', getattr(head, 'max_distance', None))
            found[name] = OneTask(kind, scale=float(how.get('scale', 1)), farthest=farthest)
            continue
        number = head.num_classes
        classes = (info.get('task_classes') or {}).get(name)
        of_masks = not classes and name == 'seg'
        classes = classes or (info.get('classes') if of_masks else None) or range(number)
        if len(classes) != number:
            raise UserError(
                f'model.task_heads.{name}.num_classes is {number}, the data set of the config has '
                f'{len(classes)} classes for it')
        reduced, label_map, ignored = bool(how.get('zero_is_unknown')), None, 255
        if of_masks:
            reduced, label_map, ignored = (
                info.get(key) for key in ('reduce_zero_label', 'label_map', 'ignore_index'))
        ids = annotation_ids(number, bool(reduced), label_map)
        palette = info.get('palette') if of_masks else None
        if not palette or len(palette) != number:
            palette = visualization.make_palette(number)
        found[name] = OneTask(
            kind, tuple(map(str, classes)), ids, ignored_id(ids, bool(reduced), ignored, label_map),
            [list(map(int, colour)) for colour in palette],
            head.threshold if head.out_channels == 1 else None)
    return found


def find_maps(
    predictor: 'ModelPredictor', batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Predict the maps of all tasks of images of one size.

    See :attr:`vpt_dense.tasks.Task.predict`.

    Raises:
        UserError: If probabilities are asked for.
    """
    if probabilities:
        raise UserError('probabilities are for models of one task; predict without them')
    data, results = pseudo_collate(batch), []
    inputs = data['inputs']  # of augmentation: of each version those of all images
    inputs = inputs if isinstance(inputs[0], Tensor) else inputs[0]
    for image, sample in zip(inputs, predictor.model.test_step(data), strict=True):
        found: dict[str, Result] = {}
        for name, one in predictor.of_tasks.items():
            array = sample.get(f'pred_{name}_map').data.float().cpu().numpy()
            if one.classes:
                labels = to_ids(array[0], one.ids, one.ignored_id, sample.get('no_data'))
                found[name] = Segmentation(labels, one.classes, one.ids, one.ignored_id)
            else:
                found[name] = one.result(array, image.shape[-2:])
        results.append(SeveralTasks(found))
    return results
