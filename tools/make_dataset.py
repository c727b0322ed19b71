"""Makes one of the project's own data sets as a folder in ADE20K's layout."""

from vpt_dense import errors
from vpt_dense.commands.make_dataset import main

if __name__ == '__main__':
    errors.main(main)
