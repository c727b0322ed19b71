"""Prompts whose change from block to block is kept linear and stable: PAE."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.parts import register
from vpt_dense.prompts.base import Site, without_autocast
from vpt_dense.prompts.token_prompt import TokenPrompt


@register
class PAEPrompt(TokenPrompt):
    r"""Prompt-agnostic evolution, PAE (Wang et al., ICLR 2026, https://arxiv.org/abs/2601.20232).

    VPT-deep with two terms of the loss, section 3.3, as https://github.com/reeive/PAE computes
    them. With P_i the prompts of block i, z_i = P_i W (P, m), and K and L (m, m) the same for all
    blocks,

        koopman * sum over i of mean of (z_i K - z_{i+1})^2
        lyapunov * sum over i of s(mean over prompts of softplus(V(z_i K) - V(z_i)))

    V(z) = u Q u^T with u = z / max(1, norm of z) and Q = L^T L / its largest singular value, and
    s(a) = 10 tanh(a / 10). K and L start at the identity, W as PyTorch's linear layers do. They
    train with the prompts, and act on nothing but the loss: at test time this is VPT-deep.

    Ours: the sums go over all blocks that prompts enter, theirs leave out the first one.

    The start of the paper, from frequencies, is
    ``PromptStartHook(source='frequencies')`` (:class:`vpt_dense.hooks.PromptStartHook`).

    Args:
        num_tokens: Number P of tokens of a layer, at least 1.
        koopman: Weight of the first term; the paper's is 0.5.
        lyapunov: Weight of the second term; the paper's is 0.2.
        koopman_dims: m.
        site: Filled in by the backbone.
        **kwargs: As in :class:`vpt_dense.prompts.TokenPrompt`, but for ``deep`` and ``shared``.
            With ``project_dims`` P_i are the projected tokens.

    Attributes:
        inward: W^T, (m, C).
        step: K, (m, m).
        energy: L, (m, m).

    Raises:
        ValueError: If an argument is out of its range, or prompts enter a single block; the message
            names it.
    """

    needs = frozenset({'tokens', 'one width'})
    adds_loss = True
    #: Arguments of the parent that are settled here.
    settled = ('deep', 'shared')

    def __init__(
        self, site: Site, num_tokens: int, koopman: float = 0.5, lyapunov: float = 0.2,
        koopman_dims: int = 256, **kwargs,
    ) -> None:  # fmt: skip
        super().__init__(site, num_tokens, deep=True, **kwargs)
        for key, value in dict(koopman=koopman, lyapunov=lyapunov).items():
            if check_number(value, f'prompt.{key}') < 0:
                raise ValueError(f'prompt.{key} must not be negative, found {value}')
        if len(self.tokens) < 2:
            raise ValueError(
                'prompt: PAEPrompt compares the prompts of neighbouring blocks, and '
                f'prompt.layer_range leaves {len(self.tokens)} block; take two at least')
        dims = check_count(koopman_dims, 'prompt.koopman_dims')
        self.koopman, self.lyapunov = koopman, lyapunov
        self.inward = nn.Parameter(nn.Linear(site.dims, dims, bias=False).weight.detach())
        self.step, self.energy = (nn.Parameter(torch.eye(dims)) for _ in range(2))
        self._terms: dict[str, Tensor] = {}

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
        """See :meth:`TokenPrompt.prepare`; in training mode with the terms of the loss."""
        tokens = super().prepare(embed)
        self._terms = self._dynamics(torch.cat(tokens)) if self.training else {}
        return tokens

    def _dynamics(self, tokens: Tensor) -> dict[str, Tensor]:
        """The terms for tokens (S, P, C) of S blocks, weighted."""
        precise = torch.promote_types(tokens.dtype, torch.float32)
        with without_autocast(tokens):
            z = F.linear(tokens.to(precise), self.inward.to(precise))  # (S, P, m)
            step, energy = self.step.to(precise), self.energy.to(precise)
            found = z[:-1] @ step
            koopman = (found - z[1:]).square().mean((1, 2)).sum()
            q = energy.T @ energy
            q = q / (torch.linalg.matrix_norm(q, ord=2) + 1e-8)
            rise = _value(found, q) - _value(z[:-1], q)  # (S - 1, P)
            lyapunov = (10 * torch.tanh(F.softplus(rise).mean(1) / 10)).sum()
        return dict(loss_koopman=self.koopman * koopman, loss_lyapunov=self.lyapunov * lyapunov)

    def penalties(self) -> dict[str, Tensor]:
        """See :meth:`Prompt.penalties`."""
        terms, self._terms = self._terms, {}
        return terms


def _value(z: Tensor, q: Tensor) -> Tensor:
    """V of vectors (S, P, m), (S, P)."""
    unit = z / (z.norm(dim=-1, keepdim=True) + 1e-8).clamp_min(1.0)
    return ((unit @ q) * unit).sum(-1)
