"""Pictures of a few images of an evaluation: what they are, what was predicted. For reports.

The images are spread over the data set and the same in every run on it, so that methods can be
compared on them. They are small: an evaluation gets no slower by them.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vpt_dense import segments
from vpt_dense.visualization import (
    colour_depth,
    colour_normals,
    colour_numbers,
    depth_range,
    make_palette,
    segment_panel,
    to_picture,
)

#: How many images, and the long side that they have at most, in pixels.
COUNT, SIDE = 8, 320
#: An image none of which is brighter, of 255, is too dark to be seen.
_DARK = 96
#: Pixels that are counted at a time: of huge images too little memory is taken to notice.
_BLOCK = 1 << 22


def places(number: int, count: int = COUNT) -> list[int]:
    """The positions of ``count`` of ``number`` images, spread evenly; the first and the last too.

    Fewer images: all of them.
    """
    return sorted({round(i) for i in np.linspace(0, number - 1, min(count, number))})


def is_bgr(preprocessor: Mapping[str, Any], bands: int) -> bool:
    """Whether images come in the order BGR: the config of the model's data preprocessor knows."""
    return bands == 3 and bool(preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb'))


class Samples:
    """Gathers the pictures of one evaluation after the other.

    Args:
        rank: Of this process.
        processes: How many there are; a sampler deals images out to them in turn.
    """

    def __init__(self, rank: int = 0, processes: int = 1) -> None:
        self._rank, self._processes = rank, processes
        self.wanted: set[int] = set()  # positions in the data set
        self._seen = 0
        self.found: list[dict[str, Any]] = []

    def start(self, number: int) -> None:
        """Begin an evaluation of a number of images."""
        self.wanted, self._seen, self.found = set(places(number)), 0, []

    def stop(self) -> None:
        """Take no more of this evaluation."""
        self.wanted, self.found = set(), []

    def take(
        self, inputs: Any, outputs: Sequence[Any], preprocessor: Mapping[str, Any],
        name: Callable[[Any, int], str], tell: Callable[[Any], dict[str, Any]],
    ) -> None:
        """Keep the wanted images of a batch.

        Args:
            inputs: What the data set gave: images (C, H, W), a list or a tensor, or of test-time
                augmentation a list of versions of them.
            outputs: A data sample for each image.
            preprocessor: Config of the model's data preprocessor.
            name: (data sample, position in the data set) -> what the image is called.
            tell: Data sample -> what is kept of it beside the image, as JSON can hold it; ``size``
                (height, width) if it is not that of the input.
        """
        while isinstance(inputs[0], (list, tuple)) or inputs[0].ndim > 3:
            inputs = inputs[0]  # of test-time augmentation: the first version
        for i, sample in enumerate(outputs):
            position = self._seen * self._processes + self._rank
            self._seen += 1
            if position in self.wanted:
                image, told = inputs[i], tell(sample)
                # Label maps have the size of the file, whatever the model was given.
                size = told.pop('size', image.shape[-2:])
                height, width = map(int, size)
                self.found.append({
                    'position': position,
                    'name': name(sample, position),
                    'height': height,
                    'width': width,
                    'image': jpeg(image, (height, width), is_bgr(preprocessor, len(image))),
                    **told,
                })


# --- what is told of a sample, by task -------------------------------------------------------


def segmentation(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of a segmented image.

    Args:
        sample: With ``pred_sem_seg`` (1, H, W), and ``gt_sem_seg`` unless there is no mask.
        meta: Of the data set: ``classes``, ``palette``.
        ignored: The label that is left out.

    Returns:
        ``truth`` and ``prediction``, PNGs as data URLs (truth: None without a mask); ``labels``,
        the classes that occur in them; ``IoU``, the mean over the classes that occur in the image,
        in percent (None without a mask, or where all of it is ignored); ``size`` (height, width).
    """
    number = len(meta['classes'])
    palette = meta.get('palette') or make_palette(number)
    prediction = _map(sample.pred_sem_seg)
    if sample.get('no_data') is not None:
        prediction = np.where(np.asarray(sample.no_data), -1, prediction.astype(np.int64))
    truth = _map(sample.gt_sem_seg) if sample.get('gt_sem_seg') is not None else None
    told = {'size': prediction.shape, 'truth': None, 'IoU': None}
    if truth is not None:
        told['IoU'] = mean_iou(prediction, truth, number, ignored)
        small = _shrunk(truth)
        if ignored is not None:
            small = np.where(small == ignored, -1, small.astype(np.int64))
        told['truth'] = png(small, palette[:number])
    shown = [_shrunk(labels) for labels in (prediction, truth) if labels is not None]
    found = np.unique(np.concatenate([part.astype(np.int64).ravel() for part in shown]))
    told['prediction'] = png(shown[0], palette[:number])
    told['labels'] = [int(i) for i in found if 0 <= i < number and i != ignored]
    return told


def classification(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of a classified image.

    Args:
        sample: With ``pred_label``, ``pred_score`` and perhaps ``gt_label``.
        meta: Of the data set: ``classes``.
        ignored: Not used.

    Returns:
        ``prediction`` and ``truth``, names of classes (truth: None without labels); ``score`` of
        the first predicted class, 0 to 1; ``right`` (None without labels).
    """
    classes = meta.get('classes')
    labels = {key: sample.get(key).tolist() for key in ('pred_label', 'gt_label')
              if sample.get(key) is not None}  # fmt: skip
    names = {key: [str(classes[i]) if classes else str(i) for i in value]
             for key, value in labels.items()}  # fmt: skip
    score = sample.get('pred_score')
    first = labels['pred_label'][:1]
    return {
        'prediction': names['pred_label'],
        'truth': names.get('gt_label'),
        'score': round(float(score[first[0]]), 4) if score is not None and first else None,
        'right': sorted(labels['pred_label']) == sorted(labels['gt_label'])
        if 'gt_label' in labels else None,
    }


#: The score from which on a box is shown.
_SHOWN = 0.3


def detection(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of an image in which things were found.

    Args:
        sample: With ``pred_instances`` and perhaps ``gt_instances``, in pixels of the file.
        meta: Of the data set: ``classes``, ``palette``.
        ignored: Not used.

    Returns:
        As :func:`segmentation`; the pictures are the frames of boxes, and masks. Of predictions
        those of a score of 0.3 and more. ``IoU`` is None.
    """
    number, size = len(meta['classes']), tuple(sample.metainfo['ori_shape'])
    palette = [list(map(int, colour)) for colour in meta.get('palette') or make_palette(number)]
    told: dict[str, Any] = {'size': size, 'truth': None, 'IoU': None}
    found: set[int] = set()
    for key, part in (('truth', 'gt_instances'), ('prediction', 'pred_instances')):
        things = sample.get(part)
        if things is None or 'bboxes' not in things:
            continue
        boxes = things.bboxes
        boxes = np.asarray(getattr(boxes, 'tensor', boxes).cpu(), np.float64).reshape(-1, 4)
        labels = things.labels.cpu().numpy()
        kept = np.arange(len(labels))
        if 'scores' in things:
            kept = np.flatnonzero(things.scores.cpu().numpy() >= _SHOWN)
        masks = things.get('masks')
        if masks is not None:
            masks = masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks.cpu().numpy()
        told[key] = png(_frames(boxes[kept], labels[kept], size,
                                None if masks is None else masks[kept]), palette[:number])
        found.update(labels[kept].tolist())
    told['labels'] = sorted(found)
    return told


def panoptic(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of an image whose segments were found.

    Args:
        sample: With ``pred_panoptic_seg`` and perhaps ``gt_sem_seg`` and ``gt_instances``, in
            pixels of the file.
        meta: Of the data set: ``classes``, ``palette``.
        ignored: Not used.

    Returns:
        As :func:`segmentation`; between segments the pictures are transparent, and ``IoU`` is None.
    """
    number, things = len(meta['classes']), sample.gt_instances if 'gt_sem_seg' in sample else None
    palette = [list(map(int, colour)) for colour in meta.get('palette') or make_palette(number)]
    found = segments.found_segments(sample.pred_panoptic_seg.sem_seg[0].cpu().numpy(), number)
    told: dict[str, Any] = {'size': found[0].shape, 'truth': None, 'IoU': None}
    parts = {'prediction': found}
    if things is not None:
        parts['truth'] = segments.true_segments(
            sample.gt_sem_seg.sem_seg[0].cpu().numpy(), things.masks.to_ndarray(),
            things.labels.cpu().numpy(), number)
    labels: set[int] = set()
    for key, (ids, own) in parts.items():
        panel = segment_panel(None, _shrunk(ids), own)
        told[key] = png(np.where(panel.edges, -1, panel.labels), palette[:number])
        labels.update(own.tolist())
    told['labels'] = sorted(labels)
    return told


def depth(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of an image whose depth was found.

    Args:
        sample: With ``pred_depth_map`` (1, H, W) and perhaps ``gt_depth_map``, in metres.
        meta: Not used.
        ignored: Not used.

    Returns:
        As :func:`segmentation`; the pictures are colours of depth, in the scale of the truth, and
        ``IoU`` is None.
    """
    maps = [None if sample.get(key) is None else _shrunk(_map(sample.get(key)).astype(np.float32))
            for key in ('gt_depth_map', 'pred_depth_map')]
    limits = depth_range(*maps)
    return _told(sample.pred_depth_map, *(
        None if each is None else colour_depth(each, limits) for each in maps))


def normals(sample: Any, meta: Mapping[str, Any], ignored: int | None) -> dict[str, Any]:
    """What a report shows of an image whose normals were found; as :func:`depth`."""
    return _told(sample.pred_normal_map, *(
        None if sample.get(key) is None else colour_normals(np.stack(
            [_shrunk(each) for each in sample.get(key).data.float().cpu().numpy()], axis=2))
        for key in ('gt_normal_map', 'pred_normal_map')))


def several_tasks(
    sample: Any, meta: Mapping[str, Any], ignored: int | None
) -> dict[str, Any]:
    """What a report shows of an image of which several tasks were predicted.

    Args:
        sample: With ``pred_NAME_map`` of each task, as
            :class:`vpt_dense.segmentors.MultiTaskEstimator` gives them, and perhaps
            ``gt_NAME_map``.
        meta: Of the data set: ``task_classes``, or ``classes`` and ``palette`` of the task ``seg``.
        ignored: The label of the classes that is left out.

    Returns:
        ``size``, and ``tasks``: name -> what a model of this task alone shows, with ``classes`` and
        ``palette``. Truth that is not known is black, or transparent.
    """
    told: dict[str, Any] = {'tasks': {}}
    for key in sorted(sample.keys()):
        if not (key.startswith('pred_') and key.endswith('_map')):
            continue
        name, found, truth = key[5:-4], sample.get(key), sample.get(f'gt_{key[5:]}')
        told['size'] = tuple(found.shape[-2:])
        own: dict[str, Any] = {'classes': None, 'palette': None}
        if found.kind == 'segmentation':
            classes = (meta.get('task_classes') or {}).get(name)
            palette = None if classes or name != 'seg' else meta.get('palette')
            classes = classes or (meta.get('classes') if name == 'seg' else None) or [
                str(i) for i in range(found.number)]
            own = {'classes': list(classes), 'palette': palette or make_palette(len(classes))}
            view = {'pred_sem_seg': found, 'gt_sem_seg': truth, 'no_data': sample.get('no_data')}
            own |= segmentation(_View(view), own, ignored)
        elif found.kind in ('depth', 'normals'):
            kind = {'depth': 'depth', 'normals': 'normal'}[found.kind]
            view = {f'pred_{kind}_map': found, f'gt_{kind}_map': truth}
            own |= (depth if kind == 'depth' else normals)(_View(view), meta, ignored)
        else:
            highest = 1.0 if found.kind == 'edges' else found.farthest
            maps = [None if each is None else _shrunk(_map(each).astype(np.float32))
                    for each in (truth, found)]
            if maps[0] is not None and found.kind == 'edges':
                maps[0] = np.where(maps[0] > 1, -1, maps[0])  # 255: not known
            own |= _told(found, *(None if each is None else colour_numbers(each, highest)
                                  for each in maps))
        own.pop('size')
        told['tasks'][name] = own
    return told


class _View(dict):
    """What a task finds of a sample under the names of a model of its own."""

    __getattr__ = dict.__getitem__


def _told(found: Any, truth: np.ndarray | None, prediction: np.ndarray) -> dict[str, Any]:
    """Pictures, RGB, of a map of numbers."""
    urls = [None if each is None else _url(Image.fromarray(each), 'png')
            for each in (truth, prediction)]
    return {'size': tuple(found.shape[-2:]), 'truth': urls[0], 'prediction': urls[1], 'IoU': None,
            'labels': []}


def _frames(
    boxes: np.ndarray, labels: np.ndarray, size: tuple[int, int], masks: np.ndarray | None
) -> np.ndarray:
    """Frames of boxes, and masks, as a label map in the size in which it is shown; -1: nothing."""
    height, width = small_size(size)
    drawn = np.full((height, width), -1, np.int32)
    scale = np.array([width / size[1], height / size[0]] * 2)
    for i, (box, label) in enumerate(zip(boxes * scale, labels, strict=True)):
        if masks is not None:
            drawn[_shrunk(masks[i]).astype(bool)] = int(label)
        x1, y1, x2, y2 = (int(round(float(side))) for side in box)
        cv2.rectangle(drawn, (x1, y1), (max(x1, x2 - 1), max(y1, y2 - 1)), int(label), 2)
    return drawn


def mean_iou(
    prediction: np.ndarray, truth: np.ndarray, number: int, ignored: int | None
) -> float | None:
    """The mean over the classes that occur of intersection over union, in percent.

    Args:
        prediction: (H, W) integers.
        truth: (H, W) integers.
        number: Of classes.
        ignored: The label of the truth that is left out.

    Returns:
        It, rounded to two decimals; None if nothing is labelled.
    """
    both, either = np.zeros(number, np.int64), np.zeros(number, np.int64)
    rows = max(1, _BLOCK // max(1, truth.shape[1]))
    for top in range(0, len(truth), rows):
        labels, found = (part[top : top + rows].ravel().astype(np.int64)
                         for part in (truth, prediction))  # fmt: skip
        kept = (labels >= 0) & (labels < number)
        kept &= labels != (-1 if ignored is None else ignored)
        labels, found = labels[kept], found[kept]
        same = np.bincount(labels[labels == found], minlength=number)
        inside = found[(found >= 0) & (found < number)]
        both += same
        either += np.bincount(labels, minlength=number) - same
        either += np.bincount(inside, minlength=number)
    occurs = either > 0
    return round(100 * float(np.mean(both[occurs] / either[occurs])), 2) if occurs.any() else None


# --- pictures as text ------------------------------------------------------------------------


def jpeg(image: Any, size: Sequence[int], bgr: bool) -> str:
    """An image as the data URL of a small JPEG; a dark one, as of fluorescence, is brightened.

    Args:
        image: Tensor (C, H, W), bands of any number and depth.
        size: (height, width) that it has without the pipeline; it says the proportions.
        bgr: Whether its bands are in the order BGR.
    """
    step = max(1, min(image.shape[1:]) // (4 * SIDE))
    pixels = image[:, ::step, ::step].cpu().numpy().transpose(1, 2, 0)
    height, width = small_size(size)
    picture = to_picture(pixels, bgr)
    brightest = np.percentile(picture, 99.9)
    if 0 < brightest < _DARK:
        picture = cv2.convertScaleAbs(picture, alpha=255 / brightest)  # to 255 at most
    shrinks = height < pixels.shape[0]
    picture = cv2.resize(picture, (width, height),
                         interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return _url(Image.fromarray(picture), 'jpeg', quality=82)


def png(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> str:
    """A label map as the data URL of a PNG: what is no class is transparent.

    Args:
        labels: (H, W) integers.
        palette: [R, G, B] by label.
    """
    number = len(palette)
    known = (labels >= 0) & (labels < number)
    colours = np.asarray([*palette, (0, 0, 0)], np.uint8)
    index = np.where(known, labels, number)
    if number >= 256:
        alpha = np.where(known, 255, 0).astype(np.uint8)[..., None]
        return _url(Image.fromarray(np.concatenate([colours[index], alpha], axis=2)), 'png')
    image = Image.fromarray(index.astype(np.uint8), 'P')
    image.putpalette(colours.ravel().tolist())
    return _url(image, 'png', transparency=number, optimize=True)


def small_size(size: Sequence[int]) -> tuple[int, int]:
    """The size (height, width) in which an image is shown."""
    factor = min(1, SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _shrunk(labels: np.ndarray) -> np.ndarray:
    """A label map in the size in which it is shown: the labels at the middles of its pixels."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for old, new in zip(labels.shape, small_size(labels.shape), strict=True)
    )
    return labels[rows[:, None], columns]


def _map(data: Any) -> np.ndarray:
    """The label map (H, W), also of an image that is one pixel high."""
    return data.data.reshape(data.data.shape[-2:]).cpu().numpy()


def _url(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f'data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}'
