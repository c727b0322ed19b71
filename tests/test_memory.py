"""The memory of a training step, estimated without it, beside what real steps on a CPU take."""

import copy
import json
import os
import subprocess
import sys
import weakref

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.runner import Runner
from test_classification import make_image_folder, tiny_folder
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves
from utils import CONFIGS, TINY_ARCH, in_scope, tiny_setr_overrides

from vpt_dense import config, memory, recomputing
from vpt_dense.errors import UserError

#: Larger than 64x64, up to which PyTorch's upsampling copies what it gets.
SIZE = (80, 80)
AMP = {'optim_wrapper.type': 'vpt_dense.AmpOptimWrapper'}
MMSEG_HEAD = {'model.decode_head.type': 'mmseg.SETRUPHead', 'model.auxiliary_head': None}
#: A leaf of configs/vpt without the name of its data, and overrides.
CASES = {
    'deep': ('setr_vit-l_deep', {}),
    'head': ('setr_vit-l_head', {'optim_wrapper.optimizer.momentum': 0}),
    'bias': ('setr_vit-l_bias', {'train_dataloader.batch_size': 5}),
    'full': ('setr_vit-l_full', {
        'optim_wrapper.optimizer': dict(type='AdamW', lr=1e-3, _delete_=True)}),
    'muon': ('setr_vit-l_deep-bias', {
        'optim_wrapper.optimizer': dict(type='vpt_dense.MuonAdamW', lr=1e-3, _delete_=True)}),
    'accumulate': ('setr_vit-l_full', {'optim_wrapper.accumulative_counts': 2}),
    'positions-resized': ('setr_vit-l_shallow', {'model.backbone.img_size': 32}),
    'with-cp': ('setr_vit-l_deep', {
        'model.backbone.with_cp': True,
        'optim_wrapper.clip_grad': dict(max_norm=1.0, _delete_=True)}),
    'lean': ('setr_vit-l_deep-bias', {'model.backbone.memory': 'lean'}),
    'recomputed': ('setr_vit-l_deep', {'activation_checkpointing': ['backbone.layers']}),
    'amp': ('setr_vit-l_deep', AMP),
    'amp-lean-frozen-half': ('setr_vit-l_deep', {
        **AMP, 'model.backbone.memory': 'lean', 'model.backbone.frozen_dtype': 'bfloat16'}),
    'index': ('setr_vit-l_head', MMSEG_HEAD),  # by a mask, in the accuracy
    'nonzero': ('setr_vit-l_head', {
        **MMSEG_HEAD, 'model.decode_head.loss_decode.use_sigmoid': True}),
    'sampler': ('setr_vit-l_head', {
        **MMSEG_HEAD,
        'model.decode_head.sampler': dict(type='OHEMPixelSampler', thresh=0.7, min_kept=100)}),
    'cls-deep': ('vit-b_deep', {}),
    'cls-amp': ('vit-b_linear', AMP),
    'cls-soft-labels': ('vit-b_full', {
        'model.train_cfg': dict(
            augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
        'model.data_preprocessor.num_classes': 3,
        'model.head.loss': dict(
            type='LabelSmoothLoss', label_smooth_val=0.1, mode='original', _delete_=True)}),
}

#: One of each: prompts, two ways to recompute, precision, two heads, labels of both tasks.
QUICK = ('deep', 'lean', 'recomputed', 'amp', 'index', 'cls-deep', 'cls-soft-labels')


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)


@pytest.fixture(scope='module')
def image_folder(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp('classes'))


@pytest.fixture
def load(ade_folder, image_folder, tmp_path):
    """Load a leaf with a tiny model and overrides; images of SIZE, 32x32 in classification."""
    def load(leaf, more):
        if leaf.startswith('setr'):
            options = tiny_setr_overrides(ade_folder, tmp_path, size=SIZE[0])
            options['model.backbone.arch'] = dict(TINY_ARCH, _delete_=True)
            options.update(more)
            cfg = config.load(str(CONFIGS / f'vpt/{leaf}_ade20k.py'), options)
        else:
            options = tiny_folder(tmp_path, image_folder, **more)
            cfg = config.load(str(CONFIGS / f'vpt/{leaf}_imagefolder.py'), options)
        for transform in cfg.train_dataloader.dataset.pipeline:
            if 'crop_size' in transform:
                transform.crop_size = SIZE if leaf.startswith('setr') else 32
        return cfg
    return load


