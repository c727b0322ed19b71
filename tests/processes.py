"""Two processes of one group, for tests."""

import gc
import os
import socket
from collections.abc import Callable
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
