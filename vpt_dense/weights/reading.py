"""Reading a file of weights without running code from it."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

#: Keys under which training code wraps the tensors, undone from the outside in.
_WRAPPERS = ('state_dict', 'model')


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Read the tensors of a weight file onto the CPU.

    Nothing is unpickled blindly: ``.safetensors`` files hold tensors only, and everything else
    goes through ``torch.load(weights_only=True)``.

    Args:
        path: A local file, or an http(s) address (kept in torch's hub cache).

    Returns:
        Parameter name -> tensor, common wrappings (``state_dict``, ``model``) undone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a complete file of weights, or would need to run code.
    """
    if path.startswith(('http://', 'https://')):
        checkpoint = torch.hub.load_state_dict_from_url(
            path, map_location='cpu', weights_only=True
        )
        return _unwrap(checkpoint, path)
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f'weights not found: {path} (looked in {Path.cwd()}); download them to this place or '
            'set model.backbone.init_cfg.checkpoint'
        )
    try:
        if file.suffix == '.safetensors':
            return load_file(file)
        checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises whatever its readers meet in a damaged file
        if _begins_with(file, b'<'):
            raise ValueError(
                f'{path} is a web page (HTML), not weights: download it again'
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            reason = str(error).partition('WeightsUnpickler error: ')[2]
            raise ValueError(
                f'{path} was not loaded: it would run code or is damaged '
                f'({_first_line(reason)}); get plain weights from its publisher, or save its '
                'tensors as .safetensors'
            ) from error
        raise ValueError(
            f'{path} is damaged or not a file of weights ({_first_line(str(error))}); get it again'
        ) from error
    return _unwrap(checkpoint, path)


def _unwrap(checkpoint: object, path: str) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise ValueError(f'{path} holds no state dict but {type(checkpoint).__name__}')
    others = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f'{path} holds more than tensors at its top level: {others[:5]}')
    return checkpoint


def _first_line(text: str) -> str:
    return text.strip().partition('\n')[0] or 'no further reason'


def _begins_with(file: Path, start: bytes) -> bool:
    with file.open('rb') as stream:
        return stream.read(64).lstrip().startswith(start)
