"""A search for the settings of a method: rates, weight decay and whatever else a config has.

The trials are Optuna's (https://optuna.org); each is a training of its own, judged by validation.
"""

import csv
import io
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vpt_dense.argument_checks import is_number
from vpt_dense.comparison import runs
from vpt_dense.errors import UserError, explain

if TYPE_CHECKING:
    import optuna
    from mmengine.config import Config

#: Half the width of the default range of a rate, as a factor: two decades around the config's own.
REACH = 10.0
#: The default range of the weight decay.
DECAY = (1e-5, 1e-1)
PRUNERS = ('none', 'median', 'hyperband')
SAMPLERS = ('tpe', 'grid', 'random')

#: The study and its name, in the folder of a search.
STUDY = 'study.log'
_NAME = 'search'
#: What the study is of.
MARK = 'search.json'
#: Failures without a success after which the search ends.
_PATIENCE = 3
#: Seconds between two looks at the trials of other processes.
_PAUSE = 1.0

_RANGE = re.compile(r'([^:,]+):([^:,]+)(?::(log|linear))?')


def import_optuna() -> Any:
    """Optuna, without its lines about every trial.

    Raises:
        UserError: If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'vpt_dense[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


# --- the space -------------------------------------------------------------------------------


def read_space(texts: Sequence[str]) -> dict[str, Any]:
    """Read ranges and choices.

    Args:
        texts: ``KEY=LOW:HIGH`` (whole numbers if both are, logarithmic if LOW is above 0 and HIGH
            at least ten times LOW; ``:log`` or ``:linear`` behind it says it), or ``KEY=A,B,C``; a
            comma in brackets is part of a value.

    Returns:
        Key -> Optuna's distribution.

    Raises:
        UserError: If one cannot be read.
    """
    distributions = import_optuna().distributions
    space: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition('='))
        if not key or not equals or not value:
            raise UserError(f'--space {text}: KEY=LOW:HIGH or KEY=A,B,C was expected')
        if key in space:
            raise UserError(f'--space {text}: {key} is said twice')
        found = _RANGE.fullmatch(value)
        if not found:
            choices = [_number(item) for item in _split(value)]
            if len(choices) < 2 or '' in choices or len(set(choices)) < len(choices):
                raise UserError(
                    f'--space {text}: at least two values were expected, all different, as A,B')
            space[key] = distributions.CategoricalDistribution(choices)
            continue
        low, high = (_number(part.strip()) for part in found.group(1, 2))
        if isinstance(low, str) or isinstance(high, str) or not low < high:
            raise UserError(f'--space {text}: two numbers, LOW below HIGH, were expected')
        scale = found.group(3)
        log = scale == 'log' or (scale is None and low > 0 and high >= 10 * low)
        if log and low <= 0:
            raise UserError(f'--space {text}: a logarithmic range begins above 0')
        whole = isinstance(low, int) and isinstance(high, int)
        kind = distributions.IntDistribution if whole else distributions.FloatDistribution
        space[key] = kind(low, high, log=log)
    return space


def _split(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth = [''], 0
    for character in text:
        depth += (character in '([{') - (character in ')]}')
        if character == ',' and depth == 0:
            parts.append('')
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {'True': True, 'False': False, 'None': None}.get(text, text)


def own_settings(cfg: 'Config') -> dict[str, float]:
    """The rates and the weight decay that a config has, by the keys that set them.

    ``lr`` is left out where nothing but the heads trains.

    Raises:
        UserError: If the config has no optimizer with a rate.
    """
    from vpt_dense.tree import get

    optimizer = get(cfg, 'optim_wrapper.optimizer') or {}
    if 'lr' not in optimizer:
        raise UserError('a search needs optim_wrapper.optimizer.lr, which the config does not have')
    factor = get(cfg, 'optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult')
    settings = {'head_lr': optimizer['lr'] * (1.0 if factor is None else factor)}
    if get(cfg, 'model.backbone.trainable') != []:
        settings = {'lr': optimizer['lr'], **settings}
    if optimizer.get('weight_decay') is not None:
        settings['weight_decay'] = optimizer['weight_decay']
    return settings


def default_space(settings: Mapping[str, float]) -> dict[str, Any]:
    """Two decades around each rate, and four of weight decay, all logarithmic."""
    distributions = import_optuna().distributions
    space = {}
    for key, value in settings.items():
        low, high = DECAY if key == 'weight_decay' else (value / REACH, value * REACH)
        space[key] = distributions.FloatDistribution(low, high, log=True)
    return space


def grid_of(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values of a space of choices.

    Raises:
        UserError: If it has a range, or nothing.
    """
    if not space:
        raise UserError('--sampler grid: it needs --space KEY=A,B,C ..., the values of the grid')
    for key, distribution in space.items():
        if not hasattr(distribution, 'choices'):
            raise UserError(
                f'--sampler grid: --space {key}={distribution.low:g}:{distribution.high:g} is a '
                f'range; list its values, as {key}=A,B,C, or take --sampler tpe')
    values = [distribution.choices for distribution in space.values()]
    return [dict(zip(space, each, strict=True)) for each in itertools.product(*values)]


