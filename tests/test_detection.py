"""Detection on mmdet: everything that its record promises, with tiny models on tiny images."""

import base64
import copy
import io
import json
import operator
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from detection_data import NAMES, make
from mmengine.registry import DATASETS, METRICS, MODELS
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import decode, frPyObjects
from tool_helpers import in_process, run_tool
from utils import CONFIGS, DETECTORS, ROOT, randomise

import vpt_dense
from vpt_dense import building, config, memory, tasks
from vpt_dense.checkpoints import deltas
from vpt_dense.comparison import runs
from vpt_dense.detection import settings
from vpt_dense.errors import UserError

RECIPE = """
_base_ = '{configs}/vpt/{name}_coco-folder.py'
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/data', classes=['green', 'red'])
img_size = {size}
batch_size = 2
iters = 2
_loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = _loader
val_dataloader = _loader
test_dataloader = _loader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=1, save_best=None))
"""
VIT = """
_tiny = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_tiny), patch_size=8, layer_scale_init_value=0.0,
        out_indices=[1], init_cfg=dict(_delete_=True, type='Pretrained',
                                       checkpoint='{folder}/base.pth')),
    neck=dict(in_channels=32, out_channels=16), {heads})
"""
ROI = """
    rpn_head=_narrow,
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16){mask}),
    test_cfg=dict(rcnn=dict(score_thr=0.0))"""
MASK = """,
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1)"""
STAGE = """dict(
    type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=16, roi_feat_size=7, num_classes=2,
    reg_class_agnostic=True, loss_cls=dict(type='CrossEntropyLoss'),
    loss_bbox=dict(type='SmoothL1Loss'), bbox_coder=dict(
        type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[{}] * 4))"""
ONE = """
    bbox_head=dict(stacked_convs=1, **_narrow), test_cfg=dict(score_thr=0.0)"""
HEADS = {
    'faster-rcnn_vit-s_dinov2': ROI.format(mask=''),
    'mask-rcnn_vit-s_dinov2': ROI.format(mask=MASK),
    'cascade-mask-rcnn_vit-s_dinov2': ROI.format(mask=MASK).replace(
        "bbox_head=dict(in_channels=16, fc_out_channels=16)", "bbox_head=_stages"),
    'retinanet_vit-s_dinov2': ONE,
    'dino_vit-s_dinov2': """
    num_queries=12, encoder=dict(num_layers=1, layer_cfg=dict(
        self_attn_cfg=_dim, ffn_cfg=dict(feedforward_channels=16, **_dim))),
    decoder=dict(num_layers=1, layer_cfg=dict(
        self_attn_cfg=_dim, cross_attn_cfg=_dim, ffn_cfg=dict(feedforward_channels=16, **_dim))),
    positional_encoding=dict(num_feats=8), bbox_head=dict(embed_dims=16),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=4)), test_cfg=dict(max_per_img=12)""",
    'mask2former_vit-s_dinov2': """
    panoptic_head=dict(
        in_channels=[16] * 4, feat_channels=16, out_channels=16, num_queries=12,
        positional_encoding=dict(num_feats=8),
        pixel_decoder=dict(
            norm_cfg=dict(num_groups=4), positional_encoding=dict(num_feats=8),
            encoder=dict(num_layers=1, layer_cfg=dict(
                self_attn_cfg=_dim, ffn_cfg=dict(feedforward_channels=16, **_dim)))),
        transformer_decoder=dict(num_layers=1, layer_cfg=dict(
            self_attn_cfg=_dim, cross_attn_cfg=_dim,
            ffn_cfg=dict(feedforward_channels=16, **_dim)))),
    train_cfg=dict(num_points=64), test_cfg=dict(max_per_image=12)""",
    'atss_vit-s_dinov2': ONE.replace('bbox_head=dict(', "bbox_head=dict(norm_cfg=None, "),
}


def write(folder, name='faster-rcnn_vit-s_dinov2', size=64, extra=''):
    path, heads = folder / f'{name}.py', HEADS[name]
    widths = {
        '_narrow': 'dict(in_channels=16, feat_channels=16)', '_dim': 'dict(embed_dims=16)',
        '_stages': '[' + ','.join(map(STAGE.format, (0.1, 0.05, 0.03))) + ']'}
    path.write_text(
        RECIPE.format(configs=CONFIGS, name=name, folder=folder, size=size)
        + ''.join(f'{key} = {value}\n' for key, value in widths.items() if key in heads)
        + VIT.format(folder=folder, heads=heads) + extra)
    return path


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('detection')
    make(folder / 'data')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    base = randomise(MODELS.build(dict(
        type='vpt_dense.VisionTransformer', img_size=64, patch_size=8, arch=arch)))
    torch.save(base.state_dict(), folder / 'base.pth')
    return folder


