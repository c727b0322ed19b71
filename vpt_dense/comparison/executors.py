"""Where the cells of a suite run: here, as jobs of Slurm, on a Ray cluster.

Each cell is a process ``vpt-dense suite FILE --cell TASK/METHOD``, wherever it is; so the records
are the same, and a cell that was lost goes on where it was.
"""

import contextlib
import importlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from vpt_dense import outputs
from vpt_dense.comparison import runs
from vpt_dense.errors import UserError, explain

Say = Callable[[str], object]

#: Seconds between two looks at what runs elsewhere.
PAUSE = 1.0
#: How often Ray starts a cell again whose worker has died.
_RETRIES = 3
#: Seconds in which the head of a cluster must answer.
_PATIENCE = 10
#: Settings of Slurm that submitit takes as lists.
_LISTS = ('slurm_setup', 'slurm_teardown', 'slurm_srun_args')
#: What a worker elsewhere takes over from here.
_VARIABLES = ('PYTHONPATH', 'HF_HOME', 'HF_HUB_OFFLINE')


@dataclass(frozen=True)
class Job:
    """A cell, as executors see it.

    Attributes:
        name: ``TASK/METHOD``.
        command: Arguments of Python.
        place: The folder that is locked while it runs; it gets ``output.log``.
    """

    name: str
    command: tuple[str, ...]
    place: Path


def work(
    command: Sequence[str], log: str, threads: int | None, folder: str,
    environment: Mapping[str, str],
) -> str | None:  # fmt: skip
    """Run a cell, on whatever machine this is called.

    Args:
        command: Arguments of Python.
        log: Gets the output.
        threads: Of the process; None: what the machine's environment says, or all its CPUs.
        folder: The working directory.
        environment: Further variables.

    Returns:
        The error, or None.
    """
    os.chdir(folder)
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    said = os.environ.get('OMP_NUM_THREADS', '')
    threads = threads or (int(said) if said.isdecimal() and int(said) else runs.num_cpus())
    try:
        runs.call(command, Path(log), threads, environment=environment)
    except UserError as error:
        return explain(error)
    return None


class Work:
    """:func:`work`, for submitit: what a cluster ends early is put into the queue again."""

    def __call__(self, *args: Any) -> str | None:
        """Run a cell."""
        return work(*args)

    def checkpoint(self, *args: Any) -> Any:
        """What is put into the queue: the same, which goes on where it was."""
        return _import('submitit', 'slurm').helpers.DelayedSubmission(self, *args)


def _import(name: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"--executor {extra} needs {name}: pip install 'vpt_dense[{extra}]'") from error


# --- here ----------------------------------------------------------------------------------------


