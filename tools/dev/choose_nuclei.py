"""Chooses the part of the nuclei of the 2018 Data Science Bowl that is in samples/nuclei.

``python tools/dev/choose_nuclei.py FOLDER samples/nuclei``

FOLDER holds the whole set in ADE20K's layout: ``images/{training,validation,test}/*.jpg`` and
``annotations/.../*.png`` with 0 for the background and 1 for nuclei. The middle 256x256 pixels of
every image are looked at. Left out is where nuclei cover less than 2 % of them, and what is bright
and grey (cells under plain light: the test split has none). The rest are two kinds: fluorescence is
dark, stained tissue is bright and coloured. Of each kind the wanted number is taken, from images of
each original size and hue in turn, in the order of their names, which are hashes.
"""

import shutil
import sys
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np

SIZE = 256
WANTED = {
    'training': dict(fluorescence=50, stained=50),
    'validation': dict(fluorescence=14, stained=14),
    'test': dict(fluorescence=14, stained=10),
}


def middle(array: np.ndarray) -> np.ndarray:
    """The middle of an image (H, W, ...), SIZE pixels in both directions."""
    top, left = ((length - SIZE) // 2 for length in array.shape[:2])
    return array[top:top + SIZE, left:left + SIZE]


def kind(image: np.ndarray) -> str | None:
    """What a BGR image (H, W, 3) shows; None: neither."""
    if image.mean() < 100:
        return 'fluorescence'
    return 'stained' if np.ptp(image.astype(int), axis=2).mean() > 8 else None


def hue(image: np.ndarray) -> str:
    """The hue of a stained image's ground, roughly."""
    blue, _, red = np.median(image.reshape(-1, 3), 0)
    return 'lilac' if blue - red > 15 else 'pink' if red - blue > 15 else 'pale'


def choose(folder: Path, split: str) -> list[tuple]:
    """(name, image, mask) of what is taken of a split."""
    groups = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / 'images' / split).glob('*.jpg')):
        whole = cv2.imread(str(path))
        mask = cv2.imread(str(folder / 'annotations' / split / f'{path.stem}.png'), -1)
        if min(mask.shape) < SIZE:
            continue
        image, mask = middle(whole), middle(mask)
        which = kind(image)
        if which and mask.mean() >= 0.02:
            name = f'{which}_{path.stem}'
            groups[which][whole.shape, hue(image)].append((name, image, mask))
    taken = []
    for which, count in WANTED[split].items():
        turns = zip_longest(*groups[which].values())
        found = [one for turn in turns for one in turn if one][:count]
        print(f'{split}: {len(found)} of {which}')
        taken += found
    return taken


def main():
    """Command line."""
    folder, out = map(Path, sys.argv[1:])
    for split in WANTED:
        for part in ('images', 'annotations'):
            shutil.rmtree(out / part / split, ignore_errors=True)
            (out / part / split).mkdir(parents=True)
        for name, image, mask in choose(folder, split):
            cv2.imwrite(str(out / 'images' / split / f'{name}.jpg'), image,
                        [cv2.IMWRITE_JPEG_QUALITY, 92])
            cv2.imwrite(str(out / 'annotations' / split / f'{name}.png'), mask,
                        [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == '__main__':
    main()
