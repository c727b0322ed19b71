"""The base of this package's transformer blocks: adapters inside, and what backward keeps."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vpt_dense.adapters import Adapter
from vpt_dense.argument_checks import check_choice
from vpt_dense.overrides import are_of
from vpt_dense.prompts import TokenLayout

#: Of a block of which the first token alone is computed.
_ONE = TokenLayout(1, 0, (0, 0))


class TunedBlock(nn.Module):
    """A transformer block in two halves, attention and MLP, with adapters between them.

    To be listed before the class of the block among the parents; nothing is added to the block
    itself: an object of the parent becomes one of the subclass (:meth:`adopt`), its parameters and
    their names are the parent's. A subclass defines :meth:`parts`, :meth:`_attention` and
    :meth:`_feed_forward`, both with their residual sums.

    Where the outputs at prompt positions are thrown away (VPT-deep), a prompt acts on the other
    tokens through its key and value alone: its query, attention output, projection and MLP are
    dead work. With them left out the outputs at all other positions stay what they were, up to
    rounding. The modules of a block are called as those of the parent, once and with the tokens
    that the parent has: what watches them sees no prompts (:mod:`vpt_dense.backbones.beside`).

    Attributes:
        recompute: What backward computes again instead of finding it kept: None, nothing;
            'halves', everything inside attention and inside the MLP, so that two tensors
            (B, N, C) are kept, the inputs of the two, and neither the projection nor the second
            linear layer of the MLP runs twice; 'block', the whole block from its input.
        adapters: The backbone's adapters.
        index: Of this block among the backbone's blocks.
        takes_keys_values: Whether prompts may act through keys and values alone.
    """

    recompute: str | None = None
    adapters: tuple[nn.Module, ...] = ()
    index = 0
    takes_keys_values = True

    @classmethod
    def adopt(cls, block: nn.Module) -> None:
        """Make a block of the parent one of this class, in place."""
        block.__class__ = cls
        for module in block.modules():
            if hasattr(module, 'drop_prob'):  # mmcv's is NumPy's, which splits the graph
                module.drop_prob = float(module.drop_prob)  # of torch.compile

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """The fields of :class:`vpt_dense.adapters.Block`, but for ``name`` and ``module``."""

    def forward(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """Compute the block, as :attr:`recompute` says.

        Args:
            x: Tokens, (B, N, C); prompts that pass through the block are among them.
            *arguments: Those of the attention of this class, see ``forward`` there.
            **further: Likewise. All classes have ``prompts``, tokens (b, P, C), b being B or 1,
                that act on ``x`` through their keys and values alone; ``keys_values``, two tensors
                (b, heads, P', C / heads) that all tokens attend to; and ``layout``, what the tokens
                ``x`` are, for the adapters.

        Returns:
            (B, N, C). Without prompts it is the parent's output, bit for bit.
        """
        if self.recompute is None or not self._needs_graph((x, *arguments, *further.values())):
            return self._whole(x, *arguments, **further)
        if self.recompute == 'block':
            return self._checkpoint(self._whole, x, *arguments, **further)
        return self._halves(x, *arguments, **further)

    @abstractmethod
    def _attention(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """Attention with its residual sum."""

    @abstractmethod
    def _feed_forward(self, x: Tensor) -> Tensor:
        """The MLP with its residual sum."""

    def _halves(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        """The block, of whose two halves backward keeps the inputs."""
        layout = self._layout_between(further)
        x = self._checkpoint(self._attend, x, *arguments, **further)
        return self._checkpoint(self._feed, x, layout)

    def _has_adapters_inside(self) -> bool:
        """Whether an adapter acts on the tokens between or behind attention and MLP."""
        return not all(
            are_of(Adapter, adapter, 'after_attention', 'after_mlp') for adapter in self.adapters)

    def _attend(
        self, x: Tensor, *arguments: Any, layout: TokenLayout | None = None, **further: Any
    ) -> Tensor:
        """The first half of the block: x + attention, and what adapters make of it."""
        out = self._attention(x, *arguments, **further)
        if further.get('only_first'):
            x, layout = x[:, :1], _ONE
        for adapter in self.adapters:
            out = adapter.after_attention(out, x, self.index, layout)
        return out

    def _feed(self, x: Tensor, layout: TokenLayout | None) -> Tensor:
        """The second half: x + MLP, and what adapters make of it."""
        out = self._feed_forward(x)
        for adapter in self.adapters:
            out = adapter.after_mlp(out, x, self.index, layout)
        return out

    def _whole(self, x: Tensor, *arguments: Any, **further: Any) -> Tensor:
        return self._feed(self._attend(x, *arguments, **further), self._layout_between(further))

    @staticmethod
    def _layout_between(further: dict[str, Any]) -> TokenLayout | None:
        """What the tokens between attention and MLP are, from the arguments of the block."""
        return _ONE if further.get('only_first') else further.get('layout')

    def _needs_graph(self, arguments: Iterable) -> bool:
        """Whether backward will come here: a checkpoint keeps its inputs even if it will not."""
        sources = []
        for argument in arguments:
            inputs = argument if isinstance(argument, tuple) else (argument,)
            sources += [each for each in inputs if isinstance(each, Tensor)]
        for module in (self, *self.adapters):
            sources += module.parameters()
        return torch.is_grad_enabled() and any(source.requires_grad for source in sources)

    def _checkpoint(self, function: Callable, *arguments: Any, **further: Any) -> Tensor:
        # Without dropout there is no random state that had to be the same again.
        random = any(
            module.training for part in (self, *self.adapters) for module in part.modules())
        return checkpoint(
            function, *arguments, use_reentrant=False, preserve_rng_state=random, **further)


def what_to_recompute(memory: str, with_cp: bool) -> str | None:
    """The blocks' ``recompute`` that two arguments of a backbone ask for.

    Raises:
        ValueError: If ``memory`` is unknown or the two exclude each other.
    """
    if check_choice(memory, 'memory', ('default', 'lean')) == 'lean' and with_cp:
        raise ValueError(
            "memory='lean' and with_cp=True exclude each other: 'lean' keeps two tensors a block, "
            'with_cp one, for more time'
        )
    return 'halves' if memory == 'lean' else 'block' if with_cp else None
