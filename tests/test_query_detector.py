"""EoMT and PMT's decoder for instances, on mmdet's data and metric."""

import json

import pytest
import torch

pytest.importorskip('mmdet')

from detection_data import make
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import MODELS
from mmengine.structures import InstanceData
from tool_helpers import run_tool
from utils import CONFIGS, in_scope, randomise

from vpt_dense import building, config, params
from vpt_dense.deploy import boxes, detectors, exporting
from vpt_dense.heads import query_masks

RECIPE = """
_base_ = '{configs}/vpt/{name}-instance_vit-s_dinov2_coco-folder.py'
work_dir = '{folder}/work-{name}'
dataset = dict(data_root='{folder}/data', classes=['green', 'red'])
img_size = 64
batch_size = 2
iters = 2
_loader = dict(num_workers=0, persistent_workers=False)
train_dataloader = _loader
val_dataloader = _loader
test_dataloader = _loader
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2, save_best=None))
_tiny = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
model = dict(
    backbone=dict(
        arch=dict(_delete_=True, **_tiny), patch_size=8, layer_scale_init_value=0.0,
        out_indices={indices}, init_cfg=dict(_delete_=True, type='Pretrained',
                                             checkpoint='{folder}/base.pth')),
    panoptic_head=dict(num_queries=12, num_blocks=2, num_points=64, {head}),
    test_cfg=dict(max_per_image=12))
"""
KINDS = {
    'eomt': dict(indices=[3], head='in_channels=32'),
    'pmd': dict(indices=[0, 1, 2, 3], head='in_channels=[32] * 4, num_heads=2, hidden_dims=32'),
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('queries')
    make(folder / 'data')
    arch = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)
    base = randomise(MODELS.build(dict(
        type='vpt_dense.VisionTransformer', img_size=64, patch_size=8, arch=arch)))
    torch.save(base.state_dict(), folder / 'base.pth')
    for name, further in KINDS.items():
        (folder / f'{name}.py').write_text(
            RECIPE.format(configs=CONFIGS, name=name, folder=folder, **further))
    return folder


def model_of(folder, name, method='deep', **options):
    torch.manual_seed(0)
    model = building.build_model(config.load(str(folder / f'{name}.py'), options, method))
    model.init_weights()
    return model


def samples():
    """Two images: squares that overlap, of one class; and nothing."""
    masks = torch.zeros(2, 64, 64)
    masks[0, 8:40, 8:40] = 1
    masks[1, 24:60, 24:60] = 1
    found = []
    for part in (masks, masks[:0]):
        boxes = torch.tensor([[8.0, 8, 40, 40], [24, 24, 60, 60]])[: len(part)]
        sample = DetDataSample(metainfo=dict(
            img_shape=(64, 64), ori_shape=(64, 64), batch_input_shape=(64, 64), img_id=0,
            scale_factor=(1.0, 1.0)))
        sample.gt_instances = InstanceData(
            bboxes=boxes, labels=torch.ones(len(part), dtype=torch.long),
            masks=BitmapMasks(part.numpy().astype('uint8'), 64, 64))
        found.append(sample)
    return masks, found


@pytest.mark.parametrize('name', KINDS)
def test_the_loss_is_that_of_the_instances(folder, name):
    """Also of an image without any; and steps lower it, with a gradient for all that trains."""
    model = model_of(folder, name).train()
    masks, truth = samples()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    head, classes = model.panoptic_head, torch.ones(2, dtype=torch.long)
    torch.manual_seed(1)
    found = model.loss(x, truth)
    assert len(found) == 3 * (1 + 2)
    torch.manual_seed(1)
    every = head.predictions(model.extract_feat(x), every=True)
    wanted = [query_masks.Target(classes, masks), query_masks.Target(classes[:0], masks[:0])]
    order = [every[-1], *every[:-1]]
    for prefix, (own, scores) in zip(('', 'b0.', 'b1.'), order, strict=True):
        parts = query_masks.losses(scores, own, wanted, query_masks.Weights(), 64)
        for key, value in parts.items():
            torch.testing.assert_close(found[prefix + key], value)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for _ in range(10):
        torch.manual_seed(1)
        total, _ = model.parse_losses(model.loss(x, truth))
        optimizer.zero_grad()
        total.backward()
        values.append(float(total.detach()))
        for key, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, key
        optimizer.step()
    assert values[-1] < 0.9 * values[0]
    assert params.count(model)['query head'][0] > 0


