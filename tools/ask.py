"""Ask a server: ``python tools/ask.py URL TASK[,TASK] IMAGE ... --out DIR``."""

from vpt_dense import errors
from vpt_dense.commands.ask import main

if __name__ == '__main__':
    errors.main(main)
