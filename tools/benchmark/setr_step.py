"""A whole SETR-PUP training step, time and peak memory, against one made of mmseg's own parts.

``python tools/benchmark/setr_step.py``
``python tools/benchmark/setr_step.py --only time --ways ours lean bf16``
``python tools/benchmark/setr_step.py --only memory --rounds 2``

Backbone with deep prompts, decode head and three auxiliary heads, as in
configs/vpt/setr_vit-l_deep_ade20k.py but with ``--tokens`` prompts and without dropout: forward,
losses, backward, step of SGD with momentum. The base frozen, if the way does not say otherwise.
Memory is the peak of a fresh process for each way, less what it had after its imports. On a CPU
that is resident memory (Linux), and freed tensors of 1 MiB and more are returned to the system at
once (glibc's MALLOC_MMAP_THRESHOLD_), so that the peak is what the step holds; ``--plain-malloc``
leaves the C library as it is, which keeps some freed memory for later.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import common
import models
import torch
from heads import samples
from torch import Tensor, nn

from vpt_dense.errors import UserError, main

CONFIG = Path(__file__).resolve().parents[2] / 'configs/vpt/setr_vit-l_deep_ade20k.py'
#: Each way to build the model, what it means, and its precision where ``--dtype`` is not asked.
WAYS = {
    'mmseg': ("mmseg's ViT with prompts as tokens (mmseg_vit.py) and mmseg's heads", None),
    'ours': ('vpt_dense', None),
    'lean': ("ours with memory='lean'", None),
    'bf16': ('ours in bfloat16', 'bfloat16'),
    'bf16-frozen': ("bf16 with frozen_dtype='bfloat16'", 'bfloat16'),
    'bf16-frozen-lean': ("bf16-frozen with memory='lean'", 'bfloat16'),
    'mmseg-heads': ("ours with mmseg's heads", None),
    'full': ('ours without prompts, all of the backbone trains', None),
}


def config(way: str, args: argparse.Namespace) -> dict:
    """The model's config of one way."""
    from mmengine import Config

    cfg = Config.fromfile(CONFIG).model.to_dict()
    arch = models.architecture(args.arch, args.layers)
    layers = arch['num_layers']
    cfg['data_preprocessor'] = None
    backbone = cfg['backbone']
    del backbone['init_cfg']
    backbone.update(
        arch=arch, img_size=args.img_size,
        out_indices=[n * layers // 24 - 1 for n in (10, 15, 20, 24)])
    backbone['prompt'].update(num_tokens=args.tokens, dropout=0)
    if 'lean' in way:
        backbone['memory'] = 'lean'
    if 'frozen' in way:
        backbone['frozen_dtype'] = 'bfloat16'
    if way == 'full':
        del backbone['prompt']
        backbone['trainable'] = ['.*']
    if way == 'mmseg':
        import mmseg_vit  # noqa: F401 registers the backbone

        cfg['type'] = 'EncoderDecoder'  # mmseg's
        cfg['backbone'] = dict(
            type='TokensVisionTransformer', num_tokens=args.tokens, img_size=args.img_size,
            embed_dims=arch['embed_dims'], num_layers=layers, num_heads=arch['num_heads'],
            mlp_ratio=arch['feedforward_channels'] // arch['embed_dims'], patch_bias=True,
            out_indices=backbone['out_indices'], norm_cfg=dict(type='LN', eps=1e-6),
            interpolate_mode='bilinear')
    for head in [cfg['decode_head'], *cfg['auxiliary_head']]:
        head.update(in_channels=arch['embed_dims'], norm_cfg=dict(type='BN'))
        if way in ('mmseg', 'mmseg-heads'):
            head['type'] = head['type'].replace('vpt_dense.', 'mmseg.')
            head.pop('log_accuracy', None)
    return cfg


def build(way: str, args: argparse.Namespace) -> nn.Module:
    """Build the model of one way, in training mode. SyncBN becomes BN: there is one process."""
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(config(way, args)).to(args.device)
    model.train()
    return model


def on_common_weights(ways: list[str], args: argparse.Namespace) -> dict[str, nn.Module]:
    """Build the models of all ways on one copy of the frozen weights."""
    torch.manual_seed(0)
    first = build('ours', args)
    weights = first.state_dict()
    built = {'ours': first}
    for way in ways:
        if way == 'mmseg':
            from mmseg_vit import renamed

            built[way] = models.fill(lambda: build('mmseg', args), renamed(weights), args.device)
        elif way not in built:
            built[way] = models.fill(lambda way=way: build(way, args), weights, args.device)
    return {way: built[way] for way in ways}


def losses(
    way: str, model: nn.Module, images: Tensor, labels: list, args: argparse.Namespace
) -> Tensor:
    """The sum of all heads' losses, a scalar."""
    dtype = args.dtype if WAYS[way][1] is None else WAYS[way][1]
    with common.autocast(argparse.Namespace(device=args.device, dtype=dtype)):
        found = model.loss(images, labels)
    return sum(value for key, value in found.items() if 'loss' in key)


def step(
    way: str, model: nn.Module, images: Tensor, labels: list, args: argparse.Namespace
) -> Callable[[], None]:
    """A training step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)

    def run() -> None:
        optimizer.zero_grad()
        losses(way, model, images, labels, args).backward()
        optimizer.step()

    return run


def batch(args: argparse.Namespace) -> tuple[Tensor, list]:
    """Random images (B, 3, H, W) and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, generator=generator)
    return images.to(args.device), samples(args.img_size, args.batch, args.device)


def peak(way: str, args: argparse.Namespace) -> int:
    """Build the model of one way and take some steps; the peak of memory in bytes.

    On a CPU that is the peak of the process less what it had before the model was built. So
    nothing else may have run in this process before.
    """
    import mmseg.models  # noqa: F401
    from mmseg.registry import MODELS

    cfg = config(way, args)
    for part in (cfg, cfg['backbone'], cfg['decode_head']):
        MODELS.get(part['type'])  # imports it
    cuda = torch.device(args.device).type == 'cuda'
    before = 0 if cuda else common.process_memory('VmRSS')
    if not cuda:
        common.forget_peak()
    run = step(way, build(way, args), *batch(args), args)
    for _ in range(args.rounds):
        run()
    common.synchronise(args.device)
    if cuda:
        return torch.cuda.max_memory_allocated(args.device)
    return common.process_memory('VmHWM') - before


def peak_of_process(way: str, args: argparse.Namespace) -> int:
    """:func:`peak` in a fresh process."""
    command = [
        sys.executable, __file__, '--peak-of', way, '--rounds', str(args.rounds),
        '--device', args.device, '--dtype', args.dtype, '--arch', args.arch,
        '--img-size', str(args.img_size), '--batch', str(args.batch),
        '--tokens', str(args.tokens), *(['--layers', str(args.layers)] if args.layers else []),
    ]
    malloc = {} if args.plain_malloc else {'MALLOC_MMAP_THRESHOLD_': str(2**20)}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **malloc})
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f'ended with {done.returncode}']
        raise UserError(f'{way}: {last[0].removeprefix("error: ")}')
    return json.loads(done.stdout)


