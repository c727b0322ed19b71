"""Detectors as files: what they find is what mmdet's own code finds. ONNX needs `export` too."""

import json
import math

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from test_detection import HEADS, folder, write  # noqa: F401 - a fixture
from tool_helpers import run_tool

import vpt_dense
from vpt_dense import building, config
from vpt_dense.deploy import boxes, detectors, exporting, onnx_model
from vpt_dense.errors import UserError
from vpt_dense.predicting.results import Detection

DOUBLED = "img_size = 128\n"  # images of 48x64 become 96x128


def spread(recipe, path, std=0.3):
    """A checkpoint whose scores differ, as those of a trained model do."""
    model = building.build_model(config.load(str(recipe), None, 'deep'))
    model.init_weights()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if 'head' in name and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1 if 'rcnn' in path.name else std)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return path


def load(recipe, path):
    return exporting.load(str(path), str(recipe), method='deep')


@pytest.mark.parametrize('name', HEADS)
def test_graphs_find_what_mmdet_finds(folder, tmp_path, name):  # noqa: F811
    """In images of two sizes, one of which is padded; export itself refuses a file that differs."""
    recipe = write(folder, name)
    predictor = load(recipe, spread(recipe, tmp_path / f'{name}.pth'))
    module = detectors.ExportableDetector(predictor.model, exporting.Prepared(predictor)).eval()
    card = detectors.describe(predictor, module, None, 3)
    for size in ((48, 64), (43, 61)):
        image = exporting._noise(1, 3, size, 5)
        wanted = detectors.predicted(predictor, image)
        detectors.open_up(predictor.model)
        with torch.no_grad():
            outputs = [each.numpy() for each in module(torch.from_numpy(image))]
        found = boxes.found(outputs, card, size, size)
        assert len(wanted.scores) >= 12 and np.ptp(wanted.scores) > 1e-3
        assert detectors.others([wanted], [found]) < 0.03
        assert (found.masks is None) == (wanted.masks is None)
        # Back to mmdet's own, for the next size.
        predictor = load(recipe, tmp_path / f'{name}.pth')
        module = detectors.ExportableDetector(predictor.model, exporting.Prepared(predictor)).eval()


@pytest.mark.parametrize('name', ['atss_vit-s_dinov2', 'dino_vit-s_dinov2'])
def test_graphs_of_torch(folder, tmp_path, capfd, name):  # noqa: F811
    recipe = write(folder, name)
    checkpoint = spread(recipe, tmp_path / f'{name}.pth')
    told = run_tool(capfd, 'export', recipe, checkpoint, '--method', 'deep', '--size', 40, 56,
                    '--out', tmp_path / 'x.pt2')
    assert told.code == 0, told.err
    assert '0 of the boxes are others than those of the model' in told.out
    assert 'TokenPrompt made constants' in told.out
    program = torch.export.load(tmp_path / 'x.pt2').module()
    image = exporting._noise(1, 3, (40, 56), 9)
    found = [each.numpy() for each in program(torch.from_numpy(image))]
    wanted = detectors.predicted(load(recipe, checkpoint), image)
    assert detectors.others([wanted], [Detection(*found[0:1], *found[2:3], *found[1:2], ())]) < 0.03


def test_nothing_in_noise_is_compared_with_a_threshold_of_zero(
    folder, tmp_path, capfd  # noqa: F811
):
    """And a file that finds nothing finds nothing, and no error."""
    recipe = write(folder, 'retinanet_vit-s_dinov2', extra="model['test_cfg'] = dict("
                   "score_thr=0.9)\n")
    checkpoint = spread(recipe, tmp_path / 'm.pth', std=0.1)
    told = run_tool(capfd, 'export', recipe, checkpoint, '--method', 'deep', '--size', 40, 56,
                    '--out', tmp_path / 'x.pt2')
    assert told.code == 0, told.err
    assert told.out.count('others than those of the model') == 1
    assert 'with a threshold of 0' in told.out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []
    program = torch.export.load(tmp_path / 'x.pt2').module()
    found = program(torch.from_numpy(exporting._noise(1, 3, (40, 56), 9)))
    assert [len(each) for each in found] == [0, 0, 0]


@pytest.mark.parametrize(('name', 'options', 'extra', 'message'), [
    ('dino_vit-s_dinov2', ['--dynamic'], '', '--dynamic: the encoder of DINO is laid out for one'),
    ('atss_vit-s_dinov2', ['--argmax'], '', '--argmax is for scores'),
    ('atss_vit-s_dinov2', ['--resize'], '', '--resize is for segmentation'),
    ('retinanet_vit-s_dinov2', [], "model['test_cfg'] = dict(score_thr=0., nms=dict("
     "type='soft_nms'))\n", "model.test_cfg.nms.type is 'soft_nms'"),
    ('retinanet_vit-s_dinov2', [], "model['test_cfg'] = dict(min_bbox_size=3)\n",
     'model.test_cfg.min_bbox_size is 3'),
    ('atss_vit-s_dinov2', [], "model['bbox_head'] = dict(_delete_=True, type='GFLHead', "
     "norm_cfg=None, num_classes=2, in_channels=16, stacked_convs=1, feat_channels=16, "
     "anchor_generator=dict(type='AnchorGenerator', ratios=[1.0], octave_base_scale=8, "
     "scales_per_octave=1, "
     "strides=None))\n", 'model.bbox_head: GFLHead cannot be exported'),
])
def test_what_cannot_be_exported_is_one_line(
    folder, tmp_path, capfd, name, options, extra, message  # noqa: F811
):
    recipe = write(folder, name, extra=extra)
    model = building.build_model(config.load(str(recipe), None, 'deep'))
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / 'm.pth')
    told = run_tool(capfd, 'export', recipe, tmp_path / 'm.pth', '--method', 'deep', '--out',
                    tmp_path / 'x.pt2', *options)
    assert told.code == 2 and message in told.err, told.err
    assert told.err.count('\n') == 1 and not (tmp_path / 'x.pt2').exists()


