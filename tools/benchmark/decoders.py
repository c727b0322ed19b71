"""Decoders on one encoder: what each adds to the time of a forward pass, and its parameters.

``python tools/benchmark/decoders.py``
``python tools/benchmark/decoders.py --decoders linear pmd eomt --device cuda --dtype bfloat16``
``python tools/benchmark/decoders.py --decoders linear pmd vit-split --train``

Whole models in eval mode, one image, 150 classes, random weights: from the image to the scores at
the decoder's own resolution. EoMT's time is that of the queries in the encoder's last blocks, too.
ViT-Split's parameters are those of its copied blocks, convolutions and head.

With --train: a training step on images of one batch, the encoder frozen; and the same with the
encoder's features read from disk (feature_cache). Data loading is not in it.
"""

import argparse
import importlib.util
import statistics
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import common
import torch
from torch import Tensor, nn

from vpt_dense.errors import UserError, main

BASES = Path(__file__).resolve().parents[2] / 'configs/_base_'
#: Name -> file of configs/_base_/models; all but the last are mmseg's kind.
DECODERS = {
    'linear': 'linear_vit-l', 'setr-pup': 'setr-pup_vit-l', 'upernet': 'upernet_vit-l',
    'segmenter': 'segmenter_vit-l', 'pmd': 'pmd_vit-l', 'eomt': 'eomt_vit-l',
    'vit-split': 'deconv_vit-l', 'mask2former': 'mask2former_vit-b',
}


def build(name: str, args: argparse.Namespace) -> nn.Module:
    """A model of the shipped configs on the encoder that was asked for, at random."""
    from mmengine import Config

    from vpt_dense import building, config
    from vpt_dense.detection.settings import strides

    cfg = Config(dict(
        default_scope='mmdet' if name == 'mask2former' else 'mmseg',
        model=Config.fromfile(BASES / f'models/{DECODERS[name]}.py').model,
        pretrained=Config.fromfile(BASES / f'backbones/{args.backbone}.py').pretrained))
    cfg.pretrained.backbone.init_cfg = None
    config.place_pretrained(cfg)
    backbone = cfg.model.backbone
    backbone.update(trainable=[], **({} if 'model' in backbone else dict(img_size=args.img_size)))
    cfg.model.pop('auxiliary_head', None)  # for training alone
    if name == 'vit-split':
        large = 'vit-l' in args.backbone  # the authors' sizes
        backbone.update(trainable=[r'^adapters\.'], adapters=[dict(
            type='vpt_dense.ViTSplit', num_blocks=4 if large else 3, num_maps=8 if large else 4)])
    if name == 'mask2former':
        neck = cfg.model.neck
        cfg.model.panoptic_head.strides = strides(patch(args), neck.scales, neck.num_outs)
    for part in (*([cfg.model.neck] if 'neck' in cfg.model else []), cfg.model.get('decode_head')):
        if part and (part.get('norm_cfg') or {}).get('type') == 'SyncBN':
            part.norm_cfg = dict(type='BN')
    return building.build_model(cfg).to(args.device).eval()


def patch(args: argparse.Namespace) -> int:
    """Pixels of the encoder's patches."""
    return 14 if 'dinov2' in args.backbone else 16


def way_of(name: str, model: nn.Module, x: Tensor, args: argparse.Namespace) -> Callable:
    """A function that lets images (1, 3, H, W) pass a model, without what follows the decoder."""

    def plain() -> None:
        with torch.no_grad(), common.autocast(args):
            features = model.extract_feat(x) if name != 'encoder' else model.backbone(x)
            if name != 'encoder':
                model.decode_head(features)

    def detector() -> None:
        from mmdet.structures import DetDataSample

        shape = tuple(x.shape[2:])
        sample = DetDataSample(metainfo=dict(batch_input_shape=shape, img_shape=shape))
        with torch.no_grad(), common.autocast(args):
            model.panoptic_head(model.extract_feat(x), [sample])

    return detector if name == 'mask2former' else plain


