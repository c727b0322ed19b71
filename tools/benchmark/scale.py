"""What a study of many tasks takes on several GPUs, simulated from the time of a step.

``python tools/benchmark/scale.py --train-ms 3.34 --test-ms 1.08 --gpus 1 8 64``

The tasks are VTAB-1k's 19 and the five fine-grained sets, each with a search and then seeds, as
``vpt-dense suite`` runs them: the runs of a task with a method, a cell, come one after the other,
cells side by side. All read images from one file server; where they ask for more than it gives, all
of them slow down alike. Nothing else that grows with the number of GPUs is in it: no queue of a
cluster, no failures.
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import common

from vpt_dense.datasets.list_files import FGVC_SETS, VTAB_TASKS
from vpt_dense.errors import main

#: ViT-B/16: numbers of its backbone, and its width.
BACKBONE, WIDTH = 85_798_656, 768


class Cell(NamedTuple):
    """The runs of one task with one method.

    Attributes:
        seconds: Of a GPU that never waits for images.
        read: Bytes from the file server.
        runs: How many.
        classes: Of the task.
    """

    seconds: float
    read: float
    runs: int
    classes: int


def cells(args: argparse.Namespace) -> list[Cell]:
    """The cells of all tasks and methods."""
    found = []
    sizes = [(800, 200, 1000, task.test, task.classes) for task in VTAB_TASKS.values()]
    sizes += [(each.train, each.val, each.train, each.test, each.classes)
              for each in FGVC_SETS.values()]
    for train, val, last, test, classes in sizes:
        trial = args.epochs * (train * args.train_ms + val * args.test_ms) / 1000 + args.start
        final = (args.epochs * last * args.train_ms + test * args.test_ms) / 1000 + args.start
        images = args.trials * args.epochs * (train + val)
        images += args.seeds * (args.epochs * last + test)
        runs = args.trials + args.seeds
        read = images * args.image_kb * 1e3 + runs * BACKBONE * 4
        cell = Cell(args.trials * trial + args.seeds * final, read, runs, classes)
        parts = runs if args.split else 1  # as if all runs of a cell were of its mean length
        part = Cell(cell.seconds / parts, read / parts, runs // parts, classes)
        found += [part] * (parts * args.methods)
    return sorted(found, key=lambda cell: -cell.seconds) if args.longest_first else found


def simulate(todo: Sequence[Cell], gpus: int, bandwidth: float) -> tuple[float, float, float]:
    """Let cells run, each on a GPU, in order.

    Args:
        todo: The cells.
        gpus: How many run at a time.
        bandwidth: Bytes a second of the file server.

    Returns:
        Seconds until the last has ended; the share of the GPUs' time in which they compute; the
        share of the time in which the file server is what all wait for.
    """
    waiting, running = list(todo), []  # [seconds that are left, bytes a second]
    now = busy = short = 0.0
    while waiting or running:
        while waiting and len(running) < gpus:
            cell = waiting.pop(0)
            running.append([cell.seconds, cell.read / cell.seconds])
        wanted = sum(rate for _, rate in running)
        pace = min(1.0, bandwidth / wanted) if wanted else 1.0
        step = min(left for left, _ in running) / pace
        now += step
        busy += len(running) * pace * step
        short += step * (pace < 1)
        running = [[left - pace * step, rate] for left, rate in running
                   if left - pace * step > 1e-6]  # fmt: skip
    return now, busy / (gpus * now), short / now


def run() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    add = parser.add_argument
    add('--train-ms', type=float, default=3.34, help='of an image (default: VPT-deep, the paper)')
    add('--test-ms', type=float, default=1.08, help='of an image, likewise')
    add('--trials', type=int, default=24)
    add('--seeds', type=int, default=5)
    add('--epochs', type=int, default=100)
    add('--methods', type=int, default=1, help='that take as long as this one')
    add('--tokens', type=int, default=10, help='of VPT-deep, for the size of a delta')
    add('--start', type=float, default=20, help='seconds until the first step of a run')
    add('--image-kb', type=float, default=50, help='of an image file')
    add('--gpus', type=int, nargs='+', default=[1, 8, 64])
    add('--bandwidth', type=float, default=1, help='of the file server, in GB a second')
    add('--split', action='store_true', help='each run has a GPU of its own, not each cell')
    add('--longest-first', action='store_true', help='instead of the order of the tasks')
    args = parser.parse_args()
    todo = cells(args)
    runs = sum(cell.runs for cell in todo)
    hours = sum(cell.seconds for cell in todo) / 3600
    rows, figures = [], {}
    for gpus in args.gpus:
        seconds, busy, short = simulate(todo, gpus, args.bandwidth * 1e9)
        figures[gpus] = dict(hours=seconds / 3600, busy=busy, short=short)
        rows.append([str(gpus), f'{seconds / 3600:,.1f}', f'{busy:.0%}', f'{short:.0%}'])
    common.show(
        f'{len(todo):,} parts of {runs:,} runs, {hours:,.0f} GPU-hours',
        ['GPUs', 'hours', 'computing', 'waiting for the file server'], rows,
        f'longest part: {max(cell.seconds for cell in todo) / 3600:.1f} hours')
    read = sum(cell.read for cell in todo)
    rate = read / sum(cell.seconds for cell in todo)
    print(f'read: {read / 1e12:.2f} TB; a GPU asks for {rate / 1e6:.1f} MB a second, so that '
          f'{args.bandwidth:g} GB a second are enough for {args.bandwidth * 1e9 / rate:,.0f} GPUs')
    whole, delta = (sum(cell.runs * 4 * (own + (WIDTH + 1) * cell.classes) for cell in todo)
                    for own in (BACKBONE, 12 * args.tokens * WIDTH))  # fmt: skip
    print(f'one checkpoint a run: {whole / 1e9:,.0f} GB whole, {delta / 1e9:,.2f} GB of what was '
          f'tuned ({whole / delta:,.0f} times less)')
    common.write(args.json, args, dict(
        figures=figures, read=read, rate=rate, whole=whole, delta=delta, hours=hours))


if __name__ == '__main__':
    main(run)
