"""Time of a backbone's forward pass at test time, against no prompts and the reference.

``python tools/benchmark/forward.py``
``python tools/benchmark/forward.py --arch large --img-size 512 --batch 1 --tokens 50``
"""

import argparse
from collections.abc import Callable

import common
import models
import torch
from torch import Tensor, nn

from vpt_dense.errors import main


def test_pass(
    way: str, model: nn.Module, images: Tensor, args: argparse.Namespace
) -> Callable[[], None]:
    """A forward pass of a backbone, which is put into its mode for tests."""
    model.eval()
    if way == 'uncached':
        model.prompt.train()  # without dropout it computes the same, but might be random

    def step() -> None:
        with torch.inference_mode():
            models.forward(model, images, args)

    return step


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    args = models.parser(
        __doc__, ['reference', 'mmseg', 'tokens', 'uncached', 'ours'], models.TEST).parse_args()
    models.check(args)
    logging.filter_warnings()  # the imports have set their own
    rows = []
    for img_size, batch, images, built in models.groups(args):
        steps = {key: test_pass(key[0], model, images, args) for key, model in built.items()}
        for (way, tokens), seconds in common.in_turn(steps, args.rounds, args.device).items():
            rows.append(dict(img_size=img_size, batch=batch, tokens=tokens, way=way,
                             seconds=seconds))
    models.show_times('forward pass', args, rows)
    common.write(args.json, args, models.figures('forward', args, rows))


if __name__ == '__main__':
    main(run)
