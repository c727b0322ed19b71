"""A prompt for each step of a stream of classes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vpt_dense.argument_checks import is_int
from vpt_dense.parts import build, register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.prompts.queried_prompt import freeze_others


@register
class StepPrompts(Prompt):
    """Prompts of one kind, one for each step, of which one acts, and trains.

    Args:
        prompt: Config of the prompt of a step, any :class:`vpt_dense.prompts.Prompt`.
        steps: Their number.
        step: That acts, from 0; see :attr:`active`.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        steps: The prompts.
        active: That acts; it may be set between two passes.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width'})

    def __init__(
        self, site: Site, prompt: dict[str, Any], steps: int, step: int,
        init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(init_cfg)
        if not is_int(steps, 1):
            raise ValueError(f'prompt.steps must be a whole number, at least 1, found {steps!r}')
        if not is_int(step, 0) or step >= steps:
            raise ValueError(f'prompt.step must be one of 0 to {steps - 1}, found {step!r}')
        self.steps = nn.ModuleList(build(prompt, site=site) for _ in range(steps))
        self.active = step
        first = self.steps[0]
        self.needs, self.first_layer = self.needs | first.needs, first.first_layer
        # Keys and values that were stored would be those of one step.
        self.depends_on_input = True

    @property
    def own(self) -> Prompt:
        """The prompt that acts."""
        return self.steps[self.active]

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`; then prompts of other steps are frozen."""
        self.own.check(backbone)
        freeze_others(self.steps, self.active)

    def start_from(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.start_from`."""
        for each in self.steps:
            each.start_from(backbone)

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.before_block`."""
        return self.own.before_block(x, layer, layout)

    def after_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.after_block`."""
        return self.own.after_block(x, layer, layout)

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`Prompt.after_backbone`."""
        return self.own.after_backbone(outs, images)

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> object:
        """See :meth:`Prompt.prepare`."""
        return self.own.prepare(embed)

    def prepare_query(self, query: Tensor) -> object:
        """See :meth:`Prompt.prepare_query`."""
        return self.own.prepare_query(query)

    def penalties(self) -> dict[str, Tensor]:
        """See :meth:`Prompt.penalties`."""
        return self.own.penalties()

    def forward(
        self, x: Tensor, layer: int, prepared: object = None, layout: TokenLayout | None = None
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`."""
        return self.own(x, layer, prepared, layout)

    def keys_values(self, layer: int, prepared: object = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        return self.own.keys_values(layer, prepared)

    def visible(
        self, x: Tensor, layer: int, prepared: object, layout: TokenLayout
    ) -> Tensor | None:
        """See :meth:`Prompt.visible`."""
        return self.own.visible(x, layer, prepared, layout)

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return self.own.leaves(layer)

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return self.own.is_discarded(layer)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'steps={len(self.steps)}, active={self.active}'
