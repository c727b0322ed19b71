"""Errors that a user can cause; a tool reports them in one line, a traceback only on request."""

import argparse
import atexit
import difflib
import errno
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from vpt_dense import live, preemption

#: The package's own folder. A checkout of the same name holds other code too: its `.venv`.
_PACKAGE = os.path.join(os.path.dirname(__file__), '')

#: A disk, a quota or a limit on the size of files that is reached.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Exit code of a tool that was asked for something impossible.
USER_ERROR = 2
#: And of one that was ended with Ctrl-C.
INTERRUPTED = 130


class UserError(ValueError):
    """Something in the config, the command or the data is wrong.

    The message is one line: the config key or file, what was found there, the way out.
    """


def count(text: str) -> int:
    """The ``type`` of an option that is a number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is no number of at least 1')
    return int(text)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with ``--traceback``, for use under :func:`main`: errors are one line."""

    #: Whether ``--traceback`` was given to the tool that runs; None: nothing is parsed yet.
    traceback: bool | None = None
    #: Takes the parser where a shell asks what the command line could go on with.
    complete: Callable[[argparse.ArgumentParser], object] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_argument(
            '--traceback', action=_Traceback, nargs=0, default=argparse.SUPPRESS,
            help='show the traceback of an error',
        )  # fmt: skip

    def add_config_options(self, help: str = 'override settings', method: bool = True) -> None:
        """Add what ``config.load`` takes beside a file.

        Args:
            help: Of ``--cfg-options``, a list of ``KEY=VALUE``.
            method: Whether there is ``--method NAME`` too.
        """
        if method:
            self.add_argument(
                '--method', metavar='NAME',
                help='what trains, for a config that is a recipe: deep, lora, ...')
        self.add_argument(
            '--cfg-options', nargs='+', action='extend', metavar='KEY=VALUE', help=help
        )

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See :class:`argparse.ArgumentParser`."""
        ArgumentParser.traceback = bool(ArgumentParser.traceback)
        if ArgumentParser.complete is not None:
            ArgumentParser.complete(self)
        return super().parse_known_args(args, namespace)

    def parse_known_intermixed_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """See :class:`argparse.ArgumentParser`."""
        if ArgumentParser.complete is not None:  # before it hides positional arguments for a while
            ArgumentParser.complete(self)
        return super().parse_known_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError`."""
        raise UserError(f'{message}; see {self.prog} --help')


class _Traceback(argparse.Action):
    def __call__(self, *args: Any) -> None:
        ArgumentParser.traceback = True


def suggest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{near[0]}'?" if near else ''


