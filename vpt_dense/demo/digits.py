"""Handwritten digits over textures: a small segmentation data set in ADE20K's folder layout.

The digits are the 1,797 scans of 8x8 pixels that come with scikit-learn (a part of "Optical
Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning Repository,
1998, doi 10.24432/C50P49, CC BY 4.0). They are enlarged, turned, squeezed and coloured, overlap
each other and are covered by bars and spots, over procedural textures, all seen through bright
haze. The scans that a split uses appear in no other split.

The haze is what a backbone pretrained on clear formula images (`formula.py`, whose textures and
colours are used here too) has to adapt to. Without it frozen features fit as they are and there is
little for prompts or biases to mend.
"""

import functools

import cv2
import numpy as np

from vpt_dense.demo.formula import TEXTURES, coloured, finish, place, smooth_noise, texture_values

DIGITS_VERSION = 2
"""Raised whenever the same seed would give other images."""

CLASSES = ('background', *(str(digit) for digit in range(10)))
"""Name of every label id."""

SPLITS = {'training': 1000, 'validation': 250, 'test': 250}
"""Number of images of every split."""

TRANSMISSION = (0.2, 0.3)
"""Part of the light that comes through the haze, drawn for every image."""

AIRLIGHT = (220.0, 240.0)
"""Grey level of the haze, drawn for every image."""

SHARES = {'training': 0.6, 'validation': 0.2, 'test': 0.2}
"""Share of the 1,797 scans that each split draws from."""


@functools.lru_cache(maxsize=1)
def _scans():
    """The scans as (1797, 8, 8) float32 in [0, 1] and their digits (1797,) int64."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    return bunch.images.astype(np.float32) / 16, bunch.target


def split_scans(seed: int) -> dict[str, np.ndarray]:
    """Deals the scans out to the splits.

    Args:
        seed: Seed of the data set.

    Returns:
        Split -> sorted indices into `load_digits()`, disjoint.
    """
    order = np.random.default_rng([DIGITS_VERSION, seed]).permutation(len(_scans()[1]))
    ends = np.cumsum([round(share * len(order)) for share in SHARES.values()])
    return {split: np.sort(part)
            for split, part in zip(SHARES, np.split(order, ends[:-1]), strict=True)}


def _cover(rng, image, labels):
    """Hides a part of the image behind a bar or a spot, which count as background."""
    size = labels.shape[0]
    mask = np.zeros((size, size), np.uint8)
    if rng.random() < 0.5:
        ends = rng.uniform(0, size, (2, 2)).astype(int).tolist()
        cv2.line(mask, ends[0], ends[1], 1, int(rng.integers(2, 6)))
    else:
        centre = rng.uniform(0, size, 2).astype(int).tolist()
        axes = rng.uniform(0.03, 0.1, 2) * size
        cv2.ellipse(mask, centre, axes.astype(int).tolist(), rng.uniform(0, 180), 0, 360, 1, -1)
    values = texture_values(rng, TEXTURES[rng.integers(len(TEXTURES))], size)
    paint = coloured(rng, values, 0.5)
    image[mask > 0] = paint[mask > 0]
    labels[mask > 0] = 0


def _haze(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Veils an image: `I = J t + A (1 - t)` with transmission t and airlight A.

    The model of atmospheric scattering (K. He, J. Sun, X. Tang, "Single Image Haze Removal Using
    Dark Channel Prior", CVPR 2009, equation 1), the same at every pixel.

    Args:
        rng: Source of randomness.
        image: (H, W, 3) uint8.

    Returns:
        (H, W, 3) uint8.
    """
    transmission, airlight = rng.uniform(*TRANSMISSION), rng.uniform(*AIRLIGHT)
    veiled = image * transmission + airlight * (1 - transmission)
    return np.round(veiled).astype(np.uint8)


def digits_sample(seed: int, split: str, index: int, size: int = 96) -> tuple:
    """One image with its labels, a function of its arguments only.

    Args:
        seed: Seed of the data set.
        split: One of `SPLITS`.
        index: Number of the image inside the split.
        size: Height and width, pixels.

    Returns:
        image (size, size, 3) uint8 in BGR order, label ids (size, size) uint8 and the
        indices of the scans in it (list[int]).
    """
    scans, digits = _scans()
    own = split_scans(seed)[split]
    rng = np.random.default_rng([DIGITS_VERSION, seed, list(SPLITS).index(split), index])
    texture = TEXTURES[rng.integers(len(TEXTURES))]
    calm = rng.random() < 0.5  # light digits on a dark ground; else any colour on any other
    image = coloured(rng, texture_values(rng, texture, size), rng.uniform(0.15, 0.7),
                     high=110 if calm else 255)
    labels = np.zeros((size, size), np.uint8)
    used = []
    for _ in range(rng.integers(2, 5)):
        used.append(int(rng.choice(own)))
        box = int(size * rng.uniform(0.36, 0.68))
        mask = cv2.resize(np.pad(scans[used[-1]], 1), (box, box), interpolation=cv2.INTER_CUBIC)
        mask = np.clip(1.6 * mask, 0, 1)
        place(rng, image, labels, mask, int(digits[used[-1]]) + 1, max_angle=25, contrast=60,
              low=140 if calm else 0)
    for _ in range(rng.integers(1, 3)):
        _cover(rng, image, labels)
    if rng.random() < 0.3:  # a shadow of one tone over a part of the image
        shade = smooth_noise(rng, size, 4) > 0.6
        image[shade] *= rng.uniform(0.5, 0.8)
    return _haze(rng, finish(rng, image, noise=14)), labels, used
