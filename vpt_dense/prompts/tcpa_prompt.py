"""Prompts that the class token and every patch choose for themselves: TCPA."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout, without_autocast


@register
class TCPAPrompt(Prompt):
    """Token coordinated prompt attention, TCPA (Liu et al., ICML 2025).

    https://arxiv.org/abs/2505.02406, section 3: every block has two pools of prompts, each prompt
    with a key k_j, for the class token and for patches. Prompts are keys and values alone. A token
    x about to enter the block sees, beside all tokens, those prompts of its pool whose cos(x, k_j)
    are the highest, and no others: attention scores to these are minus infinity. The loss gets

        match * mean of 1 - cos(x, k_j) over blocks, pools, images, tokens and chosen keys.

    Ours: x is what enters the block, before its norm, and gets no gradient from that loss, which
    moves the keys alone. Register tokens choose among the prompts of patches. The last block has no
    pool for patches: nothing reads what they become there. Epochs in which prompts are chosen at
    random, an option of the authors' code, are left out.

    Args:
        num_tokens: L, tokens of a prompt.
        class_pool: Prompts for the class token, in each block.
        class_chosen: How many of them it sees.
        patch_pool: Prompts for patches, in each block.
        patch_chosen: How many of them a patch sees.
        match: See above.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default all start in U(-1, 1).

    Attributes:
        class_tokens: (N, class_pool, L, C).
        class_keys: (N, class_pool, C).
        patch_tokens: (N - 1, patch_pool, L, C); None in a backbone of one block.
        patch_keys: (N - 1, patch_pool, C); None likewise.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width', 'keys and values', 'hidden prompts'})
    adds_loss = True

    def __init__(
        self,
        site: Site,
        num_tokens: int = 1,
        class_pool: int = 20,
        class_chosen: int = 10,
        patch_pool: int = 20,
        patch_chosen: int = 10,
        match: float = 0.01,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_tokens = check_count(num_tokens, 'prompt.num_tokens')
        for name, pool, chosen in (('class', class_pool, class_chosen),
                                   ('patch', patch_pool, patch_chosen)):
            check_count(pool, f'prompt.{name}_pool')
            if check_count(chosen, f'prompt.{name}_chosen') > pool:
                raise ValueError(
                    f'prompt.{name}_chosen must be at most prompt.{name}_pool={pool}, found '
                    f'{chosen}')
        if check_number(match, 'prompt.match') < 0:
            raise ValueError(f'prompt.match must not be negative, found {match}')
        self.match, self.num_layers = match, site.num_layers
        self.class_chosen, self.patch_chosen = class_chosen, patch_chosen

        def uniform(*shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape).uniform_(-1, 1)) if shape[0] else None

        layers = site.num_layers
        self.class_tokens = uniform(layers, class_pool, num_tokens, site.dims)
        self.class_keys = uniform(layers, class_pool, site.dims)
        self.patch_tokens = uniform(layers - 1, patch_pool, num_tokens, site.dims)
        self.patch_keys = uniform(layers - 1, patch_pool, site.dims)
        self._terms: list[Tensor] = []

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: somebody must read the class token, and no prompts."""
        if backbone.out_type not in ('cls_token', 'embedding'):
            raise ValueError(
                "prompt: TCPAPrompt has prompts for the class token; it needs out_type='cls_token',"
                f' found {backbone.out_type!r}')
        if len(backbone.keys_values_layers) < self.num_layers:
            raise ValueError(
                "prompts_as: TCPAPrompt hides prompts from tokens, which takes prompts as keys and "
                "values; leave prompts_as='tokens' out")

    def prepare(
        self, embed: Callable[[Tensor], Tensor] | None = None
    ) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Of each block tokens (1, P, C), those of the class first; keys of both, (K, C)."""
        self._terms = []
        tokens = list(self.class_tokens.flatten(1, 2).split(1))
        keys = [None] * self.num_layers
        if self.patch_tokens is not None:
            further = self.patch_tokens.flatten(1, 2).split(1)
            tokens[:-1] = [torch.cat(both, 1) for both in zip(tokens[:-1], further, strict=True)]
            keys[:-1] = self.patch_keys.unbind()
        return list(zip(tokens, self.class_keys.unbind(), keys, strict=True))

    def forward(
        self, x: Tensor, layer: int, prepared: object = None, layout: TokenLayout | None = None
    ) -> Tensor:
        """See :meth:`Prompt.forward`."""
        return (self.prepare() if prepared is None else prepared)[layer][0]

    def visible(self, x: Tensor, layer: int, prepared: object, layout: TokenLayout) -> Tensor:
        """See :meth:`Prompt.visible`."""
        _, keys, of_patches = prepared[layer]
        of_class = self._choose(x[:, :1], keys, self.class_chosen)  # (B, 1, class_pool L)
        rest = x.new_zeros(x.shape[0], x.shape[1] - 1, of_class.shape[2], dtype=torch.bool)
        if of_patches is None:
            return torch.cat((of_class, rest), dim=1)
        own = self._choose(x[:, 1:], of_patches, self.patch_chosen)
        others = own.new_zeros(own.shape[0], 1, own.shape[2])
        return torch.cat((torch.cat((of_class, others), 2), torch.cat((rest, own), 2)), dim=1)

    def _choose(self, x: Tensor, keys: Tensor, number: int) -> Tensor:
        """Which tokens of prompts tokens (B, n, C) choose, (B, n, K L); and the loss of it."""
        precise = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            unit = F.normalize(x.detach().to(precise), dim=-1)
            cosines = unit @ F.normalize(keys.to(precise), dim=-1).T  # (B, n, K)
        found, chosen = cosines.topk(number, dim=-1)
        if self.training:
            self._terms.append((1 - found).mean())
        mask = torch.zeros_like(cosines).scatter(-1, chosen, 1.0) > 0
        return mask.repeat_interleave(self.num_tokens, dim=-1)

    def penalties(self) -> dict[str, Tensor]:
        """See :meth:`Prompt.penalties`."""
        terms, self._terms = self._terms, []
        return {'loss_match': self.match * torch.stack(terms).mean()} if terms else {}

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`."""
        return False

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return True

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        pools = f'{self.class_chosen} of {self.class_keys.shape[1]}'
        if self.patch_keys is not None:
            pools += f', patches {self.patch_chosen} of {self.patch_keys.shape[1]}'
        return f'num_tokens={self.num_tokens}, class {pools}, match={self.match:g}'
