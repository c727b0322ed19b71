"""Runs a benchmark suite: tasks x methods x seeds x trials; one table at the end."""

from vpt_dense import errors
from vpt_dense.commands.benchmark_suite import main

if __name__ == '__main__':
    errors.main(main)
