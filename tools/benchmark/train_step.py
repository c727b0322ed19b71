"""Time of a backbone's training step, forward and backward, against no prompts and the reference.

``python tools/benchmark/train_step.py``
``python tools/benchmark/train_step.py --arch large --img-size 512 --batch 1 --tokens 50``
``python tools/benchmark/train_step.py --tokens 100 --ways ours last-half head-only full``
"""

import models

from vpt_dense.errors import main


def run() -> None:
    """Command line."""
    args = models.parser(__doc__, ['reference', 'mmseg', 'tokens', 'ours']).parse_args()
    models.run_times('train_step', 'training step', args,
                     lambda _, model, images, args: models.train_step(model, images, args))


if __name__ == '__main__':
    main(run)
