"""Muon for matrices, AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

from timm.optim import Muon

from vpt_dense.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class MuonAdamW(Muon):
    """timm's Muon for two-dimensional parameters, its AdamW for all others.

    In a small transformer trained from scratch the gradients of its matrices have few large
    directions; Muon (K. Jordan et al., https://kellerjordan.github.io/posts/muon/, 2024) makes all
    directions of the momentum equally large. timm chooses parameters by other rules, and its rates
    for the others are not everywhere scheduled: here both have groups of their own, with a learning
    rate that schedules know.

    Args:
        params: Parameters or groups of them.
        lr: AdamW's learning rate.
        muon_factor: Muon's learning rate as a multiple of ``lr``.
        momentum: Muon's momentum (Nesterov).
        betas: AdamW's decay rates.
        eps: AdamW's guard against division by zero.
        weight_decay: Decoupled, for both.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        muon_factor: float = 20.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        groups = []
        for group in params:
            group = group if isinstance(group, dict) else dict(params=[group])
            rate, parameters = group.get('lr', lr), group['params']
            matrices = [p for p in parameters if p.ndim == 2]
            others = [p for p in parameters if p.ndim != 2]
            if matrices:
                groups.append(dict(
                    group, params=matrices, lr=rate * muon_factor, use_muon=True, nesterov=True))
            if others:  # without Nesterov's momentum they get AdamW, with it NAdamW
                groups.append(dict(
                    group, params=others, lr=rate, use_muon=False, nesterov=False, eps=eps))
        super().__init__(
            groups, lr=lr, weight_decay=weight_decay, momentum=momentum, betas=betas,
            adjust_lr_fn='original', ns_coefficients='original')

    def step(self, closure: Callable | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: Computes the loss anew.

        Returns:
            The closure's loss, or None.
        """
        for group in self.param_groups:
            group['adamw_lr'] = group['lr']  # what timm < 1.0.27 takes in its place
        return super().step(closure)
