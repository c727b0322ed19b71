"""The results of predictions and the interface of predictors, with NumPy alone."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vpt_dense import segments
from vpt_dense.datasets.label_maps import count_pixels, run_lengths


@dataclass(frozen=True)
class Segmentation:
    """The labels of an image.

    Attributes:
        labels: (H, W) uint8, or uint16 where an id is above 255: of each pixel of the original
            image, as it is seen, the id that its class has in the annotations.
        classes: The names of the classes.
        ids: Of each class the id in ``labels``.
        ignored_id: What stands there where the image has no data.
        probabilities: (classes, H, W), float32 or as asked for, of a large image an array on the
            disk; None if they were not asked for.
        leftovers: Files that are of no more use once the labels are written.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ignored_id: int = 255
    probabilities: np.ndarray | None = None
    leftovers: tuple[Path, ...] = ()

    def pixels(self) -> list[int]:
        """How many pixels each class has."""
        return count_pixels(self.labels, self.ids)


@dataclass(frozen=True)
class Classification:
    """The class of an image.

    Attributes:
        label: The position of the most probable class.
        classes: The names of the classes.
        probabilities: (classes,) float32.
    """

    label: int
    classes: tuple[str, ...]
    probabilities: np.ndarray

    @property
    def name(self) -> str:
        """The name of the most probable class."""
        return self.classes[self.label]

    @property
    def score(self) -> float:
        """Its probability."""
        return float(self.probabilities[self.label])

    def top(self, number: int) -> list[tuple[str, float]]:
        """The most probable classes and their probabilities, the first one first."""
        order = np.argsort(-self.probabilities, kind='stable')[:number]
        return [(self.classes[i], float(self.probabilities[i])) for i in order]

    def line(self, number: int) -> dict[str, Any]:
        """The data that are written: the class, and ``number`` of the most probable ones.

        Results of other tasks that are written as lines have the same, ``class`` may be absent.
        """
        return {'class': self.name, 'score': _short(self.score), 'top': [
            {'class': name, 'score': _short(score)} for name, score in self.top(number)]}