def test_what_queries_say_is_what_is_found(folder, monkeypatch):
    """Queries that know the instances: these come back as masks, boxes and scores."""
    model = model_of(folder, 'eomt').eval()
    masks, truth = samples()
    logits, classes = torch.full((1, 12, 64, 64), -20.0), torch.zeros(1, 12, 3)
    classes[..., 2] = 20  # nothing
    for query, mask in zip((4, 9), masks, strict=True):
        logits[0, query] = 40 * mask - 20
        classes[0, query] = torch.tensor([0.0, 20, 0])
    monkeypatch.setattr(model.panoptic_head, 'predictions', lambda inputs: [(logits, classes)])
    with torch.no_grad():
        found = model.predict(torch.zeros(1, 3, 64, 64), truth[:1])[0].pred_instances
    best = found[found.scores > 0.5]
    assert len(best) == 2 and best.labels.tolist() == [1, 1]
    for mask, box in zip(masks.bool(), truth[0].gt_instances.bboxes, strict=True):
        (own,) = [i for i in range(2) if torch.equal(best.masks[i], mask)]
        torch.testing.assert_close(best.bboxes[own], box, atol=1.0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_a_run(folder, name, capfd):
    """Trained, tested with mmdet's metric, and from its delta."""
    told = run_tool(capfd, 'train', folder / f'{name}.py', '--method', 'lora')
    assert told.code == 0, told.err
    summary = json.loads((folder / f'work-{name}/summary.json').read_text())
    assert any('segm_mAP' in key for key in json.dumps(summary).split('"')), summary


@pytest.mark.parametrize(('change', 'message'), [
    ({'model.neck': dict(type='vpt_dense.SimpleFeaturePyramid', in_channels=32)},
     'neck: QueryDetector reads the maps of the backbone'),
    ({'model.train_cfg': dict(num_points=3)}, 'train_cfg: EoMTInstanceHead reads nothing of it'),
    ({'model.test_cfg.max_per_image': 25}, 'queries and classes make 24 pairs'),
    ({'model.backbone.out_indices': [1, 3]}, r'out_indices=\[3\]'),
])
def test_what_cannot_be_is_refused(folder, change, message):
    with pytest.raises(ValueError, match=message):
        model_of(folder, 'eomt', **change)


def test_one_class_is_enough():
    in_scope('mmdet')
    head = MODELS.build(dict(
        type='vpt_dense.EoMTInstanceHead', in_channels=8, num_things_classes=1))
    assert head.class_head.out_features == 2
    with pytest.raises(ValueError, match='num_stuff_classes is 2'):
        MODELS.build(dict(type='vpt_dense.EoMTInstanceHead', in_channels=8, num_things_classes=1,
                          num_stuff_classes=2))


@pytest.mark.parametrize('name', KINDS)
def test_graphs_find_what_mmdet_finds(folder, tmp_path, name):
    """As files: in an image that is padded."""
    model = randomise(model_of(folder, name))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'm.pth')
    predictor = exporting.load(str(tmp_path / 'm.pth'), str(folder / f'{name}.py'), method='deep')
    module = detectors.ExportableDetector(predictor.model, exporting.Prepared(predictor)).eval()
    image = exporting._noise(1, 3, (43, 61), 5)
    with torch.no_grad():
        outputs = [each.numpy() for each in module(torch.from_numpy(image))]
    wanted = detectors.predicted(predictor, image)
    found = boxes.found(
        outputs, detectors.describe(predictor, module, None, 3), (43, 61), (43, 61))
    assert len(wanted.scores) == 12 and detectors.others([wanted], [found]) < 0.1


@pytest.mark.slow
def test_a_file_of_instances(folder, tmp_path, capfd):
    pytest.importorskip('onnxruntime')
    model = randomise(model_of(folder, 'eomt'))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'm.pth')
    told = run_tool(capfd, 'export', folder / 'eomt.py', tmp_path / 'm.pth', '--method', 'deep',
                    '--dynamic', '--out', tmp_path / 'x.onnx')
    assert told.code == 0 and 'of the boxes are others' in told.out, told.err
