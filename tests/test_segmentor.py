"""Sliding windows and augmented testing give mmseg's results."""

import copy
import math
import warnings

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg import models
from mmseg.apis import MMSegInferencer, inference_model, init_model
from mmseg.structures import SegDataSample
from tool_helpers import run_tool, tiny_folder, write_leaf
from torch.multiprocessing.reductions import StorageWeakRef
from utils import CONFIGS, LEAVES, RECIPES, TINY_ARCH, images, in_scope, randomise

from vpt_dense.segmentors import EncoderDecoder, SegTTAModel

#: Name -> head (on two blocks of width 64) and the height at which the logits of windows of 32
#: pixels are added up.
UP = dict(type='vpt_dense.SETRUPHead', in_channels=64, channels=8, in_index=1)
HEADS = {
    'pup': (dict(UP, num_convs=3, up_scale=2, kernel_size=3), 16),
    'naive': (dict(UP, num_convs=1, up_scale=4, kernel_size=1), 4),
    'mla': (dict(type='vpt_dense.SETRMLAHead', in_channels=(64, 64), in_index=(0, 1), channels=16,
                 mla_channels=8, up_scale=2), 4),
    'fcn': (dict(type='mmseg.FCNHead', in_channels=64, channels=8, in_index=1, num_convs=1), 4),
    'own predict': (dict(type='mmseg.EncHead', in_channels=(64, 64), in_index=(0, 1), channels=8,
                         num_codes=4, use_se_loss=True), 32),
}
SLIDE = dict(mode='slide', crop_size=(32, 32), stride=(21, 21))
CUT = {  # name: batch, size of the images, test_cfg
    'one window': (2, (32, 32), SLIDE),
    'smaller': (1, (24, 16), SLIDE),
    'lower': (2, (24, 80), SLIDE),
    'narrower': (1, (70, 24), SLIDE),
    'one row': (3, (32, 70), SLIDE),
    'one column': (1, (75, 32), SLIDE),
    'odd': (2, (45, 71), SLIDE),
    'all over': (1, (64, 96), dict(SLIDE, stride=(8, 16))),
    'side by side': (2, (64, 96), dict(SLIDE, stride=(32, 32))),
    'no squares': (2, (53, 90), dict(SLIDE, crop_size=(24, 48), stride=(16, 31))),
}


def build(kind, head='pup', test_cfg=SLIDE, num_classes=7, align_corners=False, preprocessor=None):
    head = dict(HEADS[head][0], num_classes=num_classes, norm_cfg=dict(type='BN'),
                align_corners=align_corners)
    cfg = dict(
        type=f'{kind}.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', **preprocessor or {}),
        backbone=dict(type='vpt_dense.VisionTransformer', img_size=32, patch_size=8,
                      arch=dict(TINY_ARCH, num_layers=2), out_type='featmap', out_indices=[0, 1],
                      interpolate_mode='bilinear'),
        decode_head=head, test_cfg=test_cfg)
    return MODELS.build(Config(dict(model=cfg)).model)


def pair(*args, **kwargs):
    """Ours and mmseg's segmentor with the same weights, in float64."""
    ours, theirs = (build(kind, *args, **kwargs) for kind in ('vpt_dense', 'mmseg'))
    theirs.load_state_dict(randomise(ours).state_dict())
    assert type(ours) is EncoderDecoder and type(theirs) is models.EncoderDecoder
    return ours.double().eval(), theirs.double().eval()


def metas(count, size):
    return [dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), size) for _ in range(count)]


def count_windows(model):
    """A list that gets the batch size of each pass through the backbone."""
    found = []
    model.backbone.register_forward_hook(lambda _, args, __: found.append(len(args[0])))
    return found


@pytest.mark.parametrize('windows', [1, 3, 100])
@pytest.mark.parametrize('cut', CUT)
@pytest.mark.parametrize('head', HEADS)
@torch.no_grad()
def test_slide_equals_mmseg(mmseg_scope, head, cut, windows):
    batch, size, test_cfg = CUT[cut]
    ours, theirs = pair(head, dict(test_cfg, windows_per_batch=windows))
    inputs = images(batch, 3, *size, dtype=torch.float64)
    expected = theirs.inference(inputs, metas(batch, size))
    found = count_windows(ours)
    result = ours.inference(inputs, metas(batch, size))
    assert result.shape == (batch, 7, *size) and expected.std() > 0.01
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    number = batch * math.prod(
        math.ceil(max(length - crop, 0) / stride) + 1 for length, crop, stride in
        zip(size, test_cfg['crop_size'], test_cfg['stride'], strict=True))
    assert sum(found) == number and len(found) == math.ceil(number / windows)
    assert max(found) <= windows


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('head', HEADS)
@torch.no_grad()
def test_rows_are_added_at_low_resolution(mmseg_scope, monkeypatch, head, align_corners):
    ours, theirs = pair(head, align_corners=align_corners)
    inputs = images(2, 3, 45, 71, dtype=torch.float64)
    shapes = []
    window_logits = EncoderDecoder._window_logits

    def watch(*args):
        for part, sizes in window_logits(*args):
            shapes.append(part.shape)
            yield part, sizes

    monkeypatch.setattr(EncoderDecoder, '_window_logits', watch)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmseg has advice about aligned corners
        expected = theirs.inference(inputs, metas(2, (45, 71)))
        result = ours.inference(inputs, metas(2, (45, 71)))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    assert shapes == [(7, HEADS[head][1], HEADS[head][1])] * 2 * 2 * 3


