"""A tiny panoptic folder: rectangles of things on two kinds of ground, made by the converter."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vpt_dense.datasets import instances

#: Things first, as labels are.
NAMES = ('box', 'disc', 'floor', 'wall')


def make_masks(folder: Path, count: int = 4) -> Path:
    """Write images, masks of classes (0 wall, 1 floor, 2 box, 3 disc, 9 void), ids of things."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('images', 'masks', 'ids'):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            labels = np.zeros((48, 64), np.uint8)
            labels[24:] = 1
            ids = np.zeros((48, 64), np.uint8)
            for i in range(3):
                y, x = (int(n) for n in rng.integers(0, (34, 50)))
                labels[y : y + 12, x : x + 12] = 2 + i % 2
                ids[y : y + 12, x : x + 12] = i + 1
            labels[:3, :5] = 9
            ids[:3, :5] = 0
            colours = np.array([(40, 40, 90), (90, 60, 30), (20, 220, 20), (220, 20, 20)] + [
                (0, 0, 0)] * 6, np.int64)[labels] + rng.integers(0, 30, (48, 64, 1))
            for kind, pixels in (('images', colours.clip(0, 255).astype(np.uint8)),
                                 ('masks', labels), ('ids', ids)):
                Image.fromarray(pixels).save(folder / kind / split / f'{number}.png')
    return folder


def make(folder: Path) -> Path:
    """Write images/, panoptic/, train.json, val.json; category ids have gaps and another order."""
    make_masks(folder)
    for split in ('train', 'val'):
        file = folder / f'{split}.json'
        instances.to_panoptic(
            folder / 'images', folder / 'masks', file, {0: 'wall', 1: 'floor'},
            {2: 'box', 3: 'disc'}, folder / 'ids', split)
        content = json.loads(file.read_text())
        new = {1: 7, 2: 3, 3: 12, 4: 5}
        for category in content['categories']:
            category['id'] = new[category['id']]
        content['categories'].sort(key=lambda each: -each['id'])  # wall and floor in between
        for annotation in content['annotations']:
            for segment in annotation['segments_info']:
                segment['category_id'] = new[segment['category_id']]
        file.write_text(json.dumps(content))
    return folder
