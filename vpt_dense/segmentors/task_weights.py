"""How the losses of several tasks become one: fixed weights, uncertainty, norms of gradients."""

from collections.abc import Mapping, Sequence

import torch
from mmengine import dist
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_number
from vpt_dense.errors import suggest

KINDS = ('fixed', 'uncertainty', 'gradient_norm')
#: The least weight that 'gradient_norm' gives a task, of a mean of 1.
_LEAST = 0.01


class TaskWeights(nn.Module):
    """Weights the losses of tasks.

    - ``fixed``: loss = sum_t w_t L_t.
    - ``uncertainty``: A. Kendall et al., CVPR 2018, https://arxiv.org/abs/1705.07115, equations 7
      and 10, with a learned s_t = log sigma_t^2 that starts at 0::

          loss = sum_t w_t (c_t exp(-s_t) L_t + s_t / 2),  c_t = 1 of classes, 1/2 of numbers

    - ``gradient_norm``: GradNorm, Z. Chen et al., ICML 2018, https://arxiv.org/abs/1711.02257,
      algorithm 1. Learned weights v_t of sum T, and with W all that trains and all tasks share,
      g_t = norm of the gradient of w_t L_t by W, r_t = (L_t / L_t(0)) / mean of these::

          loss = sum_t v_t w_t L_t        loss of v: sum_t abs(v_t g_t - G),
          G = mean_t(v_t g_t) r_t^alpha, a constant

      L_t(0) is that of the first batch. The weights train with the run's optimizer and are divided
      by their mean in front of each step (no less than 0.01). The paper takes the last shared
      layer for W; here prompts and adapters are few, and all of them count. It costs a backward
      pass for each task.

    What is learned is in checkpoints, and so is the first batch's loss.

    Args:
        names: Of the tasks, in order.
        classes: Which of them tell classes apart.
        kind: One of these.
        weights: Task -> w_t, by default 1.
        alpha: Of ``gradient_norm``: how strongly slow tasks are favoured; the paper has 0.12 to
            1.5, and here it is 1.5 by default.

    Raises:
        ValueError: If a value is none of these; the message names the key.
    """

    def __init__(
        self, names: Sequence[str], classes: Sequence[str], kind: str = 'fixed',
        weights: Mapping[str, float] | None = None, alpha: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind = check_choice(kind, 'model.weighting.kind', KINDS)
        self.names, self.classes = list(names), set(classes)
        for name, weight in (weights or {}).items():
            if name not in self.names:
                raise ValueError(f'model.weighting.weights: there is no task {name!r}'
                                 f'{suggest(name, self.names)}')
            check_number(weight, f'model.weighting.weights.{name}', positive=True)
        if alpha is not None and kind != 'gradient_norm':
            raise ValueError("model.weighting.alpha is of kind='gradient_norm' alone, found "
                             f'{kind!r}')
        self.given = {name: float((weights or {}).get(name, 1)) for name in self.names}
        self.alpha = check_number(1.5 if alpha is None else alpha, 'model.weighting.alpha')
        if self.alpha < 0:
            raise ValueError(f'model.weighting.alpha must not be below 0, found {alpha!r}')
        if kind == 'uncertainty':
            self.log_variances = nn.Parameter(torch.zeros(len(self.names)))
        if kind == 'gradient_norm':
            if len(self.names) == 1:
                raise ValueError(
                    "model.weighting.kind='gradient_norm' balances two tasks or more; there is one")
            self.balance = nn.Parameter(torch.ones(len(self.names)))
            self.register_buffer('first', torch.zeros(len(self.names)))

    def forward(
        self, losses: Mapping[str, Mapping[str, Tensor]], shared: Sequence[nn.Parameter] = ()
    ) -> dict[str, Tensor]:
        """Weight the losses.

        Args:
            losses: Task -> name -> a value; what has 'loss' in its name counts.
            shared: What trains and tasks may share, for ``gradient_norm``.

        Returns:
            ``TASK.NAME`` -> value, losses weighted; ``TASK.weight``, what they were multiplied by;
            and the terms of the weights.

        Raises:
            ValueError: If ``gradient_norm`` finds nothing that trains and is shared.
        """
        extra: dict[str, Tensor] = {}
        if self.kind == 'uncertainty':
            s = self.log_variances
            given = s.new_tensor(list(self.given.values()))
            halves = s.new_tensor([1.0 if n in self.classes else 0.5 for n in self.names])
            scales = given * halves * (-s).exp()
            extra = {'uncertainty.loss': (given * s).sum() / 2}
        elif self.kind == 'gradient_norm':
            scales, extra = self._balance(losses, shared)
        else:
            scales = torch.tensor(list(self.given.values()))
        found = dict(extra)
        for name, scale in zip(self.names, scales, strict=True):
            for key, value in losses[name].items():
                found[f'{name}.{key}'] = (
                    value * scale.to(value.device) if 'loss' in key else value)
            found[f'{name}.weight'] = scale.detach().clone()
        return found

    def _balance(
        self, losses: Mapping[str, Mapping[str, Tensor]], shared: Sequence[nn.Parameter]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weights of ``gradient_norm``, and their loss."""
        device = self.balance.device
        given = self.balance.new_tensor(list(self.given.values()))
        totals = [sum(v for key, v in losses[name].items() if 'loss' in key)
                  for name in self.names]  # fmt: skip
        if not torch.is_grad_enabled() or not self.training:
            return self.balance.detach() * given, {}
        with torch.no_grad():
            self.balance.clamp_(min=_LEAST)
            self.balance.mul_(len(self.names) / self.balance.sum())
        parameters = [p for p in shared if p.requires_grad]
        of_tasks = [
            torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
            if total.requires_grad and parameters else () for total in totals]
        common = [each for each in zip(*of_tasks, strict=True) if all(g is not None for g in each)]
        if not common:
            raise ValueError(
                "model.weighting.kind='gradient_norm' balances the gradients of what tasks share, "
                'and nothing of the backbone trains that all share; take fixed or uncertainty')
        norms = torch.stack([
            torch.stack([each[t].float().square().sum() for each in common]).sum().sqrt()
            for t in range(len(self.names))]).to(device) * given
        now = torch.stack([total.detach().float() for total in totals]).to(device)
        dist.all_reduce(now, 'mean')
        if not self.first.any():
            self.first.copy_(now)
        ratios = now / self.first.clamp(min=1e-12)
        rates = ratios / ratios.mean().clamp(min=1e-12)
        weighted = self.balance * norms
        target = (weighted.mean() * rates**self.alpha).detach()
        return self.balance.detach() * given, {
            'gradient_norm.loss': (weighted - target).abs().sum()}
