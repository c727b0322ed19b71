"""The contract between an adapter and a backbone."""

import re
from abc import ABCMeta
from collections.abc import Sequence
from typing import NamedTuple

from mmengine.model import BaseModule
from torch import Tensor, nn

from vpt_dense.prompts import TokenLayout


class Block(NamedTuple):
    """One transformer block, called the same in every family of backbones.

    Attributes:
        name: Its name among the backbone's modules, ``layers.3`` or ``stages.2.blocks.3``.
        module: The block.
        embed_dims: Its width C.
        num_heads: Its attention heads.
        norm1: The norm before attention.
        qkv: The linear layer of queries, keys and values, C to 3 C.
        proj: The linear layer after attention, C to C.
        norm2: The norm before the MLP.
        ffn: The MLP, called as ``ffn(norm2(x), identity=x)``; it adds ``identity``.
        mlp: What is inside of it before layer scale and stochastic depth: (B, N, C) to (B, N, C).
        fc1: The first linear layer of the MLP (of a SwiGLU: that of gate and value).
        fc2: The last linear layer of the MLP.
    """

    name: str
    module: nn.Module
    embed_dims: int
    num_heads: int
    norm1: nn.Module
    qkv: nn.Linear
    proj: nn.Linear
    norm2: nn.Module
    ffn: nn.Module
    mlp: nn.Module
    fc1: nn.Linear
    fc2: nn.Linear


class Adapter(BaseModule, metaclass=ABCMeta):
    """Changes what the blocks of a frozen backbone compute.

    An adapter is built with the backbone (``backbone.adapters`` holds all of them, in the order of
    the config), makes its parameters for that backbone, and acts in one of two ways:

    - it registers forward hooks on modules of the backbone when it is built. The hooks are methods
      of its own modules, so that copies of the backbone (EMA) have hooks of their own; the names of
      the backbone's parameters stay what they were;
    - it overrides one of :meth:`before_block`, :meth:`after_attention`, :meth:`after_block` and
      :meth:`after_backbone`, which every backbone calls.

    It keeps no reference to the backbone. Its parameters begin with ``adapters.<index>.``.

    Args:
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        families: The backbones that it fits, by their ``weights_family``; others refuse it.
        mergeable: Whether :meth:`merge` can put what it does into the backbone's own weights.
    """

    families: tuple[str, ...] = ('vit', 'swin')
    mergeable = False

    def __init__(self, backbone: nn.Module, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)

    def start_from(self, backbone: nn.Module) -> None:
        """Take starting values from the backbone, whose weights have just been initialised."""

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Change the tokens about to enter a block, (B, F + P + N, C).

        Args:
            x: The tokens.
            layer: Index of the block, counted through all stages.
            layout: What the tokens are.
        """
        return x

    def after_attention(self, x: Tensor, layer: int) -> Tensor:
        """Change the tokens between attention and MLP, (B, n, C), the residual already added."""
        return x

    def after_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Change what a block puts out, (B, F + P + N, C)."""
        return x

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """Change the features: what the backbone is about to return for a batch of images."""
        return outs

    def merge(self, backbone: nn.Module) -> None:
        """Put what this adapter does into the backbone's weights and take its hooks off.

        Args:
            backbone: The backbone that it was built with.

        Raises:
            ValueError: If this kind of adapter cannot be merged.
        """
        raise ValueError(f'{type(self).__name__} is not linear: it cannot be merged into weights')


def find_linears(
    backbone: nn.Module, targets: Sequence[str], key: str = 'adapters.targets'
) -> dict[str, nn.Linear]:
    """Find the linear layers of a backbone whose names match a pattern.

    Args:
        backbone: The backbone.
        targets: Regular expressions, searched in the names of its modules.
        key: Name of the config key, for messages.

    Returns:
        Name -> layer, in the backbone's order.

    Raises:
        ValueError: If ``targets`` is no list of patterns or one matches no linear layer.
    """
    if isinstance(targets, str) or not isinstance(targets, Sequence) or not targets:
        raise ValueError(f'{key} must be a list of regular expressions, found {targets!r}')
    linears = {
        name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)
    }
    found: set[str] = set()
    for pattern in targets:
        try:
            matches = {name for name in linears if re.search(pattern, name)}
        except (re.error, TypeError) as error:
            raise ValueError(
                f'{key}: {pattern!r} is not a valid regular expression ({error})'
            ) from error
        if not matches:
            examples = ', '.join(list(linears)[:4]) or 'it has none'
            raise ValueError(
                f'{key}: pattern {pattern!r} matches no linear layer of {type(backbone).__name__} '
                f'(it has: {examples}, ...)'
            )
        found |= matches
    return {name: linear for name, linear in linears.items() if name in found}


def check_rank(value: int, key: str) -> int:
    """Return a rank or width of a bottleneck.

    Raises:
        ValueError: If it is no integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{key} must be an integer of at least 1, found {value!r}')
    return value


def check_dropout(value: float, key: str) -> float:
    """Return a dropout probability.

    Raises:
        ValueError: If it is no number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f'{key} must be a number in [0, 1), found {value!r}')
    return value
