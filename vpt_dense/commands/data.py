"""Data sets of protocols: what is missing of VTAB-1k or FGVC, lists of few images, lists made anew.

``vpt-dense data check vtab-1k`` (``fgvc``), ``data few CONFIG --per-class 1 2 4``, ``data lists
FOLDER`` (of a fine-grained set), ``data vtab SOURCE OUT`` (any set in VTAB-1k's layout), ``data
coco IMAGES MASKS OUT`` (boxes and masks for detection, of masks of instances or classes), ``data
panoptic IMAGES MASKS OUT`` (things and stuff, of masks of classes).
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_dense.errors import ArgumentParser, UserError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')

    add = actions.add_parser('check', help='what is there of VTAB-1k or FGVC').add_argument
    add('collection', choices=['vtab-1k', 'fgvc'])
    add('--root', help='its folder (default: data/COLLECTION)')
    add('--json', action='store_true', help='print everything, as JSON')

    few = actions.add_parser('few', help='lists of few training images, for ann_file')
    add = few.add_argument
    add('config', help='whose training images they are')
    add('--per-class', type=int, nargs='+', default=[], metavar='N',
        help='so many images of each class: 1 2 4 8 16 (classification)')
    add('--share', type=float, nargs='+', default=[], metavar='PART',
        help='of the images, of every class the same: 0.01 0.1 0.5')
    add('--holding', type=int, nargs='+', default=[], metavar='N',
        help='images of which at least so many hold each class (segmentation)')
    add('--seeds', type=int, nargs='+', default=[0], help='of the draws (default: 0)')
    add('--out', type=Path, default=Path('lists'), help='folder of the lists (default: lists)')
    few.add_config_options()

    add = actions.add_parser(
        'lists', help='train.json, val.json, test.json of a fine-grained set').add_argument
    add('folder', help='CUB, NABirds, Oxford Flowers, Stanford Dogs or Cars, as published')
    add('--seed', type=int, default=0, help='of the images held out (default: 0)')

    add = actions.add_parser('vtab', help="any set in VTAB-1k's layout").add_argument
    add('source', help='an image folder, or torchvision::DTD')
    add('out', help='folder that is made')
    add('--root', default='', help="where torchvision's set is; nothing is downloaded")
    add('--seed', type=int, default=0, help='of the 1,000 images (default: 0)')

    add = actions.add_parser(
        'coco', help="masks of instances or of classes in COCO's form, for detection").add_argument
    add('images', help='folder of images')
    add('masks', help='folder of masks of the same names')
    add('out', help='the JSON that is written')
    add('--only', default='', metavar='FOLDER', help='of the sub-folders of both this one alone')
    add('--instances', metavar='NAME', help='each id above 0 is an instance of the class NAME')
    add('--classes', nargs='+', metavar='ID=NAME',
        help='what is connected of pixels of the id is an instance of NAME')
    add('--min-area', type=int, default=1, metavar='N',
        help='leave instances of fewer pixels out (default: none)')

    add = actions.add_parser(
        'panoptic', help="masks of classes in COCO's panoptic form: things and stuff").add_argument
    add('images', help='folder of images')
    add('masks', help='folder of masks of the same names, ids of classes')
    add('out', help='the JSON that is written; the PNGs: panoptic/ beside it')
    add('--only', default='', metavar='FOLDER', help='of the sub-folders of all this one alone')
    add('--stuff', nargs='+', default=[], metavar='ID=NAME', help='classes without instances')
    add('--things', nargs='+', default=[], metavar='ID=NAME',
        help='classes of things; what is connected is one')
    add('--instances', metavar='MASKS',
        help='folder of masks of ids of instances: of things what has one id is one')
    add('--min-area', type=int, default=1, metavar='N',
        help='leave things of fewer pixels out (default: none)')
    args = parser.parse_args(argv)
    if any(seed < 0 for seed in [*getattr(args, 'seeds', ()), getattr(args, 'seed', 0)]):
        raise UserError('a seed must not be negative')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; exit code 1 if something is missing."""
    args = parse_args(argv)
    if not dict(check=check, few=few, lists=lists, vtab=vtab, coco=coco,
                panoptic=panoptic)[args.action](args):
        sys.exit(1)


def check(args: argparse.Namespace) -> bool:
    """Print what is there, and every fault; whether there is none."""
    from rich.console import Console
    from rich.markup import escape

    from vpt_dense import tables
    from vpt_dense.datasets import collections

    root = args.root or f'data/{args.collection}'
    found = collections.check(args.collection, root)
    faults = sum(bool(each['problems']) for each in found)
    if args.json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return not faults

    def tell(pair: Sequence[int | None]) -> str:
        have, wanted = pair
        said = '-' if have is None else f'{have:,}'
        return said if have == wanted else f'{said} of {wanted:,}'

    rows = [[each['name'], tell(each['classes']), *map(tell, each['images'].values()),
             str(len(each['problems'])) if each['problems'] else 'ok'] for each in found]
    columns = ['', 'classes', *found[0]['images'], 'faults']
    tables.show(columns, rows, f'{args.collection} in {root}')
    console = Console(soft_wrap=True)
    for each in found:
        for line in each['problems']:
            console.print(f'[red]{each["name"]}[/]: {escape(line)}', highlight=False)
    print(f'{len(found) - faults} of {len(found)} are whole')
    return not faults


