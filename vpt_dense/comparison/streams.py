"""A method on classes that come in steps: one training a step, and a test of all steps so far."""

import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt_dense import safe_files, tables
from vpt_dense.comparison import runs
from vpt_dense.continual import scores
from vpt_dense.errors import UserError

#: What is known of a finished step, in its folder.
STEP = 'step.json'


@dataclass
class Stream:
    """The steps of a stream with one method.

    Attributes:
        comparison: Its config, precision, threads and options, ``continual.steps`` among them.
        method: Name of the method; empty: the config says what trains.
        number: Of steps.
        eta: Of ``nsp2``; None: its usual one.
    """

    comparison: runs.Comparison
    method: str
    number: int
    eta: float | None = None

    def __post_init__(self) -> None:
        """Read the classes."""
        cfg = self.comparison.config(self.method)
        self.steps: list[list[int]] = cfg.model.head.steps
        classes = cfg.train_dataloader.dataset.dataset
        names = (classes.get('metainfo') or {}).get('classes')
        self.names = names or [str(label) for label in range(cfg.model.head.num_classes)]

    def folder(self, strategy: str, seed: int) -> Path:
        """The folder of a run."""
        return self.comparison.folder / f'{strategy}_seed{seed}'

    def run(self, strategy: str, seed: int) -> list[list[float]]:
        """Train and test all steps, or what is left of them.

        Args:
            strategy: One of :data:`vpt_dense.continual.stream.STRATEGIES`.
            seed: Of the trainings.

        Returns:
            The accuracies, see :func:`vpt_dense.continual.scores.average_accuracy`.

        Raises:
            UserError: If a training or a test fails, or a step's folder is of other settings.
        """
        matrix: list[list[float]] = []
        before: Path | None = None
        for step in range(self.number):
            place = self.folder(strategy, seed) / f'step_{step}'
            options = [f'continual.step={step}', f'continual.strategy={strategy}']
            if strategy == 'nsp2' and self.eta is not None:
                options.append(f'continual.eta={self.eta:g}')
            if before is not None and strategy != 'joint':
                options.append(f'load_from={self._last(before)}')
                if strategy == 'nsp2':
                    options.append(f'continual.null_space={before / "null_space.safetensors"}')
            mark = self._mark(seed, options)
            known = runs.read(place / STEP)
            if known is None:
                safe_files.write_text(place / STEP, json.dumps(mark) + '\n')
            elif any(known.get(key) != value for key, value in mark.items()):
                raise UserError(
                    f'{place} is a step of other settings or data: move {self.comparison.folder} '
                    'away, or take another --work-dir')
            if not known or 'accuracies' not in known:
                print(f'{strategy}, seed {seed}: step {step + 1} of {self.number}', flush=True)
                self.comparison.train(self.method, place, options, seed=seed)
                known = dict(mark, accuracies=self._test(place, options, step))
                safe_files.write_text(place / STEP, json.dumps(known, indent=1) + '\n')
            matrix.append(known['accuracies'])
            before = place
        return matrix

    def _mark(self, seed: int, options: Sequence[str]) -> dict[str, Any]:
        """What a step must be of to count; what it begins with is that of the step before."""
        own = [option for option in options
               if not option.startswith(('load_from=', 'continual.null_space='))]
        return dict(self.comparison.fingerprint(self.method, seed), options=own)

    def _last(self, place: Path) -> Path:
        """The last checkpoint of a step."""
        from vpt_dense.weights import checkpoints

        found = checkpoints.find_last(str(place), print)
        if found is None:
            raise UserError(f'{place} has no checkpoint that the next step could begin with')
        return Path(found)

    def _test(self, place: Path, options: Sequence[str], step: int) -> list[float]:
        """The accuracies of all steps so far, in percent, among the classes so far."""
        call_tool = functools.partial(
            runs.call, log=place / 'output.log', threads=self.comparison.threads)
        call_tool([
            *runs.TOOL, 'test', self.comparison.config_path(self.method), place,
            *self.comparison.method_option(self.method), '--work-dir', place, '--cfg-options',
            *self.comparison.options_of(self.method, options)])
        test = json.loads((place / 'test.json').read_text(encoding='utf-8'))
        by_name = {each['class']: each for each in test['per_class']}
        accuracies = []
        for labels in self.steps[: step + 1]:
            own = [by_name[self.names[label]] for label in labels]
            images = sum(each['support'] for each in own)
            right = sum(each['accuracy'] * each['support'] for each in own if each['support'])
            accuracies.append(right / images)
        return accuracies

    # --- results ---------------------------------------------------------------------------------

    def write(self, strategies: Sequence[str], seeds: Sequence[int]) -> list[Path]:
        """Write ``table.md``, ``table.json``, ``stream.json``, ``matrix.svg``."""
        matrices = {strategy: [self.run(strategy, seed) for seed in seeds]
                    for strategy in strategies}
        rows = []
        for strategy, found in matrices.items():
            lost = [scores.forgetting(matrix) for matrix in found]
            rows.append([
                strategy, _spread([scores.average_accuracy(matrix) for matrix in found]),
                '-' if None in lost or strategy == 'joint' else _spread(lost),
                *(_spread([matrix[-1][step] for matrix in found]) for step in range(self.number))])
        header = ['strategy', 'average accuracy', 'forgetting',
                  *(f'step {step + 1}' for step in range(self.number))]
        folder = self.comparison.folder
        content = dict(
            method=self.method, steps=self.steps, seeds=list(seeds), matrices=matrices,
            amp=self.comparison.amp, config=str(self.comparison.pattern),
            options=list(self.comparison.options))
        written = {
            'table.md': tables.markdown(header, rows) + '\n',
            'table.json': json.dumps(content, indent=1) + '\n',
            'stream.json': json.dumps(
                [[self.names[label] for label in step] for step in self.steps], indent=1) + '\n'}
        for name, text in written.items():
            safe_files.write_text(folder / name, text)
        draw(matrices, folder / 'matrix.svg')
        return [folder / name for name in (*written, 'matrix.svg')]


def _spread(values: Sequence[float]) -> str:
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.1f}{spread}'


def draw(matrices: dict[str, list[list[list[float]]]], out: Path) -> None:
    """Draw the accuracies of each step behind each step, means over seeds, a square a strategy."""
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'
    from matplotlib import pyplot

    figure, places = pyplot.subplots(
        1, len(matrices), figsize=(3.2 * len(matrices), 3.2), squeeze=False, layout='constrained')
    for axes, (strategy, found) in zip(places[0], matrices.items(), strict=True):
        size = len(found[0])
        square = [[statistics.fmean(matrix[t][j] for matrix in found) if j <= t else float('nan')
                   for j in range(size)] for t in range(size)]
        axes.imshow(square, vmin=0, vmax=100, cmap='viridis')
        for t in range(size):
            for j in range(t + 1):
                axes.text(j, t, f'{square[t][j]:.0f}', ha='center', va='center', fontsize=8,
                          color='white' if square[t][j] < 60 else 'black')
        ticks = range(size), [str(step + 1) for step in range(size)]
        axes.set_xticks(*ticks)
        axes.set_yticks(*ticks)
        axes.set(title=strategy, xlabel='classes of step', ylabel='behind step')
    with safe_files.atomic(out) as unfinished:
        figure.savefig(unfinished, format='svg', metadata={'Date': None})
    pyplot.close(figure)
