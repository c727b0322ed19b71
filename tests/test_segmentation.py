"""SETR on ADE20K: every leaf of ``configs/vpt``, shrunk for speed; and the real one, as it is."""

import json

import pytest
import timm
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tool_helpers import run_tool
from utils import CONFIGS, TINY_ARCH, images, load, make_ade_folder, tiny_auxiliary_heads

from vpt_dense import method_files

#: SETR with every method.
ALL = [f'setr_vit-l_ade20k {method}' for method in method_files.names()
       if method not in ('pool-both', 'pool-image', 'pool-prompts', 'prototypes',
                         'partial-1_resnet-50', 'partial-1_convnext-b', 'l2p', 'dualprompt',
                         'coda-prompt', 'tcpa')]
PUBLISHED = [f'setr_vit-l_{method}_ade20k' for method in (
    'full', 'head', 'bias', 'shallow', 'deep', 'deep-bias')]


def tiny_model(leaf: str, **backbone) -> torch.nn.Module:
    """The model of a config with a tiny backbone and narrow heads; crops of 32 pixels."""
    cfg = load(leaf).model
    cfg.data_preprocessor.size = (32, 32)
    cfg.backbone.update(
        dict(arch=TINY_ARCH, img_size=32, patch_size=8, out_indices=[0, 1, 2, 3], **backbone)
    )
    cfg.backbone.pop('init_cfg')
    for adapter in cfg.backbone.get('adapters') or ():
        if adapter.type.endswith('ViTSplit'):  # of four blocks
            adapter.update(num_blocks=1, num_maps=2)
    if 'neck' in cfg:
        cfg.neck.update(in_channels=[64] * 4, out_channels=16)
        cfg.decode_head.update(in_channels=[16] * 4, channels=64, mla_channels=16)
        for head in cfg.auxiliary_head:
            head.update(in_channels=16, channels=16)
    else:
        cfg.decode_head.update(in_channels=64, channels=16)
        for head in cfg.auxiliary_head:
            head.update(in_channels=64, channels=16)
    cfg.test_cfg.update(crop_size=(32, 32), stride=(21, 21))
    return MODELS.build(cfg)


def batch(height: int, width: int, count: int = 2) -> dict:
    """Random images with labels of 150 classes and some ignored pixels."""
    samples = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        labels = torch.randint(0, 150, (1, height, width), generator=generator)
        labels[:, :4] = 255
        sample = SegDataSample(
            metainfo=dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (height, width))
        )
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=list(images(count, 3, height, width) * 50 + 120), data_samples=samples)


@pytest.mark.parametrize('leaf', [*ALL, 'setr-mla_vit-l_ade20k deep'])
def test_trains_the_heads_and_what_the_backbone_names(mmseg_scope, leaf):
    model = tiny_model(leaf).train()
    data = model.data_preprocessor(batch(32, 32), training=True)
    losses = model.loss(data['inputs'], data['data_samples'])
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    assert {name for name in losses if name.endswith('loss_ce')} == {
        'decode.loss_ce',
        *(f'aux_{i}.loss_ce' for i in range(len(model.auxiliary_head))),
    }
    prompt = model.backbone.prompt
    if prompt is not None:
        total = total + sum(prompt.penalties().values())
    total.backward()
    for name, parameter in model.named_parameters():
        # Default DDP needs every trainable parameter to reach the loss.
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if not name.startswith('backbone.'):
            assert parameter.requires_grad, name


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('size', [(32, 32), (45, 70), (24, 80), (20, 20)])
@pytest.mark.parametrize('leaf', ['setr_vit-l_deep_ade20k', 'setr-mla_vit-l_deep_ade20k'])
def test_predicts_any_size(mmseg_scope, leaf, mode, size):
    model = tiny_model(leaf).eval()
    model.test_cfg.mode = mode
    model.data_preprocessor.test_cfg = None
    data = model.data_preprocessor(batch(*size, count=1), training=False)
    with torch.no_grad():
        (result,) = model.predict(data['inputs'], data['data_samples'])
    assert result.pred_sem_seg.data.shape == (1, *size)
    assert result.seg_logits.data.shape == (150, *size)
    assert 0 <= result.pred_sem_seg.data.min() and result.pred_sem_seg.data.max() < 150


def test_slide_of_one_window_is_whole(mmseg_scope):
    model = tiny_model('setr_vit-l_deep_ade20k').eval()
    data = model.data_preprocessor(batch(32, 32, count=1), training=False)
    logits = []
    for mode in ('slide', 'whole'):
        model.test_cfg.mode = mode
        with torch.no_grad():
            (result,) = model.predict(data['inputs'], data['data_samples'])
        logits.append(result.seg_logits.data)
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize('leaf', PUBLISHED)
def test_leaves_are_short_and_say_what_was_published(leaf):
    path = CONFIGS / 'vpt' / f'{leaf}.py'
    assert len(path.read_text().splitlines()) <= 4
    cfg = Config.fromfile(path)
    assert cfg.train_cfg.max_iters == 160_000
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('SGD', 1e-3, 0)
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult == 10
    assert (cfg.param_scheduler[0].type, cfg.param_scheduler[0].eta_min) == ('PolyLR', 1e-4)
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(512, 512), stride=(341, 341))
    assert cfg.model.backbone.interpolate_mode == 'bilinear'
    assert cfg.model.backbone.final_norm is False
    assert all(h.loss_decode.loss_weight == 0.4 for h in cfg.model.auxiliary_head)


