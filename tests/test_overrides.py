"""Classes derived from ours: a method of their own is used wherever it would be upstream."""

import copy
import warnings

import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models.heads import LinearClsHead
from mmpretrain.structures import DataSample
from mmseg import models
from mmseg.evaluation import IoUMetric as TheirMetric
from mmseg.models import decode_heads
from test_heads import HEADS, PLAIN, UP, one_step
from test_metric import CLASSES, evaluate, make
from test_metric import samples as predictions
from test_segmentor import SLIDE, metas, pair, versions
from torch import nn
from utils import images, randomise

from vpt_dense import heads
from vpt_dense.ensemble.heads import EnsembleClsHead
from vpt_dense.errors import UserError
from vpt_dense.evaluation import IoUMetric
from vpt_dense.segmentors import SegTTAModel

MORE = {
    **HEADS,
    'fcn': ('FCNHead', dict(UP, num_convs=1)),
    'uper': ('UPerHead', dict(UP, in_channels=(12, 12), in_index=(0, 1), pool_scales=(1, 2))),
    'segmenter': ('SegmenterMaskTransformerHead', dict(
        num_classes=7, in_channels=12, channels=8, in_index=1, num_layers=1, num_heads=2,
        embed_dims=8, dropout_ratio=0)),
    'linear': ('LinearHead', dict(num_classes=7, in_channels=12, in_index=1,
                                  norm_cfg=dict(type='BN'))),
}


class Forward:
    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Classify:
    def cls_seg(self, feat):
        return super().cls_seg(feat.relu() ** 2)  # not linear: it cannot change places


class Loss:
    def loss_by_feat(self, *args):
        return {name: 3 * loss for name, loss in super().loss_by_feat(*args).items()}


class Labels:
    def _stack_batch_gt(self, samples):
        labels = super()._stack_batch_gt(samples)
        return torch.where(labels == 0, 255, labels)


def dropped(head):
    head.dropout = nn.Dropout(0.4)
    return head


def layered(head):
    head.conv_seg = nn.Sequential(nn.Tanh(), head.conv_seg)
    return head


def derived(mixin, kind, kwargs):
    """A head derived from ours, and the same derived from mmseg's (or ours, taken the long way)."""
    found = []
    for room in (heads, decode_heads):
        base = getattr(room, kind, None) or getattr(heads, kind)
        kind_of_own = type('Own', (mixin, base) if isinstance(mixin, type) else (base,), {})
        torch.manual_seed(0)
        head = randomise(kind_of_own(**kwargs)).double().train()
        found.append(head if isinstance(mixin, type) else mixin(head))
    return found


@pytest.mark.parametrize(('mixin', 'name'), [
    (mixin, name) for mixin in (Forward, Classify, Loss, Labels, dropped, layered)
    for name in MORE if mixin is not layered or name != 'segmenter'  # it has no such layer
])
def test_heads_train_with_it(name, mixin):
    kind, kwargs = MORE[name]
    kwargs = dict(kwargs, loss_decode=PLAIN, dropout_ratio=0)
    ours, theirs = derived(mixin, kind, kwargs)
    if kind == 'LinearHead':  # mmseg has none
        theirs.loss = lambda inputs, samples, cfg: theirs.loss_by_feat(theirs(inputs), samples)
    found, wanted = (one_step(head, (37, 51)) for head in (ours, theirs))
    torch.testing.assert_close(found.pop('acc_seg'), wanted.pop('acc_seg'))  # float32
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_method_put_on_the_object_counts_too():
    kind, kwargs = HEADS['pup']
    plain, doubled = (
        randomise(getattr(heads, kind)(**kwargs)).double().train() for _ in range(2))
    doubled.loss_by_feat = lambda *args: {
        name: 2 * loss for name, loss in type(doubled).loss_by_feat(doubled, *args).items()}
    once, twice = (one_step(head, (48, 80))['loss_ce'] for head in (plain, doubled))
    torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize('mixin', [Forward, Classify])
@torch.no_grad()
def test_sliding_windows_predict_with_it(mmseg_scope, mixin):
    ours, theirs = pair('pup')
    for model, base in ((ours, heads), (theirs, decode_heads)):
        model.decode_head.__class__ = type('Own', (mixin, base.SETRUPHead), {})
    x = images(2, 3, 45, 71, dtype=torch.float64)
    found, wanted = (m.slide_inference(x, metas(2, (45, 71))) for m in (ours, theirs))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


class Predict:
    def predict(self, inputs, data_samples=None):
        return super().predict(inputs.flip(1), data_samples)


class Slide:
    def slide_inference(self, *args):
        return super().slide_inference(*args).roll(1, 1)


class Inference:
    def inference(self, *args):
        return super().inference(*args).roll(1, 1)


class Postprocess:
    def postprocess_result(self, seg_logits, data_samples=None):
        return super().postprocess_result(seg_logits.roll(2, 1), data_samples)


