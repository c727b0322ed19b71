"""Several tasks that train together: each part against its formula, and recipes end to end."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, TRANSFORMS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from scipy.io import savemat
from tool_helpers import run_tool
from utils import CONFIGS, OF_TASKS, images, in_scope, randomise

from vpt_dense import building, config, params, preflight
from vpt_dense.datasets import task_files
from vpt_dense.datasets.task_targets import edges_of
from vpt_dense.errors import UserError
from vpt_dense.evaluation import EdgeMetric, MapErrorMetric, MultiTaskMetric, delta_m
from vpt_dense.heads import EdgeLoss, MapL1Loss
from vpt_dense.segmentors.task_weights import TaskWeights

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
BACKBONE = dict(
    type='vpt_dense.VisionTransformer', arch=ARCH, img_size=32, patch_size=8, final_norm=False,
    out_type='featmap', out_indices=[3])
LINEAR = dict(in_channels=32, in_index=0, dropout_ratio=0.0, norm_cfg=dict(type='BN'),
              align_corners=False)
HEADS = dict(
    seg=dict(type='vpt_dense.LinearHead', **LINEAR, num_classes=3,
             loss_decode=dict(type='CrossEntropyLoss')),
    edges=dict(type='vpt_dense.LinearEdgeHead', **LINEAR,
               loss_decode=dict(type='vpt_dense.EdgeLoss')),
    distance=dict(type='vpt_dense.LinearDistanceHead', **LINEAR,
                  loss_decode=dict(type='vpt_dense.MapL1Loss')),
    normals=dict(type='vpt_dense.LinearNormalHead', **LINEAR,
                 loss_decode=dict(type='vpt_dense.NormalLoss')))
OWN = {
    'prompts': dict(prompt=dict(type='vpt_dense.TaskPrompts', num_tokens=3, task_layers=-2)),
    'mtlora': dict(adapters=[dict(type='vpt_dense.MTLoRA', rank=3, task_rank=2, task_layers=-2,
                                  dropout=0.0)])}


def estimator(backbone=None, heads=('seg', 'edges', 'distance'), **kwargs):
    """A tiny model; every parameter has a value."""
    in_scope('mmseg')
    return randomise(MODELS.build(dict(
        type='vpt_dense.MultiTaskEstimator', backbone={**BACKBONE, **(backbone or {})},
        task_heads={name: HEADS[name] for name in heads}, test_cfg=ConfigDict(mode='whole'),
        **kwargs)))


def sample_of(size=(32, 32), seed=0, **meta):
    """A data sample with the truth of all tasks."""
    rng = np.random.default_rng(seed)
    sample = SegDataSample(metainfo=dict(img_path='a.png', ori_shape=size, img_shape=size, **meta))
    labels = cv2.resize(rng.integers(0, 3, (4, 4)).astype(np.uint8), size[::-1],
                        interpolation=cv2.INTER_NEAREST)
    normals = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, *size))), dim=0)
    for name, data in dict(
            seg=labels[None].astype(np.int64), edges=edges_of(labels)[None].astype(np.int64),
            distance=rng.uniform(0, 20, (1, *size)).astype(np.float32),
            normals=normals.float().numpy()).items():
        sample.set_data({f'gt_{name}_map': PixelData(data=torch.from_numpy(data))})
    return sample


# --- formulas --------------------------------------------------------------------------------


@pytest.mark.parametrize('weight', [0.95, None])
def test_edge_loss_is_its_formula(weight):
    logits = images(2, 1, 5, 6).double()
    truth = (images(2, 1, 5, 6, seed=1) > 0.5).long()
    truth[0, 0, :2] = 255
    valid = truth != 255
    p, y = 1 / (1 + np.exp(-logits.numpy()[valid.numpy()])), truth.numpy()[valid.numpy()]
    w = (y == 0).mean() if weight is None else weight
    wanted = -(w * y * np.log(p) + (1 - w) * (1 - y) * np.log(1 - p)).mean()
    found = EdgeLoss(weight, loss_weight=2.0)(logits, truth, valid)
    assert float(found) == pytest.approx(2 * wanted, rel=1e-9)
    assert EdgeLoss(weight)(logits, truth, torch.zeros_like(valid)) == 0
    assert float(MapL1Loss()(logits, truth.double(), valid)) == pytest.approx(
        np.abs(logits.numpy() - truth.numpy())[valid.numpy()].mean())


def test_edges_and_distances_of_labels_are_counted_by_hand():
    rng = np.random.default_rng(0)
    labels = cv2.resize(rng.integers(0, 3, (5, 5)).astype(np.uint8), (24, 18),
                        interpolation=cv2.INTER_NEAREST)
    labels[:3, :4] = 255
    height, width = labels.shape
    edges = np.zeros(labels.shape, int)
    for y in range(height):
        for x in range(width):
            near = [labels[v, u] for v, u in ((y, x + 1), (y + 1, x)) if v < height and u < width]
            edges[y, x] = any(n not in (labels[y, x], 255) for n in near)
    edges[labels == 255] = 255
    results = dict(gt_seg_map=labels, seg_fields=['gt_seg_map'], img=np.zeros((18, 24, 3)),
                   ori_shape=(180, 240))
    made = TRANSFORMS.build(dict(type='vpt_dense.LabelTargets', max_distance=4, as_original=True))(
        results)
    np.testing.assert_array_equal(made['gt_edges_map'], edges)
    assert made['ori_shape'] == (18, 24)
    there = np.argwhere(edges == 1)
    for y in range(height):
        for x in range(width):
            wanted = min(4, np.sqrt(((there - (y, x)) ** 2).sum(1)).min())
            wanted = -1 if labels[y, x] == 255 else wanted
            assert made['gt_distance_map'][y, x] == pytest.approx(wanted, abs=1e-4)
    assert made['seg_fields'] == ['gt_seg_map', 'gt_edges_map', 'gt_distance_map']
    with pytest.raises(ValueError, match='nothing is made'):
        TRANSFORMS.build(dict(type='vpt_dense.LabelTargets', edges=None, distance=None))


def test_f_of_edges_is_counted_by_hand():
    rng = np.random.default_rng(1)
    metric, totals = EdgeMetric(tolerance=0.07, thresholds=9), np.zeros((9, 4))
    for _ in range(2):
        truth = edges_of(cv2.resize(rng.integers(0, 3, (3, 3)).astype(np.uint8), (20, 16),
                                    interpolation=cv2.INTER_NEAREST)).astype(np.int64)
        truth[0] = 255
        found = rng.random((16, 20)).astype(np.float32)
        sample = {key: dict(data=torch.from_numpy(each[None])) for key, each in (
            ('gt_edge_map', truth), ('pred_edge_map', found))}
        metric.process(None, [sample])
        radius = int(0.07 * math.hypot(16, 20))
        assert radius == 1
        for k in range(9):
            told = (found >= np.float32((k + 1) / 10)) & (truth != 255)
            places, real = np.argwhere(told), np.argwhere(truth == 1)
            far = np.sqrt(((places[:, None] - real[None]) ** 2).sum(2))
            totals[k] += [(far.min(1) <= radius).sum(), len(places),
                          (far.min(0) <= radius).sum(), len(real)]
    precision, recall = totals[:, 0] / totals[:, 1], totals[:, 2] / totals[:, 3]
    scores = 2 * precision * recall / (precision + recall)
    result = metric.evaluate(2)
    assert result['ods_f'] == pytest.approx(100 * scores.max())
    assert result['threshold'] == pytest.approx((scores.argmax() + 1) / 10)


def test_delta_m_has_the_sign_of_each_metric():
    found = delta_m(dict(seg=60, depth=0.5), dict(seg=50, depth=0.4), dict(seg=False, depth=True))
    assert found == pytest.approx(100 * (0.2 - 0.25) / 2)
    with pytest.raises(UserError, match='the same tasks'):
        delta_m(dict(a=1), dict(b=1), {})


def test_metrics_of_tasks_are_each_ones_own():
    metric = MultiTaskMetric(
        dict(seg=dict(type='vpt_dense.IoUMetric'), far=dict(type='vpt_dense.MapErrorMetric')),
        alone=dict(seg=50.0, far=2.0))
    metric.dataset_meta = dict(classes=['a', 'b'], task_classes={})
    labels, found = torch.tensor([[[0, 1], [1, 255]]]), torch.tensor([[[0, 1], [0, 0]]])
    far = torch.tensor([[[1.0, 5.0], [-1.0, 3.0]]])
    metric.process(None, [dict(
        gt_seg_map=dict(data=labels), pred_seg_map=dict(data=found),
        gt_far_map=dict(data=far), pred_far_map=dict(data=torch.zeros_like(far) + 1))])
    result = metric.evaluate(1)
    rmse = math.sqrt((0 + 16 + 4) / 3)
    assert result['seg/mIoU'] == 50 and result['far/rmse'] == pytest.approx(rmse)
    assert result['delta_m'] == pytest.approx(100 * (0 - (rmse - 2) / 2) / 2)
    with pytest.raises(UserError, match=r"alone: there is no task 'sgg'.*seg"):
        MultiTaskMetric(dict(seg=dict(type='vpt_dense.IoUMetric')), alone=dict(sgg=1.0))
    assert MapErrorMetric().score(dict(
        gt_distance_map=dict(data=-far.abs()), pred_distance_map=dict(data=far))) is None


# --- weights of losses -------------------------------------------------------------------------


def test_uncertainty_is_its_formula():
    weights = TaskWeights(['a', 'b'], ['a'], 'uncertainty', weights=dict(b=3)).double()
    s = torch.tensor([0.3, -0.7], dtype=torch.float64)
    weights.log_variances.data.copy_(s)
    losses = torch.tensor([2.0, 5.0], dtype=torch.float64)
    found = weights({'a': dict(loss_x=losses[0], acc=losses[1]), 'b': dict(loss_y=losses[1])})
    wanted = math.exp(-0.3) * 2 + 0.15 + 3 * (math.exp(0.7) * 5 / 2 - 0.35)
    total = sum(value for key, value in found.items() if 'loss' in key)
    assert float(total) == pytest.approx(wanted) and found['a.acc'] == 5
    total.backward()
    np.testing.assert_allclose(weights.log_variances.grad, [
        -math.exp(-0.3) * 2 + 0.5, 3 * (-math.exp(0.7) * 5 / 2 + 0.5)], rtol=1e-6)


def test_gradient_norm_is_its_algorithm():
    """Two steps, against the equations written with numbers."""
    torch.manual_seed(0)
    shared, own = torch.nn.Parameter(torch.randn(4)), torch.nn.Parameter(torch.randn(4))
    targets = torch.randn(2, 4)
    weights = TaskWeights(['a', 'b'], [], 'gradient_norm', weights=dict(b=2), alpha=0.5)
    optimizer = torch.optim.SGD([shared, weights.balance], lr=0.05)
    v, first = np.ones(2), None
    for _ in range(3):
        losses = [(shared - targets[0]).square().sum(),
                  3 * (shared - targets[1] + own.detach()).square().sum() + own.sum() * 0]
        numbers = np.array([float(each) for each in losses])
        first = numbers if first is None else first
        g = np.array([2 * float((shared - targets[0]).norm()),
                      2 * 6 * float((shared - targets[1] + own).norm())])
        v = v * 2 / v.sum()
        r = numbers / first
        goal = (v * g).mean() * (r / r.mean()) ** 0.5
        found = weights({'a': dict(loss=losses[0]), 'b': dict(loss=losses[1])}, [shared, own])
        assert float(found['gradient_norm.loss']) == pytest.approx(
            np.abs(v * g - goal).sum(), rel=1e-4)
        assert float(found['b.loss']) == pytest.approx(2 * v[1] * numbers[1], rel=1e-5)
        optimizer.zero_grad()
        sum(value for key, value in found.items() if 'loss' in key).backward()
        np.testing.assert_allclose(weights.balance.grad, np.sign(v * g - goal) * g, rtol=1e-4)
        v = np.clip(v - 0.05 * np.sign(v * g - goal) * g, 0.01, None)  # no less than that
        optimizer.step()
    with pytest.raises(ValueError, match='nothing of the backbone trains that all share'):
        weights({'a': dict(loss=shared.sum()), 'b': dict(loss=own.sum())}, [shared, own])


# --- what tasks share ----------------------------------------------------------------------------


def features(model, inputs):
    with model.of_tasks(inputs) as names:
        return {name: model.extract_feat(inputs)[0] for name in names}


def test_prompts_of_a_task_are_those_of_a_backbone_of_its_own():
    model, inputs = estimator(OWN['prompts']).eval(), images(2, 3, 32, 32)
    prompt = model.backbone.prompt
    found = features(model, inputs)
    for name, maps in found.items():
        alone = MODELS.build(dict(BACKBONE, prompt=dict(
            type='vpt_dense.TokenPrompt', num_tokens=3, deep=True))).eval()
        state = {key: value for key, value in model.backbone.state_dict().items()
                 if not key.startswith('prompt')}
        tokens = torch.cat((prompt.shared.tokens, prompt.own[name].tokens))
        alone.load_state_dict({**state, 'prompt.tokens': tokens})
        torch.testing.assert_close(maps, alone(inputs)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found['seg'], found['edges'], atol=1e-3)


def test_mtlora_of_a_task_is_added_to_the_weights():
    model, inputs = estimator(OWN['mtlora']).eval(), images(2, 3, 32, 32)
    adapter = model.backbone.adapters[0]
    found = features(model, inputs)
    state = {key: value.clone() for key, value in model.backbone.state_dict().items()
             if not key.startswith('adapters')}
    for task, maps in found.items():
        own = dict(state)
        for name, update in zip(adapter.names, adapter.updates, strict=True):
            parts = [update] if hasattr(update, 'up') else [update.shared, update.own[task]]
            assert (len(parts) == 2) == name.startswith(('layers.2', 'layers.3'))
            own[f'{name}.weight'] = own[f'{name}.weight'] + 4 * sum(
                part.up @ part.down for part in parts)
        plain = MODELS.build(BACKBONE).eval()
        plain.load_state_dict(own)
        torch.testing.assert_close(maps, plain(inputs)[0], rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found['seg'], found['edges'], atol=1e-3)


@pytest.mark.parametrize(('kind', 'runs'), [
    ('prompts', [1, 1, 3, 3]), ('mtlora', [1, 1, 3, 3]), (None, [1, 1, 1, 1])])
def test_blocks_that_tasks_share_run_once_and_gradients_are_the_sum(kind, runs):
    model, inputs = estimator(OWN.get(kind)).train(), images(2, 3, 32, 32)
    counts = [0] * 4

    def count(i):
        def add(*_):
            counts[i] += 1
        return add

    hooks = [block.register_forward_hook(count(i))
             for i, (_, block) in enumerate(model.backbone.named_blocks())]
    samples = [sample_of(seed=i) for i in range(2)]
    for head in model.task_heads.values():
        head.eval()  # batch norm would count twice
    losses = model.loss(inputs, samples)
    assert counts == runs
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    sum(value for key, value in losses.items() if 'loss' in key).backward()
    together = {name: p.grad.clone() for name, p in model.backbone.named_parameters()
                if p.grad is not None}
    assert together
    model.zero_grad()
    for name in model.task_heads:  # each task by itself, nothing shared
        model.active = name
        own = model.decode_head.loss(
            model.extract_feat(inputs),
            [model._with_truth(each, name, inputs.shape[2:]) for each in samples], None)
        sum(value for key, value in own.items() if 'loss' in key).backward()
        assert float(own[next(key for key in own if 'loss' in key)]) == pytest.approx(float(
            next(losses[key] for key in losses if key.startswith(f'{name}.') and 'loss' in key)))
    for name, p in model.backbone.named_parameters():
        if name in together:
            torch.testing.assert_close(p.grad, together[name], rtol=1e-3, atol=1e-5)


def test_predictions_of_tasks_and_windows():
    heads = ('seg', 'edges', 'distance', 'normals')
    model = estimator(OWN['prompts'], heads).eval()
    inputs = images(1, 3, 32, 32)
    with torch.no_grad():
        (found,) = model.predict(inputs, [sample_of()])
        (turned,) = model.predict(inputs.flip(3), [sample_of(
            flip=True, flip_direction='horizontal')])
        logits = model(inputs, mode='tensor')
    assert found.pred_seg_map.data.shape == (1, 32, 32)
    assert 0 <= found.pred_edges_map.data.min() <= found.pred_edges_map.data.max() <= 1
    assert 0 < found.pred_distance_map.data.min() and found.pred_distance_map.data.max() < 20
    normals = found.pred_normals_map.data
    torch.testing.assert_close(normals.norm(dim=0), torch.ones(32, 32))
    assert set(logits) == set(heads) and turned.pred_normals_map.data.shape == normals.shape
    unturned = model.task_heads.normals.finish(torch.nn.functional.interpolate(
        model(inputs.flip(3), mode='tensor')['normals'], (32, 32), mode='bilinear')[0]).flip(2)
    unturned = unturned * torch.tensor([-1.0, 1, 1])[:, None, None]
    torch.testing.assert_close(turned.pred_normals_map.data, unturned, rtol=1e-4, atol=1e-5)
    slides = estimator(OWN['prompts'], heads).eval()
    slides.test_cfg.update(mode='slide', crop_size=(32, 32), stride=(16, 16))
    with torch.no_grad():
        (again,) = slides.predict(inputs, [sample_of()])
    torch.testing.assert_close(again.pred_distance_map.data, found.pred_distance_map.data)


def test_truth_ends_where_the_image_does():
    model = estimator(heads=('seg', 'edges', 'distance', 'normals'))
    small, size = sample_of((24, 30)), torch.Size((32, 32))
    for name, key, void in (('seg', 'gt_sem_seg', 255), ('edges', 'gt_edge_map', 255),
                            ('distance', 'gt_distance_map', -1), ('normals', 'gt_normal_map', 0)):
        data = model._with_truth(small, name, size).get(key).data
        assert data.shape[1:] == size
        assert (data[:, 24:] == void).all() and (data[:, :, 30:] == void).all()
        torch.testing.assert_close(data[:, :24, :30], small.get(f'gt_{name}_map').data)
    with pytest.raises(ValueError, match='has a task seg, but the data no gt_seg_map'):
        model._with_truth(SegDataSample(), 'seg', size)


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(weighting=dict(kind='norm')), 'model.weighting.kind'),
    (dict(weighting=dict(weights=dict(sge=1))), r"there is no task 'sge'.*seg"),
    (dict(weighting=dict(alpha=1.0)), 'is of kind='),
    (dict(heads=('seg',), weighting=dict(kind='gradient_norm')), 'two tasks or more'),
    (dict(backbone=dict(prompt=dict(type='vpt_dense.TaskPrompts', num_tokens=2, task_layers=0))),
     'prompt.task_layers: 1 to 3'),
    (dict(auxiliary_head=[1]), 'model.auxiliary_head: a MultiTaskEstimator has task_heads alone'),
])
def test_what_a_model_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        estimator(**settings)


def test_parts_for_tasks_need_tasks():
    in_scope('mmseg')
    for part in OWN.values():
        with pytest.raises(ValueError, match=r'is for a model of several tasks.*task_heads'):
            MODELS.build({**BACKBONE, **part})


# --- files and recipes ---------------------------------------------------------------------------


@pytest.mark.parametrize('recipe', OF_TASKS)
def test_recipes_are_runs(recipe):
    for method in ('deep', 'task-prompts', 'tasks/mtlora'):
        cfg = config.load(str(CONFIGS / recipe), method=method)
        preflight.check_model(cfg.model)
        preflight.check_heads(cfg)
        counts = params.count(building.build_model(cfg, 'meta'))
        assert counts['task heads'][0] == counts['task heads'][1] > 0
        tasks, d = len(cfg.model.task_heads), 384 if 'camvid' in recipe else 768
        sizes = {'deep': 12 * 10 * d, 'task-prompts': (9 * 10 + 3 * tasks * 10) * d,
                 'tasks/mtlora': (12 * 64 + 3 * tasks * 4) * (4 + 2 + 5 + 5) * d}
        assert sum(counts[part][0] for part in ('prompt', 'adapters') if part in counts) == (
            sizes[method])


def pascal(root, number=3, size=(30, 40)):
    """A folder as PASCAL_MT.tgz unpacks, with its own kinds of files."""
    folders = ('JPEGImages', 'ImageSets/Context', 'semseg/VOC12', 'semseg/pascal-context',
               'human_parts', 'sal_distill', 'normals_distill', 'pascal-context/trainval')
    for folder in folders:
        (root / folder).mkdir(parents=True)
    names = [f'2008_00000{i}' for i in range(number)]
    for split in ('train', 'val'):
        (root / f'ImageSets/Context/{split}.txt').write_text('\n'.join(names) + '\n')
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        cv2.imwrite(str(root / f'JPEGImages/{name}.jpg'),
                    rng.integers(0, 255, (*size, 3)).astype(np.uint8))
        where = 'VOC12' if i % 2 else 'pascal-context'
        cv2.imwrite(str(root / f'semseg/{where}/{name}.png'), np.full(size, i, np.uint8))
        labels = np.zeros(size, np.uint16)
        labels[:, 20:] = 440  # a wall, which NYUDv2 has too; 2 is an aeroplane, which it has not
        labels[:, :20] = 2
        savemat(root / f'pascal-context/trainval/{name}.mat', dict(LabelMap=labels))
        cv2.imwrite(str(root / f'sal_distill/{name}.png'),
                    np.where(np.arange(40) < 10, 200, 20).astype(np.uint8)[None].repeat(30, 0))
        cv2.imwrite(str(root / f'normals_distill/{name}.png'),
                    np.full((*size, 3), (255, 128, 128), np.uint8))  # BGR: z is 1
        mask = np.zeros(size, np.uint8)
        mask[:10] = 1
        parts = np.zeros((1, 1), dtype=[('part_name', 'O'), ('mask', 'O')])
        parts[0, 0] = ('luleg', mask)
        things = np.zeros((1, 2), dtype=[
            ('class', 'O'), ('class_ind', 'O'), ('mask', 'O'), ('parts', 'O')])
        things[0, 0] = ('person', 15, mask, parts)
        things[0, 1] = ('dog', 12, mask, np.zeros((0, 0)))
        anno = np.zeros((1, 1), dtype=[('imname', 'O'), ('objects', 'O')])
        anno[0, 0] = (name, things)
        savemat(root / f'human_parts/{name}.mat', dict(anno=anno))
    return root


def nyud(root, number=3, size=(32, 48)):
    """A folder as NYUD_MT.tgz unpacks."""
    for folder in ('images', 'gt_sets', 'segmentation', 'depth', 'normals', 'edge'):
        (root / folder).mkdir(parents=True)
    names = [f'{i:04d}' for i in range(number)]
    for split in ('train', 'val'):
        (root / f'gt_sets/{split}.txt').write_text('\n'.join(names) + '\n')
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        cv2.imwrite(str(root / f'images/{name}.jpg'),
                    rng.integers(0, 255, (*size, 3)).astype(np.uint8))
        cv2.imwrite(str(root / f'segmentation/{name}.png'),
                    rng.integers(0, 41, size).astype(np.uint8))
        np.save(root / f'depth/{name}.npy', rng.uniform(1, 9, size).astype(np.float32))
        np.save(root / f'normals/{name}.npy', rng.normal(size=(*size, 3)).astype(np.float32))
        np.save(root / f'edge/{name}.npy', (rng.random(size) > 0.9).astype(np.float32))
    return root


def test_files_of_pascal_context_and_nyud(tmp_path):
    root = pascal(tmp_path / 'pascal')
    name = '2008_000001'
    size = (30, 40)
    parts = task_files.read('context_parts', root / f'human_parts/{name}.mat', shape=size)
    assert (parts[:10] == 5).all() and not parts[10:].any()
    edges = task_files.read('context_edges', root / f'pascal-context/trainval/{name}.mat')
    assert set(np.argwhere(edges)[:, 1]) == {19} and edges.sum() == 30
    normals = task_files.read('context_normals', root / f'normals_distill/{name}.png', shape=size)
    assert not normals[:, :20].any()  # of an aeroplane nothing is known
    np.testing.assert_allclose(normals[0, 30], [0, 0, 1], atol=0.01)
    salient = task_files.read('saliency', root / f'sal_distill/{name}.png')
    assert salient[:, :10].all() and not salient[:, 10:].any()
    other = nyud(tmp_path / 'nyud')
    raw = cv2.imread(str(other / 'segmentation/0000.png'), cv2.IMREAD_UNCHANGED)
    labels = task_files.read('labels', other / 'segmentation/0000.png', dict(zero_is_unknown=True))
    np.testing.assert_array_equal(labels, np.where(raw == 0, 255, raw.astype(int) - 1))
    with pytest.raises(ValueError, match='is 40x30, its image 9x9'):
        task_files.read('saliency', root / f'sal_distill/{name}.png', shape=(9, 9))
    with pytest.raises(ValueError, match='cannot be read as a .mat file'):
        task_files.read('context_parts', other / 'depth/0000.npy')


TINY = """
_base_ = '{configs}/vpt/multi-task_vit-b_dinov2_{recipe}.py'
work_dir = '{root}/work'
dataset = dict(data_root='{root}/data')
model = dict(
    data_preprocessor=dict(size=(32, 48)),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=4, num_heads=2,
                  feedforward_channels=64),
        img_size=(32, 48), patch_size=8, out_indices=[3], init_cfg=None),
    weighting=dict(kind='{kind}'))
