"""UperNet, Segmenter and linear heads on the plain vision transformer: every leaf, made tiny."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmseg.models import decode_heads
from processes import run_two
from test_distributed import batch as batch_of_four
from test_distributed import state, step
from test_heads import COMMON, one_step
from test_segmentation import batch
from tool_helpers import run_tool, tiny_folder
from torch import nn
from utils import CONFIGS, RECIPES, images, in_scope, load, randomise

from vpt_dense import building, config, params, preflight, pretraining
from vpt_dense.errors import UserError

#: Every head on a ViT, with the methods that differ in what they do to it.
ALL = [f'{Path(recipe).stem} {method}' for recipe in RECIPES
       if Path(recipe).stem.startswith(('upernet_vit', 'segmenter', 'linear'))
       and recipe.endswith('_ade20k.py')
       for method in ('full', 'head', 'bias', 'deep', 'lora')
       if method != 'full' or 'upernet' not in recipe] + [
    f'upernet_vit-{size}_full_ade20k' for size in 'bl']  # with a schedule of their own
#: One leaf of every head.
HEADS = [
    'upernet_vit-l_deep_ade20k',
    'segmenter_vit-b_deep_ade20k',
    'segmenter-linear_vit-l_deep_ade20k',
    'linear_vit-l_dinov2_deep_ade20k',
    'linear-4_vit-l_dinov2_head_ade20k',
]
ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


def tiny(leaf: str, **backbone) -> Config:
    """A config with a tiny backbone, put there as a named one is: the heads follow."""
    cfg = load(leaf)
    small = dict(arch=ARCH)
    if pretraining.is_timms(cfg.model.backbone):
        small = dict(embed_dim=32, depth=4, num_heads=2, pretrained=False)
    cfg.pretrained = dict(backbone=dict(
        patch_size=8, img_size=32, init_cfg=None, **small, **backbone
    ))  # fmt: skip
    config.place_pretrained(cfg)
    model = cfg.model
    model.data_preprocessor.size = (32, 32)
    model.data_preprocessor.pop('test_cfg', None)
    model.test_cfg.update(crop_size=(32, 32), stride=(21, 21))
    if model.backbone.get('prompt'):
        model.backbone.prompt.update(num_tokens=2)
    if 'neck' in model:
        model.decode_head.channels = model.auxiliary_head.channels = 8
    return cfg


# --- one step --------------------------------------------------------------------------------


@pytest.mark.parametrize('leaf', ALL)
def test_every_head_trains_itself_and_what_the_backbone_names(mmseg_scope, leaf):
    model = MODELS.build(tiny(leaf).model).train()
    data = model.data_preprocessor(batch(32, 32), training=True)
    total, logged = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    auxiliary = {'aux.loss_ce'} if leaf.startswith('upernet') else set()
    assert {name for name in logged if 'loss_' in name} == {'decode.loss_ce', *auxiliary}
    total.backward()
    for name, parameter in model.named_parameters():
        # DDP needs every trainable parameter to reach the loss.
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad or name.startswith('backbone.'), name
    assert total.isfinite()
    method = leaf.partition(' ')[2] or 'full'
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    named = {
        'full': lambda name: True,
        'head': lambda name: False,
        'bias': lambda name: name.endswith('bias'),
        'deep': lambda name: name.startswith('prompt.'),
        'lora': lambda name: name.startswith('adapters.'),
    }[method]
    assert trained == {name for name, _ in model.backbone.named_parameters() if named(name)}


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('size', [(32, 32), (45, 70), (24, 80)])
@pytest.mark.parametrize('leaf', HEADS)
def test_predicts_any_size(mmseg_scope, leaf, mode, size):
    cfg = tiny(leaf)
    cfg.model.test_cfg.mode = mode
    model = randomise(MODELS.build(cfg.model)).eval()
    data = model.data_preprocessor(batch(*size, count=1), training=False)
    with torch.no_grad():
        (result,) = model.predict(data['inputs'], data['data_samples'])
    assert result.pred_sem_seg.data.shape == (1, *size)
    assert result.seg_logits.data.shape == (150, *size)
    assert result.seg_logits.data.isfinite().all()


@pytest.mark.parametrize('leaf', HEADS)
def test_slide_is_mmsegs(mmseg_scope, leaf):
    """Also where the head's scores are much smaller than a window."""
    model = randomise(MODELS.build(tiny(leaf).model)).eval()
    x = images(2, 3, 45, 70)
    metas = [dict(img_shape=(45, 70), ori_shape=(45, 70))] * 2
    with torch.no_grad():
        expected = super(type(model), model).slide_inference(x, metas)
        torch.testing.assert_close(model.slide_inference(x, metas), expected, rtol=1e-4, atol=1e-5)


