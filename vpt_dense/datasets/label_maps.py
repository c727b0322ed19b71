"""Predictions as files of labels, in the ids that the annotations have."""

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image

from vpt_dense import safe_files


def write(
    path: str | Path, labels: np.ndarray, ids: Sequence[int], ignored: int,
    no_data: np.ndarray | None = None,
) -> None:
    """Write a label map as a PNG of one channel, completely or not at all.

    Args:
        path: A name that is too long is shortened.
        labels: (H, W), the classes.
        ids: What stands in the file for each class
            (:func:`annotation_ids`): 8 bits, 16 if one is above 255.
        ignored: What stands there for pixels without data.
        no_data: Where they are, (H, W) bool; None: nowhere.
    """
    path = safe_files.shortened(path)
    with safe_files.atomic(path) as unfinished, unfinished.open('wb') as stream:
        Image.fromarray(to_ids(labels, ids, ignored, no_data)).save(stream, 'png')


def count_pixels(labels: np.ndarray, ids: Sequence[int]) -> list[int]:
    """How many pixels of a label map (H, W) have each of some ids."""
    counts = np.zeros(max(ids) + 1, np.int64)
    step = max(1, 2**22 // labels.shape[1])  # bincount copies what it counts, as int64
    for top in range(0, len(labels), step):
        found = np.bincount(labels[top:top + step].reshape(-1), minlength=len(counts))
        counts += found[:len(counts)]
        safe_files.release(labels)
    return [int(counts[i]) for i in ids]


def annotation_ids(
    num_classes: int, reduce_zero_label: bool = False, label_map: dict[int, int] | None = None
) -> tuple[int, ...]:
    """Undo what data sets do to the labels of annotations.

    Args:
        num_classes: How many classes the model has.
        reduce_zero_label: Whether label 0 was left out and 1 became the first class.
        label_map: {label after that: label that it became}.

    Returns:
        Of each class the id that annotations have for it. Where several became one class, it is
        the one that ``label_map`` names; if that names several, the one that it does not name, or
        the lowest. A class that no annotation has gets an id that no other has.
    """
    label_map = {int(old): new for old, new in (label_map or {}).items()}
    shift = int(bool(reduce_zero_label))
    named: dict[int, list[int]] = {}  # class -> ids that label_map leads to it
    plain: dict[int, list[int]] = {}
    for i in range(max(256, num_classes + shift)):
        # 0 is left out, and 255 with it as long as annotations have 8 bits.
        ignored = shift and (i == 0 or i == 255 > num_classes)
        before = 255 if ignored else i - shift
        if ignored and before not in label_map:
            continue
        into = named if before in label_map else plain
        into.setdefault(label_map.get(before, before), []).append(i)
    ids = []
    for label in range(num_classes):
        ours, others = named.get(label, []), plain.get(label, [])
        ids.append(next(iter(ours if len(ours) == 1 else others or ours), None))
    taken = {
        i for of in (named, plain) for label, found in of.items() if label < num_classes
        for i in found
    }
    for label, i in enumerate(ids):
        if i is None:
            ids[label] = next(i for i in count(label + shift) if i not in taken)
            taken.add(ids[label])
    return tuple(ids)


def ignored_id(
    ids: Sequence[int],
    reduce_zero_label: bool = False,
    ignore_index: int | None = None,
    label_map: dict[int, int] | None = None,
) -> int:
    """The id that annotations have for pixels of no class.

    Args:
        ids: Those of the classes, see :func:`annotation_ids`.
        reduce_zero_label: Whether that is 0.
        ignore_index: The label that is left out of training; None: 255.
        label_map: As in :func:`annotation_ids`.

    Returns:
        0 or ``ignore_index``; or, if a class has that or becomes of it, an id that is left out, or
        else one that is no class's.
    """
    label_map = {int(old): new for old, new in (label_map or {}).items()}
    left_out = 255 if ignore_index is None else ignore_index

    def label(i: int) -> int:
        before = i if not reduce_zero_label else 255 if i in (0, 255) else i - 1
        return label_map.get(before, before)

    wanted = 0 if reduce_zero_label else left_out
    others = (i for i in range(256) if label(i) == left_out)
    return next(i for i in chain((wanted, 255), others, count())
                if i >= 0 and i not in ids and label(i) not in range(len(ids)))


def id_type(ids: Sequence[int], ignored: int) -> np.dtype:
    """The type of label maps: 8 bits, or 16 where an id is above 255."""
    return np.dtype(np.uint8 if max(*ids, ignored) < 256 else np.uint16)


def to_ids(
    labels: np.ndarray, ids: Sequence[int], ignored: int, no_data: np.ndarray | None = None
) -> np.ndarray:
    """Turn classes into ids of annotations.

    Args:
        labels: (H, W), classes; of any type (mmseg's of one channel are float).
        ids: Of each class its id.
        ignored: That of pixels without data.
        no_data: (H, W) bool, where there are none; None: nowhere.

    Returns:
        (H, W) of :func:`id_type`.
    """
    found = np.array(ids, id_type(ids, ignored))[labels.astype(np.intp, copy=False)]
    if no_data is not None:
        found[no_data] = ignored
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """The run lengths of a mask (H, W), column by column, those of False and True in turn."""
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    ends = [0, *edges.tolist(), mask.size]
    runs = np.diff(ends).tolist()
    return runs if runs[-1] else runs[:-1]
