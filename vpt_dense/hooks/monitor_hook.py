"""Checks before training that the metrics exist which hooks and schedules follow."""

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.runner import Runner

from vpt_dense import params
from vpt_dense.errors import UserError, suggest
from vpt_dense.hooks.plateau_hook import follow_metrics
from vpt_dense.registry import HOOKS

#: What mmseg's IoUMetric calls its results, by its `iou_metrics`.
_OF_IOU = {
    'mIoU': ('mIoU', 'mAcc'), 'mDice': ('mDice', 'mAcc'),
    'mFscore': ('mFscore', 'mPrecision', 'mRecall'),
}  # fmt: skip


@HOOKS.register_module()
class MonitorHook(Hook):
    """Refuses, before training, a metric that the validation does not give.

    Those are what ``EarlyStoppingHook`` and ``ReduceOnPlateau`` schedules have as ``monitor`` (they
    would wait for it to the end and do nothing) and ``CheckpointHook`` as ``save_best``. What the
    metrics of the common configs give is known; else the first image of the validation is
    evaluated to see. :class:`vpt_dense.engine.runner.Runner` adds this hook to every training.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Look for the metrics.

        Raises:
            UserError: If one is not among those that there are, which are named.
        """
        wanted = dict(_wanted(runner))
        if not wanted:
            return
        if runner.val_loop is None:
            places = [place for place in wanted.values() if 'save_best' not in place]
            if places:
                raise UserError(
                    f'{places[0]}: this run does not validate; set val_cfg, val_dataloader and '
                    'val_evaluator'
                )
            runner.logger.warning('save_best has no effect: this run does not validate')
            return
        known = [_names(metric) for metric in runner.val_loop.evaluator.metrics]
        if None not in known:
            _check(wanted, [name for names in known for name in names])
        elif not wanted.keys() <= {name for names in known if names for name in names}:
            _check(wanted, _try(runner))

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """See to it that they are still there."""
        _check(dict(_wanted(runner)), metrics or {})


def _wanted(runner: Runner) -> Iterator[tuple[str, str]]:
    """Metrics that something waits for, and the keys that say so."""
    for hook in runner.hooks:
        if isinstance(hook, EarlyStoppingHook):
            yield hook.monitor, f'EarlyStoppingHook(monitor={hook.monitor!r})'
        elif isinstance(hook, CheckpointHook) and hook.save_best:
            for key in hook.key_indicators:
                if key != 'auto':
                    yield key, f'save_best={key!r} of the CheckpointHook'
    for scheduler in follow_metrics(runner.param_schedulers):
        kind = type(scheduler).__name__
        yield scheduler.monitor, f'param_scheduler: {kind}(monitor={scheduler.monitor!r})'


def _check(wanted: dict[str, str], names: Collection[str]) -> None:
    for name, place in wanted.items():
        if name not in names:
            raise UserError(
                f'{place}: the validation gives no {name!r}, but {", ".join(names) or "nothing"}'
                f'{suggest(name, names)}'
            )
        if isinstance(names, dict) and np.ndim(names[name]):
            raise UserError(
                f'{place}: {name} is an array of shape {tuple(np.shape(names[name]))}, and only a '
                'number is better or worse than another'
            )


def _names(metric: BaseMetric) -> list[str] | None:
    """The names of a metric's results, if its arguments tell them."""
    kind = type(metric).__name__
    if kind == 'IoUMetric' and not metric.format_only:
        names = ['aAcc', *(name for part in metric.metrics for name in _OF_IOU[part])]
        if getattr(metric, 'unseen', ()):
            names += ['mIoU_seen', 'mIoU_unseen', 'hIoU']
    elif kind == 'Accuracy' and list(metric.thrs) in ([0.0], [None]):
        names = [f'top{k}' for k in metric.topk]
    elif kind in ('DepthMetric', 'NormalMetric'):
        names = list(metric.metrics)
    else:
        return None
    return [f'{metric.prefix}/{name}' if metric.prefix else name for name in names]


def _try(runner: Runner) -> dict[str, Any]:
    """The evaluator's results for the first image of the validation."""
    from mmengine.runner.loops import _update_losses

    loop, model = runner.val_loop, params.unwrap(runner.model)
    batch = loop.dataloader.collate_fn([loop.dataloader.dataset[0]])
    was_training, level = model.training, runner.logger.level
    model.eval()
    runner.logger.setLevel('ERROR')  # a metric may print a table of its classes
    try:
        with torch.no_grad():
            outputs, losses = _update_losses(model.val_step(batch), {})
        loop.evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = loop.evaluator.evaluate(1)
        return {**metrics, **losses, 'val_loss': 0.0} if losses else metrics
    finally:
        runner.logger.setLevel(level)
        model.train(was_training)
