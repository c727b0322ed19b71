"""Two processes of one group, and processes that begin with what is slow to import, for tests."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_two(work: Callable, *arguments: Any) -> list:
    """Run ``work(rank, *arguments, found)`` in two new processes, one thread each.

    Their environment is that of a launcher; ``work`` joins them into a group, which ends here.
    They are forks of one process that has imported everything already, which takes seconds.

    Args:
        work: A function of a module.
        *arguments: What can be pickled.

    Returns:
        What the two appended to ``found``.
    """
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    context = mp.get_context('forkserver')
    context.set_forkserver_preload([
        'vpt_dense', 'mmpretrain.models', 'mmseg.models', 'vpt_dense.preflight'])
    with context.Manager() as manager:
        found = manager.list()
        mp.start_processes(
            _enter, (work, port, arguments, found), nprocs=2, start_method='forkserver')
        return list(found)


def _enter(rank: int, work: Callable, port: int, arguments: tuple, found: list) -> None:
    gc.freeze()  # what is imported already is no garbage
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port),
                      RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))  # fmt: skip
    work(rank, *arguments, found)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Threads that outlive the group may abort the interpreter's finalization, see vpt_dense.errors.
    os._exit(0)


#: Runs code given on stdin in forks of itself.
_WARM = """
import json, os, sys, traceback
for line in sys.stdin:
    code, args, folder = json.loads(line)
    if not (child := os.fork()):
        for stream, name in (1, 'out'), (2, 'err'):
            os.dup2(os.open(f'{folder}/{name}', os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        sys.argv, status = ['-c', *args], 1
        try:
            exec(compile(code, 'code', 'exec'), dict(__name__='__main__'))
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
            if isinstance(status, str):
                print(status, file=sys.stderr)
                status = 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextlib.contextmanager
def warm(begin: str, folder: Path, **options: Any) -> Iterator[Callable]:
    """Start a process that runs some code, and give a function that goes on in forks of it.

    Args:
        begin: The code, which imports what each would import for seconds, and starts no thread.
        folder: Where the outputs are.
        **options: Of ``subprocess.Popen``.

    Yields:
        ``run(code, *arguments)``, which is like ``python -c code arguments`` and returns its
        ``subprocess.CompletedProcess``.
    """
    with subprocess.Popen(
        [sys.executable, '-c', begin + _WARM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, **options,
    ) as process:

        def run(code: str, *arguments: object) -> subprocess.CompletedProcess:
            line = json.dumps([code, [str(each) for each in arguments], str(folder)])
            print(line, file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            out, err = ((folder / name).read_text() for name in ('out', 'err'))
            return subprocess.CompletedProcess(line, code, out, err)

        yield run
        process.stdin.close()
