"""A loss that is not finite: stops the run or skips the step before weights are damaged."""

import math
import os
from collections import deque
from functools import partial
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from vpt_dense import params
from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.errors import UserError
from vpt_dense.registry import HOOKS
from vpt_dense.weights import checkpoints

#: Where the number of steps that were left out is kept, in the message hub's runtime info.
SKIPPED = 'skipped_steps'


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops training at a loss that is NaN or infinite, or leaves out the step that it would make.

    - ``stop``: the error names the first such iteration, its learning rate, its images and the last
      good checkpoint. The loss of every iteration counts, but is looked at only every ``interval``
      iterations, as that waits for the GPU; and before a validation. Before every checkpoint the
      weights are looked at, so none with useless weights is written.
    - ``skip``: the loss of every iteration is looked at, in all processes, before gradients are
      computed from it. If it is not finite in one of them, all leave the step out: weights,
      optimizer and running statistics of batch-norm stay as they were. With gradient accumulation
      the gradients of that iteration are missing in the step; if it is the last iteration of the
      step, the whole step is. The schedule goes on. The number of such iterations is kept in
      checkpoints and reported in ``summary.json`` as ``skipped_steps``.

    Args:
        interval: Iterations between two looks, where ``action`` is ``stop``.
        action: ``stop`` or ``skip``.
        max_skips: With ``skip``, how many iterations of a run may be left out; one more stops it.

    Raises:
        UserError: As above.
        ValueError: If an argument is wrong.
    """

    priority = 'VERY_HIGH'  # before a checkpoint of the same iteration is saved

    def __init__(self, interval: int = 50, action: str = 'stop', max_skips: int = 100) -> None:
        self.interval = check_count(interval, 'InvalidLossHook.interval')
        self.action = check_choice(action, 'InvalidLossHook.action', ('stop', 'skip'))
        self.max_skips = check_count(max_skips, 'InvalidLossHook.max_skips', 0)
        # (iteration, learning rate, images) of the iterations since the last look
        self._recent: deque[tuple[int, float, list[str]]] = deque()
        self._losses: list[Tensor] = []  # scalars on the model's device, of the same iterations

    def before_train(self, runner: Runner) -> None:
        """With ``skip``, look at each loss before the optimizer's part."""
        wrapper = runner.optim_wrapper
        if self.action == 'skip' and 'update_params' not in vars(wrapper):
            if not isinstance(wrapper, OptimWrapper):
                raise UserError(
                    'InvalidLossHook.action=skip needs one optimizer, not an '
                    f"{type(wrapper).__name__}; use action='stop'"
                )
            wrapper.update_params = partial(self._update_params, runner, wrapper.update_params)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Note what an error would name."""
        lr = next(iter(runner.optim_wrapper.get_lr().values()))[0]
        self._recent.append((runner.iter + 1, lr, _images(data_batch)))
        if self.action == 'skip':
            self._buffers = {
                name: value.clone() for name, value in params.unwrap(runner.model).named_buffers()
            }

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """With ``stop``, note whether the loss is finite, and look at the notes when it is time."""
        loss = (outputs or {}).get('loss')
        if self.action == 'skip' or loss is None:
            self._recent.pop()
            return
        self._losses.append(loss.detach())
        due = runner.iter == 0 or self.every_n_train_iters(runner, self.interval)
        if due or self.is_last_train_iter(runner):
            self._look(runner)

    def before_val(self, runner: Runner) -> None:
        """Look before a validation of useless weights."""
        self._look(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to save after such a loss, and weights that are not finite.

        In the main process alone: the loss of another process shows in the weights of all.
        """
        self._look(runner, everywhere=False)
        model = params.unwrap(runner.model)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        trained |= {name for name, _ in model.named_buffers()}
        for name in trained & checkpoint['state_dict'].keys():
            value = checkpoint['state_dict'][name]
            # A sum is finite only if its summands are, and makes no copy.
            if value.is_floating_point() and not value.sum().isfinite():
                if torch.isfinite(value).all():  # the sum alone is out of range
                    continue
                raise UserError(
                    f'{name} is not finite at iteration {runner.iter + 1}, so no checkpoint is '
                    f'saved; {_way_out(runner)}'
                )

    def _look(self, runner: Runner, everywhere: bool = True) -> None:
        """Raise if a loss since the last look was not finite.

        Args:
            runner: The runner.
            everywhere: Whether all processes look now and tell each other.
        """
        losses = torch.stack(self._losses).tolist() if self._losses else []
        wrong = [i for i, loss in enumerate(losses) if not math.isfinite(loss)]
        first = (*self._recent[wrong[0]], losses[wrong[0]]) if wrong else None
        self._losses.clear()
        self._recent.clear()
        found = [first]
        if everywhere and get_world_size() > 1:
            found = all_gather_object(first)
        found = [entry for entry in found if entry]
        if found:
            # One process's invalid gradients make the next losses of all invalid: the first counts.
            raise UserError(f'{_what(*min(found))}; {_way_out(runner)}')

    def _update_params(
        self, runner: Runner, update_params: Any, loss: Tensor, *args: Any, **kwargs: Any
    ) -> None:
        """``OptimWrapper.update_params``, unless the loss is not finite in some process."""
        finite = torch.isfinite(loss.detach()).all()
        everywhere = finite.float()
        all_reduce(everywhere, 'min')
        if everywhere:
            update_params(loss, *args, **kwargs)
            return
        wrapper = runner.optim_wrapper
        wrapper._inner_count += 1
        if wrapper.should_update():
            wrapper.zero_grad()
        _restore(params.unwrap(runner.model), self._buffers)
        count = runner.message_hub.runtime_info.get(SKIPPED, 0) + 1
        runner.message_hub.update_info(SKIPPED, count)
        what = _what(*self._recent[-1], loss.item())
        if not finite:
            runner.logger.warning('%s: step left out', what)
        if count > self.max_skips:
            what = what if not finite else 'the loss of another process is not finite'
            raise UserError(
                f'{what}, and {count - 1} steps have been left out before, '
                f'as many as InvalidLossHook.max_skips allows; {_way_out(runner)}'
            )


def _what(iteration: int, lr: float, images: list[str], loss: float) -> str:
    shown = ', '.join(images[:2]) + (f' and {len(images) - 2} more' if len(images) > 2 else '')
    where = f', images {shown}' if images else ''
    return f'the loss is {loss} at iteration {iteration} (learning rate {lr:.3g}{where})'


def _way_out(runner: Runner) -> str:
    try:
        path = checkpoints.find_last(runner.work_dir, warn=lambda message: None)
        last = f'the last good checkpoint is {os.path.relpath(path)}'
    except UserError:
        last = 'no checkpoint has been saved'
    return f'{last}; lower optim_wrapper.optimizer.lr, go without --amp, or look at the images'


def _images(data_batch: Any) -> list[str]:
    """Paths of a batch's images, without the folders that they share."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    paths = [getattr(sample, 'img_path', None) for sample in samples or []]
    return [os.path.join(*str(path).split(os.sep)[-2:]) for path in paths if path]


def _restore(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Put back what the forward pass has changed: the running statistics of batch-norm."""
    with torch.no_grad():
        for name, value in model.named_buffers():
            if name in buffers:
                value.copy_(buffers[name])
