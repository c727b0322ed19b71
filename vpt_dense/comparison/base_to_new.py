"""From base to new classes: few images of half of the classes train, both halves are tested."""

import functools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt_dense import safe_files, tables
from vpt_dense.comparison import runs
from vpt_dense.continual.class_split import PARTS
from vpt_dense.errors import UserError

#: What is known of a finished run, in its folder.
RESULT = 'base_to_new.json'
METRIC = 'accuracy/top1'
#: CLIP as it is, in place of a method.
ZERO_SHOT = 'zero-shot'


def harmonic_mean(base: float, new: float) -> float:
    """2 base new / (base + new), of two accuracies; 0 if both are 0.

    Y. Xian et al., CVPR 2017, https://arxiv.org/abs/1703.04394, section 4.
    """
    return 2 * base * new / (base + new) if base + new else 0.0


@dataclass
class BaseToNew:
    """Runs of methods from base to new classes (CoCoOp, arXiv 2203.05557, section 4.1).

    Attributes:
        comparison: The recipe, precision, threads and options.
        shots: Images of each base class that train; None: all.
    """

    comparison: runs.Comparison
    shots: int | None = None

    def options(self, part: str, seed: int) -> list[str]:
        """The overrides of a training or a test."""
        found = [f'class_split.part={part}']
        if self.shots is not None:
            found += [f'subset.per_class={self.shots}', f'subset.seed={seed}']
        return found

    def run(self, method: str, seed: int) -> dict[str, float]:
        """Train on base classes and test both, or what is left of it.

        Args:
            method: Name of the method; or :data:`ZERO_SHOT`.
            seed: Of the training, and of the images that are drawn.

        Returns:
            The accuracies ``base`` and ``new``, and their harmonic mean ``H``, in percent.

        Raises:
            UserError: If the training or a test fails, or the folder is of other settings.
        """
        place = self.comparison.folder / f'{method}_seed{seed}'
        options = self.options('base', seed)
        mark: dict[str, Any] = dict(
            self.comparison.fingerprint(_trained(method), seed), options=options)
        known = runs.read(place / RESULT)
        if known is not None and any(known.get(key) != value for key, value in mark.items()):
            raise UserError(
                f'{place} is a run of other settings or data: move {self.comparison.folder} away, '
                'or take another --work-dir')
        if known is None:
            safe_files.write_text(place / RESULT, json.dumps(mark) + '\n')
        if not known or 'H' not in known:
            if method == ZERO_SHOT:
                self._start(place)
            else:
                self.comparison.train(method, place, options, seed=seed)
            found = {part: self._test(method, place, part, seed) for part in PARTS}
            known = {**mark, **found, 'H': harmonic_mean(**found)}
            safe_files.write_text(place / RESULT, json.dumps(known, indent=1) + '\n')
        return {key: known[key] for key in (*PARTS, 'H')}

    def _start(self, place: Path) -> None:
        """Write a checkpoint of CLIP as it is."""
        import torch

        from vpt_dense import building
        from vpt_dense.checkpoints import deltas

        cfg = self.comparison.config(_trained(ZERO_SHOT))
        model = building.build_model(cfg)
        model.init_weights()
        checkpoint = dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text))
        deltas.reduce(model, checkpoint)
        with safe_files.atomic(place / 'iter_0.pth') as unfinished:
            torch.save(checkpoint, unfinished)

    def _test(self, method: str, place: Path, part: str, seed: int) -> float:
        """The accuracy among the classes of one part, in percent."""
        folder = place / part
        folder.mkdir(exist_ok=True)
        call_tool = functools.partial(
            runs.call, log=place / 'output.log', threads=self.comparison.threads)
        call_tool([
            *runs.TOOL, 'test', self.comparison.config_path(method), place,
            *self.comparison.method_option(_trained(method)), '--work-dir', folder, '--cfg-options',
            *self.comparison.options_of(method, self.options(part, seed))])
        test = json.loads((folder / 'test.json').read_text(encoding='utf-8'))
        return float(test['metrics'][METRIC])

    def write(self, methods: Sequence[str], seeds: Sequence[int]) -> list[Path]:
        """Write ``table.md`` and ``table.json``; the harmonic mean is that of each run."""
        results = {method: [self.run(method, seed) for seed in seeds] for method in methods}
        rows = [
            [method, *(_spread([run[key] for run in found]) for key in (*PARTS, 'H'))]
            for method, found in results.items()]
        content = dict(
            results=results, seeds=list(seeds), shots=self.shots, amp=self.comparison.amp,
            config=str(self.comparison.pattern), options=list(self.comparison.options))
        folder = self.comparison.folder
        written = {
            'table.md': tables.markdown(['method', 'base', 'new', 'harmonic mean'], rows) + '\n',
            'table.json': json.dumps(content, indent=1) + '\n'}
        for name, text in written.items():
            safe_files.write_text(folder / name, text)
        return [folder / name for name in written]


def _trained(method: str) -> str:
    """The method of a recipe with which nothing trains, or the method itself."""
    return 'head' if method == ZERO_SHOT else method


def _spread(values: Sequence[float]) -> str:
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.fmean(values):.1f}{spread}'
