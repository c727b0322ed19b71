"""Sliding windows, and several scales with flip: ours against mmseg's on the same modules.

``python tools/benchmark/slide.py``
``python tools/benchmark/slide.py --head mla --arch large --windows-per-batch 1 4 8 --device cuda``

Timed are images to labels at ADE20K's 150 classes, data loading left out. Memory is the peak of
a call less what was there before: PyTorch's count on a GPU, the process's on a CPU (Linux).
"""

import argparse
import gc
from collections.abc import Callable
from pathlib import Path

import common
import models
import torch
from torch import nn

from vpt_dense.errors import UserError, main

CONFIGS = Path(__file__).resolve().parents[2] / 'configs/_base_/models'


def build(args: argparse.Namespace) -> dict[str, nn.Module]:
    """Build both segmentors for testing, from a shipped config, with the same modules."""
    from mmengine import Config
    from mmengine.registry import MODELS

    arch = models.architecture(args.arch, args.layers)
    width, layers = arch['embed_dims'], arch['num_layers']
    cfg = Config.fromfile(CONFIGS / f'setr-{args.head}_vit-l.py').model
    for key in ('auxiliary_head', 'train_cfg'):
        cfg.pop(key)
    cfg.backbone.update(arch=arch, img_size=(args.crop,) * 2, out_indices=[layers - 1])
    cfg.backbone.pop('init_cfg')
    if args.head == 'mla':
        if layers < 4:
            raise UserError(f'--layers must be at least 4 for --head mla, found {layers}')
        cfg.backbone.out_indices = [layers * i // 4 - 1 for i in (1, 2, 3, 4)]
        cfg.neck.update(type='mmseg.MLANeck', in_channels=[width] * 4, norm_cfg=dict(type='BN'))
    else:
        cfg.decode_head.update(in_channels=width, in_index=0)
    cfg.decode_head.norm_cfg = dict(type='BN')
    cfg.decode_head.loss_decode.type = 'mmseg.CrossEntropyLoss'
    cfg.data_preprocessor.type = 'mmseg.SegDataPreProcessor'
    cfg.test_cfg.update(crop_size=(args.crop,) * 2, stride=(args.stride,) * 2)
    torch.manual_seed(0)
    ours = MODELS.build(cfg).to(args.device).eval()
    theirs = MODELS.build({**cfg, 'type': 'mmseg.EncoderDecoder'}).to(args.device).eval()
    for name, module in ours.named_children():
        setattr(theirs, name, module)
    return dict(mmseg=theirs, ours=ours)


def versions(args: argparse.Namespace, scales: list[float], flip: bool) -> dict[str, list]:
    """A random image at some scales, and mirrored, as a data loader hands it over."""
    from mmseg.structures import SegDataSample

    data: dict[str, list] = dict(inputs=[], data_samples=[])
    generator = torch.Generator().manual_seed(0)
    for scale in scales:
        size = tuple(int(length * scale + 0.5) for length in args.image)
        image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
        for mirrored in (False, True) if flip else (False,):
            meta = dict(
                img_shape=size, ori_shape=tuple(args.image), img_path='', flip=mirrored,
                flip_direction='horizontal' if mirrored else None)
            data['inputs'].append([image.flip(2) if mirrored else image])
            data['data_samples'].append([SegDataSample(metainfo=meta)])
    return data


def ways(args: argparse.Namespace) -> dict[tuple[str, str], Callable[[], None]]:
    """All calls that are measured, by what is tested and how."""
    from mmseg.models import SegTTAModel

    from vpt_dense import segmentors

    built = build(args)
    single = {key: values[0] for key, values in versions(args, [1.0], False).items()}
    multiple = versions(args, args.scales, True)
    scales = ', '.join(f'{scale:g}' for scale in args.scales)
    found = {}
    for test, data, wrappers in (
        ('slide', single, {}),
        (f'scales {scales} and flip', multiple,
         dict(mmseg=SegTTAModel, ours=segmentors.SegTTAModel)),
    ):
        for way, number in [('mmseg', 1), *(('ours', n) for n in args.windows_per_batch)]:
            model = built[way]
            wrapped = wrappers[way](module=model) if wrappers else model

            def call(model=model, wrapped=wrapped, data=data, number=number) -> None:
                model.test_cfg['windows_per_batch'] = number
                with torch.inference_mode(), common.autocast(args):
                    wrapped.test_step(data)

            found[test, way if way == 'mmseg' else f'{way}, {number} windows at a time'] = call
    return found


def peak_bytes(function: Callable[[], None], device: str) -> int:
    """The memory that a call takes at most beside what is there before, in bytes."""
    gc.collect()
    if torch.device(device).type == 'cuda':
        common.synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        common.synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    common.forget_peak()
    before = common.process_memory('VmRSS')
    function()
    return common.process_memory('VmHWM') - before


def check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be served.

    Raises:
        UserError: Names the option.
    """
    common.check(args)
    if args.crop < 16 or args.crop % 16:
        raise UserError(f'--crop must be a multiple of 16, found {args.crop}')
    if not 1 <= args.stride <= args.crop:
        raise UserError(f'--stride must be 1 to {args.crop}, the crop, found {args.stride}')
    for option in ('image', 'windows_per_batch', 'layers'):
        values = getattr(args, option)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise UserError(f'--{option.replace("_", "-")} must be at least 1, found {value}')
    shortest = min(args.image) * min(args.scales)
    if shortest < 16:
        raise UserError(f'--image times --scales must be at least a patch of 16 pixels, found '
                        f'{shortest:g}')


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    line = common.parser(__doc__)
    line.add_argument('--arch', default='deit-small', help='of mmpretrain: base, large, ...')
    line.add_argument('--layers', type=int, help='fewer blocks than the architecture has')
    line.add_argument('--head', choices=['pup', 'naive', 'mla'], default='pup')
    line.add_argument('--crop', type=int, default=512, help='side of a window in pixels')
    line.add_argument('--stride', type=int, help='of windows in pixels, by default 2/3 of a crop')
    line.add_argument('--image', type=int, nargs=2, default=[512, 683], metavar=('H', 'W'),
                      help='pixels')
    line.add_argument('--scales', type=float, nargs='+', default=[0.5, 1.0])
    line.add_argument('--windows-per-batch', type=int, nargs='+', default=[1, 4])
    args = line.parse_args()
    args.stride = args.crop * 2 // 3 if args.stride is None else args.stride
    check(args)
    return args


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    args = arguments()
    calls = ways(args)
    logging.filter_warnings()  # the imports have set their own
    times = common.in_turn(calls, args.rounds, args.device)
    measurable = torch.device(args.device).type == 'cuda' or common.STATUS.exists()
    rows, cells, base = [], [], 0
    for (test, way), call in calls.items():
        row = dict(test=test, way=way, seconds=times[test, way])
        cell = [test, way, common.ratio(row['seconds'], times[test, 'mmseg'])]
        if measurable:
            row['peak_bytes'] = peak_bytes(call, args.device)
            base = row['peak_bytes'] if way == 'mmseg' else base
            # On a CPU a small call finds its memory in what the process has already.
            cell += [f'{row["peak_bytes"] / base:.2f}' if base else '-',
                     f'{row["peak_bytes"] / 1e6:.0f} MB']
        rows.append(row)
        cells.append(cell)
    common.show(
        f'{args.arch}, {args.layers or "all"} blocks, SETR-{args.head.upper()}, windows of '
        f'{args.crop} px, image {args.image[0]}x{args.image[1]}, {args.dtype}, {args.device}',
        ['test', 'way', 'time / mmseg'] + ['peak / mmseg', 'peak'] * measurable, cells)
    common.write(args.json, args, dict(script='slide', rows=rows))


if __name__ == '__main__':
    main(run)
