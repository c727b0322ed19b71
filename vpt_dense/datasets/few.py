"""Few images of a training set, drawn by a seed: so many of each class, or a share."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from vpt_dense.errors import UserError


def per_class(labels: Sequence[int], classes: Sequence[str], number: int, seed: int) -> list[int]:
    """So many images of each class.

    Args:
        labels: Of each image.
        classes: Their names.
        number: Of images a class.
        seed: Of the order of the images; the first ones of each class are taken, so that fewer
            images are a part of more of them.

    Returns:
        Indices of the images, ascending.

    Raises:
        UserError: If a class has fewer.
    """
    chosen: list[int] = []
    for label, own in _by_class(labels, seed).items():
        chosen += own[:number]
    counts = np.bincount(np.asarray(labels, int), minlength=len(classes))
    if counts.min() < number:
        least = int(counts.argmin())
        raise UserError(
            f'--per-class {number}: class {classes[least]} has {counts[least]} images')
    return sorted(chosen)


def share(labels: Sequence[int], part: float, seed: int) -> list[int]:
    """A share of the images, the same of every class and at least one of each.

    Args:
        labels: Of each image; of images without a class each 0.
        part: Above 0 and at most 1.
        seed: As :func:`per_class`.

    Returns:
        Indices of the images, ascending. They are at most half an image a class off the share.
    """
    return sorted(i for own in _by_class(labels, seed).values()
                  for i in own[: max(1, math.floor(part * len(own) + 0.5))])


def _by_class(labels: Sequence[int], seed: int) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for i in np.random.default_rng(seed).permutation(len(labels)):
        found.setdefault(int(labels[i]), []).append(int(i))
    return found


def holding(
    present: Sequence[Mapping[int, int] | Sequence[int]], classes: Sequence[str], number: int,
    seed: int,
) -> tuple[list[int], dict[str, int]]:  # fmt: skip
    """Images of which at least so many hold each class: few shots of segmentation.

    Goes through the images in the order of the seed, and takes one that holds a class which too few
    of those taken before hold.

    Args:
        present: The labels in each mask.
        classes: The names of labels 0, 1, ...; other labels do not count.
        number: Of images that hold each class.
        seed: Of the order.

    Returns:
        Indices of the images, ascending; and, by name, how many images hold those classes that
        fewer images hold, all of which are taken.
    """
    counts = dict.fromkeys(range(len(classes)), 0)
    chosen = []
    for i in np.random.default_rng(seed).permutation(len(present)):
        own = [label for label in present[i] if label in counts]
        if any(counts[label] < number for label in own):
            chosen.append(int(i))
            for label in own:
                counts[label] += 1
    return sorted(chosen), {classes[label]: count for label, count in counts.items()
                            if count < number}
