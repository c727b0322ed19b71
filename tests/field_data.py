"""Tiny folders that lie as public data sets do once they are unpacked."""

from pathlib import Path

import numpy as np
from PIL import Image

#: Cityscapes' label table: id -> train id (createTrainIdLabelImgs of its scripts).
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11,
             25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def save(path: Path, array: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(path)


def streets(root: Path, size: tuple[int, int] = (28, 56), seed: int = 0) -> Path:
    """``root/cityscapes``, ``bdd100k``, ``acdc`` and ``gtav``, with images of all ids."""
    rng = np.random.default_rng(seed)

    def image():
        return rng.integers(0, 256, (*size, 3), dtype=np.uint8)

    def ids(top=35):
        return np.kron(rng.integers(0, top, (4, 8), dtype=np.uint8),
                       np.ones((size[0] // 4, size[1] // 8), np.uint8))

    for split in ('train', 'val'):
        for i, city in enumerate(('aachen', 'bonn')):
            name = f'{split}/{city}/{city}_00000{i}_000019'
            save(root / f'cityscapes/leftImg8bit/{name}_leftImg8bit.png', image())
            save(root / f'cityscapes/gtFine/{name}_gtFine_labelIds.png', ids())
            save(root / f'cityscapes/gtFine/{name}_gtFine_instanceIds.png', ids())
        save(root / f'bdd100k/images/10k/{split}/0004a4c0-d4dff0ad.jpg', image())
        labels = ids(20)
        save(root / f'bdd100k/labels/sem_seg/masks/{split}/0004a4c0-d4dff0ad.png',
             np.where(labels == 19, np.uint8(255), labels))
        for weather in ('fog', 'night', 'rain', 'snow'):
            for kind in (split, f'{split}_ref'):
                name = f'{weather}/{kind}/GOPR0475/GOPR0475_frame_000041'
                save(root / f'acdc/rgb_anon/{name}_rgb_anon.png', image())
            name = f'{weather}/{split}/GOPR0475/GOPR0475_frame_000041'
            labels = ids(20)
            save(root / f'acdc/gt/{name}_gt_labelTrainIds.png',
                 np.where(labels == 19, np.uint8(255), labels))
    for i in range(2):
        save(root / f'gtav/images/0000{i}.png', image())
        save(root / f'gtav/labels/0000{i}.png', ids(), palette=True)
    return root
