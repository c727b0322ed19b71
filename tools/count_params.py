"""Count the parameters of configs by part, or estimate memory; needs neither data nor weights."""

from vpt_dense import errors
from vpt_dense.commands.count_params import main

if __name__ == '__main__':
    errors.main(main)
