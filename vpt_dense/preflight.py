"""Checks of a run that need only its config and the disk, made before anything is built."""

import math
import os
import tempfile
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

from mmengine.config import Config

from vpt_dense.config import heads, leaf_datasets
from vpt_dense.datasets.checks import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    find_classes,
    list_class_files,
    pair_files,
)
from vpt_dense.errors import UserError

#: Suffixes (images, masks) that a data set class takes when the config does not say.
_SUFFIXES = {
    'ADE20KDataset': ('.jpg', '.png'),
    'BaseSegDataset': ('.jpg', '.png'),
    'SegFolder': (IMAGE_SUFFIXES, MASK_SUFFIXES),
}
#: Data sets that fetch their files by themselves.
_DOWNLOADED = ('CIFAR10', 'CIFAR100', 'MNIST', 'FashionMNIST')


def check(cfg: Config, mode: str, checkpoint: str | None = None) -> None:
    """Check a run.

    Args:
        cfg: The config as :func:`vpt_dense.config.load` returns it, ``work_dir`` set.
        mode: ``train`` or ``test``.
        checkpoint: What is tested, or what training resumes from or starts from.

    Raises:
        UserError: At the first thing that is wrong.
    """
    from vpt_dense import files

    check_gpus(int(os.environ.get('LOCAL_WORLD_SIZE', 1)))
    check_model(cfg.get('model') or {})
    if mode == 'train':
        check_optimizer(cfg.get('optim_wrapper') or {})
    if checkpoint and '://' not in checkpoint:
        files.check(checkpoint)
    if mode == 'train':
        for place, path in pretrained(cfg.get('model'), 'model'):
            if '://' not in path:
                if not Path(path).expanduser().is_file():
                    raise UserError(
                        f'{place}.checkpoint: no file {path}; the config says where to get it '
                        f'(to start from random weights: --cfg-options {place}=None)'
                    )
                files.check(path)
    splits = ('train', 'val') if mode == 'train' else ('test',)
    for split in splits:
        for dataset in leaf_datasets(cfg.get(f'{split}_dataloader')):
            check_dataset(dataset, split)
    check_work_dir(cfg.work_dir)


def check_gpus(asked: int) -> None:
    """Compare the processes on this machine with its GPUs; without GPUs they run on the CPU."""
    import torch

    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if present and asked > present:
        raise UserError(
            f'asked for {asked} GPUs but this machine has {present} '
            f'(CUDA_VISIBLE_DEVICES={os.environ.get("CUDA_VISIBLE_DEVICES", "not set")})'
        )


def check_work_dir(work_dir: str) -> None:
    """Create the folder and a file in it."""
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=work_dir):
            pass
    except OSError as error:
        raise UserError(
            f'work_dir {work_dir} is not writable ({error.strerror.lower()}); choose another with '
            '--work-dir'
        ) from error


# --- model and optimizer ---------------------------------------------------------------------


def check_model(model: dict) -> None:
    """Image size against patch size, and the heads' numbers of classes against each other."""
    backbone = model.get('backbone') or {}
    size, patch = backbone.get('img_size'), backbone.get('patch_size', 16)
    if size is not None:
        sizes = size if isinstance(size, (list, tuple)) else [size]
        patches = patch if isinstance(patch, (list, tuple)) else [patch]
        numbers = [*sizes, *patches]
        if not all(isinstance(n, int) and n > 0 for n in numbers):
            raise UserError(
                f'model.backbone: img_size={size!r} and patch_size={patch!r} must be positive '
                'integers (pixels)'
            )
        if any(s % p for s in sizes for p in patches):
            raise UserError(
                f'model.backbone.img_size {size} is not a multiple of patch_size {patch}: the '
                f'last rows or columns would be lost; use {sizes[0] // patches[0] * patches[0]} '
                f'or {-(-sizes[0] // patches[0]) * patches[0]}'
            )
    counts = {head['num_classes'] for head in heads(model) if 'num_classes' in head}
    if len(counts) > 1:
        raise UserError(
            f'the heads of the model disagree on num_classes: {sorted(counts)}; set '
            'dataset.classes, the heads follow'
        )


def check_optimizer(optim_wrapper: dict) -> None:
    """Learning rates, their multipliers and weight decay: finite and not negative."""
    for place, value in _numbers(optim_wrapper, 'optim_wrapper'):
        name = place.rpartition('.')[2]
        if name not in ('lr', 'weight_decay', 'momentum') and not name.endswith('_mult'):
            continue
        if not isinstance(value, Real) or not math.isfinite(value) or value < 0:
            raise UserError(f'{place} is {value!r}; it must be a finite number, 0 or more')


def _numbers(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, child in node.items():
            yield from _numbers(child, f'{place}.{key}')
    elif node is not None:
        yield place, node


def pretrained(node: Any, place: str) -> Iterator[tuple[str, str]]:
    """Places of ``init_cfg=dict(type='Pretrained')`` below a node, and the files they name."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield place, str(node['checkpoint'])
        for key, child in node.items():
            yield from pretrained(child, f'{place}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, child in enumerate(node):
            yield from pretrained(child, f'{place}.{index}')


# --- data ------------------------------------------------------------------------------------


def check_dataset(dataset: dict, split: str) -> None:
    """Check that the files of one data set are there, as far as its config dict says where.

    Args:
        dataset: Config dict of a data set, not of a wrapper.
        split: ``train``, ``val`` or ``test``, for messages.
    """
    kind = str(dataset.get('type')).rpartition('.')[2]
    prefix, root = dataset.get('data_prefix') or {}, dataset.get('data_root')
    if kind in _DOWNLOADED:
        return
    if root and not Path(root).is_dir():
        raise UserError(
            f'data of {split}: no folder {root} (from {os.getcwd()}); set dataset.data_root'
        )
    if isinstance(prefix, dict) and 'seg_map_path' in prefix:
        _check_segmentation(dataset, split, Path(root or ''), prefix)
    elif kind == 'ImageFolder':
        classes = (dataset.get('metainfo') or {}).get('classes') or find_classes(root)
        list_class_files(Path(root, prefix or 'train'), classes)


def _check_segmentation(dataset: dict, split: str, root: Path, prefix: dict) -> None:
    """Every image must have its mask. Classes with naming rules of their own are left to them."""
    kind = str(dataset.get('type')).rpartition('.')[2]
    images, masks = (root / str(prefix.get(key) or '') for key in ('img_path', 'seg_map_path'))
    for folder, key in ((images, 'img_path'), (masks, 'seg_map_path')):
        if not folder.is_dir():
            raise UserError(f'data of {split}: no folder {folder} (data_prefix.{key})')
    if dataset.get('ann_file'):
        listing = root / dataset['ann_file']
        if not listing.is_file():
            raise UserError(f'data of {split}: no file {listing} (dataset.ann_file)')
        return
    if kind not in _SUFFIXES:
        return
    image_suffix = dataset.get('img_suffix', _SUFFIXES[kind][0])
    mask_suffix = dataset.get('seg_map_suffix', _SUFFIXES[kind][1])
    pairs, _ = pair_files(str(images), str(masks), image_suffix, mask_suffix)
    lacking = [image for image, mask in pairs if mask is None]
    if len(lacking) == len(pairs):
        raise UserError(
            f'data of {split}: no mask in {masks} for any of the {len(pairs)} images in {images} '
            f'(looked for {mask_suffix}, e.g. for {Path(lacking[0]).name})'
        )
    if lacking:
        raise UserError(
            f'data of {split}: {len(lacking)} of {len(pairs)} images have no mask in {masks}, '
            f'e.g. {lacking[0]}'
        )