def local(jobs: Sequence[Job], slots: int, threads: int, gpus: int, say: Say) -> dict[str, str]:
    """Run cells as processes of this machine.

    A cell that another process has is left for later, and waited for in the end.

    Args:
        jobs: The cells.
        slots: Cells at a time.
        threads: Of each.
        gpus: How many this machine has; each slot has one of them.
        say: Prints a line.

    Returns:
        Cell -> error.
    """
    left, lock, stop = list(jobs), threading.Lock(), threading.Event()
    failures: dict[str, str] = {}
    told: set[str] = set()

    def next_job() -> Job | None:
        """The next that is free; None if all that is left is in use."""
        for job in left:
            owner = _owner(job.place)
            if owner is None:
                left.remove(job)
                return job
            if job.name not in told:
                told.add(job.name)
                say(f'{job.name}: {owner}: left for later')
        return None

    def take(slot: int) -> None:
        while not stop.is_set():
            with lock:
                if not left:
                    return
                job = next_job()
            if job is None:
                stop.wait(PAUSE)
                continue
            say(f'{job.name}: begins')
            started = time.monotonic()
            environment = {'CUDA_VISIBLE_DEVICES': _gpu(slot, gpus)} if gpus > 1 else None
            try:
                runs.call(job.command, job.place / 'output.log', threads, stop=stop,
                          environment=environment)
            except Exception as error:
                if not stop.is_set():
                    failures[job.name] = explain(error)
            _tell(say, job.name, failures.get(job.name), time.monotonic() - started)

    with ThreadPoolExecutor(slots) as pool:
        futures = [pool.submit(take, slot) for slot in range(slots)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise
    return failures


def _owner(place: Path) -> str | None:
    """Who else has a folder, in words; None if nobody has."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        outputs.FolderLock(place)
    except UserError as error:
        return str(error).partition(';')[0]
    return None


def _gpu(slot: int, gpus: int) -> str:
    """The GPU of a slot, as ``CUDA_VISIBLE_DEVICES`` has it."""
    seen = [each for each in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if each]
    return (seen or [str(number) for number in range(gpus)])[slot % gpus]


def _tell(say: Say, name: str, error: str | None, seconds: float | None = None) -> None:
    took = '' if seconds is None else f' ({seconds:.0f} s)'
    say(f'{name}: {"done" if error is None else error}{took}')


# --- Slurm ---------------------------------------------------------------------------------------


def read_slurm(texts: Sequence[str]) -> dict[str, Any]:
    """Read ``--slurm KEY=VALUE ...``.

    Returns:
        Arguments of submitit's ``AutoExecutor.update_parameters``, and ``cluster``.

    Raises:
        UserError: If one is none, or there is no limit of time.
    """
    shared = _import('submitit', 'slurm').AutoExecutor._typed_parameters()
    settings: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition('=')
        if not key or not equals or not value:
            raise UserError(f'--slurm {text}: KEY=VALUE was expected, as partition=gpu time=240')
        key = key if key in shared or key == 'cluster' else f'slurm_{key.removeprefix("slurm_")}'
        if key in settings:
            raise UserError(f'--slurm {text}: {key.removeprefix("slurm_")} is said twice')
        settings[key] = _slurm_value(key, value, shared.get(key))
    if settings.get('cluster', 'slurm') == 'slurm' and not (
            {'slurm_time', 'timeout_min'} & settings.keys()):
        raise UserError('--slurm: say time=MINUTES, the limit of a cell; Slurm would end it after '
                        'five')
    return settings


def _slurm_value(key: str, text: str, kind: type | None) -> Any:
    """A value as submitit takes it, which looks at the types of some and writes others down."""
    if text in ('True', 'False'):
        return text == 'True'
    if key in _LISTS:
        return [text]
    number = text.isdecimal() and str(int(text)) == text  # '007' may be an account
    if kind is float and not number:
        with contextlib.suppress(ValueError):
            return float(text)
    return int(text) if number and kind is not str else text


def slurm(
    jobs: Sequence[Job], settings: Mapping[str, Any], folder: Path, slots: int | None, say: Say,
) -> dict[str, str]:  # fmt: skip
    """Run cells as jobs of Slurm, by submitit, and wait for them.

    Args:
        jobs: The cells.
        settings: As :func:`read_slurm` returns them.
        folder: Gets what submitit writes; on a file system that the nodes share.
        slots: Cells at a time; None: as many as Slurm lets run.
        say: Prints a line.

    Returns:
        Cell -> error.

    Raises:
        UserError: If Slurm is not there or refuses the jobs.
    """
    submitit = _import('submitit', 'slurm')
    settings = {'name': 'vpt_dense', **settings}
    cluster = settings.pop('cluster', 'slurm')
    if slots is not None:
        if 'slurm_array_parallelism' in settings:
            raise UserError('--jobs and --slurm array_parallelism say the same: leave one out')
        settings['slurm_array_parallelism'] = slots
    arguments = [(job.command, str(job.place / 'output.log'), settings.get('cpus_per_task'),
                  os.getcwd(), {}) for job in jobs]
    try:
        executor = submitit.AutoExecutor(folder / 'submitit', cluster=cluster)
        executor.update_parameters(**settings)
        with executor.batch():
            begun = [executor.submit(Work(), *each) for each in arguments]
        numbers = [job.job_id for job in begun]
    except (submitit.core.utils.FailedJobError, RuntimeError) as error:  # what sbatch says
        raise UserError(f'Slurm takes no jobs: {_line(error)}; see to --slurm, nothing was '
                        'started and nothing is lost') from error
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f'--slurm: {_line(error)}') from error
    say(f'{len(jobs)} jobs of {cluster}: {numbers[0]} to {numbers[-1]}')
    left, failures = dict(zip(begun, jobs, strict=True)), {}
    try:
        while left:
            for job in [job for job in left if job.done()]:
                name = left.pop(job).name
                try:
                    error = job.result()
                except Exception as lost:
                    error = _line(lost)
                if error is not None:
                    failures[name] = error
                _tell(say, name, error)
            time.sleep(PAUSE if left else 0)
    except KeyboardInterrupt:
        say('The jobs go on (scancel ends them); --table shows what there is.')
        raise
    return failures


def _line(error: BaseException) -> str:
    """All of an error in one line."""
    return ' '.join(str(error).split()) or type(error).__name__


# --- Ray -----------------------------------------------------------------------------------------


def ray(jobs: Sequence[Job], address: str | None, say: Say) -> dict[str, str]:
    """Run cells on a Ray cluster; one whose worker dies is begun again, and goes on.

    Args:
        jobs: The cells.
        address: Of the cluster; None: one of this machine alone.
        say: Prints a line.

    Returns:
        Cell -> error.

    Raises:
        UserError: If the cluster cannot be reached.
    """
    cluster = _import('ray', 'ray')
    failures = {}
    with _connected(cluster, address):
        resources = cluster.cluster_resources()
        gpus, cpus = int(resources.get('GPU', 0)), int(resources.get('CPU', 1))
        remote = cluster.remote(
            num_cpus=max(1, cpus // gpus) if gpus else 1, num_gpus=1 if gpus else 0,
            max_retries=_RETRIES)(work)
        variables = {key: os.environ[key] for key in _VARIABLES if key in os.environ}
        say(f'{len(jobs)} cells on a Ray cluster of {cpus} CPUs and {gpus} GPUs')
        left = {remote.remote(job.command, str(job.place / 'output.log'), None, os.getcwd(),
                              variables): job.name for job in jobs}
        while left:
            ended, _ = cluster.wait(list(left), timeout=PAUSE)
            for reference in ended:
                name = left.pop(reference)
                try:
                    error = cluster.get(reference)
                except Exception as lost:
                    error = _line(lost)
                if error is not None:
                    failures[name] = error
                _tell(say, name, error)
    return failures


@contextlib.contextmanager
def _connected(cluster: ModuleType, address: str | None) -> Iterator[None]:
    way_out = 'start a cluster with `ray start --head`, or leave --ray-address out'
    found = re.fullmatch(r'(?:ray://)?(.+):(\d+)', address or '')
    if found:  # Ray itself tries for minutes
        try:
            socket.create_connection((found[1], int(found[2])), _PATIENCE).close()
        except (OSError, OverflowError) as error:
            raise UserError(f'--ray-address {address}: {_line(error)}; {way_out}') from error
    try:
        cluster.init(address=address, log_to_driver=False, logging_level='ERROR',
                     **({} if address else dict(include_dashboard=False)))
    except Exception as error:
        raise UserError(f'{f"--ray-address {address}" if address else "Ray"}: '
                        f'{_line(error)[:300]}; {way_out}') from error
    try:
        yield
    finally:
        cluster.shutdown()
