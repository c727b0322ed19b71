"""Depth and normals: heads, losses, metrics and data against formulas; recipes end to end."""

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from map_data import make_folder, slope, write_recipe
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.structures import PixelData
from mmseg.evaluation import DepthMetric as MMSegDepthMetric
from mmseg.structures import SegDataSample
from tool_helpers import run_tool
from utils import CONFIGS, MAPS, images, in_scope, randomise

from vpt_dense import building, config, method_files, params, preflight, tasks
from vpt_dense.datasets import map_files
from vpt_dense.errors import UserError
from vpt_dense.evaluation import DepthMetric, NormalMetric
from vpt_dense.heads import GradientLoss, NormalLoss, SigLoss

ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
BACKBONE = dict(
    type='vpt_dense.VisionTransformer', arch=ARCH, img_size=32, patch_size=8, final_norm=False,
    out_type='featmap', out_indices=[3])
LINEAR = dict(
    type='vpt_dense.LinearDepthHead', in_channels=32, in_index=0, bins=16, dropout_ratio=0.0,
    norm_cfg=dict(type='BN'), loss_decode=dict(type='vpt_dense.SigLoss'))


def estimator(head=None, backbone=None, kind='Depth', **kwargs):
    """A tiny model; every parameter has a value."""
    in_scope('mmseg')
    key = f'{kind.lower()}_head'
    base = LINEAR if kind == 'Depth' else dict(
        type='vpt_dense.LinearNormalHead', in_channels=32, in_index=0, dropout_ratio=0.0,
        norm_cfg=dict(type='BN'), loss_decode=dict(type='vpt_dense.NormalLoss'))
    return randomise(MODELS.build({
        'type': f'vpt_dense.{kind}Estimator', 'backbone': {**BACKBONE, **(backbone or {})},
        key: {**base, **(head or {})}, 'test_cfg': dict(mode='whole'), **kwargs})).eval()


def sample_of(depth=None, found=None, **meta):
    """A data sample with maps."""
    sample = SegDataSample(metainfo=dict(img_path='a.png', **meta))
    for key, data in (('gt_depth_map', depth), ('pred_depth_map', found)):
        if data is not None:
            sample.set_data({key: PixelData(data=data)})
    return sample


# --- metrics ---------------------------------------------------------------------------------


def errors_of(truth, found, low, high):
    """The errors of depth from their formulas, in float64."""
    kept = (truth > low) & (truth < high)
    t, f = truth[kept].astype(np.float64), np.clip(found[kept].astype(np.float64), low, high)
    ratio, log = np.maximum(t / f, f / t), np.log(f) - np.log(t)
    return dict(
        **{f'd{k}': (ratio < 1.25**k).mean() for k in (1, 2, 3)},
        abs_rel=(abs(f - t) / t).mean(), sq_rel=((f - t) ** 2 / t).mean(),
        rmse=math.sqrt(((f - t) ** 2).mean()), rmse_log=math.sqrt((log**2).mean()),
        log10=abs(np.log10(f) - np.log10(t)).mean(),
        silog=math.sqrt((log**2).mean() - 0.5 * log.mean() ** 2))


def test_errors_of_depth_are_their_formulas():
    """Also mmseg's, where that gives any: the same images, none of which is at fault."""
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.5, 12, (3, 20, 30)).astype(np.float32)
    truths[:, :3] = 0
    founds = (truths * rng.uniform(0.4, 2, truths.shape) + 0.1).astype(np.float32)
    ours, theirs = DepthMetric(), MMSegDepthMetric(min_depth_eval=1e-3, max_depth_eval=10.0)
    pairs = list(zip(truths, founds.clip(1e-3, 10), strict=True))
    data = [sample_of(*(torch.from_numpy(each)[None] for each in pair)).to_dict()
            for pair in pairs]
    for metric in (ours, theirs):
        metric.process({}, data)
    found = ours.compute_metrics(ours.results)
    each = [errors_of(*pair, 1e-3, 10) for pair in pairs]
    assert list(found) == list(DepthMetric.METRICS)
    for key, value in found.items():
        assert value == pytest.approx(np.mean([e[key] for e in each]), rel=1e-6), key
    of_theirs = theirs.compute_metrics(theirs.results)
    assert found == pytest.approx(of_theirs, rel=1e-4)


def test_depth_is_limited_and_images_without_truth_left_out():
    truth, found = torch.full((1, 4, 4), 2.0), torch.zeros(1, 4, 4)
    metric = DepthMetric(min_depth_eval=0.5, depth_metrics=['rmse', 'd1'])
    metric.process({}, [sample_of(truth, found).to_dict(),
                        sample_of(torch.zeros(1, 4, 4), found).to_dict()])
    assert metric.compute_metrics(metric.results) == pytest.approx(dict(rmse=1.5, d1=0.0))
    with pytest.raises(UserError, match='none of 1 images'):
        metric.compute_metrics(metric.results[1:])
    with pytest.raises(UserError, match='not finite'):
        metric.process({}, [sample_of(truth, truth * math.nan).to_dict()])


