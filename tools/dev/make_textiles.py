"""Simulated textiles without a fault, with a local and with a global one, a folder for each class.

``pip install conformal-clip-data``, then ``python tools/dev/make_textiles.py data/textiles``

The wheel holds the grey images of 250x250 pixels (MIT; Megahed et al., 2025,
https://arxiv.org/abs/2501.12596). Of each class the first 100 train, the next 40 validate and the
next 360 test, in the order of their names.
"""

import shutil
from pathlib import Path

from vpt_dense.errors import ArgumentParser, UserError, main

#: Images of each class.
SPLITS = {'train': range(100), 'val': range(100, 140), 'test': range(140, 500)}


def run() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to make')
    args = parser.parse_args()
    try:
        from conformal_clip_data import textile_simulated_root
    except ImportError as error:
        raise UserError(
            'the textiles come with conformal-clip-data: pip install conformal-clip-data'
        ) from error
    if args.out.exists():
        raise UserError(f'{args.out} is there already')
    for name in ('nominal', 'local', 'global'):
        images = sorted((textile_simulated_root() / name).glob('*.jpg'))
        for split, numbers in SPLITS.items():
            folder = args.out / split / name
            folder.mkdir(parents=True)
            for number in numbers:
                shutil.copy(images[number], folder)
    print(', '.join(f'{len(numbers)} {split}' for split, numbers in SPLITS.items()),
          'images a class in', args.out)


if __name__ == '__main__':
    main(run)
