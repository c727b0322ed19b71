"""Features refined by learnt tokens between the blocks."""

import math

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.argument_checks import check_count, check_number
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout


@register
class Rein(Adapter):
    """Token refinement after every block, from the formulas of Rein (Wei et al., CVPR 2024).

    https://arxiv.org/abs/2312.04265, section 3.2. Behind block i the patch tokens f (n, C) meet m
    learnt tokens T_i = A_i B_i, (m, r) times (r, C):

    S = softmax(f T_i^T / sqrt(C)); the first column of S is left out, which lets a patch choose no
    token; d = S' (W_T T_i' + b_T), without the first token too; f becomes
    f + s (W_f (d + f) + b_f).

    W_T, W_f and their biases are shared by all blocks of a width (all of a ViT, those of a stage of
    a Swin), s by all. Class, register and prompt tokens stay what they are. The paper's other part,
    queries of a Mask2Former made from the tokens, is not here: the heads are the configs'. A block
    whose patches nothing reads (of a ViT the last one if a classifier reads the class token or
    prompts, and those behind the last of ``out_indices``) has no tokens: they would never get a
    gradient, which distributed training refuses.

    Parameters on a ViT: N m r + N r C (full: N m C) + 2 (C^2 + C) + 1, N being the blocks with
    tokens.

    Args:
        num_tokens: m, at least 2.
        rank: r; None: T_i are learnt at full rank.
        scale: Start of s, which trains.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range, or there is no block to refine.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_tokens: int = 100,
        rank: int | None = 16,
        scale: float = 1e-3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(num_tokens, 'adapters.num_tokens', 2)  # the first token adds nothing
        if rank is not None:
            check_count(rank, 'adapters.rank')
        check_number(scale, 'adapters.scale')
        pixels = 3 * math.prod(backbone.sites()[0].patch_size)
        blocks = backbone.read_blocks()
        if not blocks:
            raise ValueError(
                f'adapters: Rein refines patches, but of the {backbone.num_layers} blocks in front '
                f'of out_indices={backbone.out_indices} with out_type={backbone.out_type!r} none '
                'has patches that anything reads; take more blocks or another out_type'
            )
        self.tokens = nn.ModuleList(
            Tokens(num_tokens, block.embed_dims, rank, pixels) for block in blocks
        )
        self.maps = nn.ModuleDict()
        for block in blocks:
            if str(block.embed_dims) not in self.maps:
                self.maps[str(block.embed_dims)] = Maps(block.embed_dims)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def after_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Adapter.after_block`."""
        if layer >= len(self.tokens):
            return x
        patches = layout.patches(x)  # (B, n, C)
        dims = int(x.shape[-1])  # also while torch.jit traces
        tokens = self.tokens[layer]()  # (m, C)
        maps = self.maps[str(dims)]
        weights = (patches @ tokens.T * dims**-0.5).softmax(-1)[..., 1:]  # (B, n, m - 1)
        found = weights.to(patches.dtype) @ maps.token(tokens[1:]).to(patches.dtype)  # (B, n, C)
        patches = patches + (self.scale * maps.feature(found + patches)).to(x.dtype)
        return torch.cat((x[:, : x.shape[1] - patches.shape[1]], patches), dim=1)


class Tokens(nn.Module):
    """m tokens of one block, (m, C), perhaps of low rank."""

    def __init__(self, number: int, dims: int, rank: int | None, pixels: int) -> None:
        super().__init__()
        # VPT's bound; of low rank, the paper's code puts sqrt(C r) in the place of the width.
        bound = math.sqrt(6 / (pixels + (dims if rank is None else math.sqrt(dims * rank))))
        shapes = [(number, dims)] if rank is None else [(number, rank), (rank, dims)]
        self.factors = nn.ParameterList(
            nn.Parameter(torch.empty(shape).uniform_(-bound, bound)) for shape in shapes
        )

    def forward(self) -> Tensor:
        """The tokens."""
        product = self.factors[0]
        for factor in self.factors[1:]:
            product = product @ factor
        return product


class Maps(nn.Module):
    """W_T and W_f with their biases, for blocks of one width."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.token, self.feature = nn.Linear(dims, dims), nn.Linear(dims, dims)
        for linear in (self.token, self.feature):
            nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
