"""Trains every task's prompts, and every task from every other's: ``vpt-dense analyse transfer``."""

import sys

from vpt_dense import errors
from vpt_dense.commands.analyse import main

if __name__ == '__main__':
    errors.main(lambda: main(['transfer', *sys.argv[1:]]))
