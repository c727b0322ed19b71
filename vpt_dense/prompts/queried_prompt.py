"""What prompts share that are chosen by what the frozen backbone makes of an image."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_number, is_int, is_list
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


class QueriedPrompt(Prompt):
    """Prompts of which each image gets its own by the query q, see :meth:`Prompt.prepare_query`.

    Their loss has a term beside the head's, see :meth:`Prompt.penalties`.

    Args:
        site: Filled in by the backbone.
        weight: Of that term.
        key: What ``weight`` is called in the config.
        init_cfg: As in :class:`mmengine.model.BaseModule`.
    """

    needs = frozenset({'tokens', 'one width', 'query'})
    adds_loss = True

    def __init__(self, site: Site, weight: float, key: str, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if check_number(weight, f'prompt.{key}') < 0:
            raise ValueError(f'prompt.{key} must not be negative, found {weight}')
        self.weight, self.key = weight, key
        self.bound = math.sqrt(6 / (3 * math.prod(site.patch_size) + site.first_dims))
        self._term: Tensor | None = None

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: the query is of a frozen backbone."""
        if len(backbone.adapters):
            raise ValueError(
                f'adapters: {type(self).__name__} asks the frozen backbone which prompts an image '
                'gets, which adapters would change; leave them out')
        trained = [name for name, parameter in backbone.named_parameters()
                   if parameter.requires_grad and not name.startswith('prompt.')]
        if trained:
            raise ValueError(
                f'trainable: {type(self).__name__} asks the frozen backbone which prompts an image '
                rf"gets, but {trained[0]} trains; take trainable=[r'^prompt\.']")

    def uniform(self, *shape: int) -> nn.Parameter:
        """A parameter that starts as VPT's tokens."""
        return nn.Parameter(torch.empty(shape).uniform_(-self.bound, self.bound))

    def penalties(self) -> dict[str, Tensor]:
        """See :meth:`Prompt.penalties`."""
        term, self._term = self._term, None
        return {} if term is None else {f'loss_{self.key}': self.weight * term}

    def forward(
        self, x: Tensor, layer: int, prepared: object = None, layout: TokenLayout | None = None
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`: there are no tokens."""

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return False


class SteppedPrompt(QueriedPrompt):
    """Such prompts as keys and values, with a part for each step of a stream of classes.

    ``continual`` fills in ``steps`` and ``step``; the part of its step trains alone.

    Args:
        site: Filled in by the backbone.
        steps: Number of parts.
        step: That trains, from 0; an image is served by this one and those before.
        weight: As in :class:`QueriedPrompt`.
        key: Likewise.
        init_cfg: Likewise.
    """

    needs = QueriedPrompt.needs | {'parts', 'keys and values'}

    def __init__(
        self, site: Site, steps: int, step: int, weight: float, key: str,
        init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(site, weight, key, init_cfg)
        if not is_int(steps, 1):
            raise ValueError(f'prompt.steps must be a whole number, at least 1, found {steps!r}')
        if not is_int(step, 0) or step >= steps:
            raise ValueError(f'prompt.step must be one of 0 to {steps - 1}, found {step!r}')
        self.step, self.heads, self.head_dims = step, site.heads, site.head_dims

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`; then parts of other steps are frozen."""
        super().check(backbone)
        freeze_others(self.steps, self.step)

    def begin_step(self) -> None:
        """Do what the part of this step starts with, when those before have been loaded."""

    @staticmethod
    def range_of(layers: Sequence[int], key: str, site: Site) -> range:
        """The layers (start, stop) of ``prompt.KEY``, as far as the backbone has them."""
        if not is_list(layers) or len(layers) != 2 or not all(is_int(n, 0) for n in layers):
            raise ValueError(f'prompt.{key} must be a pair (start, stop), found {layers!r}')
        start, stop = layers
        if not start < stop <= site.num_layers:
            raise ValueError(
                f'prompt.{key}: {start} to {stop} are no layers of {site.num_layers}')
        return range(start, stop)


def freeze_others(steps: nn.ModuleList, step: int) -> None:
    """Let the part of one step train alone, whatever ``trainable`` says of the others."""
    for number, part in enumerate(steps):
        if number != step:
            part.requires_grad_(False)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines of the rows of (B, C) and (M, C), (B, M)."""
    return F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T