def few(args: argparse.Namespace) -> bool:
    """Write the lists."""
    from vpt_dense import config, logging, safe_files
    from vpt_dense.datasets import few_images

    if not (args.per_class or args.share or args.holding):
        raise UserError('say which lists: --per-class 1 2 4, --share 0.1 or --holding 1')
    for key, values in (('--per-class', args.per_class), ('--holding', args.holding)):
        if any(value < 1 for value in values):
            raise UserError(f'{key} must be at least 1, found {min(values)}')
    if any(not 0 < part <= 1 for part in args.share):
        raise UserError('--share must be above 0 and at most 1')
    logging.filter_warnings()
    with contextlib.redirect_stdout(io.StringIO()):  # the packages print when they are imported
        cfg = config.load(args.config, args.cfg_options, args.method, trains=False)
        training = few_images.Training(cfg)
    for seed in args.seeds:
        for kind, values in (('per_class', args.per_class), ('share', args.share),
                             ('holding', args.holding)):  # fmt: skip
            for value in values:
                chosen, note = training.draw(kind, value, seed)
                file = args.out / f'{kind}-{value}_seed-{seed}.txt'
                text = training.text(chosen)
                if file.exists() and file.read_text(encoding='utf-8') != text:
                    raise UserError(f'{file} is there already, of other images; take another --out')
                safe_files.write_text(file, text)
                print(f'{file}: {len(chosen)} of {len(training)} images{note}')
    print(f'a config takes one with {training.usage}')
    return True


def lists(args: argparse.Namespace) -> bool:
    """Write the lists of a fine-grained set."""
    from vpt_dense.datasets import convert

    with contextlib.redirect_stdout(io.StringIO()):
        found = convert.fine_grained(args.folder, args.seed)
    for name, number in found.items():
        print(f'{Path(args.folder, name)}.json: {number:,} images')
    return True


def vtab(args: argparse.Namespace) -> bool:
    """Write a set in VTAB-1k's layout."""
    from rich.console import Console
    from rich.progress import track

    from vpt_dense.datasets import convert

    console = Console(stderr=True)
    found = convert.to_vtab(
        args.source, args.out, args.root, args.seed,
        lambda items, description: track(items, description, console=console))
    for name, number in found.items():
        print(f'{Path(args.out, name)}.txt: {number:,} images')
    print("drawn by this command: not the images of the papers' VTAB-1k")
    return True


def coco(args: argparse.Namespace) -> bool:
    """Write annotations in COCO's form."""
    from rich.console import Console
    from rich.progress import track

    from vpt_dense.datasets import instances

    if (args.instances is None) == (args.classes is None):
        raise UserError(
            'say what the masks hold: --instances NAME (ids of instances) or --classes ID=NAME '
            '(ids of classes)')
    if args.min_area < 1:
        raise UserError(f'--min-area must be at least 1, found {args.min_area}')
    classes = None if args.classes is None else _named('--classes', args.classes)
    console = Console(stderr=True)
    found = instances.to_coco(
        args.images, args.masks, args.out, args.only, args.instances, classes, args.min_area,
        lambda items, description: track(items, description, console=console))
    told = ', '.join(f'{number:,} of {key.removeprefix("class ")}' for key, number in found.items()
                     if key.startswith('class '))
    small = f'; {found["left_out"]:,} were smaller' if found['left_out'] else ''
    print(f'{args.out}: {found["images"]:,} images, {told}{small}')
    return True


def panoptic(args: argparse.Namespace) -> bool:
    """Write annotations in COCO's panoptic form."""
    from rich.console import Console
    from rich.progress import track

    from vpt_dense.datasets import instances

    if not args.things and not args.stuff:
        raise UserError('say what the masks hold: --things ID=NAME and --stuff ID=NAME')
    if args.min_area < 1:
        raise UserError(f'--min-area must be at least 1, found {args.min_area}')
    if args.instances and not args.things:
        raise UserError('--instances: there are no --things that they would be of')
    console = Console(stderr=True)
    found = instances.to_panoptic(
        args.images, args.masks, args.out, _named('--stuff', args.stuff),
        _named('--things', args.things), args.instances, args.only, args.min_area,
        lambda items, description: track(items, description, console=console))
    told = ', '.join(f'{number:,} of {key.removeprefix("class ")}' for key, number in found.items()
                     if key.startswith('class '))
    small = f'; {found["left_out"]:,} things were smaller' if found['left_out'] else ''
    crowds = f'; {found["crowds"]:,} of them crowds' if found['crowds'] else ''
    print(f'{args.out}: {found["images"]:,} images, {told}{crowds}{small}')
    return True


def _named(option: str, pairs: Sequence[str]) -> dict[int, str]:
    """Id -> name of a class, of ``ID=NAME``."""
    found: dict[int, str] = {}
    for each in pairs:
        number, _, name = each.partition('=')
        if not number.isdecimal() or not name or int(number) in found:
            raise UserError(f'{option} {each}: write ID=NAME, each id once: 8=car')
        found[int(number)] = name
    return found
