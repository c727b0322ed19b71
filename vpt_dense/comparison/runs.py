"""Runs of a comparison: trains and tests each method with each seed once, measures the cost."""

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vpt_dense import method_files, outputs
from vpt_dense.errors import UserError, explain, suggest

if TYPE_CHECKING:
    from mmengine.config import Config

#: What training prints: how far it is, in the unit of its loop.
ITERATION = re.compile(r'Iter\(train\) \[\s*(\d+)/')
EPOCH = re.compile(r'Epoch\(train\)\s*\[\s*(\d+)\]')

#: In a run's folder; it says which run the folder is of and, at the end, what came of it.
RESULT = 'run.json'

#: How a tool is called in a process of its own: the command comes behind.
TOOL = ('-m', 'vpt_dense')

#: Data sets of at most so many bytes are compared by content, so that a copy of them is the same.
_READ = 2 * 10**9

Failures = dict[tuple[str, int | None], str]


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 natively: training then takes half the time."""
    try:
        return bool(re.search(r'\b(avx512_bf16|amx_bf16)\b', Path('/proc/cpuinfo').read_text()))
    except OSError:
        return False


def num_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def progress_bars() -> Progress:
    """Bars for runs; lines printed on its console stand above them."""
    return Progress(
        TextColumn('{task.description:36}'), BarColumn(),
        TextColumn('{task.completed}/{task.total}'), TimeElapsedColumn(), console=Console(),
    )


def call(
    command: Sequence[object],
    log: Path,
    threads: int,
    done: Callable[[int], object] | None = None,
    expected: re.Pattern = ITERATION,
    stop: threading.Event | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run Python with its output in a file.

    Args:
        command: Arguments after the interpreter.
        log: Appended to.
        threads: Threads of the process.
        done: Called with the numbers found in the output, such as iterations.
        expected: Finds them, as its first group.
        stop: When it is set, the process is asked to leave; training saves a checkpoint first.
        environment: Further variables of its environment.

    Raises:
        UserError: If the process fails, with its last line, or was stopped.
    """
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads),
               **environment or {})
    begin = log.stat().st_size if log.exists() else 0
    stop = stop or threading.Event()
    with log.open('ab') as stream:
        # In a session of its own: Ctrl-C reaches this process alone, which then asks politely.
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=stream, stderr=subprocess.STDOUT,
            env=env, start_new_session=True,
        )
    try:
        while process.poll() is None and not stop.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
            text = log.read_bytes()[begin:].decode(errors='replace')
            if done and (found := expected.findall(text)):
                done(int(found[-1]))
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if stop.is_set():
        raise UserError('interrupted')
    if process.returncode:
        lines = log.read_bytes()[begin:].decode(errors='replace').strip().splitlines()
        last = lines[-1] if lines else f'no output, exit code {process.returncode}'
        tool = ' '.join(command[1:3]) if command[0] == '-m' else command[0]
        raise UserError(f'{tool} failed, see {log}: {last}')


def find_methods(pattern: str, wanted: Sequence[str] | None = None) -> dict[str, str]:
    """Find the methods that a recipe or a pattern of configs has.

    Args:
        pattern: Path of a recipe; or of a config with ``{method}`` in its name.
        wanted: The methods asked for, with a recipe method files of one's own too; none: all that
            there are configs of, by name.

    Returns:
        {name: what ``--method`` takes}; a file is named without folder and ending.

    Raises:
        UserError: If the pattern has no such place, a config is not there, a recipe is to be
            taken with all methods, or two methods have one name.
    """
    name = Path(pattern).name
    if '{method}' not in pattern and Path(pattern).is_file():
        if not wanted:
            raise UserError(f'{pattern}: say which methods, with --methods deep lora ...')
        methods: dict[str, str] = {}
        for method in wanted:
            method_files.find(method)
            name = Path(method).stem if method.endswith('.py') else method
            if methods.setdefault(name, method) != method or (
                    name != method and name in method_files.names()):
                raise UserError(
                    f'--methods {method}: {name} is another method too; rename the file')
        return methods
    if pattern.count('{method}') != 1 or '{method}' not in name:
        raise UserError(
            "it takes a recipe, or a pattern that holds '{method}' once, in the file's name; "
            f'found {pattern!r}'
        )
    before, after = name.split('{method}')
    any_method = f'{glob.escape(before)}*{glob.escape(after)}'
    found = sorted(
        path.name.removeprefix(before).removesuffix(after)
        for path in Path(pattern).parent.glob(any_method)
    )
    if not found:
        raise UserError(f'no config fits {pattern}')
    for method in wanted or ():
        if method not in found:
            raise UserError(
                f'--methods {method}: no config {pattern.replace("{method}", method)}'
                f'{suggest(method, found)}'
            )
    return {name: name for name in wanted or found}


