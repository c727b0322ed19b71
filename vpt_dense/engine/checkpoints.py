"""Reading checkpoints of runs: no code is executed, and damage is told from absence."""

import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.runner.checkpoint import CheckpointLoader, get_torch_safe_globals
from torch import nn

from vpt_dense.errors import UserError

#: Types of numbers that logged values and metrics may have, beside those mmengine lists itself.
_NUMBERS = [type(np.dtype(code)) for code in '?bBhHiIlLqQefd']


def check_file(path: str | Path) -> None:
    """Look at the head and the tail of a checkpoint, without reading its tensors.

    Raises:
        UserError: If the file is absent, empty, a web page, a Git LFS pointer or truncated.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        raise UserError(f'checkpoint {path} is a folder; name a file in it')
    if not file.is_file():
        raise UserError(f'checkpoint {path}: no such file')
    size = file.stat().st_size
    with file.open('rb') as stream:
        head = stream.read(512)
    if size == 0:
        raise UserError(f'checkpoint {path} is empty')
    if head.lstrip()[:1] == b'<':
        raise UserError(f'checkpoint {path} is a web page (HTML), not weights: download it again')
    if head.startswith(b'version https://git-lfs'):
        raise UserError(f'checkpoint {path} is a Git LFS pointer: run `git lfs pull`')
    if file.suffix == '.safetensors':
        complete = _safetensors_size(file) == size
    else:
        # Saved by torch >= 1.6: a zip archive, whose table of contents stands at the end. Older
        # files are plain pickles, which only reading can check.
        complete = not head.startswith(b'PK\x03\x04') or zipfile.is_zipfile(file)
    if not complete:
        raise UserError(
            f'checkpoint {path} is truncated or damaged ({size:,} bytes): copy or download it '
            'again, or take an earlier one'
        )


def _safetensors_size(file: Path) -> int:
    """The size in bytes that a safetensors file should have by its own header; -1 if broken."""
    with file.open('rb') as stream:
        length = int.from_bytes(stream.read(8), 'little')
        try:
            header = json.loads(stream.read(min(length, file.stat().st_size)))
            ends = [entry['data_offsets'][1] for name, entry in header.items() if name[:2] != '__']
        except (ValueError, KeyError, TypeError, AttributeError):
            return -1
    return 8 + length + max(ends, default=0)


def read(path: str, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint with tensors, numbers and mmengine's history buffers, and nothing else.

    mmengine's own loader falls back to unpickling anything, which runs code from the file.

    Raises:
        UserError: If the file is absent, damaged, no checkpoint or would need to run code.
    """
    check_file(path)
    file = Path(path).expanduser()
    if file.suffix == '.safetensors':
        from safetensors.torch import load_file

        return {'state_dict': load_file(file)}
    try:
        if zipfile.is_zipfile(file):
            # torch does not look at the checksums that the archive has for each tensor.
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
            if broken:
                raise zipfile.BadZipFile(f'checksum of {broken} does not match')
        with torch.serialization.safe_globals(get_torch_safe_globals() + _NUMBERS):
            checkpoint = torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f'checkpoint {path} is refused: it is no checkpoint, or would run code when loaded '
            f'({_reason(error)})'
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError) as error:
        raise UserError(
            f'checkpoint {path} is damaged ({str(error).splitlines()[0][:120]}): copy or download '
            'it again, or take an earlier one'
        ) from error
    if not isinstance(checkpoint, dict):
        raise UserError(f'checkpoint {path} holds no weights but a {type(checkpoint).__name__}')
    return checkpoint


def _reason(error: pickle.UnpicklingError) -> str:
    """What the unpickler met, from torch's page-long message."""
    text = ' '.join(str(error).split())
    for pattern in (r'GLOBAL ([\w.]+)', r'but got (.{1,80})', r'WeightsUnpickler error: (.{1,80})'):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return text[:80]


@CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> dict:
    """What mmengine calls for every local file, ``init_cfg`` of any module included."""
    return read(filename, map_location)


def load_strict(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Load weights that must fit the model exactly.

    Args:
        model: The model, unwrapped.
        checkpoint: As :func:`read` returns it.
        path: For messages.

    Raises:
        UserError: If a key is missing or left over or has another shape; the first few are named.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    wanted = model.state_dict()
    missing = [
        name for name in wanted if name not in state and not name.endswith('num_batches_tracked')
    ]
    unexpected = [name for name in state if name not in wanted]
    problems = [_some('missing', missing), _some('unexpected', unexpected)]
    if not any(problems):
        try:
            # Not checked before: some modules resize tensors (position embeddings) on loading.
            model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            misfits = [
                f'{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}'
                for name in wanted
                if name in state and state[name].shape != wanted[name].shape
            ]
            if not misfits:
                raise
            problems = [_some('of another shape', misfits)]
            raise _misfit(path, model, problems) from error
        return
    raise _misfit(path, model, problems)


def _misfit(path: str, model: nn.Module, problems: list[str]) -> UserError:
    return UserError(
        f'checkpoint {path} is not of this {type(model).__name__}: '
        f'{"; ".join(filter(None, problems))}; use the config that it was trained with'
    )


def _some(what: str, names: list[str], limit: int = 3) -> str:
    if not names:
        return ''
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{len(names)} {what}: {", ".join(names[:limit])}{more}'


def find_last(folder: str | Path) -> str:
    """The last checkpoint of a run's folder.

    mmengine's pointer file ``last_checkpoint`` is followed if what it names is there; otherwise
    the ``iter_*.pth`` or ``epoch_*.pth`` of the highest number is taken.

    Raises:
        UserError: If there is none.
    """
    folder = Path(folder)
    pointer = folder / 'last_checkpoint'
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        for candidate in (named, folder / named.name):  # the second: the folder was moved
            if named.name and candidate.is_file():
                return str(candidate)
    numbered = [
        (int(file.stem.rpartition('_')[2]), str(file))
        for file in folder.glob('*.pth')
        if file.stem.rpartition('_')[0] in ('iter', 'epoch') and file.stem[-1].isdigit()
    ]
    if not numbered:
        state = 'holds no checkpoint' if folder.is_dir() else 'does not exist'
        raise UserError(f'--resume: {folder} {state}; leave --resume out to start from scratch')
    return max(numbered)[1]
