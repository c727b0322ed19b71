"""Searches the settings of a method with a number of trials."""

from vpt_dense import errors
from vpt_dense.commands.search import main

if __name__ == '__main__':
    errors.main(main)
