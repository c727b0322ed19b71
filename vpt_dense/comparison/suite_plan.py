"""The plan of a suite: how many runs, of what length, and what they would take."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vpt_dense.comparison import runs
from vpt_dense.comparison.suite import Cell, Suite
from vpt_dense.errors import explain

if TYPE_CHECKING:
    from mmengine.config import Config

#: Steps that are timed.
STEPS = 10
_MS_AN_HOUR = 3.6e6


def plan(suite: Suite, measure: bool, amp: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """What every cell of a suite would run.

    Args:
        suite: The suite.
        measure: Whether a step of each recipe and method is measured, unless it has been.
        amp: Mixed precision.

    Returns:
        Records of cells: ``cell``, ``trials``, ``seeds``, ``runs``, ``length`` (of a run: ``100
        epochs``), ``images`` (that training sees, over all runs; None if the data are not there),
        ``hours`` (of a GPU, or of a CPU core; None if not measured), ``device``. And notes on what
        is not known.
    """
    records: list[dict[str, Any]] = []
    notes: dict[str, None] = {}
    sizes: dict[str, int] = {}
    costs: dict[tuple, Mapping[str, Any] | None] = {}
    for cell in suite.cells():
        task = suite.tasks[cell.task]
        final = suite.comparison(cell.task, True, amp)
        seeds = len(suite.seeds)
        search = suite.search(cell, amp, check=False)
        trials = search.trials if search else 0
        cfg = final.config(cell.method)
        try:
            images = seeds * _images(cfg, sizes)
            if trials:
                base = suite.comparison(cell.task, False, amp)
                images += trials * _images(base.config(cell.method), sizes)
        except Exception as error:
            notes[f'{cell.task}: its training images cannot be counted: {explain(error)}'] = None
            images = None
        record = dict(cell=cell, trials=trials, seeds=seeds, runs=trials + seeds,
                      length=_length(cfg), images=images, hours=None, device=None)
        if measure:
            # What says where data are does not change what a step takes.
            own = tuple(each for each in (*task.options, *task.retrain)
                        if not each.startswith('dataset.'))
            key = (task.recipe, own, cell.method)
            if key not in costs:
                costs[key] = _measure(suite, cell, amp, notes)
            cost = costs[key]
            if cost and images is not None:
                cores = cost['threads'] if cost['device'] == 'cpu' else 1
                record.update(hours=images * cost['train_ms'] * cores / _MS_AN_HOUR,
                              device=cost['device'])
        records.append(record)
    return records, list(notes)


def _measure(
    suite: Suite, cell: Cell, amp: bool, notes: dict[str, None]
) -> Mapping[str, Any] | None:
    comparison = suite.comparison(cell.task, True, amp)
    costs, failures = comparison.measure([cell.method], STEPS, runs.num_cpus())
    for error in failures.values():
        notes[f'{cell}: a step cannot be measured: {error}'] = None
    return costs.get(cell.method)


def _length(cfg: 'Config') -> str:
    loop = cfg.train_cfg
    if 'max_epochs' in loop:
        return f'{loop.max_epochs} epochs'
    return f'{loop.max_iters} steps'


def _images(cfg: 'Config', sizes: dict[str, int]) -> int:
    """The images that a training sees.

    Args:
        cfg: The config.
        sizes: What is known of data sets, by their configs.
    """
    loader, loop = cfg.train_dataloader, cfg.train_cfg
    if 'max_epochs' not in loop:
        return loop.max_iters * loader.batch_size
    key = str(loader.dataset)
    if key not in sizes:
        from mmengine.registry import DATASETS

        from vpt_dense import building

        with building.scope(cfg):
            sizes[key] = len(DATASETS.build(loader.dataset))
    return loop.max_epochs * sizes[key]
