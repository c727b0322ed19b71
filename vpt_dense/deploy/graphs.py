"""Graphs of torch.export as files: ONNX, or as they are."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vpt_dense.deploy import card as cards
from vpt_dense.errors import UserError

#: Largest difference to the model that an exported file may have, relative to the largest score.
TOLERANCE = 1e-3


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what the exporters tell of their own work."""
    loggers = [logging.getLogger(name) for name in ('torch', 'onnxscript', 'onnx_ir')]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
                contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """What an error says first, without line breaks."""
    lines = [' '.join(line.split()) for line in str(error).splitlines() if line.strip()]
    return next(iter(lines), type(error).__name__)


def write_pt2(
    program: 'torch.export.ExportedProgram', path: Path, card: dict[str, Any]
) -> Callable[..., list[np.ndarray]]:
    """Write a graph and its card as a file of torch.export.

    Returns:
        Computes what the file computes: arrays in, arrays out.
    """
    with path.open('wb') as stream, quietly():
        torch.export.save(program, stream, extra_files={cards.KEY: cards.to_text(card)})
    with path.open('rb') as stream, quietly():
        module = torch.export.load(stream).module()

    def run(*inputs: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            found = module(*map(torch.from_numpy, inputs))
        return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]

    return run


def write_onnx(
    program: 'torch.export.ExportedProgram', path: Path, card: dict[str, Any],
    inputs: Sequence[str] = ('images',),
) -> Callable[..., list[np.ndarray]]:
    """Write a graph and its card as an ONNX file.

    Args:
        program: The graph.
        path: The file.
        card: With ``version``, and in ``output`` ``name``, or ``names`` of several.
        inputs: Names of what it takes.

    Returns:
        Computes what the file computes, in ONNX Runtime: arrays in, arrays out.

    Raises:
        UserError: If a package is not installed, or ONNX has no operator for something in it.
    """
    onnx, runtime = cards.needed('onnx', 'onnxruntime')
    proto = to_onnx(program, card['output'].get('names') or card['output']['name'], inputs)
    proto.metadata_props.add(key=cards.KEY, value=cards.to_text(card))
    proto.producer_name, proto.producer_version = 'vpt_dense', card['version']
    onnx.save_model(proto, str(path))
    session = runtime.InferenceSession(str(path), providers=['CPUExecutionProvider'])

    def run(*given: np.ndarray) -> list[np.ndarray]:
        return session.run(None, dict(zip(inputs, given, strict=True)))

    return run


def to_onnx(
    program: 'torch.export.ExportedProgram', output: str | Sequence[str],
    inputs: Sequence[str] = ('images',),
) -> Any:
    """Turn a graph into an ONNX model (``onnx.ModelProto``).

    Args:
        program: The graph.
        output: The name of what it gives, or of several.
        inputs: Names of what it takes, images first.

    Raises:
        UserError: If ONNX has no operator for something in it.
    """
    try:
        with torch.no_grad(), quietly():
            made = torch.onnx.export(
                program, program.example_inputs[0], dynamo=True, input_names=list(inputs),
                output_names=[output] if isinstance(output, str) else list(output),
                verbose=False)
            proto = made.model_proto
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        cause = error.__cause__ or error
        raise UserError(
            f'torch {torch.__version__} cannot make ONNX of this model: {first_line(cause)}; '
            'try --format pt2, or other versions of what vpt_dense[export] installs'
        ) from error
    _name_axes(proto)
    return proto


def _name_axes(proto: Any) -> None:
    """Call the axes of any length by their names: batch, height, width."""
    images = proto.graph.input[0]
    names = ('batch', 'channels', 'height', 'width')
    axes = {axis.dim_param: name for axis, name in
            zip(images.type.tensor_type.shape.dim, names, strict=True) if axis.dim_param}
    if not axes:
        return
    symbol = re.compile(r'\b(' + '|'.join(map(re.escape, axes)) + r')\b')
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = symbol.sub(lambda found: axes[found[0]], axis.dim_param)
