"""Losses of masks that queries find: each query is a class and a mask, or nothing.

B. Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022,
https://arxiv.org/abs/2112.01527, section 3.2 and appendix; no compiled operator is needed.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine import dist
from torch import Tensor


class Target(NamedTuple):
    """What an image shows.

    Attributes:
        classes: Labels, (T,), int64.
        masks: Where they are, (T, H, W), float, 0 or 1.
        counts: Which pixels count, (H, W), likewise; None: all.
    """

    classes: Tensor
    masks: Tensor
    counts: Tensor | None = None


class Weights(NamedTuple):
    """Of the parts of the loss, and of the costs by which queries and masks find each other."""

    classes: float = 2.0
    masks: float = 5.0
    dice: float = 5.0


def of_labels(labels: Tensor, num_classes: int, ignored: int) -> list[Target]:
    """Targets of label maps: a mask for each class of an image.

    Args:
        labels: (B, H, W), int64.
        num_classes: Labels are below it.
        ignored: The label that does not count.
    """
    found = []
    for each in labels:
        counts = each != ignored
        classes = each[counts].unique()
        if len(classes) and not 0 <= int(classes[0]) <= int(classes[-1]) < num_classes:
            wrong = int(classes[0] if classes[0] < 0 else classes[-1])
            raise IndexError(f'label {wrong} is out of bounds of {num_classes} classes')
        masks = (each == classes[:, None, None]).float()
        found.append(Target(classes, masks, None if counts.all() else counts.float()))
    return found


def losses(
    scores: Tensor, masks: Tensor, targets: list[Target], weights: Weights, num_points: int = 12544,
    oversampling: float = 3.0, importance: float = 0.75, no_object: float = 0.1,
) -> dict[str, Tensor]:  # fmt: skip
    """Match queries with masks of the images, and compare them.

    Masks are compared at points: for the matching at the same ``num_points`` of an image, drawn
    evenly; for the loss at ``importance`` of as many where the predicted mask is least certain (of
    ``oversampling`` times as many drawn) and at others drawn evenly. The mask has a binary cross
    entropy (the mean over its points) and a dice loss 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1),
    both over the number of masks of the batch. Every query has a cross entropy of K classes and
    'nothing', which weighs ``no_object``. Points that do not count are left out; images without any
    that does have no part in anything.

    Args:
        scores: (B, Q, K + 1), logits; 'nothing' is the last.
        masks: (B, Q, h, w), logits.
        targets: Of each image.
        weights: Of the parts.
        num_points: See above.
        oversampling: See above.
        importance: See above.
        no_object: See above.

    Returns:
        ``loss_cls``, ``loss_mask``, ``loss_dice``, weighted.
    """
    scores, masks = scores.float(), masks.float()
    nothing = scores.shape[-1] - 1
    wanted = torch.full(scores.shape[:2], nothing, device=scores.device)
    chosen, owners, truths, known = [], [], [], []
    for i, target in enumerate(targets):
        queries, places = match(scores[i], masks[i], target, weights, num_points)
        wanted[i, queries] = target.classes[places]
        chosen.append(masks[i, queries])
        truths.append(target.masks[places])
        owners += [i] * len(queries)
        known.append(target.counts is None or bool(target.counts.any()))
    number = torch.tensor(float(len(owners)), device=scores.device)
    dist.all_reduce(number, 'mean')
    number = number.clamp_min(1)
    kinds = scores.new_ones(nothing + 1)
    kinds[-1] = no_object
    seen = torch.tensor(known, device=scores.device)
    entropy = F.cross_entropy(
        scores[seen].transpose(1, 2), wanted[seen], kinds) if any(known) else scores.sum() * 0
    if not owners:
        zero = masks.sum() * 0
        return dict(loss_cls=weights.classes * entropy, loss_mask=zero, loss_dice=zero)
    chosen, truth = torch.cat(chosen), torch.cat(truths)
    with torch.no_grad():
        points = uncertain_points(chosen, num_points, oversampling, importance)
        truth = at_points(truth, points)
        counts = torch.ones_like(truth)
        for i, target in enumerate(targets):
            rows = [row for row, owner in enumerate(owners) if owner == i]
            if rows and target.counts is not None:
                counts[rows] = at_points(
                    target.counts.expand(len(rows), -1, -1), points[rows], 'nearest')
    logits = at_points(chosen, points)
    bits = F.binary_cross_entropy_with_logits(logits, truth, reduction='none') * counts
    share = logits.sigmoid() * counts
    truth = truth * counts
    dice = 1 - (2 * (share * truth).sum(1) + 1) / (share.sum(1) + truth.sum(1) + 1)
    return dict(
        loss_cls=weights.classes * entropy,
        loss_mask=weights.masks * (bits.sum(1) / counts.sum(1).clamp_min(1)).sum() / number,
        loss_dice=weights.dice * dice.sum() / number)


@torch.no_grad()
def match(
    scores: Tensor, masks: Tensor, target: Target, weights: Weights, num_points: int
) -> tuple[Tensor, Tensor]:
    """Queries and the masks that are theirs, at the least cost in all (Hungarian algorithm).

    Args:
        scores: (Q, K + 1), logits.
        masks: (Q, h, w), logits.
        target: Of the image.
        weights: Of the costs.
        num_points: At which masks are compared.

    Returns:
        Indices of queries and of masks, both (min(Q, T),).
    """
    from scipy.optimize import linear_sum_assignment

    points = torch.rand(1, num_points, 2, device=masks.device)
    logits = at_points(masks, points.expand(len(masks), -1, -1))  # (Q, P)
    truth = at_points(target.masks, points.expand(len(target.masks), -1, -1))  # (T, P)
    counts = torch.ones_like(logits[0])
    if target.counts is not None:
        counts = at_points(target.counts[None], points, 'nearest')[0]
    truth, number = truth * counts, counts.sum().clamp_min(1)
    # -log p where the mask is, -log(1 - p) where it is not, the mean over the points.
    bits = F.softplus(-logits) @ truth.T + F.softplus(logits) @ (counts - truth).T
    share = logits.sigmoid() * counts
    dice = 1 - (2 * share @ truth.T + 1) / (share.sum(1)[:, None] + truth.sum(1) + 1)
    cost = (weights.masks * bits / number - weights.classes * scores.softmax(-1)[:, target.classes]
            + weights.dice * dice)  # fmt: skip
    largest = torch.finfo(cost.dtype).max
    cost = torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest)
    queries, places = linear_sum_assignment(cost.cpu())
    return (torch.as_tensor(queries, device=masks.device),
            torch.as_tensor(places, device=masks.device))


def at_points(maps: Tensor, points: Tensor, mode: str = 'bilinear') -> Tensor:
    """Values of maps (n, H, W) at points (n, P, 2), x and y from 0 to 1, (n, P)."""
    grid = 2 * points[:, :, None] - 1  # (n, P, 1, 2)
    return F.grid_sample(maps[:, None], grid, mode, align_corners=False)[:, 0, :, 0]


def uncertain_points(
    masks: Tensor, number: int, oversampling: float, importance: float
) -> Tensor:
    """Points where masks (n, h, w), logits, are least certain, and others, (n, number, 2)."""
    drawn = torch.rand(len(masks), int(number * oversampling), 2, device=masks.device)
    least = int(importance * number)
    places = (-at_points(masks, drawn).abs()).topk(least, dim=1).indices
    found = drawn.gather(1, places[..., None].expand(-1, -1, 2))
    if number > least:
        others = torch.rand(len(masks), number - least, 2, device=masks.device)
        found = torch.cat((found, others), dim=1)
    return found
