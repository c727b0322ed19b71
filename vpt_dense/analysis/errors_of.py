"""Where a model errs: the confusion of classes, and the images that it does worst on."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Errors:
    """Counts of labels and predictions.

    Attributes:
        classes: Their number, K.
        matrix: (K, K), rows are the truth, columns the predictions; pixels, or images.
        images: Name -> its own (K, K).
    """

    classes: int
    matrix: Tensor = field(init=False)
    images: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has been counted."""
        self.matrix = torch.zeros(self.classes, self.classes, dtype=torch.long)

    def add(self, name: str, labels: Tensor, predicted: Tensor, ignored: int | None) -> None:
        """Count an image: integers of one shape, any; labels beyond the classes are left out."""
        kept = (labels >= 0) & (labels < self.classes)
        if ignored is not None:
            kept &= labels != ignored
        pairs = labels[kept].long() * self.classes + predicted[kept].long()
        own = torch.bincount(pairs, minlength=self.classes**2).view(self.classes, self.classes)
        self.images[name] = own
        self.matrix += own

    def worst(self) -> list[tuple[str, float]]:
        """Images and their scores, the worst first; without labels they are left out."""
        scores = {name: mean_iou(own) for name, own in self.images.items() if own.sum()}
        return sorted(scores.items(), key=lambda item: item[1])


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class in per cent, (K,); NaN where it is nowhere."""
    hits = matrix.diagonal().double()
    return 100 * hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def mean_iou(matrix: Tensor) -> float:
    """Mean over the classes that are there, in per cent; mmseg's mIoU."""
    return iou(matrix).nanmean().item()


def accuracy(matrix: Tensor) -> float:
    """Share of what is right, in per cent; mmseg's aAcc, and the top-1 accuracy of images."""
    return (100 * matrix.diagonal().sum().double() / matrix.sum()).item()
