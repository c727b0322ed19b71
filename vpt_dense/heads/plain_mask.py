"""A decoder for frozen encoders: queries and patches in a few transformer blocks."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from timm.layers import apply_rot_embed
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, is_list
from vpt_dense.heads.linear import normalise_tokens
from vpt_dense.heads.query_head import QueryHead
from vpt_dense.registry import MODELS


class _Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(dims))

    def forward(self, x: Tensor) -> Tensor:
        """(..., C)."""
        return x * self.lambda1


class _Attention(nn.Module):
    """Attention of DINOv3: rotary places of the last tokens, no bias of the keys."""

    def __init__(self, dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.v_proj, self.o_proj = (nn.Linear(dims, dims) for _ in range(3))
        self.k_proj = nn.Linear(dims, dims, bias=False)

    def forward(self, x: Tensor, sine: Tensor, cosine: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            x: (B, Q + N, C).
            sine: Of N places, (N, C / heads).
            cosine: Likewise.
            mask: (B, Q + N, Q + N), bool, True: sees; None: all see all.
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj))
        first = x.shape[1] - sine.shape[0]
        q, k = (
            torch.cat((t[:, :, :first], apply_rot_embed(
                t[:, :, first:], sine.to(t.dtype), cosine.to(t.dtype), half=True)), dim=2)
            for t in (q, k))
        mask = None if mask is None else mask[:, None]
        out = F.scaled_dot_product_attention(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(dims, hidden), nn.Linear(hidden, dims)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C)."""
        return self.down_proj(F.gelu(self.up_proj(x)))