@pytest.mark.parametrize(('crop', 'size', 'rows', 'columns'), [
    ('nyu_crop', (480, 640), (45, 471), (41, 601)),
    ('garg_crop', (352, 1216), (143, 349), (43, 1172)),
    ('eigen_crop', (352, 1216), (117, 321), (43, 1172)),
])
def test_crops_of_depth(crop, size, rows, columns):
    """The figures are those of mmseg and of public evaluations, at the sizes they are used at."""
    mask = DepthMetric(crop_type=crop)._get_eval_mask(torch.ones(size))
    wanted = torch.zeros(size, dtype=torch.bool)
    wanted[slice(*rows), slice(*columns)] = True
    torch.testing.assert_close(mask, wanted)
    if crop == 'nyu_crop':
        theirs = MMSegDepthMetric(crop_type=crop)._get_eval_mask(torch.ones(size))
        torch.testing.assert_close(mask, theirs)
        with pytest.raises(UserError, match='is for 640x480'):
            DepthMetric(crop_type=crop)._get_eval_mask(torch.ones(240, 320))


def test_angles_of_normals_are_their_formulas():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(3, 25, 20))
    found = truth + 0.3 * rng.normal(size=truth.shape)
    truth, found = (each / np.linalg.norm(each, axis=0) for each in (truth, found))
    truth[:, :4] = 0
    angles = np.degrees(np.arccos((truth * found).sum(0)[4:].ravel()))
    metric = NormalMetric()
    metric.process({}, [dict(gt_normal_map=dict(data=torch.from_numpy(truth)),
                             pred_normal_map=dict(data=torch.from_numpy(found)))])
    assert metric.compute_metrics(metric.results) == pytest.approx({
        'mean_angle': angles.mean(), 'median_angle': np.median(angles),
        'a11.25': (angles < 11.25).mean(), 'a22.5': (angles < 22.5).mean(),
        'a30': (angles < 30).mean()})
    assert 0 < (angles < 11.25).mean() < (angles < 30).mean() < 1


# --- losses ----------------------------------------------------------------------------------


