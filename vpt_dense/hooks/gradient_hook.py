"""Which trainable parameters get no gradient."""

from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import nn
from torch.utils.hooks import RemovableHandle

from vpt_dense import params
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class GradientHook(Hook):
    """Names, after the first step of the optimizer, what trains and got no gradient in it.

    Nothing of such a parameter reached the loss, in any of the iterations that the step was
    accumulated from, in any process: it stays as it is, however long the run.
    :class:`vpt_dense.engine.runner.Runner` adds this hook to every training.
    """

    def __init__(self) -> None:
        """Start with nothing."""
        self._handles: list[RemovableHandle] = []
        self._seen: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Watch the parameters that train."""
        self._seen.clear()
        for name, parameter in params.unwrap(runner.model).named_parameters():
            if parameter.requires_grad:
                self._handles.append(parameter.register_hook(
                    lambda gradient, name=name: self._seen.add(name)))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Tell, when the first step has been made, and look no more."""
        wrapper = runner.optim_wrapper
        wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
        if not self._handles or not all(each.should_update() for each in wrappers):
            return
        model = params.unwrap(runner.model)
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        device = next(model.parameters()).device
        flags = torch.tensor([name in self._seen for name in trained], dtype=int, device=device)
        all_reduce(flags)
        if not flags.any():  # the step was left out
            return
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        without = {name for name, flag in zip(trained, flags.tolist(), strict=True) if not flag}
        if without:
            runner.logger.warning(
                'these train, but got no gradient in the first step, so that they stay as they '
                f'are: {", ".join(_short(model, without))}; nothing of them reaches the loss: '
                'leave them out of `trainable`, or see why'
            )


def _short(module: nn.Module, names: set[str], prefix: str = '') -> list[str]:
    """Name parameters; where all that trains of a module is meant, ``MODULE.*``."""
    trained = [prefix + name for name, p in module.named_parameters() if p.requires_grad]
    if not names.intersection(trained):
        return []
    if prefix and len(trained) > 1 and names.issuperset(trained):
        return [f'{prefix}*']
    found = [prefix + name for name, _ in module.named_parameters(recurse=False)
             if prefix + name in names]
    for name, child in module.named_children():
        found += _short(child, names, f'{prefix}{name}.')
    return found
