"""SETR's heads with their losses, ours against mmseg's: time and bytes kept for backward.

``python tools/benchmark/heads.py``
``python tools/benchmark/heads.py --heads pup auxiliary mla --batch 2``

Forward, loss, and backward to the features and to the head's parameters, at ADE20K's setting:
ViT-L's 1024 channels, a feature map of 32x32, labels of 512x512, 150 classes.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import torch
from torch import Tensor, nn

from vpt_dense.errors import UserError, main

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/_base_/models'
#: Config file, its key and the index there.
HEADS = {
    'pup': ('setr-pup_vit-l.py', 'decode_head', None),
    'auxiliary': ('setr-pup_vit-l.py', 'auxiliary_head', 0),
    'naive': ('setr-naive_vit-l.py', 'decode_head', None),
    'naive-auxiliary': ('setr-naive_vit-l.py', 'auxiliary_head', 0),
    'mla': ('setr-mla_vit-l.py', 'decode_head', None),
}


def build(name: str, args: argparse.Namespace) -> dict[str, nn.Module]:
    """Build a head of the shipped configs, ours and mmseg's, with the same weights.

    SyncBN becomes BN, which is what it computes in one process.
    """
    from mmengine import Config
    from mmengine.registry import MODELS

    file, key, index = HEADS[name]
    cfg = Config.fromfile(CONFIGS / file).model[key]
    cfg = (cfg if index is None else cfg[index]).to_dict()
    cfg['norm_cfg'] = dict(type='BN')
    cfg['loss_decode']['type'] = f"mmseg.{cfg['loss_decode']['type']}"
    if isinstance(cfg['in_channels'], int):
        cfg['in_channels'] = args.channels
    else:
        cfg['in_channels'] = [args.channels] * len(cfg['in_channels'])
    theirs = {key: value for key, value in cfg.items() if key != 'log_accuracy'}
    theirs['type'] = cfg['type'].replace('vpt_dense.', 'mmseg.')
    heads = {'mmseg': MODELS.build(theirs), 'ours': MODELS.build(cfg)}
    heads['ours'].load_state_dict(heads['mmseg'].state_dict())
    return {way: head.to(args.device).train() for way, head in heads.items()}


def samples(size: int, batch: int, device: str) -> list:
    """Random labels (size, size) of 150 classes, some of which are ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 150, (batch, 1, size, size), generator=generator)
    labels[..., : size // 16, :] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels.to(device)]


def loss(
    head: nn.Module, features: list[Tensor], labels: list, args: argparse.Namespace
) -> Tensor:
    """The loss of a head, a scalar; its logits are computed in the precision asked for."""
    with common.autocast(args):
        losses = head.loss(features, labels, None)
    return sum(value for key, value in losses.items() if 'loss' in key)


def step(
    head: nn.Module, features: list[Tensor], labels: list, args: argparse.Namespace
) -> Callable[[], None]:
    """Forward, loss and backward of a head."""
    tensors = [*features, *head.parameters()]

    def run() -> None:
        for tensor in tensors:
            tensor.grad = None
        loss(head, features, labels, args).backward()

    return run


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = common.parser(__doc__)
    line.add_argument('--heads', nargs='+', choices=list(HEADS), default=['pup', 'auxiliary'])
    line.add_argument('--batch', type=int, nargs='+', default=[1])
    line.add_argument('--img-size', type=int, default=512, help='pixels of the labels')
    line.add_argument('--channels', type=int, default=1024, help='of the features')
    args = line.parse_args()
    common.check(args)
    if min(args.batch) < 1 or args.channels < 1:
        raise UserError('--batch and --channels must be at least 1')
    if args.img_size < 16 or args.img_size % 16:
        raise UserError(f'--img-size must be a multiple of 16, found {args.img_size}')
    rows, cells = [], []
    for name in args.heads:
        heads = build(name, args)
        logging.filter_warnings()  # the imports have set their own
        for batch in args.batch:
            generator = torch.Generator().manual_seed(0)
            shape = batch, args.channels, args.img_size // 16, args.img_size // 16
            features = [
                torch.randn(shape, generator=generator).to(args.device).requires_grad_()
                for _ in range(4)
            ]
            labels = samples(args.img_size, batch, args.device)
            # What is there anyway is left out: parameters, features and labels.
            given = [*features, *(label.gt_sem_seg.data for label in labels)]
            kept = {
                way: common.kept_bytes(
                    partial(loss, head, features, labels, args), [*head.parameters(), *given])
                for way, head in heads.items()
            }
            steps = {way: step(head, features, labels, args) for way, head in heads.items()}
            times = common.in_turn(steps, args.rounds, args.device)
            for way in heads:
                rows.append(dict(head=name, batch=batch, way=way, kept_bytes=kept[way],
                                 seconds=times[way]))
                cells.append([name, str(batch), way, common.ratio(times[way], times['mmseg']),
                              f'{kept[way] / kept["mmseg"]:.3f}', f'{kept[way] / 1e6:.1f} MB'])
    common.show(
        f'head and loss: {args.channels} channels, {args.img_size} px, 150 classes, '
        f'{args.dtype}, {args.device}',
        ['head', 'batch', 'way', 'time / mmseg', 'kept / mmseg', 'kept'], cells)
    common.write(args.json, args, dict(script='heads', rows=rows))


if __name__ == '__main__':
    main(run)