@pytest.fixture(scope='module')
def recipe(folder):
    return write(folder)


@pytest.fixture(scope='module')
def trained(recipe, folder):
    """A run that was tested, with its predictions; random heads, so that there are some."""
    cfg = config.load(str(recipe), None, 'deep')
    model = building.build_model(cfg)
    model.init_weights()
    torch.manual_seed(0)
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'model.pth')
    return folder / 'model.pth'


# --- the pyramid and what follows it -----------------------------------------------------------


def test_pyramid_is_its_formula():
    """Each level by plain functions from the weights."""
    f = torch.nn.functional
    neck = randomise(MODELS.build(dict(
        type='vpt_dense.SimpleFeaturePyramid', in_channels=8, out_channels=6, num_outs=6)))
    neck.double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64, generator=torch.manual_seed(0))
    outs = neck((None, x))
    assert [tuple(out.shape[1:]) for out in outs] == [
        (6, 20, 24), (6, 10, 12), (6, 5, 6), (6, 2, 3), (6, 1, 2), (6, 1, 1)]
    weights = dict(neck.named_parameters())

    def norm(y, name):
        mean = y.mean(dim=1, keepdim=True)
        var = (y - mean).square().mean(dim=1, keepdim=True)
        scale, shift = (weights[f'{name}.{key}'][None, :, None, None] for key in ('weight', 'bias'))
        return (y - mean) / torch.sqrt(var + 1e-6) * scale + shift

    def up(y, name):
        return f.conv_transpose2d(y, weights[f'{name}.weight'], weights[f'{name}.bias'], stride=2)

    def out(y, level, first):
        for i, padding in ((first, 0), (first + 2, 1)):
            y = f.conv2d(y, weights[f'levels.{level}.{i}.weight'], padding=padding)
            y = norm(y, f'levels.{level}.{i + 1}')
        return y

    four = up(f.gelu(norm(up(x, 'levels.0.0'), 'levels.0.1')), 'levels.0.3')
    wanted = [out(four, 0, 4), out(up(x, 'levels.1.0'), 1, 1), out(x, 2, 0),
              out(f.max_pool2d(x, 2), 3, 1)]
    wanted += [wanted[3][:, :, ::2, ::2], wanted[3][:, :, ::4, ::4]]
    for own, right in zip(outs, wanted, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(scales=(1, 2)), 'scales must be some of'), (dict(scales=()), 'scales must be some of'),
    (dict(scales=(8, 4)), 'scales must be some of'), (dict(num_outs=3), 'num_outs'),
    (dict(in_channels=0), 'in_channels')])
def test_pyramid_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build({'type': 'vpt_dense.SimpleFeaturePyramid', 'in_channels': 8, **arguments})


def test_pyramid_takes_maps_alone():
    neck = MODELS.build(dict(type='vpt_dense.SimpleFeaturePyramid', in_channels=8))
    with pytest.raises(ValueError, match=r"set model\.backbone\.out_type='featmap'"):
        neck((torch.zeros(2, 8),))


def test_strides():
    assert settings.strides(14, (4, 2, 1, 0.5), 5) == [3.5, 7, 14, 28, 56]
    assert settings.strides(16, (2, 1, 0.5), 5) == [8, 16, 32, 64, 128]
    assert settings.strides(16, (4, 2, 1, 0.5), None) == [4, 8, 16, 32, 64]


@pytest.mark.parametrize('patch', [8, 14, 16])
def test_strides_and_padding_follow_the_patches(recipe, patch):
    cfg = config.load(str(recipe), {
        'model.backbone.patch_size': patch, 'img_size': patch * 8}, 'head')
    levels = settings.strides(patch, (4, 2, 1, 0.5), 5)
    assert cfg.model.rpn_head.anchor_generator.strides == levels
    assert cfg.model.roi_head.bbox_roi_extractor.featmap_strides == levels[:4]
    assert cfg.model.data_preprocessor.pad_size_divisor == 2 * patch
    model = building.build_model(cfg).eval()
    image = torch.zeros(1, 3, 6 * patch, 8 * patch)
    maps = model.extract_feat(image)
    for stride, each in zip(levels, maps, strict=True):
        assert abs(each.shape[2] * stride - 6 * patch) < stride  # whole places, or one more


