"""A part of the training data: a share, a number of images, or so many of each class."""

import numpy as np
from mmengine.dataset import BaseDataset

from vpt_dense.argument_checks import check_count, is_int, is_number
from vpt_dense.errors import UserError
from vpt_dense.registry import DATASETS
from vpt_dense.seeding import DatasetAround


@DATASETS.register_module()
class Subset(DatasetAround):
    """A data set of which some images are taken, drawn once.

    What ``subset = dict(...)`` of a config becomes. The images are the first ones of an order that
    the seed draws, in the data set's own order again; so a smaller subset is a part of a larger
    one of the same seed. Everything else is the data set's own.

    Args:
        dataset: Config of the data set.
        share: Of the images, above 0 and at most 1; at least one is taken.
        images: How many.
        per_class: How many of each class, in classification.
        seed: Of the order, beside the run's.

    Raises:
        UserError: If not one of ``share``, ``images`` and ``per_class`` is given, there are fewer
            images, or the data set has no classes of images.
    """

    def __init__(
        self,
        dataset: dict | BaseDataset,
        share: float | None = None,
        images: int | None = None,
        per_class: int | None = None,
        seed: int = 0,
    ) -> None:
        given = dict(share=share, images=images, per_class=per_class)
        said = [key for key, value in given.items() if value is not None]
        if len(said) != 1:
            raise UserError(
                f'subset: one of share, images and per_class was expected, found {said or "none"}')
        if share is not None and not (is_number(share) and 0 < share <= 1):
            raise UserError(f'subset.share must be above 0 and at most 1, found {share!r}')
        for key in ('images', 'per_class'):
            if given[key] is not None:
                check_count(given[key], f'subset.{key}')
        if not is_int(seed, 0):
            raise UserError(f'subset.seed must be an integer of at least 0, found {seed!r}')
        inner = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        inner.full_init()
        order = np.random.default_rng(seed).permutation(len(inner))
        if per_class is not None:
            chosen = _of_each_class(inner, order, per_class)
        else:
            number = images if images is not None else max(1, round(share * len(inner)))
            if number > len(inner):
                raise UserError(f'subset.images is {number}, but there are {len(inner)} images')
            chosen = order[:number]
        inner.get_subset_(sorted(map(int, chosen)))
        super().__init__(inner)


def _of_each_class(dataset: BaseDataset, order: np.ndarray, number: int) -> list[int]:
    if not hasattr(dataset, 'get_gt_labels'):
        raise UserError(
            f'subset.per_class: images of a {type(dataset).__name__} are not of one class each; '
            'say images or share')
    labels = np.asarray(dataset.get_gt_labels())
    chosen: list[int] = []
    for label, name in enumerate(dataset.metainfo['classes']):
        own = [int(i) for i in order if labels[i] == label]
        if len(own) < number:
            raise UserError(
                f'subset.per_class is {number}, but class {name} has {len(own)} images')
        chosen += own[:number]
    return chosen
