"""Prompt tokens that are learnt freely: VPT-shallow, VPT-deep and what lies between."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_dropout, check_flag, is_int, is_list
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


@register
class TokenPrompt(Prompt):
    """Visual prompt tuning (Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, section 3).

    Shallow prompts are inserted before the first layer of the range and flow on from there.
    Deep prompts are replaced by fresh ones before every layer of the range: what a block puts out
    at their positions is discarded.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        deep: Fresh tokens in every layer of the range (VPT-deep) instead of only in the first
            (VPT-shallow).
        layer_range: ``(start, stop)`` as in a Python slice over the layers; negative numbers count
            from the end and None is open. ``(0, 6)``: the first six layers. ``(-6, None)``: the
            last six.
        keep_outputs: What happens at ``stop`` when it is not the end: True, the last prompt
            outputs stay as ordinary tokens (as in the original); False, they are removed.
        shared: One set of tokens for all layers of the range (deep only), which must have one
            width: layers of one stage of a Swin.
        project_dims: Learn the tokens in this many dimensions and map them to the width with one
            linear layer that all layers (of a stage) share. None: learn them at full width.
        dropout: Dropout on the (projected) tokens while training; masks are drawn for every sample
            and layer. The paper uses 0.1 for deep and 0 for shallow prompts.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default the tokens start as in the
            paper: U(-v, v), v = sqrt(6 / (3 * ph * pw + D)), D the width they are learnt in (at
            full width that of the first stage), and the projection with kaiming normal (fan out).

    Attributes:
        tokens: The parameter, (1, P, D) for shallow or shared prompts and (stop - start, P, D)
            for deep ones; (0, P, D) if none enter the layers of ``stage``.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    depends_on_input = False

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        deep: bool = False,
        layer_range: Sequence[int | None] = (0, None),
        keep_outputs: bool = True,
        shared: bool = False,
        project_dims: int | None = None,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not is_int(num_tokens, 1):
            raise ValueError(
                f'prompt.num_tokens must be an integer of at least 1, found {num_tokens!r}; '
                'to train without prompts leave `prompt` out'
            )
        if project_dims is not None:
            check_count(project_dims, 'prompt.project_dims')
        check_dropout(dropout, 'prompt.dropout')
        for key, value in dict(deep=deep, keep_outputs=keep_outputs, shared=shared).items():
            check_flag(value, f'prompt.{key}')
        if shared and not deep:
            raise ValueError('prompt.shared=True needs prompt.deep=True')
        self.start, self.stop = resolve_range(layer_range, site.num_layers)
        self.first_layer = self.start
        self.num_tokens = num_tokens
        self.num_layers = site.num_layers
        self.deep = deep
        self.keep_outputs = keep_outputs
        self.shared = shared
        self.dropout = dropout

        inserted = range(self.start, self.stop if deep else self.start + 1)
        own = common(inserted, site.layers)
        if shared and 0 < len(own) < len(inserted):
            raise ValueError(
                f'prompt.shared=True needs layers of one width, and prompt.layer_range selects '
                f'layers {self.start}..{self.stop - 1}, more than the stage '
                f'{site.layers.start}..{site.layers.stop - 1}; '
                'leave it out: every stage has tokens of its own width'
            )
        self.first = own.start  # the layer of the first set
        num_sets = min(len(own), 1) if shared else len(own)
        # The original starts the prompts of all stages as those of the first.
        dims = project_dims or site.first_dims
        bound = math.sqrt(6 / (3 * math.prod(site.patch_size) + dims))
        self.tokens = nn.Parameter(torch.empty(num_sets, num_tokens, project_dims or site.dims))
        nn.init.uniform_(self.tokens, -bound, bound)
        self.project: nn.Module = nn.Identity()
        if project_dims is not None and num_sets:
            self.project = nn.Linear(project_dims, site.dims)
            nn.init.kaiming_normal_(self.project.weight, mode='fan_out')

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """All sets of tokens, projected, each (1, P, C).

        Taken apart at once: to index the parameter once a block would make a gradient of its full
        size once a block.
        """
        return self.project(self.tokens).split(1)

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: tuple[Tensor, ...] | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`. While dropout acts the batch is B, else 1."""
        if layer == self.stop and not self.keep_outputs:
            return x.new_empty(1, 0, x.shape[-1])
        if not self._inserts(layer):
            return None
        own_set = layer - self.first if len(self.tokens) > 1 else 0
        if prepared is None:
            prepared = {own_set: self.project(self.tokens[own_set : own_set + 1])}
        tokens = prepared[own_set]  # (1, P, C)
        if self.training and self.dropout > 0:
            tokens = F.dropout(tokens.expand(x.shape[0], -1, -1), self.dropout)  # (B, P, C)
        return tokens

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`: replaced or removed afterwards, or never read."""
        return self._inserts(layer) and (
            layer + 1 == self.num_layers
            or self._inserts(layer + 1)
            or (layer + 1 == self.stop and not self.keep_outputs)
        )

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return self.start <= layer and (layer < self.stop or self.keep_outputs)

    def _inserts(self, layer: int) -> bool:
        return self.start <= layer < self.stop if self.deep else layer == self.start

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        kind = 'deep' if self.deep else 'shallow'
        return (
            f'{kind}, num_tokens={self.num_tokens}, layers={self.start}..{self.stop - 1}, '
            f'keep_outputs={self.keep_outputs}, shared={self.shared}, dropout={self.dropout}'
        )


def common(layers: range, others: range) -> range:
    """The layers that are in both; they begin where the first of them would be if there is none."""
    return range(max(layers.start, others.start), min(layers.stop, others.stop))


def resolve_range(
    layer_range: Sequence[int | None], num_layers: int, key: str = 'prompt.layer_range'
) -> tuple[int, int]:
    """Turn a slice-like pair into (start, stop) with 0 <= start < stop <= num_layers.

    Raises:
        ValueError: If it is none, or selects no layer.
    """
    well_formed = (
        is_list(layer_range) and len(layer_range) == 2
        and all(bound is None or is_int(bound) for bound in layer_range)
    )
    if well_formed:
        start, stop = layer_range
        start = 0 if start is None else start + num_layers * (start < 0)
        stop = num_layers if stop is None else stop + num_layers * (stop < 0)
        if 0 <= start < stop <= num_layers:
            return start, stop
    raise ValueError(
        f'{key} must be a pair (start, stop) that selects at least one of the '
        f'{num_layers} layers, found {layer_range!r}'
    )
