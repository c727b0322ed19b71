"""Backbones that are compared: ours in its variants, the reference, mmseg's and no prompts.

All of them compute with one copy of the frozen weights.
"""

import argparse
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import common
import torch
from torch import Tensor, nn

from vpt_dense.errors import UserError

#: Each way to run a backbone, and what it means.
WAYS = {
    'p0': 'no prompts; gradients flow to the tokens that enter the first block',
    'reference': 'the reference algorithm (reference.py)',
    'mmseg': "mmseg's own ViT with prompts as tokens (mmseg_vit.py)",
    'tokens': "prompts_as='tokens': all tokens through everything, PyTorch's attention",
    'ours': 'prompts as keys and values',
    'folded': 'ours with keys and values made before (tools/delta.py fold)',
    'lean': "ours with memory='lean'",
    'with_cp': 'ours with with_cp=True',
    'compiled': 'ours through torch.compile',
    'frozen': "ours with frozen_dtype='bfloat16', which autocasts to bfloat16",
    'frozen-lean': "lean with frozen_dtype='bfloat16'",
    'last-half': 'ours with prompts in the last half of the blocks',
    'last-block': 'ours with prompts in the last block',
    'cls': "ours with out_type='cls_token'",
    'head-only': 'no prompts, nothing of the backbone trains',
    'full': 'no prompts, all of the backbone trains',
}
#: Those that differ at test time.
TEST = ('p0', 'reference', 'mmseg', 'tokens', 'ours', 'folded', 'frozen', 'cls')
COLUMNS = ['pixels', 'batch', 'prompts', 'way']
#: Those that know no prompts and are measured once for all numbers of them.
WITHOUT_PROMPTS = ('p0', 'head-only', 'full')


def parser(
    description: str, default: list[str], ways: Iterable[str] = tuple(WAYS)
) -> argparse.ArgumentParser:
    """A command line with the options of the backbones.

    Args:
        description: Of the script.
        default: The ways that are measured where ``--ways`` is absent; p0 always is.
        ways: All that can be measured.
    """
    line = common.parser(description)
    line.add_argument('--arch', default='base', help='of mmpretrain: base, large, ...')
    line.add_argument('--layers', type=int, help='fewer blocks than the architecture has')
    line.add_argument('--img-size', type=int, nargs='+', default=[224], help='pixels')
    line.add_argument('--batch', type=int, nargs='+', default=[8])
    line.add_argument('--tokens', type=int, nargs='+', default=[10, 50, 100, 200])
    line.add_argument(
        '--ways', nargs='+', choices=ways, default=default, metavar='WAY',
        help='; '.join(f'{way}: {WAYS[way]}' for way in ways))
    line.add_argument(
        '--against', nargs='+', choices=ways, default=['p0', 'reference'], metavar='WAY',
        help='the ways that ratios are taken of, as far as they are measured')
    return line


