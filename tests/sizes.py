"""Sizes of backbones, and the numbers of parameters that the formulas of the method files give.

A formula stands in each file of configs/_base_/methods, behind ``# Trainable:``, and in the table
of docs/methods.md; it is written in the names of :class:`Sizes`, ``late`` (blocks behind the first
third of all, for each stage) and the arguments of the method.
"""

import functools
import inspect
import runpy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from mmengine.registry import MODELS
from utils import ROOT

from vpt_dense.tuning import ADDED


@dataclass(frozen=True)
class Sizes:
    """What the formulas know of a backbone; docs/methods.md says the same of their names.

    Arrays have a number for each stage; a ViT is one stage.

    Attributes:
        n: Blocks.
        d: Width.
        h: Width of the hidden layer of the MLP.
        u: What the MLP's first layer puts out: h, with gates (SwiGLU) 2 h.
        block: Parameters of a block.
        block_biases: Those of them that are biases.
        block_norms: Those of them in norms.
        rest: Parameters around the blocks, without the norms of the outputs.
        rest_biases: Those of them that are biases.
        rest_norms: Those of them in norms.
        norms: Parameters of the norms of the outputs.
        H: Rows of the image.
        W: Columns of the image.
        kernel: Height times width of the first convolution, which puts out d[0] channels.
        bias: Its biases.
        embeds: Layers that make its tokens: the convolution, and a norm if there is one.
        qkv: Layers of queries, keys and values in a block: one, or one for each.
        fc1: First layers of a MLP: one; or one for the gates, one for the values.
        tokens: Those that have a position: patches, and the class token.
        outputs: Widths of the outputs.
        vector: 1 where the output is the class token, 0 where it is a map.
        unread: Blocks whose patches nothing reads.
    """

    n: np.ndarray
    d: np.ndarray
    block: np.ndarray
    block_biases: np.ndarray
    block_norms: np.ndarray
    rest: int
    rest_biases: int
    rest_norms: int
    norms: int
    H: int
    W: int
    kernel: int
    bias: int
    outputs: np.ndarray
    h: np.ndarray | None = None
    u: np.ndarray | None = None
    tokens: int = 0
    vector: int = 0
    unread: int = 0
    embeds: int = 1
    qkv: int = 1
    fc1: int = 1


