"""What runs leave, read so that nothing which is missing or broken is in the way of the rest."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: What says that a folder is one of a run.
OF_RUNS = ('summary.json', 'test.json', 'val.json', 'evaluations.json', 'params.json')


def command_line() -> str:
    """The command that this process was started with, as one types it."""
    name, *arguments = sys.argv
    if name in ('', '-c', '-m'):
        return ''
    start = ['python', name] if name.endswith('.py') else name.split(' ')
    return shlex.join([*start, *arguments])


def read(path: Path, kind: type, problems: list[str]) -> Any:
    """A JSON file's content.

    Args:
        path: The file.
        kind: What the content must be: dict or list.
        problems: Gets a sentence if the file is there and is not that.

    Returns:
        The content; None if there is none.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problems.append(f'{path.name} cannot be read: {" ".join(str(error).split())}')
        return None
    if not isinstance(content, kind):
        problems.append(f'{path.name} is no record of a run')
        return None
    return content


def scalars(folder: Path, ended: str | None = None) -> list[dict[str, Any]]:
    """What a training logged: loss, rates and scores by step.

    A run that was resumed has a log for each start; of steps in several the latest counts.

    Args:
        folder: Of the run.
        ended: The folder of the log of the last start; None: the newest that has losses.

    Returns:
        Lines with a ``step``, in its order, from the first of the run's training.
    """
    found: dict[int, dict[str, Any]] = {}
    first = None  # of what was gathered
    logs = sorted(folder.glob('*/vis_data/scalars.json'), key=lambda log: log.parts[-3])
    for log in reversed(logs):
        if ended and log.parts[-3] > ended:
            continue
        lines = list(_lines(log))
        steps = [line['step'] for line in lines if 'loss' in line]
        if not steps or (first is not None and min(steps) >= first):
            continue  # of a test, or of a start that came no further back
        for line in lines:
            if first is None or line['step'] < first:
                found[line['step']] = {**line, **found.get(line['step'], {})}
        first, step = min(steps), min(_distances(steps), default=min(steps))
        if first <= step:  # it did not go on with another
            break
    return [found[step] for step in sorted(found)]


def _lines(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that are whole; a run that was killed may have left half of one."""
    try:
        text = log.read_text(encoding='utf-8', errors='replace')
    except OSError:
        return
    for row in text.splitlines():
        try:
            line = json.loads(row)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get('step'), int):
            yield line


def _distances(steps: list[int]) -> Iterator[int]:
    for one, other in zip(steps, steps[1:], strict=False):
        if other > one:
            yield other - one


def config_text(folder: Path, name: str | None) -> str | None:
    """The config that a run has kept.

    Args:
        folder: Of the run.
        name: Of the file that it was started with; None: built in code.
    """
    stem = Path(name).stem if name else None
    files = sorted(folder.glob('*.py'), key=lambda file: (file.stem != stem, file.name))
    files += sorted(folder.glob('*/vis_data/config.py'), reverse=True)
    for file in files:
        try:
            return file.read_text(encoding='utf-8', errors='replace')
        except OSError:
            continue
    return None


def stamp(experiment: str | None) -> str | None:
    """The time in the name of an experiment, which its folder of logs is called by."""
    found = re.search(r'\d{8}_\d{6}$', experiment or '')
    return found[0] if found else None


def as_call(config: dict[str, Any]) -> str:
    """The config of an object, written as a call."""
    arguments = ', '.join(f'{key}={value!r}' for key, value in config.items() if key != 'type')
    return f'{config["type"]}({arguments})' if arguments else str(config['type'])
