"""A head that aggregates the cosines of patches and texts, after CAT-Seg."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.registry import MODELS
from vpt_dense.vision_language.class_texts import ClassTexts, refuse_others, whole


class WindowAggregation(nn.Module):
    """Attention within windows of the map of each class; what guides is a part of queries and keys.

    Args:
        dims: Width C.
        guide_dims: Width G of the guidance.
        num_heads: Attention heads.
        window: Side of a window, in places.
        shift: How far the windows are moved.
    """

    def __init__(
        self, dims: int, guide_dims: int, num_heads: int, window: int, shift: int
    ) -> None:
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.queries, self.keys = (nn.Linear(dims + guide_dims, dims) for _ in range(2))
        self.values, self.proj = nn.Linear(dims, dims), nn.Linear(dims, dims)
        self.mlp = nn.Sequential(nn.Linear(dims, 4 * dims), nn.GELU(), nn.Linear(4 * dims, dims))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Compute a block.

        Args:
            x: (N, h, w, C).
            guide: (N, h, w, G).

        Returns:
            (N, h, w, C).
        """
        height, width = x.shape[1:3]
        normed = self.norm1(x)
        both = torch.cat((normed, guide), dim=-1)
        q, k, v = (
            self._windows(each).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for each in (self.queries(both), self.keys(both), self.values(normed)))
        out = F.scaled_dot_product_attention(q, k, v, self._mask(height, width, x.device))
        out = self._places(out.transpose(-3, -2).flatten(-2), height, width)
        x = x + self.proj(out)
        return x + self.mlp(self.norm2(x))

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        return -height % self.window, -width % self.window

    def _windows(self, x: Tensor) -> Tensor:
        """(N, h, w, C) -> (N, windows, window^2, C); zeros fill the last ones."""
        below, right = self._padding(*x.shape[1:3])
        x = F.pad(x, (0, 0, 0, right, 0, below))
        x = x.roll((-self.shift, -self.shift), (1, 2))
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def _places(self, x: Tensor, height: int, width: int) -> Tensor:
        """The reverse."""
        below, right = self._padding(height, width)
        columns = (width + right) // self.window
        x = x.unflatten(1, (-1, columns)).unflatten(3, (self.window, -1)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2).roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]

    def _mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """Which places see each other, (windows, 1, window^2, window^2): neighbours in the map."""
        below, right = self._padding(height, width)
        sides = []
        for length, more in ((height, below), (width, right)):
            places = torch.arange(length + more, device=device)
            # What rolls over the border is a part of its own, and so is padding.
            part = torch.where(places < self.shift, 1, 0)
            sides.append(torch.where(places < length, part, 2))
        parts = 3 * sides[0][:, None] + sides[1]
        parts = self._windows(parts[None, ..., None].float())[0, :, :, 0]
        return (parts[:, :, None] == parts[:, None, :])[:, None]


