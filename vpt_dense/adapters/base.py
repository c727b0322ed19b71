"""The contract between an adapter and a backbone."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_patterns
from vpt_dense.prompts import Part, TokenLayout
from vpt_dense.tuning import is_added

#: The parts of attention's input, in the order of the rows of a layer that makes all of them.
PARTS = ('q', 'k', 'v')


class Block(NamedTuple):
    """One transformer block, called the same in every family of backbones.

    Attributes:
        name: Its name among the backbone's modules, ``layers.3`` or ``stages.2.blocks.3``.
        module: The block.
        embed_dims: Its width C.
        num_heads: Its attention heads.
        norm1: The norm of attention, before it or, in a post-norm block, behind.
        qkv: The linear layer of queries, keys and values, C to 3 C; or the three of them.
        proj: The linear layer after attention, C to C.
        norm2: The norm of the MLP.
        fc1: The first linear layer of the MLP; or those of the gate and the value of a SwiGLU.
        fc2: The last linear layer of the MLP.
        norms: What queries and keys pass before their product, (..., d) to (..., d); None: nothing.
        prenorm: Whether ``norm1`` is before attention.
    """

    name: str
    module: nn.Module
    embed_dims: int
    num_heads: int
    norm1: nn.Module
    qkv: tuple[nn.Linear, ...]
    proj: nn.Linear
    norm2: nn.Module
    fc1: tuple[nn.Linear, ...]
    fc2: nn.Linear
    norms: tuple[nn.Module, nn.Module] | None = None
    prenorm: bool = True

    @property
    def head_dims(self) -> int:
        """Width d of a head."""
        width = self.embed_dims if self.proj is None else self.proj.in_features
        return width // self.num_heads

    def weights(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight (n, C) and bias (n,) of the queries, 'q', or of keys and values, 'kv'.

        They are the block's own, whatever adapters do to its layers.
        """
        if len(self.qkv) == 1:
            (linear,) = self.qkv
            width = self.embed_dims
            rows = slice(width) if part == 'q' else slice(width, None)
            return linear.weight[rows], None if linear.bias is None else linear.bias[rows]
        linears = self.qkv[:1] if part == 'q' else self.qkv[1:]
        biases = [linear.bias for linear in linears]
        if all(bias is None for bias in biases):
            return torch.cat([linear.weight for linear in linears]), None
        biases = [
            linear.weight.new_zeros(len(linear.weight)) if bias is None else bias
            for linear, bias in zip(linears, biases, strict=True)]
        return torch.cat([linear.weight for linear in linears]), torch.cat(biases)

    def queries(self, x: Tensor) -> Tensor:
        """Queries of tokens by :meth:`weights`, (b, n, C) to (b, heads, n, d)."""
        queries = self._split(F.linear(x, *self.weights('q')))
        return queries if self.norms is None else self.norms[0](queries)

    def keys_values(
        self, tokens: Tensor, call: Callable[[nn.Module, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of tokens.

        Args:
            tokens: (b, n, C), as attention gets them.
            call: How the layers are called; None: as functions of :meth:`weights`.

        Returns:
            Two tensors (b, heads, n, d).
        """
        if call is None:
            keys, values = F.linear(tokens, *self.weights('kv')).chunk(2, dim=-1)
        elif len(self.qkv) == 1:
            _, keys, values = call(self.qkv[0], tokens).chunk(3, dim=-1)
        else:
            keys, values = (call(linear, tokens) for linear in self.qkv[1:])
        keys, values = self._split(keys), self._split(values)
        return keys if self.norms is None else self.norms[1](keys), values

    def _split(self, tokens: Tensor) -> Tensor:
        """(b, n, C) to (b, heads, n, d); heads that several queries share are repeated."""
        split = tokens.unflatten(-1, (-1, self.head_dims)).transpose(1, 2)
        return split.repeat_interleave(self.num_heads // split.shape[1], dim=1)


class Change(nn.Module):
    """A part of an adapter whose methods are hooks on modules of the backbone.

    By its class backbones tell what changes a module, which concerns prompts too, from what
    watches it.
    """


class Adapter(Part):
    """Changes what the blocks of a frozen backbone compute.

    An adapter is built with the backbone (``backbone.adapters`` holds all of them, in the order of
    the config), makes its parameters for that backbone, and acts in one of two ways:

    - it registers forward hooks on modules of the backbone when it is built. The hooks are methods
      of its own modules, each a :class:`Change`, so that copies of the backbone (EMA) have hooks of
      their own; the names of the backbone's parameters stay what they were;
    - it overrides one of :meth:`before_block`, :meth:`after_attention`, :meth:`after_mlp`,
      :meth:`after_block` and :meth:`after_backbone`, which every backbone calls.

    It keeps no reference to the backbone; layers whose weights it shares stand in a tuple, where
    they are no submodules and copies of the backbone have their own (:class:`CVPT
    <vpt_dense.adapters.CVPT>`). Its parameters begin with ``adapters.<index>.``.

    Args:
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        mergeable: Whether :meth:`merge` can put what it does into the backbone's own weights.
        merged: Whether it has.
        changes_inputs: Whether its hooks change what goes into linear layers, not what comes out.
            Of several adapters on one layer these act first, wherever they are in the list.
        reads: Blocks whose outputs it keeps for :meth:`after_backbone`.
    """

    mergeable = False
    changes_inputs = False
    merged = False
    reads: frozenset[int] = frozenset()

    def __init__(self, backbone: nn.Module, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)

    def after_attention(
        self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout
    ) -> Tensor:
        """Change the tokens between attention and MLP, the residual already added.

        Args:
            x: The tokens, (B, F + P + N, C). Where nothing reads the others behind a block, it may
                be the first token alone.
            before: The same tokens in front of attention and its norm.
            layer: Index of the block.
            layout: What the tokens are.
        """
        return x

    def after_mlp(self, x: Tensor, before: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Change the tokens behind the MLP, the residual already added.

        Args:
            x: The tokens, as in :meth:`after_attention`.
            before: The same tokens in front of the MLP and its norm.
            layer: Index of the block.
            layout: What the tokens are.
        """
        return x

    def merge(self, backbone: nn.Module) -> None:
        """Put what this adapter does into the backbone's weights and take its hooks off.

        Where there are several, :func:`merge_adapters` knows the order. A second time there is
        nothing left to do.

        Args:
            backbone: The backbone that it was built with.

        Raises:
            ValueError: See :meth:`check_mergeable`; nothing is changed then.
        """
        if not self.merged:
            self.check_mergeable(backbone)
            with torch.no_grad():
                self._merge(backbone)
            self.merged = True

    def check_mergeable(self, backbone: nn.Module) -> None:
        """Refuse a merge that :meth:`_merge` could not finish.

        Args:
            backbone: The backbone that it was built with.

        Raises:
            ValueError: If this kind of adapter cannot be merged, or the weights cannot take it (see
                :func:`check_merge`).
        """
        if not self.mergeable:
            raise ValueError(
                f'{type(self).__name__} is not linear: it cannot be merged into weights')

    def _merge(self, backbone: nn.Module) -> None:
        """Do what :meth:`merge` says; nothing can be in the way."""
        raise NotImplementedError


def merge_adapters(backbone: nn.Module) -> None:
    """Merge all adapters of a backbone, or none; it has none afterwards.

    What changes the outputs of a layer is merged in the order of the list, as it acts; then what
    changes its inputs, the last one first.

    Args:
        backbone: With ``adapters``, in any precision but half.

    Raises:
        ValueError: If one of them cannot be merged; the message names it. Nothing is changed then.
    """
    adapters = list(backbone.adapters)
    for i, adapter in enumerate(adapters):
        if not adapter.mergeable:
            raise ValueError(
                f'adapters.{i} ({type(adapter).__name__}) is no linear map of one layer, it cannot '
                'become part of the weights'
            )
    for adapter in adapters:
        adapter.check_mergeable(backbone)
    outputs = [adapter for adapter in adapters if not adapter.changes_inputs]
    inputs = [adapter for adapter in adapters if adapter.changes_inputs]
    for adapter in (*outputs, *reversed(inputs)):
        adapter.merge(backbone)
    del backbone.adapters[:]
    for block in backbone.block_list():
        block.module.adapters = ()


def check_merge(backbone: nn.Module, names: Iterable[str], needs_bias: bool = False) -> None:
    """Refuse to merge into layers that could not hold the result.

    Args:
        backbone: The backbone.
        names: Of its layers that would change.
        needs_bias: Whether their biases would.

    Raises:
        ValueError: If one is held in half precision (``frozen_dtype``), which would round away
            small changes, has no bias but needs one, or has a weight that is computed (pruned,
            parametrized).
    """
    for name in names:
        module = backbone.get_submodule(name)
        if module.weight.dtype in (torch.bfloat16, torch.float16):
            raise ValueError(
                f'{name} is held in {str(module.weight.dtype).removeprefix("torch.")}, which would '
                'round what is merged into it; build the backbone with frozen_dtype=None'
            )
        computed = {
            key for key in (('weight', 'bias') if needs_bias else ('weight',))
            if not isinstance(getattr(module, key), (nn.Parameter, type(None)))}
        if computed:
            raise ValueError(
                f'{name}.{min(computed)} is computed from other tensors (pruned, parametrized), '
                'nothing can be merged into it; make it a parameter again'
            )
        if needs_bias and module.bias is None:
            raise ValueError(f'{name} has no bias, so that no shift can be merged into it')


def names_of(backbone: nn.Module, modules: Iterable[nn.Module]) -> list[str]:
    """Names of modules of a backbone."""
    names = {module: name for name, module in backbone.named_modules()}
    return [names[module] for module in modules]


def find_linears(
    backbone: nn.Module, targets: Sequence[str], key: str = 'adapters.targets'
) -> dict[str, nn.Linear]:
    """Find the linear layers of a backbone whose names match a pattern.

    Args:
        backbone: The backbone.
        targets: Regular expressions, searched in the names of its modules and in the names that
            :class:`Block` has for them, ``layers.3.fc1``, the same in every family.
        key: Name of the config key, for messages.

    Returns:
        Name -> layer, in the backbone's order.

    Raises:
        ValueError: If ``targets`` is no list of patterns or one matches no linear layer.
    """
    check_patterns(targets or None, key)
    linears = {
        name: module for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and not is_added(name)
    }
    aliases: dict[nn.Module, list[str]] = {}
    for block in backbone.block_list():
        groups = dict(qkv=block.qkv, fc1=block.fc1, proj=(block.proj,), fc2=(block.fc2,))
        if len(block.qkv) == len(PARTS):
            groups |= {part: (linear,) for part, linear in zip(PARTS, block.qkv, strict=True)}
        for part, group in groups.items():
            for linear in group:
                aliases.setdefault(linear, []).append(f'{block.name}.{part}')
    found: set[str] = set()
    for pattern in targets:
        matches = {
            name for name, linear in linears.items()
            if any(re.search(pattern, each) for each in (name, *aliases.get(linear, ())))
        }
        if not matches:
            examples = ', '.join(list(linears)[:4]) or 'it has none'
            raise ValueError(
                f'{key}: pattern {pattern!r} matches no linear layer of {type(backbone).__name__} '
                f'(it has: {examples}, ...)'
            )
        found |= matches
    return {name: linear for name, linear in linears.items() if name in found}
