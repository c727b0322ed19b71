"""Deltas, checkpoints of only what was tuned: made, completed, shown, compared, folded, shared."""

from vpt_dense import errors
from vpt_dense.commands.delta import main

if __name__ == '__main__':
    errors.main(main)