class _Block(nn.Module):
    """A transformer block as DINOv3's, with the authors' names."""

    def __init__(self, dims: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.attention = _Attention(dims, num_heads)
        self.layer_scale1, self.layer_scale2 = _Scale(dims), _Scale(dims)
        self.mlp = _MLP(dims, hidden)

    def forward(self, x: Tensor, *further: Tensor | None) -> Tensor:
        """(B, Q + N, C); further arguments are those of the attention."""
        x = x + self.layer_scale1(self.attention(self.norm1(x), *further))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


def rotary_places(grid: tuple[int, int], dims: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sines and cosines of DINOv3's angles for the patches of a grid, (N, d) each, float32.

    Args:
        grid: Rows and columns.
        dims: Width d of a head, divisible by 4.
        device: Where they are.
    """
    rates = 100 ** -torch.arange(0, 1, 4 / dims, device=device)  # (d / 4,)
    rows, columns = (
        2 * (torch.arange(n, device=device) + 0.5) / n - 1 for n in grid)
    y, x = torch.meshgrid(rows, columns, indexing='ij')
    places = torch.stack((y.flatten(), x.flatten()), dim=1)  # (N, 2)
    angles = (2 * math.pi * places[:, :, None] * rates).flatten(1).tile(2)
    return angles.sin(), angles.cos()


@MODELS.register_module()
class PlainMaskHead(QueryHead):
    """The decoder of PMT (arXiv 2603.25398), for an encoder that stays as it is.

    Maps of several blocks, each token normalised and then each map by a batch norm, become
    s_l (x_l + MLP_l(x_l)), MLP_l being C to C / 2 and back, s_l a factor a channel. Their sum and
    ``num_queries`` learnt queries go through ``num_blocks`` transformer blocks as DINOv3's, with
    its rotary places for the patches. What a query finds there, how it is trained and what becomes
    of it says :class:`vpt_dense.heads.query_head.QueryHead`.

    Here are no class or register tokens among the patches, unlike the authors'; their rotary places
    are rescaled at random in training, ours are not.

    Args:
        in_channels: C of each map.
        in_index: Which of the backbone's outputs.
        num_classes: Classes.
        num_heads: Of the attention; C / heads must be divisible by 4.
        norm_cfg: Config of the batch norms.
        num_queries: Q.
        num_blocks: Of the decoder.
        hidden_dims: Of the blocks' MLP.
        num_upscalings: 2 for patches of 16, 1 for smaller ones.
        unbind: (start, end) of each block, shares of the training; None: the authors' for six
            blocks, spread alike over others.
        num_points: See the loss; as many as a mask has pixels do not differ from fewer.
        class_weight: Of the parts of the loss.
        mask_weight: Likewise.
        dice_weight: Likewise.
        no_object_weight: See the loss.
        ignore_index: The label that does not count.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    #: 3,000, 5,384 and 13,460 of 20,190 iterations, and 3,365 of them.
    unbound = (0.149, 0.267, 0.667, 0.166)

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int],
        num_classes: int,
        num_heads: int,
        norm_cfg: dict,
        num_queries: int = 100,
        num_blocks: int = 6,
        hidden_dims: int = 1024,
        num_upscalings: int = 2,
        unbind: Sequence[Sequence[float]] | None = None,
        num_points: int = 12544,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        ignore_index: int = 255,
    ) -> None:
        if not is_list(in_channels) or len(set(in_channels)) != 1:
            raise ValueError(
                'decode_head.in_channels must be a list of one width for each map, found '
                f'{in_channels!r}')
        if not is_list(in_index) or len(in_index) != len(in_channels):
            raise ValueError(
                'decode_head.in_index must be a list with an index for each of in_channels, found '
                f'{in_index!r}')
        dims = in_channels[0]
        super().__init__(
            dims, num_classes, num_queries, num_blocks, num_upscalings, unbind, num_points,
            class_weight, mask_weight, dice_weight, no_object_weight,
            in_channels=list(in_channels), in_index=list(in_index),
            input_transform='multiple_select', norm_cfg=norm_cfg, ignore_index=ignore_index)
        for key in ('num_heads', 'hidden_dims'):
            check_count(locals()[key], f'decode_head.{key}')
        if dims % (4 * num_heads):
            raise ValueError(
                f'decode_head.num_heads is {num_heads}: it must divide the width {dims}, with a '
                'width of each head that 4 divides')
        self.num_heads = num_heads
        self.bn = nn.ModuleList(build_norm_layer(norm_cfg, dims)[1] for _ in in_channels)
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(nn.Linear(dims, dims // 2), nn.GELU(), nn.Linear(dims // 2, dims))
            for _ in in_channels)
        self.scalers = nn.ParameterList(nn.Parameter(torch.ones(dims)) for _ in in_channels)
        self.blocks = nn.ModuleList(
            _Block(dims, num_heads, hidden_dims) for _ in range(num_blocks))
        self.decoder_norm = nn.LayerNorm(dims)

    def predictions(
        self, inputs: Sequence[Tensor], every: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """See :meth:`.QueryHead.predictions`."""
        return self.masks(inputs, self.bound() if every else None)

    def masks(
        self, inputs: Sequence[Tensor], bound: Sequence[float] | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Predictions of all blocks, the last one behind the last block.

        Args:
            inputs: The backbone's outputs, each (B, C, h, w).
            bound: Of each block the share of queries that see their mask alone; None: none do, and
                there is the last prediction alone.

        Returns:
            Logits of the masks (B, Q, 2^n h, 2^n w) and of the classes (B, Q, K + 1).
        """
        maps = self._transform_inputs(inputs)
        grid = tuple(maps[0].shape[-2:])
        patches = 0.0
        for i, x in enumerate(maps):
            x = self.bn[i](normalise_tokens(x)).flatten(2).transpose(1, 2)  # (B, N, C)
            patches = patches + (x + self.lateral_projections[i](x)) * self.scalers[i]
        queries = self.q.weight[None].expand(patches.shape[0], -1, -1)
        x = torch.cat((queries.to(patches.dtype), patches), dim=1)  # (B, Q + N, C)
        places = rotary_places(grid, x.shape[-1] // self.num_heads, x.device)
        found = []
        for i, block in enumerate(self.blocks):
            mask = None
            if bound is not None:
                found.append(self._predict(x, grid))
                mask = self._sees(found[-1][0], x.shape[1], grid, bound[i])
            x = block(x, *places, mask)
        return [*found, self._predict(x, grid)]

    def _predict(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = self.decoder_norm(x)
        queries, patches = x[:, : self.num_queries], x[:, self.num_queries :]
        return self.predict_from(queries, patches.transpose(1, 2).unflatten(-1, grid))

    def _sees(
        self, masks: Tensor, number: int, grid: tuple[int, int], share: float
    ) -> Tensor | None:
        """What each token sees, (B, Q + N, Q + N), bool; None: everything."""
        inside = self.inside(masks, grid, share)
        if inside is None:
            return None
        sees = inside.new_ones(len(inside), number, number)
        sees[:, : self.num_queries, self.num_queries :] = inside
        return sees
