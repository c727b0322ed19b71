"""Classification: counts, the paper's schedule, image folders and CIFAR-100, end to end."""

import json
import math
import pickle
import shutil

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from PIL import Image
from safetensors.torch import save_file
from utils import CONFIGS, LEAVES, TINY_ARCH, in_scope, load

from vpt_dense import building, config, params, preflight, run_setup
from vpt_dense.errors import UserError

VPT = CONFIGS / 'vpt'
METHODS = ('full', 'linear', 'bias', 'partial-1', 'shallow', 'deep')
COLOURS = dict(iris=(90, 40, 200), rose=(200, 40, 60), tulip=(230, 200, 40))


def make_image_folder(root, splits=('train', 'val'), classes=tuple(COLOURS), number=4):
    """Write train/<class>/*.jpg and so on: noise around one colour a class, various sizes."""
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                height, width = rng.integers(36, 60, 2)
                pixels = np.array(COLOURS[name]) + rng.integers(-40, 40, (height, width, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(root / split / name / f'{i}.{"jpg" if i % 2 else "png"}')
    return root


def tiny(work_dir, **more):
    """Overrides that shrink a classification config to a tiny model on CPU, without weights."""
    return {
        'work_dir': str(work_dir),
        'model.backbone.arch': dict(TINY_ARCH, _delete_=True),
        'model.backbone.img_size': 32,
        'model.backbone.patch_size': 8,
        'model.backbone.init_cfg': None,
        'model.head.in_channels': TINY_ARCH['embed_dims'],
        **{
            f'{split}_dataloader.{key}': value
            for split in ('train', 'val', 'test')
            for key, value in dict(batch_size=4, num_workers=0).items()
        },
        'train_cfg.max_epochs': 1,
        **more,
    }


def tiny_folder(work_dir, data_root, **more):
    """The same for configs on an image folder, with images of 32 pixels."""
    sizes = {
        f'{split}_dataloader.dataset.pipeline.{i}.{key}': value
        for split, last in (('train', 2), ('val', 2), ('test', 2))
        for i, key, value in ((1, 'scale', 36), (last, 'crop_size', 32))
    }
    return tiny(work_dir, **{'dataset.data_root': str(data_root)}, **sizes, **more)


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    """An image folder of three classes; do not write into it."""
    return make_image_folder(tmp_path_factory.mktemp('flowers'))


# Parameters outside the head. With width d, L layers, 14 x 14 patches of 16 x 16 x 3:
# all: L(12d^2 + 13d) + 768d + d (patches) + 197d + d (position, cls) + 2d (final norm);
# biases: L(3d + d + 4d + d + 2d) + d (patches) + d (final norm); one block 12d^2 + 13d.
COUNTS = [
    ('b', 'full', 85_798_656),
    ('b', 'linear', 0),
    ('b', 'bias', 102_912),
    ('b', 'partial-1', 7_089_408),
    ('b', 'shallow', 10 * 768),
    ('b', 'deep', 92_160),
    ('l', 'full', 303_301_632),
    ('l', 'linear', 0),
    ('l', 'bias', 272_384),
    ('l', 'partial-1', 12 * 1024**2 + 13 * 1024 + 2 * 1024),
    ('l', 'shallow', 10 * 1024),
    ('l', 'deep', 245_760),
]


@pytest.mark.parametrize('data, classes', [('cifar100', 100), ('imagefolder', 1000)])
@pytest.mark.parametrize('arch, tuning, wanted', COUNTS)
def test_counts_of_the_papers_methods(arch, tuning, wanted, data, classes):
    cfg = load(f'vit-{arch}_{data} {tuning}')
    parts = params.report(building.build_model(cfg, 'meta'))['parts']
    head = parts.pop('classification head')
    assert head['trainable'] == head['total'] == ((768 if arch == 'b' else 1024) + 1) * classes
    assert sum(part['trainable'] for part in parts.values()) == wanted
    if tuning == 'deep':
        assert cfg.model.backbone.prompt.dropout == 0.1
    if tuning == 'shallow':
        assert cfg.model.backbone.prompt.dropout == 0.0


def test_count_of_prompts_and_biases_together():
    path = str(VPT / 'vit-b_deep_cifar100.py')
    cfg = config.load(path, {'model.backbone.trainable': [r'^prompt\.', 'bias$']})
    report = params.report(building.build_model(cfg, 'meta'))
    # 92,160 prompts + 102,912 biases, and the head
    assert report['trainable'] == 195_072 + 769 * 100


def test_the_papers_methods_have_leaves():
    assert {f'vpt/vit-b_{method}_imagefolder.py' for method in METHODS} <= set(LEAVES)


def test_head_starts_as_in_the_paper(mmpretrain_scope):
    cfg = config.load(str(VPT / 'vit-b_deep_cifar100.py'))
    head = MODELS.build(cfg.model.head)
    head.init_weights()
    # Every class at a probability of 0.01, and kaiming_normal with fan_out = number of classes.
    assert torch.allclose(head.fc.bias, torch.full((100,), -math.log((1 - 0.01) / 0.01)))
    assert head.fc.weight.std().item() == pytest.approx(math.sqrt(2 / 100), rel=0.02)


def test_schedule_wastes_no_epoch(flowers, tmp_path):
    options = tiny_folder(tmp_path, flowers, **{'train_cfg.max_epochs': 100})
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), options)
    runner = run_setup.start(cfg, 'train', None)
    # What Runner.train() does before its first epoch, and then the hook after each.
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    runner.optim_wrapper = wrapper
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    schedulers = runner.build_param_scheduler(cfg.param_scheduler)
    rates = []
    for _ in range(100):
        rates.append(wrapper.get_lr()['lr'][0])
        wrapper.optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    base = 1.0 * 4 / 256  # the base rate for 256 images, at 4 a step
    expected = [base * (e + 1) / 10 for e in range(10)]
    expected += [base * (1 + math.cos(math.pi * e / 90)) / 2 for e in range(90)]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert min(rates) > 0


