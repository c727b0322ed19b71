"""Start one process per GPU of this machine, or CPU processes.

``python -m vpt_dense.engine.launch GPUS SCRIPT [ARGUMENT ...]``; with ``GPUS`` 0 or 1 the script
runs in one process, without a process group. Environment variables for several machines, with
torchrun's meaning: ``NNODES``, ``NODE_RANK``, ``MASTER_ADDR``, ``PORT``.

Unlike torchrun it hands signals to the processes and waits until they have saved and left, however
long that takes; and it starts without importing torch.
"""

import os
import signal
import socket
import subprocess
import sys
import time

from vpt_dense import errors, machine, preemption

#: Seconds for the other processes to end by themselves when one has ended in an error.
GRACE = 10


def main() -> None:
    """Parse the command line and run."""
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        given = ' '.join(sys.argv[1:]) or 'nothing'
        raise errors.UserError(f'usage: GPUS SCRIPT [ARGUMENT ...], GPUS a number; got {given}')
    count, script, *arguments = int(sys.argv[1]), *sys.argv[2:]
    nodes = int(os.environ.get('NNODES', 1))
    machine.check_gpus(count)
    if count <= 1 and nodes == 1:
        os.execv(sys.executable, [sys.executable, script, *arguments])
    count = max(count, 1)
    first = int(os.environ.get('NODE_RANK', 0)) * count
    common = {
        'WORLD_SIZE': count * nodes,
        'LOCAL_WORLD_SIZE': count,
        'MASTER_ADDR': os.environ.get('MASTER_ADDR', '127.0.0.1'),
        'MASTER_PORT': os.environ.get('PORT') or (_free_port() if nodes == 1 else 29500),
        # The processes share the cores of the machine.
        'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS')
        or max(1, (os.cpu_count() or 1) // count),
    }
    command = [sys.executable, script, *arguments, '--launcher', 'pytorch']
    processes = []

    def hand_on(number: int, frame: object = None) -> None:
        for process in processes:
            process.send_signal(number)  # does nothing if it has ended

    for number in preemption.SIGNALS:
        signal.signal(number, hand_on)
    for rank in range(count):
        ranks = {'RANK': first + rank, 'LOCAL_RANK': rank}
        environment = {name: str(value) for name, value in (common | ranks).items()}
        processes.append(subprocess.Popen(command, env={**os.environ, **environment}))
    try:
        codes = _wait(processes)
    except KeyboardInterrupt:  # the terminal has told the processes as well
        codes = _wait(processes, hurry=True)
    finally:
        hand_on(signal.SIGKILL)
    if preemption.EXIT_CODE in codes:
        sys.exit(preemption.EXIT_CODE)
    failed = [code for code in codes if code]
    if failed and all(code < 0 for code in failed):  # killed: nobody has reported anything
        number = -failed[0]
        message = f'a process was killed ({signal.Signals(number).name})'
        if number == signal.SIGKILL:
            message += (', as the system does when memory runs out; lower '
                        'train_dataloader.batch_size, or use --amp')
        print(f'error: {message}', file=sys.stderr)
        sys.exit(1)
    sys.exit(max(failed, default=0))


def _wait(processes: list[subprocess.Popen], hurry: bool = False) -> list[int]:
    """Wait for all; when one ends in an error, the others get some time and are then killed.

    The others cannot go on without it. One that was killed leaves them no time: they would only
    report that they have lost it.

    Returns:
        Exit codes of those that ended by themselves, in the order in which they ended.
    """
    codes, deadline = {}, time.monotonic() + GRACE if hurry else None
    while len(codes) < len(processes):
        for rank, process in enumerate(processes):
            if rank not in codes and process.poll() is not None:
                codes[rank] = process.returncode
                # After a preemption too all end at once: they have agreed on it.
                if process.returncode and deadline is None:
                    deadline = time.monotonic() + (GRACE if process.returncode > 0 else 0)
        if deadline is not None and time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return list(codes.values())


def _free_port() -> int:
    """A port that nobody listens on at the moment, so that two runs on a machine do not meet."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


if __name__ == '__main__':
    errors.main(main)