@pytest.mark.parametrize('head', ['pup', 'naive'])
@torch.no_grad()
def test_autocast_sums_in_float32(mmseg_scope, head):
    ours, theirs = (model.float() for model in pair(head))
    inputs = images(1, 3, 45, 71)
    with torch.autocast('cpu', torch.bfloat16):
        assert ours(inputs[:, :, :32, :32]).dtype == torch.bfloat16
        result, expected = (m.inference(inputs, metas(1, (45, 71))) for m in (ours, theirs))
        assert result.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(result, expected, rtol=0, atol=2e-2 * expected.std().item())
        ours.decode_head.conv_seg.register_forward_hook(lambda _, __, logits: logits.float())
        assert torch.equal(ours.inference(inputs, metas(1, (45, 71))), result)


@pytest.mark.parametrize(('of_head', 'method'), [
    (False, 'encode_decode'), (True, 'forward'), (True, 'predict'),
    (True, 'predict_by_feat')])
@torch.no_grad()
def test_changed_ways_to_predict_are_used(mmseg_scope, of_head, method):
    ours, theirs = pair('naive')
    part = ours.decode_head if of_head else ours
    kind = type(part)
    part.__class__ = type('Doubled', (kind,), {
        method: lambda self, *args: 2 * getattr(kind, method)(self, *args)})
    inputs = images(1, 3, 45, 71, dtype=torch.float64)
    torch.testing.assert_close(
        ours.inference(inputs, metas(1, (45, 71))),
        2 * theirs.inference(inputs, metas(1, (45, 71))), rtol=1e-12, atol=1e-12)


def sample(size, ori_shape, **meta):
    meta = dict(img_shape=size, ori_shape=ori_shape, img_path='a.png', **meta)
    return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=torch.zeros(1, *ori_shape)))


