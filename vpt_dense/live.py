"""Shows progress: one changing line on a terminal, plain lines now and then elsewhere.

A thread would be simpler to write for, but loader workers are forked: so whoever works calls
:func:`show` often, and it does something when it is time.
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

#: Seconds between two states of the line on a terminal.
LIVE = 0.2
#: Seconds without any line after which a plain one is told elsewhere: the first one, later ones.
PLAIN = (10, 60)

#: From the beginning of the terminal's line: the rest of it is deleted.
_CLEAR = '\r\x1b[K'

Item = TypeVar('Item')


class _State:
    shown = False  # whether the cursor stands behind a live line
    changed = 0.0
    told = time.monotonic()
    has_told = False


def is_first() -> bool:
    """Whether this is the first process, or the only one; before any group of them is there."""
    return rank() == 0


def rank() -> int:
    """The number of this process, as torchrun or Slurm says."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)))


def show(text: Callable[[], str], say: Callable[[str], object]) -> None:
    """Show what is going on, if it is time for that; in the first process only.

    Args:
        text: Makes the line.
        say: Prints a plain line, where there is no terminal.
    """
    if not is_first():
        return
    now = time.monotonic()
    if _on_terminal():
        if now - _State.changed >= LIVE:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f'\r{text()[:width]}\x1b[K')
            sys.stderr.flush()
            _State.shown, _State.changed = True, now
    elif now - _State.told >= PLAIN[_State.has_told]:
        _State.told, _State.has_told = now, True
        say(text())


def _on_terminal() -> bool:
    """Both streams: a log that is piped through `tee` would fall into the line."""
    streams = sys.stdout.isatty() and sys.stderr.isatty()
    return streams and os.environ.get('TERM') != 'dumb'


def clear() -> None:
    """Take the live line away: something else will be printed."""
    if _State.shown:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
    _State.shown, _State.told = False, time.monotonic()


def clearing() -> str:
    """The text that clears the live line, for code that does not write through ``sys.stderr``."""
    return _CLEAR if _State.shown else ''


def track(
    items: Iterable[Item], total: int, what: str, say: Callable[[str], object]
) -> Iterator[Item]:
    """Iterate, and show how far that is.

    Args:
        items: What to iterate over.
        total: How many they are.
        what: What is done with them, a few words.
        say: As in :func:`show`.
    """
    show(lambda: f'{what}: 0 of {total:,}', say)
    for done, item in enumerate(items, 1):
        yield item
        show(lambda done=done: f'{what}: {done:,} of {total:,}', say)
    clear()
