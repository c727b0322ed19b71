"""A module applied to tokens and, separately, to prompts."""

from collections.abc import Callable, Iterable

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from vpt_dense.adapters import Change

#: Hooks that are on every module.
_EVERYWHERE = (
    torch_module._global_forward_pre_hooks, torch_module._global_forward_hooks,
    torch_module._global_backward_pre_hooks, torch_module._global_backward_hooks,
)  # fmt: skip


def beside(
    module: nn.Module, tokens: Tensor, prompts: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Apply a module to tokens, and to prompts if there are any.

    The tokens go through a call of the module: hooks that watch it (Grad-CAM, a counter) see them
    once, and no prompts. Hooks that change what it computes (an adapter's, someone's own) change
    it for prompts too.

    Args:
        module: A norm or a linear layer.
        tokens: (B, N, C).
        prompts: (b, P, C), or None.

    Returns:
        What becomes of both.
    """
    if prompts is None:
        return module(tokens), None
    hooks = _hooks_of(module)
    if not hooks or any(is_adapters(hook) for hook in hooks):
        return module(tokens), quietly(module, prompts)
    seen = []
    handles = (
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0])),
        module.register_forward_hook(lambda _, args, out: seen.append(out), prepend=True),
        module.register_forward_hook(lambda _, args, out: seen.append(out)),
    )
    try:
        out = module(tokens)
    finally:
        for handle in handles:
            handle.remove()
    came, before, after = seen[:3]
    changed = came is not tokens or before is not after
    return out, module(prompts) if changed else module.forward(prompts)


def quietly(module: nn.Module, tokens: Tensor) -> Tensor:
    """Apply a module and its adapters to tokens, unseen by other hooks."""
    args = (tokens,)
    for hook in module._forward_pre_hooks.values():
        if is_adapters(hook):
            args = hook(module, args)
    out = module.forward(*args)
    for hook in module._forward_hooks.values():
        if is_adapters(hook):
            out = hook(module, args, out)
    return out


def spread(tensor: Tensor, batch: int) -> Tensor:
    """Repeat (b, ...) to (batch, ...): each of the b for batch / b neighbours.

    b is 1 for prompts that are the same for all images, the number of members for those of an
    ensemble, whose images come member by member; or ``batch``, and nothing happens.
    """
    number = tensor.shape[0]  # not len(), which is a constant in an exported graph
    if number == 1:
        return tensor.expand(batch, *[-1] * (tensor.ndim - 1))
    if number == batch:
        return tensor
    return tensor.unsqueeze(1).expand(-1, batch // number, *[-1] * (tensor.ndim - 1)).flatten(0, 1)


def _hooks_of(module: nn.Module) -> list[Callable]:
    """The forward hooks of a module."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def is_watched(modules: Iterable[nn.Module]) -> bool:
    """Whether someone's hooks, not an adapter's, are on modules or on what they are made of."""
    return any(
        each._backward_hooks or each._backward_pre_hooks
        or not all(is_adapters(hook) for hook in _hooks_of(each))
        for module in modules for each in module.modules()
    )


def is_plain(linear: nn.Module) -> bool:
    """Whether weight and bias say all of a linear layer: none of its kin, and no hook on it."""
    hooked = _hooks_of(linear) or linear._backward_hooks or linear._backward_pre_hooks
    return type(linear) is nn.Linear and not hooked and not any(_EVERYWHERE)


def is_adapters(hook: Callable) -> bool:
    """Whether a hook is an adapter's."""
    return isinstance(getattr(hook, '__self__', None), Change)
