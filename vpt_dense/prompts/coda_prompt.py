"""Prompts that are weighted sums of components: CODA-Prompt."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site
from vpt_dense.prompts.queried_prompt import SteppedPrompt


class _Components(nn.Module):
    """The components of one step."""

    def __init__(self, layers: int, number: int, size: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(layers, number, size))
        self.keys = nn.Parameter(torch.empty(layers, number, width))
        self.attention = nn.Parameter(torch.empty(layers, number, width))
        for parameter in self.parameters():
            for layer in parameter:
                nn.init.orthogonal_(layer)


@register
class CODAPrompt(SteppedPrompt):
    """CODA-Prompt (Smith et al., CVPR 2023, https://arxiv.org/abs/2211.13218), section 4.

    The keys and values that a block gets are a weighted sum of components P_m,

        p = sum over m of cos(q * A_m, K_m) P_m

    with the query q of :meth:`Prompt.prepare_query`, an attention A_m and a key K_m for each
    component (equations 4 to 6). Every step brings M components for each block; those before are
    frozen and stay in the sum. The loss gets ``ortho`` times the sum over blocks and over P, K and
    A of

        mean of the squares of (B B^T - I)

    where rows of B are P (as vectors), K or A of all steps so far (equation 7; the mean of squares
    is that of the authors' code). A step's components start orthogonal to those before, as far as
    there is room.

    Args:
        num_tokens: Keys, and values, of a component: the paper's length of 8 are 4 of each.
        components: M of a step; the paper has 100 in all.
        layers: (start, stop) of the blocks with prompts.
        steps: Number of steps; ``continual`` fills it in.
        step: That trains, likewise.
        ortho: See above.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        steps: For each step ``tokens`` P, (layers, M, 2 * heads * num_tokens * d), ``keys`` K and
            ``attention`` A, (layers, M, C).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        site: Site,
        num_tokens: int = 4,
        components: int = 10,
        layers: Sequence[int] = (0, 5),
        steps: int = 1,
        step: int = 0,
        ortho: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(site, steps, step, ortho, 'ortho', init_cfg)
        check_count(num_tokens, 'prompt.num_tokens')
        check_count(components, 'prompt.components')
        self.own = self.range_of(layers, 'layers', site)
        self.num_tokens = num_tokens
        size = 2 * site.heads * num_tokens * site.head_dims
        self.steps = nn.ModuleList(
            _Components(len(self.own), components, size, site.dims) for _ in range(steps))

    @torch.no_grad()
    def begin_step(self) -> None:
        """Make the components of this step orthogonal to those before (Gram-Schmidt)."""
        for name, own in self.steps[self.step].named_parameters():
            for layer, rows in enumerate(own):
                before = [each.get_parameter(name)[layer] for each in self.steps[: self.step]]
                known = torch.cat([*before, rows]).double()
                if len(known) > known.shape[1]:
                    continue  # there is no room
                basis = torch.linalg.qr(known.T)[0].T
                rows.copy_(basis[-len(rows) :])

    def _so_far(self, name: str) -> Tensor:
        """One kind of all components so far, (layers, M of these steps, ...)."""
        return torch.cat(
            [each.get_parameter(name) for each in self.steps[: self.step + 1]], dim=1)

    def prepare_query(self, query: Tensor) -> Tensor:
        """Keys and values of each image, (layers, B, 2, heads, P, d)."""
        parts = {name: self._so_far(name) for name in ('tokens', 'keys', 'attention')}
        if self.training:
            self._term = sum(_from_orthogonal(part).sum() for part in parts.values())
        # The cosine of q * A_m and K_m, without a tensor (layers, B, M, C).
        keys = F.normalize(parts['keys'], dim=-1)
        query = query.to(keys.dtype)
        products = torch.einsum('bc,lmc->lbm', query, parts['attention'] * keys)
        squares = torch.einsum('bc,lmc->lbm', query.square(), parts['attention'].square())
        weights = products / squares.sqrt().clamp(min=1e-12)  # (layers, B, M)
        sums = torch.bmm(weights, parts['tokens'])
        return sums.unflatten(-1, (2, self.heads, self.num_tokens, self.head_dims))

    def keys_values(
        self, layer: int, prepared: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        if layer not in self.own:
            return None
        keys, values = prepared[layer - self.own.start].unbind(1)
        return keys, values

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return (f'num_tokens={self.num_tokens}, components={self.steps[0].keys.shape[1]}, '
                f'step={self.step}, ortho={self.weight:g}')


def _from_orthogonal(rows: Tensor) -> Tensor:
    """How far rows of (layers, M, C) are from orthonormal, (layers,)."""
    products = rows @ rows.transpose(1, 2)
    identity = torch.eye(products.shape[-1], dtype=rows.dtype, device=rows.device)
    return (products - identity).square().mean((1, 2))
