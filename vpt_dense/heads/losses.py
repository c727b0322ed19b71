"""Cross entropy of class scores that are upsampled to the labels' size, without keeping them."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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
        for i, (scores, label, counts) in enumerate(zip(logits, labels, valid, strict=True)):
            scores = scores.detach().to(dtype).unsqueeze(0).requires_grad_(needed)
            with torch.enable_grad():
                full = F.interpolate(
                    scores, label.shape, mode='bilinear', align_corners=align_corners)
            target = label.where(counts, 0)[None, None]  # (1, 1, H, W)
            with torch.no_grad():
                if count_correct:
                    # A maximum is found in a tenth of the time of its place (CPU).
                    hits = full.gather(1, target) == full.amax(1, keepdim=True)
                    correct += (hits[0, 0] & counts).sum()
                probabilities = full.detach().log_softmax(1)
                loss -= (probabilities.gather(1, target)[0, 0] * counts).sum()
                if not needed:
                    continue
                # The derivative of -log softmax: probabilities, less 1 at the label.
                probabilities.exp_().scatter_add_(
                    1, target, torch.full_like(target, -1, dtype=dtype))
                probabilities *= counts.to(dtype) / pixels
            (gradient[i],) = torch.autograd.grad(full, scores, probabilities)
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(correct)
        return loss / pixels, correct

    @staticmethod
    @once_differentiable
    def backward(ctx, factor, _):
        (gradient,) = ctx.saved_tensors
        return (gradient * factor).to(ctx.dtype), None, None, None, None, None
