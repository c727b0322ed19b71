"""Writes report.html of a run or a comparison, or of several runs side by side."""

from vpt_dense import errors
from vpt_dense.commands.report import main

if __name__ == '__main__':
    errors.main(main)
