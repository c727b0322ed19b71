"""Panoptic segmentation on mmdet: quality, data, heads, and runs with tiny models."""

import itertools
import json

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS
from mmengine.structures import InstanceData, PixelData
from panoptic_data import NAMES, make
from PIL import Image
from tool_helpers import run_tool
from utils import CONFIGS, in_scope, randomise

import vpt_dense
from vpt_dense import building, config, segments, tasks
from vpt_dense.datasets import panoptic
from vpt_dense.detection.panoptic_metric import count
from vpt_dense.errors import UserError
from vpt_dense.heads import query_masks

RECIPE = """
_base_ = '{configs}/vpt/{name}_vit-s_dinov2_panoptic-folder.py'
work_dir = '{folder}/work-{name}'
dataset = dict(data_root='{folder}/data', classes={names})
img_size = 64
batch_size = 2
iters = 2
_loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = _loader
val_dataloader = _loader
test_dataloader = _loader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
_tiny = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
{extra}
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_tiny), patch_size=8, layer_scale_init_value=0.0,
        out_indices={indices}, init_cfg=dict(_delete_=True, type='Pretrained',
                                             checkpoint='{folder}/base.pth')),
    {head},
    test_cfg=dict(object_mask_thr=0.0, iou_thr=0.0))
"""
QUERIES = 'panoptic_head=dict(num_queries=12, num_blocks=2, num_points=64, {})'
KINDS = {
    'eomt': dict(indices=[3], head=QUERIES.format('in_channels=32')),
    'pmd': dict(indices=[0, 1, 2, 3], head=QUERIES.format(
        'in_channels=[32] * 4, num_heads=2, hidden_dims=32')),
    'mask2former': dict(indices=[3], extra='_dim = dict(embed_dims=16)', head="""
    neck=dict(in_channels=32, out_channels=16),
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
    train_cfg=dict(num_points=64)"""),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('panoptic')
    make(folder / 'data')
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
    base = randomise(MODELS.build(dict(
        type='vpt_dense.VisionTransformer', img_size=64, patch_size=8, arch=arch)))
    torch.save(base.state_dict(), folder / 'base.pth')
    for name, further in KINDS.items():
        (folder / f'{name}.py').write_text(RECIPE.format(
            configs=CONFIGS, name=name, folder=folder, names=list(NAMES),
            **{'extra': '', **further}))
    return folder


def model_of(folder, name, method='deep', **options):
    torch.manual_seed(0)
    model = building.build_model(config.load(str(folder / f'{name}.py'), options, method))
    model.init_weights()
    return model


# --- panoptic quality ------------------------------------------------------------------------


def quality(pairs, number):
    """PQ, SQ, RQ of each class by the definition, pixel sets and plain loops; NaN: not there.

    Args:
        pairs: Of each image truth (ids, {id: (label, crowd)}) and prediction (label, pixels).
        number: Of classes.
    """
    figures = np.zeros((number, 4))
    for (ids, rows), found in pairs:
        void = {tuple(at) for at in np.argwhere(ids == 0)}
        true, crowds = [], {}
        for i, (label, is_crowd) in rows.items():
            pixels = {tuple(at) for at in np.argwhere(ids == i)}
            if label is None:
                void |= pixels
            elif is_crowd:
                crowds.setdefault(label, set()).update(pixels)
            else:
                true.append((label, pixels))
        for label in range(number):
            own = [pixels for kind, pixels in true if kind == label]
            seen = [pixels for kind, pixels in found if kind == label]
            overlaps = [(len(a & b) / len(a | (b - void)), i, k) for (i, a), (k, b) in
                        itertools.product(enumerate(own), enumerate(seen))]
            hits = [each for each in overlaps if each[0] > 0.5]
            left = set(range(len(seen))) - {k for _, _, k in hits}
            extra = [k for k in left if
                     len(seen[k] & (void | crowds.get(label, set()))) <= len(seen[k]) / 2]
            figures[label] += (
                sum(each[0] for each in hits), len(hits), len(extra), len(own) - len(hits))
    overlap, hits, extra, missed = figures.T
    with np.errstate(all='ignore'):
        total = hits + extra / 2 + missed / 2
        return figures, np.stack([
            overlap / total, np.where(hits > 0, overlap / hits, 0.0 * total / total),
            hits / total], 1)


def drawn(seed, number=4):
    """A truth with void, a class that does not count and crowds, and a prediction near it."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((24, 30), np.int64)
    rows, found = {}, np.full((24, 30), number)
    for i in range(1, 10):
        y, x = rng.integers(0, (18, 22))
        h, w = rng.integers(3, 12, 2)
        label = int(rng.integers(number))
        ids[y : y + h, x : x + w] = 70000 * i
        rows[70000 * i] = (None if i == 4 else label, i in (5, 6) and label < 2)
        dy, dx = rng.integers(-1, 2, 2)
        kind = label if rng.random() < 0.85 else int(rng.integers(number))
        number_of = i if kind < 2 else 0
        found[max(0, y + dy) : y + dy + h, max(0, x + dx) : x + dx + w] = kind + 1000 * number_of
    rows = {i: row for i, row in rows.items() if (ids == i).any()}
    return ids, rows, found


def test_counts_are_those_of_the_definition():
    """With void, crowds and a class that does not count."""
    totals = np.zeros(4)
    for seed in range(8):
        ids, rows, found = drawn(seed)
        parts = [(int(key) % 1000, {tuple(at) for at in np.argwhere(found == key)})
                 for key in np.unique(found) if key % 1000 < 4]
        wanted, _ = quality([((ids, rows), parts)], 4)
        own = count(ids, rows, found, 4)
        np.testing.assert_allclose(own, wanted, rtol=0, atol=1e-12)
        totals += own.sum(0)
    assert (totals > 5).all()  # each of them occurred


def test_crowds_and_void_excuse():
    """What lies in them is no false positive, and half of it is not enough."""
    ids = np.zeros((4, 8), np.int64)
    ids[:, 4:] = 5
    for columns, extra in ((4, 0), (8, 1), (7, 0)):  # all void; half of it; a crowd beside
        found = np.full((4, 8), 2)
        found[:, :columns] = 1000
        rows = {5: (0, True)} if columns == 7 else {5: (1, False)}
        assert count(ids, rows, found, 2)[0, 2] == extra


def metric_of(folder, split='val'):
    metric = METRICS.build(dict(
        type='vpt_dense.PanopticMetric', ann_file=str(folder / f'data/{split}.json'),
        seg_prefix=str(folder / 'data/panoptic')))
    metric.dataset_meta = dict(classes=NAMES, thing_classes=NAMES[:2])
    return metric


def noisy(folder, seed=0):
    """The truth of the validation images, moved by a few pixels, as mmdet's models give it."""
    found, rng = panoptic.read(folder / 'data/val.json'), np.random.default_rng(seed)
    labels, samples, pairs = found.label_of(NAMES), [], []
    for annotation in found.annotations:
        ids = panoptic.read_segments(folder / 'data/panoptic', annotation)
        moved = np.roll(ids, rng.integers(-4, 5, 2), (0, 1))
        rows = {each['id']: (labels[each['category_id']], False)
                for each in annotation['segments_info']}
        seg = np.full(ids.shape, 3, np.int32)
        for i, (label, _) in rows.items():
            kind = (label + 1) % 4 if rng.random() < 0.1 else label
            seg[moved == i] = kind + (1000 * i if kind < 2 else 0)
        samples.append(dict(img_id=annotation['image_id'], pred_panoptic_seg=dict(
            sem_seg=torch.tensor(seg)[None])))
        pairs.append(((ids, rows), [
            (int(key) % 1000, {tuple(at) for at in np.argwhere(seg == key)})
            for key in np.unique(seg) if key % 1000 < 4]))
    return samples, pairs


def test_quality_is_the_definitions_and_torchmetrics(folder):
    from torchmetrics.detection import PanopticQuality

    metric = metric_of(folder)
    samples, pairs = noisy(folder)
    metric.process({}, samples)
    found = metric.evaluate(4)
    _, by_class = quality(pairs, 4)
    for end, part in (('', by_class), ('_th', by_class[:2]), ('_st', by_class[2:])):
        for place, name in enumerate(('PQ', 'SQ', 'RQ')):
            wanted = 100 * np.nanmean(part[:, place])
            assert abs(found[f'coco_panoptic/{name}{end}'] - wanted) < 1e-9
    assert 20 < found['coco_panoptic/PQ'] < 99
    assert [row['class'] for row in metric.per_class] == list(NAMES)
    assert metric.per_class[1]['coco_panoptic/PQ'] == pytest.approx(100 * by_class[1, 0])
    # torchmetrics has no crowds; a class that it does not know is void. It takes void of the
    # prediction out of the union too, COCO does not: there is none here.
    other = PanopticQuality({0, 1}, {2, 3}, allow_unknown_preds_category=True)
    for sample, ((ids, rows), _) in zip(samples, pairs, strict=True):
        seg = sample['pred_panoptic_seg']['sem_seg'][0].long()
        kinds = np.array([rows[i][0] if i else 99 for i in ids.ravel()]).reshape(ids.shape)
        truth = torch.stack([torch.tensor(kinds), torch.tensor(ids)], -1)
        other.update(torch.stack([seg % 1000, seg // 1000], -1)[None], truth[None])
    assert abs(found['coco_panoptic/PQ'] - 100 * float(other.compute())) < 1e-4


def test_what_the_metric_refuses(folder):
    samples, _ = noisy(folder)
    metric = metric_of(folder, 'train')
    metric._truth.pop(samples[0]['img_id'])
    with pytest.raises(UserError, match='has no image 1, which was predicted'):
        metric.process({}, samples)
    metric = metric_of(folder)
    with pytest.raises(UserError, match='no panoptic map'):
        metric.process({}, [dict(img_id=1)])
    samples[0]['pred_panoptic_seg']['sem_seg'] = torch.zeros(1, 9, 9, dtype=torch.int32)
    with pytest.raises(UserError, match='a prediction has 9 x 9 pixels, the truth 64 x 48'):
        metric.process({}, samples)
    with pytest.raises(UserError, match='no ann_file and seg_prefix'):
        METRICS.build(dict(type='vpt_dense.PanopticMetric'))


# --- data ------------------------------------------------------------------------------------


def dataset(folder, **kwargs):
    return DATASETS.build(dict(
        type='vpt_dense.PanopticFolder', data_root=str(folder / 'data'), ann_file='train.json',
        pipeline=[], **kwargs))


def loaded(data, index):
    info = data.get_data_info(index)
    info['ori_shape'] = (48, 64)
    return TRANSFORMS.build(dict(type='vpt_dense.LoadPanopticAnnotations'))(info)


def test_labels_are_those_of_the_masks(folder):
    """Each pixel's label, each thing's mask and box, from the masks that the data were made of."""
    in_scope('mmdet')
    for names in (NAMES, ('disc', 'box', 'wall', 'floor'), ('disc', 'wall')):
        data = dataset(folder, metainfo=dict(classes=names))
        assert data.metainfo['thing_classes'] == [n for n in names if n in NAMES[:2]]
        for index in range(4):
            found = loaded(data, index)
            labels = np.asarray(Image.open(folder / f'data/masks/train/{index}.png'))
            ids = np.asarray(Image.open(folder / f'data/ids/train/{index}.png'))
            table = np.full(10, 255)
            for i, name in enumerate(('wall', 'floor', 'box', 'disc')):
                table[i] = names.index(name) if name in names else 255
            assert (found['gt_seg_map'] == table[labels]).all()
            wanted = {(int(table[2 + (i - 1) % 2]), (ids == i).tobytes()) for i in (1, 2, 3)
                      if table[2 + (i - 1) % 2] < 255 and (ids == i).any()}
            own = {(int(label), mask.astype(bool).tobytes()) for label, mask in zip(
                found['gt_bboxes_labels'], found['gt_masks'].masks, strict=True)}
            assert own == wanted
            for mask, box in zip(found['gt_masks'].masks, found['gt_bboxes'].tensor, strict=True):
                y, x = np.nonzero(mask)
                assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_crowds_have_no_mask_and_odd_colours_are_an_error(folder, tmp_path):
    in_scope('mmdet')
    make(tmp_path / 'data')
    content = json.loads((tmp_path / 'data/train.json').read_text())
    rows = content['annotations'][0]['segments_info']
    kinds = {each['id']: each['isthing'] for each in content['categories']}
    thing = next(row for row in rows if kinds[row['category_id']])
    thing['iscrowd'] = 1
    (tmp_path / 'data/train.json').write_text(json.dumps(content))
    whole, found = (loaded(dataset(place), 0) for place in (folder, tmp_path))
    assert len(found['gt_masks']) == len(whole['gt_masks']) - 1
    assert (found['gt_seg_map'] == whole['gt_seg_map']).all()
    content['annotations'][0]['segments_info'] = rows[1:]
    (tmp_path / 'data/train.json').write_text(json.dumps(content))
    with pytest.raises(UserError, match=r'0\.png: colours that are not in the JSON: ids 1'):
        loaded(dataset(tmp_path), 0)


@pytest.mark.parametrize(('metainfo', 'message'), [
    (dict(classes=['wall', 'box']), 'things come before stuff'),
    (dict(classes=['box', 'wall'], thing_classes=['wall']), 'the classes begin with things'),
    (dict(classes=['box', 'disc'], thing_classes=['box']), "things are .'box', 'disc'., and"),
    (dict(classes=[str(i) for i in range(255)]), '255 classes; at most 254'),
])
def test_classes_that_cannot_be(folder, metainfo, message):
    in_scope('mmdet')
    with pytest.raises(UserError, match=message):
        dataset(folder, metainfo=metainfo)


def test_numbers_of_classes_follow_the_data(folder):
    cfg = config.load(str(folder / 'mask2former.py'), None, 'head')
    for part in (cfg.model.panoptic_head, cfg.model.panoptic_fusion_head):
        assert (part.num_things_classes, part.num_stuff_classes) == (2, 2)
    assert cfg.model.panoptic_head.loss_cls.class_weight == [1.0] * 4 + [0.1]
    for name in ('train', 'val', 'test'):
        assert cfg[f'{name}_dataloader'].dataset.metainfo.thing_classes == list(NAMES[:2])
    assert cfg.val_evaluator.seg_prefix == str(folder / 'data/panoptic')
    assert tasks.of(cfg.model).name == 'panoptic'
    model = building.build_model(cfg)
    assert tasks.of(dict(model.named_children())).name == 'panoptic'
    assert tasks.of({'panoptic_head'}).name == 'detection'  # of names alone nobody knows


def test_widths_of_query_heads_follow_the_backbone():
    """Of the recipes in their own sizes, without weights or data."""
    for name, width in (('eomt', 384), ('pmd', [384] * 4)):
        for kind in ('vit-s_dinov2_panoptic-folder', 'instance_vit-s_dinov2_coco-folder'):
            between = '-' if kind.startswith('instance') else '_'
            cfg = config.load(str(CONFIGS / f'vpt/{name}{between}{kind}.py'), {
                'dataset.data_root': 'none'}, 'head')
            assert cfg.model.panoptic_head.in_channels == width
            assert cfg.model.panoptic_head.get('num_heads', 6) == 6


# --- heads -----------------------------------------------------------------------------------


def samples():
    """Two images: things that overlap on stuff with void and padding; and stuff alone."""
    masks = torch.zeros(2, 64, 64)
    masks[0, 8:40, 8:40] = 1
    masks[1, 24:60, 24:60] = 1
    semantic = torch.full((64, 64), 3, dtype=torch.uint8)
    semantic[32:] = 2
    semantic[:, 60:] = 255
    semantic[masks.any(0)] = 1
    found = []
    for part in (masks, masks[:0]):
        sample = DetDataSample(metainfo=dict(
            img_shape=(64, 64), ori_shape=(64, 64), batch_input_shape=(64, 64), img_id=0,
            scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=torch.zeros(len(part), 4), labels=torch.ones(len(part), dtype=torch.long),
            masks=BitmapMasks(part.numpy().astype('uint8'), 64, 64))
        sample.gt_sem_seg = PixelData(sem_seg=semantic[None].clone())
        found.append(sample)
    return masks, semantic, found


@pytest.mark.parametrize('name', ['eomt', 'pmd'])
def test_targets_are_things_and_stuff(folder, name):
    model = model_of(folder, name).train()
    masks, semantic, truth = samples()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    found = model.loss(x, truth)
    torch.manual_seed(1)
    every = model.panoptic_head.predictions(model.extract_feat(x), every=True)
    stuff = torch.stack([semantic == 2, semantic == 3]).float()
    wanted = [
        query_masks.Target(torch.tensor([1, 1, 2, 3]), torch.cat([masks, stuff])),
        query_masks.Target(torch.tensor([2, 3]), stuff)]
    for prefix, (own, scores) in zip(('', 'b0.', 'b1.'), (every[-1], *every[:-1]), strict=True):
        parts = query_masks.losses(scores, own, wanted, query_masks.Weights(), 64)
        for key, value in parts.items():
            torch.testing.assert_close(found[prefix + key], value)
    total, _ = model.parse_losses(found)
    total.backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize('name', ['eomt', 'pmd'])
def test_maps_are_those_of_transformers(folder, name):
    """Random weights: the same segments as EoMT's post-processing in transformers."""
    from transformers import EomtImageProcessor
    from transformers.models.eomt.modeling_eomt import EomtForUniversalSegmentationOutput

    options = {'model.test_cfg.object_mask_thr': 0.3, 'model.test_cfg.iou_thr': 0.2}
    model = randomise(model_of(folder, name, **options)).eval()
    _, _, (sample, _) = samples()
    sample.set_metainfo(dict(img_shape=(64, 64), ori_shape=(96, 96)))
    seen, left_out = [], 0
    for seed in range(6):
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        head, generator = model.panoptic_head, torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in (head.q.weight, head.class_head.weight):
                weight.copy_(4 * torch.randn(weight.shape, generator=generator))
            masks, classes = head.predictions(model.extract_feat(x))[-1]
            found = model.predict(x, [sample])[0].pred_panoptic_seg.sem_seg[0].numpy()
        output = EomtForUniversalSegmentationOutput(
            masks_queries_logits=masks, class_queries_logits=classes)
        (theirs,) = EomtImageProcessor().post_process_panoptic_segmentation(
            output, [(96, 96)], threshold=0.3, mask_threshold=0.5,
            overlap_mask_area_threshold=0.2, stuff_classes=[2, 3],
            size=dict(shortest_edge=64, longest_edge=64))
        ids, labels = segments.found_segments(found, 4)
        rows = {each['id']: each['label_id'] for each in theirs['segments_info']}
        other = theirs['segmentation'].numpy().astype(int)
        pairs = set(zip(ids.ravel().tolist(), other.ravel().tolist(), strict=True))
        assert len(pairs) == len(set(ids.ravel().tolist())) == len(set(other.ravel().tolist()))
        assert all(own == i + 1 == 0 or labels[own - 1] == rows[i] for own, i in pairs)
        seen += labels.tolist()
        left_out += int((classes.argmax(-1) < 4).sum()) - len(labels)
    assert min(seen.count(0) + seen.count(1), seen.count(2) + seen.count(3), left_out) > 3


@pytest.mark.parametrize(('change', 'message'), [
    ({'model.panoptic_head.num_points': 0}, 'num_points'),
    ({'model.train_cfg': dict(num_points=3)}, 'train_cfg: EoMTPanopticHead reads nothing of it'),
])
def test_what_cannot_be_is_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        model_of(folder, 'eomt', **change)


# --- the tools -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def trained(folder):
    """A random EoMT, which finds segments."""
    model, generator = randomise(model_of(folder, 'eomt')), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in (model.panoptic_head.q, model.panoptic_head.class_head):
            part.weight.copy_(4 * torch.randn(part.weight.shape, generator=generator))
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'model.pth')
    return folder / 'model.pth'


@pytest.mark.parametrize('name', [
    'eomt', *(pytest.param(name, marks=pytest.mark.slow) for name in ('pmd', 'mask2former'))])
def test_recipes_train_and_are_tested(folder, capfd, name):
    work = folder / f'work-{name}'
    told = run_tool(capfd, 'train', folder / f'{name}.py', '--method', 'deep')
    assert told.code == 0, told.err
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['metric'] == 'coco_panoptic/PQ' and summary['task'] == 'panoptic'
    assert {f'coco_panoptic/{key}' for key in ('PQ', 'SQ', 'RQ', 'PQ_th', 'PQ_st')} <= set(
        summary['last']['metrics'])
    assert summary['params']['parts']['backbone']['trainable'] == 0
    pictures = json.loads((work / 'pictures_val.json').read_text())
    assert len(pictures['images']) == 4 and pictures['task'] == 'panoptic'
    for image in pictures['images']:
        assert (image['height'], image['width']) == (48, 64)
        assert image['truth'].startswith('data:image/png') and image['prediction']
    assert list(work.glob('best_coco_panoptic_PQ_iter_*.pth'))


def as_found(content, folder):
    """(file of the image, {(class, pixels)}) of a JSON and its PNGs."""
    names = {each['id']: each['name'] for each in content['categories']}
    for image, row in zip(content['images'], content['annotations'], strict=True):
        pixels = np.asarray(Image.open(folder / row['file_name'])).astype(int) @ (1, 256, 65536)
        assert set(np.unique(pixels)) - {0} == {each['id'] for each in row['segments_info']}
        for each in row['segments_info']:
            assert each['area'] == (pixels == each['id']).sum()
        yield image['file_name'], {
            (names[each['category_id']], (pixels == each['id']).tobytes())
            for each in row['segments_info']}


def test_what_is_written_gives_the_figures(folder, trained, capfd, tmp_path):
    """A test's maps, judged by the definition alone; pictures; predictions, and from the delta."""
    recipe = folder / 'eomt.py'
    told = run_tool(
        capfd, 'test', recipe, trained, '--method', 'deep', '--work-dir', tmp_path / 'w', '--out',
        tmp_path / 'out', '--show-dir', tmp_path / 'shown')
    assert told.code == 0, told.err
    assert sorted(path.name for path in (tmp_path / 'shown').rglob('*.png')) == [
        f'{i}.png' for i in range(4)]
    content = json.loads((tmp_path / 'out/panoptic.json').read_text())
    truth = json.loads((folder / 'data/val.json').read_text())
    assert {each['id']: each['name'] for each in content['categories']} == {
        each['id']: each['name'] for each in truth['categories']}
    found = dict(as_found(content, tmp_path / 'out'))
    kinds = panoptic.read(folder / 'data/val.json').label_of(NAMES)
    pairs = []
    for row, image in zip(truth['annotations'], content['images'], strict=True):
        ids = panoptic.read_segments(folder / 'data/panoptic', row)
        pairs.append(((ids, {each['id']: (kinds[each['category_id']], False)
                             for each in row['segments_info']}), [
            (NAMES.index(name), {tuple(at) for at in np.argwhere(
                np.frombuffer(part, bool).reshape(48, 64))})
            for name, part in found[image['file_name']]]))
    figures = json.loads((tmp_path / 'w/test.json').read_text())['metrics']
    wanted = 100 * np.nanmean(quality(pairs, 4)[1][:, 0])
    assert figures['coco_panoptic/PQ'] == pytest.approx(wanted, abs=1e-9)
    assert sum(map(len, found.values())) > 8
    extracted = run_tool(capfd, 'delta', 'extract', trained, tmp_path / 'd.safetensors',
                         '--config', recipe, '--method', 'deep')
    assert extracted.code == 0, extracted.err
    images = sorted(map(str, (folder / 'data/images/val').glob('*.png')))
    for again in ([], ['--skip-existing']):
        told = run_tool(capfd, 'predict', recipe, tmp_path / 'd.safetensors', *images, '--method',
                        'deep', '--out', tmp_path / 'p', '--overlay', *again)
        assert told.code == 0, told.err
    own = dict(as_found(json.loads((tmp_path / 'p/panoptic.json').read_text()),
                        tmp_path / 'p/panoptic'))
    assert own == found and len(list((tmp_path / 'p/overlays').iterdir())) == 4
    summary = json.loads((tmp_path / 'p/summary.json').read_text())
    assert (summary['existing'], summary['predicted']) == (4, 0)
    assert sum(summary['segments_by_class'].values()) == sum(map(len, found.values()))
    result = vpt_dense.load(trained, recipe, method='deep').predict(images[0])
    assert result.ids.shape == (48, 64) and result.things == 2
    assert {(NAMES[label], (result.ids == i).tobytes())
            for i, label in enumerate(result.labels, 1)} == found[images[0]]


def test_a_check_and_a_look(folder, capfd, tmp_path):
    told = run_tool(capfd, 'check_dataset', folder / 'eomt.py', '--json')
    report = json.loads(told.out)
    assert told.code == 0 and report['task'] == 'panoptic' and report['classes'] == list(NAMES)
    told = run_tool(capfd, 'browse_dataset', folder / 'eomt.py', '--out-dir', tmp_path / 'b',
                    '--number', 2)
    assert told.code == 0 and len(list((tmp_path / 'b').rglob('*.png'))) == 2, told.err


@pytest.mark.parametrize(('tool', 'options', 'message'), [
    ('test', ['--tta'], '--tta'),
    ('test', ['--out', 'x.json'], 'a panoptic writes a file an image; name a folder'),
    ('train', ['--cfg-options', 'dataset.classes=[wall,box]'], 'things come before stuff'),
    ('train', ['--cfg-options', 'dataset.data_prefix.seg=gone'], 'data_prefix.seg'),
])
def test_what_is_refused_is_one_line(folder, trained, capfd, monkeypatch, tmp_path, tool, options,
                                     message):
    monkeypatch.chdir(tmp_path)
    arguments = dict(train=[], test=[trained])
    told = run_tool(capfd, tool, folder / 'eomt.py', *arguments[tool], '--method', 'deep', *options)
    assert told.code == 2 and message in told.err, told.err
    assert told.err.count('\n') == 1


def test_every_name_of_the_record_exists():
    from mmengine.registry import HOOKS, VISUALIZERS

    task = tasks.TASKS['panoptic']
    for key in ('sample', 'check_sample', 'check_data', 'predict', 'writer', 'shown'):
        assert callable(task.function(key, 'a test'))
    found = {HOOKS.get(task.store), HOOKS.get(task.drawing['type']),
             VISUALIZERS.get(task.visualizer['type'])}
    assert len(found) == 3 and None not in found
