"""Adds to the loss what prompts ask for."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class PromptLossHook(Hook):
    """Adds the terms of ``model.backbone.prompt`` to the loss: L2P, CODA-Prompt, TCPA, PAE, ...

    See :meth:`vpt_dense.prompts.Prompt.penalties`. A training that begins lets the prompts of its
    step start too.
    """

    needs = frozenset({'tokens'})  # of a backbone, as prompts say it

    def __init__(self) -> None:
        self._handle = None

    def before_train(self, runner: Runner) -> None:
        """Let the model's losses have them."""
        model = unwrap(runner.model)
        prompt = model.backbone.prompt
        begin = getattr(prompt, 'begin_step', None)
        # The first step's part has come with a checkpoint, if there is one: it has begun.
        if begin is not None and runner.iter == 0 and (prompt.step > 0 or not runner._has_loaded):
            begin()

        def add(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> Any:
            mode = kwargs.get('mode', args[2] if len(args) > 2 else 'tensor')
            return {**out, **prompt.penalties()} if mode == 'loss' else out

        self._handle = model.register_forward_hook(add, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        self._handle.remove()
