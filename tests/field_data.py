"""Tiny folders that lie as public data sets do once they are unpacked."""

from pathlib import Path

import numpy as np
from PIL import Image
from test_raster import write as write_tiff

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


def satellites(root: Path) -> Path:
    """``root/sen1floods11``, ``hls_burn_scars``, ``loveda``, ``potsdam``, ``isaid``, ``eurosat``:

    TIFFs of some bands, masks with labels below 0, lists.
    """
    rng = np.random.default_rng(0)

    def tiff(path, bands, dtype, values=None, size=(32, 32)):
        path.parent.mkdir(parents=True, exist_ok=True)
        if values is not None:
            array = np.kron(rng.choice(values, (4, 4, 1)), np.ones((8, 8, 1))).astype(dtype)
        else:
            array = (rng.random((*size, bands)) * (1 if dtype == 'float32' else 3000)).astype(dtype)
        write_tiff(path, array)

    floods = root / 'sen1floods11/v1.1'
    for split, names in dict(train=['Ghana_1', 'India_2'], valid=['USA_3'], test=['Spain_4'],
                             bolivia=['Bolivia_5']).items():  # fmt: skip
        for name in names:
            hand = floods / 'data/flood_events/HandLabeled'
            tiff(hand / f'S2Hand/{name}_S2Hand.tif', 13, 'uint16')
            tiff(hand / f'LabelHand/{name}_LabelHand.tif', 1, 'int16', [-1, 0, 1])
        listed = floods / f'splits/flood_handlabeled/flood_{split}_data'
        listed.parent.mkdir(parents=True, exist_ok=True)
        if split == 'train':  # as terratorch has it; the others as their authors give them
            listed.with_suffix('.txt').write_text('\n'.join(names) + '\n')
        else:
            listed.with_suffix('.csv').write_text(
                ''.join(f'{name}_S1Hand.tif,{name}_LabelHand.tif\n' for name in names))
    for split in ('training', 'validation'):
        name = root / f'hls_burn_scars/{split}/subsetted_512x512_HLS.S30.T10SDH.2020248.v1.4'
        tiff(Path(f'{name}_merged.tif'), 6, 'float32')
        tiff(Path(f'{name}.mask.tif'), 1, 'int16', [-1, 0, 1])

    def picture(path):
        save(path, rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))

    def mask(path, top):
        save(path, np.kron(rng.integers(0, top, (4, 4), dtype=np.uint8), np.ones((8, 8), np.uint8)))

    for split in ('Train', 'Val', 'Test'):
        for land in ('Rural', 'Urban'):
            picture(root / f'loveda/{split}/{land}/images_png/7.png')
            if split != 'Test':
                mask(root / f'loveda/{split}/{land}/masks_png/7.png', 8)
    for split in ('train', 'val'):
        picture(root / f'potsdam/img_dir/{split}/2_10_0_0_512_512.png')
        mask(root / f'potsdam/ann_dir/{split}/2_10_0_0_512_512.png', 7)
        picture(root / f'isaid/img_dir/{split}/P0003_0_896_0_896.png')
        mask(root / f'isaid/ann_dir/{split}/P0003_0_896_0_896_instance_color_RGB.png', 16)
    for split, names in dict(train=['Forest_1', 'River_2'], val=['SeaLake_3'],
                             test=['AnnualCrop_4']).items():  # fmt: skip
        for name in names:
            tiff(root / 'eurosat/ds/images/remote_sensing/otherDatasets/sentinel_2/tif'
                 / name.partition('_')[0] / f'{name}.tif', 13, 'uint16', size=(64, 64))
        (root / f'eurosat/eurosat-{split}.txt').write_text(
            ''.join(f'{name}.jpg\n' for name in names))
    return root


def eyes(root: Path) -> Path:
    """``root/drive`` and ``root/refuge``."""
    rng = np.random.default_rng(0)
    for split in ('training', 'test'):
        for i in (21, 22):
            image = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            save(root / f'drive/{split}/images/{i}_{split}.tif', image)
            mask = rng.integers(0, 2, (32, 40), dtype=np.uint8) * 255
            save(root / f'drive/{split}/1st_manual/{i}_manual1.gif', mask)
            save(root / f'drive/{split}/mask/{i}_{split}_mask.gif', mask)
    for split in ('training', 'validation', 'test'):
        save(root / f'refuge/images/{split}/g0001.png',
             rng.integers(0, 256, (32, 40, 3), dtype=np.uint8))
        save(root / f'refuge/annotations/{split}/g0001.png',
             rng.integers(0, 3, (32, 40), dtype=np.uint8))
    return root
