"""Mask2Former as a decode head of mmseg's models: classes by queries, with a pixel decoder."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from vpt_dense.errors import UserError
from vpt_dense.heads.query_head import scores_of
from vpt_dense.heads.query_masks import of_labels
from vpt_dense.registry import MODELS

try:
    from mmdet.models.dense_heads import Mask2FormerHead as _Mask2FormerHead
except ModuleNotFoundError as error:
    raise UserError("vpt_dense.Mask2FormerHead needs mmdet, which is not installed: pip install "
                    "'vpt-dense[detection]' (docs/panoptic.md)") from error


@MODELS.register_module()
class Mask2FormerHead(_Mask2FormerHead):
    """Mask2Former (Cheng et al., CVPR 2022, https://arxiv.org/abs/2112.01527), semantic.

    mmdet's head with mmseg's of this name around it: what an image shows of a class is one target,
    and pixels without a label are in none. The score of a class is the sum over queries of
    softmax(class) sigmoid(mask); what is handed on is its logarithm, as of
    :class:`vpt_dense.heads.query_head.QueryHead`, so that its softmax is the share of a class.
    mmseg's own cannot be used where mmseg was imported before mmdet.

    Args:
        num_classes: Classes.
        ignore_index: The label that does not count.
        no_object_weight: Of 'nothing' in the loss of classes; classes weigh 1.
        loss_cls: As in mmdet's head, without ``class_weight``.
        align_corners: Must be False.
        **kwargs: As in mmdet's head; ``train_cfg`` too.

    Raises:
        ValueError: If ``align_corners`` is True, or ``loss_cls`` has weights.
    """

    def __init__(
        self, num_classes: int, loss_cls: dict, ignore_index: int = 255,
        no_object_weight: float = 0.1, align_corners: bool = False, **kwargs: Any,
    ) -> None:
        if align_corners:
            raise ValueError('decode_head.align_corners: Mask2FormerHead aligns no corners')
        if loss_cls.get('class_weight') is not None:
            raise ValueError('decode_head.loss_cls.class_weight follows num_classes and '
                             'no_object_weight; leave it out')
        weights = [1.0] * num_classes + [no_object_weight]
        super().__init__(
            num_things_classes=num_classes, num_stuff_classes=0,
            loss_cls=type(loss_cls)(loss_cls, class_weight=weights), **kwargs)
        self.ignore_index, self.align_corners = ignore_index, False
        self.out_channels = num_classes

    def loss(
        self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: dict | None = None
    ) -> dict[str, Tensor]:
        """The losses of mmdet's head, of the last layer and, as ``d<i>.loss_...``, those before."""
        labels = torch.stack([each.gt_sem_seg.data[0] for each in batch_data_samples])
        targets = [InstanceData(labels=each.classes, masks=each.masks.long())
                   for each in of_labels(labels, self.num_classes, self.ignore_index)]
        scores, masks = super().forward(inputs, batch_data_samples)
        return self.loss_by_feat(
            scores, masks, targets, [each.metainfo for each in batch_data_samples])

    def forward(self, inputs: Sequence[Tensor], samples: Any = None) -> Tensor:
        """Logarithms of class scores, (B, num_classes, h, w)."""
        scores, masks = super().forward(inputs, samples or [])
        return scores_of(masks[-1], scores[-1])

    def predict(
        self, inputs: Sequence[Tensor], batch_img_metas: list[dict], test_cfg: dict
    ) -> Tensor:
        """Logarithms of class scores at the size of the input, (B, num_classes, H, W)."""
        scores, masks = super().forward(inputs, [])
        meta = batch_img_metas[0]
        size = meta.get('pad_shape', meta['img_shape'])[:2]
        return scores_of(
            F.interpolate(masks[-1], size, mode='bilinear', align_corners=False), scores[-1])
