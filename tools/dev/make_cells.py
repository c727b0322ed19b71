"""Masks of boxes: a segmentation set out of the blood cells of BCCD, in ADE20K's layout.

``python tools/dev/make_cells.py data/bccd data/cells``: a pixel is of the class of the smallest box
that it lies in (1 red cell, 2 white cell, 3 platelet, in the order of the file's categories), else
0. Boxes are no outlines: a score says how well boxes are filled in. The images stay where they are:
data/cells/images has links.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from vpt_dense.errors import ArgumentParser, UserError, main

SPLITS = {'train': 'training', 'val': 'validation', 'test': 'test'}


def run() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, help='COCO folder: images, train.json, ...')
    parser.add_argument('out', type=Path, help='folder to make')
    args = parser.parse_args()
    if args.out.exists():
        raise UserError(f'{args.out} is there already')
    for name, split in SPLITS.items():
        content = json.loads((args.source / f'{name}.json').read_text(encoding='utf-8'))
        places = [args.out / kind / split for kind in ('images', 'annotations')]
        for place in places:
            place.mkdir(parents=True)
        labels = {each['id']: i for i, each in enumerate(content['categories'], 1)}
        print(split, len(content['images']), [each['name'] for each in content['categories']])
        for image in content['images']:
            mask = np.zeros((image['height'], image['width']), np.uint8)
            own = [each for each in content['annotations'] if each['image_id'] == image['id']]
            for box in sorted(own, key=lambda each: -each['bbox'][2] * each['bbox'][3]):
                x, y, width, height = map(round, box['bbox'])
                mask[max(y, 0):y + height, max(x, 0):x + width] = labels[box['category_id']]
            file = Path(image['file_name'])
            (places[0] / file.name).symlink_to((args.source / 'images' / file).resolve())
            cv2.imwrite(str(places[1] / f'{file.stem}.png'), mask)


if __name__ == '__main__':
    main(run)