@pytest.mark.parametrize('batch, counts', [(8, 1), (4, 2), (2, 4)])
def test_the_rate_follows_the_images_of_a_step(flowers, tmp_path, batch, counts):
    options = {'train_dataloader.batch_size': batch, 'optim_wrapper.accumulative_counts': counts}
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'),
                      tiny_folder(tmp_path, flowers, **options))  # fmt: skip
    runner = run_setup.start(cfg, 'train', None)
    wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(wrapper, runner.auto_scale_lr)
    assert wrapper.get_lr()['lr'] == [8 / 256]


class Snapshot(Hook):
    """Keeps the parameters as they are when training begins, after their initialisation."""

    def before_train(self, runner):
        self.parameters = {n: p.detach().clone() for n, p in runner.model.named_parameters()}


def test_example_trains_on_a_folder(flowers, tmp_path):
    path = CONFIGS / 'examples/new_image_folder.py'
    assert len(path.read_text().splitlines()) <= 6
    overrides = {'train_cfg.max_epochs': 2, 'optim_wrapper.optimizer.lr': 3.0}
    cfg = config.load(str(path), tiny_folder(tmp_path, flowers, **overrides))
    assert cfg.model.head.num_classes == 3
    runner = run_setup.start(cfg, 'train', None)
    snapshot = Snapshot()
    runner.register_hook(snapshot)
    runner.train()
    assert list(runner.val_dataloader.dataset.metainfo['classes']) == ['iris', 'rose', 'tulip']
    parameters = dict(runner.model.named_parameters())
    changed = {n for n, p in parameters.items() if not torch.equal(p, snapshot.parameters[n])}
    assert changed == {n for n, p in parameters.items() if p.requires_grad}
    assert any(name.startswith('backbone.prompt.') for name in changed)
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert 'accuracy/top1' in json.dumps(summary)


