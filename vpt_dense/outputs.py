"""Output of tools and runs: existing files are never replaced without being asked."""

import argparse
import contextlib
import errno
import fcntl
import os
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vpt_dense.errors import UserError

if TYPE_CHECKING:
    from mmengine.runner import Runner

#: In a work folder, locked by the process that writes there; its text says who that is.
LOCK = 'run.lock'


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a tool overwrite."""
    parser.add_argument('--force', action='store_true', help='overwrite what is there already')


def check_free(
    outs: Iterable[str | Path], force: bool, sources: Iterable[str | Path] = ()
) -> None:
    """Refuse to write over what is there, before anything is computed.

    Args:
        outs: Files that will be written, or folders that will get files.
        force: Whether the user lets them be overwritten.
        sources: Files that are read; they are never overwritten.

    Raises:
        UserError: If a file is there, or a folder that is not empty; or one is a source.
    """
    read = {Path(source).expanduser().resolve() for source in sources}
    for out in map(Path, outs):
        if out.resolve() in read:
            raise UserError(f'{out} is what is read; name another file to write')
        there = any(out.iterdir()) if out.is_dir() else out.exists()
        if there and not force:
            raise UserError(
                f'{out} is {"not empty" if out.is_dir() else "there already"}; name another, or '
                'overwrite it with --force'
            )


def new_file(path: str) -> Path:
    """As ``type`` of an argument: the name of a file that is not there yet."""
    if Path(path).exists():
        raise argparse.ArgumentTypeError(f'{path} is there already; name another, or remove it')
    return Path(path)


class FolderLock:
    """A folder that one process alone writes to, as long as this object lives.

    A lock of the operating system (POSIX, ``fcntl``): it ends with its process, however that ends,
    holds on network file systems that have locks, and is not handed down to forked loader workers.
    Within a process a folder may be locked several times; it is free when all have let go.

    Args:
        folder: It must exist.

    Raises:
        UserError: If another process has it; the message names it.
    """

    _held: 'weakref.WeakValueDictionary[Path, FolderLock]' = weakref.WeakValueDictionary()

    def __new__(cls, folder: str | Path) -> 'FolderLock':
        """Lock a folder, or share the lock that this process has."""
        path = Path(folder).resolve() / LOCK
        held = cls._held.get(path)
        if held is not None:
            return held
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 1000, 0).decode(errors='replace').strip()
            os.close(handle)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise UserError(
                    f'work_dir {folder} is in use by {owner or "another process"}; wait for it to '
                    'end, or take another --work-dir'
                ) from error
            print(f'warning: {path} cannot be locked ({error.strerror}): see to it yourself that '
                  'no other run enters this folder', file=sys.stderr, flush=True)
            return super().__new__(cls)
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            os.close(handle)  # of a process that has just ended, and taken the file with it
            return cls(folder)
        os.ftruncate(handle, 0)
        started = time.strftime('%Y-%m-%d %H:%M:%S')
        text = f'process {os.getpid()} on {socket.gethostname()}, since {started}\n'
        os.pwrite(handle, text.encode(), 0)
        lock = super().__new__(cls)
        weakref.finalize(lock, _let_go, path, handle, os.getpid())
        cls._held[path] = lock
        return lock


@contextlib.contextmanager
def waiting_lock(
    folder: str | Path, told: Callable[[str], object] | None = None,
    stop: threading.Event | None = None, pause: float = 0.2,
) -> Iterator[FolderLock]:  # fmt: skip
    """A folder's lock, when the process that has it lets go.

    Args:
        folder: It must exist.
        told: Called once with who has it, if it has to be waited for.
        stop: Ends the waiting when it is set.
        pause: Seconds between two looks.

    Raises:
        UserError: If it was stopped.
    """
    stop = stop or threading.Event()
    while True:
        try:
            lock = FolderLock(folder)
            break
        except UserError as error:
            if told:
                told(str(error).partition(';')[0])
                told = None
        if stop.wait(pause):
            raise UserError('interrupted')
    try:
        yield lock
    finally:
        del lock


def _let_go(path: Path, handle: int, owner: int) -> None:
    """Remove a lock's file and unlock it; a forked process, which has no lock, leaves the file."""
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
    os.close(handle)


def goes_on(runner: 'Runner') -> bool:
    """Whether a run goes on with what lies in its ``work_dir``."""
    start, folder = runner._load_from, Path(runner.work_dir)
    if not runner._resume or start is None:  # None: it is yet to be found there
        return bool(runner._resume)
    pointer = folder / 'last_checkpoint'
    last = pointer.read_text(encoding='utf-8').strip() if pointer.is_file() else None
    start = Path(start).resolve()
    return start.parent == folder.resolve() or bool(last) and Path(last).resolve() == start


def put_aside(files: Iterable[Path], folder: Path, runner: 'Runner') -> None:
    """Move what an earlier run has left into a folder of its own, and say so.

    Args:
        files: Those that are not there are left out.
        folder: Gets the new folder, ``before_`` and the time at which the new run has started.
        runner: The new run.
    """
    files = [file for file in files if file.exists()]
    aside = folder / f'before_{runner.timestamp}'
    while any((aside / file.name).exists() for file in files):
        aside = aside.with_name(f'{aside.name}_')
    for file in files:
        aside.mkdir(parents=True, exist_ok=True)
        os.replace(file, aside / file.name)
    if files:
        names = ', '.join(file.name for file in files[:3]) + (', ...' if len(files) > 3 else '')
        runner.logger.info('of an earlier run, now in %s: %s', aside, names)
