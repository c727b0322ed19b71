"""Time of a backbone's forward pass at test time, against no prompts and the reference.

``python tools/benchmark/forward.py``
``python tools/benchmark/forward.py --arch large --img-size 512 --batch 1 --tokens 50``
"""

import argparse
from collections.abc import Callable

import models
import torch
from torch import Tensor, nn

from vpt_dense.errors import main


def test_pass(
    way: str, model: nn.Module, images: Tensor, args: argparse.Namespace
) -> Callable[[], None]:
    """A forward pass of a backbone, which is put into its mode for tests."""
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            models.forward(model, images, args)

    return step


def run() -> None:
    """Command line."""
    ways = ['reference', 'mmseg', 'tokens', 'ours']
    args = models.parser(__doc__, ways, models.TEST).parse_args()
    models.run_times('forward', 'forward pass', args, test_pass)


if __name__ == '__main__':
    main(run)
