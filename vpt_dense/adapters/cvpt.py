"""Cross-attention from the tokens to prompts, with the blocks' own weights: CVPT."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.argument_checks import check_count, check_dropout
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout


@register
class CVPT(Adapter):
    """Cross visual prompt tuning (Huang et al., ICCV 2025, https://arxiv.org/abs/2408.14961).

    After the attention of block i its tokens attend to learnt prompts P_i,

        x <- x + CA(x, P_i),    CA(x, P) = softmax(q(x) k(P)^T / sqrt(h)) v(P) W_o + b_o,

    h being C / heads. q, k, v and the output layer are those of the block's self-attention;
    neither input passes a norm. The weights are shared with the block, where the paper copies and
    freezes them, which is the same while the block is frozen. If ``trainable`` names them they
    train through both. What other adapters do to these layers (LoRA, SSF) has no part in it.

    Args:
        num_tokens: Number of prompts P of each block, at least 1. The paper uses 10 to 200.
        dropout: Of the prompts, while training; masks are drawn for every sample.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        prompts: A parameter (blocks, P, C) for each run of blocks of one width: one for a ViT, one
            a stage for Swin. They start with PyTorch's xavier uniform on the whole tensor.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'parts'})

    def __init__(
        self,
        backbone: nn.Module,
        num_tokens: int = 200,
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(num_tokens, 'adapters.num_tokens')
        self.dropout = check_dropout(dropout, 'adapters.dropout')
        blocks = backbone.block_list()
        # Not as submodules, which would give the backbone's weights a second name. A copy of the
        # backbone has its own layers here: copies of one object within it are one object.
        self.blocks = tuple(blocks)
        self.prompts = nn.ParameterList()
        self.places: list[tuple[int, int]] = []  # of each block: which parameter, which row
        for site in backbone.sites():
            self.places += [(len(self.prompts), row) for row in range(len(site.layers))]
            parameter = nn.Parameter(torch.empty(len(site.layers), num_tokens, site.dims))
            self.prompts.append(nn.init.xavier_uniform_(parameter))

    def after_attention(
        self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout
    ) -> Tensor:
        """See :meth:`Adapter.after_attention`."""
        block = self.blocks[layer]
        index, row = self.places[layer]
        prompts = self.prompts[index][row : row + 1]  # (1, P, C)
        if self.training and self.dropout > 0:
            prompts = F.dropout(prompts.expand(x.shape[0], -1, -1), self.dropout)  # (B, P, C)
        further = (each.expand(x.shape[0], -1, -1, -1) for each in block.keys_values(prompts))
        out = F.scaled_dot_product_attention(block.queries(x), *further)  # (B, heads, n, d)
        return x + F.linear(out.transpose(1, 2).flatten(2), block.proj.weight, block.proj.bias)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'num_tokens={self.prompts[0].shape[1]}, dropout={self.dropout}'
