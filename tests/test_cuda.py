"""What a GPU computes and takes (`make test-cuda`, on a machine that has one)."""

import json
import os
import subprocess
import sys

import pytest
import torch
from methods import BACKBONES, CASES, ROWS, build, build_at_start
from mmengine.registry import MODELS
from test_methods import penalty
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, ROOT, TINY_ARCH, images, in_scope, randomise, tiny_setr_overrides

from vpt_dense import config

pytestmark = pytest.mark.cuda
DEVICE = 'cuda'
KINDS = ['vit', 'swin']  # of backbones whose blocks have paths of their own
DEEP = dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True))
#: One task of each row and family: the one with more outputs.
ON_GPU = [(name, family, task) for name, family, task in CASES if task == ROWS[name].tasks[-1]]


def total(outs) -> torch.Tensor:
    """A number that depends on every output, on any device."""
    return sum((out * torch.linspace(-1, 1, out.numel()).to(out).view_as(out)).sum()
               for out in outs)


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(('name', 'family', 'task'), CASES)
def test_features_and_gradients_are_those_of_the_cpu(name, family, task):
    found = []
    for device in ('cpu', DEVICE):
        model = build(name, family, task).double().eval().to(device)
        outs = model(images(2, 3, *BACKBONES[family].size, dtype=torch.float64).to(device))
        if any(out.requires_grad for out in outs):
            total(outs).backward()
        found.append(([out.detach().cpu() for out in outs], gradients(model)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('name', 'family', 'task'), ON_GPU)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_trains(name, family, task, dtype):
    model = build(name, family, task).train().to(DEVICE)
    x = images(2, 3, *BACKBONES[family].size).to(DEVICE)
    with torch.no_grad():
        exact = model.eval()(x)
        with torch.autocast(DEVICE, dtype=dtype):
            rounded = model(x)
    for one, other in zip(exact, rounded, strict=True):
        assert other.isfinite().all()
        assert (other.float() - one).norm() / one.norm() < 0.06
    with torch.autocast(DEVICE, dtype=dtype):
        outs = model.train()(x)
    if any(out.requires_grad for out in outs):
        (total([out.float() for out in outs]) + penalty(model)).backward()
        for parameter in gradients(model).values():
            assert parameter.isfinite().all()


WAYS = {
    'vit': [dict(memory='lean'), dict(with_cp=True), dict(prompts_as='tokens'), 'frozen_dtype'],
    'swin': [dict(with_cp=True)],
}


@pytest.mark.parametrize(('family', 'way', 'dtype'), [
    (family, way, dtype) for family, ways in WAYS.items() for way in ways
    for dtype in ('float64', 'bfloat16', 'float16') if way != 'frozen_dtype' or dtype != 'float64'
], ids=str)  # fmt: skip
def test_every_way_gives_the_same_gradients(family, way, dtype):
    half = dtype != 'float64'
    if way == 'frozen_dtype':
        way = dict(frozen_dtype=dtype)
    x = images(2, 3, *BACKBONES[family].size).to(DEVICE)
    found = []
    for more in ({}, way):
        model = randomise(build_at_start({**DEEP, **more}, family, 'seg')).train().to(DEVICE)
        model = model if half else model.double()
        with torch.autocast(DEVICE, dtype=getattr(torch, dtype), enabled=half):
            outs = model(x if half else x.double())
        outs = [out.float() if half else out for out in outs]
        total(outs).backward()
        found.append([*[out.detach().cpu() for out in outs], *gradients(model).values()])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() / one.norm() < (0.1 if half else 1e-10)


@pytest.mark.parametrize('name', ['deep', 'shallow', 'lora', 'ssf', 'adapter', 'full'])
@pytest.mark.parametrize('family', KINDS)
def test_compiled(name, family):
    task = ROWS[name].tasks[-1]
    x = images(2, 3, *BACKBONES[family].size).to(DEVICE)
    found = []
    for compiled in (False, True):
        model = build(name, family, task).train().to(DEVICE)
        run = torch.compile(model) if compiled else model
        outs = run(x)
        total(outs).backward()
        found.append(([out.detach().cpu() for out in outs], gradients(model)))
    torch.compiler.reset()
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert (one - other).norm() / one.norm() < 1e-4
    assert found[0][1].keys() == found[1][1].keys()
    for key, one in found[0][1].items():
        assert (one - found[1][1][key]).norm() <= 1e-3 * one.norm() + 1e-6, key


@pytest.mark.parametrize('family', KINDS)
@pytest.mark.parametrize('name', ['deep', 'shallow', 'lora', 'deep-lora', 'ssf', 'rein'])
def test_nothing_waits_for_the_gpu(name, family):
    """In a step after the first; a wait leaves the GPU idle until the CPU has caught up."""
    task = ROWS[name].tasks[-1]
    model = build(name, family, task).train().to(DEVICE)
    x = images(2, 3, *BACKBONES[family].size).to(DEVICE)
    weights = [torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out) for out in model(x)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode('error')
    try:
        sum((out * w).sum() for out, w in zip(model(x), weights, strict=True)).backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')


def train(folder, *arguments, launcher=()):
    """Train in a process of its own, so that CUDA starts anew; the summary."""
    command = [sys.executable, *launcher, str(ROOT / 'tools/train.py'), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, 'PYTHONPATH': os.environ.get('PYTHONPATH', '')})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((folder / 'work/summary.json').read_text()), done.stdout + done.stderr


