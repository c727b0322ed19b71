"""Sizes of images and maps, which an exported graph may leave open."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def is_open(*sizes: Sequence[int]) -> bool:
    """Whether a graph is being exported that leaves one of these sizes open."""
    return any(isinstance(number, torch.SymInt) for size in sizes for number in size)


def are_equal(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two sizes (height, width) are equal; open ones: whether they are whatever comes."""
    if not is_open(size, other):
        return tuple(size) == tuple(other)
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return all(statically_known_true(a == b) for a, b in zip(size, other, strict=True))


def resize_positions(
    embed: Tensor, source: Sequence[int], grid: Sequence[int], mode: str, num_first: int
) -> Tensor:
    """Resize a position embedding, as mmpretrain does.

    Args:
        embed: (1, num_first + rows * columns, C).
        source: Its (rows, columns).
        grid: Those that it gets; in an exported graph they may be open, and are not taken for
            settled.
        mode: Of the interpolation.
        num_first: Tokens in front, which stay.

    Returns:
        (1, num_first + rows * columns, C).
    """
    if are_equal(source, grid):
        return embed
    places = embed[:, num_first:].unflatten(1, tuple(source)).permute(0, 3, 1, 2)
    places = F.interpolate(places.float(), tuple(grid), mode=mode, align_corners=False)
    places = places.flatten(2).transpose(1, 2).to(embed.dtype)
    return torch.cat((embed[:, :num_first], places), dim=1)
