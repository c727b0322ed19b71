"""The contract between an adapter and a backbone."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_patterns
from vpt_dense.prompts import Part
from vpt_dense.tuning import OUTPUT_NORM, is_added


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
    - it overrides one of :meth:`before_block`, :meth:`after_attention`, :meth:`after_block` and
      :meth:`after_backbone`, which every backbone calls.

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
    """

    mergeable = False
    changes_inputs = False
    merged = False

    def __init__(self, backbone: nn.Module, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)

    def after_attention(self, x: Tensor, layer: int) -> Tensor:
        """Change the tokens between attention and MLP, (B, n, C), the residual already added."""
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
    for block in backbone.blocks():
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
        computed = {'weight', 'bias'} - module._parameters.keys()
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


def output_norms(backbone: nn.Module) -> list[nn.Module]:
    """The norms behind the blocks: ``ln1`` of a ViT that has a final norm, ``norm3`` of a Swin."""
    return [module for name, module in backbone.named_children() if OUTPUT_NORM.match(name + '.')]


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
    aliases = {
        getattr(block, part): f'{block.name}.{part}'
        for block in backbone.blocks() for part in ('qkv', 'proj', 'fc1', 'fc2')
    }
    found: set[str] = set()
    for pattern in targets:
        matches = {
            name for name, linear in linears.items()
            if re.search(pattern, name) or re.search(pattern, aliases.get(linear, ''))
        }
        if not matches:
            examples = ', '.join(list(linears)[:4]) or 'it has none'
            raise ValueError(
                f'{key}: pattern {pattern!r} matches no linear layer of {type(backbone).__name__} '
                f'(it has: {examples}, ...)'
            )
        found |= matches
    return {name: linear for name, linear in linears.items() if name in found}
