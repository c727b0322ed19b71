"""Shows what a tuned model does."""

from vpt_dense import errors
from vpt_dense.commands.analyse import main

if __name__ == '__main__':
    errors.main(main)
