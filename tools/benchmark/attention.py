"""Kernels of attention, forward and backward, as ratios to the one that we choose.

``python tools/benchmark/attention.py``
``python tools/benchmark/attention.py --dtype float32``
"""

from collections.abc import Callable
from functools import partial

import common
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpt_dense.errors import main

#: (images, heads, queries, keys, width of a head): the demo, ViT-B at 224 px, ViT-L at 512 px.
SHAPES = [(16, 3, 144, 164, 64), (8, 12, 197, 297, 64), (1, 16, 1025, 1075, 64)]
KERNELS = {'flash': SDPBackend.FLASH_ATTENTION, 'math': SDPBackend.MATH}


def call(function: Callable[..., Tensor], inputs: list[Tensor], backward: bool) -> None:
    """Compute attention and, if asked for, its gradients.

    Args:
        function: Of query, key and value.
        inputs: These, each (images, heads, number, width).
        backward: Whether to compute gradients.
    """
    for tensor in inputs:
        tensor.grad = None
    with torch.set_grad_enabled(backward):
        out = function(*inputs)
    if backward:
        out.backward(torch.ones_like(out))


def kernel(name: str, *inputs: Tensor) -> Tensor:
    """Compute attention with one of PyTorch's :data:`KERNELS`."""
    with sdpa_kernel(KERNELS[name]):
        return F.scaled_dot_product_attention(*inputs)


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    from vpt_dense.backbones.attention import attention

    logging.filter_warnings()  # the import has set its own
    line = common.parser(__doc__)
    line.set_defaults(dtype='bfloat16', rounds=15)
    args = line.parse_args()
    common.check(args)
    functions = {'ours': attention, **{name: partial(kernel, name) for name in KERNELS}}
    rows, cells = [], []
    for shape in SHAPES:
        images, heads, queries, keys, width = shape
        inputs = [
            torch.randn(images, heads, number, width, dtype=common.DTYPES[args.dtype],
                        device=args.device).requires_grad_()
            for number in (queries, keys, keys)
        ]
        for backward in (False, True):
            ways = {name: partial(call, function, inputs, backward)
                    for name, function in functions.items()}
            times = common.in_turn(ways, args.rounds, args.device)
            rows += [dict(shape=shape, backward=backward, way=name, seconds=seconds)
                     for name, seconds in times.items()]
            cells.append([str(shape)[1:-1], 'both' if backward else 'forward',
                          *(common.ratio(times[name], times['ours']) for name in KERNELS)])
    common.show(f'attention: {args.dtype}, {args.device}',
                ['images, heads, queries, keys, width', 'pass',
                 *(f'{name} / ours' for name in KERNELS)], cells)
    common.write(args.json, args, dict(script='attention', rows=rows))


if __name__ == '__main__':
    main(run)