@pytest.mark.parametrize(('option', 'message'), [
    ('model.rpn_head.anchor_generator.strides=[4,8,16,32,64]',
     r'model.rpn_head.anchor_generator.strides is [4, 8, 16, 32, 64], but patches of 8 pixels'),
    ('model.roi_head.bbox_roi_extractor.featmap_strides=[4,8]',
     'featmap_strides is [4, 8], but patches of 8 pixels'),
    ('model.data_preprocessor.pad_size_divisor=4',
     'model.data_preprocessor.pad_size_divisor is 4, and patches have 8 pixels'),
    ('val_evaluator.ann_file=other.json',
     'val_evaluator.ann_file is other.json, but val_dataloader.dataset reads'),
    ('dataset.classes=[green,pink]', "has no category 'pink', which dataset.classes names"),
    ('train_dataloader.dataset.ann_file=gone.json', 'data of train: no file'),
    ('dataset.data_prefix.img=gone', 'data of train: no folder'),
    ('dataset.data_root=gone', 'data of train: no folder gone'),
    ('val_evaluator.metric=[bbox,segm]', "metric 'segm' needs masks, and the model gives none"),
    ('val_evaluator.metric=map', "metric is 'bbox', 'segm' or both, not 'map'"),
    ('img_size=60', 'img_size (60, 60) is not a multiple of model.backbone.patch_size 8'),
    ('model.neck.scales=[1,2]', 'scales must be some of'),
])
def test_what_contradicts_is_one_line(recipe, capfd, option, message):
    told = run_tool(capfd, 'train', recipe, '--method', 'head', '--cfg-options', option)
    assert told.code == 2 and message in told.err, told.err
    assert told.err.count('\n') == 1


def test_strides_that_are_right_may_be_said(recipe):
    config.load(str(recipe), {
        'model.rpn_head.anchor_generator.strides': [2, 4, 8, 16, 32],
        'model.roi_head.bbox_roi_extractor.featmap_strides': [2, 4]}, 'head')


# --- data ------------------------------------------------------------------------------------


def dataset(folder, **kwargs):
    return DATASETS.build(dict(
        type='vpt_dense.CocoFolder', data_root=str(folder / 'data'), ann_file='train.json',
        pipeline=[], **kwargs))


def test_labels_are_those_of_the_names(folder):
    """Also in another order than the JSON's; each box is of the colour that its label says."""
    for names in (NAMES, NAMES[::-1]):
        data = dataset(folder, metainfo=dict(classes=names))
        assert len(data) == 6 and data.cat_ids == [dict(green=5, red=2)[name] for name in names]
        boxes = 0
        for index in range(6):
            info = data.get_data_info(index)
            pixels = np.asarray(Image.open(info['img_path']))
            # The last one lies above the others.
            for instance in info['instances'][-1:]:
                x1, y1, x2, y2 = (int(side) for side in instance['bbox'])
                colour = pixels[y1:y2, x1:x2].reshape(-1, 3).mean(0)
                assert names[instance['bbox_label']] == ('green' if colour[1] > 99 else 'red')
                boxes += 1
        assert boxes == 5  # one image has none, and stays


def test_classes_may_be_left_out(recipe, folder):
    text = recipe.read_text().replace(", classes=['green', 'red']", '')
    (folder / 'bare.py').write_text(text)
    cfg = config.load(str(folder / 'bare.py'), None, 'head')
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.train_dataloader.dataset.metainfo.classes == ['red', 'blue', 'green']
    assert 'num_classes' not in cfg.model.rpn_head


@pytest.mark.parametrize(('annotation', 'message'), [
    (dict(category_id=77), 'annotation of an unknown category: annotation 1: category_id 77'),
    (dict(image_id=0), 'annotation of an image that is not there: annotation 1: image_id 0'),
    (dict(bbox=[1, 2]), 'box that is no [x, y, width, height]: annotation 1: [1, 2]'),
    (dict(segmentation=dict(size=[48, 64], counts='~')), 'mask that cannot be read: annotation 1'),
])
def test_a_broken_annotation_ends_a_run_in_one_line(
    recipe, folder, capfd, tmp_path, annotation, message
):
    content = json.loads((folder / 'data/train.json').read_text())
    content['annotations'][0].update(annotation)
    broken = tmp_path / 'broken.json'
    broken.write_text(json.dumps(content))
    option = f'train_dataloader.dataset.ann_file={broken}'
    for tool, code in (('train', 2), ('check_dataset', 1)):
        told = run_tool(capfd, tool, recipe, '--method', 'head', '--cfg-options', option)
        assert told.code == code and message in told.out + told.err, told
    assert told.out.count(message) == 1


