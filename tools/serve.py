"""Serves many tasks on one frozen backbone over HTTP."""

from vpt_dense import errors
from vpt_dense.commands.serve import main

if __name__ == '__main__':
    errors.main(main)
