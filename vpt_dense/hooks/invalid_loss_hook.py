"""Stopping a run whose loss has become useless."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense.errors import UserError
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops training when the loss is not finite: what follows would only overwrite good weights.

    Args:
        interval: Iterations between two looks; looking waits for the GPU.

    Raises:
        UserError: If the loss is NaN or infinite; it names the iteration.
    """

    priority = 'VERY_HIGH'  # before a checkpoint of the same iteration is saved

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Look at the loss at the first iteration, every ``interval`` and at the last."""
        loss = (outputs or {}).get('loss')
        due = runner.iter == 0 or self.every_n_train_iters(runner, self.interval)
        due = due or self.is_last_train_iter(runner)
        if loss is None or not due or torch.isfinite(loss).all():
            return
        raise UserError(
            f'the loss is {loss.item()} at iteration {runner.iter + 1}; lower '
            'optim_wrapper.optimizer.lr, or start again from the last checkpoint without --amp'
        )
