"""A decoder for frozen encoders: queries and patches in a few transformer blocks."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.logging import MessageHub
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from timm.layers import LayerNorm2d, apply_rot_embed
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number, is_list
from vpt_dense.heads.linear import normalise_tokens
from vpt_dense.heads.query_masks import Weights, losses, of_labels
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


class _Upscale(nn.Module):
    """Twice as high and wide."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dims, dims, 2, 2)
        self.conv2 = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False)
        self.norm = LayerNorm2d(dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


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
class PlainMaskHead(BaseDecodeHead):
    """The decoder of PMT (arXiv 2603.25398), for an encoder that stays as it is.

    Maps of several blocks, each token normalised and then each map by a batch norm, become
    s_l (x_l + MLP_l(x_l)), MLP_l being C to C / 2 and back, s_l a factor a channel. Their sum and
    ``num_queries`` learnt queries go through ``num_blocks`` transformer blocks as DINOv3's, with
    its rotary places for the patches. A query q is a class, Linear(LN q), and a mask: the product
    of MLP(LN q) with the patches, upscaled ``num_upscalings`` times by 2. There is such a
    prediction in front of every block too, and all have the loss of
    :func:`vpt_dense.heads.query_masks.losses`.

    In training a query attends to those patches only that its mask in front of the block has. This
    ends for one block after the other: with the share t of the training behind, a query of block i
    is so bound with probability (1 - (t - start_i) / (end_i - start_i))^0.9, from 1 to 0. In tests
    it never is, as at the end of a training, and no prediction in front of a block is computed: a
    validation early in a training says little. What share is behind is the runner's to say; without
    one, queries stay bound.

    The score of a class is the sum over queries of softmax(class) sigmoid(mask), masks being
    brought to the size of the image; what is handed on is its logarithm, whose softmax is the share
    of a class in the sum.

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
            in_channels=list(in_channels), channels=dims, num_classes=num_classes,
            in_index=list(in_index), input_transform='multiple_select', dropout_ratio=0.0,
            norm_cfg=norm_cfg, ignore_index=ignore_index, align_corners=False, init_cfg=None)
        del self.conv_seg, self.loss_decode
        for key in ('num_heads', 'num_queries', 'num_blocks', 'hidden_dims', 'num_points'):
            check_count(locals()[key], f'decode_head.{key}')
        check_count(num_upscalings, 'decode_head.num_upscalings', 0)
        if num_classes < 2:
            raise ValueError(
                f'decode_head.num_classes must be at least 2, found {num_classes}; foreground is a '
                'class beside the background')
        if dims % (4 * num_heads):
            raise ValueError(
                f'decode_head.num_heads is {num_heads}: it must divide the width {dims}, with a '
                'width of each head that 4 divides')
        self.num_heads, self.num_queries, self.num_points = num_heads, num_queries, num_points
        self.weights = Weights(*(
            check_number(value, f'decode_head.{key}', positive=True) for key, value in dict(
                class_weight=class_weight, mask_weight=mask_weight,
                dice_weight=dice_weight).items()))
        self.no_object = check_number(
            no_object_weight, 'decode_head.no_object_weight', positive=True)
        self.unbind = _ranges(unbind, num_blocks)
        self.bn = nn.ModuleList(build_norm_layer(norm_cfg, dims)[1] for _ in in_channels)
        self.lateral_projections = nn.ModuleList(
            nn.Sequential(nn.Linear(dims, dims // 2), nn.GELU(), nn.Linear(dims // 2, dims))
            for _ in in_channels)
        self.scalers = nn.ParameterList(nn.Parameter(torch.ones(dims)) for _ in in_channels)
        self.q = nn.Embedding(num_queries, dims)
        self.blocks = nn.ModuleList(
            _Block(dims, num_heads, hidden_dims) for _ in range(num_blocks))
        self.decoder_norm = nn.LayerNorm(dims)
        self.upscale = nn.Sequential(*(_Upscale(dims) for _ in range(num_upscalings)))
        self.mask_head = nn.Sequential(
            nn.Linear(dims, dims), nn.GELU(), nn.Linear(dims, dims), nn.GELU(),
            nn.Linear(dims, dims))
        self.class_head = nn.Linear(dims, num_classes + 1)

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
        maps = self.upscale(patches.transpose(1, 2).unflatten(-1, grid))
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_head(queries), maps)
        return masks, self.class_head(queries)

    def _sees(
        self, masks: Tensor, number: int, grid: tuple[int, int], share: float
    ) -> Tensor | None:
        """What each token sees, (B, Q + N, Q + N), bool; None: everything."""
        if share <= 0:
            return None
        inside = F.interpolate(masks.detach().float(), grid, mode='bilinear').flatten(2) > 0
        if share < 1:
            free = torch.rand(inside.shape[:2], device=inside.device) > share
            inside = inside | free[..., None]
        sees = inside.new_ones(len(inside), number, number)
        sees[:, : self.num_queries, self.num_queries :] = inside
        return sees

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logarithms of class scores, (B, num_classes, 2^n h, 2^n w)."""
        return _scores(*self.masks(inputs)[-1])

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict
    ) -> Tensor:
        """Logarithms of class scores at the size of the input, (B, num_classes, H, W)."""
        masks, classes = self.masks(inputs)[-1]
        return _scores(self.predict_by_feat(masks, batch_img_metas), classes)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict) -> dict:
        """The losses of all predictions, those in front of block i as ``b<i>.loss_...``."""
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        targets = of_labels(labels, self.num_classes, self.ignore_index)
        *before, (masks, classes) = self.masks(inputs, self.bound())
        found = {}
        for name, (m, c) in (
                ('', (masks, classes)), *((f'b{i}.', each) for i, each in enumerate(before))):
            parts = losses(c, m, targets, self.weights, self.num_points, no_object=self.no_object)
            found.update({name + key: value for key, value in parts.items()})
        with torch.no_grad():
            scores = _scores(masks, classes)
            small = F.interpolate(labels[:, None].float(), scores.shape[-2:])[:, 0].long()
            found['acc_seg'] = accuracy(scores, small, ignore_index=self.ignore_index)
        return found

    def bound(self) -> list[float]:
        """Of each block the share of queries that is bound now, in the training that runs."""
        hub = MessageHub.get_current_instance()
        done = hub.get_info('iter') if 'iter' in hub.runtime_info else 0
        length = hub.get_info('max_iters') if 'max_iters' in hub.runtime_info else None
        t = done / length if length else 0.0
        return [(1 - min(max((t - start) / (end - start), 0.0), 1.0)) ** 0.9
                for start, end in self.unbind]


