"""Small models, images and data sets that the tests share."""

import itertools
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'

_COUNTER = itertools.count()

#: What the names of recipes of depth and normals end in; they have no leaves.
_OF_TASKS = ('_nyud', '_pascal-context', 'camvid-tasks_dinov2-s')
_OF_MAPS = ('_nyu', '_kitti-depth', '_depthfolder', '_normalfolder', 'rooms-depth_dinov2-s',
            *_OF_TASKS)
#: Likewise of detection and panoptic segmentation, which need mmdet.
_OF_MMDET = ('_coco-folder', '_panoptic-folder', 'mask2former_vit-s_dinov2_segfolder')
#: The recipes of configs/vpt, demo and results, below configs: those that no method was put on.
RECIPES = sorted(
    str(path.relative_to(CONFIGS)) for folder in ('vpt', 'demo', 'results')
    for path in (CONFIGS / folder).glob('*.py')
    if not path.stem.endswith((*_OF_MMDET, *_OF_MAPS))
    if folder == 'results' or '/optim/' in path.read_text() or '\noptim = ' in path.read_text()
)
#: Those whose classes are known by texts.
OF_TEXTS = sorted(str(path.relative_to(CONFIGS)) for path in (CONFIGS / 'clip').glob('*.py')
                  if '/optim/' in path.read_text())
#: Those of public sets of some fields.
FIELDS = sorted(str(path.relative_to(CONFIGS)) for path in (CONFIGS / 'fields').glob('*.py'))
#: The configs that a run takes as they are.
LEAVES = sorted(
    str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('[!_]*/*.py')
    if str(path.relative_to(CONFIGS)) not in [*RECIPES, *OF_TEXTS, *FIELDS]
    and path.parent.name not in ('suites', 'transfer')
    and not path.stem.endswith((*_OF_MMDET, *_OF_MAPS))
)
#: The recipes of detection, which need mmdet.
DETECTORS = sorted(
    str(path.relative_to(CONFIGS)) for kind in _OF_MMDET
    for path in (CONFIGS / 'vpt').glob(f'*{kind}.py'))

#: The recipes of depth and normals.
MAPS = sorted(str(path.relative_to(CONFIGS)) for folder in ('vpt', 'results')
              for path in (CONFIGS / folder).glob('*.py')
              if path.stem.endswith(_OF_MAPS) and not path.stem.endswith(_OF_TASKS))
#: The recipes of several tasks together.
OF_TASKS = sorted(str(path.relative_to(CONFIGS)) for folder in ('vpt', 'results')
                  for path in (CONFIGS / folder).glob('*.py') if path.stem.endswith(_OF_TASKS))

#: The architecture of the reference vectors: width 64, 4 blocks, patches of 8, images of 32.
TINY_ARCH = dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128)


def load(name: str, options: dict | None = None) -> Config:
    """Load a config of configs/vpt: by the name of a leaf; or of a recipe, a blank and a method."""
    from vpt_dense import config

    stem, _, method = name.partition(' ')
    return config.load(str(CONFIGS / 'vpt' / f'{stem}.py'), options, method or None)


def tiny_vit(**kwargs) -> torch.nn.Module:
    """Build a tiny prompted ViT; keyword arguments override its config."""
    cfg = dict(
        type='vpt_dense.VisionTransformer',
        arch=TINY_ARCH,
        img_size=32,
        patch_size=8,
        out_type='featmap',
    )
    return MODELS.build({**cfg, **kwargs})


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter a value, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            is_norm_weight = parameter.ndim == 1 and name.endswith('weight')
            parameter.copy_(noise + 1 if is_norm_weight else noise)
    return module


def images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Random images (B, C, H, W)."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def make_ade_folder(
    root: Path,
    num_classes: int = 150,
    num_images: int = 2,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
) -> Path:
    """Write a folder in ADE20K's layout: labels 0 (other) to ``num_classes``.

    Args:
        root: Where ``images/{training,validation}`` and ``annotations/...`` go.
        num_classes: Classes beside 0; each image is a grid of random ones.
        num_images: Images a split.
        size: (height, width) in pixels.
        seed: Of the pixels.

    Returns:
        ``root``.
    """
    rng = np.random.default_rng(seed)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i in range(num_images):
            cells = rng.integers(0, num_classes + 1, (4, 4)).astype(np.uint8)
            labels = cv2.resize(cells, size[::-1], interpolation=cv2.INTER_NEAREST)
            noise = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
            image = (0.7 * labels[..., None] + 0.3 * noise).astype(np.uint8)
            cv2.imwrite(str(root / 'images' / split / f'{i:03}.jpg'), image)
            cv2.imwrite(str(root / 'annotations' / split / f'{i:03}.png'), labels)
    return root


def tiny_setr_overrides(data_root: Path | str, work_dir: Path | str, size: int = 64) -> dict:
    """Dotted overrides that shrink a SETR config of ``configs/vpt`` to a tiny model on CPU.

    Classes stay 150; two iterations, one validation at the end, no pretrained weights.
    """
    return {
        'work_dir': str(work_dir),
        'dataset.data_root': str(data_root),
        'model.backbone.arch': TINY_ARCH,
        'model.backbone.img_size': (size, size),
        'model.backbone.out_indices': [0, 1, 2, 3],
        'model.backbone.init_cfg': None,
        'model.data_preprocessor.size': (size, size),
        'model.decode_head.in_channels': 64,
        'model.decode_head.channels': 16,
        'model.auxiliary_head': tiny_auxiliary_heads(),
        'model.test_cfg.crop_size': (size, size),
        'model.test_cfg.stride': (size * 2 // 3, size * 2 // 3),
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'train_cfg.max_iters': 2,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
    }


def tiny_auxiliary_heads(num_classes: int = 150) -> list[dict]:
    """Three auxiliary heads like those of the SETR configs, 16 channels wide."""
    head = Config.fromfile(CONFIGS / '_base_/models/setr-pup_vit-l.py').model.auxiliary_head[0]
    head = head.to_dict()
    small = dict(in_channels=64, channels=16, num_classes=num_classes)
    return [{**head, **small, 'in_index': i} for i in range(3)]


def in_scope(scope: str) -> None:
    """Make ``scope`` the default scope of config strings."""
    # An instance of a name that was used before would not become the current one.
    DefaultScope.get_instance(f'test-{scope}-{next(_COUNTER)}', scope_name=scope)
