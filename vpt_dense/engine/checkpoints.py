"""Checkpoints of runs: reading them, and finding the one to go on from."""

from pathlib import Path
from typing import Any

from torch import nn

import vpt_dense.weights.guard  # noqa: F401  mmengine's loaders become safe
from vpt_dense import files
from vpt_dense.errors import UserError


def read(path: str, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint, see :func:`vpt_dense.files.read`.

    Raises:
        UserError: If the file is absent, damaged, no checkpoint or would need to run code.
    """
    checkpoint = files.read(path, map_location)
    if not isinstance(checkpoint, dict):
        raise UserError(f'checkpoint {path} holds no weights but a {type(checkpoint).__name__}')
    return checkpoint


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
