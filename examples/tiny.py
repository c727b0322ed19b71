"""What `--tiny` uses in place of downloaded weights and data: a small model at random, shapes."""

from pathlib import Path

import numpy as np
from PIL import Image

#: For ``vpt_dense.create_*``: a DINOv3 of 64 channels and 3 blocks, at random.
MODEL = dict(
    pretrained=False, img_size=64, model_options=dict(embed_dim=64, depth=3, num_heads=2))


def _shape(rng: np.random.Generator, bright: bool) -> tuple[np.ndarray, np.ndarray]:
    """An image (64, 64, 3) with a bright or a dark box on noise, and the box as a mask."""
    image = rng.integers(90, 166, (64, 64, 3)).astype(np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    top, left = rng.integers(0, 32, 2)
    box = slice(top, top + 32), slice(left, left + 32)
    image[box], mask[box] = 255 if bright else 0, 1
    return image, mask


def images_and_masks(folder: str | Path, number: int = 40) -> tuple[Path, Path]:
    """Write folders ``images`` and ``masks`` of PNGs of equal names: 1 is the box."""
    rng = np.random.default_rng(0)
    places = Path(folder, 'images'), Path(folder, 'masks')
    for place in places:
        place.mkdir(parents=True)
    for i in range(number):
        for place, pixels in zip(places, _shape(rng, bright=bool(i % 2)), strict=True):
            Image.fromarray(pixels).save(place / f'{i:03}.png')
    return places


def image_folder(folder: str | Path, number: int = 20) -> Path:
    """Write ``{train,val}/{bright,dark}/*.png``."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('bright', 'dark'):
            place = Path(folder, split, name)
            place.mkdir(parents=True)
            for i in range(number):
                Image.fromarray(_shape(rng, name == 'bright')[0]).save(place / f'{i:03}.png')
    return Path(folder)
