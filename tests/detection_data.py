"""A tiny COCO folder: bright rectangles of two colours on noise, with boxes and masks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ('green', 'red')


def make(folder: Path, count: int = 6, size: tuple[int, int] = (64, 48)) -> Path:
    """Write images/, train.json and val.json; the second image has no box. Ids have gaps."""
    (folder / 'images').mkdir(parents=True)
    rng, width, height = np.random.default_rng(0), *size
    for split in ('train', 'val'):
        images, annotations = [], []
        for number in range(count):
            name = f'{split}_{number}.png'
            pixels = rng.integers(0, 60, (height, width, 3), np.uint8)
            image = 10 + 3 * number
            images.append(dict(id=image, file_name=name, width=width, height=height))
            for _ in range(0 if number == 1 else 3):
                w, h = (int(side) for side in rng.integers(10, 24, 2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                label = int(rng.integers(2))
                pixels[y : y + h, x : x + w] = (20, 220, 20) if label == 0 else (220, 20, 20)
                annotations.append(dict(
                    id=7 * len(annotations) + 1, image_id=image, category_id=(5, 2)[label],
                    bbox=[x, y, w, h], area=w * h, iscrowd=0,
                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
            Image.fromarray(pixels).save(folder / 'images' / name)
        # In another order than NAMES, with a category that nothing is of.
        categories = [dict(id=2, name='red'), dict(id=9, name='blue'), dict(id=5, name='green')]
        (folder / f'{split}.json').write_text(json.dumps(dict(
            images=images, annotations=annotations, categories=categories)))
    return folder