# --- the search ------------------------------------------------------------------------------


@dataclass
class Search:
    """A search for one method of a comparison.

    Attributes:
        comparison: Its config, precision, threads and options are those of the trials.
        method: Name of the method; empty: the config says what trains.
        folder: Gets the study, a folder a trial, and the results. Several processes may search in
            one folder: they share the study and its number of trials.
        trials: How many, of all processes and calls; of a grid at most as many as it has points.
        space: Key -> distribution, beside the defaults or in their place; of a grid, alone.
        pruner: One of :data:`PRUNERS`.
        seed: Of Optuna's sampler, and of the order of a grid.
        sampler: One of :data:`SAMPLERS`.
        check: Whether the ends of all ranges are tried on the config.
    """

    comparison: runs.Comparison
    method: str
    folder: Path
    trials: int
    space: Mapping[str, Any]
    pruner: str = 'none'
    seed: int = 0
    sampler: str = 'tpe'
    check: bool = True

    def __post_init__(self) -> None:
        """Look at the config.

        Raises:
            UserError: If it cannot be searched so.
        """
        from vpt_dense import tasks

        self._cfg = self.comparison.config(self.method)
        self._task = tasks.need(self._cfg.model, 'a search')
        if not self._cfg.get('val_dataloader'):
            raise UserError('a search needs val_dataloader, which judges the trials')
        own = own_settings(self._cfg)
        comparison = self.comparison
        said = [option.partition('=')[0].strip()
                for option in (*comparison.options, *comparison.own.get(self.method, ()))]
        self.own = {key: value for key, value in own.items() if key not in said}
        unsearched = {key: value for key, value in self.own.items() if key not in self.space}
        self.asked = self.trials
        self._grid: list[dict[str, Any]] = []
        if self.sampler == 'grid':
            self._grid = grid_of(self.space)
            random.Random(self.seed).shuffle(self._grid)  # a part of it is spread over all of it
            self.trials = min(self.trials, len(self._grid))
        else:
            self.space = {**default_space(unsearched), **self.space}
        self._check_space(said)
        self._stops: list[threading.Event] = []
        self._lock = threading.Lock()
        self._failed = 0
        self._locks: dict[int, Any] = {}  # of the trials that run in this process

    def _check_space(self, said: Sequence[str]) -> None:
        """Both ends of every range must be what the config takes."""
        for key in self.space:
            if key in said:
                raise UserError(
                    f'--space {key}: --cfg-options sets it too; leave it out of one of them')
        if not self.check:
            return
        for key, values in self._ends().items():
            for value in values:
                self.comparison.config(self.method, self.example({key: value}))

    def _ends(self) -> dict[str, Sequence[Any]]:
        return {key: getattr(each, 'choices', None) or (each.low, each.high)
                for key, each in self.space.items()}

    def example(self, point: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
        """Settings that a trial may have, ``point`` among them, as ``KEY=VALUE``."""
        settings = {**{key: values[0] for key, values in self._ends().items()}, **point}
        return [_option(key, value, self.space[key]) for key, value in settings.items()]

    # --- the study

    def open(self) -> 'optuna.Study':
        """The study of the folder, made if there is none; trials of dead processes are closed.

        Raises:
            UserError: If the folder holds a search of other settings.
        """
        from vpt_dense import outputs

        self.folder.mkdir(parents=True, exist_ok=True)
        with outputs.waiting_lock(self.folder):
            return self._open()

    def _open(self) -> 'optuna.Study':
        from vpt_dense import safe_files

        optuna = import_optuna()
        mark, known = self._mark(), runs.read(self.folder / MARK)
        if known is None:
            safe_files.write_text(self.folder / MARK, json.dumps(mark, indent=1) + '\n')
        elif not _agree(known, mark):
            differ = [key for key in {**known, **mark} if known.get(key) != mark.get(key)]
            raise UserError(
                f'{self.folder} holds a search of other settings ({", ".join(differ)} differ): '
                'move it away, or take another --work-dir')
        pruners = dict(none=optuna.pruners.NopPruner, median=optuna.pruners.MedianPruner,
                       hyperband=optuna.pruners.HyperbandPruner)
        study = optuna.create_study(
            study_name=_NAME, storage=self._storage(), load_if_exists=True,
            pruner=pruners[self.pruner](),
            direction='minimize' if self._task.less_is_better else 'maximize')
        # With one seed each process, and each further call, would draw what others have drawn.
        opened = study.user_attrs.get('opened', int(bool(study.trials)))
        study.set_user_attr('opened', opened + 1)
        seed = np.random.SeedSequence([self.seed, opened]).generate_state(1)[0]
        study.sampler = optuna.samplers.TPESampler(
            seed=int(seed) if opened else self.seed, n_startup_trials=max(3, self.trials // 3))
        if not study.trials and self.sampler == 'tpe' and (own := self._own_point()):
            study.enqueue_trial(own, skip_if_exists=True)
        self._close_dead(study)
        return study

    def _mark(self) -> dict[str, Any]:
        """What a study must be of to be this one."""
        return dict(
            self.comparison.fingerprint(self.method, 0), seed=self.seed, pruner=self.pruner,
            space={key: repr(value) for key, value in self.space.items()},
            **({} if self.sampler == 'tpe' else dict(sampler=self.sampler)))

    def _storage(self) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        return JournalStorage(JournalFileBackend(str(self.folder / STUDY)))

    def finished(self) -> list[str] | None:
        """The best settings, as ``KEY=VALUE``, if all trials are done; nothing is written."""
        known = runs.read(self.folder / MARK)
        if not known or not _agree(known, self._mark()) or not (self.folder / STUDY).is_file():
            return None
        try:
            study = import_optuna().load_study(study_name=_NAME, storage=self._storage())
        except KeyError:  # it is being made
            return None
        first = _first(study, self.trials)
        whole = len(first) == self.trials and all(each.state.name != 'RUNNING' for each in first)
        return options_of(self.best(study)) if whole and _complete(first) else None

    def _own_point(self) -> dict[str, Any]:
        """The config's own settings, the first trial; none where the ranges do not hold them."""
        from vpt_dense.tree import get

        own = {key: self.own.get(key, get(self._cfg, key)) for key in self.space}
        return own if all(_holds(self.space[key], value) for key, value in own.items()) else {}

    def _points(self) -> list[dict[str, Any]]:
        """The settings of all trials, where none depends on what others have found.

        Optuna's GridSampler and RandomSampler know no trial that was lost: the one takes the point
        of a killed process as done, the other begins anew with the points that it had.
        """
        if self.sampler == 'grid':
            return self._grid[:self.trials]
        optuna = import_optuna()
        own = self._own_point()
        drawn = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=self.seed))
        points = [own] if own else []
        while len(points) < self.trials:
            points.append(drawn.ask(dict(self.space)).params)
        return points

    def _plan(self, study: 'optuna.Study') -> None:
        """Put the points into the study that are not there yet, or were lost."""
        there = {
            trial.user_attrs.get('point') for trial in study.get_trials(deepcopy=False)
            if trial.state.name == 'WAITING' or _counts(trial)}
        for number, point in enumerate(self._points()):
            if number not in there:
                study.enqueue_trial(point, dict(point=number))

    def _ask(self, study: 'optuna.Study') -> 'optuna.Trial | None':
        """The next trial, its folder locked; None if there are enough.

        The folder of the search is locked meanwhile: so a trial that runs, and whose folder nobody
        has locked, is one whose process has ended.
        """
        from vpt_dense import outputs

        with outputs.waiting_lock(self.folder):
            self._close_dead(study)
            if len(_first(study, self.trials)) == self.trials:
                return None
            if self.sampler != 'tpe' and not study.get_trials(
                    deepcopy=False, states=(_state('WAITING'),)):
                self._plan(study)
            trial = study.ask(dict(self.space))
            self._place(trial.number).mkdir(exist_ok=True)
            self._locks[trial.number] = outputs.FolderLock(self._place(trial.number))
            return trial

    def _close_dead(self, study: 'optuna.Study') -> None:
        """A trial whose process has ended without a word does not count."""
        from vpt_dense import outputs

        for trial in study.get_trials(deepcopy=False, states=(_state('RUNNING'),)):
            if trial.number in self._locks:
                continue  # it is this process's
            self._place(trial.number).mkdir(exist_ok=True)
            try:
                lock = outputs.FolderLock(self._place(trial.number))
            except UserError:
                continue  # another process is at it
            study.tell(trial.number, state=_state('FAIL'))
            del lock

    def _place(self, number: int) -> Path:
        return self.folder / f'trial_{number:04}'

    def run(self, jobs: int = 1, say: Callable[[str], object] = print) -> 'optuna.Study':
        """Carry the trials out that are still to be.

        Args:
            jobs: Trials at a time.
            say: Prints a line.

        Raises:
            UserError: If the first trials fail, with their error; or if no trial has a result.
        """
        study = self.open()
        if self.trials < self.asked:
            say(f'{self.trials} trials instead of {self.asked}: the grid has no more')
        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(self._work, study, say) for _ in range(jobs)]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                with self._lock:
                    for stop in self._stops:
                        stop.set()
                    self._stops = []
                    self._failed = _PATIENCE
                raise
        if not _complete(_first(study, self.trials)):
            raise UserError(f'no trial in {self.folder} has a result')
        return study

    def best(self, study: 'optuna.Study') -> Any:
        """The best trial of the number; those of a call that asked for more are left out."""
        return best_of(study, self.trials)

    def _work(self, study: 'optuna.Study', say: Callable[[str], object]) -> None:
        """Carry out trials until there are enough."""
        told = False
        while True:
            with self._lock:
                if self._failed >= _PATIENCE:
                    return
                trial = self._ask(study)
                others = {each.number for each in _first(study, self.trials)
                          if each.state.name == 'RUNNING'} - self._locks.keys()
                stop = threading.Event()
                self._stops += [] if trial is None else [stop]
            if trial is not None:
                try:
                    self._train(study, trial, self._place(trial.number) / 'run', stop, say)
                finally:
                    with self._lock:
                        del self._locks[trial.number]
            elif not others:
                return
            else:  # theirs may be the best one; or they are killed, and it is to be repeated
                if not told:
                    say(f'waiting for {len(others)} trials of other processes')
                    told = True
                time.sleep(_PAUSE)

    def _train(
        self, study: 'optuna.Study', trial: 'optuna.Trial', work_dir: Path, stop: threading.Event,
        say: Callable[[str], object],
    ) -> None:  # fmt: skip
        options = options_of(trial)
        name = f'{self.method or "trial"} {len(_first(study))}/{self.trials}'
        told = ' '.join(options)
        pruned, looked = False, 0

        def look(_: int) -> None:
            nonlocal pruned, looked
            records = runs.read(work_dir / 'evaluations.json') or []
            for record in records[looked:]:
                value = record['metrics'].get(self.metric)
                if isinstance(value, (int, float)):
                    trial.report(value, record['iter'])
            looked = len(records)
            pruned = self.pruner != 'none' and trial.should_prune()
            if pruned:
                stop.set()

        try:
            summary = self.comparison.train(self.method, work_dir, options, look, stop)
            value = ((summary['last'] or {}).get('metrics') or {}).get(self.metric)
            if value is not None and not is_number(value):
                raise UserError(f'the last validation has {self.metric} {value}')
            if value is None:
                raise UserError(
                    f'the training ends without a validation that has {self.metric}; a search '
                    'needs val_dataloader, val_cfg and val_evaluator')
        except UserError as error:
            if pruned:
                study.tell(trial, state=_state('PRUNED'))
                say(f'{name}: {told}: stopped early')
                return
            if stop.is_set():  # by the user: it does not count
                study.tell(trial, state=_state('FAIL'))
                raise
            trial.set_user_attr('error', explain(error))
            study.tell(trial, state=_state('FAIL'))
            say(f'{name}: {told}: {explain(error)}')
            self._failed += not done(study)
            # The config's own settings are the first trial; of a grid it is any point.
            own = trial.number == 0 and self.sampler != 'grid' and self._own_point()
            if own or self._failed >= _PATIENCE:
                raise
            return
        study.tell(trial, value)
        say(f'{name}: {told}: {self.metric} {self.told(value)}')

    def told(self, value: float) -> str:
        """A value of the metric as text."""
        from vpt_dense import tasks

        return tasks.told(self.metric, value)

    @property
    def metric(self) -> str:
        """The name of what trials are judged by."""
        return self._task.metric

    # --- results

    def write(self, study: 'optuna.Study') -> list[Path]:
        """Write ``best.py`` (the whole config), ``trials.csv``, ``trials.svg``.

        Returns:
            The files.
        """
        from vpt_dense import safe_files

        best = self.best(study)
        cfg = self.comparison.config(self.method, options_of(best))
        told = ' '.join(options_of(best))
        text = (f'# {self.metric} {self.told(best.value)} on validation, the best of '
                f'{self.trials} trials: {told}\n{cfg.pretty_text}')
        written = {'best.py': text, 'trials.csv': as_csv(study, self.metric)}
        for name, content in written.items():
            safe_files.write_text(self.folder / name, content)
        draw(study, best, self.metric, self.folder / 'trials.svg')
        return [self.folder / name for name in (*written, 'trials.svg')]


