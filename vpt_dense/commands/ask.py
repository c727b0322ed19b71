"""Ask a server of vpt-dense serve: ``vpt-dense ask URL TASK[,TASK] IMAGE ... [--out DIR]``.

IMAGE is a file, a folder, a pattern in quotes, a .txt file with a path a line, or - for such a list
from standard input. With --out it writes what ``vpt-dense predict`` writes: ``labels/*.png`` in the
ids of the annotations, predictions.jsonl, ...; of several tasks each in a folder of its name.
Without it, it prints a line of JSON for each image and task: classes, or the share of each class.
Exit code 2 if an image could not be predicted; the others are there. See docs/serving.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import client, errors, outputs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('url', metavar='URL', help='of the server: http://127.0.0.1:8000')
    add('tasks', metavar='TASK[,TASK]', help='the tasks, between commas')
    add('images', nargs='+', metavar='IMAGE', help='see above')
    add('--out', metavar='DIR', help='folder for what is written (default: lines are printed)')
    add('--overlay', action='store_true', help='draw label maps over their images, with a legend')
    add('--top-k', type=errors.count, metavar='K',
        help='classes of an image whose scores are told (classification; default: 5)')
    add('--key-file', metavar='FILE',
        help=f'holds the key of a server that wants one (default: the variable {client.KEY})')
    add('--timeout', type=float, default=120.0, metavar='SECONDS',
        help='that an answer may take (default: 120)')
    already = parser.add_mutually_exclusive_group()
    already.add_argument('--skip-existing', action='store_true',
                         help='leave out images whose results are there')
    outputs.add_force_option(already)
    args = parser.parse_intermixed_args(argv)
    args.tasks = list(dict.fromkeys(filter(None, map(str.strip, args.tasks.split(',')))))
    if not args.tasks:
        raise errors.UserError('name a task: ask URL TASK[,TASK] IMAGE ...')
    if not args.timeout > 0:
        raise errors.UserError(f'--timeout must be above 0, found {args.timeout:g}')
    for option in ('overlay', 'skip_existing', 'force'):
        if getattr(args, option) and not args.out:
            raise errors.UserError(f'--{option.replace("_", "-")} is of --out, which is not given')
    return args


def find_tasks(server: client.Client, names: Sequence[str]) -> list[client.Task]:
    """The tasks of these names.

    Raises:
        UserError: If the server cannot be reached, or has one not.
    """
    known = {task.name: task for task in server.tasks()}
    for name in names:
        if name not in known:
            raise errors.UserError(
                f'{server.url} has no task {name}{errors.suggest(name, known)}; it has '
                f'{", ".join(known) or "none"}')
    return [known[name] for name in names]


def main(argv: Sequence[str] | None = None) -> None:
    """Ask, and write or print."""
    args = parse_args(argv)
    with client.Client(args.url, client.read_key(args.key_file), args.timeout) as server:
        tasks = find_tasks(server, args.tasks)
        kinds = {task.kind for task in tasks}
        if args.overlay and kinds == {'classification'}:
            raise errors.UserError('--overlay is for maps, these tasks are of classification')
        if args.top_k and 'classification' not in kinds:
            raise errors.UserError(
                f'--top-k is for classification, these tasks are of {", ".join(sorted(kinds))}')
        from vpt_dense.predicting import inputs, writing
        from vpt_dense.predicting.remote import Answers, RemotePredictor

        outs = {}
        if args.out:
            outs = {task.name: Path(args.out, task.name if tasks[1:] else '') for task in tasks}
            for out in outs.values():
                writing.check_out(out, args.skip_existing, args.force)
        images = inputs.find(args.images, args.out)
        skipped = []
        with tempfile.TemporaryDirectory(prefix='vpt-dense-ask-') as folder:
            answers = Answers(server, args.tasks, folder)
            for task in tasks:
                predictor = RemotePredictor(answers, task)
                if not args.out:
                    skipped += show(task, predictor, images, args.top_k)
                    continue
                classifies = task.kind == 'classification'
                wanted = writing.Wanted(
                    overlay=args.overlay and not classifies,
                    top_k=args.top_k if classifies else None,
                    skip_existing=args.skip_existing, force=args.force)
                summary = writing.write(predictor, images, outs[task.name], wanted)
                skipped += [row['path'] for row in summary['skipped']]
                print(f'{summary["predicted"]:,} images predicted in {outs[task.name]}')
        if skipped:
            raise errors.UserError(
                f'{len(skipped):,} of {len(images) * len(tasks):,} predictions could not be made: '
                f'{skipped[0]}{", ..." if skipped[1:] else ""} (reasons above); the others are '
                'there')


def show(task: client.Task, predictor, images: Sequence, top_k: int | None) -> list[str]:
    """Print a line of JSON for each image; the paths of those that could not be predicted."""
    import numpy as np

    skipped = []
    for image, found in zip(
            images, predictor.stream(image.path for image in images), strict=True):
        if isinstance(found, Exception):
            skipped.append(image.path)
            print(f'skipped: {found}', file=sys.stderr, flush=True)
            continue
        line = dict(path=image.path, task=task.name)
        if task.kind == 'classification':
            line |= found.line(top_k or 5)
        elif task.kind == 'segmentation':
            pixels = found.pixels()
            total = found.labels.size
            line['shares'] = {
                name: round(number / total, 6)
                for name, number in zip(task.classes, pixels, strict=True)}
        else:
            values = np.asarray(
                found.depth if task.kind == 'depth' else found.normals, np.float64)
            line |= {name: getattr(values, name)((0, 1)).round(4).tolist()
                     for name in ('min', 'mean', 'max')}
        print(json.dumps(line, ensure_ascii=False), flush=True)
    return skipped
