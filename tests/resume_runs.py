"""Short runs with everything random that training has, for the tests of resuming."""

import gc
import os
import random
from pathlib import Path

import numpy as np
import torch
from mmengine import Config
from mmengine.hooks import Hook
from tool_helpers import forget_runs, write_leaf

from vpt_dense import config, safe_files

#: ADE20K's training pipeline for images of 48 pixels; dropout of prompts and heads is the default.
AUGMENTED = """
_train = [
    _load, dict(type='vpt_dense.LoadMask'),
    dict(type='RandomResize', scale=(64, 48), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='vpt_dense.RandomCrop', crop_size=(32, 32), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5), dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
train_cfg = dict(max_iters=8, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2), logger=dict(interval=1))
"""
#: 7 images: an epoch of one process is 4 iterations, the last of one image; of two it is 2.
IMAGES = 7
ITERATIONS = 8


class Stop(Exception):
    """The run is cut off."""


class StopAt(Hook):
    """Cuts a run off after an iteration, counted from 1."""

    priority = 'LOWEST'

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Raise there."""
        if runner.iter + 1 == self.iteration:
            raise Stop


def settings(
    folder: Path, data: Path, loop: str = 'iter', workers: int = 0, **options: object
) -> Config:
    """A finished config.

    Args:
        folder: Work dir.
        data: Folder in ADE20K's layout with :data:`IMAGES` training images.
        loop: ``iter``, ``iter-epochs`` (by iterations, on a sampler that ends) or ``epoch``.
        workers: Loader workers.
        options: Dotted overrides.
    """
    folder.mkdir(parents=True, exist_ok=True)
    processes = int(os.environ.get('WORLD_SIZE', 1))
    overrides = {
        'work_dir': str(folder),
        'train_dataloader.num_workers': workers,
        'train_dataloader.persistent_workers': workers > 0,
    }
    if loop != 'iter':
        overrides['train_dataloader.sampler.type'] = 'DefaultSampler'
    if loop == 'epoch':
        overrides['log_processor.by_epoch'] = True
    path = write_leaf(folder, data, AUGMENTED, name=f'leaf_{os.environ.get("RANK", 0)}')
    cfg = config.load(str(path), {**overrides, **options})
    if loop == 'epoch':
        epochs = ITERATIONS // (4 // processes)
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=epochs, val_interval=1)
        cfg.param_scheduler = [
            dict(type='LinearLR', start_factor=0.5, by_epoch=True, begin=0, end=epochs)
        ]
    cfg.launcher = 'pytorch' if processes > 1 else 'none'
    return cfg


def train(cfg: Config, stop: int | None = None, resume: str | None = None) -> None:
    """Train as a new process would, from the start or from a checkpoint.

    Args:
        cfg: From :func:`settings`.
        stop: Iteration to be cut off after.
        resume: Checkpoint.
    """
    import mmseg.datasets
    import mmseg.models  # noqa: F401

    gc.freeze()  # as the tools do: data sets collect garbage among all that is imported

    from vpt_dense.engine.runner import Runner

    forget_runs()
    # What earlier runs of this process drew shall not matter, as it is unknown to a new one.
    noise = int.from_bytes(os.urandom(4), 'little')
    random.seed(noise)
    np.random.seed(noise)
    torch.manual_seed(noise)
    if resume:
        cfg.resume, cfg.load_from = True, resume
    runner = Runner.from_cfg(cfg)
    if stop:
        runner.register_hook(StopAt(stop))
    try:
        runner.train()
    except Stop:
        pass


def differences(one: object, two: object, name: str = '') -> list[str]:
    """Names of what differs, bit for bit, in the contents of two checkpoints."""
    if isinstance(one, dict) and isinstance(two, dict):
        found = [f'{name}/{key} is in one only' for key in one.keys() ^ two.keys()]
        for key in one.keys() & two.keys():
            found += differences(one[key], two[key], f'{name}/{key}')
        return found
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f'{name}/{i}')]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and torch.equal(one, two)
    else:
        same = type(one) is type(two) and one == two
    return [] if same else [f'{name} differs']


def final(folder: Path, name: str = f'iter_{ITERATIONS}.pth') -> dict:
    """What must be equal in the last checkpoint of a run."""
    content = safe_files.read(str(folder / name))
    kept = {
        key: value
        for key, value in content.items()
        if key in ('state_dict', 'ema_state_dict', 'optimizer', 'param_schedulers', 'accumulated')
    }
    scalars = content['message_hub']['log_scalars']
    kept['log'] = {
        key: [float(value) for value in buffer.data[0]]
        for key, buffer in scalars.items()
        if key.startswith('train/') and 'time' not in key and 'memory' not in key
    }
    kept['at'] = {key: content['meta'][key] for key in ('epoch', 'iter', 'seed')}
    return kept
