"""Operators of mmcv for detection, where mmcv was built without any: ``mmcv._ext``.

mmdet's models ask mmcv for compiled operators, and mmcv for the names of all of them. The
maintained distribution builds without a compiler, and without them. :mod:`vpt_dense.imports` then
has Python find this file as ``mmcv._ext``: the operators below are torchvision's, which is
installed, or a formula; every other name is there, and says when it is called that it is not. A
compiled mmcv is used where there is one.

Signatures and results in place are those of mmcv's extension. Coordinates and images of less than
32 bits are computed in 32.
"""

from collections.abc import Callable
from typing import Any

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor

from vpt_dense.errors import UserError


def __getattr__(name: str) -> Callable:
    if name.startswith('__'):
        raise AttributeError(name)

    def absent(*args: Any, **kwargs: Any) -> None:
        raise _absent(name)

    return absent


def _absent(name: str) -> UserError:
    return UserError(
        f'mmcv was built without its compiled operators, and {name} has no stand-in here; take a '
        'model without it, or install an mmcv that was compiled for this PyTorch '
        '(docs/detection.md)')


def _precise(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


# --- boxes -----------------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """The boxes that no better one overlaps by more than the threshold, the best first.

    Args:
        boxes: (N, 4), x1, y1, x2, y2.
        scores: (N,).
        iou_threshold: 0 to 1.
        offset: What a side is longer than the difference of its ends: 0, or 1 (whole pixels).

    Returns:
        (M,) int64, positions.
    """
    boxes = _precise(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes), iou_threshold)


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float,
    min_score: float, method: int, offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017): overlap lowers scores in place of removing boxes.

    Args:
        boxes: (N, 4), x1, y1, x2, y2.
        scores: (N,).
        dets: (N, 5); its first rows get the boxes that stay and their scores, the best first.
        iou_threshold: From which on overlap counts, of ``method`` 0 and 1.
        sigma: Of ``method`` 2.
        min_score: Boxes below it go.
        method: What a score is multiplied by: 0: 0; 1: 1 - overlap; 2: exp(-overlap² / sigma).
        offset: As in :func:`nms`.

    Returns:
        (M,) int64, positions of those rows.
    """
    boxes, left, kept = _precise(boxes), _precise(scores).clone(), []
    alive = torch.ones_like(left, dtype=torch.bool)
    areas = (boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=1)
    while alive.any():
        best = int(left.masked_fill(~alive, -torch.inf).argmax())
        dets[len(kept), :4], dets[len(kept), 4] = boxes[best], left[best]
        kept.append(best)
        alive[best] = False
        low = torch.maximum(boxes[:, :2], boxes[best, :2])
        high = torch.minimum(boxes[:, 2:], boxes[best, 2:])
        common = (high - low + offset).clamp(min=0).prod(dim=1)
        overlap = common / (areas + areas[best] - common)
        if method == 2:
            factor = torch.exp(-overlap.square() / sigma)
        else:
            factor = torch.where(
                overlap >= iou_threshold, 1 - overlap if method == 1 else 0 * overlap, 1.0)
        left = torch.where(alive, left * factor, left)
        alive &= left >= min_score
    return torch.tensor(kept, dtype=torch.int64)


# --- regions ---------------------------------------------------------------------------------


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
    pool_mode: int, aligned: bool,
) -> None:
    """RoIAlign (He et al., ICCV 2017) of maps (B, C, H, W) for rows (image, x1, y1, x2, y2)."""
    if pool_mode != 1:
        raise _absent("roi_align with pool_mode='max'")
    maps = _precise(input)
    output.copy_(torch.ops.torchvision.roi_align(
        maps, rois.to(maps), spatial_scale, aligned_height, aligned_width, sampling_ratio,
        aligned))


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
    aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
    pool_mode: int, aligned: bool,
) -> None:
    """The gradient of :func:`roi_align_forward`, written into ``grad_input``."""
    grad = _precise(grad_output)
    grad_input.copy_(torch.ops.torchvision._roi_align_backward(
        grad, rois.to(grad), spatial_scale, aligned_height, aligned_width, *grad_input.shape,
        sampling_ratio, aligned))


