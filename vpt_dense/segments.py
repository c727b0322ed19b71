"""The segments of panoptic maps: their ids, their colours and COCO's form. NumPy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: In maps of mmdet's the label is the rest by it, the number of a thing how often it goes in.
OFFSET = 1000


def to_ids(colours: np.ndarray) -> np.ndarray:
    """Ids (H, W) int32 of colours (H, W, 3), R first, uint8."""
    r, g, b = (colours[..., i].astype(np.int32) for i in range(3))
    return r + 256 * g + 65536 * b


def to_colours(ids: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3), R first, uint8, of ids (H, W)."""
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def found_segments(found: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The segments of a map of mmdet's (H, W), of ``number`` classes.

    Returns:
        Ids (H, W) int32, 1 to N, 0 of no segment; and the label of each, (N,) int64.
    """
    keys, places = np.unique(found, return_inverse=True)
    labels = keys % OFFSET
    known = labels < number
    ids = np.where(known, np.cumsum(known), 0).astype(np.int32)
    return ids[places.reshape(found.shape)], labels[known].astype(np.int64)


def true_segments(
    semantic: np.ndarray | None, masks: np.ndarray, labels: np.ndarray, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """The segments of a sample of mmdet's; returns as :func:`vpt_dense.segments.found_segments`.

    Args:
        semantic: Labels (H, W), ``number`` and above: no segment; None: there is no such map.
        masks: Of things, (T, H, W).
        labels: Of things, (T,).
        number: Of classes.
    """
    ids, kinds = np.zeros(masks.shape[1:] if semantic is None else semantic.shape, np.int32), []
    if semantic is not None:
        ids, kinds = found_segments(semantic.astype(np.int64), number)
        kinds = kinds.tolist()
    for mask, label in zip(masks, labels, strict=True):
        kinds.append(int(label))
        ids[mask.astype(bool)] = len(kinds)
    return ids, np.array(kinds, np.int64)


def as_coco(
    records: Sequence[tuple[Any, str, Mapping[str, Any]]], classes: Sequence[str], things: int
) -> dict[str, Any]:
    """What a JSON of predictions holds.

    Args:
        records: Of each image its id, its path, and ``file_name`` (of the PNG), ``width``,
            ``height``, ``segments`` (:func:`vpt_dense.segments.rows_of`).
        classes: Names; the first ones are ``things``.
        things: How many.
    """
    return dict(
        images=[dict(id=name, file_name=path, width=each['width'], height=each['height'])
                for name, path, each in records],
        annotations=[dict(image_id=name, file_name=each['file_name'],
                          segments_info=each['segments']) for name, _, each in records],
        categories=[dict(id=label, name=name, isthing=int(label < things))
                    for label, name in enumerate(classes)])


def boxes_of(ids: np.ndarray, number: int) -> np.ndarray:
    """(N, 4) int64: x1, y1, x2, y2 in pixels around the segments 1 to ``number`` of ids (H, W)."""
    found = np.zeros((number, 4), np.int64)
    for i in range(number):
        own = ids == i + 1
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        found[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return found


def rows_of(
    ids: np.ndarray, labels: np.ndarray, classes: Sequence[str], things: int
) -> dict[str, Any]:
    """What is written of a map: ``height``, ``width``, and ``segments`` as COCO has them.

    Args:
        ids: Of each pixel the id of its segment, 1 to N, (H, W); 0: of none.
        labels: Of each segment, (N,).
        classes: Names by label; the first ones are ``things``.
        things: How many.
    """
    areas = np.bincount(ids.ravel(), minlength=len(labels) + 1)
    boxes = boxes_of(ids, len(labels)).tolist()
    return {
        'height': ids.shape[0], 'width': ids.shape[1],
        'segments': [
            {'id': i, 'class': classes[label], 'category_id': int(label),
             'isthing': int(label < things), 'area': int(areas[i]),
             'bbox': [x1, y1, x2 - x1, y2 - y1], 'iscrowd': 0}
            for i, (label, (x1, y1, x2, y2)) in enumerate(zip(labels, boxes, strict=True), 1)]}