class Merge:
    def merge_preds(self, data_samples_list):
        merged = super().merge_preds(data_samples_list)
        for sample in merged:
            sample.pred_sem_seg.data = 6 - sample.pred_sem_seg.data
        return merged


@pytest.mark.parametrize('mixin', [Predict, Slide, Inference, Postprocess, Merge])
@torch.no_grad()
def test_augmented_testing_predicts_with_it(mmseg_scope, mixin):
    found = []
    for model, tta in zip(pair('pup', SLIDE), (SegTTAModel, models.SegTTAModel), strict=True):
        if mixin is Merge:
            tta = type('Own', (mixin, tta), {})
        else:
            model.__class__ = type('Own', (mixin, type(model)), {})
        model.data_preprocessor.register_forward_hook(
            lambda _, __, data: {**data, 'inputs': data['inputs'].double()})
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # mmseg's labels lack an axis
            (sample,) = tta(module=model).test_step(versions((37, 50), [(24, 32), (32, 45)]))
        found.append(sample.pred_sem_seg.data.squeeze())
    assert torch.equal(*found) and found[0].unique().numel() > 1


def test_merging_one_channel_takes_the_sigmoid_once(mmseg_scope):
    ours, _ = pair('pup', dict(mode='whole'), num_classes=1)
    data = versions((32, 32), [(32, 32)])
    ours.data_preprocessor.register_forward_hook(
        lambda _, __, data: {**data, 'inputs': data['inputs'].double()})
    tta = SegTTAModel(module=ours)
    with torch.no_grad():
        (scores,), _ = tta.average(copy.deepcopy(data))
        ours.decode_head.threshold = scores.median()  # after a second sigmoid all are above 0.5
        (short,) = tta.test_step(copy.deepcopy(data))
        tta.merge_preds = tta.merge_preds  # somebody's own
        (long,) = tta.test_step(data)
    assert torch.equal(short.pred_sem_seg.data, long.pred_sem_seg.data)
    assert 0.4 < long.pred_sem_seg.data.double().mean() < 0.6


class Borders:
    """Counts nothing of the first two columns."""

    @staticmethod
    def intersect_and_union(prediction, label, num_classes, ignore_index):
        return TheirMetric.intersect_and_union(
            prediction[:, 2:], label[:, 2:], num_classes, ignore_index)


class Relabel:
    def process(self, data_batch, data_samples):
        for sample in data_samples:
            sample['pred_sem_seg']['data'] = sample['pred_sem_seg']['data'].roll(1, -1)
        super().process(data_batch, data_samples)


class Keep:
    """Fills ``results`` itself."""

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            self.results.append(self.intersect_and_union(
                sample['pred_sem_seg']['data'][0], sample['gt_sem_seg']['data'][0], CLASSES, 255))


@pytest.mark.parametrize('mixin', [Borders, Relabel, Keep])
def test_metrics_count_with_it(mixin):
    found = []
    for base in (IoUMetric, TheirMetric):
        metric = make(type('Own', (mixin, base), {}), iou_metrics=['mIoU', 'mDice'])
        found.append([evaluate(metric, predictions(5, seed=i)) for i in range(2)])
        if base is IoUMetric:
            assert len(metric.per_class) == CLASSES
    plain = evaluate(make(IoUMetric), predictions(5))
    assert found[0] == found[1]
    assert (found[0][0]['mIoU'] == plain['mIoU']) == (mixin is Keep)


class Sharper(LinearClsHead):
    def predict(self, feats, data_samples=None):
        return super().predict(tuple(10 * feat for feat in feats), data_samples)


def test_ensembles_of_classifiers_predict_with_it(mmpretrain_scope):
    head = dict(type=Sharper, in_channels=4, num_classes=3)
    ensemble = randomise(EnsembleClsHead(seeds=[0, 1], head=head))
    feats = (torch.randn(4, 4),)
    given = [DataSample(metainfo=dict(index=i)) for i in range(2)]
    alone = [member.predict((feats[0][2 * i:2 * i + 2],))
             for i, member in enumerate(ensemble.members)]
    for samples in (None, given):
        for i, sample in enumerate(ensemble.predict(feats, samples)):
            wanted = (alone[0][i].pred_score + alone[1][i].pred_score) / 2
            torch.testing.assert_close(sample.pred_score, wanted)
            assert sample.pred_label.tolist() == [wanted.argmax()]
            assert samples is None or (sample is given[i] and sample.index == i)


def test_an_ensemble_of_label_mappings_without_mapping_is_refused(mmpretrain_scope):
    head = dict(type='vpt_dense.LabelMappingHead', in_channels=4, num_classes=2,
                num_source_classes=5)
    ensemble = MODELS.build(dict(type='vpt_dense.EnsembleClsHead', seeds=[0, 1], head=head))
    with pytest.raises(UserError, match='has no mapping'):
        ensemble.predict((torch.randn(4, 4),))