def _agree(known: Mapping[str, Any], mark: Mapping[str, Any]) -> bool:
    """Whether a study is of what was asked for; the data may have been downloaded by it."""
    return {**known, 'data': None} == {**mark, 'data': None} and (
        known.get('data') in (None, mark['data']))


def options_of(trial: Any) -> list[str]:
    """The settings of a trial, as ``KEY=VALUE``."""
    return [_option(key, value, trial.distributions[key]) for key, value in trial.params.items()]


def _state(name: str) -> Any:
    return import_optuna().trial.TrialState[name]


def _option(key: str, value: Any, distribution: Any) -> str:
    listed = hasattr(distribution, 'choices')  # and meant as it is written
    return f'{key}={value}' if listed or not isinstance(value, float) else f'{key}={value:.4g}'


def _holds(distribution: Any, value: Any) -> bool:
    choices = getattr(distribution, 'choices', None)
    if choices is not None:
        return value in choices
    return isinstance(value, (int, float)) and distribution.low <= value <= distribution.high


def _counts(trial: Any) -> bool:
    """Whether a trial is one of the number: it runs, has ended, or ended in an error of its own."""
    return trial.state.name in ('RUNNING', 'COMPLETE', 'PRUNED') or 'error' in trial.user_attrs


def _first(study: 'optuna.Study', trials: int | None = None) -> list[Any]:
    """The first trials of the number; None: all. Earlier calls may have asked for more."""
    return [trial for trial in study.get_trials(deepcopy=False) if _counts(trial)][:trials]


