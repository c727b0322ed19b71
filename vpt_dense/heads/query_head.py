"""What heads of queries share: a class and a mask of each, and their losses."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.logging import MessageHub
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number, is_list
from vpt_dense.heads.query_masks import Weights, losses, of_labels


class Upscale(nn.Module):
    """Twice as high and wide.

    Args:
        dims: C.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dims, dims, 2, 2)
        self.conv2 = nn.Conv2d(dims, dims, 3, padding=1, groups=dims, bias=False)
        self.norm = LayerNorm2d(dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2 h, 2 w)."""
        return self.norm(self.conv2(F.gelu(self.conv1(x))))


class QueryHead(BaseDecodeHead):
    """The base of heads whose queries go through transformer blocks together with the patches.

    A query q is a class, Linear(q), and a mask: the product of MLP(q) with the patches, upscaled
    ``num_upscalings`` times by 2. There is such a prediction in front of every block too, and all
    have the loss of :func:`vpt_dense.heads.query_masks.losses`.

    In training a query attends to those patches only that its mask in front of the block has. This
    ends for one block after the other: with the share t of the training behind, a query of block i
    is so bound with probability (1 - (t - start_i) / (end_i - start_i))^0.9, from 1 to 0. In tests
    it never is, as at the end of a training, and no prediction in front of a block is computed: a
    validation early in a training says little. What share is behind is the runner's to say; without
    one, queries stay bound.

    The score of a class is the sum over queries of softmax(class) sigmoid(mask), masks being
    brought to the size of the image; what is handed on is its logarithm, whose softmax is the share
    of a class in the sum.

    Args:
        dims: C.
        num_classes: Classes.
        num_queries: Q.
        num_blocks: Blocks that queries go through.
        num_upscalings: 2 for patches of 16, 1 for smaller ones.
        unbind: (start, end) of each block, shares of the training; None: the authors'
            (:attr:`unbound`), spread alike over other numbers of blocks.
        num_points: See the loss; as many as a mask has pixels do not differ from fewer.
        class_weight: Of the parts of the loss.
        mask_weight: Likewise.
        dice_weight: Likewise.
        no_object_weight: See the loss.
        **kwargs: As in mmseg's head.

    Attributes:
        unbound: When the authors unbind the queries of their blocks, shares of the training: the
            end of the first block, whose start is 0; the starts of the second and the last one; how
            long each but the first takes.
        least_classes: The least number of classes.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    unbound: ClassVar[tuple[float, float, float, float]]
    least_classes = 2

    def __init__(
        self,
        dims: int,
        num_classes: int,
        num_queries: int,
        num_blocks: int,
        num_upscalings: int,
        unbind: Sequence[Sequence[float]] | None,
        num_points: int,
        class_weight: float,
        mask_weight: float,
        dice_weight: float,
        no_object_weight: float,
        **kwargs,
    ) -> None:
        super().__init__(
            channels=dims, num_classes=num_classes, dropout_ratio=0.0, align_corners=False,
            **{'init_cfg': None, **kwargs})
        del self.conv_seg, self.loss_decode
        for key in ('num_queries', 'num_blocks', 'num_points'):
            check_count(locals()[key], f'decode_head.{key}')
        check_count(num_upscalings, 'decode_head.num_upscalings', 0)
        if num_classes < self.least_classes:
            raise ValueError(
                f'decode_head.num_classes must be at least 2, found {num_classes}; foreground is a '
                'class beside the background')
        self.num_queries, self.num_blocks, self.num_points = num_queries, num_blocks, num_points
        self.weights = Weights(*(
            check_number(value, f'decode_head.{key}', positive=True) for key, value in dict(
                class_weight=class_weight, mask_weight=mask_weight,
                dice_weight=dice_weight).items()))
        self.no_object = check_number(
            no_object_weight, 'decode_head.no_object_weight', positive=True)
        self.unbind = _ranges(unbind, num_blocks, *self.unbound)
        self.q = nn.Embedding(num_queries, dims)
        self.upscale = nn.Sequential(*(Upscale(dims) for _ in range(num_upscalings)))
        self.mask_head = nn.Sequential(
            nn.Linear(dims, dims), nn.GELU(), nn.Linear(dims, dims), nn.GELU(),
            nn.Linear(dims, dims))
        self.class_head = nn.Linear(dims, num_classes + 1)

    @abstractmethod
    def predictions(
        self, inputs: Sequence[Tensor], every: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """Predictions, the one behind the last block last.

        Args:
            inputs: The backbone's outputs.
            every: Whether those in front of the blocks are wanted too.

        Returns:
            Logits of the masks (B, Q, 2^n h, 2^n w) and of the classes (B, Q, K + 1).
        """

    def predict_from(self, queries: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """One prediction of normalised queries (B, Q, C) and patches (B, C, h, w)."""
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_head(queries), self.upscale(maps))
        return masks, self.class_head(queries)

    def inside(self, masks: Tensor, grid: tuple[int, int], share: float) -> Tensor | None:
        """Which patches each query sees, (B, Q, N), bool; None: all.

        Args:
            masks: Logits, (B, Q, H, W).
            grid: Rows and columns of the patches.
            share: Of the queries that see their mask alone.
        """
        if share <= 0:
            return None
        inside = F.interpolate(masks.detach().float(), grid, mode='bilinear').flatten(2) > 0
        if share < 1:
            free = torch.rand(inside.shape[:2], device=inside.device) > share
            inside = inside | free[..., None]
        return inside

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logarithms of class scores, (B, num_classes, 2^n h, 2^n w)."""
        return scores_of(*self.predictions(inputs)[-1])

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict
    ) -> Tensor:
        """Logarithms of class scores at the size of the input, (B, num_classes, H, W)."""
        masks, classes = self.predictions(inputs)[-1]
        return scores_of(self.predict_by_feat(masks, batch_img_metas), classes)

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict) -> dict:
        """The losses of all predictions, those in front of block i as ``b<i>.loss_...``."""
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        targets = of_labels(labels, self.num_classes, self.ignore_index)
        *before, (masks, classes) = self.predictions(inputs, every=True)
        found = {}
        for name, (m, c) in (
                ('', (masks, classes)), *((f'b{i}.', each) for i, each in enumerate(before))):
            parts = losses(c, m, targets, self.weights, self.num_points, no_object=self.no_object)
            found.update({name + key: value for key, value in parts.items()})
        with torch.no_grad():
            scores = scores_of(masks, classes)
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


def scores_of(masks: Tensor, classes: Tensor) -> Tensor:
    """Logarithms of sums over queries of softmax(class) sigmoid(mask), (B, K, H, W)."""
    parts = classes.float().softmax(-1)[..., :-1]
    scores = torch.einsum('bqk,bqhw->bkhw', parts, masks.float().sigmoid())
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def _ranges(
    unbind: Sequence[Sequence[float]] | None, number: int, first: float, second: float,
    last: float, width: float,
) -> list[tuple[float, float]]:  # fmt: skip
    """(start, end) of each block."""
    if unbind is None:
        steps = max(number - 2, 1)
        starts = [second + (last - second) * i / steps for i in range(number - 1)]
        return [(0.0, first), *((start, start + width) for start in starts)]
    pairs = is_list(unbind) and all(is_list(pair) and len(pair) == 2 for pair in unbind)
    if not pairs or len(unbind) != number or not all(0 <= a < b <= 1 for a, b in unbind):
        raise ValueError(
            f'decode_head.unbind must be a pair (start, end) for each of the {number} blocks, '
            f'0 <= start < end <= 1, found {unbind!r}')
    return [tuple(map(float, pair)) for pair in unbind]
