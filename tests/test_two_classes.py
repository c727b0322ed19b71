"""One class, two classes with one channel, and masks of 0 and 255."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, images, in_scope

from vpt_dense import config, preflight
from vpt_dense.datasets import checks
from vpt_dense.errors import UserError

BINARY = CONFIGS / 'examples/foreground_background.py'
DATA = """
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{root}', {more})
_load = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask')]
_pack = dict(type='PackSegInputs')
train_dataloader['dataset'] = dict(
    pipeline=[*_load, dict(type='RandomCrop', crop_size=(32, 32)), _pack])
val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[*_load, _pack])
"""
ONE_CHANNEL = """
_binary = dict(out_channels=1, threshold=0.5, loss_decode=dict(use_sigmoid=True))
model['decode_head'].update(_binary)
model['auxiliary_head'][0].update(_binary, type='vpt_dense.SETRUPHead', loss_decode=dict(
    type='CrossEntropyLoss', use_sigmoid=True))
"""


def make(root: Path, foreground: int) -> Path:
    """Images whose bright half is the object, labelled with ``foreground``, the rest with 0."""
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(2):
            mask = np.kron(rng.random((4, 4)) < 0.3, np.ones((8, 8))).astype(np.uint8)
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), mask * foreground)
            cv2.imwrite(str(root / f'images/{split}/{i}.png'), mask * 200 + 20)
    return root


# --- one class -------------------------------------------------------------------------------


def test_one_class_is_refused(tmp_path, capfd):
    root = make(tmp_path / 'data', 1)
    leaf = write_leaf(tmp_path, root, DATA.format(root=root, more="classes=['crack']"))
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert "dataset.classes=['background', 'crack']" in outcome.err
    assert 'configs/examples/foreground_background.py' in outcome.err


def test_one_class_of_a_classifier_is_refused():
    options = {'dataset.classes': ['rose']}
    cfg = config.load(str(CONFIGS / 'vpt/vit-b_deep_imagefolder.py'), options)
    with pytest.raises(UserError, match=r"model.head.num_classes is 1 \('rose'\): the softmax"):
        preflight.check_heads(cfg)
    cfg.model.head.update(type='MultiLabelLinearClsHead')
    preflight.check_heads(cfg)


@pytest.mark.parametrize(
    'options, line',
    [
        ({'model.decode_head.loss_decode.use_sigmoid': False},
         r'decode_head.out_channels is 1, but its loss_decode is a softmax'),
        ({'dataset.classes': ['a', 'b', 'c']}, r'out_channels is 1, but its num_classes is 3'),
        ({'model.auxiliary_head.1.loss_decode.use_sigmoid': False}, r'auxiliary_head.1.out_chan'),
    ],
)
def test_one_channel_needs_two_classes_and_a_sigmoid(options, line):
    preflight.check_heads(config.load(str(BINARY)))
    with pytest.raises(UserError, match=line):
        preflight.check_heads(config.load(str(BINARY), options))


# --- one channel -----------------------------------------------------------------------------


def test_the_ready_config():
    cfg = config.load(str(BINARY))
    heads = config.heads(cfg.model)
    assert len(heads) == 4
    for head in heads:
        assert (head.num_classes, head.out_channels, head.threshold) == (2, 1, 0.5)
        assert head.loss_decode.use_sigmoid
    assert [head.loss_decode.loss_weight for head in heads] == [1.0, 0.4, 0.4, 0.4]


@pytest.mark.parametrize('threshold', [0.3, 0.5, 0.8])
def test_accuracy_of_one_channel(mmseg_scope, threshold):
    head = MODELS.build(dict(
        type='vpt_dense.FCNHead', in_channels=4, channels=4, num_classes=2, out_channels=1,
        threshold=threshold, num_convs=0, concat_input=False, kernel_size=1, dropout_ratio=0,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)))  # fmt: skip
    head.conv_seg.weight.data *= 100
    features = images(2, 4, 8, 8)
    labels = (images(2, 1, 8, 8, seed=1) > 0).long()
    labels[:, :, :2] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=each)) for each in labels]
    losses = head.loss((features,) * 4, samples, {})
    predicted = head((features,) * 4).sigmoid() > threshold
    valid = labels != 255
    expected = (predicted == labels)[valid].float().mean() * 100
    torch.testing.assert_close(losses['acc_seg'], expected.reshape(1))
    assert 0 < predicted.float().mean() < 1


def test_a_batch_without_labels_has_no_loss(mmseg_scope):
    head = MODELS.build(dict(
        type='vpt_dense.FCNHead', in_channels=4, channels=4, num_classes=2, out_channels=1,
        threshold=0.5, num_convs=0, concat_input=False, kernel_size=1, dropout_ratio=0,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)))  # fmt: skip
    samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.full((1, 8, 8), 255)))]
    losses = head.loss((images(1, 4, 8, 8),) * 4, samples, {})
    losses['loss_ce'].backward()
    assert losses['loss_ce'] == 0 and not head.conv_seg.weight.grad.any()


@pytest.mark.slow
def test_one_channel_learns_and_scores(tmp_path, capfd):
    root = make(tmp_path / 'data', 255)
    more = "classes=['background', 'crack'], label_map={255: 1}"
    text = DATA.format(root=root, more=more) + ONE_CHANNEL + f"""