def test_multi_scale_leaf_is_the_same_run_with_augmented_testing():
    plain = Config.fromfile(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py').to_dict()
    multi = Config.fromfile(CONFIGS / 'vpt/setr_vit-l_deep_ade20k_ms.py').to_dict()
    assert multi.pop('tta') is True
    assert multi == plain
    scales, flips, *_ = plain['tta_pipeline'][1]['transforms']
    assert [s['scale'][1] / 512 for s in scales] == [0.5, 0.75, 1.0, 1.25, 1.5, 1.75]
    assert [f['prob'] for f in flips] == [0, 1]


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs a tool in ``tmp_path``; returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def call(tool: str, *arguments: object) -> str:
        done = run_tool(capfd, tool, *arguments)
        assert done.code == 0, done.out[-3000:] + done.err[-3000:]
        return done.out + done.err

    return call


#: A narrow backbone of 24 blocks instead.
NARROW = ['img_size=64', 'model.decode_head.in_channels=64',
          'model.backbone.arch={embed_dims: 64, num_layers: 24, num_heads: 4, '
          'feedforward_channels: 256}',
          *(f'model.auxiliary_head.{i}.in_channels=64' for i in range(3))]


@pytest.mark.parametrize(('width', 'size', 'options'), [
    pytest.param(64, 64, NARROW, marks=pytest.mark.slow, id='narrow'),
    pytest.param(1024, 512, [], marks=pytest.mark.long, id='published'),
])  # fmt: skip
def test_the_real_config_runs_as_it_is(tmp_path, run, width, size, options):
    """Weights, data and images where the config says they are; published: ViT-L at 512x512."""
    (tmp_path / 'pretrain').mkdir()
    torch.manual_seed(0)
    weights = timm.create_model('vit_large_patch16_384', embed_dim=width).state_dict()
    torch.save(weights, tmp_path / 'pretrain/jx_vit_large_p16_384-b3be5167.pth')
    make_ade_folder(
        tmp_path / 'data/ade/ADEChallengeData2016', num_images=1, size=(size, size * 4 // 3))
    leaf = str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py')
    small = ['train_dataloader.batch_size=1', 'train_cfg.max_iters=2', 'train_cfg.val_interval=2']
    small += [f'{name}_dataloader.{key}' for name in ('train', 'val', 'test')
              for key in ('num_workers=0', 'persistent_workers=False')]
    out = run(
        'train', leaf, '--work-dir', 'run', '--cfg-options', *small, *options,
        'default_hooks.checkpoint.interval=2', 'default_hooks.logger.interval=1',
    )
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    trainable = summary['params']['trainable']
    assert f'{trainable:,}' in out and 'mIoU' in out

    # The frozen backbone is not in the checkpoint; it is what was loaded, wherever it is needed.
    assert 'checkpoints hold 78 tensors, ' in out
    saved = tmp_path / 'run/iter_2.pth'
    if not options:
        assert trainable == 13_389_400
        assert 'checkpoints hold 78 tensors, 53.6 MB (the whole model: 1,270.2 MB)' in out
        assert saved.stat().st_size < 2.1 * 53.6e6  # the optimizer's momentum as much again
    state = torch.load(saved, weights_only=False)['state_dict']
    assert not any(name.startswith('backbone.layers.') for name in state)
    run('test', leaf, saved, '--work-dir', 'tested', '--cfg-options', *small[3:], *options)
    tested = json.loads((tmp_path / 'tested/test.json').read_text())
    assert tested['metrics']['mIoU'] == summary['last']['metrics']['mIoU']
    run('delta', 'merge', saved, 'whole.pth')
    trained = torch.load(tmp_path / 'whole.pth', weights_only=True)['state_dict']
    theirs = {
        'backbone.patch_embed.projection.bias': 'patch_embed.proj.bias',
        'backbone.cls_token': 'cls_token',
        'backbone.layers.23.ffn.layers.1.weight': 'blocks.23.mlp.fc2.weight',
    }
    for ours, name in theirs.items():
        assert torch.equal(trained[ours], weights[name]), ours
    assert 'backbone.ln1.weight' not in trained
    assert trained['backbone.pos_embed'].shape == (1, 1 + (size // 16) ** 2, width)
    assert trained['backbone.prompt.tokens'].shape == (24, 10, width)


def test_a_shrunk_config_trains_tests_and_resumes(tmp_path, ade_folder, run):
    """The leaf through the tools, with a small backbone, on ADE20K's layout."""
    leaf = str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py')
    (tmp_path / 'small.py').write_text(
        f"""
_base_ = '{leaf}'
dataset = dict(data_root='{ade_folder}')
model = dict(
    data_preprocessor=dict(size=(64, 64)),
    backbone=dict(
        arch=dict(_delete_=True, **{TINY_ARCH}), img_size=64, patch_size=8, out_indices=[0, 1, 2, 3]
    ),
    decode_head=dict(in_channels=64, channels=16),
    auxiliary_head={tiny_auxiliary_heads()},
    test_cfg=dict(crop_size=(64, 64), stride=(42, 42)),
)
model['backbone']['init_cfg'] = dict(_delete_=True, type='Constant', val=0.02, layer='Conv2d')
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
pack = [dict(type='PackSegInputs')]
crop = [dict(type='RandomCrop', crop_size=(64, 64))]
train_dataloader = dict(num_workers=0, dataset=dict(pipeline=load + crop + pack))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=load + pack))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=load + pack))
train_cfg = dict(max_iters=4, val_interval=2)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""
    )
    train = ['train', 'small.py', '--work-dir', 'run']
    out = run(*train, '--cfg-options', 'train_cfg.max_iters=2')
    before_first_iteration = out.partition('Iter(train)')[0]
    assert len(before_first_iteration.splitlines()) <= 40
    assert 'mIoU' in out
    out = run(*train, '--resume')
    assert '[4/4]' in out
    tested = run(
        'test', 'small.py', 'run/iter_4.pth', '--work-dir', 'test', '--show-dir', 'shown')
    assert 'mIoU' in tested
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 2
