"""An ensemble's pass at test time against separate passes of its members, backbone and heads.

``python tools/benchmark/ensemble.py``
``python tools/benchmark/ensemble.py --arch large --img-size 512 --batch 1 --members 5 --seg``

Deep prompts, their keys and values computed before. All ways have one copy of the frozen weights;
what k copies of them would take is in the note. Memory is the peak of a pass less what was there
before: PyTorch's count on a GPU, the process's on a CPU (Linux), where a small pass finds its
memory in what the process has already.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import models
import torch
from slide import peak_bytes
from torch import Tensor, nn

from vpt_dense.errors import UserError, main

#: What is predicted: a class of 1000 for an image, or one of 150 for each pixel.
CLASSES = {'cls': 1000, 'seg': 150}


def config(args: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """The config of one member's model."""
    arch = models.architecture(args.arch, args.layers)
    backbone = dict(
        type='vpt_dense.VisionTransformer', arch=arch, img_size=args.img_size,
        prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=tokens, deep=True))
    if not args.seg:
        head = dict(type='mmpretrain.LinearClsHead', num_classes=CLASSES['cls'],
                    in_channels=arch['embed_dims'])
        return dict(type='mmpretrain.ImageClassifier',
                    backbone=dict(backbone, out_type='cls_token'), head=head)
    head = dict(
        type='vpt_dense.SETRUPHead', in_channels=arch['embed_dims'], channels=256, in_index=0,
        num_convs=4, up_scale=2, num_classes=CLASSES['seg'], dropout_ratio=0,
        norm_cfg=dict(type='BN'), loss_decode=dict(type='mmseg.CrossEntropyLoss'))
    return dict(type='vpt_dense.EncoderDecoder',
                backbone=dict(backbone, out_type='featmap', out_indices=[arch['num_layers'] - 1]),
                decode_head=head, test_cfg=dict(mode='whole'))


def build(args: argparse.Namespace, tokens: int, k: int) -> tuple[nn.Module, list[nn.Module]]:
    """Build an ensemble, and its members as models of their own on the same frozen weights."""
    from mmengine import Config
    from mmengine.registry import MODELS

    from vpt_dense.ensemble import settings

    torch.manual_seed(0)
    wrapped = Config(config(args, tokens))
    settings.wrap(wrapped, list(range(k)))
    ensemble = MODELS.build(wrapped._cfg_dict).to(args.device).eval()
    singles = []
    for member in range(k):
        single = MODELS.build(Config(config(args, tokens))._cfg_dict).to(args.device).eval()
        for name, child in ensemble.backbone.named_children():
            if name != 'prompt':
                setattr(single.backbone, name, child)
        for name in ('pos_embed', 'cls_token'):
            setattr(single.backbone, name, getattr(ensemble.backbone, name))
        single.backbone.prompt = ensemble.backbone.prompt.members[member]
        for name in ('head', 'decode_head'):
            if hasattr(single, name):
                setattr(single, name, getattr(ensemble, name).members[member])
        singles.append(single)
    return ensemble, singles


def scores(model: nn.Module, images: Tensor, args: argparse.Namespace) -> Tensor:
    """The scores of images, a pixel's if it segments, in the precision that was asked for."""
    with torch.no_grad(), common.autocast(args):
        if not args.seg:
            return model(images)
        return model.encode_decode(images, [dict(img_shape=images.shape[2:])] * len(images))


def separate(singles: list[nn.Module], images: Tensor, args: argparse.Namespace) -> Tensor:
    """The mean probabilities of models that run one after the other."""
    total = sum(scores(single, images, args).float().softmax(1) for single in singles)
    return total / len(singles)


def together(ensemble: nn.Module, images: Tensor, args: argparse.Namespace) -> Tensor:
    """The mean probabilities of an ensemble's pass."""
    return scores(ensemble, images, args).softmax(1)


def ways(args: argparse.Namespace, tokens: int, k: int, images: Tensor) -> tuple[dict, float, int]:
    """What is measured, the difference of both results, and the bytes of a backbone.

    The difference is the largest of a probability, relative to the largest probability.
    """
    ensemble, singles = build(args, tokens, k)
    found: dict[str, Callable[[], Tensor]] = {
        'one member': partial(separate, singles[:1], images, args),
        f'{k} passes': partial(separate, singles, images, args),
        'one pass': partial(together, ensemble, images, args),
    }
    apart, joined = found[f'{k} passes'](), found['one pass']()
    gap = ((apart - joined).abs().max() / apart.max()).item()
    frozen = sum(
        p.numel() * p.element_size() for n, p in ensemble.backbone.named_parameters()
        if not n.startswith('prompt.'))
    return found, gap, frozen


def check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be served.

    Raises:
        UserError: Names the option.
    """
    models.check(args)
    for size in args.img_size:
        if size % 16:
            raise UserError(f'--img-size must be a multiple of 16, found {size}')
    if min(args.members) < 1:
        raise UserError(f'--members must be at least 1, found {min(args.members)}')


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = common.parser(__doc__)
    line.add_argument('--arch', default='base', help='of mmpretrain: base, large, ...')
    line.add_argument('--layers', type=int, help='fewer blocks than the architecture has')
    line.add_argument('--img-size', type=int, default=224, help='pixels')
    line.add_argument('--batch', type=int, nargs='+', default=[1, 8])
    line.add_argument('--tokens', type=int, default=10)
    line.add_argument('--members', type=int, nargs='+', default=[5])
    line.add_argument('--seg', action='store_true', help='SETR-PUP at 150 classes, not a linear '
                      'head at 1000')
    args = line.parse_args()
    listed = argparse.Namespace(**{**vars(args), 'img_size': [args.img_size],
                                   'tokens': [args.tokens]})
    check(listed)
    logging.filter_warnings()  # the imports have set their own
    measurable = torch.device(args.device).type == 'cuda' or common.STATUS.exists()
    rows, cells, frozen = [], [], 0
    for k in args.members:
        for batch in args.batch:
            generator = torch.Generator().manual_seed(0)
            images = torch.randn(batch, 3, args.img_size, args.img_size, generator=generator)
            calls, gap, frozen = ways(args, args.tokens, k, images.to(args.device))
            logging.filter_warnings()
            times = common.in_turn(calls, args.rounds, args.device)
            for way, call in calls.items():
                row = dict(members=k, batch=batch, way=way, seconds=times[way], difference=gap)
                cell = [str(k), str(batch), way, common.ratio(times[way], times[f'{k} passes']),
                        f'{sorted(times[way])[len(times[way]) // 2] * 1e3:.0f} ms']
                if measurable:
                    row['peak_bytes'] = max(peak_bytes(call, args.device), 0)
                    cell.append(f'{row["peak_bytes"] / 1e6:.0f} MB')
                rows.append(row)
                cells.append(cell)
    arch = models.architecture(args.arch, args.layers)
    common.show(
        f'{args.arch}, {arch["num_layers"]} blocks, {args.tokens} deep prompts, '
        f'{"SETR-PUP" if args.seg else "linear head"}, {args.img_size} px, {args.dtype}, '
        f'{args.device}',
        ['members', 'batch', 'way', 'time / separate', 'median'] + ['peak'] * measurable, cells,
        note=f'frozen weights {frozen / 1e6:.0f} MB, once; as models of their own k times as much; '
             f'results differ by at most {max(row["difference"] for row in rows):.1g} of the '
             'largest probability')
    common.write(args.json, args, dict(script='ensemble', frozen_bytes=frozen, rows=rows))


if __name__ == '__main__':
    main(run)
