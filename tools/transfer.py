"""Every task's prompts as every other's start: ``vpt-dense analyse transfer``."""

import sys

from vpt_dense import errors
from vpt_dense.commands.analyse import main

if __name__ == '__main__':
    errors.main(lambda: main(['transfer', *sys.argv[1:]]))
