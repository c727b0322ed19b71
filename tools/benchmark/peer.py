"""The same LoRA by another way: transformers' Dinov2 and HF PEFT in a loop of their own.

``python tools/benchmark/peer.py configs/results/camvid_dinov2-s.py dinov2_vits14.safetensors``

Data, augmentation and their order are those of the config, with its seed; head, loss, schedule,
rates, precision and the test are written here for transformers' model. The weights are in Hugging
Face's layout. Compare with ``vpt-dense train CONFIG --method lora``. Needs the package ``peft``.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from safetensors.torch import load_file
from torch import Tensor, nn

from vpt_dense import building, config, logging, machine
from vpt_dense.analysis import errors_of
from vpt_dense.commands import compare
from vpt_dense.errors import UserError, main

# --- what is compared: lines between here and the next mark are counted -----------------------


class Segmentor(nn.Module):
    """DINOv2 with LoRA on queries, keys and values; batch-norm and one convolution."""

    def __init__(self, weights: str, classes: int, rank: int) -> None:
        import peft
        import transformers

        super().__init__()
        settings = transformers.Dinov2Config(
            hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518,
            patch_size=14)
        backbone = transformers.Dinov2Model.from_pretrained(
            None, config=settings, state_dict=load_file(weights))
        # The first names are those of older versions.
        targets = r'.*\.(query|key|value|q_proj|k_proj|v_proj)'
        self.backbone = peft.get_peft_model(backbone, peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules=targets))
        self.norm = nn.BatchNorm2d(384)
        self.classifier = nn.Conv2d(384, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to scores (B, classes, H / 14, W / 14)."""
        height, width = (side // 14 for side in images.shape[-2:])
        hidden = self.backbone(pixel_values=images, output_hidden_states=True).hidden_states[-1]
        maps = hidden[:, 1:].transpose(1, 2).unflatten(2, (height, width))
        return self.classifier(self.norm(maps))


def train(model: Segmentor, batches, iters: int, warmup: int, args) -> list[float]:
    """Train, and return the seconds of each iteration."""
    head = [*model.norm.parameters(), *model.classifier.parameters()]
    tuned = [p for p in model.backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [dict(params=tuned, lr=args.lr), dict(params=head, lr=args.head_lr)],
        weight_decay=args.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (
        max(step, 1e-6) / warmup if step < warmup else (iters - step) / (iters - warmup)))
    times = []
    model.train()
    for images, labels in batches:
        start = time.perf_counter()
        with torch.autocast('cpu', torch.bfloat16, enabled=args.bfloat16):
            scores = model(images)
            scores = F.interpolate(scores, labels.shape[-2:], mode='bilinear')
            loss = F.cross_entropy(scores.float(), labels, ignore_index=args.ignore_index)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        times.append(time.perf_counter() - start)
    return times


@torch.no_grad()
def test(model: Segmentor, batches, classes: int, ignored: int) -> errors_of.Errors:
    """Count predictions at the size of the annotations."""
    found = errors_of.Errors(classes)
    model.eval()
    for name, images, labels, size in batches:
        scores = F.interpolate(model(images), images.shape[-2:], mode='bilinear')
        scores = F.interpolate(scores[..., : size[0], : size[1]], labels.shape, mode='bilinear')
        found.add(name, labels, scores.argmax(1)[0], ignored)
    return found


# --- up to here ------------------------------------------------------------------------------


def run() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='recipe with a linear head on DINOv2-S')
    parser.add_argument('weights', help="of DINOv2-S, in Hugging Face's layout")
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--head-lr', type=float, default=1e-2)
    parser.add_argument('--weight-decay', type=float, default=1e-4)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0])
    parser.add_argument('--out', type=Path, help='also write the figures here, as JSON')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='override settings')
    args = parser.parse_args()
    if not Path(args.weights).is_file():
        raise UserError(f'{args.weights}: no such file')
    _, _, args.bfloat16 = compare.share(1, 1, 'auto')
    results = [one(args, seed) for seed in args.seeds]
    source = Path(__file__).read_text(encoding='utf-8').split('# --- ')
    lines = sum(bool(line.strip()) for line in source[1].splitlines()[1:])
    for result in results:
        print(json.dumps(result))
    print(f'{lines} lines of code; ours: none, the method is --method lora')
    if args.out:
        args.out.write_text(json.dumps(dict(
            command=sys.argv, lines=lines, bfloat16=args.bfloat16, results=results), indent=1))


def one(args: argparse.Namespace, seed: int) -> dict:
    """Train and test with one seed."""
    logging.quiet()
    options = [*args.cfg_options, 'model.backbone.init_cfg=None', f'randomness.seed={seed}']
    cfg = config.load(args.config, options, 'lora')
    head, rank = cfg.model.decode_head, cfg.model.backbone.adapters[0]['rank']
    args.ignore_index = head.ignore_index
    iters, warmup = cfg.train_cfg.max_iters, cfg.param_scheduler[0]['end']
    with building.scope(cfg):
        preprocessor = building.build_model(cfg).data_preprocessor
        loader = Runner.build_dataloader(cfg.train_dataloader, seed=seed)
        testset = Runner.build_dataloader(cfg.test_dataloader)

    def training():
        for _, batch in zip(range(iters), loader, strict=False):
            made = preprocessor(batch, True)
            labels = torch.stack([each.gt_sem_seg.data[0] for each in made['data_samples']])
            yield made['inputs'], labels.long()

    def testing():
        for batch in testset:
            made = preprocessor(batch, False)
            sample = made['data_samples'][0]
            yield (Path(sample.img_path).name, made['inputs'], sample.gt_sem_seg.data[0].long(),
                   sample.img_shape)

    torch.manual_seed(seed)
    model = Segmentor(args.weights, head.num_classes, rank)
    times = train(model, training(), iters, warmup, args)
    peak = machine.resident_peak() / 1e6
    found = test(model, testing(), head.num_classes, head.ignore_index)
    return dict(seed=seed, mIoU=errors_of.mean_iou(found.matrix),
                seconds=sum(times[5:]) / len(times[5:]), peak_megabytes=peak,
                trainable=sum(p.numel() for p in model.parameters() if p.requires_grad))


if __name__ == '__main__':
    main(run)
