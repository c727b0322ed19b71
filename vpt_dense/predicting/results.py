"""What a prediction is, and what anything that predicts must have: NumPy and nothing else."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Segmentation:
    """The labels of an image.

    Attributes:
        labels: (H, W) uint8, or uint16 where an id is above 255: of each pixel of the original
            image, as it is seen, the id that its class has in the annotations.
        classes: The names of the classes.
        ids: Of each class the id in ``labels``.
        ignored_id: What stands there where the image has no data.
        probabilities: (classes, H, W) float32, of a large image an array on the disk in float16;
            None if they were not asked for.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ignored_id: int = 255
    probabilities: np.ndarray | None = None

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


Result = Segmentation | Classification


class Predictor(Protocol):
    """What :func:`vpt_dense.predicting.writing.write` needs of a model, whatever runs it.

    Attributes:
        task: ``segmentation`` or ``classification``.
        classes: The names of the classes.
        ids: Of each class the id in the annotations; for classification its position.
        ignored_id: The id of pixels that belong to no class.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
    """

    task: str
    classes: tuple[str, ...]
    ids: tuple[int, ...]
    ignored_id: int
    palette: list[list[int]]

    def describe(self) -> dict[str, Any]:
        """What it is, as JSON can hold it: ``checkpoint`` and ``sha256`` of the file, ..."""
        ...

    def stream(
        self, images: Iterable[Any], probabilities: bool = False, batch_size: int | None = None
    ) -> Iterator[Result | Exception]:
        """Predict one image after the other and keep none of them.

        Args:
            images: Paths (and whatever else the predictor takes).
            probabilities: Whether those of every pixel are wanted.
            batch_size: Images that pass through the model together, at most.

        Yields:
            In the order of the images the result; where one cannot be read, the error.
        """
        ...


def count_pixels(labels: np.ndarray, ids: Sequence[int]) -> list[int]:
    """How many pixels of a label map (H, W) have each of some ids."""
    counts = np.zeros(max(ids) + 1, np.int64)
    step = max(1, 2**22 // labels.shape[1])  # bincount copies what it counts, as int64
    for top in range(0, len(labels), step):
        found = np.bincount(labels[top:top + step].reshape(-1), minlength=len(counts))
        counts += found[:len(counts)]
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
    """What label maps hold: 8 bits, or 16 where an id is above 255."""
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
