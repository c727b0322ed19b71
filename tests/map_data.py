"""Small sets of depth and normals, and recipes on them, that the tests share."""

from pathlib import Path

import cv2
import numpy as np
from utils import CONFIGS

from vpt_dense.datasets import map_files

TINY = """
_base_ = '{configs}/vpt/{recipe}.py'
work_dir = '{root}/work'
dataset = dict(data_root='{root}/data')
model = dict(
    data_preprocessor=dict(size=(32, 48)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2,
                  feedforward_channels=64),
        img_size=(32, 48), patch_size=8, out_indices={indices}, init_cfg=None),
    {head}=dict({extra}))
img_size = (32, 48)
_load = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.{load}')]
_pack = dict(type='{pack}')
_train = [*_load, dict(type='RandomFlip', prob=0.5),
          dict(type='vpt_dense.RandomCrop', crop_size=(32, 48)), _pack]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=[*_load, _pack]))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=[*_load, _pack]))
train_cfg = dict(max_iters=2, val_interval=1)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""


def slope(height: int = 40, width: int = 56, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) in metres of a tilted plane, and its normals (H, W, 3); a tenth is not known."""
    rng = np.random.default_rng(seed)
    normal = np.array([rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), 1.0])
    normal /= np.linalg.norm(normal)
    y, x = np.mgrid[:height, :width]
    rays = np.stack([(x - width / 2) / width, (height / 2 - y) / width, -np.ones_like(x)], axis=2)
    depth = -3 / (rays @ normal)  # n . (depth * ray) = -3
    known = rng.random((height, width)) > 0.1
    normals = np.broadcast_to(normal, (height, width, 3)) * known[..., None]
    return (depth * known).astype(np.float32), normals.astype(np.float32)


def make_folder(root: Path, kind: str = 'depth', number: int = 4) -> Path:
    """Images and maps in the layout of the recipes ``*_depthfolder`` and ``*_normalfolder``."""
    for s, split in enumerate(('training', 'validation')):
        (root / 'images' / split).mkdir(parents=True)
        for i in range(number):
            depth, normals = slope(seed=10 * s + i)
            shade = 255 - 25 * depth
            noise = np.random.default_rng(i).integers(0, 9, (*depth.shape, 3))
            image = (shade[..., None] + noise).clip(0, 255).astype(np.uint8)
            cv2.imwrite(str(root / 'images' / split / f'{i}.png'), image)
            path = root / 'annotations' / split / f'{i}'
            if kind == 'depth':
                map_files.write_depth(path, depth, 1000, 10)
            else:
                map_files.write_normals(path, normals)
    return root


def write_recipe(
    root: Path, recipe: str = 'linear_vit-s_dinov2_depthfolder', indices: str = '[1]',
    extra: str = '', more: str = '',
) -> Path:
    """A tiny recipe on a small set, both below a folder."""
    normals = 'normal' in recipe
    make_folder(root / 'data', 'normals' if normals else 'depth')
    file = root / 'recipe.py'
    head, load, pack = ('normal_head', 'LoadNormals', 'vpt_dense.PackNormals') if normals else (
        'depth_head', 'LoadDepth', 'PackSegInputs')
    file.write_text(TINY.format(
        configs=CONFIGS, root=root, recipe=recipe, indices=indices, extra=extra, head=head,
        load=load, pack=pack) + more)
    return file
