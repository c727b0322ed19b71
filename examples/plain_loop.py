"""Segmentation in a plain loop: a folder of images, one of masks with class ids of equal names.

Usage::

    python examples/plain_loop.py --images data/images --masks data/masks --classes 2
    python examples/plain_loop.py --tiny     # a random model on generated images, nothing to load
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import tiny
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import vpt_dense


class Folder(Dataset):
    """Images (3, S, S), uint8, and masks (S, S), int64; 255 in a mask is left out."""

    def __init__(self, images: list[Path], masks: Path, size: int) -> None:
        self.images, self.masks, self.size = images, masks, (size, size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        path = self.images[i]
        image = Image.open(path).convert('RGB').resize(self.size, Image.Resampling.BILINEAR)
        mask = Image.open(self.masks / f'{path.stem}.png').resize(
            self.size, Image.Resampling.NEAREST)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return pixels, torch.from_numpy(np.array(mask)).long()


def mean_iou(predicted: Tensor, masks: Tensor, classes: int) -> float:
    """Mean over the classes that occur of intersection over union, in percent."""
    seen = masks < classes
    pairs = (masks * classes + predicted)[seen].flatten()
    table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
    union = table.sum(0) + table.sum(1) - table.diag()
    return (100 * table.diag()[union > 0] / union[union > 0]).mean().item()


def main() -> None:
    """Trains, reports mIoU on every tenth image, writes what was tuned."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--images', type=Path)
    parser.add_argument('--masks', type=Path)
    parser.add_argument('--classes', type=int, default=2)
    parser.add_argument('--backbone', default='vit_small_patch16_dinov3.lvd1689m')
    parser.add_argument('--checkpoint', help="a file of its weights, in place of timm's")
    parser.add_argument('--method', default='deep', help='vpt_dense.list_methods() names them')
    parser.add_argument('--size', type=int, default=512, help='pixels, a multiple of the patches')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--out', default='tuned.safetensors')
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(checkpoint=args.checkpoint)
    if args.tiny:
        args.images, args.masks = tiny.images_and_masks(tempfile.mkdtemp())
        args.size, args.lr, options = 64, 1e-2, tiny.MODEL
    model = vpt_dense.create_segmentor(args.backbone, args.classes, args.method, **options)
    model.to(device)
    print('{trainable:,} of {total:,} parameters train'.format(**vpt_dense.count(model)))
    paths = sorted(args.images.iterdir())
    train = Folder([path for i, path in enumerate(paths) if i % 10], args.masks, args.size)
    val = Folder(paths[::10], args.masks, args.size)
    loader = DataLoader(train, args.batch, shuffle=True, drop_last=len(train) > args.batch)
    optimizer = torch.optim.AdamW(vpt_dense.parameter_groups(model, args.lr, weight_decay=0.01))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(loader))
    for epoch in range(args.epochs):
        model.train()
        for pixels, masks in loader:
            pixels, masks = pixels.to(device), masks.to(device)
            scores = model((pixels / 255 - model.mean) / model.std)  # (B, K, S, S)
            loss = F.cross_entropy(scores, masks, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f'epoch {epoch + 1}: loss {loss.item():.3f}')
    predicted = torch.stack([model.predict(p.permute(1, 2, 0).numpy()).cpu() for p, _ in val])
    print(f'mIoU {mean_iou(predicted, torch.stack([m for _, m in val]), args.classes):.1f}')
    print(f'{args.out}: {vpt_dense.save_delta(model, args.out):,} bytes')


if __name__ == '__main__':
    main()