def main(function: Callable[[], object]) -> NoReturn:
    """Run a tool and exit; after an error with one line ``error: ...`` on stderr.

    ``--traceback`` on the command line shows the traceback as well. Whether asked or not, it goes
    to the log file of the run if there is one.

    The exit code is 0 when all went well; :data:`USER_ERROR` (2, as argparse has it) where the
    command, the config, the data or a file is wrong; 1 for what nobody foresaw, and when memory
    runs out; 130 after Ctrl-C. A run that was preempted leaves with 75 by itself.

    Args:
        function: The tool; its return value is ignored.
    """
    # Registered before anything that the tool imports registers its own: so this one runs last.
    atexit.register(_skip_finalization)
    # What a notebook hands to commands of its cells: they draw into no cell, and may not even have
    # that backend; and a cell shows bars that move as thousands of lines.
    if 'matplotlib_inline' in os.environ.get('MPLBACKEND', ''):
        for name in ('MPLBACKEND', 'FORCE_COLOR', 'CLICOLOR_FORCE'):
            os.environ.pop(name, None)
    ArgumentParser.traceback = None
    threading.excepthook = _quietly_full
    try:
        function()
        sys.stdout.flush()  # into a file on a full disk
    except KeyboardInterrupt:
        _leave('interrupted', INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, e.g. `| head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except preemption.Preempted as stop:
        _end(stop.code)
    except Exception as error:
        if preemption.received() and _distributed_has_started():
            _end(preemption.EXIT_CODE)  # another process has left, and this one has lost it
        trace = traceback.format_exc()
        asked = ArgumentParser.traceback
        if asked is None:  # it ended before it looked at its command line
            asked = '--traceback' in sys.argv
        if asked:
            print(trace, file=sys.stderr, end='')
        log_file = _to_log_file(trace)
        message = explain(error)
        if not asked and not is_plain(error):
            where = f'in {log_file}' if log_file else 'with --traceback'
            message = f'{message} (traceback {where})'
        _leave(f'error: {message}', exit_code(error))
    if _distributed_has_started():
        sys.modules['torch'].distributed.destroy_process_group()
        _Ending.in_one_piece = True
    sys.exit(0)


def _quietly_full(thread: threading.ExceptHookArgs) -> None:
    """Leave it to the main thread to say that a disk is full: TensorBoard's writer tells it."""
    if not (isinstance(thread.exc_value, OSError) and thread.exc_value.errno in FULL):
        threading.__excepthook__(thread)


class _Ending:
    in_one_piece = False  # a distributed run that went well leaves without finalization


def _skip_finalization() -> None:
    """End the process here, after all other exit handlers, if a distributed run went well.

    Threads of its process group live as long as anything refers to the group, as DDP's reducer
    does: into the interpreter's finalization. One that takes the GIL there ends the process with
    SIGABRT, "terminate called without an active exception"
    (https://github.com/pytorch/pytorch/pull/179291).
    """
    if _Ending.in_one_piece:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def _leave(line: str, code: int) -> NoReturn:
    """Print the last line and end the process.

    The processes of a distributed run meet the same error at the same place as long as they do not
    train yet; then rank 0 speaks for all.
    """
    live.clear()
    _flush_output()
    rank = live.rank()
    started = _distributed_has_started()
    if rank == 0 or started:
        # In one piece: torchrun's processes are unbuffered, and others write there meanwhile.
        sys.stderr.write(f'{line}\n' if rank == 0 else f'{line} (rank {rank})\n')
        sys.stderr.flush()
    _end(code)


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError:  # a full disk; the interpreter would try again when it ends, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(code: int) -> NoReturn:
    _flush_output()
    if _distributed_has_started():
        # The other ranks may wait for this one for ever: a normal exit would wait for them.
        os._exit(code)
    sys.exit(code)


def _distributed_has_started() -> bool:
    torch = sys.modules.get('torch')
    return bool(
        torch is not None
        and torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _to_log_file(trace: str) -> str | None:
    """Append the traceback to the run's log file; return the file's path."""
    module = sys.modules.get('mmengine.logging.logger')
    logger = module and next(reversed(module.MMLogger._instance_dict.values()), None)
    path = getattr(logger, 'log_file', None)
    if not path or not os.path.isfile(path):
        return None
    try:
        with open(path, 'a', encoding='utf-8') as stream:
            stream.write(trace)
    except OSError:  # the disk may be what the trace is about
        return None
    return os.path.relpath(path)


#: Errors of the stack that a typing error in a config causes.
_UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (\w+)::([\w ]+?) registry')
_UNKNOWN_ARGUMENT = re.compile(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'")


def is_plain(error: BaseException) -> bool:
    """Whether the user caused it and the message says what to do: no traceback is pointed at."""
    if isinstance(error, subprocess.CalledProcessError):
        return True
    if isinstance(error, OSError):  # a file that is absent, unreadable, a folder; a full disk
        if error.errno in FULL:
            return True
        return bool(error.strerror and error.filename) or isinstance(error, FileNotFoundError)
    if isinstance(error, ValueError) and _raised_in_package(error):
        return True  # our own classes check their arguments with plain ValueErrors
    if isinstance(error, UserError):
        return True
    return bool(
        _being_built(error)
        or (isinstance(error, KeyError) and _UNKNOWN_TYPE.search(str(error)))
        or (isinstance(error, TypeError) and _UNKNOWN_ARGUMENT.search(str(error)))
    )


def exit_code(error: BaseException) -> int:
    """The exit code of a tool that ends in an error, see :func:`main`."""
    if isinstance(error, subprocess.CalledProcessError):  # the code of the tool that failed
        return error.returncode if error.returncode > 0 else 1
    return USER_ERROR if is_plain(error) else 1


def _being_built(error: BaseException) -> str | None:
    """The class that a config asked for and whose constructor refused what the config gives it."""
    found = None
    if isinstance(error, (AssertionError, ValueError, TypeError, KeyError, IndexError)):
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_name == 'build_from_cfg' and 'obj_cls' in frame.f_locals:
                found = getattr(frame.f_locals['obj_cls'], '__name__', None)
    return found


def is_programs(error: BaseException) -> bool:
    """Whether the program or its installation failed, and not the file that it was reading.

    What readers of files raise about a damaged one differs by library and version; a name that is
    not there, a module that cannot be imported and memory that ran out say nothing about the file.
    """
    if isinstance(error, (AttributeError, TypeError)):
        return _raised_in_package(error)
    return isinstance(error, (ImportError, NameError, MemoryError)) or (
        isinstance(error, RuntimeError) and 'memory' in str(error) and 'alloc' in str(error).lower()
    )


def _raised_in_package(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.startswith(_PACKAGE)


def explain(error: BaseException) -> str:
    """Reduce an exception to the one line that matters, without type names and framework prefixes.

    Args:
        error: Any exception, the stack's included (data loader workers, registries, CUDA).
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    if isinstance(error, OSError) and error.errno in FULL:  # streams do not know their name
        where = f'cannot write {error.filename}' if error.filename else 'a file cannot be written'
        return f'{where}: the disk is full ({error.strerror}); free some space and go on'
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f'{error.filename}: {error.strerror.lower()}'

    if isinstance(error, subprocess.CalledProcessError):  # it has printed its own error already
        return f'{" ".join(map(str, error.cmd))}: exit code {error.returncode}, see above'

    registry = _UNKNOWN_TYPE.search(text)
    if registry:
        return _unknown_type(*registry.groups())

    name = type(error).__name__
    if 'Original Traceback' in text:  # raised in a data loader worker, trace and all
        last = [line for line in text.splitlines() if line and not line[0].isspace()][-1]
        worker = re.match(r'(?:[\w.]+\.)?(\w+): (.*)', last)
        name, text = worker.groups() if worker else (name, last)
        if name == 'UserError' or name == 'ValueError':
            return text
    if 'out of memory' in text.lower():
        return (
            f'out of memory: {_first_line(text)}; lower train_dataloader.batch_size, or use --amp '
            'or --cfg-options model.backbone.memory=lean'
        )
    # "class `X` in mmseg/models/x.py: message", as some registries put it
    text = re.sub(r'^class `(\w+)` in [\w/.]+\.py: ', r'\1: ', text)
    unexpected = _UNKNOWN_ARGUMENT.search(text)
    if unexpected:
        return f"{unexpected[1]} has no argument '{unexpected[2]}'; look for a typo in the config"
    line = _first_line(text)
    if isinstance(error, (UserError, FileNotFoundError)) or (
        isinstance(error, ValueError) and _raised_in_package(error)
    ):
        return line or name
    refusing = _being_built(error)
    if refusing:
        return f'{refusing} refuses its arguments: {line or name}; look for its type in the config'
    return f'{name}: {line}' if line else name


def _first_line(text: str) -> str:
    return ' '.join(next((line for line in text.splitlines() if line.strip()), '').split())


def _unknown_type(wanted: str, scope: str, registry_name: str) -> str:
    """Say which type a config asked for in vain and which known one looks like it."""
    from mmengine import registry as mmengine_registry

    import vpt_dense.registry  # noqa: F401  makes our registries known

    known = set()
    for root in vars(mmengine_registry).values():
        if isinstance(root, mmengine_registry.Registry) and root.name == registry_name:
            known.update(root.module_dict)
            for child_scope, child in root.children.items():
                if child_scope == 'vpt_dense':
                    child.import_from_location()
                prefix = '' if child_scope == scope and '.' not in wanted else f'{child_scope}.'
                names = {*child.module_dict, *getattr(child, 'on_demand', ())}
                known.update(prefix + name for name in names)
    hint = suggest(wanted, known)
    if not hint and '.' not in wanted:
        # the right class in another scope
        hint = suggest(f'vpt_dense.{wanted}', known, cutoff=0.85)
    return f"unknown type '{wanted}' (no {registry_name} of that name in scope {scope}){hint}"