def maps(seed=0, shape=(2, 1, 21, 18)):
    """Found and true depths and where they are valid."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0.5, 9, shape)
    found = truth * rng.uniform(0.6, 1.6, shape)
    valid = rng.random(shape) > 0.2
    return (torch.from_numpy(found), torch.from_numpy(np.where(valid, truth, 0)),
            torch.from_numpy(valid))


def test_sigloss_is_its_formula_and_warms_up():
    found, truth, valid = maps()
    g = np.log(found.numpy() + 1e-3)[valid] - np.log(truth.numpy() + 1e-3)[valid]
    whole = math.sqrt(g.var(ddof=1) + 0.15 * g.mean() ** 2)
    assert SigLoss(loss_weight=3.0)(found, truth, valid).item() == pytest.approx(3 * whole)
    loss = SigLoss(warm_up=2)
    values = [loss(found, truth, valid).item() for _ in range(3)]
    assert values == pytest.approx([math.sqrt(0.15) * abs(g.mean())] * 2 + [whole])
    resumed = SigLoss(warm_up=2)
    resumed.load_state_dict(loss.state_dict())
    assert resumed(found, truth, valid).item() == pytest.approx(whole)
    loss.eval()(found, truth, valid)
    assert loss.steps == 3


def test_gradient_loss_is_its_formula():
    found, truth, valid = maps()
    g = np.where(valid, np.log(found.numpy() + 1e-3) - np.log(truth.numpy() + 1e-3), 0)
    total = 0
    for step in (1, 2, 4, 8):
        part, there = g[:, 0, ::step, ::step], valid.numpy()[:, 0, ::step, ::step]
        each = 0
        for b, y, x in np.ndindex(part.shape):
            for v, u in ((y + 2, x), (y, x + 2)):
                if v < part.shape[1] and u < part.shape[2] and there[b, y, x] and there[b, v, u]:
                    each += abs(part[b, v, u] - part[b, y, x])
        total += each / there.sum()
    assert GradientLoss(loss_weight=0.5)(found, truth, valid).item() == pytest.approx(total / 2)


@pytest.mark.parametrize('kind', ['cosine', 'angle'])
def test_loss_of_normals_is_its_formula(kind):
    rng = np.random.default_rng(0)
    found, truth = (torch.from_numpy(rng.normal(size=(2, 3, 5, 6))) for _ in range(2))
    found, truth = F.normalize(found), F.normalize(truth)
    valid = torch.from_numpy(rng.random((2, 1, 5, 6)) > 0.3)
    cosine = (found * truth).sum(1)[valid[:, 0]].numpy()
    wanted = (1 - cosine if kind == 'cosine' else np.arccos(cosine)).mean()
    assert NormalLoss(kind)(found, truth, valid).item() == pytest.approx(wanted)


@pytest.mark.parametrize('loss', [SigLoss(), SigLoss(warm_up=1), GradientLoss()])
def test_losses_without_a_valid_pixel_or_an_error(loss):
    """Neither is NaN, nor are their slopes."""
    for truth, valid in ((0.0, False), (1.0, True)):
        found = torch.ones(1, 1, 8, 8, requires_grad=True)
        value = loss(found, torch.full_like(found, truth).detach(),
                     torch.full((1, 1, 8, 8), valid))
        value.backward()
        assert value < 1e-5 and found.grad.isfinite().all()


# --- heads and models ------------------------------------------------------------------------


def test_depth_is_a_mean_of_bins():
    head = estimator().depth_head
    scores = torch.randn(2, 16, 3, 4, generator=torch.Generator().manual_seed(0))
    weights = np.maximum(scores.double().numpy(), 0) + 0.1
    bins = np.linspace(1e-3, 10, 16)[:, None, None]
    wanted = (weights * bins).sum(1) / weights.sum(1)
    np.testing.assert_allclose(head.to_map(scores)[:, 0].numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize('blocks', [1, 2])
@pytest.mark.parametrize('token', [False, True])
def test_linear_head_is_upsampled_tokens_through_a_linear_layer(blocks, token):
    """DINOv2's order: tokens, the class token beside them, upsampled, then the linear layer."""
    several = dict(in_channels=[32] * 2, in_index=[0, 1]) if blocks == 2 else {}
    model = estimator(
        dict(cls_token=token, **several),
        dict(out_type='raw' if token else 'featmap', out_indices=[1, 3][2 - blocks:]))
    head, x = model.depth_head, images(2, 3, 32, 40)
    head.norm.running_mean.normal_()
    with torch.no_grad():
        parts = []
        for out in model.backbone(x):
            raw = out if token else out.flatten(2).transpose(1, 2)  # (B, N, C)
            raw = F.layer_norm(raw, (32,), eps=1e-6)
            patches = raw[:, -20:].transpose(1, 2).unflatten(2, (4, 5))
            parts.append(patches)
            if token:
                parts.append(raw[:, 0, :, None, None].expand_as(patches))
        tokens = head.norm(torch.cat(parts, 1))
        large = F.interpolate(tokens, scale_factor=4, mode='bilinear')
        wanted = head.to_map(head.conv_seg(large))
        found = model(x, mode='tensor')
    assert found.shape == (2, 1, 16, 20)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_class_token_of_a_timm_model_with_registers():
    backbone = dict(
        _delete_=True, type='vpt_dense.TimmVisionTransformer', model='vit_small_patch16_dinov3',
        embed_dim=32, depth=2, num_heads=2, out_indices=[1], out_type='raw', norm_outputs=False)
    in_scope('mmseg')
    backbone.pop('_delete_')
    model = randomise(MODELS.build(dict(
        type='vpt_dense.DepthEstimator', backbone=backbone,
        depth_head=dict(LINEAR, cls_token=True), test_cfg=dict(mode='whole')))).eval()
    x = images(1, 3, 32, 48)
    with torch.no_grad():
        ((patches, token),) = model.extract_feat(x)
        (raw,) = model.backbone(x)
    assert patches.shape == (1, 32, 2, 3) and raw.shape == (1, 1 + 4 + 6, 32)
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), raw[:, 5:])
    torch.testing.assert_close(token, raw[:, 0])


