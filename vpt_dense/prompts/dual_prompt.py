"""Prompts for all steps of a stream, and prompts for each: DualPrompt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site
from vpt_dense.prompts.queried_prompt import SteppedPrompt, cosines


class _Expert(nn.Module):
    """Keys and values of one step, (layers, 2, heads, P, d), and the step's own key, (C,)."""

    def __init__(self, tokens: nn.Parameter, key: nn.Parameter) -> None:
        super().__init__()
        self.tokens, self.key = tokens, key


@register
class DualPrompt(SteppedPrompt):
    """DualPrompt (Wang et al., ECCV 2022, https://arxiv.org/abs/2204.04799), section 4.

    Some blocks get a general prompt, of all steps alike; others the expert prompt e_t of a step.
    Both are keys and values that all tokens attend to (the paper's Pre-T). Each expert has a key
    k_t. Images of a training are served by its step's expert, and the loss gets

        match * mean over images of 1 - cos(q, k_t)

    with the query q of :meth:`Prompt.prepare_query`. Otherwise an image gets the expert with the
    highest cosine among the steps so far. The paper splits a prompt in halves, which are keys and
    values in front of their linear layers; here, as in its code, they stand behind these layers,
    and their number is that of keys, and of values.

    Args:
        num_general: Keys, and values, of the general prompt.
        num_expert: Keys, and values, of an expert.
        general_layers: (start, stop) of the blocks with the general prompt.
        expert_layers: (start, stop) of those with an expert.
        steps: Number of steps; ``continual`` fills it in.
        step: That trains, likewise.
        match: See above.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default all start as the tokens of
            VPT.

    Attributes:
        general: (layers, 2, heads, P, d).
        steps: For each step ``tokens``, likewise, and ``key``, (C,).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        site: Site,
        num_general: int = 5,
        num_expert: int = 20,
        general_layers: Sequence[int] = (0, 2),
        expert_layers: Sequence[int] = (2, 5),
        steps: int = 1,
        step: int = 0,
        match: float = 1.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(site, steps, step, match, 'match', init_cfg)
        self.of_general = self.range_of(general_layers, 'general_layers', site)
        self.of_experts = self.range_of(expert_layers, 'expert_layers', site)
        if set(self.of_general) & set(self.of_experts):
            raise ValueError(
                f'prompt.expert_layers {tuple(expert_layers)} must not share a layer with '
                f'prompt.general_layers {tuple(general_layers)}')
        check_count(num_general, 'prompt.num_general')
        check_count(num_expert, 'prompt.num_expert')
        rest = site.heads, num_general, site.head_dims
        self.general = self.uniform(len(self.of_general), 2, *rest)
        rest = site.heads, num_expert, site.head_dims
        self.steps = nn.ModuleList(
            _Expert(self.uniform(len(self.of_experts), 2, *rest), self.uniform(site.dims))
            for _ in range(steps))

    def prepare_query(self, query: Tensor) -> Tensor:
        """Experts of the images, (1 or B, layers, 2, heads, P, d)."""
        keys = torch.stack([each.key for each in self.steps[: self.step + 1]])
        found = cosines(query, keys.to(query.dtype))  # (B, steps so far)
        if self.training:
            self._term = (1 - found[:, self.step]).mean()
            return self.steps[self.step].tokens[None]
        tokens = torch.stack([each.tokens for each in self.steps[: self.step + 1]])
        return tokens[found.argmax(1)]

    def keys_values(
        self, layer: int, prepared: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        if layer in self.of_general:
            keys, values = self.general[layer - self.of_general.start]
            return keys[None], values[None]
        if layer in self.of_experts:
            keys, values = prepared[:, layer - self.of_experts.start].unbind(1)
            return keys, values
        return None

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return (f'num_general={self.general.shape[3]}, num_expert='
                f'{self.steps[0].tokens.shape[3]}, step={self.step}, match={self.weight:g}')