@dataclass(frozen=True)
class Detection:
    """What was found in an image, the most certain first.

    Attributes:
        boxes: (N, 4) float32: x1, y1, x2, y2 in pixels of the original image.
        labels: (N,) int64, the positions of their classes.
        scores: (N,) float32, 0 to 1.
        classes: The names of the classes.
        masks: (N, H, W) of True and False; None of a model that finds boxes alone.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    classes: tuple[str, ...]
    masks: np.ndarray | None = None

    def line(self, number: int) -> dict[str, Any]:
        """The data that are written: all boxes, [x, y, width, height], as COCO has them.

        Masks are run lengths, column by column, a list as in COCO's uncompressed form.
        """
        rows = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            row = {'class': self.classes[self.labels[i]], 'score': _short(float(self.scores[i])),
                   'bbox': [round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1)]}
            if self.masks is not None:
                row['segmentation'] = {
                    'size': list(self.masks[i].shape), 'counts': run_lengths(self.masks[i])}
            rows.append(row)
        return {'boxes': rows}


@dataclass(frozen=True)
class Panoptic:
    """The segments of an image.

    Attributes:
        ids: (H, W) int32: of each pixel of the original image the id of its segment; 0: of none.
        labels: (N,) int64, the position of the class of segment 1, 2, ..., N.
        classes: The names of the classes.
        things: How many of the classes, the first ones, are things; the others are stuff.
    """

    ids: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    things: int

    def boxes(self) -> np.ndarray:
        """(N, 4) int64: x1, y1, x2, y2 around each segment, in pixels."""
        return segments.boxes_of(self.ids, len(self.labels))

    def label_map(self) -> np.ndarray:
        """(H, W) int64: of each pixel the position of its class; -1: of no segment."""
        return np.concatenate([[-1], self.labels])[self.ids]

    def line(self, number: int) -> dict[str, Any]:
        """The data that are written: the segments, as COCO has them."""
        return segments.rows_of(self.ids, self.labels, self.classes, self.things)


@dataclass(frozen=True)
class DepthMap:
    """The depth of an image.

    Attributes:
        depth: (H, W) float32: metres at each pixel of the original image, as it is seen.
        scale: How many units of the data set's files are a metre, for files of it.
        farthest: The greatest depth that the model can find, in metres.
    """

    depth: np.ndarray
    scale: float
    farthest: float


@dataclass(frozen=True)
class NormalMap:
    """The normals of surfaces of an image.

    Attributes:
        normals: (H, W, 3) float32: x, y, z of length 1 at each pixel of the original image.
    """

    normals: np.ndarray


@dataclass(frozen=True)
class EdgeMap:
    """The edges of an image.

    Attributes:
        edges: (H, W) float32: at each pixel of the original image how probable an edge is, 0 to 1.
    """

    edges: np.ndarray


@dataclass(frozen=True)
class DistanceMap:
    """How far from an edge the pixels of an image are.

    Attributes:
        distance: (H, W) float32, at each pixel of the original image: in pixels of the image as the
            model takes it, which may be of another size.
        farthest: The greatest distance that the model can find.
        size: (height, width) of the image as the model takes it.
    """

    distance: np.ndarray
    farthest: float
    size: tuple[int, int]


@dataclass(frozen=True)
class SeveralTasks:
    """What a model of several tasks finds in an image.

    Attributes:
        results: Task -> its result: :class:`Segmentation`, :class:`DepthMap`, :class:`NormalMap`,
            :class:`EdgeMap` or :class:`DistanceMap`.
    """

    results: 'Mapping[str, Result]'

    def __getitem__(self, name: str) -> 'Result':
        """The result of a task."""
        return self.results[name]


@dataclass(frozen=True)
class OneTask:
    """One of the tasks of a model of several; to writers of results it is a predictor.

    Attributes:
        task: ``segmentation``, ``depth``, ``normals``, ``edges`` or ``distance``.
        classes: The names of the classes; empty: a map of numbers.
        ids: Of each class the id in label maps.
        ignored_id: What stands there where the image has no data.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
        threshold: The probability from which on a pixel is of the second class, where one channel
            tells two classes apart.
        scale: How many units of the data set's files are a metre (depth).
        farthest: The greatest depth or distance that can be found.
    """

    task: str
    classes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    ignored_id: int = 255
    palette: list[list[int]] | None = None
    threshold: float | None = None
    scale: float = 1.0
    farthest: float | None = None

    def result(self, found: np.ndarray, size: tuple[int, int]) -> 'Result':
        """The result of a map of numbers.

        Args:
            found: (channels, H, W), at the size of the original image.
            size: (height, width) of the image as the model takes it.
        """
        found = np.asarray(found, np.float32)
        if self.task == 'depth':
            return DepthMap(found[0], self.scale, self.farthest)
        if self.task == 'normals':
            return NormalMap(found.transpose(1, 2, 0))
        if self.task == 'edges':
            return EdgeMap(found[0])
        return DistanceMap(found[0], self.farthest, tuple(size))


def _short(score: float) -> float:
    """Six digits: more are noise."""
    return float(f'{score:.6g}')


Result = (Segmentation | Classification | Detection | Panoptic | DepthMap | NormalMap | EdgeMap
          | DistanceMap | SeveralTasks)


def precision(probabilities: bool | str) -> type[np.floating]:
    """The type of probabilities that were asked for.

    Raises:
        ValueError: If there is none of that name.
    """
    known = {True: np.float32, False: np.float32, 'float16': np.float16, 'float32': np.float32}
    if probabilities not in known:
        raise ValueError(
            f"probabilities must be True, False, 'float16' or 'float32', found {probabilities!r}")
    return known[probabilities]


class Predictor(Protocol):
    """The interface that :func:`vpt_dense.predicting.writing.write` needs of a model.

    Attributes:
        task: The name of one of :data:`vpt_dense.tasks.TASKS`.
        classes: The names of the classes.
        ids: Of each class the id in label maps, as in the annotations; elsewhere its position.
        ignored_id: The id of pixels that belong to no class.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
    """

    task: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ignored_id: int
    palette: list[list[int]]

    def describe(self) -> dict[str, Any]:
        """A description for JSON: ``checkpoint`` and ``sha256`` of the file, ..."""
        ...

    def stream(
        self, images: Iterable[Any], probabilities: bool | str = False,
        batch_size: int | None = None,
    ) -> Iterator[Result | Exception]:
        """Predict one image after the other and keep none of them.

        Args:
            images: Paths (and whatever else the predictor takes).
            probabilities: Whether those of every pixel are wanted: 'float16' or 'float32', which is
                what True means.
            batch_size: Images that pass through the model together, at most.

        Yields:
            In the order of the images the result; where one cannot be read, the error.
        """
        ...