@pytest.mark.parametrize('place', ['model.data_preprocessor.batch_augments', 'model.train_cfg'])
def test_mixing_knows_the_classes(flowers, tmp_path, place):
    mixing = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    options = tiny_folder(tmp_path, flowers, **{place: mixing})
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), options)
    assert cfg.model.data_preprocessor.num_classes == 3
    targets = []
    runner = run_setup.start(cfg, 'train', None)
    loss = runner.model.head.loss_module.forward
    runner.model.head.loss_module.forward = lambda score, target, *args, **kwargs: (
        targets.append(target), loss(score, target, *args, **kwargs))[1]
    runner.train()
    assert targets and all(target.shape[1] == 3 for target in targets)
    assert all(torch.allclose(target.sum(1), torch.ones(len(target))) for target in targets)
    assert any(((target > 0) & (target < 1)).any() for target in targets)


def test_nothing_is_told_where_nothing_is_mixed(flowers, tmp_path):
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), tiny_folder(tmp_path, flowers))
    assert 'num_classes' not in cfg.model.data_preprocessor


def test_class_weights_of_another_length(flowers, tmp_path):
    loss = dict(type='CrossEntropyLoss', class_weight=[1.0] * 4)
    options = tiny_folder(tmp_path, flowers, **{'model.head.loss': loss})
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), options)
    with pytest.raises(UserError, match=r'head.loss.class_weight has 4 weights, .* 3 classes'):
        run_setup.start(cfg, 'train', None)


def test_example_with_four_bands_of_16_bits(flowers, tmp_path):
    root = tmp_path / 'fields'
    shutil.copytree(flowers, root)
    rng = np.random.default_rng(0)
    for path in sorted(root.glob('*/*/*')):
        path.unlink()
        bands = rng.integers(0, 65536, (40, 50, 4)).astype(np.uint16)
        cv2.imwrite(str(path.with_suffix('.tif')), bands)
    cfg = config.load(
        str(CONFIGS / 'examples/four_band_image_folder.py'), tiny_folder(tmp_path / 'work', root)
    )
    runner = run_setup.start(cfg, 'train', None)
    runner.train()
    inputs = runner.val_dataloader.dataset[0]['inputs']
    assert inputs.shape == (4, 32, 32)
    assert runner.model.backbone.patch_embed.projection.weight.shape[1] == 4
    # What the model gets is what the loader normalised: 0 to 65535 became -2 to 4.55.
    batch = runner.model.data_preprocessor(runner.val_dataloader.collate_fn([dict(inputs=inputs)]))
    assert torch.equal(batch['inputs'][0], inputs)
    assert -2 <= inputs.min() < -1 and 3 < inputs.max() <= 4.56


def test_validation_split_without_a_class_keeps_the_labels(tmp_path):
    make_image_folder(tmp_path, splits=('train',))
    make_image_folder(tmp_path, splits=('val',), classes=('rose', 'tulip'))
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), {'dataset.data_root': str(tmp_path)})
    in_scope('mmpretrain')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert {int(label) for label in dataset.get_gt_labels()} == {1, 2}
    assert dataset.metainfo['classes'] == ['iris', 'rose', 'tulip']


@pytest.mark.parametrize(
    'make, line',
    [
        (lambda root: (root / 'train').mkdir(), 'has no sub-folders'),
        (lambda root: make_image_folder(root, splits=('val',)), 'train does not exist'),
        (
            lambda root: (
                make_image_folder(root, ('train',), ('rose',)),
                make_image_folder(root, ('val',), ('rose', 'tulip')),
            ),
            'val has classes that .*train has not: tulip',
        ),
        (
            lambda root: (make_image_folder(root, ('train',)), (root / 'val').mkdir()),
            'no image in .*val',
        ),
    ],
)
def test_wrong_folders_are_told_in_one_line(make, line, tmp_path):
    make(tmp_path)
    with pytest.raises(UserError, match=line) as error:
        cfg = config.load(
            str(VPT / 'vit-b_deep_imagefolder.py'), {'dataset.data_root': str(tmp_path)}
        )
        in_scope('mmpretrain')
        DATASETS.build(cfg.train_dataloader.dataset)
        DATASETS.build(cfg.val_dataloader.dataset)
    assert '\n' not in str(error.value)


