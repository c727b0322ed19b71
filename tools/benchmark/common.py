"""What the benchmarks share: ways that are run in turn, and tables of their ratios."""

import argparse
import ctypes
import json
import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from vpt_dense import outputs, safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError

#: Of this process, on Linux.
STATUS = Path('/proc/self/status')
DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def parser(description: str) -> argparse.ArgumentParser:
    """A command line with the options that every benchmark has."""
    line = ArgumentParser(
        description=description.strip().splitlines()[0],
        epilog='All ways run in turn, round after round, in one process. Cells are ratios of '
        'medians; after the sign stands half the distance of the quartiles.',
    )
    line.add_argument('--rounds', type=int, default=5, help='after one that warms up')
    line.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    line.add_argument('--dtype', choices=list(DTYPES), default='float32',
                      help='of autocast; float32 is without')
    line.add_argument('--json', type=outputs.new_file, metavar='FILE',
                      help='also write all figures here')
    return line


def check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be served.

    Raises:
        UserError: Names the option.
    """
    if args.rounds < 2:
        raise UserError(f'--rounds must be at least 2, found {args.rounds}')
    try:
        device = torch.device(args.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'--device {args.device}: {str(error).splitlines()[0]}') from error


def autocast(args: argparse.Namespace) -> AbstractContextManager:
    """The precision that ``--dtype`` asks for."""
    if args.dtype == 'float32':
        return nullcontext()
    return torch.autocast(torch.device(args.device).type, DTYPES[args.dtype])


def synchronise(device: str) -> None:
    """Wait until the device has done what it was told."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: str = 'cpu') -> float:
    """Time one call in seconds, the device's work included."""
    synchronise(device)
    start = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - start


def in_turn(
    ways: dict[str, Callable[[], object]], rounds: int, device: str = 'cpu'
) -> dict[str, list[float]]:
    """Time all ways, one call each a round; the first round only warms up.

    Args:
        ways: Functions without arguments, by the name of the way.
        rounds: Times that are kept for each way.
        device: Whose work is waited for.

    Returns:
        Seconds of each call, by the name of the way.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, function in ways.items():
            value = seconds(function, device)
            if turn:
                times[name].append(value)
    return times


def kept_bytes(function: Callable[[], torch.Tensor], parameters: Iterable[torch.Tensor]) -> int:
    """Count what a forward pass keeps for backward, measured with saved-tensor hooks.

    Every storage counts once, as a whole; parameters are left out.

    Args:
        function: Runs the forward pass and returns what holds the graph.
        parameters: Of the model; tensors that would be there anyway.

    Returns:
        Bytes.
    """
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # itself, if it is an output, would hold its own graph for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function()  # held until all is counted, so that no memory is used twice
    total = sum(size for pointer, size in kept.items() if pointer not in known)
    del out
    return total


def process_memory(key: str) -> int:
    """A figure of this process's memory in bytes, by its name in Linux's /proc/self/status.

    Args:
        key: 'VmRSS', what is resident; 'VmHWM', the most that was since :func:`forget_peak`.
    """
    text = STATUS.read_text()
    return int(re.search(rf'^{key}:\s*(\d+) kB', text, re.M)[1]) * 1024


def forget_peak() -> None:
    """Let the peak of this process's memory start anew.

    The allocator gives back what it keeps: a call that takes it would seem to need nothing.
    """
    if hasattr(libc := ctypes.CDLL(None), 'malloc_trim'):  # glibc
        libc.malloc_trim(0)
    STATUS.with_name('clear_refs').write_text('5')


def ratio(values: list[float], base: list[float]) -> str:
    """A cell: the ratio of two medians and the spread of the first."""
    middle = statistics.median(base)
    quartiles = statistics.quantiles(values, n=4)
    spread = (quartiles[2] - quartiles[0]) / 2 / middle
    return f'{statistics.median(values) / middle:.2f} ± {spread:.2f}'


def show(title: str, columns: list[str], rows: list[list[str]], note: str = '') -> None:
    """Print a table, and below it a note with the version of torch and the threads."""
    tables.show(columns, rows, title)
    print(f'{note}{"; " if note else ""}torch {torch.__version__}, {torch.get_num_threads()} CPU '
          'threads')


def write(path: Path | None, args: argparse.Namespace, figures: object) -> None:
    """Write what was measured, with the options it was measured with, as JSON."""
    if path is not None:
        options = {key: value for key, value in vars(args).items() if key not in ('json',)}
        safe_files.write_text(path, json.dumps(
            {'options': options, 'torch': torch.__version__, 'figures': figures},
            indent=1, default=str) + '\n')
