"""What attends to prompts, what prompts attend to, and how alike the prompts of the blocks are."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.errors import UserError
from vpt_dense.prompts import TokenLayout


@dataclass
class BlockAttention:
    """The attention of one block, means over its heads unless said otherwise.

    Attributes:
        block: Index of the block.
        keys: K, what each query divides its attention among.
        prompts: P, how many of these are prompts.
        to_prompts: Share of the patches' attention that goes to prompts, by head, (heads,); means
            over images and patches. Even attention would give P / K.
        map: The same by patch, (B, rows, columns).
        of_prompts: How the attention of each prompt lies over the patches, (B, P, rows, columns);
            None: prompts that have keys and values alone.
        of_cls: The same of the first token; None: there is none.
    """

    block: int
    keys: int
    prompts: int
    to_prompts: Tensor
    map: Tensor
    of_prompts: Tensor | None
    of_cls: Tensor | None

    @property
    def even(self) -> float:
        """The share that prompts would get if all keys got the same."""
        return self.prompts / self.keys


class _Watch(TorchFunctionMode):
    """Sees the weights of every attention."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._weigh(*args, **kwargs)
        return func(*args, **kwargs)

    def _weigh(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        **further: Any,
    ) -> None:  # fmt: skip
        if attn_mask is not None or is_causal:
            raise UserError('attention with masks is not analysed')
        with torch._C.DisableTorchFunction():
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            scores = query.float() @ key.float().transpose(-2, -1)
            self.see((scores * scale).softmax(-1))


@contextmanager
def _entered(backbone: TokenTuning, see: Callable[[Tensor, int, TokenLayout], None]) -> Iterator:
    """See the tokens that enter each block; prompts are among them, which changes no output."""
    layers, enter = backbone.keys_values_layers, backbone.enter_block
    training = backbone.training

    def watched(x: Tensor, i: int, *rest: Any) -> Any:
        found = enter(x, i, *rest)
        see(found[0], i, found[1])
        return found

    backbone.keys_values_layers = []
    backbone.__dict__['enter_block'] = watched
    try:
        with torch.no_grad():
            yield backbone.eval()
    finally:
        backbone.keys_values_layers = layers
        del backbone.__dict__['enter_block']
        backbone.train(training)


def _check(backbone: nn.Module) -> None:
    if not isinstance(backbone, TokenTuning) or 'one width' not in backbone.offers:
        raise UserError(
            f'{type(backbone).__name__} is no plain vision transformer: attention to prompts is '
            'that of blocks in which every token sees every other')


def attention(backbone: TokenTuning, images: Tensor) -> list[BlockAttention]:
    """Compute how much attention prompts get, and how they spend theirs.

    Args:
        backbone: A tuned vision transformer.
        images: (B, 3, H, W), normalised.

    Returns:
        One for each block.

    Raises:
        UserError: If it is another kind of backbone.
    """
    _check(backbone)
    found: list[BlockAttention] = []
    layouts: list[TokenLayout] = []

    def see(weights: Tensor) -> None:  # (B, heads, Q, K)
        first, own, grid = layouts[-1]
        queries, keys = weights.shape[-2:]
        start = first + own
        to_prompts = weights[..., first:start].sum(-1) + weights[..., queries:].sum(-1)
        to_prompts = to_prompts[:, :, start:]  # of patches, (B, heads, N)
        over_patches = weights.mean(1)[..., start:queries]  # (B, Q, N)
        found.append(BlockAttention(
            block=len(layouts) - 1, keys=keys, prompts=own + keys - queries,
            to_prompts=to_prompts.mean((0, 2)),
            map=to_prompts.mean(1).unflatten(-1, grid),
            of_prompts=over_patches[:, first:start].unflatten(-1, grid) if own else None,
            of_cls=over_patches[:, 0].unflatten(-1, grid) if first else None))

    with _entered(backbone, lambda x, i, layout: layouts.append(layout)), _Watch(see):
        backbone(images)
    if len(found) != len(layouts):
        raise UserError(
            f'{type(backbone).__name__} computes attention {len(found)} times in {len(layouts)} '
            'blocks, so that it cannot be told apart')
    return found


def prompts(backbone: TokenTuning, images: Tensor) -> dict[int, Tensor]:
    """The prompts that enter each block, means over images.

    Args:
        backbone: As in :func:`attention`.
        images: As there; only prompts that depend on images, or flow on, differ between them.

    Returns:
        Index of the block -> (P, C); blocks without prompts are left out.
    """
    _check(backbone)
    found: dict[int, Tensor] = {}

    def see(x: Tensor, i: int, layout: TokenLayout) -> None:
        if layout.num_prompts:
            found[i] = layout.prompts(x).float().mean(0)

    with _entered(backbone, see):
        backbone(images)
    return found


def similarity(tokens: dict[int, Tensor]) -> Tensor:
    """How alike the prompts of each two blocks are.

    Args:
        tokens: Index of the block -> (P, C).

    Returns:
        (L, L), the mean cosine of all pairs of a prompt of the one and a prompt of the other
        block; within a block those with itself are left out (1 where there is one prompt alone).
    """
    unit = [F.normalize(each, dim=-1) for each in tokens.values()]
    rows = []
    for i, own in enumerate(unit):
        row = []
        for j, other in enumerate(unit):
            cosines = own @ other.T
            if i == j and len(own) > 1:
                cosines = cosines[~torch.eye(len(own), dtype=torch.bool)]
            row.append(cosines.mean())
        rows.append(torch.stack(row))
    return torch.stack(rows)
