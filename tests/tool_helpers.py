"""Running the tools inside the test's process: starting one anew costs seconds of imports."""

import gc
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import mmengine.device  # noqa: F401  looks for GPUs once, when first imported: not in a test
import pytest
from mmengine.utils import ManagerMixin
from utils import CONFIGS, ROOT, make_ade_folder

from vpt_dense.errors import UserError

#: A leaf of configs/vpt made tiny: one decode head, one auxiliary head, two iterations.
LEAF = """
_base_ = '{base}'
work_dir = '{work_dir}'
dataset = dict(data_root='{data_root}')
_arch = dict(
    _delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
_narrow = dict(
    in_channels=32, channels=8, num_convs=1, up_scale=2, num_classes=150,
    norm_cfg=dict(type='SyncBN', requires_grad=True))
_load = dict(type='LoadImageFromFile')
_train = [
    _load, dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(32, 32)), dict(type='PackSegInputs')]
_test = [_load, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    backbone=dict(
        arch=_arch, img_size=(32, 32), patch_size=8, out_indices=[0, 1], init_cfg=None,
        prompt=dict(num_tokens=2)),
    decode_head=dict(in_index=1, **_narrow),
    auxiliary_head=[dict(type='SETRUPHead', in_index=0, **_narrow)],
    test_cfg=dict(crop_size=(32, 32), stride=(21, 21)))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_test))
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1), logger=dict(interval=1))
tta_pipeline = [
    _load,
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (1.0, 1.5)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ])]
"""


class Outcome(NamedTuple):
    """What a tool left: exit code and what it printed."""

    code: int
    out: str
    err: str


def write_leaf(folder: Path, data_root: Path, extra: str = '', name: str = 'leaf') -> Path:
    """Write a tiny config into ``folder``; ``extra`` is appended to it."""
    path = folder / f'{name}.py'
    base = CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'
    text = LEAF.format(base=base, work_dir=folder / 'work', data_root=data_root)
    path.write_text(text + extra)
    return path


def tiny_folder(root: Path, **kwargs) -> Path:
    """A folder in ADE20K's layout with two images of 32x32 a split."""
    return make_ade_folder(root, size=(32, 32), **kwargs)


def run_tool(capfd: pytest.CaptureFixture, tool: str, *arguments: object) -> Outcome:
    """Run ``tools/<tool>.py`` as ``python tools/<tool>.py ARGUMENT ...`` would."""
    forget_runs()
    argv = [f'tools/{tool}.py', *map(str, arguments)]
    capfd.readouterr()
    with mock.patch.object(sys, 'argv', argv), mock.patch.dict(os.environ):
        with pytest.raises(SystemExit) as leave:
            runpy.run_path(str(ROOT / 'tools' / f'{tool}.py'), run_name='__main__')
    code = leave.value.code
    return Outcome(0 if code is None else code, *capfd.readouterr())


def in_process(capfd: pytest.CaptureFixture, calls: list[str]) -> Callable[..., None]:
    """In place of ``vpt_dense.comparison.runs.call``: no process, and the tools' names noted."""

    def call(command, log, *args, **kwargs):
        _, module, *arguments = map(str, command)  # python -m
        tool = arguments[0] if module == 'vpt_dense' else 'cost'
        calls.append(tool)
        forget_runs()
        log.parent.mkdir(parents=True, exist_ok=True)
        argv = [module, *arguments]
        with mock.patch.object(sys, 'argv', argv), mock.patch.dict(os.environ):
            with pytest.raises(SystemExit) as leave:
                runpy.run_module(module, run_name='__main__')
        forget_runs()
        printed = capfd.readouterr()
        with log.open('a') as stream:
            stream.write(printed.out + printed.err)
        if leave.value.code:
            raise UserError(f'{tool} failed, see {log}: {printed.err.strip().splitlines()[-1]}')

    return call


def forget_runs() -> None:
    """Drop the loggers, visualizers, message hubs and scopes that runs leave in their process.

    And their cycles; what is left is not looked through again for every data set of the next run.
    """
    classes = [ManagerMixin]
    for kind in classes:
        classes.extend(kind.__subclasses__())
        getattr(kind, '_instance_dict', {}).clear()
    gc.collect()
    gc.freeze()
