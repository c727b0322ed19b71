"""Predictions as files of labels, in the ids that the annotations have."""

from pathlib import Path

import numpy as np
from PIL import Image

from vpt_dense import files
from vpt_dense.datasets.checks import label_table
from vpt_dense.errors import UserError


def annotation_ids(
    number: int, reduce_zero_label: bool = False, label_map: dict[int, int] | None = None
) -> np.ndarray:
    """The ids in annotation files that stand for the classes: what loading makes of them, undone.

    Args:
        number: Of classes.
        reduce_zero_label: As of the data set.
        label_map: As of the data set. Where several ids become one class it is the first that this
            names.

    Returns:
        (number,) uint8.

    Raises:
        UserError: If no id in a file becomes one of the classes.
    """
    table, reduced = label_table(reduce_zero_label, label_map), label_table(reduce_zero_label, None)
    named = [int(i) for old in label_map or {} for i in np.flatnonzero(reduced == old)]
    ids: dict[int, int] = {}
    for i in [*named, *range(256)]:
        ids.setdefault(int(table[i]), i)
    lacking = [label for label in range(number) if label not in ids]
    if lacking:
        raise UserError(
            f'dataset.label_map {label_map} leaves no label for class {lacking[0]}, so predictions '
            'cannot be written in the labels of the masks'
        )
    return np.array([ids[label] for label in range(number)], np.uint8)


def write(path: str | Path, labels: np.ndarray, ids: np.ndarray) -> None:
    """Write a label map as a PNG of one channel of 8 bits, completely or not at all.

    Args:
        path: A name that is too long is shortened.
        labels: (H, W) integers, the classes.
        ids: What stands in the file for each class (:func:`annotation_ids`).
    """
    with files.atomic(files.shortened(path)) as unfinished, unfinished.open('wb') as stream:
        Image.fromarray(ids[labels]).save(stream, 'png')
