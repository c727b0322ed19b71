"""Rotary places with fewer passes over memory, forward and backward."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed
from torch import Tensor


def turn_last(
    tokens: Tensor, sine: Tensor, cosine: Tensor, half: bool = False, exact: bool = True
) -> Tensor:
    """Turn the last tokens by their places; the first have none.

    Args:
        tokens: (B, heads, F + N, d).
        sine: Of the angles of N places, (N, d), or with leading dimensions that broadcast.
        cosine: Likewise.
        half: Whether the pairs that turn are i and i + d / 2; else 2 i and 2 i + 1.
        exact: Round as timm does, bit for bit; else once less where the machine can, which is
            quicker.

    Returns:
        As ``tokens``: x cos + rot(x) sin with rot(x0, x1, ...) = (-x1, x0, ...)
        (https://arxiv.org/abs/2104.09864).
    """
    if not torch.compiler.is_compiling() and not sine.requires_grad:
        return _Turn.apply(tokens, sine, cosine, half, exact)
    first, patches = tokens.tensor_split((tokens.shape[2] - cosine.shape[-2],), dim=2)
    turned = apply_rot_embed(patches, sine, cosine, half=half)  # a compiler fuses it by itself
    return torch.cat((first, turned), dim=2)


class _Turn(torch.autograd.Function):
    """Computes into one tensor, which autograd's own operations could not."""

    @staticmethod
    def forward(
        tokens: Tensor, sine: Tensor, cosine: Tensor, half: bool, exact: bool
    ) -> Tensor:
        """See :func:`turn_last`."""
        first = tokens.shape[2] - cosine.shape[-2]
        out = tokens * F.pad(cosine, (0, 0, first, 0), value=1.0)
        patches, turned = tokens[:, :, first:], out[:, :, first:]
        a, b = _pairs(half, tokens.shape[-1])
        if exact:
            turned[..., a].sub_(patches[..., b] * sine[..., a])
            turned[..., b].add_(patches[..., a] * sine[..., b])
        else:
            turned[..., a].addcmul_(patches[..., b], sine[..., a], value=-1)
            turned[..., b].addcmul_(patches[..., a], sine[..., b])
        return out.to(tokens.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        """Keep the places alone."""
        _, sine, cosine, *ctx.how = inputs
        ctx.save_for_backward(sine, cosine)
        ctx.save_for_forward(sine, cosine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """Turn back."""
        sine, cosine = ctx.saved_tensors
        a, b = _pairs(ctx.how[0], sine.shape[-1])
        back = torch.empty_like(sine)
        back[..., a], back[..., b] = -sine[..., b], -sine[..., a]
        return _Turn.apply(gradient, back, cosine, *ctx.how), None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, tokens: Tensor, *others: Any) -> tuple[Tensor, int]:
        """Images of all batches are one batch: the places are those of a grid, never of a batch."""
        batches = tokens.movedim(in_dims[0], 0)
        return _Turn.apply(batches.flatten(0, 1), *others).unflatten(0, batches.shape[:2]), 0

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: None) -> Tensor:
        """The map is linear."""
        return _Turn.apply(tangent, *ctx.saved_tensors, *ctx.how)


def _pairs(half: bool, dims: int) -> tuple[slice, slice]:
    """First and second of each pair of dimensions."""
    middle = dims // 2
    return (slice(middle), slice(middle, None)) if half else (slice(0, None, 2), slice(1, None, 2))
