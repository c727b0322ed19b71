"""Many tasks on one frozen backbone (vpt_dense.MultiTask): speed of mixed batches, and memory.

``python tools/benchmark/multitask.py`` (a mixed batch of 16 images over 8 tasks, then one image
for k tasks that are tuned in the last quarter of the blocks)
``python tools/benchmark/multitask.py --memory --model vit_large_patch16_224`` (20 tasks, then
1,000 that go through a cache)

Weights are random; deltas are files, as vpt_dense.save_delta writes them.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import common
import torch
from torch import nn

import vpt_dense
from vpt_dense.errors import UserError, main

#: What is measured in mixed batches -> the method of each of the tasks, in turn.
MIXES = {
    'prompts': [('deep', dict(num_tokens=10))],
    'LoRA': [('lora', dict(rank=8))],
    'of all kinds': [
        ('deep', dict(num_tokens=10)), ('lora', {}), ('shallow', dict(num_tokens=20)),
        ('adaptformer', {}), ('ssf', {}), ('bias', {}), ('deep', dict(num_tokens=5)), ('head', {})],
}  # fmt: skip


def model_of(args: argparse.Namespace, base: nn.Module, method: str, options: dict) -> nn.Module:
    """A classifier on the frozen weights of another, what is tuned at random."""
    model = vpt_dense.create_classifier(args.model, 10, method, pretrained=False, **options)
    state = base.state_dict()
    model.backbone.load_state_dict(
        {name: state[name] for name in model.backbone.frozen_names}, strict=False, assign=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.endswith('gamma'):
                parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval()


def in_turn(ways: dict, args: argparse.Namespace) -> dict[str, list[float]]:
    """As common.in_turn; with --cpu-time what the process computes, not what it waits for."""
    if not args.cpu_time:
        return common.in_turn(ways, args.rounds, args.device)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(args.rounds + 1):
        for name, function in ways.items():
            start = time.process_time()
            function()
            if turn:
                times[name].append(time.process_time() - start)
    return times


def speed(args: argparse.Namespace, base: nn.Module) -> dict:
    """Mixed batches, and one image for several tasks."""
    rows, cells = [], []
    generator = torch.Generator().manual_seed(0)
    size = base.patch_embed.img_size
    images = torch.randn(args.batch, 3, *size, generator=generator).to(args.device)
    for mix in args.mix:
        kinds = MIXES[mix]
        models = [model_of(args, base, *kinds[i % len(kinds)]).to(args.device)
                  for i in range(args.tasks)]
        together = vpt_dense.MultiTask(base, device=args.device)
        for i, model in enumerate(models):
            together.add(str(i), model)
        names = [str(i % args.tasks) for i in range(args.batch)]

        def apart(models: list = models) -> list:
            with torch.no_grad():
                return [model(images[i::args.tasks]) for i, model in enumerate(models)]

        def single(model: nn.Module = models[0]) -> torch.Tensor:
            with torch.no_grad():
                return model(images)

        ways = {'one task': single, f'{args.tasks} passes': apart,
                'mixed': partial(together, images, names)}
        with common.autocast(args):
            found, alone = together(images, names), apart()
            gap = max((found[i] - alone[i % args.tasks][i // args.tasks]).abs().max().item()
                      for i in range(args.batch))
            times = in_turn(ways, args)
        for way in ways:
            rows.append(dict(mix=mix, way=way, seconds=times[way], difference=gap))
            cells.append([mix, way, common.ratio(times[way], times['one task']),
                          common.ratio(times[way], times[f'{args.tasks} passes']),
                          f'{1e3 * sorted(times[way])[len(times[way]) // 2]:.0f} ms'])
    common.show(
        f'{args.model}, {args.batch} images over {args.tasks} tasks, {args.dtype}, {args.device}',
        ['tasks', 'way', 'time / one task', f'time / {args.tasks} passes', 'median'], cells,
        note=f'scores differ by at most {max(row["difference"] for row in rows):.1g}')
    return dict(mixed=rows, shared=shared(args, base, images[:1]))


def shared(args: argparse.Namespace, base: nn.Module, image: torch.Tensor) -> list[dict]:
    """One image for k tasks that are tuned in the last quarter of the blocks."""
    blocks = len(base.blocks)
    start = blocks - blocks // 4
    options = dict(num_tokens=10, layer_range=(start, None))
    models = [model_of(args, base, 'deep', options).to(args.device) for _ in range(max(args.k))]
    together = vpt_dense.MultiTask(
        base, {str(i): model for i, model in enumerate(models)}, device=args.device)

    def one_pass() -> torch.Tensor:
        with torch.no_grad():
            return models[0](image)

    ways = {'one pass': one_pass}
    ways |= {str(k): partial(together, image, [[str(i) for i in range(k)]]) for k in args.k}
    with common.autocast(args):
        times = in_turn(ways, args)
    rows = [dict(tasks=k, seconds=times[str(k)], one_pass=times['one pass']) for k in args.k]
    common.show(
        f'{args.model}, one image, k tasks with prompts in blocks {start} to {blocks - 1}',
        ['k', 'time / one pass', '0.75 + 0.25 k', 'k passes'],
        [[str(k), common.ratio(times[str(k)], times['one pass']),
          f'{start / blocks + k * (1 - start / blocks):.2f}', str(k)] for k in args.k])
    return rows


def memory(args: argparse.Namespace, base: nn.Module) -> dict:
    """What tasks take, in tensors and of the process, and what a cache costs."""
    frozen = sum(tensor.nbytes for tensor in base.state_dict().values())
    images = torch.zeros(1, 3, *base.patch_embed.img_size)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i in range(args.tasks):
            torch.manual_seed(i)
            files.append(Path(folder, f'{i}.safetensors'))
            vpt_dense.save_delta(model_of(args, base, 'deep', dict(num_tokens=10)), files[-1])
        delta = files[0].stat().st_size
        together = vpt_dense.MultiTask(base)
        together.add('0', files[0])  # what the first one needs once: hashes, modules
        common.forget_peak()
        before = common.process_memory('VmRSS')
        start = time.perf_counter()
        for i, file in enumerate(files):
            together.add(str(i), file)
        adding = (time.perf_counter() - start) / args.tasks
        common.forget_peak()
        grown = common.process_memory('VmRSS') - before
        ideal = frozen + args.tasks * delta
        common.show(
            f'{args.model}, {args.tasks} tasks with 10 deep prompts',
            ['', 'MB'],
            [['frozen weights', f'{frozen / 1e6:,.1f}'],
             ['a delta, its file', f'{delta / 1e6:,.2f}'],
             [f'the backbone and {args.tasks} deltas', f'{ideal / 1e6:,.1f}'],
             ['tensors of the MultiTask', f'{together.nbytes / 1e6:,.1f}'],
             ['what the process grew by with the tasks', f'{grown / 1e6:,.1f}'],
             [f'{args.tasks} models', f'{args.tasks * (frozen + delta) / 1e6:,.1f}']],
            note=f'{together.nbytes / ideal:.3f} of the backbone and the deltas in tensors, '
                 f'{(frozen + delta + grown) / ideal:.3f} with all that the process took; '
                 f'{1e3 * adding:.0f} ms to add a task')
        limit = 8 * delta
        paged = vpt_dense.MultiTask(base, cache=limit)
        start = time.perf_counter()
        for i in range(args.paged):
            paged.add(str(i), files[i % len(files)])
        adding = time.perf_counter() - start
        hits = [common.seconds(lambda: paged.plan([str(args.paged - 1)])) for _ in range(100)]
        misses = [common.seconds(partial(paged.plan, [str(i)])) for i in range(100)]
        info = paged.cache_info()
        one = min(common.seconds(partial(paged, images, ['99'])) for _ in range(3))
        common.show(
            f'{args.paged} tasks, a cache of {limit / 1e6:.1f} MB', ['', ''],
            [['tasks in memory', str(info['tasks'])],
             ['their MB', f'{info["bytes"] / 1e6:.1f}'],
             ['to find a task in memory', f'{1e6 * sorted(hits)[50]:.0f} us'],
             ['to read it again', f'{1e3 * sorted(misses)[50]:.1f} ms'],
             ['a pass of one image', f'{1e3 * one:.0f} ms'],
             ['to add all', f'{adding:.1f} s']])
    return dict(frozen=frozen, delta=delta, tensors=together.nbytes, grown=grown, hits=hits,
                misses=misses, info=info)


def run() -> None:
    """Command line."""
    line = common.parser(__doc__)
    line.add_argument('--model', default='deit_small_patch16_224', help="timm's name")
    line.add_argument('--batch', type=int, default=16)
    line.add_argument('--tasks', type=int, help='8; 20 with --memory')
    line.add_argument('--mix', nargs='+', choices=list(MIXES), default=list(MIXES))
    line.add_argument('--k', type=int, nargs='+', default=[1, 2, 4, 8, 16])
    line.add_argument('--cpu-time', action='store_true',
                      help='seconds of the process, on a CPU that others use too')
    line.add_argument('--memory', action='store_true', help='memory and cache instead of time')
    line.add_argument('--paged', type=int, default=1000, help='tasks that go through a cache')
    args = line.parse_args()
    common.check(args)
    args.tasks = args.tasks or (20 if args.memory else 8)
    if args.batch % args.tasks and not args.memory:
        raise UserError(f'--batch {args.batch} is no multiple of --tasks {args.tasks}')
    torch.manual_seed(0)
    base = vpt_dense.create_backbone(args.model, 'head', pretrained=False)
    figures = memory(args, base) if args.memory else speed(args, base.to(args.device))
    common.write(args.json, args, dict(script='multitask', **figures))


if __name__ == '__main__':
    main(run)
