"""A benchmark suite: tasks x methods x seeds x trials as a plan in a file, and what it runs.

A cell is a task with a method: the search if there is one, then a run with every seed.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vpt_dense import config_files, installed, outputs, safe_files
from vpt_dense.argument_checks import is_int, is_list
from vpt_dense.comparison import runs
from vpt_dense.comparison.search import (
    PRUNERS,
    SAMPLERS,
    Search,
    grid_of,
    options_of,
    read_space,
)
from vpt_dense.errors import UserError, explain, suggest

AMP = ('auto', 'on', 'off')
#: Keys that a task may say for itself -> what they are where nobody says them.
_OF_TASKS: dict[str, Any] = {'recipe': None, 'trials': 0, 'space': [], 'retrain': []}
#: Keys of the suite alone.
_OF_SUITE: dict[str, Any] = {
    'tasks': None, 'options': [], 'methods': None, 'method_options': {}, 'method_space': {},
    'seeds': [0], 'pruner': 'none', 'sampler': 'tpe', 'reference': None, 'amp': 'auto'}
_KEYS = {**_OF_SUITE, **_OF_TASKS}
_TASK_KEYS = (*_OF_TASKS, 'options', 'group')
#: What does nothing without trials.
_OF_SEARCH = ('space', 'method_space', 'pruner', 'sampler', 'retrain')
_REFERENCE = 'full'

#: What a cell has left: its failures, and what its search has found.
CELL = 'cell.json'
#: Whether the runs of a suite are in mixed precision: decided once, where the first one runs.
PRECISION = 'precision.json'


class Cell(NamedTuple):
    """A task with a method."""

    task: str
    method: str

    def __str__(self) -> str:
        """As ``--cell`` takes it."""
        return f'{self.task}/{self.method}'


@dataclass(frozen=True)
class Task:
    """A task of a suite.

    Attributes:
        name: Its name, and that of its folder.
        recipe: Path of a recipe, or of configs with ``{method}``.
        options: Overrides of all its runs, the suite's first.
        group: What it is of, or None.
        trials: Of the search of each method; 0: none.
        space: What is searched, as ``--space`` has it.
        retrain: Further overrides of the runs after the search.
        sources: Method -> what ``--method`` takes.
    """

    name: str
    recipe: str
    options: tuple[str, ...]
    group: str | None
    trials: int
    space: tuple[str, ...]
    retrain: tuple[str, ...]
    sources: Mapping[str, str]


@dataclass
class Suite:
    """A plan of tasks, methods and seeds.

    Attributes:
        path: Its file.
        folder: Gets a folder a task, and the table.
        tasks: Name -> task.
        methods: Names of methods.
        seeds: Of the runs of every task and method.
        pruner: Of all searches.
        sampler: Of all searches.
        reference: The method that others are compared with, or None.
        amp: One of :data:`AMP`.
        method_space: Method -> what is searched for it, in place of the task's ``space``.
        method_options: Method -> overrides of all its runs, after those of the task.
    """

    path: str
    folder: Path
    tasks: dict[str, Task]
    methods: list[str]
    seeds: list[int]
    pruner: str = 'none'
    sampler: str = 'tpe'
    reference: str | None = None
    amp: str = 'auto'
    method_space: Mapping[str, Sequence[str]] = field(default_factory=dict)
    method_options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _data_marks: dict[tuple[Path, ...], str | None] = field(default_factory=dict)
    _made: dict[tuple, runs.Comparison] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """All cells, in the order of the file: tasks outside, methods inside."""
        return [Cell(task, method) for task in self.tasks for method in self.methods]

    def find(self, text: str) -> Cell:
        """The cell that ``TASK/METHOD`` names.

        Raises:
            UserError: If there is none.
        """
        known = {str(cell): cell for cell in self.cells()}
        if text not in known:
            raise UserError(f'--cell {text}: {self.path} has no such cell{suggest(text, known)}')
        return known[text]

    def place(self, cell: Cell) -> Path:
        """The folder that is locked while a cell runs; it holds its log."""
        return self.folder / cell.task / 'cells' / cell.method

    # --- what a cell runs --------------------------------------------------------------------

    def comparison(self, task: str, final: bool, amp: bool, threads: int = 1) -> runs.Comparison:
        """The runs of a task.

        Args:
            task: Its name.
            final: Whether those after the search, with ``retrain``; else its trials.
            amp: Mixed precision.
            threads: Of a run.
        """
        key = (task, final, amp, threads)
        if key not in self._made:
            about = self.tasks[task]
            retrain = about.retrain if final else ()
            self._made[key] = runs.Comparison(
                about.recipe, self.folder / task, amp, threads, about.options,
                sources=about.sources, data_marks=self._data_marks,
                own={method: [*self.method_options.get(method, ()), *retrain]
                     for method in self.methods})
        return self._made[key]

    def trials(self, cell: Cell) -> int:
        """The trials of the search of a cell; a grid has no more than its points."""
        trials = self.tasks[cell.task].trials
        if self.sampler != 'grid' or not trials:
            return trials
        return min(trials, len(grid_of(read_space(self._space(cell)))))

    def _space(self, cell: Cell) -> Sequence[str]:
        return self.method_space.get(cell.method, self.tasks[cell.task].space)

    def search(
        self, cell: Cell, amp: bool, threads: int = 1, check: bool = True
    ) -> Search | None:
        """The search of a cell; None if it has none.

        Args:
            cell: The cell.
            amp: Mixed precision.
            threads: Of a trial.
            check: Whether the config is tried with the ends of all ranges.
        """
        task = self.tasks[cell.task]
        if not task.trials:
            return None
        return Search(
            self.comparison(cell.task, False, amp, threads), cell.method,
            self.folder / cell.task / 'search' / cell.method, task.trials,
            read_space(self._space(cell)),
            self.pruner, sampler=self.sampler, check=check)

    def check(self) -> None:
        """Read every config as its runs will, before anything runs.

        Raises:
            UserError: Names the cell and what is wrong with it.
        """
        tried = set()
        for cell in self.cells():
            task = self.tasks[cell.task]
            try:
                final = self.comparison(cell.task, True, False)
                final.config(cell.method)
                # Where data are does not change what a config takes.
                own = tuple(each for each in task.options if not each.startswith('dataset.'))
                key = (task.recipe, own, task.retrain, tuple(self._space(cell)), cell.method)
                search = self.search(cell, False, check=key not in tried)
                if search and task.retrain and key not in tried:
                    final.config(cell.method, search.example())
                tried.add(key)
            except Exception as error:
                raise UserError(f'suite {self.path}: {cell}: {explain(error)}') from error
            for option in task.retrain:
                name = option.partition('=')[0].strip()
                if search and name in search.space:
                    raise UserError(
                        f'suite {self.path}: {cell}: retrain sets {name}, which is searched: leave '
                        f'it out, or set it in options, so that it is not searched')

    def run(self, cell: Cell, threads: int, say: Callable[[str], object] = print) -> dict[str, str]:
        """Search, train and test what a cell lacks; wait if another process is at it.

        Args:
            cell: The cell.
            threads: Of a run.
            say: Prints a line.

        Returns:
            What failed -> its error.
        """
        place = self.place(cell)
        place.mkdir(parents=True, exist_ok=True)
        with outputs.waiting_lock(place, lambda text: say(f'{text}: waiting')):
            amp = self.precision(decide=True)
            comparison = self.comparison(cell.task, True, amp, threads)
            failures: dict[str, str] = {}
            try:
                search = self.search(cell, amp, threads)
                if search:
                    study = search.run(say=say)
                    search.write(study)
                    comparison.found[cell.method] = options_of(search.best(study))
            except Exception as error:
                failures['search'] = explain(error)
            else:
                _, failed = comparison.run([cell.method], self.seeds)
                failures = {f'seed {seed}': error for (_, seed), error in failed.items()}
            found = comparison.found.get(cell.method)
            safe_files.write_text(
                place / CELL, json.dumps(dict(failures=failures, found=found), indent=1) + '\n')
        return failures

    def precision(self, decide: bool = False) -> bool | None:
        """Whether runs are in mixed precision.

        With ``amp='auto'`` the machine of the first cell decides for all: a table of runs of both
        kinds would compare precisions too, and the machine that draws it may be another.

        Args:
            decide: Whether to decide it here if it is not yet; else None is returned then.
        """
        if self.amp != 'auto':
            return self.amp == 'on'
        file = self.folder / PRECISION
        if not file.is_file() and decide:
            import torch

            amp = not torch.cuda.is_available() and runs.has_fast_bfloat16()
            own = file.with_name(f'{PRECISION}.{os.getpid()}')
            safe_files.write_text(own, json.dumps(dict(amp=amp)) + '\n')
            try:
                os.link(own, file)  # whole, and never over that of another process
            except FileExistsError:
                pass
            own.unlink()
        known = runs.read(file)
        if known == {}:
            raise UserError(f'{file} is damaged; remove it')
        return known and known['amp']

    # --- what is there -----------------------------------------------------------------------

    def state(self, cell: Cell) -> dict[str, Any]:
        """What there is of a cell.

        Returns:
            ``results`` (see :meth:`vpt_dense.comparison.runs.Comparison.run_one`), ``found`` (what
            the search has found, or None), ``missing`` (what is not there: ``search``, ``seed 2``)
            and ``failures`` (what of that has failed -> its error).
        """
        amp = self.precision()
        whole = [f'seed {seed}' for seed in self.seeds]
        if self.tasks[cell.task].trials:
            whole.insert(0, 'search')
        left = runs.read(self.place(cell) / CELL) or {}
        state: dict[str, Any] = dict(results=[], found=None, missing=whole, failures={})
        if amp is not None and (self.folder / cell.task).is_dir():
            comparison = self.comparison(cell.task, True, amp)
            search = self.search(cell, amp, check=False)
            if search:
                state['found'] = search.finished()
            if not search or state['found'] is not None:
                comparison.found[cell.method] = state['found'] or []
                state['results'] = comparison.finished([cell.method], self.seeds)
                there = {result['seed'] for result in state['results']}
                state['missing'] = [f'seed {seed}' for seed in self.seeds if seed not in there]
        state['failures'] = {
            name: error for name, error in (left.get('failures') or {}).items()
            if name in state['missing']}
        return state


# --- the file ----------------------------------------------------------------------------------


def read(path: str, folder: Path | None = None) -> Suite:
    """Read the file of a suite.

    Args:
        path: A config in Python, YAML or JSON; or one that comes along, ``vpt_dense::vtab-1k``.
        folder: Where its runs are; None: ``work_dirs/suites/`` and the file's name.

    Raises:
        UserError: Names the key, what was found there, and the way out.
    """
    path = str(installed.config(path)) if '::' in path else path
    cfg = config_files.parse(path)
    said = {key: value for key, value in _plain(cfg._to_lazy_dict()).items()
            if not key.startswith('_')}  # fmt: skip
    try:
        return _suite(path, said, (folder or Path('work_dirs/suites', Path(path).stem)).absolute())
    except UserError as error:
        raise UserError(f'suite {path}: {error}') from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if is_list(value) else value


def _suite(path: str, said: dict[str, Any], folder: Path) -> Suite:
    _check_keys(said, _KEYS, '')
    if isinstance(said.get('amp'), bool):  # YAML takes on and off for these
        said['amp'] = 'on' if said['amp'] else 'off'
    values = {**_KEYS, **said}
    _check_values(values, '')
    for key, choices in (('pruner', PRUNERS), ('sampler', SAMPLERS), ('amp', AMP)):
        if values[key] not in choices:
            raise UserError(f'{key} must be one of {", ".join(choices)}, found {values[key]!r}')
    seeds, wanted, about = values['seeds'], values['methods'], values['tasks']
    if not (is_list(seeds) and seeds and all(is_int(seed, 0) for seed in seeds)
            and len(set(seeds)) == len(seeds)):
        raise UserError(
            f'seeds must be a list of different whole numbers, none below 0, found {seeds!r}')
    if not (_is_texts(wanted) and wanted and len(set(wanted)) == len(wanted)):
        raise UserError(
            f'methods must be a list of different names or method files, found {wanted!r}')
    if not (isinstance(about, Mapping) and about):
        raise UserError(f'tasks must be a dict of tasks, NAME=dict(recipe=...), found {about!r}')
    tasks = {}
    for name, own in about.items():
        where = f'tasks.{name}.'
        if not re.fullmatch(r'[A-Za-z0-9][\w.+-]*', str(name)):
            raise UserError(
                f'tasks: {name!r} is no name of a folder; take letters, digits, - and _')
        if not isinstance(own, Mapping):
            raise UserError(f'tasks.{name} must be a dict, found {own!r}')
        _check_keys(own, _TASK_KEYS, where)
        _check_values(own, where)
        tasks[name] = _task(name, own, values)
    _check_use(said, about, tasks)
    groups = {name for name, task in tasks.items() if task.group is not None}
    if groups and groups != set(tasks):
        raise UserError(
            f'tasks.{next(name for name in tasks if name not in groups)} has no group, others do: '
            'give every task one, or none')
    methods = list(next(iter(tasks.values())).sources)
    reference = values['reference']
    if reference is None:
        reference = _REFERENCE if _REFERENCE in methods else None
    elif reference not in methods:
        raise UserError(
            f'reference {reference!r} is none of the methods {", ".join(methods)}'
            f'{suggest(str(reference), methods)}')
    return Suite(
        path, folder, tasks, methods, list(seeds), values['pruner'], values['sampler'], reference,
        values['amp'], _of_methods(values, 'space', methods),
        _of_methods(values, 'options', methods))


def _check_use(said: Mapping[str, Any], about: Mapping, tasks: Mapping[str, Task]) -> None:
    """What the suite says for all tasks is of use to one at least.

    Raises:
        UserError: Names the key that is not.
    """
    if not any(task.trials for task in tasks.values()):
        for key in _OF_SEARCH:
            if key in said:
                raise UserError(f'{key} does nothing without trials: set trials, or leave it out')
    if set(said.get('method_space') or ()) == set(next(iter(tasks.values())).sources):
        for key, found in (('space', said), *((f'tasks.{name}.space', about[name])
                                              for name in tasks)):
            if 'space' in found:
                raise UserError(f'{key} does nothing, as method_space has all methods: leave one '
                                'of them out')
    for key in _OF_TASKS:
        users = [name for name, task in tasks.items()
                 if task.trials or key not in ('space', 'retrain')]
        if key in said and all(key in about[name] for name in users):
            raise UserError(f'{key} does nothing, as each task has its own: leave it out')


def _of_methods(
    values: Mapping[str, Any], what: str, methods: Sequence[str]
) -> dict[str, list[str]]:
    """``method_space`` or ``method_options``."""
    key = f'method_{what}'
    found = values[key]
    if not isinstance(found, Mapping):
        raise UserError(f'{key} must be a dict, METHOD=[KEY=..., ...], found {found!r}')
    for method, own in found.items():
        if method not in methods:
            raise UserError(
                f'{key}.{method}: the methods are {", ".join(methods)}'
                f'{suggest(str(method), methods)}')
        _check_values({what: own}, f'{key}.{method}.')
        if what == 'space':
            try:
                read_space(own)
            except UserError as error:
                raise UserError(str(error).replace('--space ', f'{key}.{method}: ')) from error
    return dict(found)


def _task(name: str, own: Mapping[str, Any], suite: Mapping[str, Any]) -> Task:
    """A task, with what the suite says where it says nothing itself."""
    values = {key: own.get(key, suite[key]) for key in _OF_TASKS}
    recipe = values['recipe']
    if recipe is None:
        raise UserError(f'tasks.{name} has no recipe; say one, there or for all tasks')
    if '::' in recipe:
        recipe = str(installed.config(recipe))
    if '{method}' not in recipe and not Path(recipe).is_file():
        raise UserError(f'tasks.{name}.recipe: there is no file {recipe}')
    if not values['trials']:
        for key in ('space', 'retrain'):
            if own.get(key):
                raise UserError(
                    f'tasks.{name}.{key} does nothing without trials: set trials, or leave it out')
        values.update(space=[], retrain=[])
    try:
        read_space(values['space'])
        sources = runs.find_methods(recipe, suite['methods'])
    except UserError as error:
        text = str(error).replace('--methods ', 'methods: ').replace('--method ', 'methods: ')
        raise UserError(f'tasks.{name}: {text.replace("--space ", "space: ")}') from error
    return Task(
        name, recipe, (*suite['options'], *own.get('options', ())), own.get('group'),
        values['trials'], tuple(values['space']), tuple(values['retrain']), sources)


def _check_keys(said: Mapping[str, Any], known: Sequence[str] | Mapping, where: str) -> None:
    for key in said:
        if key not in known:
            raise UserError(
                f'{where}{key}: there is no such key{suggest(str(key), list(known))}; the keys are '
                f'{", ".join(known)}')


def _check_values(said: Mapping[str, Any], where: str) -> None:
    """Types of what tasks and the suite have in common."""
    for key in ('options', 'space', 'retrain'):
        value = said.get(key, [])
        if not (_is_texts(value) and all('=' in text for text in value)):
            raise UserError(f"{where}{key} must be a list of 'KEY=VALUE', found {value!r}")
    for key in ('recipe', 'group'):
        if said.get(key) is not None and not isinstance(said[key], str):
            raise UserError(f'{where}{key} must be a text, found {said[key]!r}')
    if not is_int(said.get('trials', 0), 0):
        raise UserError(
            f'{where}trials must be a whole number, 0 or more, found {said["trials"]!r}')


def _is_texts(value: Any) -> bool:
    return is_list(value) and all(isinstance(text, str) and text.strip() for text in value)


def shard(cells: Sequence[Cell], text: str | None) -> list[Cell]:
    """Every n-th cell.

    Args:
        cells: All of them.
        text: ``i/n``: the i-th of n shares, from 1; None: all.

    Raises:
        UserError: If it is no share.
    """
    if text is None:
        return list(cells)
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    share, shares = map(int, found.groups()) if found else (0, 0)
    if not 1 <= share <= shares:
        raise UserError(f'--shard {text}: I/N was expected, with I from 1 to N')
    return list(cells[share - 1::shares])
