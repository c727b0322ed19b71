"""What an exported detector gives, as boxes, masks and segments of the file: NumPy alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vpt_dense import segments
from vpt_dense.predicting.results import Detection, Panoptic


def found(
    outputs: Sequence[np.ndarray], card: Mapping[str, Any], size: Sequence[int],
    original: Sequence[int],
) -> Detection | Panoptic:
    """What is found in an image.

    Args:
        outputs: Of the graph, see ``vpt_dense.deploy.detectors``.
        card: Of the file.
        size: (height, width) of the image that the graph was given.
        original: Of the file.
    """
    named = dict(zip(card['output']['names'], outputs, strict=True))
    classes, detector = tuple(card['classes']), card['detector']
    if 'things' in detector:
        return _segments(named['logits'], named['masks'], detector, size, original, classes)
    if 'logits' in named:
        return _of_queries(named['logits'], named['masks'], detector, size, original, classes)
    scale = np.array([size[1] / original[1], size[0] / original[0]] * 2, np.float32)
    boxes, masks = named['boxes'] / scale, None
    if 'masks' in named:
        threshold = detector['mask_threshold']
        masks = np.zeros((len(boxes), *original), bool)
        for mask, small, box in zip(masks, named['masks'], boxes, strict=True):
            mask[:] = pasted(small, box, original) >= threshold
    return Detection(boxes, named['labels'], named['scores'], classes, masks)


def pasted(mask: np.ndarray, box: Sequence[float], size: Sequence[int]) -> np.ndarray:
    """A mask (h, w) of a box in an image, read bilinearly at the centres of pixels, 0 outside.

    Args:
        mask: Its values lie at the centres of h x w equal parts of the box.
        box: x1, y1, x2, y2 in pixels.
        size: (height, width) of the image.

    Returns:
        (height, width) float32.
    """
    (height, width), (x1, y1, x2, y2) = mask.shape, box
    rows = _tents(height, float(y1), float(y2), size[0])
    columns = _tents(width, float(x1), float(x2), size[1])
    return rows @ mask.astype(np.float32) @ columns.T


def _tents(parts: int, start: float, end: float, length: int) -> np.ndarray:
    """How much each of ``parts`` places counts in each pixel of a line, (length, parts)."""
    centres = np.arange(length, dtype=np.float32) + np.float32(0.5)
    with np.errstate(divide='ignore', invalid='ignore'):
        shares = (centres - np.float32(start)) / np.float32(end - start)
    shares = np.where(np.isfinite(shares), shares, np.float32(0.5))  # as mmdet: no side at all
    places = shares * parts - np.float32(0.5)
    return np.maximum(1 - abs(places[:, None] - np.arange(parts, dtype=np.float32)), 0)


# --- queries ---------------------------------------------------------------------------------


def _of_queries(
    logits: np.ndarray, masks: np.ndarray, detector: Mapping[str, Any], size: Sequence[int],
    original: Sequence[int], classes: tuple[str, ...],
) -> Detection:
    """The instances of Mask2Former (https://arxiv.org/abs/2112.01527): scores of class and mask."""
    shares = softmax(logits)[:, :-1]
    places = np.argsort(-shares.ravel(), kind='stable')[: detector['max_per_image']]
    labels = places % shares.shape[1]
    enlarge = enlarger(masks.shape[1:], size, original, detector['divisor'])
    scores, boxes, found = [], [], np.zeros((len(places), *original), bool)
    for i, place in enumerate(places):
        values = enlarge(masks[place // shares.shape[1]])
        inside = np.greater(values, 0, out=found[i])
        mean = sigmoid(values[inside]).sum(dtype=np.float64) / (inside.sum() + 1e-6)
        scores.append(shares.ravel()[place] * mean)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        boxes.append(
            [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if rows.size else [0, 0, 0, 0])
    order = np.argsort(-np.array(scores), kind='stable')
    return Detection(
        np.array(boxes, np.float32).reshape(-1, 4)[order], labels[order],
        np.array(scores, np.float32)[order], classes, found[order])


def without_thresholds(card: Mapping[str, Any]) -> dict[str, Any]:
    """A panoptic file's card with which all queries of a class become segments."""
    return {**card, 'detector': {**card['detector'], 'object_mask_thr': 0.0, 'iou_thr': 0.0}}


def _segments(
    logits: np.ndarray, masks: np.ndarray, detector: Mapping[str, Any], size: Sequence[int],
    original: Sequence[int], classes: tuple[str, ...],
) -> Panoptic:
    """The map that queries make together, as mmdet's ``MaskFormerFusionHead`` does.

    Of the queries whose best class is one, and surer than ``object_mask_thr``, each pixel goes to
    the one whose class times mask is largest (Cheng et al., https://arxiv.org/abs/2107.06278,
    section 3.4). A query that keeps less than ``iou_thr`` of its mask is left out. Queries of one
    class of stuff are one segment.
    """
    shares = softmax(logits)
    labels, surest = shares.argmax(1), shares.max(1)
    kept = np.flatnonzero((labels < len(classes)) & (surest > detector['object_mask_thr']))
    enlarge = enlarger(masks.shape[1:], size, original, detector['divisor'])
    best, owner = np.full(original, -1, np.float32), np.full(original, -1)
    inside = np.zeros((len(kept), *original), bool)
    for i, query in enumerate(kept):
        values = sigmoid(enlarge(masks[query]))
        np.greater_equal(values, 0.5, out=inside[i])
        values = values * surest[query]
        better = values > best
        best[better], owner[better] = values[better], i
    found, things = np.full(original, len(classes)), 0
    for i, query in enumerate(kept):
        own, whole, label = owner == i, inside[i].sum(), labels[query]
        area = own.sum()
        if not (area and whole) or area / whole < detector['iou_thr']:
            continue
        if detector['filter_low_score']:
            own &= inside[i]
        is_thing = label < detector['things']
        things += is_thing
        found[own] = label + is_thing * things * segments.OFFSET
    return Panoptic(*segments.found_segments(found, len(classes)), classes, detector['things'])


def enlarger(
    small: Sequence[int], size: Sequence[int], original: Sequence[int], divisor: int
) -> Any:
    """What enlarges a map of the padded image to the original: bilinearly, twice, as mmdet.

    Args:
        small: (h, w) of the map.
        size: Of the image that the graph was given.
        original: Of the file.
        divisor: To a multiple of which images are padded.
    """
    sides = []
    for length, inner, outer in zip(small, size, original, strict=True):
        padded = -(-inner // divisor) * divisor
        whole = mixture(length, padded, False)[:inner]
        sides.append(mixture(inner, outer, False) @ whole if inner != outer else whole)
    rows, columns = sides
    return lambda values: rows @ values @ columns.T


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def sigmoid(values: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * values))


def mixture(source: int, target: int, align_corners: bool) -> np.ndarray:
    """The weights of ``source`` places in each of ``target`` places, (target, source), float32."""
    places = np.arange(target, dtype=np.float32)
    if align_corners:
        places = places * np.float32((source - 1) / max(target - 1, 1))
    else:
        places = np.maximum((places + np.float32(0.5)) * np.float32(source / target)
                            - np.float32(0.5), 0)
    low = np.minimum(places.astype(int), source - 1)
    share = places - low
    mixture = np.zeros((target, source), np.float32)
    index = np.arange(target)
    mixture[index, low] = 1 - share
    mixture[index, np.minimum(low + 1, source - 1)] += share
    return mixture