@dataclass
class Comparison:
    """Runs of one config with several methods.

    Attributes:
        pattern: Path of the configs, with ``{method}``; or of a recipe.
        folder: Gets a folder ``METHOD_seedSEED`` a run, and ``cost``. A run whose folder holds one
            of other settings or data has a folder of its own, ``METHOD_seedSEED_MARK``.
        amp: Mixed precision.
        threads: Of a run.
        options: Overrides of the configs, ``KEY=VALUE`` as on the command line.
        labels: Method -> what it is called in what is printed; others by their own name.
        sources: Method -> what ``--method`` takes; others their own name.
        own: Method -> overrides of its runs alone; those of ``options`` come before them.
        found: Method -> further overrides, which a search has found.
        data_marks: What is known of data, by their places; comparisons may share it.
    """

    pattern: str
    folder: Path
    amp: bool = False
    threads: int = 1
    options: Sequence[str] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Sequence[str]] = field(default_factory=dict)
    found: dict[str, list[str]] = field(default_factory=dict)
    data_marks: dict[tuple[Path, ...], str | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Nothing has been asked to stop yet, no config has been read."""
        self._stop = threading.Event()
        self._known: dict[tuple[str, ...], tuple[bytes, list[Path], tuple[Path, ...]]] = {}

    def config_path(self, method: str) -> Path:
        """The path of a method's config, or of the recipe."""
        return Path(self.pattern.replace('{method}', method))

    def method_option(self, method: str) -> list[str]:
        """The arguments that tools need beside that path."""
        if '{method}' in self.pattern or not method:
            return []
        return ['--method', self.sources.get(method, method)]

    def options_of(self, method: str, further: Sequence[str] = ()) -> list[str]:
        """The overrides of a method's config."""
        return [*self.options, *self.own.get(method, ()), *self.found.get(method, ()), *further]

    def config(self, method: str, options: Sequence[str] = ()) -> 'Config':
        """A method's config, resolved, with further overrides."""
        from vpt_dense import config

        return config.load(
            str(self.config_path(method)), self.options_of(method, options),
            *self.method_option(method)[1:])

    def work_dir(self, method: str, seed: int) -> Path:
        """The folder of a run; nothing in it is of another."""
        mark = self.fingerprint(method, seed)
        return own_place(self.folder / f'{method}_seed{seed}', f'/{RESULT}', mark)

    def fingerprint(
        self, method: str, seed: int, further: Sequence[str] = ()
    ) -> dict[str, str | None]:
        """The fingerprints that a run must have to count as this run.

        Args:
            method: Name of the method.
            seed: Of the run.
            further: Further overrides of its config.

        Returns:
            ``fingerprint``: sha256 over seed, precision, the resolved config and the pretrained
            weights. ``data``: sha256 over names and contents of all files of the data sets, or
            names, sizes and times of change if they are more than 2 GB; None if there are none
            yet, as with data that the training downloads.
        """
        from vpt_dense.preflight import pretrained

        key = (method, *self.options_of(method, further))
        if key not in self._known:
            cfg = self.config(method, further)
            weights = [Path(path).expanduser() for _, path in pretrained(cfg.model, 'model')]
            places = tuple(dict.fromkeys(_data_places(cfg)))
            self._known[key] = cfg.pretty_text.encode(), weights, places
        text, weights, places = self._known[key]
        digest = hashlib.sha256(f'{seed} {self.amp}'.encode())
        digest.update(text)
        for file in weights:
            if file.is_file():
                state = file.stat()
                digest.update(_file_digest(file.resolve(), state.st_size, state.st_mtime_ns))
        if self.data_marks.get(places) is None:  # data do not change while methods are compared
            self.data_marks[places] = _data_digest(places)
        return dict(fingerprint=digest.hexdigest(), data=self.data_marks[places])

    # --- training and testing ----------------------------------------------------------------

    def run(
        self, methods: Sequence[str], seeds: Sequence[int], jobs: int = 1
    ) -> tuple[list[dict], Failures]:
        """Train and test every method with every seed.

        Args:
            methods: Names of methods.
            seeds: Random seeds.
            jobs: Runs at a time.

        Returns:
            The results of :meth:`run_one`, seeds outside, methods inside; and the error of every
            run that failed, by (method, seed).
        """
        todo = [(method, seed) for seed in seeds for method in methods]
        results, failures = {}, {}
        with progress_bars() as progress:

            def work(job: tuple[str, int]) -> None:
                if self._stop.is_set():
                    return
                label = f'{self.labels.get(job[0], job[0])}, seed {job[1]}'
                task = progress.add_task(label, total=None)
                if not progress.console.is_terminal:  # no bar is seen there
                    progress.console.print(f'{label}: begins', highlight=False, markup=False)
                try:
                    results[job] = self.run_one(*job, progress, task)
                    told = 'done'
                except Exception as error:
                    failures[job] = explain(error)
                    told = failures[job]
                progress.remove_task(task)
                progress.console.print(f'{label}: {told}', highlight=False, markup=False)

            with ThreadPoolExecutor(jobs) as pool:
                futures = [pool.submit(work, job) for job in todo]
                try:
                    for future in futures:
                        future.result()
                except BaseException:
                    self._stop.set()
                    raise
        return [results[job] for job in todo if job in results], failures

    def run_one(self, method: str, seed: int, progress: Progress, task: TaskID) -> dict[str, Any]:
        """Train and test one method with one seed, or go on where that was interrupted.

        Args:
            method: Name of the method.
            seed: Random seed of the run.
            progress: Holds the bar.
            task: The bar.

        Returns:
            ``method``, ``seed``, ``fingerprint``, ``data``, ``metrics`` (test split),
            ``val_metrics`` (the last validation; None without one), counts of parameters
            (``backbone_total``: the backbone, without what tuning adds to it),
            ``tuned_megabytes`` (counted) and ``disk_megabytes`` (of the file that was written) in
            10^6 bytes, ``train_seconds`` (None for a run that was interrupted), ``amp``,
            ``threads``, ``versions``.

        Raises:
            UserError: If training or testing fails.
        """
        from vpt_dense import params, safe_files

        work_dir = self.work_dir(method, seed)
        label = f'{self.labels.get(method, method)}, seed {seed}'
        if work_dir.name != f'{method}_seed{seed}':
            progress.console.print(
                f'{label}: {method}_seed{seed} is a run of other settings or data; this one is in '
                f'{work_dir.name}', highlight=False, markup=False,
            )
        known = read(work_dir / RESULT)
        if known is not None and 'metrics' in known:
            return known
        if not (work_dir / RESULT).exists() and any(work_dir.glob('*.pth')):
            raise UserError(
                f'{work_dir} holds checkpoints of a run that was started otherwise; move it away '
                'or take another --work-dir'
            )
        if known is None:
            mark = json.dumps(self.fingerprint(method, seed))
            safe_files.write_text(work_dir / RESULT, f'{mark}\n')
        loop = self.config(method).train_cfg
        progress.update(
            task, description=f'{label}: training',
            total=loop.max_epochs if 'max_epochs' in loop else loop.max_iters,
        )
        summary = self.train(
            method, work_dir, done=lambda number: progress.update(task, completed=number),
            seed=seed)
        progress.update(task, description=f'{label}: testing')
        call_tool = functools.partial(
            call, log=work_dir / 'output.log', threads=self.threads, stop=self._stop)
        call_tool([
            *TOOL, 'test', self.config_path(method), work_dir, *self._arguments(method, work_dir)])
        test = json.loads((work_dir / 'test.json').read_text(encoding='utf-8'))
        counts = test['params']
        parts = {name: (n['trainable'], n['total']) for name, n in counts['parts'].items()}
        result = dict(
            # Asked for again: the training may have downloaded the data.
            method=method, seed=seed, **self.fingerprint(method, seed), metrics=test['metrics'],
            val_metrics=(summary['last'] or {}).get('metrics'),
            trainable=counts['trainable'], total=counts['total'], percent=counts['percent'],
            backbone_trainable=params.backbone_trainable(parts),
            backbone_total=parts.get('backbone', (0, 0))[1],
            tuned_megabytes=counts['tuned_megabytes'],
            disk_megabytes=self._disk(method, work_dir, test['checkpoint'], call_tool),
            train_seconds=None if summary['started_at_iter'] else summary['wall_time_seconds'],
            amp=self.amp, threads=self.threads, versions=test['versions'],
        )
        safe_files.write_text(work_dir / RESULT, json.dumps(result, indent=1) + '\n')
        return result

    def train(
        self, method: str, work_dir: Path, options: Sequence[str] = (),
        done: Callable[[int], object] | None = None, stop: threading.Event | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Train one method, or go on where that was interrupted.

        Args:
            method: Name of the method.
            work_dir: Folder of the run; made if there is none.
            options: Further overrides of the config.
            done: Called with the iteration, or epoch, that the training has reached.
            stop: Ends the training when it is set, with a checkpoint.
            seed: Random seed of the run; None: that of the config.

        Returns:
            What ``summary.json`` holds.

        Raises:
            UserError: If training fails, or is stopped.
        """
        file = work_dir / 'summary.json'  # written when training has ended
        work_dir.mkdir(parents=True, exist_ok=True)
        # The training of a process that was killed may still be at it: it is not disturbed.
        with outputs.waiting_lock(work_dir, print, stop or self._stop):
            pass
        if not file.is_file():
            epochs = 'max_epochs' in self.config(method, options).train_cfg
            call(
                [*TOOL, 'train', self.config_path(method),
                 *(['--amp'] if self.amp else []), '--resume', 'if-any',
                 *([] if seed is None else ['--seed', seed]),
                 *self._arguments(method, work_dir, options)],
                work_dir / 'output.log', self.threads, done, EPOCH if epochs else ITERATION,
                stop or self._stop)
        return read(file)

    def _arguments(
        self, method: str, work_dir: Path, options: Sequence[str] = ()
    ) -> list[object]:
        """What training and testing are called with beside config and checkpoint."""
        options = self.options_of(method, options)
        return [*self.method_option(method), '--work-dir', work_dir,
                *(['--cfg-options', *options] if options else [])]

    def _disk(
        self, method: str, work_dir: Path, checkpoint: str, call_tool: Callable
    ) -> float:
        """Write the delta of a run and return its size in 10^6 bytes.

        A backbone without pretrained weights has no delta: its checkpoint counts.
        """
        file = work_dir / 'tuned.safetensors'
        init_cfg = self.config(method).model.backbone.get('init_cfg')
        if not (isinstance(init_cfg, dict) and init_cfg.get('checkpoint')):
            file = Path(checkpoint)
        else:
            call_tool([*TOOL, 'delta', 'extract', checkpoint, file, '--force'])
        return file.stat().st_size / 1e6

    # --- cost --------------------------------------------------------------------------------

    def measure(
        self, methods: Sequence[str], steps: int, threads: int
    ) -> tuple[dict[str, dict], Failures]:
        """Measure time and memory of every method, one after the other.

        Args:
            methods: Names of methods.
            steps: Training steps, and test steps, that are timed.
            threads: CPU threads to compute with.

        Returns:
            Method -> what :func:`vpt_dense.comparison.cost.measure` returns; and the errors of
            those that failed, by (method, None).
        """
        from vpt_dense import safe_files

        costs, failures = {}, {}
        with progress_bars() as progress:
            task = progress.add_task('measuring', total=len(methods))
            for method in methods:
                label = f'{self.labels.get(method, method)}: measuring'
                progress.update(task, description=label)
                try:
                    cfg, options = self.config(method), self.options_of(method)
                    text = f'{self.amp} {steps} {threads} {_machine()} {cfg.pretty_text}'
                    mark = dict(fingerprint=hashlib.sha256(text.encode()).hexdigest())
                    file = Path(f'{own_place(self.folder / "cost" / method, ".json", mark)}.json')
                    found = read(file)
                    if found is None:
                        file.parent.mkdir(parents=True, exist_ok=True)
                        call(
                            ['-m', 'vpt_dense.comparison.cost', self.config_path(method), file,
                             *self.method_option(method), '--steps', steps,
                             *(['--amp'] if self.amp else []),
                             *(['--cfg-options', *options] if options else [])],
                            file.with_suffix('.log'), threads, stop=self._stop,
                        )
                        found = {**read(file), **mark}
                        safe_files.write_text(file, json.dumps(found, indent=1) + '\n')
                    costs[method] = found
                except Exception as error:
                    failures[method, None] = explain(error)
                    progress.console.print(
                        f'{label}: {explain(error)}', highlight=False, markup=False
                    )
                progress.advance(task)
        return costs, failures

    def finished(self, methods: Sequence[str], seeds: Sequence[int]) -> list[dict]:
        """The results of the runs that are done, in the order of :meth:`run`."""
        results = []
        for seed in seeds:
            for method in methods:
                known = read(self.work_dir(method, seed) / RESULT)
                if known and 'metrics' in known:
                    results.append(known)
        return results


def read(file: Path) -> Any:
    """A JSON file's content; None if it is not there, empty if it is broken."""
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        return {}


def own_place(place: Path, record: str, mark: Mapping[str, str | None]) -> Path:
    """A place, or one beside it if it holds something that was made otherwise.

    Args:
        place: The first choice.
        record: Ending of the file that says what is there.
        mark: What must be so; the data's may be None there, if the run has downloaded them.
    """
    known = read(Path(f'{place}{record}'))
    if known is None or all(
        known.get(key) == value or (key == 'data' and key in known and known[key] is None)
        for key, value in mark.items()
    ):
        return place
    digest = hashlib.sha256(json.dumps(mark, sort_keys=True).encode()).hexdigest()
    return place.with_name(f'{place.name}_{digest[:8]}')


def _machine() -> str:
    """The machine that measurements were taken on."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu'
    return f'{gpu} torch {torch.__version__}'


def _data_places(cfg: 'Config') -> Iterator[Path]:
    """The files and folders that the data sets of a config read."""
    from vpt_dense.datasets import list_files
    from vpt_dense.tree import DATALOADERS, as_list, kind_of, leaf_datasets

    for loader in DATALOADERS:
        for leaf in leaf_datasets(cfg.get(loader)):
            root, prefix = Path(leaf.get('data_root') or ''), leaf.get('data_prefix') or {}
            parts = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
            inside = [part for part in parts if part]
            lists = [part for part in as_list(leaf.get('ann_file')) if part]
            if kind_of(leaf) in list_files.KINDS:
                lists = [*list_files.lists_of(leaf), 'train.json', 'classes.txt']  # the classes
            if inside or lists or leaf.get('data_root'):
                yield from (root / part for part in (*(inside or ['']), *lists))
                yield root / 'meta.json'  # what made the data


def _data_digest(places: Sequence[Path]) -> str | None:
    """sha256 over names and contents of files and of those in folders.

    Of many bytes, which would take minutes to read, sizes and times of change stand for contents.
    """
    found, seen = [], set()
    for place in places:
        if place.is_file():
            found.append(place)
        for folder, folders, names in os.walk(place, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # links may lead in circles
                folders.clear()
                continue
            seen.add(real)
            found += [Path(folder, name) for name in names]
    found = sorted(file for file in found if file.exists())  # a link may lead nowhere
    states = [file.stat() for file in found]
    digest = hashlib.sha256()
    if sum(state.st_size for state in states) <= _READ:
        for file, state in zip(found, states, strict=True):
            digest.update(f'{file} {state.st_size}\n'.encode())
            digest.update(file.read_bytes())
    else:
        for file, state in zip(found, states, strict=True):
            digest.update(f'{file} {state.st_size} {state.st_mtime_ns}\n'.encode())
    return digest.hexdigest() if found else None


@functools.lru_cache
def _file_digest(file: Path, size: int, changed: int) -> bytes:
    """sha256 of a file, computed once while the file stays as it is."""
    digest = hashlib.sha256()
    with file.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.digest()
