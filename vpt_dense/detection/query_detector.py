"""Instances and panoptic maps by queries without a pixel decoder: EoMT and PMT's in mmdet."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from mmdet.models.detectors import Mask2Former
from mmdet.models.utils import preprocess_panoptic_gt
from torch import Tensor

from vpt_dense.heads.eomt import EoMTHead
from vpt_dense.heads.plain_mask import PlainMaskHead
from vpt_dense.heads.query_head import QueryHead
from vpt_dense.heads.query_masks import Target, losses
from vpt_dense.registry import MODELS


class _Segments(QueryHead):
    """Losses and predictions of things and stuff, as mmdet's ``Mask2FormerHead`` has them.

    Each thing is a target, and what an image shows of a class of stuff is one. Crowds and pixels of
    no segment have none.

    Args:
        num_things_classes: Classes of things, the first ones; mmdet's name, which follows the data.
        num_stuff_classes: Of stuff.
        train_cfg: mmdet's, of which nothing is read; must be empty.
        test_cfg: mmdet's, which the fusion head reads.
        **kwargs: As in the head for semantic segmentation.
    """

    least_classes = 1

    def __init__(
        self,
        num_things_classes: int,
        num_stuff_classes: int = 0,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        if train_cfg:
            raise ValueError(
                f'train_cfg: {type(self).__name__} reads nothing of it, found {sorted(train_cfg)}; '
                'points and weights of the loss are arguments of panoptic_head')
        super().__init__(num_classes=num_things_classes + num_stuff_classes, **kwargs)
        self.num_things_classes, self.num_stuff_classes = num_things_classes, num_stuff_classes

    def forward(
        self, inputs: Sequence[Tensor], samples: list | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Classes (B, Q, K + 1) and masks (B, Q, h, w), logits, of all predictions there are."""
        masks, classes = zip(*self.predictions(inputs), strict=True)
        return list(classes), list(masks)

    def loss(self, inputs: Sequence[Tensor], samples: list) -> dict[str, Tensor]:
        """The losses of all predictions, those in front of block i as ``b<i>.loss_...``."""
        targets = []
        for sample in samples:
            truth = sample.gt_instances
            semantic = sample.gt_sem_seg.sem_seg if self.num_stuff_classes else None
            labels, masks = preprocess_panoptic_gt(
                truth.labels, truth.masks, semantic, self.num_things_classes,
                self.num_stuff_classes)
            targets.append(Target(labels, masks.float()))
        *before, last = self.predictions(inputs, every=True)
        found = {}
        for name, (masks, classes) in (
                ('', last), *((f'b{i}.', each) for i, each in enumerate(before))):
            parts = losses(
                classes, masks, targets, self.weights, self.num_points, no_object=self.no_object)
            found.update({name + key: value for key, value in parts.items()})
        return found

    def predict(self, inputs: Sequence[Tensor], samples: list) -> tuple[Tensor, Tensor]:
        """Classes (B, Q, K + 1) and masks (B, Q, H, W) at the size of the batch, logits."""
        masks, classes = self.predictions(inputs)[-1]
        size = samples[0].metainfo['batch_input_shape']
        return classes, F.interpolate(masks, size, mode='bilinear', align_corners=False)


class _Instances(_Segments):
    """Of things alone."""

    def __init__(self, num_things_classes: int, num_stuff_classes: int = 0, **kwargs) -> None:
        if num_stuff_classes:
            raise ValueError(
                f'panoptic_head.num_stuff_classes is {num_stuff_classes}: instances are of things '
                'alone; set it to 0')
        super().__init__(num_things_classes, **kwargs)


@MODELS.register_module()
class EoMTInstanceHead(_Instances, EoMTHead):
    """:class:`vpt_dense.heads.EoMTHead` for instances; the detector is :class:`QueryDetector`."""


@MODELS.register_module()
class EoMTPanopticHead(_Segments, EoMTHead):
    """:class:`vpt_dense.heads.EoMTHead` for things and stuff, in :class:`QueryDetector`."""


@MODELS.register_module()
class PlainMaskPanopticHead(_Segments, PlainMaskHead):
    """:class:`vpt_dense.heads.PlainMaskHead` for things and stuff, in :class:`QueryDetector`."""


@MODELS.register_module()
class PlainMaskInstanceHead(_Instances, PlainMaskHead):
    """:class:`vpt_dense.heads.PlainMaskHead` for instances, in :class:`QueryDetector`."""


@MODELS.register_module()
class QueryDetector(Mask2Former):
    """mmdet's ``Mask2Former`` on the maps of a vision transformer: no neck, no pixel decoder.

    What becomes of classes and masks in tests is mmdet's ``MaskFormerFusionHead``: of all pairs of
    a query and a class the best ``max_per_image``, scored by the class times the mean of the mask
    within itself (Cheng et al., https://arxiv.org/abs/2112.01527, appendix). Of a panoptic map
    (``test_cfg.panoptic_on``) a pixel goes to the query whose class times mask is largest, of those
    above ``object_mask_thr``; queries that keep less than ``iou_thr`` of their mask are left out.

    Args:
        **kwargs: As in mmdet's ``Mask2Former``; ``panoptic_head`` is one of this module.

    Raises:
        ValueError: If the backbone does not fit the head, or there is a neck.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.with_neck:
            raise ValueError('neck: QueryDetector reads the maps of the backbone; leave it out')
        test = self.test_cfg or {}
        found = test.get('max_per_image', 100)
        pairs = self.panoptic_head.num_queries * self.panoptic_head.num_classes
        if test.get('instance_on') and found > pairs:
            raise ValueError(
                f'test_cfg.max_per_image is {found}, but queries and classes make {pairs} pairs; '
                'set it to that or less')
        if isinstance(self.panoptic_head, EoMTHead):
            invite = getattr(self.backbone, 'invite', None)
            if invite is None:
                raise ValueError(
                    f'panoptic_head: {type(self.panoptic_head).__name__} needs a vision '
                    'transformer of vpt_dense as the backbone')
            invite(self.panoptic_head)
