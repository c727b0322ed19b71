"""What the transformer blocks of this package share: adapters inside, and what backward keeps."""

from abc import abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class TunedBlock(nn.Module):
    """A transformer block in two halves, attention and MLP, with adapters between them.

    To be listed before the class of the block among the parents; nothing is added to the block
    itself: an object of the parent becomes one of the subclass by ``block.__class__ = ...``, its
    parameters and their names are the parent's. A subclass defines :meth:`_attention` and
    :meth:`_feed_forward`, both with their residual sums, and calls :meth:`run` in its ``forward``.

    Attributes:
        recompute: What backward computes again instead of finding it kept: None, nothing;
            'halves', everything inside attention and inside the MLP, so that two tensors
            (B, N, C) are kept, the inputs of the two, and neither the projection nor the second
            linear layer of the MLP runs twice; 'block', the whole block from its input.
        adapters: The backbone's adapters.
        index: Of this block among the backbone's blocks.
    """

    recompute: str | None = None
    adapters: tuple[nn.Module, ...] = ()
    index = 0

    def run(self, *arguments) -> Tensor:
        """Compute the block from the arguments of :meth:`_attention`, as :attr:`recompute` says."""
        if self.recompute is None or not self._needs_graph(arguments):
            return self._whole(*arguments)
        if self.recompute == 'block':
            return self._checkpoint(self._whole, *arguments)
        return self._checkpoint(self._feed_forward, self._checkpoint(self._attend, *arguments))

    @abstractmethod
    def _attention(self, *arguments) -> Tensor:
        """Attention with its residual sum, of the tokens that are the first argument."""

    @abstractmethod
    def _feed_forward(self, x: Tensor) -> Tensor:
        """The MLP with its residual sum."""

    def _attend(self, *arguments) -> Tensor:
        """The first half of the block: x + attention, and what adapters make of it."""
        x = self._attention(*arguments)
        for adapter in self.adapters:
            x = adapter.after_attention(x, self.index)
        return x

    def _whole(self, *arguments) -> Tensor:
        return self._feed_forward(self._attend(*arguments))

    def _needs_graph(self, arguments: Iterable) -> bool:
        """Whether backward will come here: a checkpoint keeps its inputs even if it will not."""
        sources = []
        for argument in arguments:
            inputs = argument if isinstance(argument, tuple) else (argument,)
            sources += [each for each in inputs if isinstance(each, Tensor)]
        for module in (self, *self.adapters):
            sources += module.parameters()
        return torch.is_grad_enabled() and any(source.requires_grad for source in sources)

    def _checkpoint(self, function, *arguments) -> Tensor:
        # Without dropout there is no random state that had to be the same again.
        random = any(
            module.training for part in (self, *self.adapters) for module in part.modules())
        return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random)


def what_to_recompute(memory: str, with_cp: bool) -> str | None:
    """The blocks' ``recompute`` that two arguments of a backbone ask for.

    Raises:
        ValueError: If ``memory`` is unknown or the two exclude each other.
    """
    if memory not in ('default', 'lean'):
        raise ValueError(f"memory must be 'default' or 'lean', found {memory!r}")
    if memory == 'lean' and with_cp:
        raise ValueError(
            "memory='lean' and with_cp=True exclude each other: 'lean' keeps two tensors a block, "
            'with_cp one, for more time'
        )
    return 'halves' if memory == 'lean' else 'block' if with_cp else None