MIRRORED = dict(flip=True, flip_direction='horizontal')


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('num_classes', [7, 1])
@pytest.mark.parametrize(('size', 'ori_shape', 'meta'), [
    ((45, 71), (45, 71), {}),
    ((45, 71), (90, 100), MIRRORED),
    ((45, 71), (45, 71), dict(flip=True, flip_direction='vertical')),
    ((40, 64), (37, 50), dict(padding_size=(3, 1, 2, 0))),
])
@torch.no_grad()
def test_predictions_equal_mmseg(mmseg_scope, mode, num_classes, size, ori_shape, meta):
    inputs = images(2, 3, *size, dtype=torch.float64)
    results = []
    for model in pair('naive', dict(SLIDE, mode=mode), num_classes):
        model.decode_head.threshold = 0.5
        results.append(model.predict(
            inputs, [sample(size, ori_shape, pad_shape=size, **meta) for _ in inputs]))
    for ours, theirs in zip(*results, strict=True):
        assert ours.pred_sem_seg.data.unique().numel() > 1
        for key in ('seg_logits', 'pred_sem_seg'):
            ours_data, theirs_data = ours.get(key).data, theirs.get(key).data
            assert ours_data.shape == (num_classes if key == 'seg_logits' else 1, *ori_shape)
            torch.testing.assert_close(ours_data, theirs_data, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_predicts_without_data_samples(mmseg_scope):
    ours, theirs = pair('naive')
    inputs = images(2, 3, 45, 71, dtype=torch.float64)
    for result, expected in zip(ours.predict(inputs), theirs.predict(inputs), strict=True):
        assert torch.equal(result.pred_sem_seg.data, expected.pred_sem_seg.data)


# --- augmented testing -----------------------------------------------------------------------


def versions(ori_shape, sizes, count=1):
    """An image and its mirror image in several sizes, as a data loader hands them over."""
    data = dict(inputs=[], data_samples=[])
    for size in sizes:
        pictures = [picture * 50 + 120 for picture in images(count, 3, *size)]
        for meta in ({}, MIRRORED):
            data['inputs'].append([p.flip(2) if meta else p for p in pictures])
            data['data_samples'].append([sample(size, ori_shape, **meta) for _ in pictures])
    return data


@pytest.mark.parametrize('mode', ['slide', 'whole'])
@pytest.mark.parametrize('head', ['pup', 'mla'])
@pytest.mark.parametrize(('sizes', 'count', 'preprocessor'), [
    ([(24, 32), (32, 45), (51, 70)], 1, {}),
    ([(32, 45), (32, 45)], 2, {}),  # two scales may round to the same size
    ([(24, 32), (30, 45)], 2, dict(test_cfg=dict(size_divisor=8))),
])
@torch.no_grad()
def test_augmented_testing_equals_mmseg(mmseg_scope, sizes, count, preprocessor, head, mode):
    test_cfg = dict(SLIDE, mode=mode, windows_per_batch=3)
    ours, theirs = pair(head, test_cfg, preprocessor=preprocessor)
    for model in (ours, theirs):  # the preprocessor puts out float32
        model.data_preprocessor.register_forward_hook(
            lambda _, __, data: {**data, 'inputs': data['inputs'].double()})
    data = versions((37, 50), sizes, count)
    single = [theirs.test_step({key: copy.deepcopy(value[i]) for key, value in data.items()})
              for i in range(len(data['inputs']))]
    expected = [sum(sample.seg_logits.data.softmax(0) for sample in samples) / len(samples)
                for samples in zip(*single, strict=True)]
    found = count_windows(ours)
    model = SegTTAModel(module=ours)
    probabilities, _ = model.average(copy.deepcopy(data))
    torch.testing.assert_close(probabilities, expected, rtol=1e-12, atol=1e-12)
    assert max(found) <= 3
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # mmseg's labels lack an axis
        merged = models.SegTTAModel(module=theirs).test_step(copy.deepcopy(data))
    for result, wanted in zip(model.test_step(data), merged, strict=True):
        assert (result.img_path, result.ori_shape) == ('a.png', (37, 50))
        assert not result.get('flip')
        assert result.pred_sem_seg.data.shape == (1, 37, 50)
        assert result.pred_sem_seg.data.unique().numel() > 1
        for key in ('pred_sem_seg', 'gt_sem_seg'):
            assert torch.equal(result.get(key).data, wanted.get(key).data)


@torch.no_grad()
def test_image_and_mirror_are_one_batch(mmseg_scope):
    ours = build('vpt_dense', test_cfg=dict(mode='whole')).eval()
    found = count_windows(ours)
    SegTTAModel(module=ours).test_step(versions((32, 32), [(32, 32), (40, 40)]))
    assert found == [2, 2]
    ours.test_cfg.windows_per_batch = 1
    found.clear()
    SegTTAModel(module=ours).test_step(versions((32, 32), [(32, 32), (40, 40)]))
    assert found == [1] * 4


@pytest.mark.parametrize('head', ['pup', 'mla'])
@torch.no_grad()
def test_only_the_sum_and_one_version_are_held(mmseg_scope, monkeypatch, head):
    """The maps of one image and the logits of one batch of windows, however many there are."""
    ours = build('vpt_dense', head, dict(SLIDE, windows_per_batch=5)).eval()
    maps, logits, alive = [], [], []
    merge = EncoderDecoder._merge

    def living(references):
        return sum(not reference.expired() for reference in references)

    def watch(self, *args):
        total = merge(self, *args)
        maps.append(StorageWeakRef(total.untyped_storage()))
        alive.append(living(maps))
        return total

    def count(*_):
        alive.append(living(logits))

    monkeypatch.setattr(EncoderDecoder, '_merge', watch)
    ours.decode_head.conv_seg.register_forward_pre_hook(count)
    ours.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: logits.append(StorageWeakRef(out.untyped_storage())))
    SegTTAModel(module=ours).test_step(versions((45, 71), [(45, 71)] * 6))
    assert len(maps) == 12 and len(logits) == math.ceil(12 * 2 * 3 / 5)
    assert max(alive) == 1 and alive.count(0) == len(logits)


@torch.no_grad()
def test_images_of_a_batch_may_differ_in_size(mmseg_scope):
    ours = build('vpt_dense').eval()
    first, second = (versions(size, [size]) for size in ((32, 45), (40, 32)))
    both = {key: [a + b for a, b in zip(first[key], second[key], strict=True)] for key in first}
    model = SegTTAModel(module=ours)
    alone = [model.test_step(copy.deepcopy(data))[0] for data in (first, second)]
    for result, expected in zip(model.test_step(both), alone, strict=True):
        assert torch.equal(result.pred_sem_seg.data, expected.pred_sem_seg.data)


