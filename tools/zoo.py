"""List the models that come along: ``python tools/zoo.py``."""

from vpt_dense import errors
from vpt_dense.commands.zoo import main

if __name__ == '__main__':
    errors.main(main)