def _scores(masks: Tensor, classes: Tensor) -> Tensor:
    """Logarithms of sums over queries of softmax(class) sigmoid(mask), (B, K, H, W)."""
    parts = classes.float().softmax(-1)[..., :-1]
    scores = torch.einsum('bqk,bqhw->bkhw', parts, masks.float().sigmoid())
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _ranges(unbind: Sequence[Sequence[float]] | None, number: int) -> list[tuple[float, float]]:
    """(start, end) of each block."""
    if unbind is None:
        # The authors' 0, 5384, ... and 3000, 8749, ... of 20,190 iterations, for six blocks.
        if number == 1:
            return [(0.0, 0.15)]
        starts = [0.0, *(0.267 + 0.4 * i / max(number - 2, 1) for i in range(number - 1))]
        ends = [0.149, *(0.433 + 0.4 * i / max(number - 2, 1) for i in range(number - 1))]
        return list(zip(starts, ends, strict=True))
    pairs = is_list(unbind) and all(is_list(pair) and len(pair) == 2 for pair in unbind)
    if not pairs or len(unbind) != number or not all(0 <= a < b <= 1 for a, b in unbind):
        raise ValueError(
            f'decode_head.unbind must be a pair (start, end) for each of the {number} blocks, '
            f'0 <= start < end <= 1, found {unbind!r}')
    return [tuple(map(float, pair)) for pair in unbind]
