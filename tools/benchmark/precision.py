"""What half precision does to features and gradients of prompts, against float64.

``python tools/benchmark/precision.py``
``python tools/benchmark/precision.py --config configs/vpt/setr_vit-l_deep_ade20k.py``

The pretrained backbone of a config, prompts of its kind drawn at random, images drawn at random.
"""

import argparse
import copy
from pathlib import Path

import common
import torch

from vpt_dense import outputs
from vpt_dense.errors import ArgumentParser, UserError, main

CONFIG = Path(__file__).resolve().parents[2] / 'configs/demo/setr_deep_digits.py'
#: Each way: options of the backbone, and the type of autocast.
WAYS = {
    'float32': ({}, None),
    'float32, prompts as tokens': (dict(prompts_as='tokens'), None),
    'autocast': ({}, 'half'),
    'autocast, frozen weights held in half': (dict(frozen_dtype='half'), 'half'),
}


def measure(backbone: torch.nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    """Features (B, C, h, w) and the gradient of their squared mean to the prompts."""
    backbone.zero_grad()
    out = backbone(images)[-1]
    out.double().square().mean().backward()
    return [out.detach().double(), backbone.prompt.tokens.grad.double().clone()]


def run() -> None:
    """Command line."""
    from vpt_dense import config, logging

    logging.filter_warnings()
    line = ArgumentParser(description=__doc__.splitlines()[0])
    line.add_argument('--config', default=str(CONFIG), help='its backbone has prompts')
    line.add_argument('--batch', type=int, default=4)
    line.add_argument('--dtype', choices=['bfloat16', 'float16'], default='bfloat16')
    line.add_argument('--device', default='cpu', help='cpu, cuda, cuda:1, ...')
    line.add_argument('--json', type=outputs.new_file, metavar='FILE',
                      help='also write all figures here')
    args = line.parse_args()
    common.check(argparse.Namespace(rounds=2, **vars(args)))
    if args.batch < 1:
        raise UserError(f'--batch must be at least 1, found {args.batch}')
    from mmengine.registry import MODELS

    cfg = config.load(args.config).model
    if not cfg.backbone.get('prompt'):
        raise UserError(f'--config {args.config}: its backbone has no prompt')
    logging.filter_warnings()  # the imports have set their own
    torch.manual_seed(0)
    exact = MODELS.build(copy.deepcopy(cfg.backbone))
    exact.init_weights()
    weights = exact.state_dict()
    height, width = exact.img_size
    images = torch.randn(args.batch, exact.patch_embed.projection.in_channels, height, width)
    exact = exact.double().eval().to(args.device)
    truth = measure(exact, images.double().to(args.device))
    del exact
    rows, figures = [], []
    for way, (options, autocast) in WAYS.items():
        options = {key: args.dtype if value == 'half' else value for key, value in options.items()}
        backbone = MODELS.build(dict(copy.deepcopy(cfg.backbone), init_cfg=None, **options))
        backbone.load_state_dict(weights)
        backbone = backbone.eval().to(args.device)
        bytes_held = sum(tensor.nbytes for tensor in backbone.state_dict().values())
        chosen = argparse.Namespace(device=args.device, dtype=args.dtype if autocast else 'float32')
        with common.autocast(chosen):
            features, gradient = measure(backbone, images.to(args.device))
        error = ((features - truth[0]).norm() / truth[0].norm()).item()
        cosine = torch.cosine_similarity(gradient.flatten(), truth[1].flatten(), dim=0).item()
        rows.append([way, f'{error:.1e}', f'{1 - cosine:.1e}', f'{bytes_held / 1e6:.1f} MB'])
        figures.append(dict(way=way, relative_error=error, cosine=cosine, bytes=bytes_held))
    common.show(f'{Path(args.config).name}, {args.dtype}, {args.device}',
                ['backbone', 'relative error of features', '1 - cosine of prompt gradients',
                 'weights held'], rows)
    common.write(args.json, args, dict(script='precision', rows=figures))


if __name__ == '__main__':
    main(run)
