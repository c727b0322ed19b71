"""The metric loss of DA-VPT, by hand, and in runs."""

import math

import pytest
import torch
from mmengine.structures import PixelData
from sklearn.cluster import KMeans
from test_classification import VPT, make_image_folder, tiny_folder
from tool_helpers import forget_runs, write_leaf
from tool_helpers import tiny_folder as tiny_seg_folder
from utils import randomise

from vpt_dense import config, run_setup
from vpt_dense.errors import UserError
from vpt_dense.hooks import MetricLossHook

HOOK = 'vpt_dense.MetricLossHook'


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    """An image folder of three classes with 4 images each; do not write into it."""
    return make_image_folder(tmp_path_factory.mktemp('flowers'))


def by_hand(samples, classes, proxies, owner, scale, margin):
    """Proxy-Anchor in loops: samples (n, C) of classes, proxies (P, C), class -> its proxy."""
    pulled, pushed = [], []
    for p, proxy in enumerate(proxies):
        near, far = [], []
        for sample, owned in zip(samples, classes, strict=True):
            s = float(sample @ proxy / sample.norm() / proxy.norm())
            if p in {owner[c] for c in owned}:
                near.append(math.exp(-scale * (s - margin)))
            else:
                far.append(math.exp(scale * (s + margin)))
        if near:
            pulled.append(math.log(1 + sum(near)))
        pushed.append(math.log(1 + sum(far)))
    return (sum(pulled) / len(pulled) if pulled else 0.0) + sum(pushed) / len(pushed)


def begin(cfg, hook):
    """A runner whose training is about to begin, and the hook."""
    forget_runs()
    runner = run_setup.start(cfg, 'train', None)
    runner.call_hook('before_run')
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    randomise(runner.model, 0)
    runner.model.double()
    (hook,) = [h for h in runner.hooks if isinstance(h, MetricLossHook)]
    hook.before_train(runner)
    runner.model.train()
    return runner.model, hook


def prepare(tmp_path, data, hook=None, **options):
    path = tmp_path / 'leaf.py'
    path.write_text(
        f"_base_ = '{VPT / 'vit-b_deep_imagefolder.py'}'\n"
        f'custom_hooks = [*_base_.custom_hooks, {dict(type=HOOK, **(hook or {}))!r}]\n')
    prompt = {'model.backbone.prompt.num_tokens': 3, 'model.backbone.prompt.dropout': 0.0}
    return config.load(str(path), tiny_folder(tmp_path, data, **prompt, **options))


def entering_last(backbone, images):
    """Tokens in front of the last block, (B, 1 + N, C)."""
    seen = []
    handle = backbone.prompt.register_forward_hook(lambda _, args, out: seen.append(args[:2]))
    backbone(images)
    handle.remove()
    (found,) = [x for x, layer in seen if layer == backbone.num_layers - 1]
    return found


def queries(backbone, tokens):
    block, dims = backbone.layers[-1], tokens.shape[-1]
    return block.ln1(tokens) @ block.attn.qkv.weight[:dims].T + block.attn.qkv.bias[:dims]


def test_an_image_is_one_sample_of_its_class(flowers, tmp_path):
    hook = dict(weight=0.5, cls_weight=0.25, scale=4.0, margin=0.2)
    model, _ = begin(prepare(tmp_path, flowers, hook), hook)
    images = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    from mmpretrain.structures import DataSample

    labels = [0, 2, 2, 1, 0]
    losses = model(images, [DataSample().set_gt_label(i) for i in labels], mode='loss')
    with torch.no_grad():
        x = entering_last(model.backbone, images)
        proxies = queries(model.backbone, model.backbone.prompt.tokens[-1])
    owned = [[label] for label in labels]
    owner = [0, 1, 2]  # three classes and three prompts: each its own
    for name, weight, samples in (
            ('loss_metric', 0.5, x[:, 1:].mean(1)), ('loss_metric_cls', 0.25, x[:, 0])):
        wanted = weight * by_hand(samples, owned, proxies, owner, 4.0, 0.2)
        assert losses[name].item() == pytest.approx(wanted, rel=1e-6)
    (losses['loss_metric'] + losses['loss_metric_cls']).backward()
    gradient = model.backbone.prompt.tokens.grad.flatten(1).norm(dim=1)
    assert (gradient > 0).all()  # earlier prompts by the tokens


