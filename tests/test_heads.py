"""SETR heads that classify first equal mmseg's."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.models import decode_heads
from mmseg.structures import SegDataSample
from utils import images, randomise

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


def test_accuracy_is_optional():
    head = MODELS.build(dict(type='vpt_dense.SETRUPHead', log_accuracy=False, **HEADS['pup'][1]))
    losses = head.loss_by_feat(images(2, 7, 8, 8), samples((8, 8)))
    assert set(losses) == {'loss_ce'}
