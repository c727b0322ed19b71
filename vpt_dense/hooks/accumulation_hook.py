"""Gradients of an optimizer step that is not complete when a checkpoint is saved."""

from typing import Any

from mmengine.dist import gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import Tensor

from vpt_dense import params
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class AccumulationHook(Hook):
    """Goes on in the middle of an optimizer step where ``accumulative_counts`` is above 1.

    A checkpoint in between holds, under ``accumulated``, the gradients of each process: they are
    averaged only when the step is complete. To save that space let the interval of the
    ``CheckpointHook`` be a multiple of ``accumulative_counts``.
    :class:`vpt_dense.engine.runner.Runner` adds this hook to every training.
    """

    priority = 'LOWEST'

    def __init__(self) -> None:
        """Start with nothing."""
        self._loaded: list[dict[str, Tensor]] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take the gradients out of a checkpoint that is resumed from."""
        found = checkpoint.pop('accumulated', None)
        self._loaded = found if runner._resume else None

    def before_train(self, runner: Runner) -> None:
        """Give them to the parameters."""
        if self._loaded is None:
            return
        if len(self._loaded) != get_world_size():
            runner.logger.warning(
                'the checkpoint was saved in the middle of an optimizer step by %d processes, now '
                'there are %d: what they had accumulated is lost',
                len(self._loaded), get_world_size(),
            )  # fmt: skip
            return
        gradients = self._loaded[get_rank()]
        for name, parameter in params.unwrap(runner.model).named_parameters():
            if name in gradients:
                parameter.grad = gradients[name].to(parameter)
        self._loaded = None
        runner.logger.info('the gradients of the step that has begun are those of the checkpoint')


def gather(runner: Runner) -> dict[str, Any]:
    """Gather the gradients of an incomplete step for a checkpoint; call it in all processes.

    Returns:
        In process 0 ``{'accumulated': [gradients of a process by parameter name, ...]}``; empty
        when no step has begun.
    """
    wrapper = runner.optim_wrapper
    if not isinstance(wrapper, OptimWrapper) or wrapper.should_update():
        return {}
    named = params.unwrap(runner.model).named_parameters()
    gradients = {name: p.grad.cpu() for name, p in named if p.grad is not None}
    gathered = gather_object(gradients)
    return {'accumulated': gathered} if gathered else {}
