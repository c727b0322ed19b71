"""Methods x seeds on one config: score, parameters, disk, time and memory in one table."""

from vpt_dense import errors
from vpt_dense.commands.compare import main

if __name__ == '__main__':
    errors.main(main)