def size(tensors) -> int:
    """Bytes of some tensors' storages, each once."""
    storages = [t.untyped_storage() for t in tensors if isinstance(t, torch.Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def measure(cfg) -> dict[str, int]:
    """Train twice until the optimizer steps, on the config's own data; bytes in the second.

    The peak is what PyTorch's profiler saw requested from the allocator and given back, beside
    weights, optimizer state and gradients that are there before.
    """
    in_scope(cfg.default_scope)
    model = MODELS.build(cfg.model).train()
    recomputing.turn_on(model, cfg.get('activation_checkpointing', []))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    held = [*model.parameters(), *model.buffers()]
    weights = {tensor.untyped_storage().data_ptr() for tensor in held}
    saved, found = [], {}
    backward = wrapper.backward

    def pack(tensor):
        saved.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    def measured_backward(loss):
        kept = {s.data_ptr(): s.nbytes() for ref in saved if (s := ref()) is not None}
        found['kept'] = sum(n for pointer, n in kept.items() if pointer not in weights)
        backward(loss)
        found['gradients'] = size(p.grad for p in model.parameters())

    wrapper.backward = measured_backward

    def state():
        return size(tree_leaves(list(wrapper.optimizer.state.values())))

    batches = cfg.optim_wrapper.get('accumulative_counts', 1)
    for _ in range(batches):
        model.train_step(copy.deepcopy(batch), wrapper)
    for _ in range(batches):
        saved.clear()
        before = size(held) + state() + size(p.grad for p in model.parameters())
        # Without oneDNN, whose room for packed weights is another on every kind of CPU.
        with (
            torch.backends.mkldnn.flags(enabled=False),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        ):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                model.train_step(copy.deepcopy(batch), wrapper)
        events = profiler.profiler.kineto_results.events()
        events = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == '[memory]')
        living = most = 0
        for _, change in events:
            living += change
            most = max(most, living)
        found['peak'] = max(found.get('peak', 0), before + most)
    return {**found, 'weights': size(held), 'optimizer': state()}


@pytest.mark.parametrize('case', [
    pytest.param(case, marks=pytest.mark.slow if case in QUICK else pytest.mark.long)
    for case in CASES])
def test_estimate_is_what_a_step_takes(load, case):
    cfg = load(*CASES[case])
    estimate = memory.estimate(copy.deepcopy(cfg))
    found = measure(cfg)
    height, width = (32, 32) if case.startswith('cls') else SIZE
    assert estimate['image'] == [3, height, width]
    assert estimate['batch_size'] == cfg.train_dataloader.batch_size
    assert (estimate['size_from'], estimate['device']) == ('RandomCrop', 'cpu')
    sizes = {name: round(mb * 1e6) for name, mb in estimate['megabytes'].items()}
    for name in ('weights', 'gradients', 'optimizer'):
        assert sizes[name] == found[name], name
    assert sizes['kept'] == pytest.approx(found['kept'], rel=0.01)
    assert sizes['peak'] == pytest.approx(found['peak'], rel=0.1)
    assert sizes['sum'] == sum(sizes[n] for n in ('weights', 'gradients', 'optimizer', 'kept'))


def test_labels_may_be_smaller_than_images(load):
    cfg = load('setr_vit-l_head', MMSEG_HEAD)
    kept = memory.estimate(cfg)['megabytes']['kept']
    cfg.train_dataloader.dataset.pipeline.insert(-1, dict(type='vpt_dense.StrideLabels', stride=4))
    apart = memory.estimate(cfg)['megabytes']['kept']
    assert apart < kept
    assert apart * 1e6 == pytest.approx(measure(cfg)['kept'])


RESIZE = dict(type='Resize', scale=(80, 40))  # width, height
CROP = dict(type='RandomCrop', crop_size=(56, 40))  # height, width


@pytest.mark.parametrize(('pipeline', 'size', 'size_from'), [
    ([RESIZE, CROP], (56, 40), 'RandomCrop'),
    ([CROP, RESIZE, dict(type='RandomFlip')], (40, 80), 'Resize'),
    ([dict(type='mmpretrain.RandomResizedCrop', scale=48)], (48, 48), 'RandomResizedCrop'),
    ([dict(type='CenterCrop', crop_size=(80, 40))], (40, 80), 'CenterCrop'),
    ([dict(type='Pad', size=(80, 40))], (40, 80), 'Pad'),
    ([CROP, dict(RESIZE, keep_ratio=True)], (32, 32), 'model.backbone.img_size'),
    ([CROP, dict(type='ResizeEdge', scale=99)], (32, 32), 'model.backbone.img_size'),
    ([], (32, 32), 'model.backbone.img_size'),
])
def test_where_the_size_of_an_image_comes_from(load, pipeline, size, size_from):
    cfg = load('vit-b_linear', {})
    cfg.train_dataloader.dataset.pipeline = pipeline
    estimate = memory.estimate(cfg)
    assert (estimate['image'], estimate['size_from']) == ([3, *size], size_from)


@pytest.mark.slow
@pytest.mark.parametrize(('pipeline', 'size_from'), [
    ([CROP], 'RandomCrop'), ([], 'model.data_preprocessor.size'),
])
def test_images_are_padded_as_in_a_run(load, pipeline, size_from):
    cfg = load('setr_vit-l_head', {'model.data_preprocessor.size': (64, 96)})
    cfg.train_dataloader.dataset.pipeline = pipeline
    estimate = memory.estimate(cfg)
    assert (estimate['image'], estimate['size_from']) == ([3, 64, 96], size_from)


def test_images_have_the_bands_of_the_backbone(load):
    options = {f'model.data_preprocessor.{key}': None for key in ('mean', 'std')}
    options |= {'model.data_preprocessor.bgr_to_rgb': False, 'model.backbone.in_channels': 4}
    assert memory.estimate(load('setr_vit-l_head', options))['image'] == [4, *SIZE]


@pytest.mark.slow
def test_nothing_is_allocated(load):
    cfg = load('setr_vit-l_full', {})
    for transform in cfg.train_dataloader.dataset.pipeline:
        if 'crop_size' in transform:
            transform.crop_size = (40_000, 40_000)
    assert memory.estimate(cfg)['megabytes']['kept'] > 1e6  # a terabyte


@pytest.fixture
def tool(monkeypatch, capsys):
    """Call tools/count_params.py in this process; returns exit code, output and errors."""
    from vpt_dense.commands import count_params

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['count_params.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            count_params.errors.main(count_params.main)
        return left.value.code, *capsys.readouterr()
    return call


HEAD, DEEP = (CONFIGS / f'vpt/setr_vit-l_{method}_ade20k.py' for method in ('head', 'deep'))


@pytest.mark.slow
def test_tool_prints_json(tool):
    code, out, err = tool('--memory', '--json', HEAD, DEEP)
    assert (code, err) == (0, '')
    found = {path: report['memory'] for path, report in json.loads(out).items()}
    assert list(found) == [str(HEAD), str(DEEP)]
    head, deep = (found[str(path)]['megabytes'] for path in (HEAD, DEEP))
    # 13,143,640 trainable parameters in float32 (tests/test_params.py), and momentum
    assert head['gradients'] == head['optimizer'] == pytest.approx(52.57456)
    assert head['kept'] < deep['kept']
    code, out, _ = tool(
        '--memory', '--json', HEAD, '--cfg-options', 'train_dataloader.batch_size=4')
    (report,) = json.loads(out).values()
    assert report['memory']['batch_size'] == 4
    assert report['memory']['megabytes']['kept'] == pytest.approx(2 * head['kept'], rel=0.01)
    assert report['total'] == 317_291_096


@pytest.mark.slow
@pytest.mark.parametrize('arguments', [['--markdown'], []])
def test_tool_prints_a_row_for_each_config(tool, arguments):
    code, out, err = tool('--memory', *arguments, HEAD, DEEP)
    assert (code, err) == (0, '')
    (head,) = [line for line in out.splitlines() if 'setr_vit-l_head_ade20k' in line]
    (deep,) = [line for line in out.splitlines() if 'setr_vit-l_deep_ade20k' in line]
    for cell in ('2', '3x512x512', 'RandomCrop', '1,269.2', '52.6'):
        assert cell in head.replace('|', ' ').split()
    assert '53.6' in deep  # 13,389,400 parameters
    if arguments:
        assert out.splitlines()[0].endswith('| sum MB | peak MB |')


@pytest.mark.parametrize(('options', 'message'), [
    (['optim_wrapper=None'], 'there is no optim_wrapper'),
    (['train_dataloader=None'], 'there is no train_dataloader.batch_size'),
    (['optim_wrapper.type=AmpOptimWraper'], "did you mean 'AmpOptimWrapper'?"),
    (['model.decode_head.in_index=7'], 'index'),
])
def test_tool_says_in_a_line_what_is_wrong(tool, options, message):
    code, out, err = tool('--memory', HEAD, '--cfg-options', *options)
    assert (code, out) == (2, '')
    assert err.startswith(f'error: config {HEAD}: ') and message in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_unknown_size_is_an_error(load):
    cfg = load('vit-b_linear', {})
    cfg.train_dataloader.dataset.pipeline = []
    cfg.model.backbone = dict(type='ResNet', depth=18)
    cfg.model.neck = dict(type='GlobalAveragePooling')
    cfg.model.head.in_channels = 512
    with pytest.raises(UserError, match='the size of a training image is unknown'):
        memory.estimate(cfg)
    cfg.train_dataloader.dataset.pipeline = [CROP]
    assert memory.estimate(cfg)['image'] == [3, 56, 40]


VIT_B = """
_base_ = '{base}'
_head = [dict(head, in_channels=768) for head in _base_.model.auxiliary_head]
model = dict(
    data_preprocessor=dict(size=(256, 256)),
    backbone=dict(arch='base', img_size=256, out_indices=[2, 5, 8, 11], init_cfg=None),
    decode_head=dict(in_channels=768),
    auxiliary_head=_head)
train_dataloader = dict(batch_size=1, dataset=dict(pipeline=[]))
"""
STEPS = """
import json, re, sys, threading
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, PixelData
from vpt_dense import config, logging, memory, recomputing

def resident():
    # What was mapped from files (libraries) may leave memory again at any time.
    with open('/proc/self/status') as file:
        return int(re.search(r'RssAnon:\\s+(\\d+) kB', file.read())[1]) * 1024 / 1e6

peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.wait(0.002):
        peak = max(peak, resident())

logging.quiet()
cfg = config.load(sys.argv[1])
estimate = memory.estimate(cfg)
before = resident()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
with DefaultScope.overwrite_default_scope(cfg.default_scope):
    model = MODELS.build(cfg.model).train()
    recomputing.turn_on(model, cfg.get('activation_checkpointing', []))
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    for _ in range(2):
        image = torch.randint(0, 256, (3, 256, 256), dtype=torch.uint8)
        sample = BaseDataElement(
            metainfo=dict(img_shape=(256, 256)),
            gt_sem_seg=PixelData(data=torch.randint(0, 150, (1, 256, 256))))
        model.train_step(dict(inputs=[image], data_samples=[sample]), wrapper)
done.set()
watcher.join()
print(json.dumps([estimate['megabytes']['peak'], peak - before]))
"""


@pytest.mark.parametrize('method', [
    pytest.param(each, marks=pytest.mark.long) for each in ('deep', 'full')])
def test_estimate_is_the_growth_of_a_process(method, tmp_path):
    """ViT-B, 256 pixels, on Linux. The allocator is told to give back what is freed: no gaps.

    With one thread: each further one has buffers of its own inside of kernels.
    """
    path = tmp_path / 'vit-b.py'
    path.write_text(VIT_B.format(base=CONFIGS / f'vpt/setr_vit-l_{method}_ade20k.py'))
    environment = dict(os.environ, CUDA_VISIBLE_DEVICES='', MALLOC_MMAP_THRESHOLD_=str(2**20),
                       OMP_NUM_THREADS='1')
    done = subprocess.run(
        [sys.executable, '-c', STEPS, path], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    estimated, measured = json.loads(done.stdout.splitlines()[-1])
    assert estimated == pytest.approx(measured, rel=0.15)
