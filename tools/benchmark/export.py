"""Time of a classifier's prediction: eager, compiled, by ONNX Runtime, and in int8.

``python tools/benchmark/export.py``
``python tools/benchmark/export.py --arch small --batch 1 --ways eager onnx int8``
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
from mmengine.registry import MODELS
from torch import nn

from vpt_dense.deploy import card as cards
from vpt_dense.deploy import exporting, graphs, onnx_model, quantizing
from vpt_dense.errors import main

WAYS = ('eager', 'folded', 'compile', 'onnx', 'int8')


class Classifier(nn.Module):
    """A backbone with a linear layer."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.fc = nn.Linear(backbone.embed_dims, 100)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) to scores (B, 100)."""
        return self.fc(self.backbone(images)[-1])


def build(args: argparse.Namespace, fold: bool) -> nn.Module:
    """The same random model, its prompts folded or not."""
    torch.manual_seed(0)
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=args.tokens, deep=True)
    model = Classifier(MODELS.build(dict(
        type='vpt_dense.VisionTransformer', arch=args.arch, img_size=args.img_size,
        out_type='cls_token', prompt=prompt))).eval().requires_grad_(False)
    if fold:
        exporting.fold(model)
    return model


def ways_of(args: argparse.Namespace, folder: str) -> dict[str, Callable[[], object]]:
    """A function without arguments for each way."""
    size = (args.img_size, args.img_size)
    images = torch.from_numpy(np.random.default_rng(0).normal(
        size=(args.batch, 3, *size)).astype(np.float32))
    models = {'eager': build(args, False), 'folded': build(args, True)}
    ways: dict[str, Callable[[], object]] = {}
    for name, model in models.items():
        ways[name] = lambda model=model: model(images)
    compiled = torch.compile(build(args, True))
    ways['compile'] = lambda: compiled(images)
    files = {'onnx': Path(folder, 'float32.onnx'), 'int8': Path(folder, 'int8.onnx')}
    proto = graphs.to_onnx(exporting.graph(models['folded'], 3, size, False), 'logits')
    proto.metadata_props.add(key=cards.KEY, value=cards.to_text(dict(
        format=cards.FORMAT, task='classification', classes=['0'], ids=[0], palette=[],
        output=dict(name='logits'))))
    files['onnx'].write_bytes(proto.SerializeToString())
    quantizing.quantize(files['onnx'], files['int8'], (images[:1].numpy() for _ in range(4)))
    for name, path in files.items():
        session = onnx_model.load(path, threads=torch.get_num_threads())._session
        ways[name] = lambda session=session: session.run(None, {'images': images.numpy()})
    return {name: ways[name] for name in args.ways}


def run() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS))
    parser.add_argument('--arch', default='base')
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--tokens', type=int, default=50)
    args = parser.parse_args()
    common.check(args)
    cards.needed('onnx', 'onnxscript', 'onnxruntime')
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        with torch.inference_mode(False):
            ways = ways_of(args, folder)
        times = common.in_turn(ways, args.rounds)
    base = times[args.ways[0]]
    common.show(
        f'ViT-{args.arch}, {args.img_size} px, batch {args.batch}, {args.tokens} deep prompts',
        ['way', f'time / {args.ways[0]}'],
        [[name, common.ratio(values, base)] for name, values in times.items()])
    common.write(args.json, args, times)


if __name__ == '__main__':
    main(run)
