"""Test a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``; see ``tools/dist_test.sh`` too."""

from vpt_dense import errors
from vpt_dense.commands.test import main

if __name__ == '__main__':
    errors.main(main)