# --- two processes ---------------------------------------------------------------------------


def without_chance(leaf: str) -> nn.Module:
    """A tiny model in float64 without dropout and stochastic depth."""
    in_scope('mmseg')
    model = tiny(leaf).model
    for head in config.heads(model):
        head.dropout_ratio = 0
    model.backbone.drop_path_rate = 0
    if 'MaskTransformer' in model.decode_head.type:
        model.decode_head.drop_path_rate = 0
    if model.backbone.get('prompt'):
        model.backbone.prompt.dropout = 0
    return randomise(MODELS.build(model)).double().train()


def compare(rank: int, failures: list) -> None:
    """In each of two processes: one process's step first, then the step of both."""
    whole = batch_of_four('segmentation')
    models, expected = {}, {}
    for leaf in TWO_PROCESSES:
        models[leaf], one = without_chance(leaf), without_chance(leaf)
        step(one, whole)
        expected[leaf] = state(one)

    from vpt_dense.engine.distributed import set_up_cpu

    set_up_cpu('pytorch')
    half = slice(2 * rank, 2 * rank + 2)
    for leaf, model in models.items():
        wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
        for _ in range(2):  # an unused parameter would make DDP fail at the second step
            wrapped.zero_grad()
            for module in wrapped.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
            step(wrapped, {name: value[half] for name, value in whole.items()})
        found, wanted = state(wrapped.module), expected[leaf]
        if found.keys() != wanted.keys():
            failures.append(f'{leaf} rank {rank}: other tensors')
        for name, value in wanted.items():
            # Biases before a batch norm have no gradient but rounding.
            error = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
            if not error < 1e-6:
                failures.append(f'{leaf} rank {rank}: {name} differs by {error:.1e}')
    dist.barrier()


#: `full` goes all the way through neck and backbone.
TWO_PROCESSES = [*HEADS, 'upernet_vit-b_full_ade20k']


@pytest.fixture(scope='module')
def differences():
    """Lines about what differs; one pair of processes for all heads, their imports take seconds."""
    return run_two(compare)


@pytest.mark.parametrize('leaf', TWO_PROCESSES)
def test_a_step_of_two_processes_is_that_of_one(differences, leaf):
    assert not [line for line in differences if line.startswith(f'{leaf} ')]


# --- the heads -------------------------------------------------------------------------------

