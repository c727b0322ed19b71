"""Checkpoints of runs: reads them and finds the one to resume from."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer
from torch import nn

import vpt_dense.weights.guard  # noqa: F401  mmengine's loaders become safe
from vpt_dense import live, safe_files
from vpt_dense.errors import UserError


def read(path: str, map_location: Any = 'cpu') -> dict:
    """Read a checkpoint, see :func:`vpt_dense.safe_files.read`.

    Raises:
        UserError: If the file is absent, damaged, no checkpoint or would need to run code.
    """
    checkpoint = safe_files.read(path, map_location)
    if not isinstance(checkpoint, dict):
        raise UserError(f'checkpoint {path} holds no weights but a {type(checkpoint).__name__}')
    meta = checkpoint.get('meta')
    if isinstance(meta, dict) and meta.get('format') == safe_files.PLAIN_DELTA:
        raise UserError(
            f'checkpoint {path} is a delta of plain PyTorch, of no config; in Python: '
            'vpt_dense.load(path), or vpt_dense.load_delta(model, path)')
    return checkpoint


#: The top-level key that has a training take all of `load_from` but the heads.
NEW_HEADS = 'new_heads'
#: What stands before the names of what is taken then.
_NOT_OF_HEADS = ('backbone.', 'neck.')


def leave_out_heads(model: nn.Module, checkpoint: dict) -> tuple[str, ...]:
    """Take out of a checkpoint, in place, all that is not of the backbone and the neck.

    The neck goes too, whole, unless every tensor of it fits.

    Args:
        model: The model, unwrapped, that shall start with what is left.
        checkpoint: As :func:`read` returns it.

    Returns:
        The parts of the model that start anew, by the beginnings of their names.
    """
    state = checkpoint.get('state_dict', checkpoint)
    shapes = {name.removeprefix('module.'): tensor.shape for name, tensor in state.items()}
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    necks = [{n: s for n, s in side.items() if n.startswith('neck.')} for side in (shapes, wanted)]
    kept = _NOT_OF_HEADS if necks[0] == necks[1] else _NOT_OF_HEADS[:1]
    for name in list(state):
        if not name.removeprefix('module.').startswith(kept):
            del state[name]
    parts = dict.fromkeys(f'{name.split(".")[0]}.' for name in wanted if not name.startswith(kept))
    return tuple(parts)


def load_strict(
    model: nn.Module,
    checkpoint: dict,
    path: str,
    new: tuple[str, ...] = (),
    way: str = 'use the config that it was trained with',
) -> None:
    """Load weights that must fit the model exactly.

    Args:
        model: The model, unwrapped.
        checkpoint: As :func:`read` returns it.
        path: For messages.
        new: Beginnings of the names that the checkpoint need not have.
        way: Out of a misfit of the heads alone, for the message.

    Raises:
        UserError: If a key is missing or left over or has another shape; the first few are named.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {name.removeprefix('module.'): value for name, value in state.items()}
    wanted = {n: value for n, value in model.state_dict().items() if not n.startswith(new)}
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
            raise _misfit(path, model, problems, misfits, way) from error
        return
    raise _misfit(path, model, problems, missing + unexpected, way)


def _misfit(
    path: str, model: nn.Module, problems: list[str], names: list[str], way: str
) -> UserError:
    if any(name.startswith('backbone.') for name in names):
        way = 'use the config that it was trained with'
    return UserError(
        f'checkpoint {path} is not of this {type(model).__name__}: '
        f'{"; ".join(filter(None, problems))}; {way}'
    )


def _some(what: str, names: list[str], limit: int = 3) -> str:
    if not names:
        return ''
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return f'{len(names)} {what}: {", ".join(names[:limit])}{more}'


# --- the one to go on from -------------------------------------------------------------------

#: Names of a run's checkpoints: of its last ones, or of the best by a metric.
_NAME = re.compile(r'(best_.+_)?(?:iter|epoch)_(\d+)')


def _warn(message: str) -> None:
    """Print a line on stderr, in the first process only; runs have no log yet."""
    if live.is_first():
        print(f'warning: {message}', file=sys.stderr, flush=True)