def test_boxes_that_mmdet_leaves_out_are_told_of(recipe, folder, capfd, tmp_path):
    content = json.loads((folder / 'data/train.json').read_text())
    content['annotations'][1]['bbox'] = [1, 1, 0, 5]
    (tmp_path / 'empty.json').write_text(json.dumps(content))
    told = run_tool(
        capfd, 'train', recipe, '--method', 'head', '--work-dir', tmp_path / 'w', '--cfg-options',
        f'train_dataloader.dataset.ann_file={tmp_path / "empty.json"}', 'iters=1')
    assert told.code == 0, told.err
    assert '1 annotations are left out, their boxes are empty or outside' in told.out + told.err


def test_frames_of_a_report():
    """Frames lie where the boxes are, in the size that is shown, and masks are filled."""
    from mmengine.structures import InstanceData

    from vpt_dense.report import samples

    sample = type('Sample', (dict,), {})(
        gt_instances=InstanceData(
            bboxes=torch.tensor([[64.0, 128, 320, 384]]), labels=torch.tensor([1])),
        pred_instances=InstanceData(
            bboxes=torch.tensor([[0.0, 0, 640, 480], [64, 128, 320, 384]]),
            labels=torch.tensor([0, 1]), scores=torch.tensor([0.2, 0.9]),
            masks=torch.nn.functional.pad(torch.ones(2, 256, 256), (64, 320, 128, 96)).bool()))
    sample.metainfo = dict(ori_shape=(480, 640))
    told = samples.detection(sample, dict(classes=NAMES, palette=[(9, 9, 9), (0, 0, 255)]), None)
    assert told['labels'] == [1] and told['size'] == (480, 640) and told['IoU'] is None
    for key in ('truth', 'prediction'):
        content = base64.b64decode(told[key].partition(',')[2])
        pixels = np.asarray(Image.open(io.BytesIO(content)).convert('RGBA'))
        assert pixels.shape == (240, 320, 4)
        drawn = pixels[..., 3] > 0
        rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
        assert abs(rows[0] - 64) <= 1 and abs(rows[-1] - 191) <= 1
        assert abs(columns[0] - 32) <= 1 and abs(columns[-1] - 159) <= 1
        assert (pixels[drawn][:, :3] == (0, 0, 255)).all()
        assert drawn[128, 96] == (key == 'prediction')  # the mask


# --- the metric ------------------------------------------------------------------------------


def judged(folder, rows, kind='bbox', ids=None):
    """What pycocotools says of results, by its own call."""
    truth = COCO(str(folder / 'data/val.json'))
    found = COCOeval(truth, truth.loadRes(copy.deepcopy(rows)), kind)
    found.params.catIds = [5, 2]  # green, red
    found.evaluate()
    found.accumulate()
    found.summarize()
    return found.stats


def noisy(folder, seed=0):
    """Predictions near the truth of the validation images, as mmdet's models give them."""
    content, rng = json.loads((folder / 'data/val.json').read_text()), np.random.default_rng(seed)
    samples = []
    for image in content['images']:
        own = [a for a in content['annotations'] if a['image_id'] == image['id']]
        boxes, labels, masks = [], [], []
        for annotation in own * 2:
            x, y, w, h = annotation['bbox']
            box = np.array([x, y, x + w, y + h]) + rng.normal(0, 1.5, 4)
            mask = np.zeros((48, 64), bool)
            left, top, right, bottom = box.round().astype(int).clip(0)
            mask[top:bottom, left:right] = True
            boxes.append(box)
            masks.append(mask)
            labels.append((5, 2).index(annotation['category_id']) ^ (rng.random() < 0.2))
        number = len(boxes)
        samples.append(dict(
            img_id=image['id'], ori_shape=(48, 64), pred_instances=dict(
                bboxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
                scores=torch.tensor(rng.random(number)), labels=torch.tensor(labels).long(),
                masks=torch.tensor(np.array(masks).reshape(-1, 48, 64)))))
    return samples