ALL = dict(in_channels=[12, 12], in_index=[0, 1])
KINDS = {
    'UPerHead': dict(COMMON, **ALL, channels=8, pool_scales=(1, 2)),
    'FCNHead': dict(COMMON, in_channels=12, in_index=1, channels=8, num_convs=1),
    'SegmenterMaskTransformerHead': dict(
        num_classes=7, in_channels=12, in_index=1, channels=12, num_layers=2, num_heads=2,
        embed_dims=12, drop_path_rate=0.3),
}  # fmt: skip


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('size', [(48, 80), (3, 5), (37, 51)])
@pytest.mark.parametrize('weighted', [False, True])
def test_loss_equals_mmseg(kind, size, weighted):
    """Losses and gradients, with random numbers of their own; `weighted`: mmseg's own loss."""
    weights = dict(class_weight=[1, 2, 3, 4, 5, 6, 7]) if weighted else {}
    kwargs = dict(KINDS[kind], align_corners=False, dropout_ratio=0.3, loss_decode=dict(
        type='mmseg.CrossEntropyLoss', loss_weight=0.4, **weights))  # fmt: skip
    theirs = randomise(getattr(decode_heads, kind)(**kwargs)).double().train()
    ours = MODELS.build(dict(type=f'vpt_dense.{kind}', **kwargs)).double().train()
    assert isinstance(ours, type(theirs)) and type(ours) is not type(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected, found = one_step(theirs, size), one_step(ours, size)
    assert len(found) > len(list(ours.parameters())) and 'acc_seg' in found
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    ours.eval(), theirs.eval()
    features = [images(2, 12, 3, 5, seed=i, dtype=torch.float64) for i in range(2)]
    assert torch.equal(ours(features), theirs(features))


@pytest.mark.parametrize('number', [1, 2])
def test_linear_head_is_the_last_norm_then_batch_norm_then_a_convolution(number):
    """DINOv2's way, the backbone's last norm with weights of both signs; it is undone."""
    kwargs = dict(num_classes=7, dropout_ratio=0, align_corners=False,
                  norm_cfg=dict(type='BN', eps=1e-14), in_index=[0, 1] if number == 2 else 1,
                  in_channels=[12] * 2 if number == 2 else 12)  # fmt: skip
    head = randomise(MODELS.build(dict(type='vpt_dense.LinearHead', **kwargs))).double().train()
    last_norm = randomise(nn.LayerNorm(12, eps=1e-6), seed=1).double()
    with torch.no_grad():
        last_norm.weight[::2] *= -2
    features = [images(2, 12, 3, 5, seed=i, dtype=torch.float64) * 4 + 1 for i in range(2)]
    used = features if number == 2 else features[1:]
    tokens = torch.cat([last_norm(f.permute(0, 2, 3, 1)) for f in used], -1)  # (B, h, w, channels)
    mean, variance = tokens.mean((0, 1, 2)), tokens.var((0, 1, 2), correction=0)
    sign = last_norm.weight.sign().repeat(number)
    tokens = (tokens - mean) / variance.sqrt() * sign * head.norm.weight + head.norm.bias
    expected = tokens @ head.conv_seg.weight[:, :, 0, 0].T + head.conv_seg.bias
    torch.testing.assert_close(
        head(features).permute(0, 2, 3, 1), expected, rtol=1e-10, atol=1e-10)
    assert {name for name, _ in head.named_parameters()} == {
        'norm.weight', 'norm.bias', 'conv_seg.weight', 'conv_seg.bias'}


@pytest.mark.parametrize('index', [[0], 0])
def test_a_linear_head_needs_an_index_for_each_of_its_channels(index):
    with pytest.raises(ValueError, match=r'in_channels and in_index must be .*\[12, 12\] and'):
        MODELS.build(dict(type='vpt_dense.LinearHead', num_classes=7, norm_cfg=dict(type='BN'),
                          in_channels=[12, 12], in_index=index, align_corners=False))


# --- configs ---------------------------------------------------------------------------------


def named(tmp_path, model: str, backbone: str) -> Config:
    path = tmp_path / 'leaf.py'
    bases = [f'models/{model}', f'backbones/{backbone}', 'datasets/ade20k_512', 'schedules/160k',
             'default_runtime', 'methods/deep']  # fmt: skip
    listed = ', '.join(f"'{CONFIGS}/_base_/{base}.py'" for base in bases)
    path.write_text(f"""
_base_ = [{listed}]
model = dict(backbone=_base_.method)
dataset = dict(classes=['a', 'b', 'c'])
""")
    return config.load(str(path)).model


def test_heads_follow_a_named_backbone_and_the_classes(tmp_path, mmseg_scope):
    upernet = named(tmp_path, 'upernet_vit-l', 'dinov2_vit-s')
    assert upernet.neck.embed_dim == 384 and upernet.neck.norm_cfg.type != 'X'
    assert upernet.decode_head.in_channels == [384] * 4
    assert (upernet.decode_head.channels, upernet.auxiliary_head.in_channels) == (512, 384)
    assert upernet.backbone.out_indices == [2, 5, 8, 11]

    segmenter = named(tmp_path, 'segmenter_vit-l', 'mae_vit-b').decode_head
    assert segmenter.in_channels == segmenter.channels == segmenter.embed_dims == 768
    assert (segmenter.num_heads, segmenter.num_layers) == (12, 2)
    linear = named(tmp_path, 'segmenter-linear_vit-b', 'mae_vit-l').decode_head
    assert linear.in_channels == linear.channels == 1024

    four = named(tmp_path, 'linear-4_vit-l', 'dinov2_vit-g')
    assert four.decode_head.in_channels == [1536] * 4
    assert four.backbone.out_indices == [-4, -3, -2, -1]
    for model in (upernet, four):
        assert [head.num_classes for head in config.heads(model)] == [3] * len(config.heads(model))


def test_width_one_says_oneself_stays():
    cfg = Config(dict(
        pretrained=dict(backbone=dict(arch='base')),
        model=dict(backbone=dict(arch='large'), neck=dict(embed_dim=1024, in_channels=[5, 1024]),
                   decode_head=dict(in_channels=1024, channels=1024, num_heads=16, embed_dims=64),
                   auxiliary_head=dict(in_channels=1024, channels=256)),
    ))  # fmt: skip
    untouched = cfg.model.to_dict()
    untouched['decode_head']['num_heads'] = 8
    config.place_pretrained(cfg, untouched)
    assert cfg.model.neck == dict(embed_dim=768, in_channels=[5, 768])
    assert cfg.model.decode_head == dict(
        in_channels=768, channels=768, num_heads=16, embed_dims=64)
    assert cfg.model.auxiliary_head == dict(in_channels=768, channels=256)


@pytest.mark.parametrize('size', 'bl')
def test_full_tuning_has_mmsegs_optimizer(mmseg_scope, size):
    """mmseg's vit_vit-b16_mln_upernet_8xb2-160k: no decay of norms and positions."""
    cfg = config.load(str(CONFIGS / f'vpt/upernet_vit-{size}_full_ade20k.py'))
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 6e-5, 0.01)
    assert (cfg.param_scheduler[0].end, cfg.param_scheduler[1].eta_min) == (1500, 0)
    model = MODELS.build(tiny(f'upernet_vit-{size}_full_ade20k').model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).optimizer.param_groups
    still = {id(p) for group in groups for p in group['params'] if not group['weight_decay']}
    assert {n for n, p in model.backbone.named_parameters() if id(p) in still} == {
        n for n, _ in model.backbone.named_parameters()
        if n in ('cls_token', 'pos_embed') or '.ln' in n}  # fmt: skip
    assert {group['lr'] for group in groups} == {6e-5}