class ClassAggregation(nn.Module):
    """Linear attention among the classes of each place; their texts guide it.

    A. Katharopoulos et al., ICML 2020, https://arxiv.org/abs/2006.16236, equation 5, with
    phi(x) = elu(x) + 1, and 1e-6 added to what it divides by: phi of numbers below -17 is 0.

    Args:
        dims: Width C.
        guide_dims: Width G of the guidance.
        num_heads: Attention heads.
    """

    def __init__(self, dims: int, guide_dims: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.queries, self.keys = (nn.Linear(dims + guide_dims, dims) for _ in range(2))
        self.values, self.proj = nn.Linear(dims, dims), nn.Linear(dims, dims)
        self.mlp = nn.Sequential(nn.Linear(dims, 4 * dims), nn.ReLU(), nn.Linear(4 * dims, dims))

    def forward(self, x: Tensor, guide: Tensor) -> Tensor:
        """Compute a block.

        Args:
            x: (N, K, C), the classes of N places.
            guide: (K, G).

        Returns:
            (N, K, C).
        """
        normed = self.norm1(x)
        both = torch.cat((normed, guide.expand(len(x), -1, -1)), dim=-1)
        q, k, v = (
            each.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for each in (self.queries(both), self.keys(both), self.values(normed)))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        share = 1 / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-6)  # (N, heads, K, 1)
        out = (q @ (k.transpose(-2, -1) @ v)) * share
        x = x + self.proj(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Upsampling(nn.Module):
    """Doubles the map of each class, with what an earlier block of the backbone sees.

    Args:
        dims: Width that comes in.
        out_dims: Width that goes out.
        guide_channels: Of the block's map.
        factor: How much larger than that map the result is.
    """

    def __init__(self, dims: int, out_dims: int, guide_channels: int, factor: int) -> None:
        super().__init__()
        own = max(out_dims // 2, 1)
        self.guide = nn.Sequential(
            nn.ConvTranspose2d(guide_channels, own, factor, factor),
            nn.Conv2d(own, own, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(dims, dims - own, 2, 2)
        groups = max(out_dims // 16, 1)
        self.convs = nn.Sequential(*(
            layer for width in (dims, out_dims) for layer in (
                nn.Conv2d(width, out_dims, 3, padding=1, bias=False),
                nn.GroupNorm(groups, out_dims), nn.ReLU())))

    def forward(self, x: Tensor, guide: Tensor, classes: int) -> Tensor:
        """(B K, C, h, w) and (B, G, h', w') -> (B K, C', 2 h, 2 w)."""
        guide = self.guide(guide).repeat_interleave(classes, 0)
        return self.convs(torch.cat((self.up(x), guide), dim=1))


@MODELS.register_module()
class CostHead(ClassTexts, BaseDecodeHead):
    """Segments by aggregating the cosines of every patch and text, after CAT-Seg.

    S. Cho et al., CVPR 2024, https://arxiv.org/abs/2303.11797, section 3: the cost volume
    cos(patch, text of class and template) goes through a convolution, and then through
    ``num_layers`` pairs of :class:`WindowAggregation` (a window, and shifted ones) of the map of
    each class, guided by the patches' embeddings, and :class:`ClassAggregation` of the classes of
    each place, guided by the texts. Two :class:`Upsampling` with maps of earlier blocks lead to
    four times the resolution, a convolution to one logit a class. The loss is the binary
    cross-entropy of every pixel and class; scores are as in :class:`.ZegCLIPHead`. Sizes are the
    authors'; it was not compared with their code.

    It reads ``out_type='embeddings'`` of a :class:`.CLIPVisionTransformer` with two blocks in
    ``out_indices`` before the last ([3, 7, 11]), and ``dense_from='values'``, the authors' way.

    Args:
        in_channels: Width D of the embeddings.
        guide_channels: Width of the backbone's blocks.
        num_classes: Classes of the data.
        text: Config of the text tower, see :class:`.TextHead`.
        classes: Names, see there.
        templates: See there; each is a channel of the cost volume.
        hidden_dims: Width in the aggregation.
        guide_dims: Width of what guides it.
        num_layers: Pairs of aggregations.
        num_heads: Attention heads.
        window: Side of a window, in patches.
        ignore_index: As in mmseg.
        **kwargs: As in :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`, without
            ``channels``, ``in_index`` and losses.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        guide_channels: int,
        num_classes: int,
        text: dict,
        classes: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        hidden_dims: int = 128,
        guide_dims: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        window: int = 12,
        **kwargs,
    ) -> None:
        refuse_others(self, kwargs)
        super().__init__(
            in_channels=in_channels, channels=in_channels, num_classes=num_classes, in_index=-2,
            dropout_ratio=0, **{'align_corners': False, 'init_cfg': None, **kwargs})
        del self.conv_seg
        for key in ('guide_channels', 'hidden_dims', 'guide_dims', 'num_layers', 'num_heads'):
            check_count(locals()[key], f'decode_head.{key}')
        check_count(window, 'decode_head.window', 2)
        if hidden_dims % max(4, num_heads):
            raise ValueError(
                f'decode_head.hidden_dims is {hidden_dims}; a multiple of 4 and of num_heads '
                f'{num_heads} is needed')
        self.hold_texts(text, classes, num_classes, templates, 'decode_head', each_template=True)
        width = text.get('project_dims', 512)
        if width != in_channels:
            raise ValueError(
                f'decode_head.text.project_dims is {width}, decode_head.in_channels is '
                f'{in_channels}: patches and texts are compared in one space')
        self.embed = nn.Conv2d(len(self.templates), hidden_dims, 7, padding=3)
        self.image_guide = nn.Sequential(
            nn.Conv2d(in_channels, guide_dims, 3, padding=1), nn.ReLU())
        self.text_guide = nn.Sequential(nn.Linear(in_channels, guide_dims), nn.ReLU())
        sizes = hidden_dims, guide_dims, num_heads
        self.spatial = nn.ModuleList(
            nn.ModuleList(WindowAggregation(*sizes, window, shift) for shift in (0, window // 2))
            for _ in range(num_layers))
        self.among = nn.ModuleList(ClassAggregation(*sizes) for _ in range(num_layers))
        half, quarter = hidden_dims // 2, hidden_dims // 4
        self.guide_channels = guide_channels
        self.up1 = Upsampling(hidden_dims, half, guide_channels, 2)
        self.up2 = Upsampling(half, quarter, guide_channels, 4)
        self.classify = nn.Conv2d(quarter, 1, 3, padding=1)

    def check_widths(self, maps: Sequence[int], width: int) -> None:
        """See :meth:`.ClassTexts.check_widths`."""
        super().check_widths(maps, width)
        if len(maps) != 2:
            raise ValueError(
                'decode_head: CostHead reads maps of two blocks before the last; set '
                f'model.backbone.out_indices to three blocks, found {len(maps) + 1}')
        if set(maps) != {self.guide_channels}:
            raise ValueError(
                f'model.decode_head.guide_channels is {self.guide_channels}, the blocks of '
                f'model.backbone have the width {maps[0]}')

    def set_classes(self, classes: Sequence[str], checkpoint: str | None = None) -> None:
        """See :meth:`.ClassTexts.set_classes`."""
        super().set_classes(classes, checkpoint)
        self.out_channels = len(classes)

    def costs(self, maps: Tensor, texts: Tensor) -> Tensor:
        """Cosines of patches (B, D, h, w) with texts (K, T, D): (B, K, T, h, w)."""
        return torch.einsum('bdhw,ktd->bkthw', F.normalize(maps, dim=1), texts.to(maps.dtype))

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn maps of two blocks, embeddings of patches and image into logits.

        Args:
            inputs: (B, G, h, w) twice, the earlier block first; (B, D, h, w); (B, D), not read.

        Returns:
            (B, classes, 4 h, 4 w).
        """
        early, late, maps, _ = inputs
        texts = self.embeddings()  # (K, T, D)
        count = len(texts)
        x = self.embed(self.costs(maps, texts).flatten(0, 1))  # (B K, C, h, w)
        guide = self.image_guide(maps).permute(0, 2, 3, 1).repeat_interleave(count, 0)
        words = self.text_guide(F.normalize(texts.mean(1), dim=-1).to(x.dtype))  # (K, G)
        x = x.permute(0, 2, 3, 1)  # (B K, h, w, C)
        for spatial, among in zip(self.spatial, self.among, strict=True):
            for block in spatial:
                x = block(x, guide)
            own = x.unflatten(0, (-1, count)).permute(0, 2, 3, 1, 4)  # (B, h, w, K, C)
            own = among(own.flatten(0, 2), words).unflatten(0, own.shape[:3])
            x = own.permute(0, 3, 1, 2, 4).flatten(0, 1)
        x = x.permute(0, 3, 1, 2)
        x = self.up2(self.up1(x, late, count), early, count)
        return self.classify(x).squeeze(1).unflatten(0, (-1, count))

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Logits at the size of the input become logarithms of sigmoids, (B, classes, H, W)."""
        return F.logsigmoid(whole(super().predict_by_feat(seg_logits, batch_img_metas)))

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """The binary cross-entropy, a mean over classes and pixels that count."""
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        logits = resize(
            whole(seg_logits), labels.shape[1:], mode='bilinear', align_corners=self.align_corners)
        valid = labels != self.ignore_index
        target = labels.masked_fill(~valid, -1)  # a label that is no class is an error below
        truth = F.one_hot(target.masked_fill(~valid, 0), logits.shape[1])
        truth = truth.movedim(-1, 1).to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction='none')
        number = valid.sum().clamp(min=1) * logits.shape[1]
        return dict(
            loss_bce=(entropy * valid[:, None]).sum() / number,
            acc_seg=accuracy(logits, target, ignore_index=-1))