@pytest.mark.parametrize('readout', ['ignore', 'project', 'add'])
def test_dpt_is_mmsegs_on_normalised_tokens(readout):
    head = dict(
        type='vpt_dense.DPTDepthHead', in_channels=[32] * 4, in_index=[0, 1, 2, 3], channels=8,
        post_process_channels=[4, 8, 8, 8], readout_type=readout, norm_cfg=None)
    model = estimator(head, dict(
        out_indices=[0, 1, 2, 3], out_type='featmap' if readout == 'ignore' else 'raw'))
    theirs = MODELS.build(dict(
        type='mmseg.DPTHead', embed_dims=32, num_classes=16, in_channels=[32] * 4,
        in_index=[0, 1, 2, 3], input_transform='multiple_select', channels=8, norm_cfg=None,
        post_process_channels=[4, 8, 8, 8], readout_type=readout)).eval()
    theirs.load_state_dict({name: value for name, value in model.depth_head.state_dict().items()
                            if not name.startswith('loss_decode')})
    with torch.no_grad():
        features = model.extract_feat(images(1, 3, 32, 40))
        pairs = [each if isinstance(each, tuple) else (each, each[:, :, 0, 0])
                 for each in features]
        pairs = [(F.layer_norm(p.permute(0, 2, 3, 1), (32,), eps=1e-6).permute(0, 3, 1, 2),
                  F.layer_norm(t, (32,), eps=1e-6)) for p, t in pairs]
        found = model.depth_head(features)
        torch.testing.assert_close(found, model.depth_head.to_map(theirs(pairs)))
    assert found.shape == (1, 1, 32, 48) and found.std() > 0


@pytest.mark.parametrize('kind', ['Depth', 'Normal'])
def test_windows_are_averaged_and_mirrored_images_turned_back(kind):
    model = estimator(kind=kind, test_cfg=ConfigDict(
        mode='slide', crop_size=(32, 32), stride=(16, 16)))
    x = images(1, 3, 32, 48)
    key = model.FOUND
    with torch.no_grad():
        (sample,) = model.predict(x, [sample_of(ori_shape=(32, 48), img_shape=(32, 48))])
        left, right = (F.interpolate(model.decode_head(model.extract_feat(x[..., at:at + 32])),
                                     (32, 32), mode='bilinear') for at in (0, 16))
        total = F.pad(left, (0, 16)) + F.pad(right, (16, 0))
        total[..., 16:32] /= 2
        wanted = model.decode_head.finish(total)[0]
        found = sample.get(key).data
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        meta = dict(ori_shape=(32, 48), img_shape=(32, 48), flip=True, flip_direction='horizontal')
        (mirrored,) = model.predict(x, [sample_of(**meta)])
    turned = found.flip(2)
    if kind == 'Normal':
        turned[0] *= -1
        torch.testing.assert_close(found.norm(dim=0), torch.ones(32, 48))
    torch.testing.assert_close(mirrored.get(key).data, turned)


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(data_preprocessor=dict(type='SegDataPreProcessor')), 'seg_pad_val is 255'),
    (dict(head=dict(type='vpt_dense.LinearNormalHead', bins=None)), 'bins'),
    (dict(head=dict(cls_token=True)), "out_type='raw'"),
    (dict(backbone=dict(out_type='raw')), "out_type='featmap'"),
    (dict(backbone=dict(out_type='avg_featmap')), 'one vector an image'),
    (dict(head=dict(min_depth=10.0)), 'min_depth 10.0 must be below'),
    (dict(backbone=dict(out_type='raw', with_cls_token=False)), 'it has no class token'),
    (dict(backbone=dict(out_type='raw', image_prompt=dict(
        type='vpt_dense.PadPrompt', border=8))), 'border'),
])
def test_what_a_model_refuses(arguments, message):
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        estimator(**arguments)(images(1, 3, 32, 32), mode='tensor')


def test_a_model_of_depth_is_none_of_segmentation():
    model = estimator()
    assert tasks.of(dict(model.named_children())).name == 'depth'
    assert not [name for name in model.state_dict() if name.startswith('decode_head')]
    assert tasks.of(dict(estimator(kind='Normal').named_children())).name == 'normals'
    assert tasks.of(dict(decode_head={})).name == 'segmentation'


# --- files and data sets ---------------------------------------------------------------------


def test_depth_of_files(tmp_path):
    depth = np.random.default_rng(0).uniform(0.5, 60, (6, 7)).astype(np.float32)
    depth[0, :4] = 0
    for scale, suffix in ((1000, '.png'), (256, '.png'), (1, '.npy')):
        path = map_files.write_depth(tmp_path / f'{scale}', depth, scale, 60)
        assert path.suffix == suffix
        np.testing.assert_allclose(map_files.read_depth(path, scale), depth, atol=0.5 / scale)
    assert map_files.write_depth(tmp_path / 'far', depth, 1000, 80).suffix == '.npy'
    cv2.imwrite(str(tmp_path / 'a.tif'), depth)
    np.testing.assert_array_equal(map_files.read_depth(tmp_path / 'a.tif', 1), depth)
    odd = depth.astype(np.float64)
    odd[1, :3] = -1, np.nan, np.inf
    np.save(tmp_path / 'odd.npy', odd)
    read = map_files.read_depth(tmp_path / 'odd.npy', 1)
    assert (read[1, :3] == 0).all() and (read[2:] == depth[2:]).all()
    cv2.imwrite(str(tmp_path / 'rgb.png'), np.ones((4, 4, 3), np.uint16))
    (tmp_path / 'text.npy').write_text('no')
    for name, message in (('rgb.png', 'has 3 channels'), ('text.npy', 'cannot be read')):
        with pytest.raises(ValueError, match=message):
            map_files.read_depth(tmp_path / name, 1)