def step_of(
    model: nn.Module, folder: Path | None, args: argparse.Namespace
) -> Callable[[], object]:
    """A function that trains a model for a step, the features of its encoder kept in a folder."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    from vpt_dense.backbones.feature_cache import FeatureCache

    model.train()
    generator = torch.Generator().manual_seed(1)
    size = (args.batch, args.img_size, args.img_size)
    x = torch.randn(size[0], 3, *size[1:], generator=generator).to(args.device)
    blocks = torch.randint(150, (size[0], 7, 7), generator=generator)  # regions, not noise
    labels = torch.nn.functional.interpolate(blocks[:, None].float(), size[1:]).long()
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each.to(args.device))) for each in labels]
    for sample in samples:
        sample.set_metainfo(dict(img_shape=size[1:], pad_shape=size[1:]))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.05)
    cache = None if folder is None else FeatureCache(model.backbone, folder, print)

    def step() -> None:
        with nullcontext() if cache is None else cache.attached(), common.autocast(args):
            loss = model.parse_losses(model.loss(x, samples))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(2 if cache else 0):  # the first one looks what acts, the second one keeps
        step()
    return step


def train(names: list[str], args: argparse.Namespace) -> None:
    """Time training steps with and without cached features."""
    with tempfile.TemporaryDirectory() as place:
        ways = {}
        for name in names:
            ways[name] = step_of(build(name, args), None, args)
            ways[f'{name}, cached'] = step_of(build(name, args), Path(place, name), args)
        times = common.in_turn(ways, args.rounds, args.device)
    rows = [dict(decoder=name, seconds=found) for name, found in times.items()]
    cells = [
        [name, *(f'{statistics.median(each):.2f} s' for each in (plain, cached)),
         common.ratio(cached, plain)]
        for name in names
        for plain, cached in [(times[name], times[f'{name}, cached'])]]
    common.show(
        f'training step on {args.backbone}, {args.batch} images of {args.img_size} px, '
        f'{args.dtype}, {args.device}',
        ['decoder', 'an iteration', 'with cached features', 'ratio'], cells)
    common.write(args.json, args, dict(script='decoders', rows=rows))


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = common.parser(__doc__)
    line.add_argument('--decoders', nargs='+', choices=list(DECODERS), default=list(DECODERS),
                      help='mask2former needs the extra detection')
    line.add_argument('--backbone', default='dinov2_vit-s', metavar='NAME',
                      help='a file of configs/_base_/backbones (dinov2_vit-s)')
    line.add_argument('--img-size', type=int, default=336, help='pixels of a side')
    line.add_argument('--train', action='store_true', help='training steps (not mask2former)')
    line.add_argument('--batch', type=int, default=4, help='images of a training step')
    args = line.parse_args()
    common.check(args)
    if args.batch < 2:
        raise UserError(f'--batch must be at least 2 (batch norms), found {args.batch}')
    if not (BASES / f'backbones/{args.backbone}.py').is_file():
        raise UserError(f'--backbone {args.backbone}: configs/_base_/backbones has no such file')
    if args.img_size < 1 or args.img_size % patch(args):
        raise UserError(f'--img-size must be a multiple of {patch(args)}, found {args.img_size}')
    lacking = importlib.util.find_spec('mmdet') is None
    if lacking and args.decoders == ['mask2former']:
        raise UserError("mask2former needs mmdet: pip install 'vpt-dense[detection]'")
    names = [name for name in args.decoders if name != 'mask2former' or not lacking]
    if args.train:
        train([name for name in names if name != 'mask2former'], args)
        return
    models = {name: build(name, args) for name in names}
    logging.filter_warnings()  # the imports have set their own
    first = next((models[name] for name in names if name != 'vit-split'), None)
    first = build('linear', args) if first is None else first  # an encoder with nothing beside it
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, args.img_size, args.img_size, generator=generator).to(args.device)
    ways = {'encoder': way_of('encoder', first, x, args)}
    ways.update({name: way_of(name, model, x, args) for name, model in models.items()})
    times = common.in_turn(ways, args.rounds, args.device)
    base, rows, cells = times['encoder'], [], []
    for name, found in times.items():
        added = 0 if name == 'encoder' else sum(
            p.numel() for key, p in models[name].named_parameters()
            if not key.startswith('backbone.') or key.startswith('backbone.adapters.'))
        middle = statistics.median(found)
        rows.append(dict(decoder=name, parameters=added, seconds=found))
        cells.append([name, f'{added:,}', f'{1e3 * middle:.0f} ms', common.ratio(found, base)])
    common.show(
        f'{args.backbone}, one image of {args.img_size} px, 150 classes, {args.dtype}, '
        f'{args.device}',
        ['decoder', 'its parameters', 'encoder and decoder', '/ encoder'], cells,
        'mask2former left out: mmdet is not installed' if lacking and 'mask2former' in
        args.decoders else '')
    common.write(args.json, args, dict(script='decoders', rows=rows))


if __name__ == '__main__':
    main(run)
