"""Predictions as files of labels, in the ids that the annotations have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vpt_dense import files
from vpt_dense.predicting.results import to_ids


def write(
    path: str | Path, labels: np.ndarray, ids: Sequence[int], ignored: int,
    no_data: np.ndarray | None = None,
) -> None:
    """Write a label map as a PNG of one channel, completely or not at all.

    Args:
        path: A name that is too long is shortened.
        labels: (H, W), the classes.
        ids: What stands in the file for each class
            (:func:`vpt_dense.predicting.results.annotation_ids`): 8 bits, 16 if one is above 255.
        ignored: What stands there for pixels without data.
        no_data: Where they are, (H, W) bool; None: nowhere.
    """
    with files.atomic(files.shortened(path)) as unfinished, unfinished.open('wb') as stream:
        Image.fromarray(to_ids(labels, ids, ignored, no_data)).save(stream, 'png')