def test_a_graph_that_finds_others_is_not_written(
    folder, tmp_path, capfd, monkeypatch  # noqa: F811
):
    recipe = write(folder, 'retinanet_vit-s_dinov2')
    checkpoint, own = spread(recipe, tmp_path / 'm.pth'), detectors._decoded
    monkeypatch.setattr(detectors, '_decoded', lambda head, *rest: own(head, *rest) + 1)
    told = run_tool(capfd, 'export', recipe, checkpoint, '--method', 'deep', '--size', 40, 56,
                    '--out', tmp_path / 'x.pt2')
    assert told.code == 2 and 'x.pt2 is not written: ' in told.err
    assert not (tmp_path / 'x.pt2').exists()


def test_masks_are_pasted_as_mmdet_pastes_them():
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    rng = np.random.default_rng(0)
    for box in ([3.2, 4.7, 20.9, 31.4], [-5.0, 2.0, 11.0, 50.0], [0.0, 0.0, 40.0, 36.0],
                [7.3, 7.3, 7.9, 8.2]):
        mask = rng.random((28, 28)).astype(np.float32)
        wanted, _ = _do_paste_mask(
            torch.from_numpy(mask)[None, None], torch.tensor([box]), 36, 40, skip_empty=False)
        np.testing.assert_allclose(boxes.pasted(mask, box, (36, 40)), wanted[0], atol=2e-5)


def test_maps_are_enlarged_as_mmdet_enlarges_them():
    interpolate = torch.nn.functional.interpolate
    small = torch.randn(6, 8, generator=torch.manual_seed(0))
    whole = interpolate(small[None, None], size=(48, 64), mode='bilinear')[..., :43, :61]
    wanted = interpolate(whole, size=(91, 130), mode='bilinear')[0, 0]
    found = boxes.enlarger((6, 8), (43, 61), (91, 130), 16)(small.numpy())
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_others_are_counted():
    one = Detection(np.array([[0, 0, 9, 9], [5, 5, 90, 90]], np.float32), np.array([0, 1]),
                    np.array([0.9, 0.5], np.float32), ('a', 'b'))

    def share(boxes=0.0, label=0, score=0.0, keep=2):
        return detectors.others([one], [Detection(
            (one.boxes + np.float32(boxes))[:keep], (one.labels ^ label)[:keep],
            (one.scores + np.float32(score))[:keep], one.classes)])

    assert share() == share(boxes=0.05) == share(score=5e-4) == 0
    assert share(boxes=0.2) == share(label=1) == share(score=0.01) == share(keep=0) == 1
    assert math.isclose(share(keep=1), 1 / 3)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'options'), [
    ('faster-rcnn_vit-s_dinov2', ['--dynamic']), ('mask-rcnn_vit-s_dinov2', ['--size', 96, 128]),
    ('mask2former_vit-s_dinov2', ['--size', 96, 128])])
def test_predicting_with_an_onnx_file(folder, tmp_path, capfd, name, options):  # noqa: F811
    """Files of 48x64, enlarged to 96x128: boxes and masks are in the pixels of the files."""
    pytest.importorskip('onnxruntime')
    recipe = write(folder, name, extra=DOUBLED)
    checkpoint = spread(recipe, tmp_path / f'{name}.pth')
    told = run_tool(capfd, 'export', recipe, checkpoint, '--method', 'deep', '--out',
                    tmp_path / 'x.onnx', *options)
    assert told.code == 0, told.err
    images = sorted(map(str, (folder / 'data/images').glob('val_*.png')))[:2]
    wanted = vpt_dense.load(checkpoint, recipe, method='deep').predict(images)
    found = list(onnx_model.load(tmp_path / 'x.onnx').stream(images))
    assert detectors.others(wanted, found) < 0.03
    assert max(each.boxes.max() for each in found) <= 64 and len(found[0].scores) >= 12
    told = run_tool(capfd, 'predict', tmp_path / 'x.onnx', *images, '--out', tmp_path / 'out')
    assert told.code == 0, told.err
    lines = [json.loads(line) for line in (tmp_path / 'out/predictions.jsonl').open()]
    assert [line['path'] for line in lines] == images
    assert [len(line['boxes']) for line in lines] == [len(each.scores) for each in found]
    assert ('segmentation' in lines[0]['boxes'][0]) == ('mask' in name)
    if '--dynamic' in options:
        return
    other = tmp_path / 'other.png'
    import cv2
    cv2.imwrite(str(other), np.zeros((64, 48, 3), np.uint8))
    (error,) = onnx_model.load(tmp_path / 'x.onnx').stream([str(other)])
    assert isinstance(error, UserError) and '--dynamic, or with --size 128 96' in str(error)
