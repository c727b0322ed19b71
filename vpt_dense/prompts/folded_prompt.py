"""Prompts that have become keys and values, for deployment."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


@register
class FoldedPrompt(Prompt):
    """The keys and values of prompts, computed once and stored in place of the prompts.

    Blocks that throw away the outputs at prompt positions read nothing of a prompt but its key and
    value (:class:`vpt_dense.backbones.VisionTransformer`, ``prompts_as='keys_values'``).
    ``tools/delta.py fold`` writes checkpoints with this prompt. Nothing of it trains: the backbone
    needs ``trainable=[]``.

    Args:
        layers: The blocks that prompts enter.
        num_tokens: Number of prompt tokens P in each.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        keys: Buffer, (layers, num_heads, P, C / num_heads), float32.
        values: Buffer, the same shape.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width', 'keys and values'})
    depends_on_input = False

    def __init__(
        self,
        site: Site,
        layers: Sequence[int],
        num_tokens: int,
        num_heads: int | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not layers or any(layer not in site.layers for layer in layers):
            raise ValueError(
                f'prompt.layers must name some of the {site.num_layers} layers, found {layers!r}'
            )
        if num_heads not in (None, site.heads):
            raise ValueError(
                f'prompt.num_heads is {num_heads}, the backbone has {site.heads}; leave it out')
        self.layers = list(layers)
        shape = (len(self.layers), site.heads, num_tokens, site.head_dims)
        self.register_buffer('keys', torch.zeros(shape))
        self.register_buffer('values', torch.zeros(shape))

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: object = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """See :meth:`Prompt.forward`: there are no tokens any more."""

    def keys_values(self, layer: int, prepared: object = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        if layer not in self.layers:
            return None
        index = self.layers.index(layer)
        return self.keys[index : index + 1], self.values[index : index + 1]

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`: there are no tokens."""
        return False

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return layer in self.layers

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'num_tokens={self.keys.shape[2]}, layers={self.layers}'
