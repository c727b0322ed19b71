"""A method on classes that come in steps: one training a step, and a test of all steps so far."""

import functools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from vpt_dense import building, safe_files, tables, tasks
from vpt_dense.comparison import runs
from vpt_dense.continual import scores
from vpt_dense.continual.class_subset import choose, classes_of_images
from vpt_dense.continual.stream import names_of
from vpt_dense.errors import UserError, explain
from vpt_dense.tree import kind_of

#: What is known of a finished step, in its folder.
STEP = 'step.json'


@dataclass
class Stream:
    """The steps of a stream with one method.

    Attributes:
        comparison: Its config, precision, threads and options, ``continual.steps`` or
            ``continual.domains`` among them.
        method: Name of the method; empty: the config says what trains.
        domains: What each domain is called; empty: steps are of classes.
        eta: Of ``nsp2``; None: its usual one.
    """

    comparison: runs.Comparison
    method: str
    domains: Sequence[str] = ()
    eta: float | None = None

    def __post_init__(self) -> None:
        """Read the classes."""
        cfg = self.comparison.config(self.method)
        self.dense = tasks.is_dense(cfg.model)
        #: Dataloader -> the classes of its images.
        self._there: dict[str, Sequence[frozenset[int]]] = {}
        if self.domains:
            self.steps, self.names = [], list(self.domains)
            self.number = len(self.domains)
            return
        found = cfg.model.continual if self.dense else cfg.model.head
        self.steps: list[list[int]] = found.steps
        self.number = len(self.steps)
        self.names = names_of(cfg)

    def check(self, strategies: Sequence[str], seeds: Sequence[int]) -> None:
        """Refuse what a later step would refuse, before anything trains.

        Raises:
            UserError: If a strategy is not for this stream, a step has no image, or a domain cannot
                be read.
        """
        for strategy in strategies:
            self.comparison.config(self.method, [f'continual.strategy={strategy}'])
        places = [self.folder(strategy, seed) / f'step_{self.number - 1}' / STEP
                  for strategy in strategies for seed in seeds]
        if all((runs.read(place) or {}).get('trained') for place in places):
            return
        if self.domains:
            self._check_domains()
            return
        for strategy in {'joint' if each == 'joint' else 'sequential' for each in strategies}:
            self._check_images(strategy)

    def _check_domains(self) -> None:
        """The data of every domain must be there; what is trained counts for these alone."""
        for domain, name in enumerate(self.names):
            cfg = self.comparison.config(self.method, [f'continual.step={domain}'])
            try:
                for loader in ('train_dataloader', 'test_dataloader'):
                    self._build(cfg, cfg[loader].dataset)
            except Exception as error:
                raise UserError(f'continual.domains: {name}: {explain(error)}') from error

    @staticmethod
    def _build(cfg: Config, data: dict[str, Any]) -> Any:
        """A data set of a config, with the list of its images read."""
        building.import_packages(cfg)
        with building.scope(cfg):
            found = DATASETS.build(data)
        found.full_init()
        return found

    def _check_images(self, strategy: str) -> None:
        """Every step must have an image to train on, and one to be tested on."""
        there = self._there
        for step, labels in enumerate(self.steps):
            cfg = self.comparison.config(
                self.method, [f'continual.step={step}', f'continual.strategy={strategy}'])
            key = f'continual: step {step + 1} of {self.number}'
            for name in ('train_dataloader', 'test_dataloader'):
                data = cfg[name].dataset
                if name not in there:
                    inner = data.dataset if kind_of(data) == 'ClassSubset' else data
                    try:
                        there[name] = classes_of_images(self._build(cfg, inner), 'continual')
                    except Exception:  # of data that cannot be read the training says more
                        return
                if name == 'train_dataloader':
                    choose(there[name], self.names, data.labels, data.get('without', ()), key)
                else:
                    choose(there[name], self.names, labels, (), f'{key}: test_dataloader')

    def folder(self, strategy: str, seed: int) -> Path:
        """The folder of a run."""
        return self.comparison.folder / f'{strategy}_seed{seed}'

    def run(self, strategy: str, seed: int, own: bool = False) -> dict[str, list]:
        """Train and test all steps, or what is left of them.

        Args:
            strategy: One of :data:`vpt_dense.continual.stream.STRATEGIES`.
            seed: Of the trainings.
            own: Whether each step is tested among its own classes too, as forward transfer asks.

        Returns:
            ``matrix``: the accuracies, see :func:`vpt_dense.continual.scores.average_accuracy`; of
            ``alone`` none. ``own``: of each step just behind it, where it is known.

        Raises:
            UserError: If a training or a test fails, or a step's folder is of other settings.
        """
        found: dict[str, list] = dict(matrix=[], own=[])
        before: Path | None = None
        own |= strategy == 'alone'
        if strategy == 'joint' and self.dense and self.steps:
            own = False  # there is one last layer for all
        for step in range(self.number):
            place = self.folder(strategy, seed) / f'step_{step}'
            options = [f'continual.step={step}', f'continual.strategy={strategy}']
            if strategy == 'nsp2' and self.eta is not None:
                options.append(f'continual.eta={self.eta!r}')
            if before is not None and strategy == 'nsp2':
                options.append(f'continual.null_space={before / "null_space.safetensors"}')
            mark = self._mark(seed, options)
            known = runs.read(place / STEP)
            if known is None and any(place.glob('*.pth')):
                raise UserError(
                    f'{place} holds checkpoints of a run that was started otherwise; move it away '
                    'or take another --work-dir')
            if known is None:
                known = mark
                safe_files.write_text(place / STEP, json.dumps(mark) + '\n')
            elif any(known.get(key) != value for key, value in mark.items()):
                raise UserError(
                    f'{place} is a step of other settings or data: move {self.comparison.folder} '
                    'away, or take another --work-dir')
            if not known.get('trained'):
                print(f'{strategy}, seed {seed}: step {step + 1} of {self.number}', flush=True)
                start = []
                if before is not None and strategy not in ('joint', 'alone'):
                    # The heads too, whatever the first step began with.
                    start = [f'load_from={self._last(before)}', 'new_heads=False']
                self.comparison.train(self.method, place, [*options, *start], seed=seed)
                known = dict(known, trained=True)
                safe_files.write_text(place / STEP, json.dumps(known, indent=1) + '\n')
            if strategy != 'alone' and 'accuracies' not in known:
                known = dict(known, accuracies=self._accuracies(place, options, step))
            if own and 'own' not in known:
                known = dict(known, own=known['accuracies'][step] if self.domains and (
                    'accuracies' in known) else self._own(place, options, step))
            safe_files.write_text(place / STEP, json.dumps(known, indent=1) + '\n')
            if strategy != 'alone':
                found['matrix'].append(known['accuracies'])
            if 'own' in known:
                found['own'].append(known['own'])
            before = place
        return found

    def _mark(self, seed: int, options: Sequence[str]) -> dict[str, Any]:
        """What a step must be of to count; what it begins with is that of the step before."""
        own = [option for option in options if not option.startswith('continual.null_space=')]
        mark = self.comparison.fingerprint(self.method, seed)
        if self.domains:
            mark['data'] = [
                self.comparison.fingerprint(self.method, seed, [f'continual.step={domain}'])['data']
                for domain in range(self.number)]
        return dict(mark, options=own)

    def _last(self, place: Path) -> Path:
        """The last checkpoint of a step."""
        from vpt_dense.weights import checkpoints

        found = checkpoints.find_last(str(place), print)
        if found is None:
            raise UserError(f'{place} has no checkpoint that the next step could begin with')
        return Path(found)

    def _accuracies(self, place: Path, options: Sequence[str], step: int) -> list[float]:
        """The accuracies of all steps so far among the classes so far; of domains those of all."""
        if self.domains:
            return [self._on(place, options, domain) for domain in range(self.number)]
        test = self._test(place, options)
        return [self._of(test, labels) for labels in self.steps[: step + 1]]

    def _own(self, place: Path, options: Sequence[str], step: int) -> float:
        """The accuracy of a step among its own classes, or on its own domain."""
        if self.domains:
            return self._on(place, options, step)
        test = self._test(place, [*options, "continual.test_on='step'"], 'step')
        return self._of(test, self.steps[step])

    def _on(self, place: Path, options: Sequence[str], domain: int) -> float:
        """The accuracy on a domain."""
        test = self._test(
            place, [*options, f'continual.test_on={domain}'], f'domain_{domain}')
        return self._mean(test)

    def _of(self, test: Sequence[dict[str, Any]], labels: Sequence[int]) -> float:
        """The accuracy of some classes in percent, or their mean IoU."""
        return self._mean([test[label] for label in labels])  # two classes may have one name

    def _mean(self, rows: Sequence[dict[str, Any]]) -> float:
        """The accuracy of classes, weighted by their images, or their mean IoU, in percent."""
        key = 'IoU' if self.dense else 'accuracy'
        known = [row for row in rows if row[key] is not None]
        if not known:
            raise UserError(
                f'{self.comparison.pattern}: the test has no {"pixel" if self.dense else "image"} '
                f'of {", ".join(row["class"] for row in rows)}')
        return statistics.fmean(
            [row[key] for row in known],
            None if self.dense else [row['support'] for row in known])

    def _test(
        self, place: Path, options: Sequence[str], name: str = 'seen'
    ) -> list[dict[str, Any]]:
        """What a test of a step's last checkpoint finds of each class, in a folder of its own."""
        folder = place / f'test_{name}'
        call_tool = functools.partial(
            runs.call, log=place / 'output.log', threads=self.comparison.threads)
        call_tool([
            *runs.TOOL, 'test', self.comparison.config_path(self.method), place,
            *self.comparison.method_option(self.method), '--work-dir', folder, '--cfg-options',
            *self.comparison.options_of(self.method, options)])
        found = json.loads((folder / 'test.json').read_text(encoding='utf-8'))['per_class']
        if not found:
            raise UserError(
                'test_evaluator: a stream needs results by class; take vpt_dense.'
                f'{"IoUMetric" if self.dense else "Accuracy"}')
        return found

    # --- results ---------------------------------------------------------------------------------

    def write(self, strategies: Sequence[str], seeds: Sequence[int]) -> list[Path]:
        """Write ``table.md``, ``table.json``, ``stream.json``, ``matrix.svg``."""
        found = {strategy: [self.run(strategy, seed, 'alone' in strategies) for seed in seeds]
                 for strategy in strategies}
        content = dict(
            method=self.method, steps=self.steps, domains=list(self.domains), seeds=list(seeds),
            measure='mIoU' if self.dense else 'accuracy',
            matrices={strategy: [run['matrix'] for run in each]
                      for strategy, each in found.items() if strategy != 'alone'},
            own={strategy: [run['own'] for run in each] for strategy, each in found.items()},
            amp=self.comparison.amp, config=str(self.comparison.pattern),
            options=list(self.comparison.options))
        by_name = len(set(self.names)) == len(self.names)
        stream = list(self.domains) or [
            [self.names[label] if by_name else label for label in step] for step in self.steps]
        written = {
            'table.md': tables.markdown(*lay_out(content)) + '\n',
            'table.json': json.dumps(content, indent=1) + '\n',
            'stream.json': json.dumps(stream, indent=1) + '\n'}
        folder = self.comparison.folder
        for name, text in written.items():
            safe_files.write_text(folder / name, text)
        if not content['matrices']:
            return [folder / name for name in written]
        draw(content['matrices'], folder / 'matrix.svg', self.domains)
        return [folder / name for name in (*written, 'matrix.svg')]


