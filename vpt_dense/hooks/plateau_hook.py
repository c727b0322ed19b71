"""Schedules that follow a metric, in loops that count iterations."""

from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.runner import EpochBasedTrainLoop, Runner

from vpt_dense.registry import HOOKS

#: The key of the message hub: the iteration of the last results that schedules have seen.
FOLLOWED_AT = 'followed_at'


@HOOKS.register_module()
class PlateauHook(Hook):
    """Steps ``ReduceOnPlateau`` schedules of a loop over iterations after each validation.

    mmengine's own hook steps those that count epochs. Here ``begin`` and ``end`` are iterations,
    ``patience`` and ``cooldown`` validations. :class:`vpt_dense.engine.runner.Runner` adds this
    hook to every training.
    """

    priority = 'LOW'  # as mmengine's ParamSchedulerHook

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Step them, and note when."""
        runner.message_hub.update_info(FOLLOWED_AT, runner.iter)
        for scheduler in follow_metrics(runner.param_schedulers) if metrics else ():
            if not scheduler.by_epoch:
                scheduler.step(metrics)


def follow_metrics(schedulers: list | dict | None) -> Iterator[_ParamScheduler]:
    """Those of built schedules that need the results of a validation."""
    lists = schedulers.values() if isinstance(schedulers, dict) else [schedulers or []]
    for part in lists:
        yield from (scheduler for scheduler in part if getattr(scheduler, 'need_val_args', False))


def build(runner: Runner, config: Any, build: Any) -> list | dict:
    """Build schedules, with those that follow a metric as the training loop counts.

    Args:
        runner: Its training loop is built.
        config: Of one schedule, or several; or of several optimizers.
        build: mmengine's function for it, which builds the ones that count epochs only.
    """
    if isinstance(runner._train_loop, EpochBasedTrainLoop):
        return build(config)
    built = build(_prepare(config, runner.max_iters))
    for scheduler in follow_metrics(built):
        scheduler.by_epoch = False
    return built


def _prepare(config: Any, end: int) -> Any:
    """Configs of what follows a metric as mmengine takes them; all else, built ones too, as is."""
    if isinstance(config, (list, tuple)):
        return [_prepare(part, end) for part in config]
    if not isinstance(config, dict):
        return config
    if 'type' not in config:  # of several optimizers
        return {name: _prepare(part, end) for name, part in config.items()}
    if 'ReduceOnPlateau' not in str(config['type']):
        return config
    return {'end': end, **config, 'by_epoch': True}
