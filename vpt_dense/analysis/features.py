"""Features before and after tuning, in the plane, and how well neighbours tell their classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_dense.errors import UserError


def knn_accuracy(features: Tensor, labels: Tensor, neighbours: int = 20) -> float:
    """Share of points whose nearest others, by cosine, are mostly of their class, in per cent.

    Args:
        features: (n, C).
        labels: (n,).
        neighbours: How many vote; equal votes go to the smallest class.

    Raises:
        UserError: If there are fewer than two points.
    """
    if len(features) < 2:
        raise UserError(f'neighbours of {len(features)} points cannot be asked; take more images')
    unit = F.normalize(features.float(), dim=-1)
    near = unit @ unit.T
    near.fill_diagonal_(-torch.inf)
    chosen = near.topk(min(neighbours, len(features) - 1), dim=1).indices
    votes = F.one_hot(labels[chosen], int(labels.max()) + 1).sum(1)
    return 100 * (votes.argmax(1) == labels).float().mean().item()


def plane(features: Tensor, seed: int = 0) -> Tensor:
    """Points in the plane whose neighbours are those of the features: t-SNE, (n, C) to (n, 2).

    Raises:
        UserError: If scikit-learn is not installed, or there are fewer than four points.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise UserError("t-SNE needs scikit-learn: pip install 'vpt_dense[analysis]'") from error
    if len(features) < 4:
        raise UserError(f't-SNE of {len(features)} points shows nothing; take more images')
    unit = F.normalize(features.float(), dim=-1).cpu().numpy()
    return torch.from_numpy(TSNE(
        perplexity=min(30, (len(unit) - 1) / 3), metric='cosine', init='pca', random_state=seed,
    ).fit_transform(unit))


def of_images(output: Tensor) -> Tensor:
    """One vector an image of what a backbone puts out: it, or the mean of a map; (B, C)."""
    return output if output.ndim == 2 else output.flatten(2).mean(2)


def of_pixels(
    output: Tensor, labels: Tensor, ignored: int, number: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Some places of a feature map, and their classes.

    Args:
        output: (1, C, h, w).
        labels: (H, W), of the same image; its value at the middle of each place counts.
        ignored: The label that is left out.
        number: At most so many places of each class.
        generator: Draws them.

    Returns:
        (n, C) and (n,).
    """
    height, width = output.shape[-2:]
    rows = ((torch.arange(height) + 0.5) * labels.shape[0] / height).long()
    columns = ((torch.arange(width) + 0.5) * labels.shape[1] / width).long()
    classes = labels[rows][:, columns].flatten()
    vectors = output[0].flatten(1).T
    chosen: list[Any] = []
    for label in classes.unique().tolist():
        if label != ignored:
            places = (classes == label).nonzero()[:, 0]
            chosen.append(places[torch.randperm(len(places), generator=generator)[:number]])
    places = torch.cat(chosen) if chosen else torch.zeros(0, dtype=torch.long)
    return vectors[places], classes[places]
