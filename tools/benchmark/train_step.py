"""Time of a backbone's training step, forward and backward, against no prompts and the reference.

``python tools/benchmark/train_step.py``
``python tools/benchmark/train_step.py --arch large --img-size 512 --batch 1 --tokens 50``
``python tools/benchmark/train_step.py --tokens 100 --ways ours last-half head-only full``
"""

import common
import models

from vpt_dense.errors import main


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    args = models.parser(__doc__, ['reference', 'mmseg', 'tokens', 'ours']).parse_args()
    models.check(args)
    logging.filter_warnings()  # the imports have set their own
    rows = []
    for img_size, batch, images, built in models.groups(args):
        steps = {key: models.train_step(model, images, args) for key, model in built.items()}
        for (way, tokens), seconds in common.in_turn(steps, args.rounds, args.device).items():
            rows.append(dict(img_size=img_size, batch=batch, tokens=tokens, way=way,
                             seconds=seconds))
    models.show_times('training step', args, rows)
    common.write(args.json, args, models.figures('train_step', args, rows))


if __name__ == '__main__':
    main(run)
