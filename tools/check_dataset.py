"""Look through the data of a config or a folder: files, sizes, labels; exit code 1: wrong."""

from vpt_dense import errors
from vpt_dense.commands.check_dataset import main

if __name__ == '__main__':
    errors.main(main)
