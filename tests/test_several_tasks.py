"""Models of several tasks after their training: predicted, augmented, exported, shown."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg.structures import SegDataSample
from test_multi_task_training import OWN, TINY, estimator, nyud, sample_of
from tool_helpers import run_tool
from utils import CONFIGS, images, in_scope, randomise

import vpt_dense
from vpt_dense import building, config, safe_files
from vpt_dense.datasets import map_files
from vpt_dense.errors import UserError
from vpt_dense.predicting import inputs, several, video, writing
from vpt_dense.registry import MODELS
from vpt_dense.report import parts, samples
from vpt_dense.visualization import colour_numbers

#: A fifth task of the tiny recipe on NYUDv2's layout, made of its labels.
MORE = """
model['task_heads'] = dict(distance=_base_.task_head.distance)
_targets = dict(type='vpt_dense.LabelTargets', edges=None)
for _loader in (train_dataloader, val_dataloader, test_dataloader):
    _loader['dataset']['pipeline'] = [
        *_loader['dataset']['pipeline'][:-1], _targets, _pack]
val_evaluator = dict(tasks=dict(distance=dict(type='vpt_dense.MapErrorMetric')))
test_evaluator = dict(tasks=dict(distance=dict(type='vpt_dense.MapErrorMetric')))
"""
WINDOW, STRIDE = (24, 32), (8, 16)
SLIDE = f"model['test_cfg'] = dict(mode='slide', crop_size={WINDOW}, stride={STRIDE})\n"
TASKS = ('depth', 'distance', 'edges', 'normals', 'seg')


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A checkpoint of a model of five tasks whose weights are random, and its images."""
    root = tmp_path_factory.mktemp('tasks')
    nyud(root / 'data')
    file = root / 'recipe.py'
    file.write_text(TINY.format(configs=CONFIGS, root=root, recipe='nyud', kind='fixed') + MORE
                    + SLIDE)
    cfg = config.load(str(file), {}, 'task-prompts')
    in_scope('mmseg')
    model = randomise(building.build_model(cfg))
    path = root / 'a.pth'
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)
    return str(path), sorted(map(str, (root / 'data/images').glob('*')))


def by_hand(model, name, path):
    """What a task finds: windows one by one, resized, their mean in float64."""
    image = torch.from_numpy(cv2.imread(path)[..., ::-1].copy()).permute(2, 0, 1).double()
    preprocessor = model.data_preprocessor
    image = ((image - preprocessor.mean.cpu()) / preprocessor.std.cpu()).float()[None]
    height, width = image.shape[2:]
    model.active, head = name, model.task_heads[name]
    total = count = 0
    for top in range(0, height - WINDOW[0] + 1, STRIDE[0]):
        for left in range(0, width - WINDOW[1] + 1, STRIDE[1]):
            crop = image[:, :, top:top + WINDOW[0], left:left + WINDOW[1]]
            found = F.interpolate(head(model.extract_feat(crop)), WINDOW, mode='bilinear').double()
            borders = (left, width - WINDOW[1] - left, top, height - WINDOW[0] - top)
            total, count = total + F.pad(found, borders), count + F.pad(
                torch.ones_like(found), borders)
    return (total / count)[0].numpy()


def test_predictions_are_each_heads(saved):
    path, pictures = saved
    predictor = vpt_dense.load(path)
    assert predictor.task == 'multitask' and tuple(predictor.of_tasks) == TASKS
    results = predictor.predict(pictures)
    for picture, result in zip(pictures, results, strict=True):
        with torch.no_grad():
            wanted = {name: by_hand(predictor.model, name, picture) for name in TASKS}
        close = dict(rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result['depth'].depth, wanted['depth'][0], **close)
        np.testing.assert_allclose(result['distance'].distance, wanted['distance'][0], **close)
        np.testing.assert_allclose(
            result['edges'].edges, 1 / (1 + np.exp(-wanted['edges'][0])), **close)
        normals = wanted['normals'] / np.linalg.norm(wanted['normals'], axis=0)
        np.testing.assert_allclose(result['normals'].normals.transpose(2, 0, 1), normals, **close)
        np.testing.assert_array_equal(  # 0 of NYUDv2's files is not known
            result['seg'].labels, wanted['seg'].argmax(0) + 1)
        assert result['seg'].classes[0] == 'wall' and result['distance'].size == (32, 48)
    with pytest.raises(UserError, match='probabilities are for models of one task'):
        predictor.predict(pictures[0], probabilities=True)


