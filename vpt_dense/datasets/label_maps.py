"""Predictions as files of labels, in the ids that the annotations have."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vpt_dense import files


def write(path: str | Path, labels: np.ndarray, ids: Sequence[int]) -> None:
    """Write a label map as a PNG of one channel, completely or not at all.

    Args:
        path: A name that is too long is shortened.
        labels: (H, W), the classes; of any type (mmseg's of one channel are float).
        ids: What stands in the file for each class
            (:func:`vpt_dense.predicting.results.annotation_ids`): 8 bits, 16 if one is above 255.
    """
    table = np.array(ids, np.uint8 if max(ids) < 256 else np.uint16)
    with files.atomic(files.shortened(path)) as unfinished, unfinished.open('wb') as stream:
        Image.fromarray(table[labels.astype(np.intp, copy=False)]).save(stream, 'png')
