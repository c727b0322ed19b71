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
        inner.get_subset_(choose(
            classes_of_images(inner, key), inner.metainfo['classes'], labels, without, key))
        super().__init__(inner)


def classes_of_images(dataset: BaseDataset, key: str) -> list[frozenset[int]]:
    """The labels that each image of a data set has, or that its mask holds.

    Args:
        dataset: Of classification or segmentation, with the list of its images read.
        key: What asks for them, for messages.

    Raises:
        UserError: If it has no classes of images or pixels.
    """
    if hasattr(dataset, 'get_gt_labels'):
        return [frozenset(np.ravel(label).tolist()) for label in dataset.get_gt_labels()]
    if not hasattr(dataset, 'reduce_zero_label'):
        raise UserError(f'{key}: a {type(dataset).__name__} is of no classes of images or pixels')
    table = checks.label_table(dataset.reduce_zero_label, dataset.label_map)
    masks = (dataset.get_data_info(i)['seg_map_path'] for i in range(len(dataset)))
    return [frozenset(np.unique(table[checks.read_mask(mask)]).tolist()) for mask in masks]


def choose(
    there: Sequence[frozenset[int]], names: Sequence[str], labels: Sequence[int],
    without: Sequence[int], key: str,
) -> list[int]:  # fmt: skip
    """The images that hold a class of ``labels``, and none of ``without``.

    Args:
        there: The labels of each image.
        names: Of all classes.
        labels: See above.
        without: See above.
        key: What asks for them, for messages.

    Raises:
        UserError: If there is none.
    """
    held = [i for i, each in enumerate(there)
            if not each.isdisjoint(labels) and each.isdisjoint(without)]
    if not held:
        raise UserError(
            f'{key}: no image of {", ".join(str(names[label]) for label in labels[:5])}'
            f'{", ..." if len(labels) > 5 else ""}{_LEAVE_OUT if without else ""}')
    return held
