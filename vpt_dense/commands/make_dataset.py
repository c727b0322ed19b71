"""Makes one of the project's own data sets as a folder in ADE20K's layout.

``python tools/make_dataset.py digits data/digits``
``python tools/make_dataset.py formula data/formula``
"""

import os
from functools import partial

from rich.progress import track

from vpt_dense import outputs
from vpt_dense.demo import digits, formula
from vpt_dense.demo.folder import write_folder
from vpt_dense.errors import ArgumentParser, UserError


def digits_sample(seed, size, split, index):
    """Image and labels of one digits sample (at module level, to be picklable)."""
    return digits.digits_sample(seed, split, index, size)[:2]


def formula_sample(seed, size, split, index):
    """Image and labels of one formula sample; validation counts on after training."""
    return formula.formula_sample(seed, index + formula.SPLITS['training'] * (split != 'training'),
                                  size)


KINDS = {
    'digits': (digits_sample, digits.SPLITS, digits.DIGITS_VERSION),
    'formula': (formula_sample, formula.SPLITS, formula.FORMULA_VERSION),
}


def make(
    kind: str, out: str, seed: int = 0, size: int = 96, workers: int | None = None,
    force: bool = False,
):
    """Makes a data set if it is not there yet and says what was done.

    Args:
        kind: 'digits' or 'formula'.
        out: Folder to make.
        seed: Seed of the data set.
        size: Height and width of the images, pixels.
        workers: Number of processes, default: one per CPU.
        force: Replace another version or seed of it.
    """
    sample, splits, version = KINDS[kind]
    meta = dict(name=kind, version=version, seed=seed, size=size, splits=splits)
    try:
        written = write_folder(
            out, partial(sample, seed, size), splits, meta,
            track=partial(track, description=f'making {out}'), workers=workers or os.cpu_count(),
            force=force,
        )
    except FileExistsError as error:
        raise UserError(str(error)) from error
    counts = ', '.join(f'{count} {split}' for split, count in splits.items())
    print(f'{out}: {counts} images of {size}x{size}, seed {seed}'
          f' ({"written" if written else "already there"})')


def main(argv=None):
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('kind', choices=KINDS)
    parser.add_argument('out', help='folder to make')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--size', type=int, default=96, help='height and width in pixels')
    parser.add_argument('--workers', type=int, help='processes (default: one per CPU)')
    outputs.add_force_option(parser)
    args = parser.parse_args(argv)
    if args.seed < 0 or args.size < 48:
        raise UserError(f'--seed must be 0 or more and --size 48 or more, found {args.seed} and '
                        f'{args.size}')
    make(args.kind, args.out, args.seed, args.size, args.workers, args.force)

