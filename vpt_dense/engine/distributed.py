"""Starting the process group where mmengine cannot: without CUDA."""

import os
import subprocess

import torch.distributed as dist


def set_up_cpu(launcher: str) -> None:
    """Join the group of CPU processes (gloo). mmengine's own set-up calls CUDA unconditionally.

    Args:
        launcher: ``pytorch`` (torchrun), ``slurm`` or ``mpi``; what it says about rank and world
            is put into torch's variables (``RANK``, ``LOCAL_RANK``, ``WORLD_SIZE``).

    Raises:
        KeyError: If the launcher's variables are absent, that is if nothing launched us.
    """
    if dist.is_initialized():
        return
    env = os.environ
    if launcher == 'slurm':
        env['RANK'], env['WORLD_SIZE'] = env['SLURM_PROCID'], env['SLURM_NTASKS']
        env['LOCAL_RANK'] = env.get('SLURM_LOCALID', '0')
        if 'MASTER_ADDR' not in env:
            hosts = subprocess.run(
                ['scontrol', 'show', 'hostname', env['SLURM_NODELIST']],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            env['MASTER_ADDR'] = hosts.stdout.splitlines()[0]
    elif launcher == 'mpi':
        env['RANK'], env['WORLD_SIZE'] = env['OMPI_COMM_WORLD_RANK'], env['OMPI_COMM_WORLD_SIZE']
        env['LOCAL_RANK'] = env['OMPI_COMM_WORLD_LOCAL_RANK']
        env.setdefault('MASTER_ADDR', '127.0.0.1')
    env.setdefault('MASTER_PORT', '29500')
    dist.init_process_group('gloo')
