"""Small classification sets out of other sets: cells, membranes, streets, digits.

``python tools/dev/make_patches.py cells data/bccd data/cells``, and likewise
``membranes data/membrane data/membranes``, ``streets data/camvid data/streets`` and
``digits - data/digits-8x8``.

- cells: boxes of blood smears (COCO JSON: train.json, val.json, test.json, images/; BCCD, MIT),
  with a quarter of the longer side around them; red cells, white cells, platelets.
- membranes: patches of 64x64 of microscope images (images/, labels/; ISBI 2012), by what their
  middle is on; the first 20 images are for training, 4 for validation, 6 for the test.
- streets: patches of 48x48 of CamVid (ADE20K's layout) of which nine tenths are of one class.
- digits: scikit-learn's handwritten digits, 8x8 pixels.

At most 100 images of each class train, 40 validate, 100 test, drawn by seed 0.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from vpt_dense.errors import ArgumentParser, UserError, main

#: Most images of each class.
SPLITS = {'train': 100, 'val': 40, 'test': 100}
#: CamVid's classes that cover patches often enough.
STREETS = {0: 'sky', 1: 'building', 3: 'road', 4: 'pavement', 5: 'tree', 8: 'car'}

Patches = Iterator[tuple[str, np.ndarray]]  # class, image


def cells(root: Path, split: str, draw: np.random.Generator) -> Patches:
    """Blood cells, a box each."""
    content = json.loads((root / f'{split}.json').read_text(encoding='utf-8'))
    names = {each['id']: each['name'] for each in content['categories']}
    files = {each['id']: each['file_name'] for each in content['images']}
    for i in draw.permutation(len(content['annotations'])):
        found = content['annotations'][i]
        image = cv2.imread(str(root / 'images' / files[found['image_id']]))
        x, y, width, height = found['bbox']
        half = 0.75 * max(width, height)
        rows, columns = (slice(max(0, round(middle - half)), round(middle + half))
                         for middle in (y + height / 2, x + width / 2))
        patch = image[rows, columns]
        if min(patch.shape[:2]) >= 8:
            yield names[found['category_id']], patch


def membranes(root: Path, split: str, draw: np.random.Generator) -> Patches:
    """Patches by the label of their middle."""
    files = sorted((root / 'images').iterdir())
    own = {'train': files[:20], 'val': files[20:24], 'test': files[24:]}[split]
    images = [(cv2.imread(str(file)),
               cv2.imread(str(root / 'labels' / file.name), cv2.IMREAD_GRAYSCALE)) for file in own]
    while True:
        image, label = images[draw.integers(len(images))]
        y, x = (int(draw.integers(32, side - 32)) for side in label.shape)
        yield 'cell' if label[y, x] else 'membrane', image[y - 32 : y + 32, x - 32 : x + 32]


def streets(root: Path, split: str, draw: np.random.Generator) -> Patches:
    """Patches of one class."""
    folder = {'train': 'training', 'val': 'validation', 'test': 'test'}[split]
    files = sorted((root / 'images' / folder).iterdir())
    while True:
        file = files[draw.integers(len(files))]
        mask = cv2.imread(
            str(root / 'annotations' / folder / f'{file.stem}.png'), cv2.IMREAD_GRAYSCALE)
        image = cv2.imread(str(file))
        for _ in range(20):
            y, x = (int(draw.integers(side - 48)) for side in mask.shape)
            labels, counts = np.unique(mask[y : y + 48, x : x + 48], return_counts=True)
            if counts.max() >= 0.9 * 48 * 48 and labels[counts.argmax()] in STREETS:
                yield STREETS[int(labels[counts.argmax()])], image[y : y + 48, x : x + 48]


def digits(root: Path, split: str, draw: np.random.Generator) -> Patches:
    """Handwritten digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    own = {'train': order[:1000], 'val': order[1000:1300], 'test': order[1300:]}[split]
    for i in own:
        yield str(found.target[i]), (found.images[i] * 15.9375).astype(np.uint8)


KINDS = {'cells': (cells, 3), 'membranes': (membranes, 2), 'streets': (streets, len(STREETS)),
         'digits': (digits, 10)}  # fmt: skip


def run() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('source', type=Path, help='folder of the other set')
    parser.add_argument('out', type=Path, help='folder to make')
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f'{args.out} is there already')
    patches, classes = KINDS[args.kind]
    for number, (split, most) in enumerate(SPLITS.items()):
        counts: dict[str, int] = {}
        for name, image in patches(args.source, split, np.random.default_rng(number)):
            count = counts.setdefault(name, 0)
            if count < most:
                folder = args.out / split / name
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f'{count:03}.png'), image)
                counts[name] += 1
            if len(counts) == classes and min(counts.values()) == most:
                break
        print(split, dict(sorted(counts.items())))


if __name__ == '__main__':
    main(run)