@pytest.mark.parametrize('amp', [False, True])
def test_training_reports_the_memory_of_the_gpu(tmp_path, amp):
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    summary, _ = train(tmp_path, leaf, *(['--amp'] if amp else []))
    assert summary['peak_memory']['kind'].startswith('CUDA') and summary['last']['metrics']
    states = torch.load(tmp_path / 'work/iter_2.pth', weights_only=False)
    if amp:
        assert states['optimizer']['loss_scaler']['scale'] > 0


def test_a_run_by_nccl_is_the_run_without(tmp_path):
    found = []
    for name, launcher, more in (
        ('plain', (), ()),
        ('nccl', ('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=1'),
         ('--launcher', 'pytorch')),
    ):
        folder = tmp_path / name
        folder.mkdir()
        leaf = write_leaf(folder, tiny_folder(folder / 'data'))
        _, printed = train(folder, leaf, *more, launcher=launcher)
        state = torch.load(folder / 'work/iter_2.pth', weights_only=False)['state_dict']
        found.append({key.removeprefix('module.'): value for key, value in state.items()})
    assert found[0].keys() == found[1].keys()
    for key, value in found[0].items():
        torch.testing.assert_close(value, found[1][key], rtol=1e-4, atol=1e-5)


def test_label_maps_are_those_of_the_cpu(tmp_path, capfd):
    import cv2

    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    train(tmp_path, leaf)
    maps = []
    for device in ('cpu', DEVICE):
        out = tmp_path / f'maps-{len(maps)}'
        done = run_tool(
            capfd, 'predict', leaf, tmp_path / 'work/iter_2.pth',
            tmp_path / 'data/images/validation', '--out', out, '--device', device)
        assert done.code == 0, done.err
        maps.append([cv2.imread(str(p), -1) for p in sorted(out.rglob('*.png'))])
    assert maps[0]
    for one, other in zip(*maps, strict=True):
        assert (one == other).mean() > 0.99


@pytest.mark.parametrize('options', [
    {}, {'model.backbone.memory': 'lean'}, {'optim_wrapper.type': 'AmpOptimWrapper'}],
    ids=['default', 'lean', 'amp'])
def test_the_estimate_of_memory_holds(tmp_path, ade_folder, options):
    from mmengine.optim import build_optim_wrapper
    from mmengine.runner import Runner
    from torch.utils._pytree import tree_leaves

    from vpt_dense import memory

    more = tiny_setr_overrides(ade_folder, tmp_path, size=256)
    more['model.backbone.arch'] = dict(TINY_ARCH, _delete_=True)
    cfg = config.load(str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'), {**more, **options})
    for transform in cfg.train_dataloader.dataset.pipeline:
        if 'crop_size' in transform:
            transform.crop_size = (256, 256)
    cfg.train_dataloader.batch_size = 4
    expected = memory.estimate(cfg)['megabytes']['peak'] * 1e6
    in_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).train().to(DEVICE)
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    model.train_step(batch, wrapper)  # libraries take their own memory
    held = torch.cuda.memory_allocated() - sum(
        t.untyped_storage().nbytes() for t in [
            *model.parameters(), *model.buffers(),
            *tree_leaves(list(wrapper.optimizer.state.values()))]
        if isinstance(t, torch.Tensor))
    torch.cuda.reset_peak_memory_stats()
    model.train_step(batch, wrapper)
    peak = torch.cuda.max_memory_allocated() - held
    assert peak == pytest.approx(expected, rel=0.1)