def test_pixels_are_samples_of_the_class_in_the_middle_of_their_patch(tmp_path):
    data = tiny_seg_folder(tmp_path / 'ade')
    hook = dict(type=HOOK, weight=1.0, cls_weight=1.0, scale=3.0)
    leaf = write_leaf(tmp_path, data, (
        f'custom_hooks = [*_base_.custom_hooks, {hook}]\n'
        'model["backbone"]["prompt"] = dict(type="vpt_dense.TokenPrompt", num_tokens=150, '
        'deep=True, dropout=0.0)\n'))
    model, _ = begin(config.load(str(leaf)), hook)
    from mmseg.structures import SegDataSample

    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    labels = torch.full((2, 1, 32, 32), 255)
    labels[0, :, :16] = 7
    labels[0, :, 20:] = 149  # the middle row of the third row of patches
    labels[1, :, :, 8:16] = 7
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each), metainfo=dict(
        img_shape=(32, 32), ori_shape=(32, 32), pad_shape=(32, 32))) for each in labels]
    losses = model(images, samples, mode='loss')
    with torch.no_grad():
        x = entering_last(model.backbone, images)
        proxies = queries(model.backbone, model.backbone.prompt.tokens[-1])
    patches = x[:, 1:].unflatten(1, (4, 4))
    means = [patches[0, :2].mean((0, 1)), patches[0, 2:].mean((0, 1)), patches[1, :, 1].mean(0)]
    owner = list(range(150))
    wanted = by_hand(means, [[7], [149], [7]], proxies, owner, 3.0, 0.1)
    assert losses['loss_metric'].item() == pytest.approx(wanted, rel=1e-6)
    wanted = by_hand(x[:, 0], [[7, 149], [7]], proxies, owner, 3.0, 0.1)
    assert losses['loss_metric_cls'].item() == pytest.approx(wanted, rel=1e-6)


def test_more_classes_than_prompts_are_grouped_by_their_means(flowers, tmp_path):
    hook = dict(interval=2)
    cfg = prepare(tmp_path, flowers, hook)
    cfg.model.backbone.prompt.num_tokens = 2
    model, hook = begin(cfg, hook)
    from mmpretrain.structures import DataSample

    sums, counts = torch.zeros(3, 64, dtype=torch.float64), torch.zeros(3)
    for _ in range(2):
        images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
        labels = [0, 1, 2, 2, 1, 0]
        losses = model(images, [DataSample().set_gt_label(i) for i in labels], mode='loss')
        assert losses['loss_metric'] == 0.02 * losses['loss_metric'].new_tensor(
            losses['loss_metric'].item() / 0.02)  # finite
        with torch.no_grad():
            x = entering_last(model.backbone, images)[:, 1:].mean(1)
        for label, each in zip(labels, x, strict=True):
            sums[label] += each
            counts[label] += 1
    assert (hook._state['owners'] == -1).all()
    torch.testing.assert_close(
        hook._state['sums'].double(), sums, rtol=1e-5, atol=1e-5)
    hook._deal(2)
    owners = hook._state['owners']
    means = torch.nn.functional.normalize(sums / counts[:, None], dim=-1)
    best = KMeans(2, n_init=10, random_state=0).fit(means.numpy()).labels_
    same = [[bool(a == b) for a in owners] for b in owners]
    assert same == [[bool(a == b) for a in best] for b in best]
    assert not hook._state['counts'].any()


@pytest.mark.parametrize(('options', 'message'), [
    ({'model.backbone.prompt.deep': False}, 'takes the prompts of the last block, and there are'),
    ({'model.backbone.prompt': None, 'model.backbone.trainable': []}, 'its prompt None'),
    ({'model.backbone.with_cls_token': False, 'model.backbone.out_type': 'avg_tokens'},
     'cls_weight needs a class token, the backbone has none; set it to 0'),
])
def test_what_does_not_fit_is_told_before_training(options, message, flowers, tmp_path):
    cfg = prepare(tmp_path, flowers)
    cfg.merge_from_dict(options)
    with pytest.raises(UserError, match=message):
        begin(cfg, None)


def test_mixed_labels_are_refused(flowers, tmp_path):
    model, _ = begin(prepare(tmp_path, flowers), None)
    from mmpretrain.structures import DataSample

    sample = DataSample().set_gt_score(torch.tensor([0.5, 0.5, 0.0]))
    with pytest.raises(UserError, match='Mixup or CutMix mixes them; leave batch_augments out'):
        model(torch.randn(1, 3, 32, 32, dtype=torch.float64), [sample], mode='loss')


@pytest.mark.parametrize(('kwargs', 'message'), [
    (dict(weight=-1), r'MetricLossHook\.weight must not be negative'),
    (dict(scale=0), r'MetricLossHook\.scale'),
    (dict(interval=0), r'MetricLossHook\.interval must be an integer of at least 1'),
])
def test_bad_options_fail_when_it_is_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        MetricLossHook(**kwargs)


@pytest.mark.slow
def test_it_trains_and_resumes_exactly(flowers, tmp_path):
    """In the middle of an interval, and behind the first."""

    def load(folder, epochs):
        cfg = prepare(tmp_path, flowers, dict(interval=4), **{'train_cfg.max_epochs': epochs})
        cfg.model.backbone.prompt.num_tokens = 2
        cfg.work_dir = str(tmp_path / folder)
        return cfg

    def run(cfg):
        forget_runs()
        runner = run_setup.start(cfg, 'train', None)
        runner.train()
        return runner

    whole = run(load('whole', 4))
    (hook,) = [h for h in whole.hooks if isinstance(h, MetricLossHook)]
    assert (hook._state['owners'] >= 0).any()
    run(load('again', 2))
    cfg = load('again', 4)
    cfg.resume = True
    resumed = run(cfg)
    for (name, one), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
