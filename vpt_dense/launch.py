"""Start one process per GPU of this machine, or CPU processes: torchrun, for the scripts in tools.

``python -m vpt_dense.launch GPUS SCRIPT [ARGUMENT ...]``; with ``GPUS`` 0 or 1 the script runs in
one process, without a process group. Environment variables: ``MAX_RESTARTS``, how often a group
that has lost a process is started again; for several machines ``NNODES``, ``NODE_RANK``,
``MASTER_ADDR``, ``PORT`` and, together with ``MAX_RESTARTS``, ``RUN_ID``; torchrun's own
``PET_...`` for its other options. What differs from torchrun: :mod:`vpt_dense.agent`.
"""

import os
import sys

from vpt_dense import errors, machine, preemption


def main() -> None:
    """Parse the command line and run.

    Raises:
        UserError: If a number is none, or there are fewer GPUs.
    """
    preemption.listen()  # before anything that takes time is imported
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        given = ' '.join(sys.argv[1:]) or 'nothing'
        raise errors.UserError(f'usage: GPUS SCRIPT [ARGUMENT ...], GPUS a number; got {given}')
    count, *command = int(sys.argv[1]), *sys.argv[2:]
    nodes, restarts = _number('NNODES', 1), _number('MAX_RESTARTS', 0)
    run_id = os.environ.get('RUN_ID') or _made_up_id(nodes, restarts)
    machine.check_gpus(count)  # takes seconds
    if count <= 1 and nodes == 1:
        if not restarts:
            os.execv(sys.executable, [sys.executable, *command])
    else:
        command += ['--launcher', 'pytorch']
    count = max(count, 1)
    host = os.environ.get('MASTER_ADDR', 'localhost')
    options = {
        'nnodes': nodes, 'nproc-per-node': count, 'max-restarts': restarts,
        'monitor-interval': 0.05, 'rdzv-backend': 'c10d',
        # Of one machine: a port that is free, so that two runs there do not meet.
        'rdzv-endpoint': f'{host}:{os.environ.get("PORT", 0 if nodes == 1 else 29500)}',
        'rdzv-id': run_id,
    }
    if nodes == 1:
        options['local-addr'] = host  # whatever this machine is called
    if nodes == 1 or 'NODE_RANK' in os.environ:
        options['rdzv-conf'] = f'is_host={int(_number("NODE_RANK", 0) == 0)}'
    # The processes share the cores of the machine.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // count)))
    from vpt_dense import agent

    agent.run([f'--{name}={value}' for name, value in options.items()] + command)


def _number(name: str, default: int) -> int:
    value = os.environ.get(name) or str(default)
    if not value.isdigit():
        raise errors.UserError(f'{name}={value}: it must be a number')
    return int(value)


def _made_up_id(nodes: int, restarts: int) -> str:
    """A name by which a group that is started again knows its checkpoints."""
    if nodes > 1:
        if restarts:
            raise errors.UserError(
                'MAX_RESTARTS on several machines needs RUN_ID too: a name for this start, the '
                'same on all of them, by which it knows its checkpoints')
        return 'none'
    import uuid

    return uuid.uuid4().hex


if __name__ == '__main__':
    try:
        errors.main(main)
    except SystemExit as leaving:  # not waiting for torchrun, which may wait for other machines
        sys.stderr.flush()
        os._exit(leaving.code)
