"""Checks labels before they reach the loss, whose errors name no file."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn

from vpt_dense import tasks
from vpt_dense.datasets import raster
from vpt_dense.datasets.checks import ONE_LABEL, TWO_LABELS, loader_of, tell
from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Checks every batch of training, validation and testing; the cost is one pass over the labels.

    - the data set's number of classes against that of every head, before the first iteration;
    - images that hold other bands, or deeper ones, than the pipeline's loader reads, before it too;
    - label ids against the number of classes;
    - masks of more than one channel (colours instead of ids);
    - masks in which every pixel is ignored, in all images of the data set that are looked at;
    - masks of 0 and 255 alone where 255 is ignored: the second class may be meant.

    Args:
        samples: Images whose header is looked at, spread over the data set; and masks to look at
            when all pixels of a batch are ignored: a crop of a good mask may be empty by chance.
            Ten times as many where a batch has 0 and 255 alone.

    Raises:
        UserError: At the first batch that fails; it names the file.
    """

    priority = 'VERY_HIGH'

    def __init__(self, samples: int = 20) -> None:
        self.samples = samples
        self._found_labels: set[str] = set()
        self._looked: set[str] = set()
        self._found_classes = False

    def before_train(self, runner: Runner) -> None:
        """Compare the training set's classes with the heads', its images with their loader."""
        _check_classes(runner.model, runner.train_dataloader.dataset, 'train')
        check_images(runner.train_dataloader.dataset, 'train', self.samples)

    def before_val(self, runner: Runner) -> None:
        """Compare the validation set's classes with the heads', its images with their loader."""
        _check_classes(runner.model, runner.val_dataloader.dataset, 'val')
        if 'val' not in self._looked:
            self._looked.add('val')
            check_images(runner.val_dataloader.dataset, 'val', self.samples)

    def before_test(self, runner: Runner) -> None:
        """Compare the test set's classes with the heads', its images with their loader."""
        _check_classes(runner.model, runner.test_dataloader.dataset, 'test')
        check_images(runner.test_dataloader.dataset, 'test', self.samples)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check a training batch."""
        self._check(runner.model, runner.train_dataloader.dataset, data_batch, 'train')

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check a validation batch."""
        self._check(runner.model, runner.val_dataloader.dataset, data_batch, 'val',
                    runner.val_evaluator)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check a test batch."""
        self._check(runner.model, runner.test_dataloader.dataset, data_batch, 'test',
                    runner.test_evaluator)

    def _check(
        self, model: nn.Module, dataset: Any, data_batch: Any, split: str,
        evaluator: Evaluator | None = None,
    ) -> None:
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        parts = dict(unwrap(model).named_children())
        task = tasks.of(parts)
        if not samples or not task or not task.check_sample:
            return
        head = next(parts[key] for key in task.heads if key in parts)
        head = head[0] if isinstance(head, nn.ModuleList) else head
        check = task.function('check_sample', 'DataCheckHook')
        # Of who reads the labels: the loss, or a metric.
        readers = [*getattr(evaluator, 'metrics', []), head]
        ignore_index = next((r.ignore_index for r in readers if hasattr(r, 'ignore_index')), 255)
        labelled = None
        many = (getattr(head, 'num_classes', None) or 0) > 1
        if split == 'train' and not self._found_classes and many and task.dense:
            self._look_for_classes(dataset, _flatten(samples), ignore_index)
        for sample in _flatten(samples):
            found = check(sample, head, ignore_index)
            labelled = labelled if found is None else bool(labelled) | found
        if labelled:
            self._found_labels.add(split)
        elif labelled is False and split not in self._found_labels:
            self._look_wider(dataset, ignore_index, split)
            self._found_labels.add(split)

    def _look_for_classes(self, dataset: Any, samples: list, ignore_index: int) -> None:
        """Raise if all masks of the data set together hold 0 and an ignored 255, and nothing else.

        The first mask with another label ends the search, so that all are read in a fault alone.
        """
        masks = [sample.gt_sem_seg.data for sample in samples if 'gt_sem_seg' in sample]
        ids = {int(i) for mask in masks for i in mask.unique()}
        if ids - {0, 255} or ignore_index != 255:
            self._found_classes = True
        if self._found_classes or 255 not in ids:
            return
        self._found_classes = True  # or a border was taken for a label, and all are looked at now
        found = set()
        for index in np.argsort(np.arange(len(dataset)) * _GOLDEN % 1):  # from all over the set
            mask = _read_mask(dataset, int(index))
            found.update([] if mask is None else np.unique(mask).tolist())
            if mask is None or found - {0, 255}:
                return
        if found == {0, 255}:
            shifted = any(sample.metainfo.get('reduce_zero_label') for sample in samples)
            raise UserError(f'data of train: {ONE_LABEL if shifted else TWO_LABELS}')

    def _look_wider(self, dataset: Any, ignore_index: int, split: str) -> None:
        """Raise if whole masks of the data set, uncropped, have no labelled pixel either."""
        count = min(self.samples, len(dataset))
        for index in np.linspace(0, len(dataset) - 1, count).astype(int):
            mask = _read_mask(dataset, int(index))
            if mask is None or (mask != ignore_index).any():
                return
        raise UserError(
            f'data of {split}: every pixel is ignored (id {ignore_index}) in all {count} masks '
            'looked at; see dataset.reduce_zero_label and the ids in the masks'
        )


#: Multiples of it, without their whole part, lie evenly between 0 and 1, however many there are.
_GOLDEN = (5**0.5 - 1) / 2


def _heads(model: nn.Module):
    """(name, head) of the heads that predict classes."""
    model = unwrap(model)
    task = tasks.of(dict(model.named_children()))
    for name in tasks.heads():
        part = getattr(model, name, None)
        found = list(part) if isinstance(part, nn.ModuleList) else [part]
        if task and task.regions:
            found = _class_heads(part) if name != 'rpn_head' else []  # it knows no classes
        for head in found:
            if isinstance(getattr(head, 'num_classes', None), int):
                yield name, head


def _class_heads(part: nn.Module | None) -> list[nn.Module]:
    """What predicts classes in a part of a detector: itself, or heads for boxes and masks."""
    found = [part]
    for key in ('bbox_head', 'mask_head'):
        inner = getattr(part, key, None)
        found += list(inner) if isinstance(inner, nn.ModuleList) else [inner]
    return [each for each in found if each is not None]


def _check_classes(model: nn.Module, dataset: Any, split: str) -> None:
    meta = getattr(dataset, 'metainfo', None) or {}
    classes = meta.get('classes')
    of_tasks = getattr(unwrap(model), 'task_heads', {})
    for name, head in of_tasks.items():
        own = (meta.get('task_classes') or {}).get(name, classes if name == 'seg' else None)
        if own and getattr(head, 'num_classes', None) not in (None, len(own)):
            raise UserError(
                f'model.task_heads.{name}.num_classes is {head.num_classes} but the {split} data '
                f'has {len(own)} classes ({", ".join(map(str, own[:3]))}, ...)')
    if not classes or of_tasks:
        return
    for name, head in _heads(model):
        if head.num_classes != len(classes):
            raise UserError(
                f'model.{name}.num_classes is {head.num_classes} but the {split} data has '
                f'{len(classes)} classes ({", ".join(map(str, classes[:3]))}, ...); set '
                'dataset.classes, the heads follow'
            )


def check_images(dataset: Any, split: str, samples: int) -> None:
    """Raise if a loader changes what images hold; warn if it keeps the upper 8 bits alone."""
    for part in _leaves(dataset):
        transforms = getattr(getattr(part, 'pipeline', None), 'transforms', [])
        loader = loader_of(transforms)
        if loader is None or not hasattr(part, 'get_data_info') or not len(part):
            continue
        places = np.linspace(0, len(part) - 1, min(samples, len(part))).astype(int)
        paths = [part.get_data_info(int(index)).get('img_path') for index in places]
        faults: dict[str, list] = {}
        without_labels = []
        for path in filter(None, paths):
            try:
                info = raster.image_info(path)
            except ValueError:
                continue  # in the file system of another machine; or it is told when it is read
            if fault := loader.fault(info):
                faults.setdefault(fault, []).append((path, info))
            if info.nodata is not None or loader.nodata is not None:
                without_labels.append(path)
        for fault, found in faults.items():
            line = f'data of {split}: {tell(fault, found, loader)}'
            if fault != 'deeply':
                raise UserError(line)
            print_log(line, 'current', logging.WARNING)
        kinds = [type(transform).__name__ for transform in transforms]
        if loader.count is not None and without_labels and 'LoadAnnotations' in kinds:
            raise UserError(
                f'data of {split}: images such as {without_labels[0]} have pixels without data, '
                'which LoadAnnotations does not leave out; load masks with vpt_dense.LoadMask'
            )


def _leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _leaves(part)
    elif hasattr(dataset, 'dataset'):
        yield from _leaves(dataset.dataset)
    else:
        yield dataset


def _flatten(samples: Sequence) -> list:
    """Samples of a batch, those of test-time augmentation (lists of lists) included."""
    return [
        inner for item in samples for inner in (item if isinstance(item, (list, tuple)) else [item])
    ]


def check_mask(sample: Any, head: nn.Module, ignore_index: int) -> bool | None:
    """Check one mask (1, H, W) of integer ids; return whether it has a labelled pixel."""
    num_classes = getattr(head, 'num_classes', None)
    if 'gt_sem_seg' not in sample or num_classes is None:
        return None
    mask = sample.gt_sem_seg.data
    path = sample.metainfo.get('seg_map_path') or sample.metainfo.get('img_path', 'a mask')
    if mask.ndim != 3 or mask.shape[0] != 1:
        raise UserError(
            f'{path}: the mask has several channels (array of shape {tuple(mask.shape)}); it needs '
            'one channel of class ids, not colours'
        )
    ids = mask[mask != ignore_index]
    if not len(ids):
        return False
    low, high = (int(end) for end in torch.aminmax(ids))
    if low < 0 or high >= num_classes:
        shift = 1 if sample.metainfo.get('reduce_zero_label') else 0
        found = (high if high >= num_classes else low) + shift
        ignored = f'0 and {ignore_index} are' if shift else f'{ignore_index} is'
        hint = ''
        if ignore_index == 0 and high == num_classes:
            hint = ('; if label 1 is the first class, say dataset.reduce_zero_label=True in place '
                    'of ignore_index=0')
        raise UserError(
            f'{path}: label id {found}, but there are {num_classes} classes (ids {shift} to '
            f'{num_classes - 1 + shift}; {ignored} ignored){hint}'
        )
    return True


def check_label(sample: Any, head: nn.Module, ignore_index: int) -> None:
    """Check the label ids of one image."""
    num_classes = getattr(head, 'num_classes', None)
    if 'gt_label' not in sample or num_classes is None:
        return
    label = sample.gt_label
    if label.numel() and not 0 <= int(label.min()) <= int(label.max()) < num_classes:
        path = sample.metainfo.get('img_path', 'an image')
        raise UserError(
            f'{path}: label {label.tolist()}, but there are {num_classes} classes '
            f'(0 to {num_classes - 1})'
        )


def check_depth(sample: Any, head: nn.Module, ignore_index: int) -> bool | None:
    """Check a depth map (1, H, W) in metres; return whether any of it is known."""
    if 'gt_depth_map' not in sample:
        return None
    depth = sample.gt_depth_map.data
    farthest = getattr(head, 'max_depth', None)
    known = depth[depth > 0]
    if farthest is not None and len(known) and not bool((known <= farthest).any()):
        path = sample.metainfo.get('img_path', 'an image')
        raise UserError(
            f'{path}: all depths are beyond {farthest:g} m (model.depth_head.max_depth), the '
            f'least is {float(known.min()):.4g} m; is dataset.depth_scale the number of units in a '
            'metre?')
    return bool(len(known))


def check_normals(sample: Any, head: nn.Module, ignore_index: int) -> bool | None:
    """Check a map of normals (3, H, W); return whether any of it is known."""
    if 'gt_normal_map' not in sample:
        return None
    normals = sample.gt_normal_map.data
    if normals.ndim != 3 or len(normals) != 3:
        path = sample.metainfo.get('img_path', 'an image')
        raise UserError(f'{path}: normals of shape {tuple(normals.shape)}; (3, H, W) was expected')
    return bool((normals != 0).any())


def check_tasks(sample: Any, head: nn.ModuleDict, ignore_index: int) -> bool | None:
    """Check the labels and edges of several tasks; return True if any of them is labelled."""
    labelled = []
    for name, each in head.items():
        key = f'gt_{name}_map'
        if key not in sample:
            continue
        truth = sample.get(key).data
        path = sample.metainfo.get('img_path', 'an image')
        if isinstance(getattr(each, 'num_classes', None), int):
            view = BaseDataElement(metainfo=dict(img_path=f'{path}, task {name}'))
            view.gt_sem_seg = sample.get(key)
            labelled.append(check_mask(view, each, each.ignore_index))
        elif getattr(each, 'truth', '') == 'gt_edge_map':
            strange = sorted(set(truth.unique().tolist()) - {0, 1, each.void})
            if strange:
                raise UserError(f'{path}, task {name}: edges are 0, 1 or {each.void} (not known), '
                                f'found {strange[0]}')
    return True if any(labelled) else None


def check_boxes(sample: Any, head: nn.Module, ignore_index: int) -> None:
    """Check the boxes and labels of one image."""
    found = sample.get('gt_instances')
    if found is None or 'bboxes' not in found:
        return
    path = sample.metainfo.get('img_path', 'an image')
    boxes = found.bboxes
    if not bool(torch.isfinite(getattr(boxes, 'tensor', boxes)).all()):
        raise UserError(f'{path}: a box is not finite')
    numbers = [each.num_classes for each in _class_heads(head)
               if 'RPN' not in type(each).__name__  # it knows no classes
               and isinstance(getattr(each, 'num_classes', None), int)]
    labels = found.labels
    if numbers and labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < numbers[0]:
        raise UserError(
            f'{path}: label {int(labels.max())}, but there are {numbers[0]} classes (0 to '
            f'{numbers[0] - 1})')


def check_segments(sample: Any, head: nn.Module, ignore_index: int) -> None:
    """Check the labels of the things and the stuff of one image."""
    path = sample.metainfo.get('img_path', 'an image')
    things, number = head.num_things_classes, head.num_classes
    found = sample.get('gt_instances')
    if found is not None and 'labels' in found and found.labels.numel():
        if not 0 <= int(found.labels.min()) <= int(found.labels.max()) < things:
            raise UserError(
                f'{path}: a thing of label {int(found.labels.max())}, but there are {things} '
                f'classes of things (0 to {things - 1})')
    if 'gt_sem_seg' in sample:
        labels = sample.gt_sem_seg.sem_seg.unique()
        wrong = labels[(labels >= number) & (labels != 255)]
        if len(wrong):
            raise UserError(
                f'{path}: label {int(wrong[0])}, but there are {number} classes (0 to '
                f'{number - 1}, and 255, of no segment)')


def _read_mask(dataset: Any, index: int) -> np.ndarray | None:
    """The whole mask of one image, as the data set's own pipeline loads it; None if it cannot."""
    while hasattr(dataset, 'dataset') or hasattr(dataset, 'datasets'):
        if hasattr(dataset, 'datasets'):  # ConcatDataset
            part, index = dataset._get_ori_dataset_idx(index)
            dataset = dataset.datasets[part]
        else:
            dataset = dataset.dataset
            index %= len(dataset)
    transforms = getattr(getattr(dataset, 'pipeline', None), 'transforms', [])
    loaders = [t for t in transforms if type(t).__name__ in ('LoadAnnotations', 'LoadMask')]
    if not loaders or not hasattr(dataset, 'get_data_info'):
        return None
    return loaders[0](dataset.get_data_info(index)).get('gt_seg_map')