train_cfg = dict(max_iters=60, val_interval=60)
optim_wrapper = dict(optimizer=dict(lr=0.01))
test_evaluator = dict(output_dir='{tmp_path}/out')
"""
    leaf = write_leaf(tmp_path, root, text)
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 0, outcome.err
    log = next((tmp_path / 'work').glob('*/vis_data/scalars.json')).read_text().splitlines()
    lines = [json.loads(line) for line in log]
    accuracy = [line['decode.acc_seg'] for line in lines if 'decode.acc_seg' in line]
    outcome = run_tool(capfd, 'test', leaf, tmp_path / 'work/iter_60.pth')
    assert outcome.code == 0, outcome.err
    results = json.loads((tmp_path / 'work/test.json').read_text())
    both = []
    for path in sorted((tmp_path / 'out').iterdir()):
        mask = cv2.imread(str(root / 'annotations/validation' / path.name), 0) > 0
        both.append((cv2.imread(str(path), 0) > 0, mask))
    found, labels = (np.concatenate(each) for each in zip(*both, strict=True))
    assert results['metrics']['aAcc'] == pytest.approx((found == labels).mean() * 100, abs=0.01)
    iou = [100 * ((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum()
           for c in (False, True)]  # fmt: skip
    assert [row['IoU'] for row in results['per_class']] == pytest.approx(iou, abs=0.01)
    assert accuracy[-1] > 90 and results['metrics']['aAcc'] > 90


# --- 0 and 255 -------------------------------------------------------------------------------


def test_the_check_asks(tmp_path):
    in_scope('mmseg')
    root = make(tmp_path / 'data', 255)
    leaf = write_leaf(tmp_path, root, DATA.format(root=root, more="classes=['x', 'y']"))
    report = checks.check_config(config.load(str(leaf)))
    assert not report['ok']
    assert report['splits']['train']['problems'] == [checks.TWO_LABELS]
    assert 'is 255 your second class?' in checks.TWO_LABELS
    folder = checks.check_folder(root)
    assert folder['splits']['training']['warnings'] == [checks.TWO_LABELS]


@pytest.mark.slow
@pytest.mark.parametrize('wrapped', [False, True])
def test_a_run_asks(tmp_path, capfd, wrapped):
    root = make(tmp_path / 'data', 255)
    text = DATA.format(root=root, more="classes=['x', 'y']")
    if wrapped:
        text += """
_part = dict(train_dataloader['dataset'],
             data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
train_dataloader['dataset'] = dict(
    _delete_=True, type='ConcatDataset', datasets=[_part, dict(
        type='RepeatDataset', times=2, dataset=_part)])
"""
    leaf = write_leaf(tmp_path, root, text)
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 2
    assert 'is 255 your second class? Then say dataset.label_map={255: 1}' in outcome.err
    # What it says to do does it; also in the file that the run has written.
    option = 'dataset.label_map={255: 1}'
    outcome = run_tool(capfd, 'train', leaf, '--cfg-options', option)
    assert outcome.code == 0, outcome.err
    cfg = config.load(str(tmp_path / 'work/leaf.py'))
    in_scope('mmseg')
    report = checks.check_config(cfg)
    assert report['ok'] and report['splits']['val']['labels'] == [0, 255]
    assert not report['splits']['val']['ignored_share']


def test_masks_with_another_id_are_not_asked_about(tmp_path, capfd):
    root = make(tmp_path / 'data', 255)
    mask = cv2.imread(str(root / 'annotations/training/1.png'), 0)
    mask[-1, -1] = 1
    cv2.imwrite(str(root / 'annotations/training/1.png'), mask)
    leaf = write_leaf(tmp_path, root, DATA.format(root=root, more="classes=['x', 'y']"))
    assert run_tool(capfd, 'train', leaf).code == 0


def test_one_class_that_is_left_is_refused(tmp_path, capfd):
    """Masks of 0 and 1, of which reduce_zero_label leaves 1 alone."""
    root = make(tmp_path / 'data', 1)
    more = "classes=['x', 'y'], reduce_zero_label=True"
    leaf = write_leaf(tmp_path, root, DATA.format(root=root, more=more))
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 2
    assert 'reduce_zero_label leaves 0 out: one class is left' in outcome.err
    in_scope('mmseg')
    report = checks.check_config(config.load(str(leaf)))
    assert checks.ONE_LABEL in report['splits']['train']['warnings']


@pytest.mark.parametrize('value', [{'a': 1}, {300: 1}, {1: -1}, [1, 2], {1: None}])
def test_a_wrong_label_map(tmp_path, value):
    make(tmp_path, 1)
    in_scope('mmseg')
    from vpt_dense.datasets.seg_folder import SegFolder

    with pytest.raises(UserError, match='dataset.label_map must be a dict of labels from 0 to 255'):
        SegFolder(metainfo=dict(classes=['a', 'b']), data_root=str(tmp_path), label_map=value)
