"""VTAB-1k and FGVC: what is missing of them; lists of few images; lists made anew."""

from vpt_dense import errors
from vpt_dense.commands.data import main

if __name__ == '__main__':
    errors.main(main)