def test_normals_of_files(tmp_path):
    _, normals = slope()
    path = map_files.write_normals(tmp_path / 'a', normals)
    np.testing.assert_allclose(map_files.read_normals(path), normals, atol=1e-4)
    coded = np.round((normals + 1) / 2 * 255).astype(np.uint8)
    coded[(normals == 0).all(2)] = 0
    cv2.imwrite(str(tmp_path / 'b.png'), coded[..., ::-1])
    np.testing.assert_allclose(map_files.read_normals(tmp_path / 'b.png'), normals, atol=0.01)
    np.save(tmp_path / 'c.npy', 2 * normals)
    np.testing.assert_allclose(map_files.read_normals(tmp_path / 'c.npy'), normals, atol=1e-6)


def test_folders_of_depth_are_those_of_mmsegs_nyu_and_lists_those_of_kitti(tmp_path):
    in_scope('mmseg')
    make_folder(tmp_path)
    prefix = dict(img_path='images/training', depth_map_path='annotations/training')
    common = dict(data_root=str(tmp_path), data_prefix=prefix)
    for path in (tmp_path / 'images/training').iterdir():
        path.rename(path.with_name(f'kitchen_{path.name}'))
    for path in (tmp_path / 'annotations/training').iterdir():
        path.rename(path.with_name(f'kitchen_{path.name}'))
    ours = DATASETS.build(dict(type='vpt_dense.DepthFolder', depth_scale=1000, **common))
    theirs = DATASETS.build(dict(type='mmseg.NYUDataset', img_suffix='.png', **common))
    keys = ('img_path', 'depth_map_path')
    assert [[ours.get_data_info(i)[key] for key in keys] for i in range(len(ours))] == [
        [theirs.get_data_info(i)[key] for key in keys] for i in range(len(theirs))]
    (tmp_path / 'list.txt').write_text(
        'kitchen_2.png kitchen_1.png 721.5\n/kitchen_0.png /kitchen_3.png 721.5\n'
        'kitchen_3.png None 721.5\n')
    listed = DATASETS.build(dict(
        type='vpt_dense.DepthFolder', depth_scale=256, ann_file='list.txt', **common))
    assert [[Path(listed.get_data_info(i)[key]).stem[-1] for key in keys] for i in range(2)] == [
        ['2', '1'], ['0', '3']]
    assert len(listed) == 2 and listed.get_data_info(0)['depth_scale'] == 256


@pytest.mark.parametrize(('kind', 'arguments', 'message'), [
    ('DepthFolder', {}, 'dataset.depth_scale: say how many'),
    ('DepthFolder', dict(depth_scale=0), 'above 0'),
    ('DepthFolder', dict(depth_scale=1, metainfo=dict(classes=['a'])), 'has none'),
    ('DepthFolder', dict(depth_scale=1, pipeline=[
        dict(type='RandomRotate', prob=1.0, degree=9)]), 'a depth of 255 m; set seg_pad_val=0'),
    ('NormalFolder', dict(pipeline=[dict(type='RandomRotate', prob=1.0, degree=9)]), 'turns'),
    ('NormalFolder', dict(pipeline=[dict(type='RandomFlip', prob=0.5)] * 2), 'two RandomFlips'),
    ('NormalFolder', dict(pipeline=[dict(type='PackSegInputs')]), 'vpt_dense.PackNormals'),
])
def test_what_a_folder_refuses(kind, arguments, message):
    in_scope('mmseg')
    with pytest.raises(UserError, match=re.escape(message)):
        DATASETS.build(dict(type=f'vpt_dense.{kind}', lazy_init=True, **arguments))


