"""Panoptic models as files: their maps are those of mmdet's own code. ONNX needs `export` too."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.models.seg_heads import MaskFormerFusionHead
from test_panoptic import KINDS, folder, model_of  # noqa: F401 - a fixture
from tool_helpers import run_tool
from utils import randomise

import vpt_dense
from vpt_dense import segments
from vpt_dense.deploy import boxes, detectors, exporting, onnx_model


def save(folder, name, path):  # noqa: F811
    """A checkpoint whose queries are sure of several classes, as those of a trained model."""
    model = randomise(model_of(folder, name))
    generator = torch.Generator().manual_seed(0)
    head = model.panoptic_head
    with torch.no_grad():
        for part in (getattr(head, 'q', None) or head.query_feat,
                     getattr(head, 'class_head', None) or head.cls_embed):
            part.weight.copy_(4 * torch.randn(part.weight.shape, generator=generator))
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def load(folder, name, path):  # noqa: F811
    return exporting.load(str(path), str(folder / f'{name}.py'), method='deep')


@pytest.mark.parametrize('low', [False, True])
def test_queries_make_the_map_that_they_make_in_mmdet(low):
    """At thresholds that leave queries out, in the pixels of a larger file."""
    generator = torch.Generator().manual_seed(0)
    settings = dict(object_mask_thr=0.4, iou_thr=0.3, filter_low_score=low)
    fusion = MaskFormerFusionHead(3, 2, test_cfg=settings)
    coarse = torch.nn.functional.interpolate(
        8 * torch.randn(10, 20, 4, 5, generator=generator), size=(12, 16), mode='bilinear')
    seen, sure = [], 0
    for masks in coarse:
        logits = 3 * torch.randn(20, 6, generator=generator)
        whole = torch.nn.functional.interpolate(masks[None], size=(48, 64), mode='bilinear')
        file = torch.nn.functional.interpolate(
            whole[..., :43, :61], size=(91, 130), mode='bilinear')[0]
        wanted = fusion.panoptic_postprocess(logits, file).sem_seg[0].numpy()
        card = dict(output=dict(names=['logits', 'masks']), classes=list('abcde'),
                    detector=dict(settings, things=3, divisor=16))
        found = boxes.found([logits.numpy(), masks.numpy()], card, (43, 61), (91, 130))
        ids, labels = segments.found_segments(wanted, 5)
        assert (found.ids != ids).mean() < 1e-3 and found.labels.tolist() == labels.tolist()
        seen += labels.tolist()
        best = logits.softmax(1).max(1)
        sure += int(((best.values > 0.4) & (best.indices < 5)).sum())
    assert sure > len(seen) > 12 and min(seen) < 3 <= max(seen)


@pytest.mark.parametrize('name', KINDS)
def test_graphs_find_what_mmdet_finds(folder, tmp_path, name):  # noqa: F811
    """In images of two sizes, one of which is padded."""
    path = save(folder, name, tmp_path / 'm.pth')
    for size in ((48, 64), (43, 61)):
        predictor = load(folder, name, path)
        module = detectors.ExportableDetector(predictor.model, exporting.Prepared(predictor)).eval()
        card = detectors.describe(predictor, module, None, 3)
        image = exporting._noise(1, 3, size, 5)
        wanted = detectors.predicted(predictor, image)
        detectors.open_up(predictor.model)
        with torch.no_grad():
            outputs = [each.numpy() for each in module(torch.from_numpy(image))]
        found = boxes.found(outputs, card, size, size)
        assert len(wanted.labels) >= 2 and found.things == wanted.things == 2
        assert (found.ids != wanted.ids).mean() < 0.01
        assert found.labels.tolist() == wanted.labels.tolist()


def test_a_graph_of_torch_of_any_size(folder, tmp_path, capfd):  # noqa: F811
    """Where nothing is sure enough, thresholds of 0 are compared, and the file keeps its own."""
    path = save(folder, 'eomt', tmp_path / 'm.pth')
    told = run_tool(capfd, 'export', folder / 'eomt.py', path, '--method', 'deep', '--dynamic',
                    '--out', tmp_path / 'x.pt2', '--cfg-options',
                    'model.test_cfg.object_mask_thr=1.0')
    assert told.code == 0, told.err
    assert '0 of the segments are others than those of the model' in told.out
    assert 'with a threshold of 0' in told.out and 'TokenPrompt made constants' in told.out
    extra = {'vpt_dense': ''}
    program = torch.export.load(tmp_path / 'x.pt2', extra_files=extra).module()
    card = json.loads(extra['vpt_dense'])
    assert card['detector']['object_mask_thr'] == 1.0 and card['task'] == 'panoptic'
    image = exporting._noise(1, 3, (43, 85), 9)
    outputs = [each.numpy() for each in program(torch.from_numpy(image))]
    assert not len(boxes.found(outputs, card, (43, 85), (43, 85)).labels)
    found = boxes.found(outputs, boxes.without_thresholds(card), (43, 85), (43, 85))
    wanted = detectors.predicted(load(folder, 'eomt', path), image)
    assert len(found.labels) >= 2 and detectors.others([wanted], [found]) == 0


@pytest.mark.slow
@pytest.mark.parametrize('size', [('--size', 43, 61), ('--dynamic',)], ids=['one', 'any'])
@pytest.mark.parametrize('name', KINDS)
def test_graphs_of_torch_of_all_kinds(folder, tmp_path, capfd, name, size):  # noqa: F811
    path = save(folder, name, tmp_path / 'm.pth')
    told = run_tool(capfd, 'export', folder / f'{name}.py', path, '--method', 'deep', *size,
                    '--out', tmp_path / 'x.pt2')
    assert told.code == 0, told.err
    extra = {'vpt_dense': ''}
    program = torch.export.load(tmp_path / 'x.pt2', extra_files=extra).module()
    image = exporting._noise(1, 3, (43, 61), 9)
    outputs = [each.numpy() for each in program(torch.from_numpy(image))]
    found = boxes.found(outputs, json.loads(extra['vpt_dense']), (43, 61), (43, 61))
    wanted = detectors.predicted(load(folder, name, path), image)
    assert len(wanted.labels) >= 2 and detectors.others([wanted], [found]) == 0


def test_a_graph_that_computes_others_is_not_written(
    folder, tmp_path, capfd, monkeypatch  # noqa: F811
):
    path, own = save(folder, 'eomt', tmp_path / 'm.pth'), detectors.query_masks
    calls = []

    def drifting(*arguments):
        logits, masks = own(*arguments)
        calls.append(1)
        return logits, masks if len(calls) < 3 else masks + 0.1 * abs(masks).max()

    monkeypatch.setitem(detectors.KINDS, 'query masks', (drifting, ('logits', 'masks')))
    told = run_tool(capfd, 'export', folder / 'eomt.py', path, '--method', 'deep', '--size', 48,
                    64, '--out', tmp_path / 'x.pt2')
    assert told.code == 2 and 'is not written: largest difference of masks' in told.err
    assert not (tmp_path / 'x.pt2').exists()


def test_counterparts_of_segments_are_counted():
    from vpt_dense.predicting.results import Panoptic

    ids = np.kron([[1, 2], [0, 2]], np.ones((8, 8))).astype(np.int32)
    one = Panoptic(ids, np.array([0, 2]), ('a', 'b', 'c'), 2)

    def share(labels=(0, 2), change=0):
        new = ids.copy()
        new[:change, 8] = 0
        return detectors.others([one], [Panoptic(new, np.array(labels), one.classes, 2)])

    assert share() == share(change=5) == 0
    assert share(labels=(1, 2)) == share(change=8) == 0.5


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'options'), [
    ('eomt', ['--dynamic']), ('pmd', ['--dynamic']), ('mask2former', ['--size', 48, 64])])
def test_predicting_with_an_onnx_file(folder, tmp_path, capfd, name, options):  # noqa: F811
    """The same maps as those of the checkpoint, and all that predict writes of them."""
    pytest.importorskip('onnxruntime')
    path = save(folder, name, tmp_path / 'm.pth')
    told = run_tool(capfd, 'export', folder / f'{name}.py', path, '--method', 'deep', '--out',
                    tmp_path / 'x.onnx', *options)
    assert told.code == 0, told.err
    images = sorted(map(str, (folder / 'data/images/val').glob('*.png')))[:2]
    wanted = vpt_dense.load(path, folder / f'{name}.py', method='deep').predict(images)
    found = list(onnx_model.load(tmp_path / 'x.onnx').stream(images))
    for one, other in zip(wanted, found, strict=True):
        assert one.labels.tolist() == other.labels.tolist() and len(one.labels) >= 2
        assert (one.ids != other.ids).mean() < 0.01
    told = run_tool(capfd, 'predict', tmp_path / 'x.onnx', *images, '--out', tmp_path / 'out',
                    '--overlay')
    assert told.code == 0, told.err
    content = json.loads((tmp_path / 'out/panoptic.json').read_text())
    assert [len(each['segments_info']) for each in content['annotations']] == [
        len(each.labels) for each in found]
    assert [each['isthing'] for each in content['categories']] == [1, 1, 0, 0]
    told = run_tool(capfd, 'export', folder / f'{name}.py', path, '--method', 'deep', '--out',
                    tmp_path / 'y.onnx', '--quantize', 'int8')
    assert told.code == 2 and '--quantize' in told.err
