"""An ensemble of deltas: their prompts and heads on one backbone, tested in one pass."""

from vpt_dense import errors
from vpt_dense.commands.ensemble import main

if __name__ == '__main__':
    errors.main(main)
