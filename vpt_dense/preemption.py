"""Signals by which a cluster asks a run to stop: caught at once, answered when it is safe.

Slurm sends SIGTERM before it takes the nodes away (preemption, time limit, ``scancel``), or what
``--signal`` names, usually SIGUSR1. Nothing heavy is imported here: a run listens from its start.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from vpt_dense import live

#: EX_TEMPFAIL of sysexits.h: not done, try again.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """The run leaves because it was asked to; everything has been said and saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class _State:
    owner: int | None = None  # the process that listens; forked loader workers inherit the handler
    received: str | None = None
    where: str | None = None  # what is going on, where a signal is answered at once


def listen() -> None:
    """From now on a signal makes this process leave, at once or at the next safe place."""
    if _State.owner == os.getpid() or threading.current_thread() is not threading.main_thread():
        return
    _State.owner, _State.received = os.getpid(), None
    leave_at_once('before training began: nothing was saved')
    for number in SIGNALS:
        signal.signal(number, _answer)


def stop_listening() -> None:
    """Let the signals do what they do by default; they are the main thread's, as in listen."""
    if _State.owner == os.getpid() and threading.current_thread() is threading.main_thread():
        _State.owner = None
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)


def received() -> str | None:
    """Name of the signal that has come, if any."""
    return _State.received


def hold() -> None:
    """Signals are remembered only; who calls this looks at :func:`received`."""
    _State.where = None


def leave_at_once(where: str) -> None:
    """A signal, also one that has come already, is answered at once.

    Args:
        where: Goes into the line that is printed then.
    """
    _State.where = where
    if _State.received:
        leave(f'preempted ({_State.received}) {where}')


def leave(line: str) -> NoReturn:
    """Print a line on stderr, in the first process only, and raise :class:`Preempted`."""
    if live.is_first():
        sys.stdout.flush()
        # A signal may have come while sys.stderr was being written to; it cannot be entered twice.
        os.write(2, f'{live.clearing()}{line}\n'.encode())
    raise Preempted


def _answer(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _State.owner:  # a loader worker that has not got its own handler yet
        return
    if _State.received:
        return
    _State.received = signal.Signals(number).name
    if _State.where is not None:
        leave(f'preempted ({_State.received}) {_State.where}')


def start_worker(initialise: Callable[[int], None] | None, worker_id: int) -> None:
    """Make a loader worker survive the signal: Slurm signals it too, but the run still needs it.

    torch's own handler ends the worker, whoever sends SIGTERM, and the run with an error. From its
    parent a worker still takes it: so it is told to end. Not on macOS, where the sender is unknown.

    Args:
        initialise: What the loader has to do in a new worker.
        worker_id: Number of the worker.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        # Blocked, so that it is left to the thread that waits for it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if initialise is not None:
        initialise(worker_id)


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