def vit(
    width: int = 64, depth: int = 4, hidden: int = 128, size: int = 32, patch: int = 8,
    outputs: int = 1, vector: bool = False, reads_patches: bool = True, gates: bool = False,
    mlp_norm: bool = False, layer_scale: bool = False, pre_norm: bool = False, cls: bool = True,
    registers: int = 0, norms: int = 1, biases: int = 3, qkv: int = 1, fc1: int = 1,
    positions: int | None = None, pool: bool = False,
) -> Sizes:
    """Those of a vision transformer.

    ``norms`` behind the blocks; ``biases`` of queries, keys and values; ``qkv`` layers of them, and
    ``fc1`` first ones of a MLP; ``positions`` in the embedding, if others than all tokens but
    registers have one; ``pool`` by attention.
    """
    n, d, h = (np.array([number]) for number in (depth, width, hidden))
    tokens, u = (size // patch) ** 2 + cls, h * (1 + gates)
    rows = tokens if positions is None else positions
    within = 4 * d + mlp_norm * 2 * h
    # query; layers of queries, of keys and values, behind attention; norm; MLP
    pooling = width + 4 * (width + 1) * width + 2 * width + (2 * width + 1) * hidden + width
    return Sizes(
        n, d, h=h, u=u, qkv=qkv, fc1=fc1,
        # queries, keys and values, projection; MLP; norms; two layer scales
        block=4 * d * d + (biases + 1) * d + (d * u + u) + (h * d + d) + within
        + layer_scale * 2 * d,
        block_biases=(biases + 1) * d + u + d + within // 2, block_norms=within,
        rest=(3 * patch * patch + (not pre_norm) + 2 * pre_norm + rows + cls + registers) * width
        + pool * pooling,
        rest_biases=width + pool * (6 * width + hidden),
        rest_norms=2 * width * (pre_norm + pool), norms=norms * 2 * width, H=size,
        W=size, kernel=patch * patch, bias=width * (not pre_norm), tokens=tokens,
        outputs=np.array([width] * outputs), vector=int(vector), unread=int(not reads_patches))


def swin(
    widths: Sequence[int] = (16, 32), depths: Sequence[int] = (2, 2), heads: Sequence[int] = (2, 4),
    window: int = 4, size: int = 32, patch: int = 4, outputs: Sequence[int] = (-1,),
) -> Sizes:
    """Those of a Swin transformer, its MLP four times as wide; ``outputs``: the stages."""
    n, d = np.array(depths), np.array(widths)
    first, merged, out = widths[0], 4 * d[:-1], d[list(outputs)]
    return Sizes(
        n, d, h=4 * d, u=4 * d,
        block=12 * d * d + 13 * d + np.array(heads) * (2 * window - 1) ** 2,
        block_biases=11 * d, block_norms=4 * d,
        # patches and their norm; norm and linear layer of each merging
        rest=(3 * patch * patch + 3) * first + int(sum(2 * merged + merged * merged // 2)),
        rest_biases=2 * first + int(sum(merged)), rest_norms=2 * first + 2 * int(sum(merged)),
        norms=2 * int(sum(out)), H=size, W=size, kernel=patch * patch, bias=first,
        outputs=out, embeds=2)


def resnet(
    width: int = 8, depths: Sequence[int] = (3, 4, 6, 3), size: int = 64,
    outputs: Sequence[int] = (-1,),
) -> Sizes:
    """Those of a ResNet of bottlenecks; ``width``: of the stem and the first stage's 3x3."""
    n = np.array(depths)
    d = width * 2 ** np.arange(len(n))
    enters = np.append(width, 4 * d[:-1])  # the first block of a stage, which has a shortcut
    return Sizes(
        n, d, block=(17 * d + 2 * 6) * d, block_biases=6 * d, block_norms=12 * d,
        rest=(3 * 49 + 2) * width + int(sum((enters - 4 * d) * d + (4 * enters + 2 * 4) * d)),
        rest_biases=width + 4 * int(sum(d)), rest_norms=2 * width + 8 * int(sum(d)), norms=0,
        H=size, W=size, kernel=49, bias=0, outputs=4 * d[list(outputs)])


def convnext(
    widths: Sequence[int] = (8, 16, 24, 32), depths: Sequence[int] = (1, 1, 1, 3), size: int = 64,
    outputs: Sequence[int] = (-1,),
) -> Sizes:
    """Those of a ConvNeXt; ``outputs``: the stages."""
    n, d = np.array(depths), np.array(widths)
    first, a, b, out = widths[0], d[:-1], d[1:], d[list(outputs)]  # a to b between stages
    return Sizes(
        n, d, h=4 * d, u=4 * d,
        # depthwise 7x7; norm; two linear layers; layer scale
        block=50 * d + 2 * d + (8 * d * d + 5 * d) + d, block_biases=7 * d, block_norms=2 * d,
        rest=(3 * 16 + 1 + 2) * first + int(sum(2 * a + 4 * a * b + b)),
        rest_biases=2 * first + int(sum(a + b)), rest_norms=2 * first + 2 * int(sum(a)),
        norms=2 * int(sum(out)), H=size, W=size, kernel=16, bias=first, outputs=out)


#: The formula of a method file, by its name.
formula_of = functools.cache(runpy.run_path(str(ROOT / 'tools/methods_table.py'))['formula'])


def count(formula: str, sizes: Sizes, tuning: dict[str, Any]) -> int:
    """What a formula comes to.

    Args:
        formula: In the names of ``sizes`` and of the arguments of what ``tuning`` adds.
        sizes: Of the backbone.
        tuning: What the method sets on it.
    """
    names = asdict(sizes)
    names['late'] = (sizes.n.cumsum() - sizes.n.sum() // 3).clip(0, sizes.n)
    for key in ADDED:
        part = tuning.get(key) or []
        for each in part if isinstance(part, list) else [part]:
            defaults = inspect.signature(MODELS.get(each['type'])).parameters.values()
            names.update({p.name: p.default for p in defaults if p.default is not p.empty})
            names.update(each)
    return int(eval(formula, {'__builtins__': {}, 'sum': sum}, names))