img_size = (32, 48)
_load = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadTasks')]
_pack = dict(type='vpt_dense.PackTasks')
_train = [*_load, dict(type='RandomFlip', prob=0.5),
          dict(type='vpt_dense.RandomCrop', crop_size=(32, 48)), _pack]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_train))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=[*_load, _pack]))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=[*_load, _pack]))
train_cfg = dict(max_iters=2, val_interval=2)
param_scheduler = []
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


@pytest.mark.slow
@pytest.mark.parametrize(('make', 'recipe', 'kind', 'method'), [
    (pascal, 'pascal-context', 'uncertainty', 'task-prompts'),
    (nyud, 'nyud', 'gradient_norm', 'mtlora')])
def test_sets_of_the_literature_are_checked_and_train(
        make, recipe, kind, method, tmp_path, capfd):
    root = make(tmp_path / 'data')
    file = tmp_path / 'recipe.py'
    file.write_text(TINY.format(configs=CONFIGS, root=tmp_path, recipe=recipe, kind=kind))
    checked = run_tool(capfd, 'check_dataset', file, '--json')
    split = json.loads(checked.out)['splits']['train']
    assert (split['maps'], split['problems']) == (15 if make is pascal else 12, [])
    trained = run_tool(capfd, 'train', file, '--method', method)
    assert trained.code == 0, trained.err
    summary = json.loads((tmp_path / 'work/summary.json').read_text())
    found = summary['last']['metrics']
    names = ['seg/mIoU', 'edges/ods_f', 'normals/mean_angle']
    names += ['parts/mIoU', 'saliency/mIoU'] if make is pascal else ['depth/rmse']
    assert all(np.isfinite(found[name]) for name in names)
    assert summary['task'] == 'multitask' and 'task heads' in summary['params']['parts']
    tested = run_tool(capfd, 'test', file, next((tmp_path / 'work').glob('best_*.pth')), '--method',
                      method, '--work-dir', tmp_path / 'tested')
    assert tested.code == 0, tested.err
    assert json.loads((tmp_path / 'tested/test.json').read_text())['metrics']['seg/mIoU'] == (
        pytest.approx(found['seg/mIoU']))
    seen = run_tool(capfd, 'predict', file, next((tmp_path / 'work').glob('best_*.pth')),
                    next(root.glob('*mages/*.jpg')), '--method', method, '--out', tmp_path / 'seen')
    assert seen.code == 0, seen.err
    names = {name.split('/')[0] for name in names}
    assert {each.parent.parent.name for each in (tmp_path / 'seen').glob('*/*/*')} == names
    page = (tmp_path / 'work/report.html').read_text()
    assert all(f', task {name}.' in page for name in names)
    assert page.count('class="viewer"') == len(names)

    next(root.glob('*seg*/**/*.png')).write_bytes(b'no')
    next(root.glob('edge/*.npy') if make is nyud else root.glob('sal_distill/*')).unlink()
    wrong = run_tool(capfd, 'check_dataset', file, '--json')
    told = '\n'.join(json.loads(wrong.out)['splits']['train']['problems'])
    assert wrong.code == 1 and '1 maps cannot be read' in told and '1 maps are missing' in told