def test_ap_is_that_of_pycocotools(folder, tmp_path):
    metric = METRICS.build(dict(
        type='vpt_dense.CocoMetric', ann_file=str(folder / 'data/val.json'),
        metric=['bbox', 'segm'], outfile_prefix=str(tmp_path / 'found')))
    metric.dataset_meta = dict(classes=NAMES)
    metric.process({}, noisy(folder))
    figures = metric.evaluate(6)
    rows = json.loads((tmp_path / 'found.bbox.json').read_text())
    masks = json.loads((tmp_path / 'found.segm.json').read_text())
    assert len(rows) == len(masks) == 30
    for kind, found in (('bbox', rows), ('segm', [
            {k: v for k, v in row.items() if k != 'bbox'} for row in masks])):
        stats = judged(folder, found, kind)
        for name, place in (('mAP', 0), ('mAP_50', 1), ('mAP_75', 2), ('mAP_s', 3)):
            assert abs(figures[f'coco/{kind}_{name}'] - 100 * stats[place]) < 1e-7
        assert 5 < figures[f'coco/{kind}_mAP'] < 99 and f'coco/{kind}_mAP_l' not in figures
    by_class = {row['class']: row['coco/bbox_AP'] for row in metric.per_class}
    assert list(by_class) == list(NAMES)
    assert np.mean(list(by_class.values())) == pytest.approx(figures['coco/bbox_mAP'], abs=1e-9)


def test_nothing_found_is_zero_and_nothing_to_find_an_error(folder):
    empty = [dict(sample, pred_instances={
        key: value[:0] for key, value in sample['pred_instances'].items()})
        for sample in noisy(folder)]
    for classes in (NAMES, ['blue']):
        metric = METRICS.build(dict(
            type='vpt_dense.CocoMetric', ann_file=str(folder / 'data/val.json')))
        metric.dataset_meta = dict(classes=classes)
        metric.process({}, empty)
        if classes is NAMES:
            assert metric.evaluate(6)['coco/bbox_mAP'] == 0
        else:
            with pytest.raises(UserError, match='has no annotation of the classes blue'):
                metric.evaluate(6)


# --- the tools -------------------------------------------------------------------------------


@pytest.mark.parametrize('name', HEADS)
def test_recipes_train_and_are_tested(folder, capfd, name):
    recipe = write(folder, name)
    work = folder / f'work_{name}'
    trained = run_tool(capfd, 'train', recipe, '--method', 'deep', '--work-dir', work)
    assert trained.code == 0, trained.err
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['metric'] == 'coco/bbox_mAP' and summary['task'] == 'detection'
    parts = summary['params']['parts']
    assert parts['backbone']['trainable'] == 0 and parts['prompt']['trainable'] == 2 * 10 * 32
    assert ('coco/segm_mAP' in summary['last']['metrics']) == ('mask' in name)
    assert summary['backbone'] and 'neck' in parts
    pictures = json.loads((work / 'pictures_val.json').read_text())
    assert len(pictures['images']) == 6 and pictures['task'] == 'detection'
    for image in pictures['images']:
        assert (image['height'], image['width']) == (48, 64)
        assert image['truth'].startswith('data:image/png') and image['prediction']
    assert (work / 'report.html').read_text().count('data:image/png') >= 12
    tested = run_tool(
        capfd, 'test', recipe, work / 'iter_2.pth', '--method', 'deep', '--work-dir', work)
    assert tested.code == 0, tested.err
    measured = json.loads((work / 'test.json').read_text())['metrics']
    for key, value in summary['last']['metrics'].items():
        if key.startswith('coco/'):
            assert measured[key] == pytest.approx(value, abs=1e-9)


def test_what_a_test_finds_gives_its_figures(recipe, folder, trained, capfd, tmp_path):
    """Predictions of a run, stored as COCO's results, judged by pycocotools alone; and drawn."""
    out = tmp_path / 'found.json'
    told = run_tool(
        capfd, 'test', recipe, trained, '--method', 'deep', '--work-dir', tmp_path / 'w', '--out',
        out, '--show-dir', tmp_path / 'shown')
    assert told.code == 0, told.err
    rows = json.loads(out.read_text())
    assert len(rows) > 50 and {row['class'] for row in rows} <= set(NAMES)
    stats = judged(folder, rows)
    figures = json.loads((tmp_path / 'w/test.json').read_text())['metrics']
    assert abs(figures['coco/bbox_mAP'] - 100 * stats[0]) < 1e-7
    assert abs(figures['coco/bbox_mAP_50'] - 100 * stats[1]) < 1e-7
    shown = sorted(path.name for path in (tmp_path / 'shown').iterdir())
    assert shown == [f'val_{i}.png' for i in range(6)]


