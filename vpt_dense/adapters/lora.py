"""Low-rank updates of linear layers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter, check_dropout, check_rank, find_linears
from vpt_dense.registry import MODELS


@MODELS.register_module()
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1).

    y = W x + b + (alpha / r) U D dropout(x), with D (r, in) starting as PyTorch's linear layers do
    (kaiming uniform, a = sqrt(5)) and U (out, r) at zero: training starts from the backbone's
    function. Merged, W becomes W + (alpha / r) U D.

    Args:
        rank: r, at least 1.
        alpha: Numerator of the scale; None: the rank, so that the scale is 1.
        targets: Regular expressions, searched in the names of the backbone's linear layers. The
            default is the layer of queries, keys and values.
        dropout: Of the input of the update, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or a pattern matches no linear layer.
    """

    mergeable = True

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 8,
        alpha: float | None = None,
        targets: Sequence[str] = (r'\.qkv$',),
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_rank(rank, 'adapters.rank')
        check_dropout(dropout, 'adapters.dropout')
        scale = 1.0 if alpha is None else alpha / rank
        self.names = list(find_linears(backbone, targets))
        self.updates = nn.ModuleList()
        for name in self.names:
            linear = backbone.get_submodule(name)
            update = LowRank(linear.in_features, linear.out_features, rank, scale, dropout)
            update.handle = linear.register_forward_hook(update.add)
            self.updates.append(update)

    @torch.no_grad()
    def merge(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.merge`."""
        for name, update in zip(self.names, self.updates, strict=True):
            weight = backbone.get_submodule(name).weight
            weight.copy_(weight.double() + update.weight().double())
            update.handle.remove()


class LowRank(nn.Module):
    """A linear map of low rank, (..., in) to (..., out), which starts at zero."""

    def __init__(
        self, in_features: int, out_features: int, rank: int, scale: float, dropout: float
    ) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def weight(self) -> Tensor:
        """As one matrix, (out, in)."""
        return self.scale * self.up @ self.down

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        low = nn.functional.linear(self.dropout(x), self.down)
        return nn.functional.linear(low, self.up) * self.scale

    def add(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        return output + self(args[0])
