"""Tiny folders as torchgeo's data sets want them."""

from pathlib import Path

import numpy as np
from field_data import save
from test_raster import write as write_tiff

SCENES = ('airplane', 'lake', 'wetland')
BANDS = 13
#: Colours of masks, those of DeepGlobe in the order of its labels.
DEEPGLOBE = np.array([[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255],
                      [255, 255, 255], [0, 0, 0]], np.uint8)  # fmt: skip
POTSDAM = np.array([[255, 255, 255], [0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0],
                    [255, 0, 0]], np.uint8)  # fmt: skip
TILES = {'train': ('top_potsdam_2_10', 'top_potsdam_2_11'), 'test': ('top_potsdam_2_13',)}


def make(root: Path) -> Path:
    """``root/deepglobe``, ``loveda``, ``potsdam``, ``resisc45``, ``eurosat``."""
    rng = np.random.default_rng(0)

    def image(bands=3, size=32):
        return rng.integers(0, 256, (size, size, bands), dtype=np.uint8)

    def mask(top, size=32):
        return np.kron(rng.integers(0, top, (4, 4), dtype=np.uint8),
                       np.ones((size // 4, size // 4), np.uint8))

    for split, number in (('training_data', 3), ('test_data', 2)):
        folder = root / 'deepglobe/data' / split
        for i in range(number):
            save(folder / f'images/{7 * i + 1}_sat.jpg', image())
            save(folder / f'masks/{7 * i + 1}_mask.png', DEEPGLOBE[mask(7)])
    for split in ('Train', 'Val', 'Test'):
        for land in ('Rural', 'Urban'):
            folder = root / f'loveda/{split}/{land}'
            save(folder / f'images_png/{len(land) + (land == "Rural")}.png', image())
            if split != 'Test':
                save(folder / f'masks_png/{len(land) + (land == "Rural")}.png', mask(8))
    for names in TILES.values():
        for name in names:
            tile = root / f'potsdam/4_Ortho_RGBIR/{name}_RGBIR.tif'
            tile.parent.mkdir(parents=True, exist_ok=True)
            write_tiff(tile, image(4))
            write_tiff(root / f'potsdam/{name}_label.tif', POTSDAM[mask(6)])
    for split in ('train', 'val', 'test'):
        lists = {'resisc45': [], 'eurosat': []}
        for k, name in enumerate(SCENES):
            for i in range(2):
                file = f'{name}_{split}{i}'
                save(root / f'resisc45/NWPU-RESISC45/{name}/{file}.jpg',
                     (image() // 4 + 60 * k).astype(np.uint8))
                lists['resisc45'].append(f'{file}.jpg')
                tile = (root / 'eurosat/ds/images/remote_sensing/otherDatasets/sentinel_2/tif'
                        / name / f'{file}.tif')
                tile.parent.mkdir(parents=True, exist_ok=True)
                write_tiff(tile, rng.integers(0, 3000, (64, 64, BANDS)).astype(np.uint16))
                lists['eurosat'].append(f'{file}.jpg')
        for kind, names in lists.items():
            (root / f'{kind}/{kind}-{split}.txt').write_text('\n'.join(names) + '\n')
    return root