def test_augmentation_leaves_metres_as_they_are(tmp_path):
    """Enlarged, cropped, mirrored, turned: a plane of one depth keeps it, and borders have none."""
    in_scope('mmseg')
    path = map_files.write_depth(tmp_path / 'a', np.full((40, 60), 3.0), 1000, 10)
    cv2.imwrite(str(tmp_path / 'image.png'), np.zeros((40, 60, 3), np.uint8))
    data = dict(img_path=str(tmp_path / 'image.png'), depth_map_path=str(path), depth_scale=1000,
                seg_fields=[])
    for step in (
        dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadDepth'),
        dict(type='Resize', scale_factor=1.7), dict(type='RandomFlip', prob=1.0),
        dict(type='RandomRotate', prob=1.0, degree=(20, 21), seg_pad_val=0),
        dict(type='vpt_dense.RandomCrop', crop_size=(64, 90)), dict(type='PackSegInputs'),
    ):
        data = TRANSFORMS.build(step)(data)
    depth = data['data_samples'].gt_depth_map.data
    assert depth.shape == (1, 64, 90) and set(depth.unique().tolist()) == {0.0, 3.0}
    wrong = dict(type='vpt_dense.LoadDepth')
    with pytest.raises(ValueError, match='its image 9x5'):
        TRANSFORMS.build(wrong)(dict(
            depth_map_path=str(path), depth_scale=1000, seg_fields=[], ori_shape=(5, 9)))


@pytest.mark.parametrize('direction', ['horizontal', 'vertical', 'diagonal', None])
def test_mirrored_normals_are_those_of_the_mirrored_depth(direction, tmp_path):
    """Normals that differences of the mirrored depth give, as the image is seen then."""
    in_scope('mmseg')
    y, x = np.mgrid[:24, :30]
    rays = np.stack([(x - 14.5) / 30, (11.5 - y) / 30, -np.ones((24, 30))], axis=2)

    def normals_of(depth):
        points = rays * depth[..., None]
        right, up = points[:, 1:] - points[:, :-1], points[:-1] - points[1:]
        found = np.cross(right[:-1], up[:, :-1])
        return found / np.linalg.norm(found, axis=2, keepdims=True)

    normal = np.array([0.4, -0.3, 1.0]) / np.linalg.norm([0.4, -0.3, 1.0])
    depth = -3 / (rays @ normal)
    np.testing.assert_allclose(normals_of(depth), np.broadcast_to(normal, (23, 29, 3)), atol=1e-6)
    path = map_files.write_normals(tmp_path / 'a', np.broadcast_to(normal, (24, 30, 3)))
    data = dict(img=np.zeros((24, 30, 3), np.uint8), img_shape=(24, 30), ori_shape=(24, 30),
                img_path='a.png', normal_map_path=str(path), seg_fields=[])
    flip = dict(type='RandomFlip', prob=1.0, direction=direction) if direction else dict(
        type='RandomFlip', prob=0.0)
    for step in (dict(type='vpt_dense.LoadNormals'), flip, dict(type='vpt_dense.PackNormals')):
        data = TRANSFORMS.build(step)(data)
    axes = {'horizontal': (1,), 'vertical': (0,), 'diagonal': (0, 1), None: ()}[direction]
    wanted = normals_of(np.flip(depth, axes))
    found = data['data_samples'].gt_normal_map.data.numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(found[:-1, :-1], wanted, atol=1e-3)


def test_the_part_of_kitti(tmp_path):
    in_scope('mmseg')
    rows = np.arange(375)[:, None] * np.ones((1, 1242))
    data = TRANSFORMS.build(dict(type='vpt_dense.KITTICrop'))(dict(
        img=np.repeat(rows[..., None], 3, 2), gt_depth_map=rows + np.arange(1242) / 2000,
        seg_fields=['gt_depth_map'], ori_shape=(375, 1242)))
    assert data['img'].shape == (352, 1216, 3) and data['ori_shape'] == (352, 1216)
    assert data['gt_depth_map'][0, 0] == pytest.approx(23 + 13 / 2000)
    with pytest.raises(ValueError, match='smaller than 1216x352'):
        TRANSFORMS.build(dict(type='vpt_dense.KITTICrop'))(dict(img=np.zeros((9, 9, 3))))


# --- recipes ---------------------------------------------------------------------------------


@pytest.mark.parametrize('recipe', MAPS)
def test_recipes_are_runs(recipe):
    """Built as they are, with a method."""
    cfg = config.load(str(CONFIGS / recipe), method='deep')
    preflight.check_model(cfg.model)
    preflight.check_heads(cfg)
    model = building.build_model(cfg, 'meta')
    parts = params.count(model)
    assert 0 < parts['prompt'][0] < params.add_up(parts)[1]
    head = 'normal head' if 'normal' in recipe else 'depth head'
    assert parts[head][0] == parts[head][1] > 0


