"""Predict images: ``python tools/predict.py CONFIG CHECKPOINT IMAGE ... --out DIR``."""

from vpt_dense import errors
from vpt_dense.commands.predict import main

if __name__ == '__main__':
    errors.main(main)
