"""Facts about the machine and this process: peak memory, GPUs."""

import os
import re
import resource
import sys
from pathlib import Path

from vpt_dense.errors import UserError


def resident_peak() -> int:
    """The most memory that this process has held, in bytes."""
    status = Path('/proc/self/status')
    if status.is_file():
        # Not getrusage: it counts the peak of the process that started this one too.
        return int(re.search(r'^VmHWM:\s*(\d+) kB', status.read_text(), re.M)[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def check_gpus(asked: int) -> None:
    """Compare the processes on this machine with its GPUs; without GPUs they run on the CPU."""
    import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if present and asked > present:
        raise UserError(
            f'asked for {asked} GPUs but this machine has {present} '
            f'(CUDA_VISIBLE_DEVICES={os.environ.get("CUDA_VISIBLE_DEVICES", "not set")})'
        )
