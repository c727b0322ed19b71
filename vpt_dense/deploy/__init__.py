"""Models for other runtimes: files of ONNX and of torch.export, and predicting with them.

:mod:`exporting` makes them, :mod:`card` is what they say of themselves, :mod:`onnx_model` predicts
with ONNX Runtime and NumPy alone, :mod:`quantizing` turns them into int8.
"""
