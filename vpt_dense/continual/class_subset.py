"""The images of some classes of a data set."""

from collections.abc import Sequence

import numpy as np
from mmengine.dataset import BaseDataset

from vpt_dense.datasets import checks
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS
from vpt_dense.seeding import DatasetAround

_LEAVE_OUT = ' without classes of later steps: leave disjoint out, or take other steps'


@DATASETS.register_module()
class ClassSubset(DatasetAround):
    """A data set of which the images of some classes are taken; classes and labels stay.

    Of a segmentation set these are the images that hold a pixel of the classes: every mask is read
    once when the data set is built.

    Args:
        dataset: Config of the data set, of classification or segmentation.
        labels: Of the classes.
        without: Labels of which an image must not hold any, of a segmentation.
        key: What asks for them, for messages.

    Raises:
        UserError: If the data set has no classes of images or pixels, or none of these.
    """

    def __init__(
        self, dataset: dict | BaseDataset, labels: Sequence[int], without: Sequence[int] = (),
        key: str = 'continual',
    ) -> None:
        inner = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        inner.full_init()
        if hasattr(inner, 'get_gt_labels'):
            held = np.isin(inner.get_gt_labels(), list(labels))
        elif hasattr(inner, 'reduce_zero_label'):
            table = checks.label_table(inner.reduce_zero_label, inner.label_map)
            masks = (inner.get_data_info(i)['seg_map_path'] for i in range(len(inner)))
            there = [set(np.unique(table[checks.read_mask(mask)])) for mask in masks]
            held = [not each.isdisjoint(labels) and each.isdisjoint(without) for each in there]
        else:
            raise UserError(
                f'{key}: a {type(inner).__name__} is of no classes of images or pixels')
        chosen = np.flatnonzero(held)
        if not len(chosen):
            names = inner.metainfo['classes']
            raise UserError(
                f'{key}: no image of {", ".join(str(names[label]) for label in labels[:5])}'
                f'{", ..." if len(labels) > 5 else ""}'
                f'{_LEAVE_OUT if without else ""}')
        inner.get_subset_(chosen.tolist())
        super().__init__(inner)
