"""Prompt tokens together with learnt keys and values: E2VPT."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_flag, is_int, is_list
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, TokenLayout
from vpt_dense.prompts.token_prompt import TokenPrompt, common

#: Pieces of the channels of a token, each of which may be pruned.
PIECES = 16


@register
class E2VPTPrompt(TokenPrompt):
    """E2VPT (Han et al., ICCV 2023, https://arxiv.org/abs/2307.13770): two kinds of prompts.

    VPT-deep's tokens, and in every layer of the range prompts that join keys and values after
    their projection: attention reads K' = [K_P; K], V' = [V_P; V]. One parameter serves as K_P
    and V_P.

    The paper prunes tokens, and pieces of the tokens that stay, and trains again from the old
    start. ``kept`` says what is left. A token without pieces does not enter; a piece that is pruned
    is zero. What stays starts as it would without ``kept``: all is drawn, and then chosen.
    ``vpt-dense analyse pruning`` finds ``kept`` from a first training.

    Args:
        num_tokens: Number P of prompt tokens, at least 1.
        num_kv_tokens: Number M of keys, and of values, in each layer, at least 1.
        shared_kv: The same numbers for keys and values, as in the authors' code; False: two
            parameters.
        kept: For each layer of the range a number for each of the P tokens: bit i, of 2^i, says
            that the piece i of its 16 pieces of channels is left. None: nothing is pruned.
        site: Filled in by the backbone.
        **kwargs: As in :class:`vpt_dense.prompts.TokenPrompt`, but for ``deep``. ``dropout`` and
            ``shared`` act on the tokens alone.

    Attributes:
        keys: Parameter, (layers, heads, M, C / heads). Each layer starts with kaiming uniform of
            a tensor (heads, M, C / heads): U(-u, u), u = sqrt(6 / (M C / heads)).
        tokens: As there; with ``kept`` the pieces that are left, (K, C / 16).
        values: Parameter, the same shape; None if ``shared_kv``.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'keys and values'})
    #: Arguments of the parent that are settled here.
    settled = ('deep',)

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        num_kv_tokens: int,
        shared_kv: bool = True,
        kept: Sequence[Sequence[int]] | None = None,
        **kwargs,
    ) -> None:
        super().__init__(site, num_tokens, deep=True, **kwargs)
        check_count(num_kv_tokens, 'prompt.num_kv_tokens')
        check_flag(shared_kv, 'prompt.shared_kv')
        self.own = common(range(self.start, self.stop), site.layers)
        shape = (len(self.own), site.heads, num_kv_tokens, site.head_dims)
        self.keys = nn.Parameter(torch.empty(shape))
        self.values = None if shared_kv else nn.Parameter(torch.empty(shape))
        for parameter in (self.keys, self.values):
            if parameter is not None:
                for layer in parameter:
                    nn.init.kaiming_uniform_(layer)
        self.kept = None
        if kept is not None:
            self._prune(kept)

    def _prune(self, kept: Sequence[Sequence[int]]) -> None:
        """Leave the pieces of the tokens that ``kept`` says."""
        if self.shared or not isinstance(self.project, nn.Identity):
            raise ValueError(
                'prompt.kept prunes tokens that each layer has for itself, at full width; leave '
                'prompt.shared and prompt.project_dims out')
        layers, width = self.stop - self.start, self.tokens.shape[-1]
        if not is_list(kept) or len(kept) != layers or not all(
            is_list(tokens) and len(tokens) == self.num_tokens and any(tokens)
            and all(is_int(bits, 0) and bits < 2**PIECES for bits in tokens) for tokens in kept
        ):
            raise ValueError(
                f'prompt.kept must be {self.num_tokens} numbers from 0 to {2**PIECES - 1} for each '
                f'of {layers} layers, not all 0 in one; vpt-dense analyse pruning writes them')
        if width % PIECES:
            raise ValueError(
                f'prompt.kept: {PIECES} does not divide the width {width} of the backbone')
        self.kept = [list(tokens) for tokens in kept]
        own = self.kept[self.own.start - self.start : self.own.stop - self.start]
        flat = [bits for tokens in own for bits in tokens]
        chosen = [PIECES * token + i for token, bits in enumerate(flat) for i in range(PIECES)
                  if bits >> i & 1]
        numbers = {piece: i for i, piece in enumerate(chosen)}
        places = [numbers.get(PIECES * token + i, len(chosen))  # the last row is zero
                  for token, bits in enumerate(flat) if bits for i in range(PIECES)]
        pieces = self.tokens.detach().reshape(-1, width // PIECES)
        self.tokens = nn.Parameter(pieces[torch.tensor(chosen, dtype=torch.int64)])
        self.register_buffer('places', torch.tensor(places, dtype=torch.int64), persistent=False)
        self.numbers = [sum(bits > 0 for bits in tokens) for tokens in own]

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """See :meth:`TokenPrompt.prepare`."""
        if self.kept is None:
            return super().prepare(embed)
        table = torch.cat((self.tokens, self.tokens.new_zeros(1, self.tokens.shape[1])))
        tokens = table[self.places].unflatten(0, (-1, PIECES)).flatten(1)  # (all that enter, C)
        return tuple(each[None] for each in tokens.split(self.numbers))

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: tuple[Tensor, ...] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`TokenPrompt.forward`."""
        if prepared is None and self.kept is not None:
            prepared = self.prepare()
        return super().forward(x, layer, prepared, layout)

    def keys_values(self, layer: int, prepared: object = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        if layer not in self.own:
            return None
        index = layer - self.own.start
        keys = self.keys[index : index + 1]
        return keys, keys if self.values is None else self.values[index : index + 1]

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        shared = self.values is None
        pruned = '' if self.kept is None else f', {len(self.tokens)} pieces kept'
        return (f'{super().extra_repr()}, num_kv_tokens={self.keys.shape[2]}, '
                f'shared_kv={shared}{pruned}')
