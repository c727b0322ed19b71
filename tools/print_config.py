"""Print a config as a run uses it: bases merged, options applied, classes resolved."""

from vpt_dense import errors
from vpt_dense.commands.print_config import main

if __name__ == '__main__':
    errors.main(main)
