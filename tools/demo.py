"""Prompt tuning against its alternatives on data and weights that come with the repository."""

from vpt_dense import errors
from vpt_dense.commands.demo import main

if __name__ == '__main__':
    errors.main(main)
