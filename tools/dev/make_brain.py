"""Slices of the average brain MNI ICBM152 (2009a, symmetric), in ADE20K's layout.

``pip install nilearn``, then ``python tools/dev/make_brain.py data/brain``

nilearn's wheel holds the T1 image and the maps of grey and white matter (copyright 1993-2009 Louis
Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University; free
to use, copy, modify and distribute with this notice). A pixel is of the tissue whose map is the
larger one, where it is 0.5 or more. Splits are ranges of height with gaps between them: all of one
brain, so a score says how well a model fills in neighbouring slices, not how it does on another
patient.
"""

from pathlib import Path

import cv2
import numpy as np

from vpt_dense.errors import ArgumentParser, UserError, main

#: Slices, counted from below, 1 mm apart.
SPLITS = {'training': range(20, 90), 'validation': range(95, 114), 'test': range(119, 139)}


def run() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out', type=Path, help='folder to make')
    parser.add_argument('--nifti', action='store_true',
                        help='a volume for each split, with its place in mm, in place of slices')
    args = parser.parse_args()
    try:
        from nilearn import datasets
    except ImportError as error:
        raise UserError('the brain comes with nilearn: pip install nilearn') from error
    if args.out.exists():
        raise UserError(f'{args.out} is there already')
    template = datasets.load_mni152_template(resolution=1)
    image, grey, white = template.get_fdata(), *(
        load(resolution=1).get_fdata() for load in (
            datasets.load_mni152_gm_template, datasets.load_mni152_wm_template))
    labels = np.zeros(image.shape, np.uint8)
    labels[(grey >= 0.5) & (grey >= white)] = 1
    labels[(white >= 0.5) & (white > grey)] = 2
    for split, heights in SPLITS.items():
        for folder, volume in ((f'images/{split}', image * 255), (f'annotations/{split}', labels)):
            (args.out / folder).mkdir(parents=True)
            if args.nifti:
                part = template.slicer[:, :, heights.start:heights.stop]
                array = volume[:, :, heights.start:heights.stop].round().astype(np.uint8)
                type(part)(array, part.affine).to_filename(args.out / folder / 'brain.nii')
                continue
            for z in heights:
                picture = np.rot90(volume[:, :, z]).round().astype(np.uint8)  # the forehead on top
                path = args.out / folder / f'{z:03}.png'
                if not cv2.imwrite(str(path), picture):
                    raise UserError(f'{path} could not be written')
    print(', '.join(f'{len(heights)} {split}' for split, heights in SPLITS.items()),
          'slices in', args.out)


if __name__ == '__main__':
    main(run)
