"""Look through the data of a config or a folder: files, sizes, labels. Exit code 1 if it is wrong.

CONFIG checks what a run of it would read. FOLDER is a segmentation set (images/training,
annotations/training, ...), an image folder (train/<class>/, val/<class>/), a COCO folder
(images/, train.json, ...) or a panoptic one (panoptic/, images/, train.json, ...).
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, logging


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('source', metavar='CONFIG|FOLDER', help='a config file or a data folder')
    parser.add_config_options()
    parser.add_argument(
        '--stats', action='store_true',
        help='print mean and std of every band, to paste into a config, and the share of each class'
    )  # fmt: skip
    parser.add_argument('--json', action='store_true', help='print everything, as JSON')
    return parser.parse_args(argv)


def look(args: argparse.Namespace) -> dict:
    """Check what the command line names, with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    from vpt_dense.datasets import checks

    def bar(items, description='', total=None):
        return track(items, description=description, total=total, console=Console(stderr=True))

    if '::' not in args.source and not args.source.endswith(('.py', '.yaml', '.yml', '.json')):
        if args.cfg_options or args.method:
            key = '--cfg-options' if args.cfg_options else '--method'
            raise errors.UserError(f'{key} needs a config, not a folder')
        return checks.check_folder(args.source, bar, args.stats)

    from vpt_dense import config

    logging.filter_warnings()
    cfg = config.load(args.source, args.cfg_options, args.method, trains=False)
    with contextlib.redirect_stdout(io.StringIO()):  # the stack prints while it is imported
        return checks.check_config(cfg, bar, args.stats)


def cells(split: dict) -> dict[str, str]:
    """The cells of the table for a split, by row."""
    sizes = split['image_sizes']
    rows = {'images': f'{split["images"]:,}'}
    if 'masks' in split:
        rows['masks'] = f'{split["masks"]:,}'
        rows['images without a mask'] = f'{len(split["images_without_mask"]):,}'
    if sizes:
        for key in ('min', 'max'):
            rows[f'{"smallest" if key == "min" else "largest"} image'] = '{}x{}'.format(*sizes[key])
        rows['most common size'] = '{}x{} ({:.0%})'.format(
            *sizes['most_common'], sizes['most_common_share']
        )
    kinds = sorted(split['image_kinds'].items(), key=lambda item: -item[1])
    rows['bands and depth'] = ', '.join(
        kind if len(kinds) == 1 else f'{kind} ({count:,})' for kind, count in kinds
    )
    if 'masks' in split:
        rows['labels'] = '{} to {}'.format(*split['labels']) if split['labels'] else '-'
        outside = split['ids_outside']
        rows['masks with ids outside'] = '-' if outside is None else f'{len(outside):,}'
        rows['masks with colours'] = f'{len(split["multi_channel_masks"]):,}'
        share = split['ignored_share']
        rows['ignored pixels'] = '-' if share is None else f'{share:.1%}'
    if 'maps' in split:
        rows['maps'] = f'{split["maps"]:,}'
        rows['known pixels'] = '-' if split['known'] is None else f'{split["known"]:.1%}'
        if depth := split.get('depth'):
            rows['depth (m)'] = '{min:.3g} to {max:.3g}, middle {median:.3g}'.format(**depth)
    if 'boxes' in split:
        rows['boxes'] = f'{split["boxes"]:,}'
        rows['images without a box'] = f'{len(split["images_without_boxes"]):,}'
        rows['masks of instances'] = f'{split["instance_masks"]:,}'
    if 'segments' in split:
        rows['segments'] = f'{split["segments"]:,}'
        rows['things'] = f'{split["things"]:,}'
        rows['crowds'] = f'{split["crowds"]:,}'
        rows['pixels of no segment'] = (
            '-' if split['void_share'] is None else f'{split["void_share"]:.1%}')
    if split.get('per_class'):
        counts = list(split['per_class'].values())
        what = next((key for key in ('boxes', 'segments') if key in split), 'images')
        rows[f'{what} a class'] = f'{min(counts):,} to {max(counts):,}'
    rows['unreadable files'] = f'{len(split["unreadable"]):,}'
    return rows


def paste(statistics: dict) -> str:
    """Mean and std as a config takes them."""
    figures = {
        key: '[' + ', '.join('nan' if v is None else f'{v:.6g}' for v in statistics[key]) + ']'
        for key in ('mean', 'std')
    }
    text = f'mean={figures["mean"]}, std={figures["std"]}'
    if statistics['loader'] == 'LoadBands':
        more = ''.join(f'{key}={statistics[key]}, ' for key in ('bands', 'nodata')
                       if key in statistics)  # fmt: skip
        return f"dict(type='vpt_dense.LoadBands', {more}{text})"
    return f'model = dict(data_preprocessor=dict({text}))'


def show_statistics(report: dict, console) -> None:
    """Print what `--stats` asks for: of the first split the figures, of all the classes."""
    from rich.markup import escape

    from vpt_dense import tables

    name, split = next(iter(report['splits'].items()))
    if split.get('statistics'):
        console.print(f'mean and std of {name}, by band:', highlight=False)
        console.print(escape(paste(split['statistics'])), highlight=False)
    what, unit = ('class_pixels', 'pixels') if 'masks' in split else ('per_class', 'images')
    unit = next((key for key in ('boxes', 'segments') if key in split), unit)
    counts = {name: split[what] for name, split in report['splits'].items()}
    rows = []
    for label in dict.fromkeys(label for found in counts.values() for label in found):
        totals = [sum(found.values()) for found in counts.values()]
        rows.append([label, *(
            f'{found.get(label, 0) / total:.2%}' if total else '-'
            for found, total in zip(counts.values(), totals, strict=True))])
    tables.show(['', *counts], rows, f'share of {unit} by class')


def show(report: dict, stats: bool) -> None:
    """Print the table and a line for everything that is wrong or odd."""
    from rich.console import Console
    from rich.markup import escape

    from vpt_dense import tables

    console = Console(soft_wrap=True)
    known = report['classes']
    classes = f', {len(known)} classes' if known else ', classes not known: ids are not checked'
    columns = {name: cells(split) for name, split in report['splits'].items()}
    names = dict.fromkeys(row for column in columns.values() for row in column)
    rows = [[row, *(column.get(row, '-') for column in columns.values())] for row in names]
    tables.show(['', *columns], rows, f'{report["source"]}: {report["task"]}{classes}')
    if stats:
        show_statistics(report, console)
    for kind, style in (('warnings', 'yellow'), ('problems', 'red')):
        for name, split in report['splits'].items():
            for line in split[kind]:
                word = kind.removesuffix('s')
                console.print(f'[{style}]{word}[/] {escape(f"{name}: {line}")}', highlight=False)
    console.print('ok' if report['ok'] else 'wrong: see the problems (--json names all files)')


def main(argv: Sequence[str] | None = None) -> None:
    """Check, print, and exit with 1 if a run on this data would fail or mislead."""
    args = parse_args(argv)
    if '::' not in args.source and not Path(args.source).exists():
        raise errors.UserError(f'{args.source}: no such config or folder')
    with contextlib.redirect_stdout(io.StringIO()):  # the packages print when they are imported
        report = look(args)
    if args.json:
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        show(report, args.stats)
    if not report['ok']:
        sys.exit(1)