def check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be served.

    Raises:
        UserError: Names the option.
    """
    common.check(args)
    if args.img_size < 16 or args.img_size % 16:
        raise UserError(f'--img-size must be a multiple of 16, found {args.img_size}')
    if args.batch < 1 or args.tokens < 1:
        raise UserError('--batch and --tokens must be at least 1')
    full = models.architecture(args.arch, None)['num_layers']
    if args.layers is not None and not 4 <= args.layers <= full:
        raise UserError(f'--layers must be 4 to {full}, found {args.layers}: four blocks are read')
    on_cpu = torch.device(args.device).type != 'cuda'
    if args.only != 'time' and on_cpu and not common.STATUS.exists():
        raise UserError('the peak of memory on a CPU is read from Linux; take --only time')


def run() -> None:
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    line = common.parser(__doc__)
    line.add_argument('--arch', default='large', help='of mmpretrain: base, large, ...')
    line.add_argument('--layers', type=int, help='fewer blocks than the architecture has')
    line.add_argument('--img-size', type=int, default=512, help='pixels')
    line.add_argument('--batch', type=int, default=1)
    line.add_argument('--tokens', type=int, default=50)
    line.add_argument('--only', choices=['time', 'memory'], help='one of the two measurements')
    line.add_argument(
        '--ways', nargs='+', choices=list(WAYS), default=list(WAYS), metavar='WAY',
        help='; '.join(f'{way}: {meaning}' for way, (meaning, _) in WAYS.items())
        + '; mmseg is always measured')
    line.add_argument('--plain-malloc', action='store_true',
                      help='let the C library keep freed memory in the measurement of the peak')
    line.add_argument('--peak-of', choices=list(WAYS), help=argparse.SUPPRESS)
    args = line.parse_args()
    check(args)
    if args.peak_of:
        print(json.dumps(peak(args.peak_of, args)))
        return
    ways = list(dict.fromkeys(['mmseg', *args.ways]))
    rows = {way: dict(way=way) for way in ways}
    if args.only != 'memory':
        built = on_common_weights(ways, args)
        logging.filter_warnings()  # the imports have set their own
        images, labels = batch(args)
        steps = {way: step(way, model, images, labels, args) for way, model in built.items()}
        for way, seconds in common.in_turn(steps, args.rounds, args.device).items():
            rows[way]['seconds'] = seconds
        del built, steps
    if args.only != 'time':
        for way in ways:
            rows[way]['peak_bytes'] = peak_of_process(way, args)
    base, cells = rows['mmseg'], []
    for way, row in rows.items():
        cell = [way]
        if 'seconds' in row:
            cell += [common.ratio(row['seconds'], base['seconds']),
                     f'{statistics.median(row["seconds"]):.2f} s']
        if 'peak_bytes' in row:
            cell += [f'{row["peak_bytes"] / base["peak_bytes"]:.3f}',
                     f'{row["peak_bytes"] / 1e6:.0f} MB']
        cells.append(cell)
    columns = ['way']
    columns += ['time / mmseg', 'median'] if args.only != 'memory' else []
    columns += ['peak / mmseg', 'peak'] if args.only != 'time' else []
    arch = models.architecture(args.arch, args.layers)
    common.show(
        f'SETR-PUP training step: ViT {args.arch}, {arch["num_layers"]} blocks, '
        f'{args.tokens} prompts, {args.img_size} px, batch {args.batch}, {args.dtype}, '
        f'{args.device}',
        columns, cells, note='\n'.join(f'{way}: {WAYS[way][0]}' for way in ways))
    common.write(args.json, args, dict(script='setr_step', rows=list(rows.values())))


if __name__ == '__main__':
    main(run)