def find_last(folder: str | Path, warn: Callable[[str], None] = _warn) -> str:
    """The newest checkpoint of a run's folder that is whole.

    That is the one that mmengine's pointer file ``last_checkpoint`` names. If that file is absent
    or empty, or the checkpoint gone or damaged, it is the ``iter_*.pth`` or ``epoch_*.pth`` of the
    highest number that is whole; or a ``best_*`` that is newer than all of these that are.

    Args:
        folder: The folder of a run; it may have been moved.
        warn: Takes one line that tells what is wrong and what is used instead.

    Raises:
        UserError: If no checkpoint is whole.
    """
    folder = Path(folder)
    faults = []
    named, lost = _follow(folder, faults)
    elsewhere = {named.parent} - {Path()} if named else set()  # out_dir of the checkpoint hook
    numbered, best = list_in({folder, *elsewhere})
    if named and not lost:
        numbered = {named: 0, **numbered}  # the first to be tried
    found = _choose(numbered, best, faults, lost)
    if found is None:
        if not folder.is_dir():
            faults = [f'{folder} does not exist']
        elif not numbered and not best:
            faults = [f'{folder} holds no checkpoint']
        raise UserError(f'{"; ".join(faults)}; leave --resume out to start from scratch')
    if faults:
        state = ' (without optimizer state)' if found in best else ''
        warn(f'{"; ".join(faults)}; taking {found}{state} instead')
    return str(found)


def verify(path: str) -> None:
    """Read a checkpoint that a user asked for and compare it with its checksums.

    Args:
        path: A file; addresses (``scheme://``) are not looked at.

    Raises:
        UserError: If the file is absent or damaged; a good one beside it is named.
    """
    if '://' in path:
        return
    try:
        safe_files.verify(path)
    except UserError as error:
        numbered, best = list_in({Path(path).expanduser().parent})
        found = _choose(numbered, best, [], True)
        beside = f'; the newest good one beside it is {found}' if found else ''
        raise UserError(f'{error}{beside}') from error


def _follow(folder: Path, faults: list[str]) -> tuple[Path | None, bool]:
    """The checkpoint that ``last_checkpoint`` names, and whether that checkpoint is lost."""
    pointer = folder / 'last_checkpoint'
    if not pointer.is_file():
        if folder.is_dir():
            faults.append(f'{pointer} is missing')
        return None, False
    text = pointer.read_bytes().strip(b'\0 \r\n').decode(errors='replace')
    if not text:
        faults.append(f'{pointer} is empty')
        return None, False
    named = Path(text)
    moved = folder / named.name
    if moved.is_file():  # first: the folder may be a copy of one that is still there
        if not named.is_file():
            faults.append(f'{pointer} names {named}, which is gone')
        return moved, False
    if not named.is_file():
        faults.append(f'{pointer} names {named}, which is gone')
        return named, True
    return named, False


def list_in(folders: set[Path]) -> tuple[dict[Path, int], dict[Path, int]]:
    """Numbered checkpoints and best ones with their numbers, highest first."""
    found = ({}, {})
    for file in (file for folder in folders for file in folder.glob('*.pth')):
        name = _NAME.fullmatch(file.stem)
        if name:
            found[bool(name[1])][file] = int(name[2])
    numbered, best = (
        dict(sorted(part.items(), key=lambda item: item[1], reverse=True)) for part in found
    )
    return numbered, best


def _choose(
    numbered: dict[Path, int], best: dict[Path, int], faults: list[str], lost: bool
) -> Path | None:
    """The first of the numbered ones, or what comes nearest to it if that is lost."""
    found = _first_whole(numbered, faults)
    if lost or found is None or found != next(iter(numbered)):
        newer = [file for file, step in best.items() if step > numbered.get(found, -1)]
        found = _first_whole(newer, faults) or found
    return found


def _first_whole(candidates: Iterable[Path], faults: list[str]) -> Path | None:
    """The first file that is whole; what is wrong with those before it goes to ``faults``."""
    for file in candidates:
        try:
            safe_files.verify(file)
        except UserError as error:
            text = str(error)  # without its advice, unless that is the switch which allows it
            advice = safe_files.ALLOW_PICKLE not in text
            faults.append(advice and text.rpartition(': ')[0] or text)
        else:
            return file
    return None


def launch() -> str | None:
    """The name that torchrun gives this start of a run; restarted processes have the same."""
    name = os.environ.get('TORCHELASTIC_RUN_ID')
    return None if name == 'none' else name  # torchrun's default on several machines


# --- what is saved ---------------------------------------------------------------------------


def bound_history(message_hub: dict, length: int = 1000) -> dict:
    """Shorten the logged values in the state of a message hub: they grow with every iteration.

    Args:
        message_hub: As ``MessageHub.state_dict`` returns it.
        length: How many values of each scalar are kept, the last ones; what is logged is averaged
            over windows shorter than that.

    Returns:
        A state with the same keys.
    """
    scalars = {
        name: HistoryBuffer(*(part[-length:] for part in buffer.data), buffer.max_length)
        for name, buffer in message_hub['log_scalars'].items()
    }
    return {**message_hub, 'log_scalars': scalars}
