"""Federated training: deals the training images to clients and writes an app for Flower."""

from vpt_dense import errors
from vpt_dense.commands.federated import main

if __name__ == '__main__':
    errors.main(main)