def test_files_of_tasks_are_what_was_predicted(saved, tmp_path, capfd):
    path, pictures = saved
    done = run_tool(capfd, 'predict', path, *pictures, '--out', tmp_path / 'out', '--overlay')
    assert done.code == 0, done.err
    told = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (told['task'], told['predicted']) == ('multitask', len(pictures))
    assert told['tasks']['depth'] == dict(kind='depth')
    assert told['tasks']['seg']['ids']['wall'] == 1 and told['tasks']['seg']['no_data'] == 0
    result = vpt_dense.load(path).predict(pictures[0])
    out = {name: next((tmp_path / 'out' / name / ('labels' if name == 'seg' else 'maps')).glob(
        '0000.*')) for name in TASKS}
    np.testing.assert_array_equal(cv2.imread(str(out['seg']), -1), result['seg'].labels)
    np.testing.assert_array_equal(map_files.read_depth(out['depth'], 1), result['depth'].depth)
    np.testing.assert_array_equal(map_files.read_map(out['distance']), result['distance'].distance)
    np.testing.assert_allclose(
        map_files.read_map(out['edges']) / 65535, result['edges'].edges, atol=1e-5)
    np.testing.assert_allclose(
        map_files.read_normals(out['normals']), result['normals'].normals, atol=1e-4)
    for name in TASKS:
        assert len(list((tmp_path / 'out' / name / 'overlays').glob('*.jpg'))) == len(pictures)
    out['edges'].unlink()  # one of all: the image is predicted again
    again = run_tool(capfd, 'predict', path, *pictures, '--out', tmp_path / 'out', '--overlay',
                     '--skip-existing')
    assert again.code == 0 and out['edges'].is_file()
    told = json.loads((tmp_path / 'out/summary.json').read_text())
    assert (told['predicted'], told['existing']) == (1, len(pictures) - 1)
    predictor, found = vpt_dense.load(path), inputs.find(pictures, None)
    for wanted, reason in ((dict(probabilities='npz'), '--probabilities is for segmentation'),
                           (dict(top_k=2), '--top-k is for classification')):
        with pytest.raises(UserError, match=reason):
            writing.write(predictor, found, tmp_path / 'no', writing.Wanted(**wanted))
    with pytest.raises(UserError, match='a video is for segmentation'):
        video.write(predictor, [], tmp_path / 'no', writing.Wanted())
    assert not (tmp_path / 'no').exists()


def test_the_mean_of_mirrored_versions_is_counted_by_hand(saved):
    path, pictures = saved
    plain, turned = vpt_dense.load(path), vpt_dense.load(path, tta=True)
    image = cv2.imread(pictures[0])[..., ::-1]
    one, other = plain.predict([image, np.ascontiguousarray(image[:, ::-1])])
    found = turned.predict(image)
    close = dict(rtol=1e-4, atol=1e-5)
    for name in ('depth', 'distance', 'edges'):
        a, b, c = (getattr(each[name], name) for each in (one, other, found))
        assert not np.allclose(a, b[:, ::-1], atol=1e-3)
        np.testing.assert_allclose(c, (a + b[:, ::-1]) / 2, **close)
    mean = one['normals'].normals + other['normals'].normals[:, ::-1] * [-1, 1, 1]
    mean = mean / np.linalg.norm(mean, axis=2, keepdims=True)
    np.testing.assert_allclose(found['normals'].normals, mean, **close)
    model, shares = plain.model, []
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).float()[None]
    pixels = (pixels - model.data_preprocessor.mean) / model.data_preprocessor.std
    for each, flip in ((pixels, False), (pixels.flip(3), True)):
        meta = dict(ori_shape=(32, 48), img_shape=(32, 48), flip=flip, flip_direction='horizontal')
        with torch.no_grad():
            (sample,) = model.predict(each, [SegDataSample(metainfo=meta)], finished=False)
        shares.append(sample.pred_seg_map.data)
        torch.testing.assert_close(shares[-1].sum(0), torch.ones(32, 48))
    np.testing.assert_array_equal(found['seg'].labels, (sum(shares).argmax(0) + 1).numpy())
    assert (found['seg'].labels != one['seg'].labels).any()


def test_augmentation_that_cannot_be_averaged_is_refused():
    model = estimator(heads=('seg', 'distance')).eval()
    around = MODELS.build(dict(type='vpt_dense.MultiTaskTTAModel', module=model))
    versions = []
    for size in ((32, 32), (48, 48)):
        sample = SegDataSample(metainfo=dict(img_shape=size))
        model._put(sample, 'seg', torch.ones(3, 8, 8))
        model._put(sample, 'distance', torch.ones(1, 8, 8))
        versions.append(sample)
    with pytest.raises(ValueError, match='tta_pipeline: the task distance .* versions have 2'):
        around.merge_preds([versions])
    with pytest.raises(ValueError, match="tta_model.type='vpt_dense.MultiTaskTTAModel'"):
        MODELS.build(dict(type='vpt_dense.SegTTAModel', module=model))
    with pytest.raises(ValueError, match='needs a model of type .*MultiTaskEstimator'):
        MODELS.build(dict(type='vpt_dense.MultiTaskTTAModel', module=around))


