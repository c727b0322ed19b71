"""Several prompts on one backbone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.ensemble.members import Members
from vpt_dense.parts import register
from vpt_dense.prompts import Prompt, Site, TokenLayout
from vpt_dense.tuning import OFFERS


@register
class PromptEnsemble(Members, Prompt):
    """Prompts of one kind that share a frozen backbone, batched: (k * B, ...), member by member.

    In training mode the images come so, each member's its own. In eval mode all members see the
    same B images: their tokens are repeated k times (:meth:`before_block`). Heads of an ensemble
    (:mod:`vpt_dense.ensemble.heads`) take the features apart again.

    Args:
        seeds: A whole number for each member, all different; what it starts with follows from it.
        prompt: Config of a member, any :class:`vpt_dense.prompts.Prompt`.
        site: As of a member; filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is wrong, or of a member's arguments one is.
    """

    needs = frozenset({'tokens', 'one width'})

    def __init__(
        self,
        site: Site,
        seeds: Sequence[int],
        prompt: dict[str, Any],
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__('prompt.prompt', prompt, seeds, dict(site=site), init_cfg)
        member = self.members[0]
        if not isinstance(member, Prompt) or isinstance(member, PromptEnsemble):
            raise ValueError(f'prompt.prompt must be a prompt, found {type(member).__name__}')
        self.depends_on_input = member.depends_on_input
        self.needs = self.needs | member.needs
        self.first_layer = member.first_layer

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.before_block`.

        In eval mode what lies before the first block with prompts is computed once for all.

        Returns:
            (k * B, F + N, C) from the first block with prompts on.
        """
        if layer == self.first_layer and not self.training:
            x = x.repeat(len(self.members), 1, 1)
        return self._each('before_block', x, layer, layout)

    def after_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.after_block`."""
        return self._each('after_block', x, layer, layout)

    def _each(self, place: str, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Let each member change its own tokens, where members of this kind change any."""
        own = getattr(type(self.members[0]), place) is not getattr(Prompt, place)
        if not own or layer < self.first_layer:
            return x
        return torch.cat([getattr(member, place)(part, layer, layout)
                          for member, part in zip(self.members, self.split(x), strict=True)])

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Prompt.after_backbone`: outputs of blocks before the first are repeated."""
        k, batch = len(self.members), images.shape[0]
        if self.training or k == 1:
            return outs
        return tuple(
            out.repeat(k, *[1] * (out.ndim - 1)) if out.shape[0] == batch else out for out in outs)

    def check(self, backbone: nn.Module) -> None:
        """Refuse what members would share; see :meth:`Prompt.check`.

        Raises:
            ValueError: If there are adapters, or anything but the prompts trains.
        """
        if len(backbone.adapters):
            raise ValueError(
                'adapters: members of an ensemble have prompts of their own, but they would share '
                'the adapters; leave adapters or the ensemble out'
            )
        shared = [
            name for name, parameter in backbone.named_parameters()
            if parameter.requires_grad and not name.startswith('prompt.')
        ]
        if shared:
            raise ValueError(
                f'trainable={backbone.trainable} also trains {shared[0]}, which the members of an '
                r"ensemble share; take trainable=[r'^prompt\.']"
            )
        lacking = self.needs - backbone.offers
        if lacking:
            raise ValueError(
                f'prompt.prompt: {type(self.members[0]).__name__} needs '
                f'{" and ".join(OFFERS[need] for need in sorted(lacking))}, '
                f'{type(backbone).__name__} has none')
        self.members[0].check(backbone)

    def start_from(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.start_from`."""
        for seed, member in zip(self.seeds, self.members, strict=True):
            with self._seeded('start', seed):
                member.start_from(backbone)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> list:
        """The result of ``prepare`` of each member."""
        return [member.prepare(embed) for member in self.members]

    def prepare_query(self, query: Tensor) -> list:
        """See :meth:`Prompt.prepare_query`: each member its images' queries."""
        parts = self.split(query) if self.training else [query] * len(self.members)
        return [
            member.prepare_query(part) for member, part in zip(self.members, parts, strict=True)]

    def penalties(self) -> dict[str, Tensor]:
        """See :meth:`Prompt.penalties`: those of each member."""
        return {f'm{i}.{name}': value for i, member in enumerate(self.members)
                for name, value in member.penalties().items()}

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: list | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`.

        Returns:
            (k * B, P, C); (k, P, C) where the members' tokens do not depend on the input; or None.
        """
        if layer < self.first_layer:  # the tokens are still those of B images
            return None
        k = len(self.members)
        # Input-independent prompts look at the type of x alone; it may be of any batch size.
        parts = self.split(x) if self.training or self.depends_on_input else [x] * k
        states = [None] * k if prepared is None else prepared
        tokens = [
            member(part, layer, state, layout)
            for member, part, state in zip(self.members, parts, states, strict=True)
        ]
        return None if tokens[0] is None else torch.cat(tokens)

    def keys_values(
        self, layer: int, prepared: list | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`; each (k or k * B, heads, P, C / heads)."""
        states = [None] * len(self.members) if prepared is None else prepared
        found = [member.keys_values(layer, state)
                 for member, state in zip(self.members, states, strict=True)]
        if found[0] is None:
            return None
        keys, values = (torch.cat(same) for same in zip(*found, strict=True))
        return keys, values

    def visible(
        self, x: Tensor, layer: int, prepared: list, layout: TokenLayout
    ) -> Tensor | None:
        """See :meth:`Prompt.visible`; (k * B, F + N, P)."""
        if layer < self.first_layer:
            return None
        found = [member.visible(part, layer, state, layout)
                 for member, part, state in zip(self.members, self.split(x), prepared, strict=True)]
        return None if found[0] is None else torch.cat(found)

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return self.members[0].leaves(layer)

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return self.members[0].is_discarded(layer)