@pytest.mark.parametrize(
    'key, value, message',
    [
        ('neck.embed_dim', 768, r'model\.neck takes 768 channels, but the backbone is 1024 wide'),
        ('decode_head.in_index', [0, 1, 2, 4], r'in_index of the .*UPerHead is 4, but model'),
    ],
)
def test_heads_that_do_not_fit_are_refused(key, value, message):
    path = str(CONFIGS / 'vpt/upernet_vit-l_deep_ade20k.py')
    preflight.check_model(config.load(path).model)
    with pytest.raises(UserError, match=message):
        preflight.check_model(config.load(path, {f'model.{key}': value}).model)


def count_heads(d: int, classes: int = 150) -> dict[str, dict[str, int]]:
    """Parameters of the heads on a ViT of width d, from their layers."""
    def conv(inputs, outputs, kernel):  # with batch norm, without bias
        return inputs * outputs * kernel**2 + 2 * outputs

    up = 4 * d * d + d  # a transposed convolution of 2x2 pixels
    block = 12 * d * d + 13 * d
    return {
        'upernet': {
            'neck': 3 * up + 2 * d,
            'decode head': 4 * conv(d, 512, 1) + conv(d + 4 * 512, 512, 3)  # pooling
            + 3 * (conv(d, 512, 1) + conv(512, 512, 3)) + conv(4 * 512, 512, 3)
            + 512 * classes + classes,
            'auxiliary heads': conv(d, 256, 3) + 256 * classes + classes},
        'segmenter': {'decode head':
            2 * block + (d * d + d) + classes * d + 2 * d * d + 2 * d + 2 * classes},
        'segmenter-linear': {'decode head': d * classes + classes},
        'linear': {'decode head': 2 * d + d * classes + classes},
        'linear-4': {'decode head': 8 * d + 4 * d * classes + classes},
    }  # fmt: skip


@pytest.mark.parametrize('leaf', HEADS)
def test_counts_at_full_size(leaf):
    cfg = config.load(str(CONFIGS / 'vpt' / f'{leaf}.py'))
    report = params.report(building.build_model(cfg, 'meta'))
    width = 1024 if 'vit-l' in leaf else 768
    expected = count_heads(width)[leaf.partition('_')[0]]
    if 'deep' in leaf:
        expected['prompt'] = 10 * width * (24 if 'vit-l' in leaf else 12)
    trained = {part: count['trainable'] for part, count in report['parts'].items()}
    assert {part: number for part, number in trained.items() if number} == expected


# --- the tools -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize('leaf', HEADS)
def test_a_tiny_training_and_its_test(tmp_path, capfd, leaf):
    """The loss falls; tools/test.py finds the score of the run's own validation again."""
    cfg = tiny(leaf)
    data = tiny_folder(tmp_path / 'data', num_classes=5)
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
    for name in config.DATALOADERS:
        cfg[name].num_workers = 0
        cfg[name].persistent_workers = False
        cfg[name].dataset.update(data_root=str(data), pipeline=[*load, dict(type='PackSegInputs')])
    cfg.dataset.data_root = str(data)
    cfg.train_cfg.update(max_iters=30, val_interval=30)
    cfg.param_scheduler = []  # a warm-up would take up all of so short a run
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 30
    cfg.work_dir = str(tmp_path / 'run')
    path = tmp_path / 'leaf.py'
    cfg.dump(path)

    outcome = run_tool(capfd, 'train', path)
    assert outcome.code == 0, outcome.err
    (log,) = (tmp_path / 'run').glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line['decode.loss_ce'] for line in lines if 'decode.loss_ce' in line]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    trained = json.loads((tmp_path / 'run/summary.json').read_text())['last']['metrics']
    outcome = run_tool(
        capfd, 'test', path, tmp_path / 'run/iter_30.pth', '--work-dir', tmp_path / 'tested')
    assert outcome.code == 0, outcome.err
    tested = json.loads((tmp_path / 'tested/test.json').read_text())['metrics']
    assert tested['mIoU'] == trained['mIoU']
