"""From base to new classes: trains on half of the classes, tests both halves, harmonic mean."""

from vpt_dense import errors
from vpt_dense.commands.base_to_new import main

if __name__ == '__main__':
    errors.main(main)
