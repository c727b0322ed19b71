"""The images of some classes of a data set."""

from collections.abc import Sequence

import numpy as np
from mmengine.dataset import BaseDataset

from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS
from vpt_dense.seeding import DatasetAround


@DATASETS.register_module()
class ClassSubset(DatasetAround):
    """A data set of which the images of some classes are taken; classes and labels stay.

    Args:
        dataset: Config of the data set, of classification.
        labels: Of the classes.
        key: What asks for them, for messages.

    Raises:
        UserError: If the data set has no classes of images, or none of these.
    """

    def __init__(
        self, dataset: dict | BaseDataset, labels: Sequence[int],
        key: str = 'continual',
    ) -> None:
        inner = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        inner.full_init()
        if not hasattr(inner, 'get_gt_labels'):
            raise UserError(
                f'{key}: images of a {type(inner).__name__} are not of one class each')
        chosen = np.flatnonzero(np.isin(inner.get_gt_labels(), list(labels)))
        if not len(chosen):
            names = inner.metainfo['classes']
            raise UserError(
                f'{key}: no image of {", ".join(str(names[label]) for label in labels[:5])}'
                f'{", ..." if len(labels) > 5 else ""}')
        inner.get_subset_(chosen.tolist())
        super().__init__(inner)
