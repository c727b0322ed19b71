"""What prompts cost: time and memory as ratios to the backbone without prompts.

``python tools/benchmark/prompts.py``
``python tools/benchmark/prompts.py --arch large --img-size 512 --batch 1 --layers 4 --tokens 50``

All ways run in turn, round after round, in one process; shown are the medians' ratios and, after
the sign, half the distance of the quartiles.
"""

import argparse
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table

from vpt_dense.errors import UserError, main


def build(args, num_tokens, prompts_as):
    """Builds a frozen backbone with deep prompts.

    Args:
        args (argparse.Namespace): Of the command line.
        num_tokens (int): Prompt tokens, 0 for none.
        prompts_as (str): See `PromptedVisionTransformer`.

    Returns:
        torch.nn.Module: In training mode.
    """
    from mmengine.registry import MODELS
    from mmpretrain.models import VisionTransformer

    if args.arch not in VisionTransformer.arch_zoo:
        raise UserError(f'--arch {args.arch}: not one of {sorted(VisionTransformer.arch_zoo)}')
    arch = dict(VisionTransformer.arch_zoo[args.arch])
    arch['num_layers'] = args.layers or arch['num_layers']
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=num_tokens, deep=True)
    torch.manual_seed(0)
    model = MODELS.build(dict(
        type='vpt_dense.PromptedVisionTransformer', arch=arch, img_size=args.img_size,
        out_type='featmap', prompt=prompt if num_tokens else None, trainable=None if num_tokens
        else [], prompts_as=prompts_as))
    return model.to(args.device).train()


def synchronise(device):
    """Waits until the device has done what it was told."""
    if device.startswith('cuda'):
        torch.cuda.synchronize()


def autocast(args):
    """The precision asked for."""
    return torch.autocast(args.device.split(':')[0], torch.bfloat16,
                          enabled=args.dtype == 'bfloat16')


def train_step(model, images, args):
    """Runs forward and backward.

    Returns:
        float: Seconds.
    """
    images.grad = None
    synchronise(args.device)
    start = time.perf_counter()
    with autocast(args):
        out = model(images)[-1]
    out.float().square().mean().backward()
    synchronise(args.device)
    return time.perf_counter() - start


def kept_bytes(model, images, args):
    """Runs forward and counts what is kept for backward, parameters left out.

    Returns:
        int: Bytes.
    """
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), autocast(args):
        out = model(images)[-1]  # holds the graph, so that no memory is used twice
    assert out.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in parameters)


def forward(model, images, args):
    """Runs the model at test time.

    Returns:
        float: Seconds.
    """
    model.eval()
    with torch.inference_mode(), autocast(args):
        model(images)  # fills the cache, which train() empties
        synchronise(args.device)
        start = time.perf_counter()
        model(images)
        synchronise(args.device)
        seconds = time.perf_counter() - start
    model.train()
    return seconds


def ratio(values, base):
    """A cell: ratio of medians and its spread."""
    middle = statistics.median(base)
    quartiles = statistics.quantiles(values, n=4)
    return (f'{statistics.median(values) / middle:.2f} '
            f'± {(quartiles[2] - quartiles[0]) / 2 / middle:.2f}')


def run():
    """Command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--arch', default='base', help='of mmpretrain: base, large, ...')
    parser.add_argument('--layers', type=int, help='fewer blocks than the architecture has')
    parser.add_argument('--img-size', type=int, default=224, help='pixels')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--tokens', type=int, nargs='+', default=[10, 50, 100, 200])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32',
                        help='bfloat16: autocast')
    parser.add_argument('--traceback', action='store_true', help='full traceback on errors')
    args = parser.parse_args()
    if args.rounds < 2:
        raise UserError(f'--rounds must be at least 2, found {args.rounds}')
    ways = {('no prompts', 0): build(args, 0, 'tokens')}
    for number in args.tokens:
        for prompts_as in ('keys_values', 'tokens'):
            ways[prompts_as, number] = build(args, number, prompts_as)
    # With a gradient to the images all blocks keep a graph in every way, as they do behind the
    # first prompts.
    images = torch.randn(args.batch, 3, args.img_size, args.img_size, device=args.device)
    images.requires_grad_()
    trains, tests = {way: [] for way in ways}, {way: [] for way in ways}
    for turn in range(args.rounds + 1):
        for way, model in ways.items():
            train = train_step(model, images, args)
            test = forward(model, images.detach(), args)
            if turn:  # the first warms up
                trains[way].append(train)
                tests[way].append(test)
    kept = {way: kept_bytes(model, images, args) for way, model in ways.items()}
    base = next(iter(ways))
    table = Table(title=f'ViT {args.arch}, {args.layers or "all"} blocks, {args.img_size} px, '
                        f'batch {args.batch}, {args.dtype}, {args.device}')
    for column in ('prompts as', 'tokens', 'training step', 'forward', 'kept for backward'):
        table.add_column(column, justify='right')
    for way in ways:
        table.add_row(way[0], str(way[1]), ratio(trains[way], trains[base]),
                      ratio(tests[way], tests[base]),
                      f'{kept[way] / kept[base]:.2f} ({kept[way] / 1e6:.0f} MB)')
    console = Console()
    console.print(table)
    console.print(f'without prompts: training step {statistics.median(trains[base]):.3f} s, '
                  f'forward {statistics.median(tests[base]):.3f} s; torch {torch.__version__}, '
                  f'{torch.get_num_threads()} threads')


if __name__ == '__main__':
    main(run)
