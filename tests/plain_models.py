"""Tiny models for the tests of plain PyTorch."""

from typing import Any

import timm
import torch
from torch import nn
from utils import randomise

import vpt_dense
from vpt_dense.tuning import ADDED

FAMILIES = dict(
    dinov3='vit_small_patch16_dinov3', vit='vit_tiny_patch16_224',
    siglip='vit_base_patch16_siglip_224')
SMALL = dict(embed_dim=32, depth=4, num_heads=2)

def plain(family: str = 'dinov3', **options: Any) -> nn.Module:
    """A tiny model of timm, at random, with no number at zero."""
    options = {'num_classes': 0, 'img_size': 64, **SMALL, **options}
    return randomise(timm.create_model(FAMILIES[family], **options)).eval()


def of_another_library(name: str) -> nn.Module:
    """torchvision's, or transformers' of a name, as small."""
    if name == 'torchvision':
        from torchvision.models import VisionTransformer

        return randomise(VisionTransformer(
            image_size=64, patch_size=16, num_layers=4, num_heads=2, hidden_dim=32, mlp_dim=128,
            num_classes=0)).eval()  # fmt: skip
    import transformers

    kind = getattr(transformers, name)
    return randomise(kind(kind.config_class(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=128,
        image_size=64, patch_size=16))).eval()  # fmt: skip


def tuned(family: str = 'dinov3', method: Any = 'deep', **options: Any) -> nn.Module:
    """The same, tuned, with all that was added at random too."""
    model = vpt_dense.tune(plain(family), method, **options)
    for name in ADDED:
        if getattr(model, name) is not None:
            randomise(getattr(model, name), seed=1)
    return model


def step(model: nn.Module, pixels: torch.Tensor) -> None:
    trained = [p for p in model.parameters() if p.requires_grad]
    out = model(pixels)
    if trained:
        out.square().mean().backward()
        torch.optim.SGD(trained, lr=1.0).step()


def gradients(model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    model.train()(pixels).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