@pytest.mark.parametrize('name', ['faster-rcnn_vit-s_dinov2', 'mask-rcnn_vit-s_dinov2'])
def test_predictions_are_those_of_a_test(folder, capfd, tmp_path, name):
    recipe = write(folder, name)
    cfg = config.load(str(recipe), None, 'deep')
    model = building.build_model(cfg)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'm.pth')
    tested = run_tool(capfd, 'test', recipe, tmp_path / 'm.pth', '--method', 'deep', '--work-dir',
                      tmp_path / 'w', '--out', tmp_path / 'found.json')
    assert tested.code == 0, tested.err
    images = sorted(map(str, (folder / 'data/images').glob('val_*.png')))
    for again in ([], ['--skip-existing']):
        told = run_tool(capfd, 'predict', recipe, tmp_path / 'm.pth', *images, '--method', 'deep',
                        '--out', tmp_path / 'out', '--overlay', *again)
        assert told.code == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / 'out/predictions.jsonl').open()]
    assert [line['path'] for line in lines] == images
    rows = json.loads((tmp_path / 'found.json').read_text())
    for line in lines:
        own = [row for row in rows if row['file'] == line['path']]
        assert len(own) == len(line['boxes']) > 3
        key = operator.itemgetter('score')
        for mine, right in zip(line['boxes'], sorted(own, key=key, reverse=True), strict=True):
            assert mine['class'] == right['class']
            assert mine['score'] == pytest.approx(right['score'], abs=1e-5)
            assert mine['bbox'] == pytest.approx(right['bbox'], abs=0.02)
            assert ('segmentation' in mine) == name.startswith('mask')
        if name.startswith('mask'):
            pixels = [decode(frPyObjects(row['segmentation'], 48, 64)) for row in line['boxes']]
            wanted = [decode(row['segmentation']) for row in sorted(own, key=key, reverse=True)]
            assert all(np.array_equal(a, b) for a, b in zip(pixels, wanted, strict=True))
    summary = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (summary['predicted'], summary['existing']) == (0, 6)
    assert sum(summary['boxes_by_class'].values()) == len(rows)
    assert len(list((tmp_path / 'out/overlays').iterdir())) == 6
    predictor = vpt_dense.load(tmp_path / 'm.pth', recipe, method='deep')
    found = predictor.predict(images[0])
    assert found.boxes.shape == (len(lines[0]['boxes']), 4) and found.classes == NAMES


def test_validation_is_drawn_as_mmdets_hook_says_it(recipe, capfd, tmp_path):
    told = run_tool(
        capfd, 'train', recipe, '--method', 'head', '--work-dir', tmp_path / 'w', '--cfg-options',
        'default_hooks.visualization={type: DetVisualizationHook, draw: true, interval: 3, '
        f'test_out_dir: {tmp_path / "shown"}}}')
    assert told.code == 0, told.err
    shown = {path.name: sorted(p.name for p in path.iterdir())
             for path in (tmp_path / 'shown').iterdir()}
    assert shown == {f'val_{i}': ['val_0.png', 'val_3.png'] for i in (1, 2)}


def test_a_delta_gives_the_same_boxes(recipe, folder, trained, capfd, tmp_path):
    state = torch.load(trained)['state_dict']
    extracted = run_tool(
        capfd, 'delta', 'extract', trained, tmp_path / 'd.safetensors', '--config', recipe,
        '--method', 'deep')
    assert extracted.code == 0, extracted.err
    found = {}
    for name, checkpoint in (('whole', trained), ('delta', tmp_path / 'd.safetensors')):
        told = run_tool(
            capfd, 'test', recipe, checkpoint, '--method', 'deep', '--work-dir', tmp_path / name,
            '--out', tmp_path / f'{name}.json')
        assert told.code == 0, told.err
        found[name] = (tmp_path / f'{name}.json').read_text()
    assert found['whole'] == found['delta']
    kept = deltas.read(str(tmp_path / 'd.safetensors'))['state_dict']
    assert not any(name.startswith('backbone.layers') for name in kept)
    assert {name for name in state if name.startswith('roi_head')} <= set(kept)


def test_resumed_runs_end_alike(recipe, folder, capfd, tmp_path):
    options = ['--method', 'lora', '--cfg-options', 'train_cfg.val_interval=9',
               'default_hooks.checkpoint.max_keep_ckpts=-1']
    ends = []
    for name in ('whole', 'resumed'):
        work = tmp_path / name
        if name == 'resumed':
            for part in ('iter_1.pth',):
                work.mkdir()
                (work / part).write_bytes((tmp_path / 'whole' / part).read_bytes())
            options = [*options[:2], '--resume', str(work / 'iter_1.pth'), *options[2:]]
        told = run_tool(capfd, 'train', recipe, '--work-dir', work, *options)
        assert told.code == 0, told.err
        ends.append(torch.load(work / 'iter_2.pth', weights_only=False)['state_dict'])
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_methods_are_compared(recipe, folder, capfd, monkeypatch):
    monkeypatch.setattr(runs, 'call', in_process(capfd, []))
    out = folder / 'compared'
    told = run_tool(
        capfd, 'compare', recipe, '--methods', 'head', 'lora', '--work-dir', out, '--jobs', 1,
        '--amp', 'off', '--steps', 1)
    assert told.code == 0, told.err
    table = json.loads((out / 'table.json').read_text())
    assert table['metric'] == 'coco/bbox_mAP'
    assert [row['method'] for row in table['rows']] == ['head', 'lora']
    assert all(row['train_ms'] > 0 and row['test_ms'] > 0 for row in table['rows'])


