"""Tuned models of timm against timm itself, and against HF PEFT's LoRA on transformers' models.

``python tools/benchmark/backbones.py --models dinov2-s dinov3-s --sizes 224 --batch 8``

All weights are random, of the published shapes. LoRA has rank 8 on queries and values. PEFT's rows
need the package ``peft``.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable

import common
import torch
from torch import Tensor, nn

import vpt_dense
from vpt_dense.errors import main

#: Name -> timm's name, and transformers' configuration: class, its settings.
MODELS = {
    'dinov2-s': ('vit_small_patch14_dinov2', 'Dinov2', dict(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14)),
    'dinov2-b': ('vit_base_patch14_dinov2', 'Dinov2', dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, patch_size=14)),
    'dinov3-s': ('vit_small_patch16_dinov3', 'DINOv3ViT', dict(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
        patch_size=16)),
    'dinov3-b': ('vit_base_patch16_dinov3', 'DINOv3ViT', dict(
        hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        patch_size=16)),
}
LORA = dict(adapters=[dict(
    type='vpt_dense.LoRA', rank=8, targets=[r'\.qkv$'], parts=('q', 'v'))])

#: Name -> what it is.
WAYS = {
    'timm': "timm's model, nothing of it tuned",
    'head': 'ours, head-only',
    'deep': 'ours, VPT-deep with 50 prompts',
    'lora': 'ours, LoRA',
    'deep-lean': "ours, VPT-deep with memory='lean'",
    'lora-lean': "ours, LoRA with memory='lean'",
    'peft': "HF PEFT's LoRA on transformers' model",
}
FORWARD = ('timm', 'head', 'deep', 'lora', 'peft')
STEP = ('timm', 'deep', 'lora', 'deep-lean', 'lora-lean', 'peft')


def build(way: str, name: str, img_size: int) -> nn.Module:
    """The model of a way."""
    timm_name, kind, settings = MODELS[name]
    if way == 'peft':
        return build_peft(kind, dict(settings, image_size=img_size))
    method = dict(head='head', timm='head').get(way) or (LORA if 'lora' in way else 'deep')
    options = dict(num_tokens=50, dropout=0.0) if 'deep' in way else {}
    model = vpt_dense.create_backbone(
        timm_name, method, pretrained=False, img_size=img_size,
        memory='lean' if way.endswith('lean') else 'default', **options)
    return vpt_dense.untune(model) if way == 'timm' else model


def build_peft(kind: str, settings: dict) -> nn.Module:
    """A model of transformers with PEFT's LoRA."""
    import peft
    import transformers

    model = getattr(transformers, f'{kind}Model')(
        getattr(transformers, f'{kind}Config')(**settings))
    # The first names are those of DINOv2 in older versions.
    config = peft.LoraConfig(
        r=8, lora_alpha=8, target_modules=r'.*\.(query|value|q_proj|v_proj)')
    return peft.get_peft_model(model, config)


def features(model: nn.Module, images: Tensor) -> Tensor:
    """Tokens (B, F + N, C)."""
    if hasattr(model, 'forward_features'):
        return model.forward_features(images)
    return model(pixel_values=images).last_hidden_state


def steps(
    ways: tuple[str, ...], name: str, img_size: int, args: argparse.Namespace, train: bool
) -> dict[str, tuple[nn.Module, Callable[[], Tensor]]]:
    """Way -> its model, and what is timed."""
    found = {}
    for way in ways:
        if way == 'peft' and importlib.util.find_spec('peft') is None:
            continue
        torch.manual_seed(0)
        model = build(way, name, img_size).to(args.device).train(train)
        images = torch.randn(args.batch, 3, img_size, img_size, device=args.device)

        def forward(model: nn.Module = model, images: Tensor = images) -> Tensor:
            with torch.set_grad_enabled(train), common.autocast(args):
                return features(model, images)

        def step(forward: Callable[[], Tensor] = forward, model: nn.Module = model) -> None:
            forward().float().square().mean().backward()
            model.zero_grad(set_to_none=True)

        found[way] = (model, forward, step if train else forward)
    return found


def measure(name: str, size: int, args: argparse.Namespace) -> list[dict]:
    """Rows of one model at one size."""
    rows = []
    for what, ways in (('forward', FORWARD), ('step', STEP)):
        built = steps(ways, name, size, args, what == 'step')
        timed = {way: run for way, (_, _, run) in built.items()}
        seconds = common.in_turn(timed, args.rounds, args.device)
        for way, values in seconds.items():
            model, forward, _ = built[way]
            kept = common.kept_bytes(forward, model.parameters()) if what == 'step' else None
            rows.append(dict(model=name, img_size=size, what=what, way=way, seconds=values,
                             kept=kept))
    return rows


def show(args: argparse.Namespace, rows: list[dict]) -> None:
    """Print the table."""
    cells = []
    for row in rows:
        keys = ('model', 'img_size', 'what')
        same = {other['way']: other for other in rows if all(other[k] == row[k] for k in keys)}
        line = [row['model'], str(row['img_size']), row['what'], row['way']]
        line += [
            common.ratio(row['seconds'], same[other]['seconds']) if other in same else ''
            for other in ('timm', 'peft')]
        line.append(f'{statistics.median(row["seconds"]):.3f} s')
        kept = row['kept'] is not None and 'peft' in same
        line.append(f'{row["kept"] / same["peft"]["kept"]:.2f}' if kept else '')
        cells.append(line)
    columns = ['model', 'px', 'what', 'way', '/ timm', '/ peft', 'median', 'kept / peft']
    common.show(f'Batch {args.batch}, {args.dtype}', columns, cells,
                note='\n'.join(f'{way}: {text}' for way, text in WAYS.items()))


def run() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument('--models', nargs='+', choices=list(MODELS), default=['dinov2-s'])
    parser.add_argument('--sizes', nargs='+', type=int, default=[224], help='in pixels')
    parser.add_argument('--batch', type=int, default=8)
    args = parser.parse_args()
    common.check(args)
    rows = [row for name in args.models for size in args.sizes for row in measure(name, size, args)]
    show(args, rows)
    common.write(args.json, args, rows)


if __name__ == '__main__':
    main(run)
