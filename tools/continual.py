"""Classes that come in steps: trains a method step after step, and tests what is left of each."""

from vpt_dense import errors
from vpt_dense.commands.continual import main

if __name__ == '__main__':
    errors.main(main)