def test_data_are_checked_and_browsed(recipe, folder, capfd, tmp_path):
    told = run_tool(capfd, 'check_dataset', recipe, '--json')
    report = json.loads(told.out)
    assert told.code == 0 and report['task'] == 'detection' and report['classes'] == list(NAMES)
    assert report['splits']['train']['boxes'] == 15
    assert run_tool(capfd, 'check_dataset', recipe, '--stats').code == 0
    told = run_tool(capfd, 'browse_dataset', recipe, '--out-dir', tmp_path / 'b', '--number', 3)
    assert told.code == 0, told.err
    assert len(list((tmp_path / 'b').iterdir())) == 3


def test_counted(recipe, capfd):
    told = run_tool(capfd, 'count_params', recipe, '--method', 'deep', '--json')
    (found,) = json.loads(told.out).values()
    assert found['parts']['prompt'] == dict(trainable=640, total=640)
    assert {'neck', 'proposal head', 'region heads'} <= set(found['parts'])


@pytest.mark.parametrize(('tool', 'options', 'message'), [
    ('test', ['--tta'], '--tta: the config has no tta_model'),
    ('test', ['--out', 'x'], '--out x: a detection writes one file; name it *.json'),
    ('predict', ['--out', 'x', '--tta'], '--tta: the config has no tta_model'),
    ('predict', ['--out', 'x', '--probabilities', 'npz'], '--probabilities is for segmentation'),
    ('export', ['--out', 'x.onnx', '--quantize', 'int8'], '--quantize int8 is for'),
    ('train', ['--cfg-options', 'ensemble.seeds=[0,1]'], 'ensemble'),
    ('count_params', ['--memory'], 'the memory of a training step of detection depends on what'),
])
def test_what_it_does_not_promise_is_refused(
    recipe, folder, trained, capfd, tmp_path, monkeypatch, tool, options, message
):
    monkeypatch.chdir(tmp_path)
    image = folder / 'data/images/val_0.png'
    arguments = dict(train=[], test=[trained], predict=[trained, image], export=[trained],
                     count_params=[])
    told = run_tool(capfd, tool, recipe, *arguments[tool], '--method', 'deep', *options)
    assert told.code == 2 and message in told.err, told.err
    assert told.err.count('\n') == 1


def test_every_name_of_the_record_exists():
    from mmengine.registry import HOOKS, VISUALIZERS

    task = tasks.TASKS['detection']
    for key in ('sample', 'check_sample', 'check_data', 'predict', 'writer'):
        assert callable(task.function(key, 'a test'))
    found = {HOOKS.get(task.store), HOOKS.get(task.drawing['type']),
             VISUALIZERS.get(task.visualizer['type'])}
    assert len(found) == 3 and None not in found


# --- configs ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name', DETECTORS)
def test_recipes_are_counted(name, capfd, tmp_path):
    """In their own sizes, without data or weights, and with the widths of another backbone."""
    options = ['dataset.data_root=none', 'dataset.classes=[a,b,c]']
    if 'swin' not in name:
        options += ['model.backbone.patch_size=16', 'img_size=512']
    told = run_tool(capfd, 'count_params', CONFIGS / name, '--method', 'deep', '--json',
                    '--cfg-options', *options)
    assert told.code == 0, told.err
    (found,) = json.loads(told.out).values()
    assert found['parts']['prompt']['trainable'] > 0
    trains = found['parts']['backbone']['trainable']
    assert trains == (2880 if 'swin' in name else 0)  # of Swin the norms of its outputs