def check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be served.

    Raises:
        UserError: Names the option.
    """
    common.check(args)
    for option in ('img_size', 'batch', 'tokens'):
        for value in getattr(args, option):
            if value < 1:
                raise UserError(f'--{option.replace("_", "-")} must be at least 1, found {value}')
    if args.layers is not None and args.layers < 2:
        raise UserError(f'--layers must be at least 2, found {args.layers}')
    full = architecture(args.arch, None)['num_layers']
    if args.layers is not None and args.layers > full:
        raise UserError(f'--layers {args.layers}: {args.arch} has {full}')


def architecture(name: str, layers: int | None) -> dict:
    """The sizes of an architecture: embed_dims, num_layers, num_heads, feedforward_channels.

    Args:
        name: Of mmpretrain.
        layers: Another number of blocks; None: its own.

    Raises:
        UserError: If mmpretrain has none of this name.
    """
    from mmpretrain.models import VisionTransformer

    if name not in VisionTransformer.arch_zoo:
        raise UserError(f'--arch {name}: not one of {sorted(VisionTransformer.arch_zoo)}')
    arch = dict(VisionTransformer.arch_zoo[name])
    arch['num_layers'] = layers or arch['num_layers']
    return arch


class Backbones:
    """Builds backbones on the same weights.

    Args:
        arch: See :func:`architecture`.
        img_size: Pixels.
        device: Where the weights are.
    """

    def __init__(self, arch: dict, img_size: int, device: str = 'cpu') -> None:
        self.arch, self.img_size, self.device = arch, img_size, device
        torch.manual_seed(0)
        self.weights = self._ours().to(device).state_dict()

    def build(self, way: str, num_tokens: int) -> nn.Module:
        """Build one way, in training mode.

        Args:
            way: One of :data:`WAYS`.
            num_tokens: Prompts before each block.

        Returns:
            A model of images that returns a tuple, whose last is a feature map (B, C, h, w), or
            (B, C) for 'cls'.
        """
        last = self.arch['num_layers']
        start = {'last-half': last // 2, 'last-block': last - 1}.get(way, 0)
        prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=num_tokens, deep=True,
                      layer_range=(start, None))
        special = {
            'p0': dict(trainable=['^pos_embed$']),
            'head-only': dict(trainable=[]),
            'full': dict(trainable=['.*']),
            'tokens': dict(prompts_as='tokens'),
            'lean': dict(memory='lean'),
            'with_cp': dict(with_cp=True),
            'frozen': dict(frozen_dtype='bfloat16'),
            'frozen-lean': dict(frozen_dtype='bfloat16', memory='lean'),
            'cls': dict(out_type='cls_token'),
        }.get(way, {})
        if way not in WITHOUT_PROMPTS:
            special['prompt'] = prompt
        if way == 'mmseg':
            from mmseg_vit import renamed

            # Its constructor computes with values, which 'meta' has none of.
            return fill(lambda: self._mmseg(num_tokens), renamed(self.weights), self.device)
        model = fill(lambda: self._ours(**special), self.weights, 'meta')
        if way == 'compiled':
            model.compile()
        if way == 'folded':
            model.prompt = self._folded(model, num_tokens)
        if way == 'reference':
            from reference import Reference

            return Reference(model)
        return model

    def _ours(self, **kwargs) -> nn.Module:
        from mmengine.registry import MODELS

        return MODELS.build(dict(
            type='vpt_dense.VisionTransformer', arch=self.arch, img_size=self.img_size,
            **{'out_type': 'featmap', **kwargs}))

    def _folded(self, model: nn.Module, num_tokens: int) -> nn.Module:
        from vpt_dense.prompts import FoldedPrompt

        layers = range(self.arch['num_layers'])
        prompt = FoldedPrompt(*model.sites(), layers, num_tokens)
        with torch.no_grad():
            pairs = [model.prompt_keys_values(model.pos_embed, i) for i in layers]
            prompt.keys, prompt.values = map(torch.cat, zip(*pairs, strict=True))
        return prompt

    def _mmseg(self, num_tokens: int) -> nn.Module:
        from mmseg_vit import TokensVisionTransformer

        arch = self.arch
        return TokensVisionTransformer(
            num_tokens, img_size=self.img_size, embed_dims=arch['embed_dims'],
            num_layers=arch['num_layers'], num_heads=arch['num_heads'],
            mlp_ratio=arch['feedforward_channels'] // arch['embed_dims'], patch_bias=True,
            final_norm=True, norm_cfg=dict(type='LN', eps=1e-6))


def fill(build: Callable[[], nn.Module], weights: dict[str, Tensor], room: str) -> nn.Module:
    """Build a model on weights that are there already, in training mode.

    What is frozen is shared, the rest is copied, and what the weights lack (prompts) is drawn,
    equally for equal shapes.

    Args:
        build: Returns the model.
        weights: By name, all on one device.
        room: Device on which the model is built: 'meta' costs nothing, where its class can.
    """
    with torch.device(room):
        model = build()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    device = next(iter(weights.values())).device
    state = {}
    for name, own in model.state_dict().items():
        if name not in weights:
            drawn = torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
            state[name] = (drawn * 0.05).to(device)
        elif name in frozen:
            state[name] = weights[name].to(own.dtype)  # itself, unless it is held in half
        else:
            state[name] = weights[name].clone()
    model.load_state_dict(state, assign=True)
    model.train()  # mmseg's returns None
    return model


def groups(args: argparse.Namespace) -> Iterable[tuple[int, int, Tensor, dict]]:
    """The models of every image size and batch size of a command line, one group at a time.

    Yields:
        Image size in pixels, batch size, images (B, 3, H, W) and models by (way, number of
        prompts or 0); p0 comes first.
    """
    arch = architecture(args.arch, args.layers)
    for img_size in args.img_size:
        builder = Backbones(arch, img_size, args.device)
        models = {('p0', 0): builder.build('p0', 0)}
        for way in args.ways:
            if way == 'p0':
                continue
            for number in [0] if way in WITHOUT_PROMPTS else args.tokens:
                models[way, number] = builder.build(way, number)
        for batch in args.batch:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(batch, 3, img_size, img_size, generator=generator)
            yield img_size, batch, images.to(args.device), models


def train_step(
    model: nn.Module, images: Tensor, args: argparse.Namespace
) -> Callable[[], None]:
    """A training step of a backbone: forward, the mean of the squared features, backward.

    Without anything that trains there is no backward: only a head would train behind it.
    """
    parameters = list(model.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        loss = forward(model, images, args).float().square().mean()
        if loss.requires_grad:
            loss.backward()

    return step


def forward(model: nn.Module, images: Tensor, args: argparse.Namespace) -> Tensor:
    """The last features of images in the precision that was asked for."""
    with common.autocast(args):
        return model(images)[-1]


def title(args: argparse.Namespace, what: str) -> str:
    """What was measured, for the head of a table."""
    arch = architecture(args.arch, args.layers)
    return f'{what}: ViT {args.arch}, {arch["num_layers"]} blocks, {args.dtype}, {args.device}'


def table(
    rows: list[dict], args: argparse.Namespace, key: str, cell: Callable[[Any, Any], str]
) -> list[list[str]]:
    """Ratios of all rows to those of the ways in ``--against``.

    Args:
        rows: Each with img_size, batch, tokens (0: it knows no prompts), way and the figure.
        args: Of the command line.
        key: Of the figure in a row.
        cell: Makes a cell of a figure and the one that it is compared with.

    Returns:
        Cells of each row: size, batch, tokens, way, then a ratio for each of :func:`bases`.
    """
    known = {(row['img_size'], row['batch'], row['tokens'], row['way']): row[key] for row in rows}
    lines = []
    for row in rows:
        place = row['img_size'], row['batch']
        line = [*map(str, place), str(row['tokens'] or '-'), row['way']]
        for base in bases(args):
            tokens = 0 if base in WITHOUT_PROMPTS else row['tokens']
            other = known.get((*place, tokens, base))
            line.append('-' if other is None else cell(row[key], other))
        lines.append(line)
    return lines


def bases(args: argparse.Namespace) -> list[str]:
    """The ways of ``--against`` that are measured."""
    return [way for way in dict.fromkeys(args.against) if way == 'p0' or way in args.ways]


def run_times(
    script: str,
    what: str,
    args: argparse.Namespace,
    make: Callable[[str, nn.Module, Tensor, argparse.Namespace], Callable[[], object]],
) -> None:
    """Time all ways of a command line in turn, print their table and write their figures.

    Args:
        script: Its name without ``.py``.
        what: Is timed.
        args: Of the command line.
        make: Of a way's name, its model, images (B, 3, H, W) and the command line makes what is
            timed.
    """
    from vpt_dense import logging

    logging.filter_warnings()
    check(args)
    logging.filter_warnings()  # the imports have set their own
    rows = []
    for img_size, batch, images, built in groups(args):
        steps = {key: make(key[0], model, images, args) for key, model in built.items()}
        for (way, tokens), seconds in common.in_turn(steps, args.rounds, args.device).items():
            rows.append(dict(img_size=img_size, batch=batch, tokens=tokens, way=way,
                             seconds=seconds))
    show_times(what, args, rows)
    common.write(args.json, args, figures(script, args, rows))


def show_times(what: str, args: argparse.Namespace, rows: list[dict]) -> None:
    """Print a table of times: ratios, and the median in seconds.

    Args:
        what: Is timed.
        args: Of the command line.
        rows: As in :func:`table`, with 'seconds' of each round.
    """
    cells = table(rows, args, 'seconds', common.ratio)
    for line, row in zip(cells, rows, strict=True):
        line.append(f'{statistics.median(row["seconds"]):.3f} s')
    common.show(title(args, what), [*COLUMNS, *(f'/ {way}' for way in bases(args)), 'median'],
                cells, note=legend(args.ways))


def legend(ways: Iterable[str]) -> str:
    """What the ways of a table mean, one a line."""
    return '\n'.join(f'{way}: {WAYS[way]}' for way in dict.fromkeys(['p0', *ways]))


def figures(script: str, args: argparse.Namespace, rows: list[dict]) -> dict:
    """What goes into a JSON file: the rows and the sizes of the architecture."""
    return dict(script=script, patch_size=16, rows=rows,
                **architecture(args.arch, args.layers))
