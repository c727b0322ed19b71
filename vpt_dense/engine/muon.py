"""Muon for matrices, AdamW for the rest."""

import torch
from torch import Tensor

from vpt_dense.registry import OPTIMIZERS


@OPTIMIZERS.register_module()
class MuonAdamW(torch.optim.Optimizer):
    """Orthogonalised momentum for two-dimensional parameters, AdamW for all others.

    In a small transformer trained from scratch the gradients of its matrices have few large
    directions; Muon (K. Jordan et al., https://kellerjordan.github.io/posts/muon/, 2024) makes all
    directions of the momentum equally large. `torch.optim.Muon` refuses other parameters, which
    one runner with one optimizer cannot split off.

    Args:
        params (Iterable): Parameters or groups of them.
        lr (float): AdamW's learning rate.
        muon_factor (float): Muon's learning rate as a multiple of `lr`.
        momentum (float): Muon's momentum (Nesterov).
        betas (tuple[float, float]): AdamW's decay rates.
        eps (float): AdamW's guard against division by zero.
        weight_decay (float): Decoupled, for both.
    """

    def __init__(self, params, lr=1e-3, muon_factor=20.0, momentum=0.95, betas=(0.9, 0.95),
                 eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, muon_factor=muon_factor, momentum=momentum,
                                      betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        """Updates every parameter that has a gradient.

        Args:
            closure (Callable | None): Computes the loss anew.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 2:
                    self._muon(parameter, group)
                else:
                    self._adamw(parameter, group)
        return loss

    def _muon(self, parameter, group):
        state, grad, lr = self.state[parameter], parameter.grad, group['lr'] * group['muon_factor']
        if not state:
            state['momentum_buffer'] = torch.zeros_like(grad)
        buffer = state['momentum_buffer'].lerp_(grad, 1 - group['momentum'])
        update = orthogonalise(grad.lerp(buffer, group['momentum']))
        rows, columns = parameter.shape
        parameter.mul_(1 - lr * group['weight_decay'])
        parameter.add_(update, alpha=-lr * max(1, rows / columns) ** 0.5)

    def _adamw(self, parameter, group):
        state, grad, lr = self.state[parameter], parameter.grad, group['lr']
        if not state:
            state['step'] = 0
            state['exp_avg'] = torch.zeros_like(grad)
            state['exp_avg_sq'] = torch.zeros_like(grad)
        state['step'] += 1
        beta1, beta2 = group['betas']
        mean = state['exp_avg'].lerp_(grad, 1 - beta1) / (1 - beta1 ** state['step'])
        square = state['exp_avg_sq'].lerp_(grad.square(), 1 - beta2) / (1 - beta2 ** state['step'])
        parameter.mul_(1 - lr * group['weight_decay'])
        parameter.sub_(lr * mean / (square.sqrt() + group['eps']))


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Brings all singular values near 1 (0.7 to 1.2) by Newton-Schulz iterations in bfloat16.

    Args:
        matrix (Tensor): (rows, columns).
        steps (int): Number of iterations; the coefficients are those of Muon's authors.

    Returns:
        Tensor: (rows, columns), the type of `matrix`.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
