"""Convolutions beside attention and beside the MLP: Convpass."""

import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.adapters.bottleneck import zero_bottleneck
from vpt_dense.argument_checks import check_count, check_dropout, check_number
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout


@register
class Convpass(Adapter):
    """Convolutional bypasses (Jie & Deng, 2022, https://arxiv.org/abs/2207.07039), section 3.

    Two in every block, one beside attention and one beside the MLP,

        x <- x + Attn(LN1 x) + s V1(LN1 x),    x <- x + MLP(LN2 x) + s V2(LN2 x),
        V(u) = U dropout(GELU(K * GELU(D u)))

    D is a convolution of 1x1, C to r, K one of 3x3, r to r, U one of 1x1 back to C, all with
    biases, on the map of patches with zeros around it. The class token goes through the same
    convolutions as an image of one place: of K only the middle acts on it. So do, here, register
    and prompt tokens, and each alone.

    Ours: the GELU on both sides of K, dropout of 0.1, s = 0.1; D starts kaiming uniform
    (a = sqrt(5)), K as the identity, U and the biases at zero, so that the backbone starts as it
    was pretrained. In a block with norms behind attention and MLP, V gets what these get. Layer
    scale does not act on V, nor does what other adapters do to the norms (SSF).

    Parameters on a ViT: 2 N (C r + r + 9 r^2 + r + r C + C).

    Args:
        hidden_dims: r.
        scale: s, not trained. The paper searches it for each data set.
        dropout: In front of U, while training.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range.
    """

    needs = frozenset({'tokens', 'grid', 'parts'})

    def __init__(
        self,
        backbone: nn.Module,
        hidden_dims: int = 8,
        scale: float = 0.1,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(hidden_dims, 'adapters.hidden_dims')
        check_number(scale, 'adapters.scale', positive=True)
        check_dropout(dropout, 'adapters.dropout')
        self.blocks = tuple(backbone.block_list())  # no submodules, see CVPT
        read = {block.name for block in backbone.read_blocks()}
        self.branches = nn.ModuleList(
            Branch(block.embed_dims, hidden_dims, scale, dropout, block.name in read)
            for block in self.blocks for _ in range(2))

    def after_attention(
        self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout
    ) -> Tensor:
        """See :meth:`Adapter.after_attention`."""
        return x + self._beside(2 * layer, self.blocks[layer].norm1, before, layout).to(x.dtype)

    def after_mlp(self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Adapter.after_mlp`."""
        return x + self._beside(2 * layer + 1, self.blocks[layer].norm2, before, layout).to(x.dtype)

    def _beside(self, branch: int, norm: nn.Module, before: Tensor, layout: TokenLayout) -> Tensor:
        """What a branch makes of tokens; the norm is not called: nobody is to see it twice."""
        prenorm = self.blocks[branch // 2].prenorm
        return self.branches[branch](norm.forward(before) if prenorm else before, layout)


class Branch(nn.Module):
    """s V(u), (B, F + P + N, C) to the same.

    Without ``on_grid``, where nothing reads the patches, they are treated like other tokens.
    """

    def __init__(
        self, dims: int, hidden: int, scale: float, dropout: float, on_grid: bool
    ) -> None:
        super().__init__()
        self.down, self.up = zero_bottleneck(dims, hidden)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)
        self.dropout = nn.Dropout(dropout)
        self.scale, self.on_grid = scale, on_grid

    def forward(self, u: Tensor, layout: TokenLayout) -> Tensor:
        """Map tokens to tokens."""
        low = F.gelu(self.down(u))  # (B, F + P + N, r)
        first = layout.num_first + layout.num_prompts
        mixed = low
        if first or not self.on_grid:  # each an image of one place
            mixed = F.linear(low, self.conv.weight[:, :, 1, 1], self.conv.bias)
        if self.on_grid:
            mixed = layout.put_maps(mixed, self.conv(layout.maps(low)))
        return self.scale * self.up(self.dropout(F.gelu(mixed)))