@torch.no_grad()
def test_one_channel_gets_its_sigmoid_once(mmseg_scope):
    ours = build('vpt_dense', num_classes=1).eval()
    ours.decode_head.threshold = 0.5
    probabilities, _ = SegTTAModel(module=ours).average(versions((32, 32), [(32, 32)]))
    data = versions((32, 32), [(32, 32)])
    each = [ours.test_step({key: value[i] for key, value in data.items()})[0].seg_logits.data
            for i in range(2)]
    torch.testing.assert_close(probabilities[0], (each[0] + each[1]) / 2)


# --- configs, mmseg's inferencers and errors -------------------------------------------------


@pytest.mark.parametrize('path', [path for path in RECIPES + LEAVES if '_imagefolder' not in path])
def test_configs_use_them(path):
    cfg = Config.fromfile(CONFIGS / path)
    if 'decode_head' in cfg.model:
        assert cfg.model.type in ('vpt_dense.EncoderDecoder', 'vpt_dense.CLIPSegmentor')
    if 'tta_model' in cfg:
        assert cfg.tta_model.type == 'vpt_dense.SegTTAModel'


@pytest.mark.parametrize('mode', ['slide', 'whole'])
def test_mmsegs_inferencers(mmseg_scope, tmp_path, mode):
    # With the loader of masks, as in every config: an image to predict has none.
    extra = (
        "test_pipeline = [_load, dict(type='vpt_dense.LoadMask'), dict(type='PackSegInputs')]\n"
        "test_dataloader['dataset']['pipeline'] = test_pipeline\n"
        f"model['test_cfg']['mode'] = '{mode}'")
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'), extra)
    picture = np.random.default_rng(0).integers(0, 255, (45, 71, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), picture)
    cfg = Config.fromfile(leaf)
    classes = [str(i) for i in range(150)]
    in_scope('mmseg')
    model = randomise(MODELS.build(copy.deepcopy(cfg.model)))
    meta = dict(dataset_meta=dict(classes=classes, palette=[[i, 0, 0] for i in range(150)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'a.pth')

    model = init_model(str(leaf), str(tmp_path / 'a.pth'), device='cpu')
    assert isinstance(model, EncoderDecoder) and model.test_cfg.mode == mode
    result = inference_model(model, picture)
    assert result.pred_sem_seg.data.shape == (1, 45, 71)
    inferencer = MMSegInferencer(model=str(leaf), weights=str(tmp_path / 'a.pth'), device='cpu')
    predictions = inferencer(str(tmp_path / 'a.png'))['predictions']
    np.testing.assert_array_equal(predictions, result.pred_sem_seg.data[0])
    assert len(np.unique(predictions)) > 1


@pytest.mark.parametrize(('changes', 'told'), [
    (dict(windows_per_batch=0), 'windows_per_batch must be an integer of at least 1, found 0'),
    (dict(windows_per_batch=2.0), 'windows_per_batch must be .* found 2.0'),
    (dict(windows_per_batch=True), 'windows_per_batch must be .* found True'),
    (dict(windows_per_batch='4', mode='whole'), "windows_per_batch must be .* found '4'"),
    (dict(window_per_batch=2), "no 'window_per_batch'; did you mean 'windows_per_batch'"),
    (dict(mode='slid'), "mode must be 'slide' or 'whole', found 'slid'"),
    (dict(crop_size=32), r'crop_size must be \(height, width\) .* found 32'),
    (dict(stride=None), r'stride must be \(height, width\) .* found None'),
    (dict(stride=(40, 21)), r'stride \(40, 21\) exceeds crop_size \(32, 32\)'),
])
def test_wrong_test_cfg_is_refused_when_built(mmseg_scope, changes, told):
    with pytest.raises(ValueError, match=told):
        build('vpt_dense', test_cfg={**SLIDE, **changes})


def test_wrong_test_cfg_is_one_line_in_the_tools(capfd, tmp_path):
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    done = run_tool(capfd, 'train', leaf, '--cfg-options', 'model.test_cfg.windows_per_batch=0')
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert 'model.test_cfg.windows_per_batch must be an integer of at least 1' in line


def test_augmented_testing_of_another_segmentor_is_refused(mmseg_scope):
    with pytest.raises(ValueError, match="needs a model of type 'vpt_dense.EncoderDecoder'"):
        SegTTAModel(module=build('mmseg'))


def test_a_flip_that_cannot_be_undone(mmseg_scope):
    ours = build('vpt_dense').eval()
    data = versions((32, 32), [(32, 32)])
    for samples in data['data_samples']:
        samples[0].set_metainfo(dict(flip=True, flip_direction='diagonal'))
    with pytest.raises(ValueError, match="'diagonal' cannot be undone"), torch.no_grad():
        SegTTAModel(module=ours).test_step(data)
