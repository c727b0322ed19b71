"""Saves and ends a run when the cluster takes its machines back."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import preemption, safe_files
from vpt_dense.hooks.checkpoint_hook import CheckpointHook
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On SIGTERM or SIGUSR1, finishes the iteration, saves a checkpoint and exits with code 75.

    One line on stderr says what was saved. During a validation, and before training has begun, the
    run leaves at once and saves nothing; a resumed run makes up for the validation.

    Several processes get the signal at different times, or only one of them does. After every
    iteration they tell each other whether it has come: one number through gloo, some tenths of a
    millisecond a machine, and no wait for the GPU. So all leave after the same iteration.
    """

    priority = 'LOWEST'  # when everything else has been done in an iteration

    def __init__(self) -> None:
        """Start outside of training."""
        self._training = False
        self._group = None

    def before_train(self, runner: Runner) -> None:
        """Listen, and hold back what comes until an iteration has ended."""
        if get_world_size() > 1 and self._group is None:
            self._group = dist.new_group(backend='gloo')
        hook = _checkpoint_hook(runner)
        start = Path(runner._load_from or '').name if runner._resume else ''
        if hook and hook.by_epoch and hook.max_keep_ckpts > 0 and start.startswith('iter_'):
            hook._outdated.append(start)  # saved on a signal; the next checkpoint takes its place
        preemption.listen()
        preemption.hold()
        self._training = True

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Save and leave if any process has been signalled.

        Raises:
            Preempted: Then, in all processes.
        """
        if not self._agree(preemption.received() is not None):
            return
        path = _save(runner)
        if self._group is not None:
            # The first that leaves makes the launcher end the others: the file must be there.
            dist.barrier(self._group)
        reason = preemption.received() or 'signal to another process'
        saved = f'saved {path}' if path else 'nothing saved, there is no CheckpointHook'
        preemption.leave(
            f'preempted ({reason}) at iteration {runner.iter + 1}: {saved}; go on with --resume'
        )

    def before_val(self, runner: Runner) -> None:
        """Leave at once from here on: a validation may take longer than the time that is left."""
        if self._training:
            preemption.leave_at_once(
                f'at the validation of iteration {runner.iter}: nothing new was saved; go on from '
                'the last checkpoint with --resume'
            )

    def after_val(self, runner: Runner) -> None:
        """Hold back what comes again."""
        if self._training:
            preemption.hold()

    def after_train(self, runner: Runner) -> None:
        """Training is over."""
        self._training = False
        preemption.stop_listening()

    def _agree(self, signalled: bool) -> bool:
        """Whether any process has been signalled; the same answer in all."""
        if self._group is None:
            return signalled
        flag = torch.tensor(int(signalled))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
        return bool(flag)


def _save(runner: Runner) -> str | None:
    """Save a checkpoint of this iteration unless that has just been done; return its path."""
    hook = _checkpoint_hook(runner)
    if hook is None:
        return None
    name = f'iter_{runner.iter + 1}.pth'
    if not hook.by_epoch:
        if hook.last_ckpt is None or Path(hook.last_ckpt).name != name:
            hook._save_checkpoint(runner)
        return os.path.relpath(hook.last_ckpt)
    # In the middle of an epoch: none of the numbered ones, which count epochs.
    path = os.path.join(hook.out_dir, name)
    runner.message_hub.update_info('last_ckpt', path)
    runner.message_hub.update_info('outdated_ckpts', list(hook._outdated))
    runner.save_checkpoint(hook.out_dir, name, by_epoch=False, backend_args=hook.backend_args)
    if runner.rank == 0:
        safe_files.write_text(Path(runner.work_dir, 'last_checkpoint'), path)
    hook._remove_outdated()
    return os.path.relpath(path)


def _checkpoint_hook(runner: Runner) -> CheckpointHook | None:
    return next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
