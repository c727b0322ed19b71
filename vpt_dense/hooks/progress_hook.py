"""Shows the progress of training, validation and test between the lines of the log."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from vpt_dense import live
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Shows the iteration that a run is at: :mod:`vpt_dense.live`.

    ``LoggerHook`` is silent for its ``interval`` of iterations, which may be minutes, or more than
    an epoch or a validation has. :class:`vpt_dense.engine.runner.Runner` adds this hook to every
    run.
    """

    priority = 'LOWEST'  # when everything else has been done and printed

    def before_run(self, runner: Runner) -> None:
        """Show that the weights are loaded now."""
        live.show(lambda: 'loading the weights', runner.logger.info)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Show that an iteration begins: the first one may take long."""
        live.show(lambda: _train(runner, batch_idx), runner.logger.info)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Show that it is done."""
        live.show(lambda: _train(runner, batch_idx), runner.logger.info)

    def before_val_epoch(self, runner: Runner) -> None:
        """Show that a validation begins."""
        live.show(lambda: _eval(runner, 'val', 0), runner.logger.info)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Show how far it is."""
        live.show(lambda: _eval(runner, 'val', batch_idx + 1), runner.logger.info)

    def before_test_epoch(self, runner: Runner) -> None:
        """Show that a test begins."""
        live.show(lambda: _eval(runner, 'test', 0), runner.logger.info)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Show how far it is."""
        live.show(lambda: _eval(runner, 'test', batch_idx + 1), runner.logger.info)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Take the line away."""
        live.clear()

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Take the line away."""
        live.clear()

    def after_train(self, runner: Runner) -> None:
        """Take the line away."""
        live.clear()


def _train(runner: Runner, batch_idx: int) -> str:
    """As LoggerHook's lines begin, which tools/compare.py reads."""
    if isinstance(runner.train_loop, EpochBasedTrainLoop):
        length = len(runner.train_dataloader)
        line = f'Epoch(train) [{runner.epoch + 1}][{batch_idx + 1}/{length}]'
    else:
        line = f'Iter(train) [{runner.iter + 1}/{runner.max_iters}]'
    scalars = runner.message_hub.log_scalars
    for name, words in (('loss', 'loss {:.4f}'), ('time', '{:.2f} s an iteration')):
        if f'train/{name}' in scalars:
            line += f'  {words.format(scalars[f"train/{name}"].mean(10))}'
    return line


def _eval(runner: Runner, split: str, done: int) -> str:
    loader = runner.val_dataloader if split == 'val' else runner.test_dataloader
    return f'Iter({split}) [{done}/{len(loader)}]'
