"""What evaluation costs: this package's IoUMetric against mmseg's, on made masks.

``python tools/benchmark/metric.py --rounds 2``
``python tools/benchmark/metric.py --images 100 --device cuda``

The default is ADE20K's validation split: 2,000 masks of 512x683 pixels and 150 classes. A time is
that of all `process` calls and one `evaluate`. Both metrics must give the same numbers.
"""

import argparse
import statistics

import common
import torch

from vpt_dense.errors import UserError, main

# Different masks; a set of 2,000 goes round them, or it would take 11 GB.
DIFFERENT = 16


def samples(args: argparse.Namespace) -> list[dict]:
    """Make predictions and labels: blocks of one class, a fifth of the pixels wrong.

    Returns:
        For each image what a segmentor hands to a metric: int64 (1, H, W), 255 where ignored.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = args.size

    def blocks(count: int, edge: int) -> torch.Tensor:
        rows, columns = -(-height // edge), -(-width // edge)
        # Squared: few classes take most pixels, as in photographs.
        small = (torch.rand(1, rows, columns, generator=generator) ** 2 * count).long()
        large = small.repeat_interleave(edge, 1).repeat_interleave(edge, 2)
        return large[:, :height, :width]

    made = []
    for _ in range(min(args.images, DIFFERENT)):
        label = blocks(args.classes, 43)
        prediction = torch.where(blocks(5, 17) == 4, blocks(args.classes, 29), label)
        label = label.masked_fill(blocks(20, 7) == 19, 255)
        made.append({
            'pred_sem_seg': {'data': prediction.contiguous().to(args.device)},
            'gt_sem_seg': {'data': label.contiguous().to(args.device)},
        })  # fmt: skip
    return [made[i % len(made)] for i in range(args.images)]


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    parser = common.parser(__doc__)
    parser.add_argument('--images', type=int, default=2000)
    parser.add_argument('--size', type=int, nargs=2, default=[512, 683],
                        metavar=('HEIGHT', 'WIDTH'), help='pixels')
    parser.add_argument('--classes', type=int, default=150, help='255 at most')
    args = parser.parse_args()
    common.check(args)
    if args.dtype != 'float32':
        raise UserError('--dtype: pixels are counted, nothing is computed in it; leave it out')
    if args.images < 1 or min(args.size) < 1 or not 2 <= args.classes <= 255:
        raise UserError('--images and --size must be at least 1, --classes 2 to 255')

    from mmengine.logging import MMLogger
    from mmseg.evaluation import IoUMetric as Reference

    from vpt_dense.evaluation import IoUMetric

    MMLogger.get_instance('benchmark', log_level='ERROR')  # mmseg's prints a row for each class
    data = samples(args)
    metrics = {'mmseg': Reference(prefix=''), 'vpt_dense': IoUMetric()}
    found = {}

    def evaluate(name: str) -> None:
        metric = metrics[name]
        metric.dataset_meta = {'classes': [str(i) for i in range(args.classes)]}
        for sample in data:
            metric.process({}, [sample])
        found[name] = metric.evaluate(len(data))

    ways = {name: lambda name=name: evaluate(name) for name in metrics}
    times = common.in_turn(ways, args.rounds, args.device)
    if found['vpt_dense'] != found['mmseg']:
        raise UserError(f'the numbers differ: {found}')
    columns = ['metric', 'time / mmseg', 'ms an image']
    rows = [
        [name, common.ratio(values, times['mmseg']),
         f'{statistics.median(values) / len(data) * 1e3:.2f}']
        for name, values in times.items()
    ]
    numbers = ', '.join(f'{key} {value:.2f}' for key, value in found['mmseg'].items())
    common.show(
        f'{args.images} images of {args.size[0]}x{args.size[1]}, {args.classes} classes, '
        f'{args.device}', columns, rows, f'same numbers: {numbers}')
    common.write(args.json, args, {'seconds': times, 'numbers': found})


if __name__ == '__main__':
    main(run)