# --- losses ----------------------------------------------------------------------------------


def _focal(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    """-alpha (1 - p)^gamma log p of the class, -(1 - alpha) p^gamma log(1 - p) of the others."""
    own = torch.arange(logits.shape[1], device=logits.device) == target[:, None]
    signed = torch.where(own, logits, -logits)
    weight = torch.where(own, alpha, 1 - alpha)
    functional = torch.nn.functional
    return -weight * signed.neg().sigmoid() ** gamma * functional.logsigmoid(signed)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (Lin et al., ICCV 2017) of logits (N, classes); no class: the number of them."""
    if weight.numel():
        raise _absent('sigmoid_focal_loss with weights of classes')
    output.copy_(_focal(_precise(input), target, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of each loss by its logit, written into ``grad_input``."""
    with torch.enable_grad():
        logits = _precise(input).detach().requires_grad_()
        (grad,) = torch.autograd.grad(_focal(logits, target, gamma, alpha).sum(), logits)
    grad_input.copy_(grad)


# --- deformable convolutions -----------------------------------------------------------------


def _convolve(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, bias: Tensor | None,
    numbers: tuple[int, ...],
) -> Tensor:
    mask, bias = (_none(input) if each is None else each for each in (mask, bias))
    parts = [_precise(part) for part in (input, weight, offset, mask)]
    bias = _precise(bias) if bias.numel() else parts[0].new_zeros(len(weight))
    return torch.ops.torchvision.deform_conv2d(*parts, bias, *numbers, mask.numel() > 0)


def _gradients(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None,
    numbers: tuple[int, ...],
) -> tuple[Tensor, ...]:
    mask = _none(input) if mask is None else mask
    parts = [_precise(part) for part in (grad, input, weight, offset, mask)]
    bias = parts[0].new_zeros(len(weight))
    return torch.ops.torchvision._deform_conv2d_backward(
        *parts, bias, *numbers, mask.numel() > 0)


def _none(like: Tensor) -> Tensor:
    """What torchvision takes for no mask."""
    return like.new_zeros((len(like), 0, 0, 0))


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
    *, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, im2col_step: int,
) -> None:
    """Deformable convolution (Dai et al., ICCV 2017)."""
    numbers = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    output.copy_(_convolve(input, weight, offset, None, None, numbers))


def deform_conv_backward_input(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor,
    weight: Tensor, columns: Tensor, *, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int,
    dilationW: int, dilationH: int, group: int, deformable_group: int, im2col_step: int,
) -> None:
    """Its gradients by input and offsets."""
    numbers = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    found = _gradients(grad_output, input, weight, offset, None, numbers)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor,
    ones: Tensor, *, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int,
    dilationH: int, group: int, deformable_group: int, scale: float, im2col_step: int,
) -> None:
    """Its gradient by the weights, ``scale`` times."""
    numbers = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    found = _gradients(grad_output, input, grad_weight, offset, None, numbers)
    grad_weight.copy_(found[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
    output: Tensor, columns: Tensor, *, kernel_h: int, kernel_w: int, stride_h: int,
    stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int, group: int,
    deformable_group: int, with_bias: bool,
) -> None:
    """Modulated deformable convolution (Zhu et al., CVPR 2019)."""
    numbers = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    output.copy_(_convolve(input, weight, offset, mask, bias if with_bias else None, numbers))


def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor,
    columns: Tensor, grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor,
    grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor, *, kernel_h: int, kernel_w: int,
    stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int, dilation_w: int,
    group: int, deformable_group: int, with_bias: bool,
) -> None:
    """Its gradients."""
    numbers = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    found = _gradients(grad_output, input, weight, offset, mask, numbers)
    into = [grad_input, grad_weight, grad_offset, grad_mask]
    for target, gradient in zip(into + [grad_bias] * with_bias, found, strict=False):
        target.copy_(gradient)
