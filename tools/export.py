"""Export a model: ``python tools/export.py CONFIG CHECKPOINT --out model.onnx``."""

from vpt_dense import errors
from vpt_dense.commands.export import main

if __name__ == '__main__':
    errors.main(main)