def lay_out(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of the table of a stream.

    Args:
        content: Of its ``table.json``.
    """
    own, matrices = content['own'], content['matrices']
    names = content['domains'] or [f'step {step + 1}' for step in range(len(content['steps']))]
    transfer = 'alone' in own
    header = ['strategy', f'average {content["measure"]}', 'forgetting',
              *(['forward transfer'] if transfer else []), *names]
    rows = []
    for strategy, each in own.items():
        if strategy == 'alone':
            figures, last = ['-', '-', '-'], each
        else:
            own_matrices = matrices[strategy]
            last = [matrix[-1] for matrix in own_matrices]
            lost = [scores.forgetting(matrix) for matrix in own_matrices]
            known = strategy != 'joint' and None not in lost
            figures = [_spread([scores.average_accuracy(matrix) for matrix in own_matrices]),
                       _spread(lost) if known else '-']
            if transfer:
                gains = [scores.forward_transfer(*pair)
                         for pair in zip(each, own['alone'], strict=True)]
                figures.append(_spread(gains) if known else '-')
        rows.append([strategy, *figures, *(_spread([run[step] for run in last])
                                           for step in range(len(names)))])
    return header, rows


def _spread(values: Sequence[float]) -> str:
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    mean = round(statistics.fmean(values), 1) + 0.0  # which makes zero of minus zero
    return f'{mean:.1f}{spread}'


def draw(
    matrices: dict[str, list[list[list[float]]]], out: Path, names: Sequence[str] = ()
) -> None:
    """Draw the accuracies of each step behind each step, means over seeds, a square a strategy."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'
    from matplotlib import pyplot

    figure, places = pyplot.subplots(
        1, len(matrices), figsize=(3.2 * len(matrices) + .4, 3.6), squeeze=False,
        layout='constrained')
    for axes, (strategy, found) in zip(places[0], matrices.items(), strict=True):
        size = len(found[0])
        square = [[statistics.fmean(matrix[t][j] for matrix in found)
                   if j < len(found[0][t]) else math.nan for j in range(size)]
                  for t in range(size)]
        axes.imshow(square, vmin=0, vmax=100, cmap='viridis')
        for t in range(size):
            for j in range(len(found[0][t])):
                axes.text(j, t, f'{square[t][j]:.0f}', ha='center', va='center', fontsize=8,
                          color='white' if square[t][j] < 60 else 'black')
        ticks = range(size), list(names) or [str(step + 1) for step in range(size)]
        axes.set_xticks(*ticks, rotation=90 if names else 0)
        axes.set_yticks(*ticks)
        axes.set(title=strategy, xlabel='domain' if names else 'classes of step',
                 ylabel='behind step')
    with safe_files.atomic(out) as unfinished:
        figure.savefig(unfinished, format='svg', metadata={'Date': None})
    pyplot.close(figure)
