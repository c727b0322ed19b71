"""SETR's decode heads (S. Zheng et al., CVPR 2021, https://arxiv.org/abs/2012.15840), faster.

A 1x1 convolution and bilinear upsampling commute: the weights of each upsampled pixel sum to one,
so its class scores, bias included, are the same mixture of its neighbours' class scores. Dropping
whole channels commutes as well. Classifying first leaves 150 channels to upsample (ADE20K) instead
of 256, and a classifier at a fourth or a sixteenth of the pixels.
"""

from abc import ABCMeta, abstractmethod

import torch
from mmseg.models import decode_heads
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import CrossEntropyLoss, accuracy
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from mmseg.models.utils import Upsample, resize
from torch import Tensor, nn

from vpt_dense.heads.losses import upsampled_cross_entropy
from vpt_dense.overrides import are_of
from vpt_dense.registry import MODELS


class ClassifyFirst(metaclass=ABCMeta):
    """What both heads do otherwise than mmseg's.

    A loss that is one plain ``CrossEntropyLoss`` is computed from the scores before their last
    upsampling, see :func:`vpt_dense.heads.losses.upsampled_cross_entropy`. With class weights, a
    sampler or other losses the upsampled scores are handed on as in mmseg.

    A subclass with a ``forward``, ``cls_seg`` or ``loss_by_feat`` of its own gets them called where
    mmseg calls them: what they replace is computed mmseg's way.

    Args:
        log_accuracy (bool): Report `acc_seg`, the pixel accuracy of every training batch in per
            cent, as mmseg does. It costs a look at all logits.
        **kwargs: As in mmseg.
    """

    def __init__(self, log_accuracy: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.log_accuracy = log_accuracy

    @abstractmethod
    def small_scores(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn feature maps, each (B, C, h, w), into class scores that are not upsampled yet."""

    @abstractmethod
    def last_upsampling(self) -> Upsample:
        """Return the module that upsamples these scores."""

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn feature maps, each (B, C, h, w), into class scores (B, num_classes, H, W)."""
        if not self.upsamples_last():
            return super().forward(inputs)  # mmseg's
        return self.last_upsampling()(self.small_scores(inputs))

    def upsamples_last(self) -> bool:
        """Whether the scores are :meth:`small_scores`, upsampled."""
        linear = (
            type(self.conv_seg) is nn.Conv2d and self.conv_seg.kernel_size == (1, 1)
            and (self.dropout is None or type(self.dropout) is nn.Dropout2d)
        )
        return (
            linear and are_of(ClassifyFirst, self, 'forward')
            and are_of(BaseDecodeHead, self, 'cls_seg')
        )

    def loss(self, inputs: tuple[Tensor, ...], batch_data_samples: list, train_cfg: dict) -> dict:
        """Compute the losses, see :meth:`loss_by_feat`.

        Args:
            inputs: Feature maps, each (B, C, h, w).
            batch_data_samples: With labels `gt_sem_seg.data`, (1, H, W), integers.
            train_cfg: Not used.
        """
        plain = self._plain_cross_entropy()
        ours = self.upsamples_last() and are_of(ClassifyFirst, self, 'loss_by_feat')
        if plain is None or not ours:
            return super().loss(inputs, batch_data_samples, train_cfg)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        scores, upsampling = self.small_scores(inputs), self.last_upsampling()
        upsampled = tuple(int(length * upsampling.scale_factor) for length in scores.shape[2:])
        if upsampled != tuple(labels.shape[1:]):  # two steps are not one
            scores = upsampling(scores)
        loss, correct = upsampled_cross_entropy(
            scores, labels, self.align_corners, self.ignore_index, plain.avg_non_ignore,
            count_correct=self.log_accuracy)
        losses = {plain.loss_name: loss * plain.loss_weight}
        if self.log_accuracy:
            eps = torch.finfo(torch.float32).eps
            valid = (labels != self.ignore_index).sum()
            losses['acc_seg'] = ((correct + eps) * 100 / (valid + eps)).reshape(1)
        return losses

    def _plain_cross_entropy(self) -> CrossEntropyLoss | None:
        """The only loss of this head, if it is a cross entropy without weights."""
        found = self.loss_decode
        if isinstance(found, nn.ModuleList) and len(found) == 1:
            found = found[0]
        plain = (
            type(found) is CrossEntropyLoss
            and found.cls_criterion is cross_entropy
            and found.class_weight is None
            and found.reduction == 'mean'
            and self.sampler is None
        )
        return found if plain else None

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            seg_logits: Class scores, (B, num_classes, h, w).
            batch_data_samples: With labels `gt_sem_seg.data`, (1, H, W), integers.

        Returns:
            The losses under their names, and `acc_seg` if it is to be logged.
        """
        labels = self._stack_batch_gt(batch_data_samples)  # (B, 1, H, W)
        if seg_logits.shape[2:] != labels.shape[2:]:
            seg_logits = resize(
                seg_logits, labels.shape[2:], mode='bilinear', align_corners=self.align_corners
            )
        weight = None if self.sampler is None else self.sampler.sample(seg_logits, labels)
        labels = labels.squeeze(1)
        losses: dict[str, Tensor] = {}
        is_list = isinstance(self.loss_decode, nn.ModuleList)
        for loss in self.loss_decode if is_list else [self.loss_decode]:
            if self.out_channels == 1 and (labels == self.ignore_index).all():
                value = 0 * seg_logits.sum()  # mmseg's looks for the largest label
            else:
                value = loss(seg_logits, labels, weight=weight, ignore_index=self.ignore_index)
            losses[loss.loss_name] = losses.get(loss.loss_name, 0) + value
        if self.log_accuracy:
            scores = seg_logits.detach()
            if self.out_channels == 1:  # as it predicts: 1 where the sigmoid is above the threshold
                foreground = scores.sigmoid() > self.threshold
                scores = torch.cat((~foreground, foreground), dim=1).to(scores)
            losses['acc_seg'] = accuracy(scores, labels, ignore_index=self.ignore_index)
        return losses


@MODELS.register_module()
class SETRUPHead(ClassifyFirst, decode_heads.SETRUPHead):
    """mmseg's head of SETR-PUP and SETR-Naive: the same parameters, names and results.

    Args:
        log_accuracy (bool): See :class:`ClassifyFirst`. Default: True.
        **kwargs: As in :class:`mmseg.models.SETRUPHead`.
    """

    def small_scores(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`ClassifyFirst.small_scores`."""
        x = self._transform_inputs(inputs)
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()
        for up_conv in self.up_convs[:-1]:
            x = up_conv(x)
        return self.cls_seg(self.up_convs[-1][0](x))

    def last_upsampling(self) -> Upsample:
        """See :meth:`ClassifyFirst.last_upsampling`."""
        return self.up_convs[-1][1]


@MODELS.register_module()
class SETRMLAHead(ClassifyFirst, decode_heads.SETRMLAHead):
    """mmseg's head of SETR-MLA: the same parameters, names and results.

    Args:
        log_accuracy (bool): See :class:`ClassifyFirst`. Default: True.
        **kwargs: As in :class:`mmseg.models.SETRMLAHead`.
    """

    def small_scores(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`ClassifyFirst.small_scores`."""
        features = [
            up_conv[:-1](x)
            for x, up_conv in zip(self._transform_inputs(inputs), self.up_convs, strict=True)
        ]
        return self.cls_seg(torch.cat(features, dim=1))

    def last_upsampling(self) -> Upsample:
        """See :meth:`ClassifyFirst.last_upsampling`."""
        return self.up_convs[0][-1]  # all of them are equal