def test_classes_of_tasks_are_those_of_the_data():
    model = estimator(heads=('seg', 'edges'))
    palette = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    info = dict(classes=('a', 'b', 'c'), palette=palette, label_map={3: 255}, ignore_index=255)
    found = several.tasks_of(model, info)
    assert found['seg'].classes == ('a', 'b', 'c') and found['seg'].palette == palette
    assert (found['seg'].ids, found['seg'].ignored_id) == ((0, 1, 2), 255)
    named = several.tasks_of(model, dict(info, task_classes=dict(seg=['x', 'y', 'z']), maps=dict(
        seg=dict(zero_is_unknown=True))))
    assert (named['seg'].classes, named['seg'].ids) == (('x', 'y', 'z'), (1, 2, 3))
    with pytest.raises(UserError, match=r'task_heads.seg.num_classes is 3, .* has 2 classes'):
        several.tasks_of(model, dict(classes=('a', 'b')))
    model.task_heads['edges'].truth = 'gt_heat_map'
    with pytest.raises(UserError, match='task_heads.edges: what a LinearEdgeHead finds'):
        several.tasks_of(model, info)
    assert several.tasks_of(torch.nn.Linear(1, 1), info) == {}


def test_a_report_shows_each_task(tmp_path):
    names = ('distance', 'edges', 'normals', 'seg')
    model, sample = estimator(OWN['prompts'], names).eval(), sample_of()
    with torch.no_grad():
        model.predict(images(1, 3, 32, 32), [sample])
    sample.gt_edges_map.data[0, :4] = 255
    told = samples.several_tasks(sample, dict(classes=['a', 'b', 'c'], palette=None), 255)
    assert tuple(told['tasks']) == names and told['size'] == (32, 32)
    truth, found = (sample.get(f'{key}_seg_map').data[0].numpy() for key in ('gt', 'pred'))
    assert told['tasks']['seg']['IoU'] == samples.mean_iou(found, truth, 3, 255)
    record = dict(images=[dict(name='a', position=0, height=32, width=32, image='data:', **told)])
    galleries = parts.galleries({'prediction': record}, 'test split')
    assert [each['where'] for each in galleries] == [f'test split, task {name}' for name in names]
    for name, gallery in zip(names, galleries, strict=True):
        (image,) = gallery['images']
        assert [each['url'] for each in image['layers']] == [
            told['tasks'][name]['truth'], told['tasks'][name]['prediction']]
        assert len({each['url'] for each in image['layers']}) == 2
        assert bool(gallery['legend']) == (name == 'seg')
    assert len(parts.galleries({'x': dict(images=[])}, 'test split')) == 1
    numbers = np.array([[-1.0, 0.0, 5.0, 10.0, 20.0]])
    colours = colour_numbers(numbers, 10.0)[0]
    assert not colours[0].any() and (colours[3] == colours[4]).all()
    assert len({tuple(each) for each in colours.tolist()}) == 4


@pytest.mark.slow
@pytest.mark.parametrize('more', [[], ['--resize']], ids=['heads', 'resized'])
def test_a_graph_has_an_output_for_each_task(saved, tmp_path, capfd, more):
    path, _ = saved
    out = tmp_path / 'tasks.pt2'
    done = run_tool(capfd, 'export', path, '--out', out, *more)
    assert done.code == 0 and done.out.count('largest difference') == len(TASKS), done.err
    extra = {'vpt_dense': ''}
    graph = torch.export.load(str(out), extra_files=extra).module()
    card = json.loads(extra['vpt_dense'])
    assert card['output']['names'] == list(TASKS) == list(card['tasks'])
    model = vpt_dense.load(path).model
    pixels = images(3, 3, *WINDOW).mul(255).round()
    normal = (pixels - model.data_preprocessor.mean) / model.data_preprocessor.std
    with torch.no_grad():
        found = dict(zip(TASKS, graph(pixels), strict=True))
        for name in TASKS:
            model.active = name
            wanted = model.decode_head(model.extract_feat(normal))
            if more:
                wanted = F.interpolate(wanted, WINDOW, mode='bilinear')
            wanted = F.normalize(wanted, dim=1) if name == 'normals' else wanted
            torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=1e-4)
    if not more:
        refused = run_tool(capfd, 'export', path, '--out', tmp_path / 'no.pt2', '--argmax')
        assert refused.code and '--argmax is for scores of classes' in refused.err
