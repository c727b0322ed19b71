"""Frozen features: k nearest neighbours and a linear probe on folders train/CLASS and val/CLASS.

Usage::

    python examples/knn_and_linear.py --data data/flowers
    python examples/knn_and_linear.py --data data/flowers --delta tuned.safetensors
    python examples/knn_and_linear.py --tiny     # a random model on generated images
"""

import argparse
import tempfile

import tiny
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import vpt_dense


@torch.no_grad()
def features(model: nn.Module, folder: str, transform: object, batch: int) -> tuple[Tensor, Tensor]:
    """Pooled features (N, C) and labels (N,) of a folder."""
    device = next(model.parameters()).device
    data = ImageFolder(folder, transform)
    found = [(model(pixels.to(device)), labels) for pixels, labels in DataLoader(data, batch)]
    outs, labels = zip(*found, strict=True)
    return torch.cat(outs), torch.cat(labels).to(device)


def knn(train: Tensor, labels: Tensor, val: Tensor, k: int) -> Tensor:
    """Classes (M,) by the k nearest in cosine, weighted by exp(cosine / 0.07), as DINO has it."""
    cosine = F.normalize(val, dim=1) @ F.normalize(train, dim=1).T  # (M, N)
    near, index = cosine.topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(val), int(labels.max()) + 1, device=val.device)
    return votes.scatter_add(1, labels[index], (near / 0.07).exp()).argmax(1)


def linear(train: Tensor, labels: Tensor, val: Tensor, decay: float) -> Tensor:
    """Classes (M,) by a softmax regression on standardised features."""
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, val = (train - mean) / std, (val - mean) / std
    layer = nn.Linear(train.shape[1], int(labels.max()) + 1, device=train.device)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(layer(train), labels) + decay * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer(val).argmax(1)


def main() -> None:
    """Reports both accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--data', help='with train/CLASS/*.jpg and val/CLASS/*.jpg')
    parser.add_argument('--backbone', default='vit_small_patch16_dinov3.lvd1689m')
    parser.add_argument('--checkpoint', help="a file of its weights, in place of timm's")
    parser.add_argument('--delta', help='a backbone that vpt_dense.save_delta has written')
    parser.add_argument('--k', type=int, default=20)
    parser.add_argument('--decay', type=float, default=1e-4)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--tiny', action='store_true')
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.tiny:
        args.data = tiny.image_folder(tempfile.mkdtemp())
    if args.delta:
        model = vpt_dense.load(args.delta)
    else:
        options = tiny.MODEL if args.tiny else dict(checkpoint=args.checkpoint)
        model = vpt_dense.create_backbone(args.backbone, 'head', **options)
    transform = create_transform(
        **resolve_data_config({'input_size': (3, 64, 64)} if args.tiny else {}, model=model))
    model.to('cuda' if torch.cuda.is_available() else 'cpu')
    train, labels = features(model, f'{args.data}/train', transform, args.batch)
    val, truth = features(model, f'{args.data}/val', transform, args.batch)
    for name, found in (('kNN', knn(train, labels, val, args.k)),
                        ('linear', linear(train, labels, val, args.decay))):  # fmt: skip
        print(f'{name} accuracy {100 * (found == truth).float().mean().item():.1f}')


if __name__ == '__main__':
    main()
