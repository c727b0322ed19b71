"""SETR heads that classify first equal mmseg's."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models import decode_heads
from mmseg.structures import SegDataSample
from utils import images, randomise

from vpt_dense.heads import losses
from vpt_dense.heads.losses import upsampled_cross_entropy

COMMON = dict(num_classes=7, norm_cfg=dict(type='BN'))
UP = dict(COMMON, in_channels=12, channels=8, in_index=1)
HEADS = {
    'pup': ('SETRUPHead', dict(UP, num_convs=4, up_scale=2, kernel_size=3)),
    'pup-auxiliary': ('SETRUPHead', dict(UP, num_convs=1, up_scale=4, kernel_size=3)),
    'naive': ('SETRUPHead', dict(UP, num_convs=1, up_scale=4, kernel_size=1)),
    'mla': ('SETRMLAHead', dict(COMMON, in_channels=(12, 12), in_index=(0, 1), channels=16,
                                mla_channels=8)),
}


def samples(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 7, (2, 1, *size), generator=generator)
    labels[:, :, :3] = 255  # ignored
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('dropout', [0, 0.3])
@pytest.mark.parametrize('size', [(48, 80), (37, 51), 'of the logits'])
def test_equal_to_mmseg(name, align_corners, dropout, size):
    kind, kwargs = HEADS[name]
    kwargs = dict(kwargs, align_corners=align_corners, dropout_ratio=dropout,
                  loss_decode=[dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4),
                               dict(type='mmseg.DiceLoss', loss_name='loss_dice')])
    theirs = randomise(getattr(decode_heads, kind)(**kwargs)).double().train()
    ours = MODELS.build(dict(type=f'vpt_dense.{kind}', **kwargs)).double().train()
    assert isinstance(ours, type(theirs)) and type(ours) is not type(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    results = []
    for head in (theirs, ours):
        features = [images(2, 12, 3, 5, seed=i, dtype=torch.float64).requires_grad_()
                    for i in range(2)]
        torch.manual_seed(3)  # the same channels are dropped
        logits = head(features)
        batch = samples(logits.shape[2:] if isinstance(size, str) else size)
        losses = head.loss_by_feat(logits, batch)
        sum(loss for key, loss in losses.items() if key.startswith('loss')).backward()
        results.append(dict(
            logits=logits.detach(), **{key: loss.detach() for key, loss in losses.items()},
            **{f'input {i}': f.grad for i, f in enumerate(features) if f.grad is not None},
            **{n: p.grad for n, p in head.named_parameters() if p.grad is not None},
        ))
        if len(results) == 2:
            assert head.eval()(features).shape == theirs.eval()(features).shape
    assert {'loss_ce', 'loss_dice', 'acc_seg', 'conv_seg.weight'} < results[0].keys()
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


PLAIN = dict(type='mmseg.CrossEntropyLoss', loss_weight=0.4)
LOSSES = {  # name -> (loss_decode, whether the scores are upsampled inside the loss)
    'plain': (PLAIN, True),
    'a list of one': ([dict(PLAIN, loss_name='loss_other')], True),
    'ignored pixels do not count': (dict(PLAIN, avg_non_ignore=True), True),
    'class weights': (dict(PLAIN, class_weight=[1, 2, 3, 4, 5, 6, 7]), False),
    'two': ([PLAIN, dict(type='mmseg.DiceLoss', loss_name='loss_dice')], False),
    'sigmoid': (dict(PLAIN, use_sigmoid=True), False),
}


def one_step(head, size, dtype=torch.float64, autocast=None, empty=False):
    """Losses and gradients of a training step of a head, by name."""
    features = [images(2, 12, 3, 5, seed=i, dtype=dtype).requires_grad_() for i in range(2)]
    batch = samples(size)
    if empty:  # an image without a label, or both
        for sample in batch[: 1 if empty == 'one' else 2]:
            sample.gt_sem_seg.data.fill_(255)
    torch.manual_seed(3)  # the same channels are dropped
    with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
        losses = head.loss(features, batch, {})
    (3 * sum(loss for key, loss in losses.items() if key.startswith('loss'))).backward()
    found = {key: loss.detach() for key, loss in losses.items()}
    found |= {f'input {i}': f.grad for i, f in enumerate(features) if f.grad is not None}
    return found | {n: p.grad for n, p in head.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('name', HEADS)
@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(48, 80), (12, 20), (37, 51)])
@pytest.mark.parametrize('empty', ['', 'one', 'both'])
def test_loss_equals_mmseg(name, loss, align_corners, size, empty, monkeypatch):
    """All the way from the features, where the upsampled scores need not be kept."""
    kind, kwargs = HEADS[name]
    loss_decode, inside = LOSSES[loss]
    kwargs = dict(kwargs, align_corners=align_corners, loss_decode=loss_decode)
    theirs = randomise(getattr(decode_heads, kind)(**kwargs)).double().train()
    ours = MODELS.build(dict(type=f'vpt_dense.{kind}', **kwargs)).double().train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    calls = []
    monkeypatch.setattr(
        'vpt_dense.heads.losses.upsampled_cross_entropy',
        lambda *args, **kwargs: calls.append(1) or upsampled_cross_entropy(*args, **kwargs))
    expected = one_step(theirs, size, empty=empty)
    found = one_step(ours, size, empty=empty)
    assert len(calls) == inside and 'conv_seg.weight' in found
    # mmseg computes it in float32
    torch.testing.assert_close(found.pop('acc_seg'), expected.pop('acc_seg'), check_dtype=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_loss_under_autocast(dtype):
    """The loss itself is computed in float32; the rest is as exact as mmseg's."""
    kind, kwargs = HEADS['pup']
    results = []
    for name, autocast in ((f'mmseg.{kind}', None), (f'mmseg.{kind}', dtype),
                           (f'vpt_dense.{kind}', dtype)):
        head = randomise(MODELS.build(dict(type=name, **kwargs))).train()
        results.append(one_step(head, (48, 80), torch.float32, autocast))
    for name, exact in results[0].items():
        error, own = ((result[name] - exact).norm() / exact.norm() for result in results[1:])
        assert own < max(2 * error, 1e-3), name
    assert results[2]['loss_ce'].dtype == torch.float32


