"""Kernels of attention in bfloat16 on a CPU, forward and backward, as ratios to ours.

``python tools/benchmark/attention.py``
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpt_dense.errors import UserError, main

#: (images, heads, queries, keys, width of a head): the demo, ViT-B at 224 px, ViT-L at 512 px.
SHAPES = [(16, 3, 144, 164, 64), (8, 12, 197, 297, 64), (1, 16, 1025, 1075, 64)]
KERNELS = {'flash': SDPBackend.FLASH_ATTENTION, 'math': SDPBackend.MATH}


def seconds(function, shape, backward):
    """Times one call.

    Args:
        function (Callable): Of query, key and value.
        shape (tuple): As in `SHAPES`.
        backward (bool): Include the gradients.

    Returns:
        float: Seconds.
    """
    batch, heads, queries, keys, width = shape
    inputs = [torch.randn(batch, heads, n, width, dtype=torch.bfloat16, requires_grad=backward)
              for n in (queries, keys, keys)]
    start = time.perf_counter()
    out = function(*inputs)
    if backward:
        out.backward(torch.ones_like(out))
    return time.perf_counter() - start


def run():
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    from vpt_dense.backbones.attention import attention

    logging.filter_warnings()  # the import has set its own

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--traceback', action='store_true', help='full traceback on errors')
    args = parser.parse_args()
    if args.rounds < 1:
        raise UserError(f'--rounds must be at least 1, found {args.rounds}')
    table = Table(title=f'bfloat16, {torch.get_num_threads()} threads, torch {torch.__version__}')
    for column in ('images, heads, queries, keys, width', 'pass', *KERNELS):
        table.add_column(column, justify='right')
    for shape in SHAPES:
        for backward in (False, True):
            times = {name: [] for name in ('ours', *KERNELS)}
            for turn in range(args.rounds + 1):
                for name, kept in times.items():
                    if name == 'ours':
                        value = seconds(attention, shape, backward)
                    else:
                        with sdpa_kernel(KERNELS[name]):
                            value = seconds(F.scaled_dot_product_attention, shape, backward)
                    if turn:  # the first warms up
                        kept.append(value)
            ours = statistics.median(times.pop('ours'))
            table.add_row(str(shape)[1:-1], 'both' if backward else 'forward',
                          *(f'{statistics.median(t) / ours:.2f}' for t in times.values()))
    Console().print(table)


if __name__ == '__main__':
    main(run)
