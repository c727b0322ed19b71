"""Start one process per GPU of this machine, or CPU processes: torchrun without its noise.

``python -m vpt_dense.engine.launch GPUS SCRIPT [ARGUMENT ...]``; with ``GPUS`` 0 or 1 the script
runs in one process, without a process group. Environment variables for several machines, with
torchrun's meaning: ``NNODES``, ``NODE_RANK``, ``MASTER_ADDR``, ``PORT``.
"""

import logging
import os
import signal
import socket
import subprocess
import sys

from vpt_dense import errors, preflight


def main() -> None:
    """Parse the command line and run."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        given = ' '.join(sys.argv[1:]) or 'nothing'
        raise errors.UserError(f'usage: GPUS SCRIPT [ARGUMENT ...], GPUS a number; got {given}')
    count, script, *arguments = int(sys.argv[1]), *sys.argv[2:]
    nodes = int(os.environ.get('NNODES', 1))
    preflight.check_gpus(count)
    if count <= 1 and nodes == 1:
        sys.exit(subprocess.call([sys.executable, script, *arguments]))
    # The other processes share the cores of the machine; torchrun would give each just one thread.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // max(count, 1))))

    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The processes report their own errors; torchrun's report of that would be 30 lines more.
    logging.getLogger('torch.distributed.elastic').setLevel(logging.CRITICAL)
    logging.getLogger('torch.distributed.run').setLevel(logging.CRITICAL)
    master = os.environ.get('MASTER_ADDR', '127.0.0.1')
    port = os.environ.get('PORT') or (_free_port() if nodes == 1 else 29500)
    options = [f'--nproc-per-node={max(count, 1)}', f'--nnodes={nodes}']
    options += [f'--node-rank={os.environ.get("NODE_RANK", 0)}']
    options += [f'--master-addr={master}', f'--master-port={port}']
    try:
        run.main([*options, script, *arguments, '--launcher', 'pytorch'])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        if all(code < 0 for code in codes):  # killed: nobody has reported anything
            number = -codes[0]
            message = f'a process was killed ({signal.Signals(number).name})'
            if number == signal.SIGKILL:
                message += (', as the system does when memory runs out; lower '
                            'train_dataloader.batch_size, or use --amp')
            raise errors.UserError(message) from error
        sys.exit(1)


def _free_port() -> int:
    """A port that nobody listens on at the moment, so that two runs on a machine do not meet."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


if __name__ == '__main__':
    errors.main(main)
