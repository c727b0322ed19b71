"""Batch-norm whose statistics span all processes, without CUDA."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from vpt_dense.registry import MODELS


class _AllReduce(torch.autograd.Function):
    """Sum over processes; so is its gradient, because every process uses every summand."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


@MODELS.register_module()
class CPUSyncBN(nn.BatchNorm2d):
    """``SyncBN`` for processes without CUDA, where torch has none; the state-dict keys are equal.

    With one process it is ``nn.BatchNorm2d``. With several, a step of N processes equals the step
    of one process on the joined batch (when the N losses are averaged, as DDP does). Biased
    variance normalises, unbiased variance goes into the running statistics, as in torch.

    Args: those of ``nn.BatchNorm2d``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (B, C, H, W), float; B may differ between processes."""
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        use_batch = self.training or not self.track_running_stats
        if not (several and use_batch):
            return super().forward(x)
        self._check_input_dim(x)
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32  # bf16 sums are too coarse
        values = x.to(dtype)
        local = values.new_tensor([x.numel() / x.shape[1]])
        total = _AllReduce.apply(torch.cat([values.sum((0, 2, 3)), local]))  # (C + 1,)
        count = total[-1].detach()
        mean = total[:-1] / count  # (C,)
        centred = values - mean[:, None, None]
        variance = _AllReduce.apply((centred**2).sum((0, 2, 3))) / count  # (C,)
        self._update_running(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        out = centred * torch.rsqrt(variance + self.eps)[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        if not (self.training and self.track_running_stats):
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), float(share))
        self.running_var.lerp_(variance.to(self.running_var), float(share))
