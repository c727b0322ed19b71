"""Cross entropy of class scores that are upsampled to the labels' size, without keeping them."""

import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss, accuracy
from mmseg.models.losses.cross_entropy_loss import cross_entropy
from mmseg.models.utils import resize
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vpt_dense.overrides import are_of


class UpsampledLoss:
    """The loss of our heads, put in front of mmseg's heads among the parents.

    A loss that is one plain ``CrossEntropyLoss`` is computed from the scores before their last
    upsampling, see :func:`upsampled_cross_entropy`. With class weights, a sampler or other losses
    the upsampled scores are handed on as in mmseg, and so they are to a ``loss_by_feat`` that a
    subclass has of its own.

    Args:
        log_accuracy: Report `acc_seg`, the pixel accuracy of every training batch in per
            cent, as mmseg does. It costs a look at all logits.
        **kwargs: As in mmseg.
    """

    def __init__(self, log_accuracy: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.log_accuracy = log_accuracy

    def scores_for(self, inputs: tuple[Tensor, ...], size: tuple[int, int]) -> Tensor:
        """Compute class scores that the loss upsamples.

        Args:
            inputs: Feature maps, each (B, C, h, w).
            size: (height, width) of the labels.

        Returns:
            (B, num_classes, h, w), one bilinear upsampling away from ``size``.
        """
        return self.forward(inputs)

    def loss(self, inputs: tuple[Tensor, ...], batch_data_samples: list, train_cfg: dict) -> dict:
        """Compute the losses, see :meth:`loss_by_feat`.

        Args:
            inputs: Feature maps, each (B, C, h, w).
            batch_data_samples: With labels `gt_sem_seg.data`, (1, H, W), integers.
            train_cfg: Not used.
        """
        plain = self._plain_cross_entropy()
        if plain is None or not are_of(UpsampledLoss, self, 'loss_by_feat'):
            return super().loss(inputs, batch_data_samples, train_cfg)
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        loss, correct = upsampled_cross_entropy(
            self.scores_for(inputs, tuple(labels.shape[1:])), labels, self.align_corners,
            self.ignore_index, plain.avg_non_ignore, count_correct=self.log_accuracy)
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


def upsampled_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    align_corners: bool = False,
    ignore_index: int = 255,
    avg_non_ignore: bool = False,
    count_correct: bool = False,
) -> tuple[Tensor, Tensor]:
    """Upsample class scores bilinearly and compare them with labels.

    The value and the gradient are those of ``interpolate`` followed by mmseg's
    ``CrossEntropyLoss``, up to rounding. The loss is a sum over pixels, so its gradient is known
    as soon as it is: it is computed in the forward pass, image by image, in the memory of the
    upsampled scores, and only its share at the scores' own size is kept for backward. The usual
    way keeps the log-probabilities of all pixels instead, 157 MB for an image of 512x512 pixels
    and 150 classes. Computed in float32 at least; twice differentiable it is not.

    Args:
        logits: Class scores, (B, C, h, w), of any floating type.
        labels: Classes, (B, H, W), integers below C or `ignore_index`.
        align_corners: As in :func:`torch.nn.functional.interpolate`.
        ignore_index: Label of the pixels that do not count.
        avg_non_ignore: Divide by the number of pixels that count; by all pixels otherwise.
        count_correct: Also count the pixels whose label has the highest score (or shares it).

    Returns:
        The mean loss, and the number of correct pixels, int64 (0 without `count_correct`); both
        are scalars.
    """
    return _UpsampledCrossEntropy.apply(
        logits, labels, align_corners, ignore_index, avg_non_ignore, count_correct)


class _Interpolated:
    """Bilinear upsampling of one image as PyTorch does it."""

    def __init__(self, small: torch.Size, full: torch.Size, align_corners: bool) -> None:
        self.small, self.full, self.align_corners = small, full, align_corners

    def forward(self, scores: Tensor) -> Tensor:
        """Scores (1, C, h, w) to (1, C, H, W)."""
        return F.interpolate(scores, self.full, mode='bilinear', align_corners=self.align_corners)

    def backward(self, gradient: Tensor) -> Tensor:
        """Their gradient, (1, C, H, W), to that of the small scores."""
        return torch.ops.aten.upsample_bilinear2d_backward(
            gradient, self.full, [*gradient.shape[:2], *self.small], self.align_corners)


class _Separable:
    """The same as two products of matrices, which a CPU does in less time, backward most of all."""

    def __init__(
        self, small: torch.Size, full: torch.Size, align_corners: bool, dtype: torch.dtype
    ) -> None:
        # PyTorch's own weights: what it makes of the columns of an identity matrix.
        self.rows, self.columns = (
            F.interpolate(
                torch.eye(n, dtype=dtype)[None, None], (m, n), mode='bilinear',
                align_corners=align_corners)[0, 0]
            for n, m in zip(small, full, strict=True))  # (H, h), (W, w)

    def forward(self, scores: Tensor) -> Tensor:
        """Scores (1, C, h, w) to (1, C, H, W)."""
        with torch.autocast('cpu', enabled=False):  # which interpolates exactly too
            return self.rows @ scores @ self.columns.T

    def backward(self, gradient: Tensor) -> Tensor:
        """Their gradient, (1, C, H, W), to that of the small scores."""
        with torch.autocast('cpu', enabled=False):
            return self.rows.T @ gradient @ self.columns


#: Sides of small scores up to which products of matrices took less time, forward and backward.
_SEPARABLE = 128


def _upsampling(
    logits: Tensor, full: torch.Size, align_corners: bool, dtype: torch.dtype
) -> _Interpolated | _Separable:
    small = logits.shape[2:]
    if logits.device.type == 'cpu' and max(small) <= _SEPARABLE:
        return _Separable(small, full, align_corners, dtype)
    return _Interpolated(small, full, align_corners)


class _UpsampledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, labels, align_corners, ignore_index, avg_non_ignore, count_correct):
        valid = labels != ignore_index
        needed = ctx.needs_input_grad[0]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        pixels = valid.sum().to(dtype) if avg_non_ignore else labels.numel()
        pixels = pixels + torch.finfo(torch.float32).eps  # as mmseg divides by no pixel at all
        gradient = torch.empty_like(logits, dtype=dtype) if needed else None
        loss = torch.zeros((), dtype=dtype, device=logits.device)
        correct = torch.zeros((), dtype=torch.int64, device=logits.device)
        upsampling = _upsampling(logits, labels.shape[1:], align_corners, dtype)
        for i, (scores, label, counts) in enumerate(zip(logits, labels, valid, strict=True)):
            target = label.where(counts, 0)[None, None]  # (1, 1, H, W)
            with torch.no_grad():
                full = upsampling.forward(scores.detach().to(dtype).unsqueeze(0))
                if count_correct:
                    # A maximum is found in a tenth of the time of its place (CPU).
                    hits = full.gather(1, target) == full.amax(1, keepdim=True)
                    correct += (hits[0, 0] & counts).sum()
                probabilities = full.log_softmax(1)
                loss -= (probabilities.gather(1, target)[0, 0] * counts).sum()
                if not needed:
                    continue
                # The derivative of -log softmax: probabilities, less 1 at the label.
                probabilities.exp_().scatter_add_(
                    1, target, torch.full_like(target, -1, dtype=dtype))
                probabilities *= counts.to(dtype) / pixels
                gradient[i] = upsampling.backward(probabilities)[0]
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(correct)
        return loss / pixels, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, factor, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * factor).to(ctx.dtype), None, None, None, None, None
