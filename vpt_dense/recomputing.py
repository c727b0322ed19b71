"""The config key ``activation_checkpointing``: parts of a model that backward computes again."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.utils.checkpoint import checkpoint

from vpt_dense.errors import UserError, suggest

KEY = 'activation_checkpointing'


def turn_on(model: nn.Module, modules: str | Sequence[str]) -> None:
    """Let backward compute modules again from their inputs instead of keeping what is in between.

    In place of mmengine's function of the same purpose, which uses reentrant checkpoints: where no
    input of a module requires a gradient, as images do not, these give none to its parameters.
    Of a list of modules each is a part of its own; mmengine's way does nothing there.

    Args:
        model: Whose modules they are.
        modules: Names of modules, or one.

    Raises:
        UserError: If it is no list of names, or the model has no module of a name.
    """
    names = [modules] if isinstance(modules, str) else modules
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f'{KEY} must be a list of names of modules, found {modules!r}')
    known = dict(model.named_modules())
    for name in names:
        if not known.get(name):
            raise UserError(
                f'{KEY}: {type(model).__name__} has no module {name!r}{suggest(name, known)}')
        module = known[name]
        several = isinstance(module, (nn.ModuleList, nn.ModuleDict))
        for part in module.children() if several else [module]:
            part.forward = _recomputed(part)


def _recomputed(module: nn.Module) -> Callable:
    forward = module.forward

    @functools.wraps(forward)
    def wrapper(*args, **kwargs):
        return checkpoint(
            forward, *args, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), _without_statistics(module)), **kwargs)

    return wrapper


@contextlib.contextmanager
def _without_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms count the same batch but once."""
    norms = [
        each for each in module.modules()
        if isinstance(each, nn.modules.batchnorm._BatchNorm) and each.track_running_stats]
    kept = [(norm, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, number in kept:
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(number)
