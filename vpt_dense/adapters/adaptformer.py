"""A bottleneck beside the MLP."""

from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.adapters.bottleneck import zero_bottleneck
from vpt_dense.argument_checks import check_count, check_dropout, check_number
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout


@register
class AdaptFormer(Adapter):
    """AdaptFormer (Chen et al., NeurIPS 2022, https://arxiv.org/abs/2205.13535, section 3.2).

    With x the tokens behind attention, the residual added, the block puts out
    x + MLP(LN x) + s U dropout(ReLU(D x)): the bottleneck sees the tokens before the norm.
    D starts kaiming uniform, U at zero.

    Args:
        hidden_dims: Width of the bottleneck.
        scale: s, not trained.
        dropout: Inside the bottleneck, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs = frozenset({'tokens', 'parts'})

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dims: int = 64,
        scale: float = 0.1,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(hidden_dims, 'adapters.hidden_dims')
        check_number(scale, 'adapters.scale', positive=True)
        check_dropout(dropout, 'adapters.dropout')
        self.branches = nn.ModuleList()
        for block in backbone.block_list():
            self.branches.append(Branch(block.embed_dims, hidden_dims, scale, dropout))

    def after_mlp(self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Adapter.after_mlp`."""
        return x + self.branches[layer](before)


class Branch(nn.Module):
    """s U dropout(ReLU(D x)), (..., C) to (..., C)."""

    def __init__(self, dims: int, hidden: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.down, self.up = zero_bottleneck(dims, hidden)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return self.scale * self.up(self.dropout(self.down(x).relu()))
