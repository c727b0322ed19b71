"""Tiny images and a tiny model for the tests of federated training."""

from pathlib import Path

import cv2
import numpy as np
import torch
from utils import CONFIGS

from vpt_dense import building, config

RECIPE = str(CONFIGS / 'vpt/vit-b_imagefolder.py')
CLASSES = ['a', 'b', 'c', 'd']
#: SGD without momentum: an optimizer has no state that a cut into rounds could lose.
TINY = (
    "model.backbone.arch={'embed_dims': 32, 'num_layers': 2, 'num_heads': 2, "
    "'feedforward_channels': 32}", 'model.head.in_channels=32',
    'img_size=32', 'model.backbone.patch_size=16', 'batch_size=4', 'epochs=4', 'warmup=1',
    'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
    'val_dataloader.persistent_workers=False', 'test_dataloader.persistent_workers=False',
    "optim_wrapper={'_delete_': True, 'type': 'OptimWrapper', 'optimizer': {'type': 'SGD', "
    "'lr': 0.5}}", 'auto_scale_lr.enable=False')  # fmt: skip


def make(root: Path, number: int = 6) -> Path:
    """Images of four classes that differ in colour, ``root/{train,val,test}/CLASS/SITE_I.png``."""
    draw = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                picture = draw.integers(0, 60, (36, 36, 3), dtype=np.uint8)
                picture[..., label % 3] += np.uint8(60 * (1 + label // 3))
                cv2.imwrite(str(root / split / name / f'{"xyz"[i % 3]}_{i}.png'), picture)
    return root


def options(root: Path, seed: int = 0) -> tuple[str, ...]:
    """Overrides of the recipe for the images in ``root``, with pretrained weights beside them."""
    torch.manual_seed(seed)
    file = root / f'weights_{seed}.pth'
    said = (*TINY, f'dataset.data_root={root}')
    model = building.build_model(config.load(
        RECIPE, [*said, 'model.backbone.init_cfg=None'], 'deep'))
    state = {name: torch.randn_like(tensor) * 0.1 for name, tensor in
             model.backbone.state_dict().items() if not name.startswith('prompt')}
    torch.save(dict(state_dict=state), file)
    return (*said, f'model.backbone.init_cfg.checkpoint={file}')
