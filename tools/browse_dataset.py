"""Look at what a model is trained on: images after the pipeline, with masks or labels drawn in."""

from vpt_dense import errors
from vpt_dense.commands.browse_dataset import main

if __name__ == '__main__':
    errors.main(main)
