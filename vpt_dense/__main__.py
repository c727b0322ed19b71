"""``python -m vpt_dense COMMAND``."""

from vpt_dense.cli import run

if __name__ == '__main__':
    run()
