"""Prompt tokens together with learnt keys and values: E2VPT."""

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_flag
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site
from vpt_dense.prompts.token_prompt import TokenPrompt, common


@register
class E2VPTPrompt(TokenPrompt):
    """E2VPT (Han et al., ICCV 2023, https://arxiv.org/abs/2307.13770): two kinds of prompts.

    VPT-deep's tokens, and in every layer of the range prompts that join keys and values after
    their projection: attention reads K' = [K_P; K], V' = [V_P; V]. One parameter serves as K_P
    and V_P. The pruning of prompts and the second training that the paper adds are left out.

    Args:
        num_tokens: Number P of prompt tokens, at least 1.
        num_kv_tokens: Number M of keys, and of values, in each layer, at least 1.
        shared_kv: The same numbers for keys and values, as in the authors' code; False: two
            parameters.
        site: Filled in by the backbone.
        **kwargs: As in :class:`vpt_dense.prompts.TokenPrompt`, but for ``deep``. ``dropout`` and
            ``shared`` act on the tokens alone.

    Attributes:
        keys: Parameter, (layers, heads, M, C / heads). Each layer starts with kaiming uniform of
            a tensor (heads, M, C / heads): U(-u, u), u = sqrt(6 / (M C / heads)).
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
        return f'{super().extra_repr()}, num_kv_tokens={self.keys.shape[2]}, shared_kv={shared}'