def test_configs_of_the_page(tmp_path, capfd):
    """The second is of mmdet's own, with a backbone of ours."""
    page = (ROOT / 'docs/detection.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    assert len(blocks) == 2
    for i, block in enumerate(blocks):
        (tmp_path / f'{i}.py').write_text(block)
    cfg = config.load(str(tmp_path / '0.py'), None, 'lora')
    assert cfg.model.bbox_head.num_classes == 2
    cfg = config.load(str(tmp_path / '1.py'))
    assert cfg.model.bbox_head.anchor_generator.strides == [7, 14, 28, 56, 112]
    assert cfg.model.data_preprocessor.pad_size_divisor == 28
    told = run_tool(capfd, 'count_params', tmp_path / '1.py', '--json')
    (found,) = json.loads(told.out).values()
    assert found['parts']['prompt'] == dict(trainable=12 * 10 * 384, total=12 * 10 * 384)


@pytest.mark.parametrize('size', [(40, 72), (50, 30), (64, 64), (33, 65)])
def test_images_of_any_size(recipe, size):
    """Boxes come back in the pixels of the file, whatever was padded."""
    cfg = config.load(str(recipe), None, 'deep')
    torch.manual_seed(0)
    model = building.build_model(cfg)
    model.init_weights()
    sample = dict(img_id=0, img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0))
    from mmdet.structures import DetDataSample

    with torch.no_grad():
        (found,) = model.eval().test_step(dict(
            inputs=[torch.zeros(3, *size, dtype=torch.uint8)],
            data_samples=[DetDataSample(metainfo=sample)]))
    boxes = found.pred_instances.bboxes
    assert len(boxes) > 3 and boxes.min() >= 0
    assert boxes[:, ::2].max() <= size[1] and boxes[:, 1::2].max() <= size[0]
    assert found.pad_shape == tuple(-(-side // 16) * 16 for side in size)


@pytest.mark.parametrize('method', ['bias', 'adapter', 'ssf', 'shallow', 'full', 'last-4'])
def test_methods_of_every_kind(recipe, capfd, tmp_path, method):
    told = run_tool(
        capfd, 'train', recipe, '--method', method, '--work-dir', tmp_path / 'w', '--cfg-options',
        'iters=1', 'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None')
    if method == 'last-4':  # of two blocks
        assert told.code == 2 and told.err.count('\n') == 1
        return
    assert told.code == 0, told.err
    assert json.loads((tmp_path / 'w/params.json').read_text())['trainable'] > 0


STAGES = {
    'SwinTransformer': "arch=dict(embed_dims=16, depths=[1] * 4, num_heads=[1] * 4), "
                       "pad_small_map=True, out_indices=(0, 1, 2, 3)",
    'ConvNeXt': "arch=dict(depths=[1] * 4, channels=[16, 32, 64, 128]), out_indices=(0, 1, 2, 3), "
                'gap_before_final_norm=False',
    'ResNet': 'depth=18, base_channels=16, out_indices=(0, 1, 2, 3)',
}


@pytest.mark.parametrize('kind', STAGES)
def test_stages_through_mmdets_pyramid(kind, tmp_path):
    """A config of mmdet's with a backbone of stages; what is frozen gets no gradient."""
    channels = [16, 32, 64, 128]
    (tmp_path / 'own.py').write_text(f"""
_base_ = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(_delete_=True, type='vpt_dense.{kind}', {STAGES[kind]}, trainable=[r'norm']),
    neck=dict(in_channels={channels}, out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1),
    test_cfg=dict(score_thr=0.0))
dataset = dict(classes=['a', 'b'])
""")
    if kind == 'ResNet':
        text = (tmp_path / 'own.py').read_text().replace("trainable=[r'norm']", "trainable=[r'bn']")
        (tmp_path / 'own.py').write_text(text)
    cfg = config.load(str(tmp_path / 'own.py'))
    assert cfg.model.bbox_head.num_classes == 2
    model = building.build_model(cfg)
    sample = memory.synthetic_batch(cfg, 2, (96, 64))
    losses, _ = model.parse_losses(
        model(**model.data_preprocessor(sample, True), mode='loss'))
    losses.backward()
    trains = {name for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert trains and all('norm' in name or 'bn' in name for name in trains)
    with torch.no_grad():
        found = model.eval().test_step(memory.synthetic_batch(cfg, 2, (96, 64)))
    assert all(len(each.pred_instances.bboxes) for each in found)


@pytest.mark.slow
def test_two_processes_find_the_same(recipe, trained, folder, tmp_path):
    """Six images on two processes: the same boxes in the same order, the same figures."""
    found = []
    for number in (1, 2):
        out, work = tmp_path / f'{number}.json', tmp_path / f'w{number}'
        command = ['-m', 'vpt_dense', 'test', recipe, trained, '--method', 'deep', '--work-dir',
                   work, '--out', out]
        if number == 2:
            command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2,
                       *command, '--launcher', 'pytorch']
        subprocess.run([sys.executable, *map(str, command)], check=True, cwd=tmp_path)
        found.append((out.read_text(), json.loads((work / 'test.json').read_text())['metrics']))
    assert found[0] == found[1]
