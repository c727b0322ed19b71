"""Losses of depth and of normals; pixels whose truth is not known count nowhere."""

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.registry import MODELS

#: Metres that are added before a logarithm.
_EPS = 1e-3
#: Below a root, where its slope would not be finite.
_TINY = 1e-12


class MapLoss(nn.Module):
    """What the losses have in common.

    Args:
        loss_weight: What it is multiplied by.
        loss_name: What it is logged as; it counts if that begins with 'loss'.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_map') -> None:
        super().__init__()
        self.loss_weight = check_number(loss_weight, f'loss_weight of {type(self).__name__}')
        self.loss_name = loss_name


@MODELS.register_module()
class SigLoss(MapLoss):
    """Scale-invariant logarithmic loss.

    ::

        g = ln(found + 0.001) - ln(truth + 0.001)        loss = sqrt(var(g) + 0.15 mean(g)^2)

    over all valid pixels of the batch (D. Eigen et al., NeurIPS 2014,
    https://arxiv.org/abs/1406.2283, equation 4; the form of AdaBins,
    https://arxiv.org/abs/2011.14141, equation 4, as the Monocular Depth Estimation Toolbox and
    DINOv2 have it). The variance is that of a sample, divided by n - 1. While it warms up, var(g)
    is left out, so that the scale is found first.

    Args:
        warm_up: Training steps without var(g); 0: none. The toolbox has 100.
        loss_weight: As in :class:`MapLoss`.
        loss_name: As there.
    """

    def __init__(
        self, warm_up: int = 0, loss_weight: float = 1.0, loss_name: str = 'loss_depth'
    ) -> None:
        super().__init__(loss_weight, loss_name)
        self.warm_up = check_count(warm_up, 'warm_up of SigLoss', 0)
        # In checkpoints: a resumed run goes on counting.
        self.register_buffer('steps', torch.zeros((), dtype=torch.int64))

    def forward(self, found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """Compare depths in metres.

        Args:
            found: (B, 1, H, W), above 0.
            truth: (B, 1, H, W).
            valid: (B, 1, H, W) bool.

        Returns:
            A scalar; nearly 0 where nothing is valid.
        """
        g = _log_ratio(found, truth, valid)
        number = valid.sum()
        mean = g.sum() / number.clamp(min=1)
        variance = ((g - mean) * valid).square().sum() / (number - 1).clamp(min=1)
        if self.warm_up:
            variance = variance * (self.steps >= self.warm_up)
            if self.training:
                self.steps += 1
        return self.loss_weight * (variance + 0.15 * mean.square()).clamp(min=_TINY).sqrt()


@MODELS.register_module()
class GradientLoss(MapLoss):
    """How much edges differ: differences of g, see :class:`SigLoss`, of places two apart.

    ::

        loss = sum_s 1/n_s sum_yx abs(g[y + 2, x] - g[y, x]) + abs(g[y, x + 2] - g[y, x])

    where both places are valid, on every s-th row and column, s = 1, 2, 4, 8, of which n_s pixels
    are valid (MegaDepth, Z. Li and N. Snavely, CVPR 2018, https://arxiv.org/abs/1804.00607, section
    4). DINOv2's evaluation weighs such a term by half beside the :class:`SigLoss`.

    Args:
        loss_weight: As in :class:`MapLoss`.
        loss_name: As there.
    """

    def __init__(self, loss_weight: float = 1.0, loss_name: str = 'loss_grad') -> None:
        super().__init__(loss_weight, loss_name)

    def forward(self, found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
        """See :meth:`SigLoss.forward`."""
        total = found.new_zeros(())
        for step in (1, 2, 4, 8):
            g, there = (each[..., ::step, ::step]
                        for each in (_log_ratio(found, truth, valid), valid))
            number = there.sum().clamp(min=1)
            for axis in (2, 3):
                size = g.shape[axis]
                if size > 2:
                    one, two = (x.narrow(axis, 0, size - 2) for x in (g, there))
                    other, both = (x.narrow(axis, 2, size - 2) for x in (g, there))
                    total = total + ((other - one).abs() * (two & both)).sum() / number
        return self.loss_weight * total


def _log_ratio(found: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """The logarithm of found / truth, 0 where it is not valid."""
    truth = truth.where(valid, 1)  # no logarithm of what is no depth: its gradient would be NaN
    return ((found + _EPS).log() - (truth + _EPS).log()) * valid
