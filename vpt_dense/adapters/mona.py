"""Filters on the grid of patches, behind attention and behind the MLP: Mona."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.argument_checks import check_count, check_dropout, check_flag
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout

#: Sides of the kernels.
SIZES = (3, 5, 7)


@register
class Mona(Adapter):
    """Mona (Yin et al., CVPR 2025, https://arxiv.org/abs/2408.08345), section 3.

    Two in every block: behind attention and behind the MLP, the residual added, tokens x become

        n = gamma * LN(x) + gamma_x * x,    z = D n,
        z' = z + mean over k of conv_k(z),    z'' = z' + M z',    x + U dropout(GELU(z''))

    gamma, gamma_x and the norm's own weight and bias are a number for each channel, gamma = 1e-6
    and gamma_x = 1 at the start. D is C to r, M r to r, U back, all with biases. conv_k are
    depthwise convolutions of 3x3, 5x5 and 7x7 with biases, on the map of patches, with zeros
    around it. Here the three are computed as one of 7x7, which is the same up to rounding.

    Class, register and prompt tokens have no place on the map: of them z' = z, and all else is as
    for patches. The paper's backbone, Swin, has none. A block whose patches nothing reads (of a ViT
    the last one if a classifier reads the class token or prompts, and those behind the last of
    ``out_indices``) has no conv_k: they would never get a gradient, which distributed training
    refuses.

    U starts at zero, so that the backbone computes at the first step what it was pretrained to. In
    the authors' release U starts as PyTorch's linear layers do (``zero_start=False``): untrained
    filters then disturb a frozen backbone in 2 N places.

    Parameters on a ViT: 2 N (4 C + C r + r + 83 r + 3 r + r^2 + r + r C + C), without the 86 r of
    blocks that have no conv_k.

    Args:
        hidden_dims: r.
        dropout: Inside, while training.
        zero_start: See above.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs = frozenset({'tokens', 'grid', 'parts'})

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dims: int = 64,
        dropout: float = 0.1,
        zero_start: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(hidden_dims, 'adapters.hidden_dims')
        check_dropout(dropout, 'adapters.dropout')
        check_flag(zero_start, 'adapters.zero_start')
        read = {block.name for block in backbone.read_blocks()}
        self.branches = nn.ModuleList()
        for block in backbone.block_list():
            for _ in range(2):
                self.branches.append(Branch(
                    block.embed_dims, hidden_dims, dropout, zero_start, block.name in read))

    def after_attention(
        self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout
    ) -> Tensor:
        """See :meth:`Adapter.after_attention`."""
        return self.branches[2 * layer](x, layout)

    def after_mlp(self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Adapter.after_mlp`."""
        return self.branches[2 * layer + 1](x, layout)


class Branch(nn.Module):
    """One of the two of a block, (B, F + P + N, C) to the same.

    ``filters`` are the convolutions, none where nothing reads the patches.
    """

    def __init__(
        self, dims: int, hidden: int, dropout: float, zero_start: bool, filters: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dims)
        self.gamma = nn.Parameter(torch.full((dims,), 1e-6))
        self.gamma_x = nn.Parameter(torch.ones(dims))
        self.down = nn.Linear(dims, hidden)
        self.filters = nn.ModuleList(
            nn.Conv2d(hidden, hidden, size, groups=hidden) for size in SIZES if filters)
        self.mix = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.Linear(hidden, dims)
        if zero_start:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """Map tokens to tokens."""
        # gamma goes into the norm, whose output backward needs not then.
        weight, bias = self.norm.weight * self.gamma, self.norm.bias * self.gamma
        n = F.layer_norm(x, self.norm.normalized_shape, weight, bias, self.norm.eps)
        z = self.down(n + x * self.gamma_x)  # (B, F + P + N, r)
        if len(self.filters):
            maps = layout.maps(z)  # (B, r, h, w)
            z = layout.put_maps(z, maps + self._filter(maps))
        z = z + self.mix(z)
        return x + self.up(self.dropout(F.gelu(z))).to(x.dtype)

    def _filter(self, maps: Tensor) -> Tensor:
        """The mean of the convolutions of maps (B, r, h, w)."""
        largest = SIZES[-1]
        kernel = torch.stack([
            F.pad(each.weight, [(largest - size) // 2] * 4)
            for each, size in zip(self.filters, SIZES, strict=True)]).mean(0)
        bias = torch.stack([each.bias for each in self.filters]).mean(0)
        return F.conv2d(maps, kernel, bias, padding=largest // 2, groups=len(bias))