def _complete(trials: Sequence[Any]) -> list[Any]:
    return [trial for trial in trials if trial.state.name == 'COMPLETE']


def done(study: 'optuna.Study') -> list[Any]:
    """The trials that have a result, by number."""
    return _complete(study.get_trials(deepcopy=False))


def best_of(study: 'optuna.Study', trials: int | None = None) -> Any:
    """The best of the first trials, None: of all; of equal ones the first."""
    sign = 1 if study.direction.name == 'MAXIMIZE' else -1
    complete = _complete(_first(study, trials))
    return max(complete, key=lambda trial: (sign * trial.value, -trial.number))


def as_csv(study: 'optuna.Study', metric: str) -> str:
    """Every trial: number, state, settings, score."""
    trials = _first(study)
    keys = list(dict.fromkeys(key for trial in trials for key in trial.params))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(['trial', 'state', *keys, metric, 'error'])
    for trial in trials:
        state = 'failed' if trial.state.name == 'FAIL' else trial.state.name.lower()
        writer.writerow([trial.number, state, *(trial.params.get(key, '') for key in keys),
                         '' if trial.value is None else trial.value,
                         trial.user_attrs.get('error', '')])
    return stream.getvalue()


def draw(study: 'optuna.Study', best: Any, metric: str, out: Path) -> None:
    """Draw the score over each setting, all trials; the best is marked."""
    import matplotlib

    from vpt_dense import safe_files

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'
    from matplotlib import pyplot

    keys = list(best.params)
    figure, rows = pyplot.subplots(
        1, len(keys), figsize=(3.2 * len(keys), 3.2), sharey=True, squeeze=False,
        layout='constrained')
    for key, axes in zip(keys, rows[0], strict=True):
        values = [trial.params[key] for trial in done(study)]
        scores = [trial.value for trial in done(study)]
        if not all(isinstance(value, (int, float)) for value in values):
            values = list(map(str, values))
        axes.scatter(values, scores, s=18, color='#0072B2')
        mark = best.params[key]
        axes.scatter([mark if isinstance(values[0], (int, float)) else str(mark)], [best.value],
                     s=60, marker='*', color='#D55E00')
        if getattr(best.distributions[key], 'log', False):
            axes.set_xscale('log')
        axes.set(xlabel=key.rpartition('.')[2])
        axes.grid(color='0.9')
        axes.spines[['top', 'right']].set_visible(False)
    rows[0][0].set(ylabel=f'{metric} (validation)')
    with safe_files.atomic(out) as unfinished:
        figure.savefig(unfinished, format='svg', metadata={'Date': None})
    pyplot.close(figure)