@pytest.mark.slow
def test_every_method_of_segmentation_on_depth(tmp_path):
    """Each trains a step, or is one that is for a backbone or task of its own, in one line."""
    file = write_recipe(tmp_path)
    refused = []
    for method in method_files.names():
        try:
            cfg = config.load(str(file), method=method)
            model = building.build_model(cfg).train()
        except (UserError, ValueError, TypeError) as error:
            refused.append(method)
            assert '\n' not in str(error), method
            continue
        data = sample_of(torch.full((1, 32, 48), 2.0), img_shape=(32, 48), ori_shape=(32, 48))
        loss, _ = model.parse_losses(model.loss(images(2, 3, 32, 48), [data, data]))
        loss.backward()
        assert loss.isfinite()
        assert model.depth_head.conv_seg.weight.grad.abs().sum() > 0, method
    assert {'deep', 'lora', 'adaptformer', 'ssf', 'head', 'full', 'side', 'rein', 'pad'}.isdisjoint(
        refused)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A tiny recipe and the folder of a run of it with ``deep``."""
    root = tmp_path_factory.mktemp('depth')
    return write_recipe(root), root


def test_train_test_predict(trained, capfd):
    file, root = trained
    run = run_tool(capfd, 'train', file, '--method', 'deep')
    assert run.code == 0, run.err
    work = root / 'work'
    summary = json.loads((work / 'summary.json').read_text())
    scores = [each['metrics']['rmse'] for each in
              json.loads((work / 'evaluations.json').read_text())]
    assert summary['metric'] == 'rmse' and summary['best']['metrics']['rmse'] == min(scores)
    assert 'depth head' in summary['params']['parts'] and 'data:image' in (
        work / 'report.html').read_text()
    best = next(work.glob('best_rmse*.pth'))

    tested = run_tool(capfd, 'test', file, best, '--method', 'deep', '--out', root / 'maps',
                      '--show-dir', root / 'shown', '--work-dir', root / 'tested')
    assert tested.code == 0, tested.err
    measured = json.loads((root / 'tested/test.json').read_text())['metrics']
    assert measured['rmse'] == pytest.approx(min(scores))
    each = []
    for i in range(4):
        truth, found = (map_files.read_depth(folder / f'{i}.png', 1000) for folder in (
            root / 'data/annotations/validation', root / 'maps'))
        each.append(errors_of(truth, found, 1e-3, 10)['rmse'])
        picture = cv2.imread(str(root / f'shown/{i}.png'))
        assert picture.shape[1] > 3 * 56  # image, truth, prediction
    assert np.mean(each) == pytest.approx(measured['rmse'], abs=1e-3)

    sources = sorted((root / 'data/images/validation').glob('*.png'))
    for more in ([], ['--skip-existing']):
        predicted = run_tool(capfd, 'predict', file, best, *sources, '--method', 'deep', '--out',
                             root / 'out', '--overlay', *more)
        assert predicted.code == 0, predicted.err
    for i in range(4):
        np.testing.assert_array_equal(
            *(cv2.imread(str(folder / f'{i}.png'), cv2.IMREAD_UNCHANGED)
              for folder in (root / 'out/depth', root / 'maps')))
        assert cv2.imread(str(root / f'out/overlays/{i}.jpg')).shape == (40, 56, 3)
    told = json.loads((root / 'out/summary.json').read_text())
    assert (told['task'], told['existing'], told.get('pixels')) == ('depth', 4, None)
    refused = run_tool(capfd, 'predict', file, best, sources[0], '--method', 'deep', '--out',
                       root / 'no', '--probabilities', 'npz')
    assert refused.code and '--probabilities is for segmentation' in refused.err

    turned = run_tool(capfd, 'test', file, best, '--method', 'deep', '--tta', '--work-dir',
                      root / 'turned')
    assert turned.code == 0, turned.err
    mirrored = json.loads((root / 'turned/test.json').read_text())['metrics']['rmse']
    assert mirrored != measured['rmse'] and mirrored == pytest.approx(measured['rmse'], rel=0.2)


@pytest.mark.slow
def test_counts_memory_and_a_look(trained, capfd):
    file, root = trained
    counted = run_tool(capfd, 'count_params', file, '--method', 'deep', '--memory', '--json')
    assert counted.code == 0, counted.err
    (found,) = json.loads(counted.out).values()
    assert found['parts']['depth head']['total'] > 0 and found['memory']['megabytes']['peak'] > 0
    seen = run_tool(capfd, 'browse_dataset', file, '--number', 2, '--out-dir', root / 'seen')
    assert seen.code == 0 and len(list((root / 'seen').rglob('*.png'))) == 2, seen.err


@pytest.mark.slow
def test_exported(trained, capfd):
    """The graph gives what the model gives; what is of classes is refused."""
    file, root = trained
    if not (root / 'work').is_dir():
        assert run_tool(capfd, 'train', file, '--method', 'deep').code == 0
    (last,) = (root / 'work').glob('iter_2.pth')
    for more in ([], ['--resize', '--dynamic']):
        out = root / f'{len(more)}.pt2'
        exported = run_tool(capfd, 'export', file, last, '--method', 'deep', '--out', out, *more)
        assert exported.code == 0, exported.err
        graph = torch.export.load(str(out)).module()
        with torch.no_grad():
            depth = graph(torch.full((2, 3, 32, 48), 99.0))
        assert depth.shape == (2, 1, *((32, 48) if more else (16, 24))) and (depth > 0).all()
    refused = run_tool(capfd, 'export', file, last, '--method', 'deep', '--out', root / 'no.pt2',
                       '--argmax')
    assert refused.code and '--argmax is for scores of classes' in refused.err
    refused = run_tool(capfd, 'analyse', 'errors', file, last, '--method', 'deep', '--out',
                       root / 'errors')
    assert refused.code and 'this is for segmentation and classification' in refused.err


@pytest.mark.slow
def test_normals_train_and_are_predicted(tmp_path, capfd):
    file = write_recipe(tmp_path, 'linear_vit-s_dinov2_normalfolder')
    run = run_tool(capfd, 'train', file, '--method', 'lora')
    assert run.code == 0, run.err
    summary = json.loads((tmp_path / 'work/summary.json').read_text())
    assert summary['metric'] == 'mean_angle' and 'normal head' in summary['params']['parts']
    best = next((tmp_path / 'work').glob('best_mean_angle*.pth'))
    tested = run_tool(capfd, 'test', file, best, '--method', 'lora', '--tta', '--out',
                      tmp_path / 'maps', '--show-dir', tmp_path / 'shown')
    assert tested.code == 0, tested.err
    normals = map_files.read_normals(tmp_path / 'maps/0.png')
    np.testing.assert_allclose(np.linalg.norm(normals, axis=2), 1, atol=1e-4)
    predicted = run_tool(capfd, 'predict', file, best, tmp_path / 'data/images/validation/0.png',
                         '--method', 'lora', '--out', tmp_path / 'out', '--overlay')
    assert predicted.code == 0, predicted.err
    assert map_files.read_normals(tmp_path / 'out/normals/0.png').shape == (40, 56, 3)


def test_what_the_check_of_a_data_set_finds(tmp_path, capfd):
    file = write_recipe(tmp_path)
    good = run_tool(capfd, 'check_dataset', file, '--json')
    report = json.loads(good.out)
    train = report['splits']['train']
    assert (report['task'], report['ok'], train['maps'], train['warnings']) == (
        'depth', True, 4, [])
    depths = np.concatenate([slope(seed=i)[0].ravel() for i in range(4)])
    known = depths[depths > 0]
    assert train['depth']['min'] == pytest.approx(known.min(), abs=1e-3)
    assert train['depth']['max'] == pytest.approx(known.max(), abs=1e-3)
    assert train['known'] == pytest.approx(len(known) / len(depths))
    assert 'middle' in run_tool(capfd, 'check_dataset', file).out

    folder = tmp_path / 'data/annotations/training'
    cv2.imwrite(str(folder / '0.png'), np.zeros((40, 56), np.uint16))
    cv2.imwrite(str(folder / '1.png'), np.full((40, 56), 200, np.uint8))
    cv2.imwrite(str(folder / '2.png'), np.full((40, 50), 2000, np.uint16))
    (folder / '3.png').write_bytes(b'no')
    (folder / 'more.png').write_bytes((folder / '2.png').read_bytes())
    wrong = run_tool(capfd, 'check_dataset', file, '--json')
    split = json.loads(wrong.out)['splits']['train']
    told = '\n'.join([*split['problems'], *split['warnings']])
    for text in ('1 maps cannot be read', '2.png is 56x40, its map 50x40', '1 maps have 8 bits',
                 '1 of 3 maps are 0 everywhere', '1 maps without an image'):
        assert text in told, told
    assert wrong.code == 1
    metres = run_tool(capfd, 'check_dataset', file, '--cfg-options', 'dataset.depth_scale=1')
    assert 'is dataset.depth_scale=1 the number of units in a metre?' in metres.out


@pytest.mark.slow
def test_faults_are_told_before_training(tmp_path, capfd):
    file = write_recipe(tmp_path)
    far = run_tool(capfd, 'train', file, '--method', 'head', '--cfg-options',
                   'dataset.depth_scale=1')
    assert far.code and 'all depths are beyond 10 m' in far.err, far.err
    labels = run_tool(capfd, 'train', file, '--method', 'da-vpt')
    assert labels.code and 'needs class labels' in labels.err, labels.err
    (tmp_path / 'data/annotations/training/1.png').unlink()
    bare = run_tool(capfd, 'train', file, '--method', 'head')
    assert bare.code and '1 of 4 images have no map' in bare.err, bare.err
