"""Train a model: ``python tools/train.py CONFIG``; several processes: ``tools/dist_train.sh``."""

from vpt_dense import errors
from vpt_dense.commands.train import main

if __name__ == '__main__':
    errors.main(main)