def test_more_best_classes_than_there_are(tmp_path):
    make_image_folder(tmp_path)  # of three classes

    def check(mode, **options):
        options = {key.replace('__', '.'): value for key, value in options.items()}
        preflight.check_topk(config.load(str(VPT / 'vit-b_deep_imagefolder.py'), {
            'dataset.data_root': str(tmp_path), **options}), mode)

    check('train', val_evaluator__topk=(1, 3))
    with pytest.raises(UserError, match='val_evaluator.topk asks for the best 5 classes, but '
                                        'there are 3; leave 5 out'):
        check('train', val_evaluator__topk=(1, 5))
    with pytest.raises(UserError, match='test_evaluator.topk'):
        check('test', test_evaluator__topk=4)
    check('train', model__head__topk=(1, 5))  # does nothing without cal_acc
    with pytest.raises(UserError, match='model.head.topk'):
        check('train', model__head__topk=(1, 5), model__head__cal_acc=True)


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
    """A folder of CIFAR-100's format with 8 images: label i is red at 8 i, no green or blue."""
    from mmpretrain.datasets import CIFAR100

    folder = tmp_path / 'cifar' / 'cifar-100-python'
    folder.mkdir(parents=True)
    labels = list(range(8))
    data = np.zeros((8, 3, 32, 32), np.uint8)
    data[:, 0] = 8 * np.array(labels)[:, None, None]
    for name in ('train', 'test'):
        with open(folder / name, 'wb') as file:
            pickle.dump(dict(data=data.reshape(8, -1), fine_labels=labels), file)
        monkeypatch.setattr(CIFAR100, f'{name}_list', [[name, None]])  # None: no md5 to compare
    return folder.parent


def test_cifar100_runs_and_keeps_its_colours(cifar100, tmp_path):
    sizes = {f'{s}_dataloader.dataset.pipeline.0.scale': (32, 32) for s in ('train', 'val', 'test')}
    options = tiny(tmp_path / 'work', **{'dataset.data_root': str(cifar100)}, **sizes)
    cfg = config.load(str(VPT / 'vit-b_deep_cifar100.py'), options)
    runner = run_setup.start(cfg, 'train', None)
    runner.train()
    dataset = runner.val_dataloader.dataset
    assert len(dataset.metainfo['classes']) == cfg.model.head.num_classes == 100
    batch = runner.model.data_preprocessor(
        dict(inputs=[dataset[3]['inputs']], data_samples=[dataset[3]['data_samples']])
    )
    # The first channel that the model sees is red: (24 - 123.675) / 58.395.
    seen = batch['inputs'][0].mean(dim=(1, 2))
    wanted = [(24 - 123.675) / 58.395, -116.28 / 57.12, -103.53 / 57.375]
    assert torch.allclose(seen, torch.tensor(wanted), atol=1e-4)


def test_timm_weights_give_timms_features(tmp_path, mmpretrain_scope):
    timm = pytest.importorskip('timm')
    torch.manual_seed(1)
    source = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2, num_classes=21
    )
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_file(source.state_dict(), tmp_path / 'weights.safetensors')  # with its head of 21 classes
    init = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.safetensors'))
    cfg = config.load(
        str(VPT / 'vit-b_cifar100.py'),
        tiny(tmp_path, **{'model.backbone.init_cfg': init}), 'linear',
    )
    model = MODELS.build(cfg.model).eval()
    model.init_weights()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = model.extract_feat(images)[0]
        wanted = source.eval().forward_features(images)[:, 0]
    assert features.shape == (2, 64)
    assert torch.allclose(features, wanted, atol=1e-5)
