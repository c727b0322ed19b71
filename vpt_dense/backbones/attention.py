"""The attention kernel of the prompted backbones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import is_autocast_available

#: Most keys for which products of whole matrices are used; from about 1,000 on the flash kernel is
#: as fast and keeps less for backward.
_MAX_KEYS = 512


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **kwargs,
) -> Tensor:
    """Compute softmax(Q K^T / sqrt(d)) V; PyTorch's kernel, but for one case.

    In half precision on a CPU PyTorch's kernels are slow at the lengths of image tokens: forward
    and backward of 16 images with 144 queries and 164 keys took them, flash and math alike, 3.3
    times as long as three plain operations (tools/benchmark/attention.py, AMD EPYC with
    avx512_bf16, 2 threads, torch 2.14.1). There these run instead.

    Args:
        query: (B, heads, N, d).
        key: (B, heads, M, d).
        value: (B, heads, M, d).
        attn_mask: As in :func:`torch.nn.functional.scaled_dot_product_attention`.
        dropout_p: Dropout probability of the attention weights.
        **kwargs: As there.

    Returns:
        (B, heads, N, d).
    """
    plain = (
        query.device.type == 'cpu'
        and query.dtype in (torch.bfloat16, torch.float16)
        and key.shape[-2] <= _MAX_KEYS
        and attn_mask is None
        and not kwargs
    )
    if not plain:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **kwargs)
    with torch.autocast('cpu', enabled=False):  # it would turn the weights into float32
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        weights = scores.softmax(-1)
        return (F.dropout(weights, dropout_p) if dropout_p else weights) @ value


def in_parts(
    linear: nn.Linear, updates: Sequence[Sequence[nn.Module]], *tokens: Tensor
) -> list[tuple[Tensor, ...]]:
    """Queries, keys and values whose updates are each of one part.

    As three products, each with its own updates, instead of one whose parts are padded and added.

    Args:
        linear: The fused layer.
        updates: See :func:`vpt_dense.adapters.updates.of_parts`.
        *tokens: Each (b, n, C).

    Returns:
        For each of them queries, keys and values, (b, n, C).
    """
    weight, bias = cast_once(linear.weight, linear.bias)
    weights = weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    found = []
    for x in tokens:
        made = []
        for part, own, further in zip(weights, biases, updates, strict=True):
            out = F.linear(x, part, own)
            for update in further:
                out = out + update(x)
            made.append(out)
        found.append(tuple(made))
    return found


def one_product(x: Tensor, prompts: Tensor) -> bool:
    """Whether few prompts go through the product of queries, keys and values with each image.

    On a GPU a step of a frozen model waits for operations to be started rather than for their
    arithmetic: ViT-L, 512 px, 8 images in bfloat16 on an H200 took 1.12 times as long with
    products of their own for prompts as with prompts as tokens. One product needs a third of the
    operations, for at most 3 % more arithmetic in the block (P / 4N of its 12 N C^2, N tokens). On
    a CPU arithmetic is what counts, and attention is faster on copies of keys and values.
    """
    return x.device.type != 'cpu' and 8 * prompts.shape[1] <= x.shape[1]


def cast_once(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast float32 weights as autocast would, which would do so, and keep it, for each use."""
    kind = tensors[0].device.type
    # There is none on 'meta'.
    if not is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return tensors
    half = torch.get_autocast_dtype(kind)
    return tuple(
        tensor.to(half) if tensor is not None and tensor.dtype == torch.float32 else tensor
        for tensor in tensors)
