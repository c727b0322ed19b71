"""Weights of few bits: their levels, rounding to them in training, and how files hold them."""

import math
import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

#: What stands behind the name of a matrix in that of its levels (mean, deviation, bits).
LEVELS = '_levels'
#: In a file: the matrix, its bits, its columns.
_PACKED = re.compile(r'^(.+)\.([124])bit\.(\d+)$')
_EPSILON = 1e-5


class Code(NamedTuple):
    """Levels of a normal distribution of mean 0 and variance 1.

    Attributes:
        levels: 2^bits of them, rising.
        edges: Between neighbours, one fewer.
    """

    levels: tuple[float, ...]
    edges: tuple[float, ...]


@cache
def code(bits: int) -> Code:
    """The levels with the least mean absolute error: each is the median of what becomes it.

    S. Jie et al., ICCV 2023, https://arxiv.org/abs/2307.16867. A value goes to the
    nearest level; the two conditions are iterated until levels stay.

    Args:
        bits: 1, 2 or 4.
    """
    number = 2**bits
    levels = torch.special.ndtri(
        (torch.arange(number, dtype=torch.float64) + 0.5) / number)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    while True:
        edges = (levels[1:] + levels[:-1]) / 2
        shares = torch.cat((ends[:1], torch.special.ndtr(edges), ends[1:]))
        found = torch.special.ndtri((shares[1:] + shares[:-1]) / 2)
        if (found - levels).abs().max() < 1e-13:
            return Code(tuple(found.tolist()), tuple(edges.tolist()))
        levels = found


def moments(weight: Tensor, levels: Tensor) -> Tensor:
    """Mean and standard deviation (2,) that a matrix is rounded with.

    Args:
        weight: The matrix.
        levels: (mean, deviation, bits); a deviation below 0: those of the matrix itself.
    """
    own = torch.stack((weight.mean(), weight.std()))
    return torch.where(levels[1] < 0, own, levels[:2].to(own.dtype))


def rounded(weight: Tensor, levels: Tensor, bits: int) -> Tensor:
    """A matrix rounded to its levels, through which gradients pass as if it was not.

    With z = (w - mean) / (deviation + 1e-5) it is mean + deviation * level(z).

    Args:
        weight: The matrix.
        levels: See :func:`moments`.
        bits: 1, 2 or 4.
    """
    mean, deviation = moments(weight, levels).unbind()
    z = (weight - mean) / (deviation + _EPSILON)
    known = code(bits)
    nearest = torch.full_like(z, known.levels[0])
    for low, high, edge in zip(known.levels, known.levels[1:], known.edges, strict=False):
        nearest = nearest + (high - low) * (z.detach() >= edge).to(z.dtype)
    return (z + (nearest - z).detach()) * deviation + mean


# --- files


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the bits in the place of the matrices that have levels; see :func:`unpack`."""
    found = dict(state)
    for name, levels in state.items():
        matrix = state.get(name.removesuffix(LEVELS))
        if not name.endswith(LEVELS) or matrix is None:
            continue
        bits = int(levels[2])
        mean, deviation = moments(matrix, levels).unbind()
        z = (matrix - mean) / (deviation + _EPSILON)
        places = sum((z >= edge).to(torch.uint8) for edge in code(bits).edges)
        each = 8 // bits
        places = torch.nn.functional.pad(places, (0, -places.shape[1] % each))
        shifts = bits * torch.arange(each, dtype=torch.uint8)
        packed = (places.unflatten(1, (-1, each)) << shifts).sum(-1).to(torch.uint8)
        del found[name.removesuffix(LEVELS)]
        found[f'{name.removesuffix(LEVELS)}.{bits}bit.{matrix.shape[1]}'] = packed
        found[name] = torch.stack((mean, deviation, levels[2].to(mean.dtype)))
    return found


def unpack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the bits of a file into matrices again, which are rounded to the same values.

    Raises:
        ValueError: If they are not what :func:`pack` makes.
    """
    found = {}
    for key, packed in state.items():
        match = _PACKED.match(key)
        if match is None:
            found[key] = packed
            continue
        name, bits, columns = match[1], int(match[2]), int(match[3])
        levels = state.get(name + LEVELS)
        fits = (
            packed.ndim == 2 and packed.dtype == torch.uint8 and levels is not None
            and levels.shape == (3,) and packed.shape[1] == math.ceil(columns * bits / 8))
        if not fits:
            raise ValueError(f'{key} holds no {columns} columns of {bits} bit and their levels')
        shifts = bits * torch.arange(8 // bits, dtype=torch.uint8, device=packed.device)
        places = (packed[..., None] >> shifts & 2**bits - 1).flatten(1)[:, :columns].long()
        known = torch.tensor(code(bits).levels, dtype=torch.float64, device=packed.device)
        mean, deviation = levels[:2].double().unbind()
        found[name] = (mean + (deviation + _EPSILON) * known[places]).to(levels.dtype)
    return found