def test_loss_keeps_the_gradient_of_small_scores():
    """Not the upsampled scores; and nothing where no gradient is asked for."""
    logits = images(2, 7, 4, 4).requires_grad_()
    labels = torch.randint(0, 7, (2, 64, 64))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.untyped_storage().nbytes()) or t, lambda t: t):
        loss, correct = upsampled_cross_entropy(logits, labels)
        assert kept == [logits.nbytes] and loss.requires_grad and correct == 0
        kept.clear()
        loss, correct = upsampled_cross_entropy(logits.detach(), labels, count_correct=True)
    assert kept == [] and not loss.requires_grad
    full = torch.nn.functional.interpolate(logits, (64, 64), mode='bilinear')
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(full, labels))
    assert correct == (full.argmax(1) == labels).sum()


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize(('small', 'full'), [
    ((3, 5), (24, 31)), ((16, 16), (224, 224)), ((7, 4), (5, 4)), ((1, 1), (6, 6))])
def test_upsampling_by_products_is_pytorch_s(small, full, align_corners):
    scores, gradient = (images(1, 3, *size, dtype=torch.float64) for size in (small, full))
    ways = [losses._Interpolated(small, full, align_corners),
            losses._Separable(small, full, align_corners, torch.float64)]
    for way, value in (('forward', scores), ('backward', gradient)):
        one, other = (getattr(each, way)(value) for each in ways)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_large_scores_are_interpolated():
    labels = torch.randint(0, 2, (1, 260, 12))
    logits = images(1, 2, 130, 6, dtype=torch.float64).requires_grad_()
    assert isinstance(losses._upsampling(logits, labels.shape[1:], False, logits.dtype),
                      losses._Interpolated)
    loss, _ = upsampled_cross_entropy(logits, labels)
    full = torch.nn.functional.interpolate(logits, labels.shape[1:], mode='bilinear')
    wanted = torch.nn.functional.cross_entropy(full, labels)
    torch.testing.assert_close(loss, wanted, rtol=1e-7, atol=1e-7)  # mmseg adds an epsilon
    torch.testing.assert_close(*(torch.autograd.grad(each, logits)[0] for each in (loss, wanted)))


def test_autocast_leaves_the_loss_exact():
    logits, labels = images(2, 3, 4, 5).requires_grad_(), torch.randint(0, 3, (2, 16, 20))
    found = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            loss = upsampled_cross_entropy(logits, labels)[0]
        found.append((loss, *torch.autograd.grad(loss, logits)))
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_gradient_of_the_loss_by_differences():
    logits = images(1, 3, 2, 3, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[[0, 1, 2, 255], [2, 2, 1, 0], [1, 0, 255, 2]]])
    assert torch.autograd.gradcheck(
        lambda scores: upsampled_cross_entropy(scores, labels, avg_non_ignore=True)[0], logits)


def test_accuracy_is_optional():
    head = MODELS.build(dict(type='vpt_dense.SETRUPHead', log_accuracy=False, **HEADS['pup'][1]))
    losses = head.loss_by_feat(images(2, 7, 8, 8), samples((8, 8)))
    assert set(losses) == {'loss_ce'}
    assert set(head.loss([images(2, 12, 3, 5)] * 2, samples((8, 8)), {})) == {'loss_ce'}
