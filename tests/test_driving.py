"""Streets: layouts of four sets, one model tested on all of them, videos."""

import itertools
import json
import weakref

import cv2
import numpy as np
import pytest
import torch
from field_data import TRAIN_IDS, save, streets
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from test_predict import save as save_model
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, TINY_ARCH, in_scope

import vpt_dense
from vpt_dense import config, run_setup, visualization
from vpt_dense.comparison import report
from vpt_dense.errors import UserError
from vpt_dense.predicting import video, writing
from vpt_dense.predicting.results import Segmentation
from vpt_dense.sets_metric import SetsMetric

RECIPE = str(CONFIGS / 'fields/linear_vit-l_dinov2_gtav.py')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return streets(tmp_path_factory.mktemp('streets'))


def small(data, work_dir) -> list[str]:
    """Options that make a tiny model of the recipe, for images of 28x56 pixels."""
    arch = {**TINY_ARCH, '_delete_': True}
    roots = {f'test_sets.{name}.data_root': data / name for name in ('bdd100k', 'acdc')}
    return [f'{key}={value}' for key, value in {
        'work_dir': work_dir, 'img_size': 28, 'batch_size': 1, 'iters': 1,
        'model.backbone.arch': arch, 'model.backbone.out_indices': [3],
        'model.backbone.init_cfg': None, 'model.decode_head.in_channels': 64,
        'train_dataloader.num_workers': 0, 'val_dataloader.num_workers': 0,
        'test_dataloader.num_workers': 0, 'dataset.data_root': data / 'cityscapes',
        'train_dataloader.dataset.data_root': data / 'gtav', **roots}.items()]


def build(**dataset):
    in_scope('mmseg')
    return DATASETS.build(dict(type='vpt_dense.PublicSet', pipeline=[], **dataset))


# --- layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize('name, split, number', [
    ('cityscapes', 'val', 2), ('bdd100k', 'train', 1), ('acdc', 'val', 4), ('gtav', 'all', 2)])
def test_labels_are_those_of_the_19_classes(name, split, number, data):
    dataset = build(name=name, split=split, data_root=str(data / name))
    assert len(dataset) == number and len(dataset.metainfo['classes']) == 19
    load = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))
    for i in range(number):
        sample = dataset.get_data_info(i)
        found = load(sample)['gt_seg_map']
        raw = np.asarray(Image.open(sample['seg_map_path']))
        if name in ('cityscapes', 'gtav'):
            wanted = np.vectorize(lambda i: TRAIN_IDS.get(i, 255))(raw)
        else:
            wanted = raw
        np.testing.assert_array_equal(found, wanted)
        assert f'{split}_ref' not in sample['img_path']
        assert wanted.min() < 19 and (name == 'bdd100k' or len(np.unique(wanted)) > 5)
    night = build(name='acdc', split='val', part='night', data_root=str(data / 'acdc'))
    assert [night.get_data_info(0)['img_path'].split('acdc/')[1][:14]] == ['rgb_anon/night']


@pytest.mark.parametrize('change, line', [
    (dict(name='kitti'), "dataset.name: 'kitti' is none of the public sets cityscapes"),
    (dict(split='test'), "dataset.split: acdc has train, val, found 'test'"),
    (dict(part='hail'), "dataset.part: acdc has the parts fog, night, rain, snow, found 'hail'"),
    (dict(metainfo=dict(classes=['road', 'car'])), 'a label would mean another class'),
    (dict(ann_file='some.txt'), 'say dataset.data_prefix too')])
def test_what_a_public_set_is_not(change, line, data):
    with pytest.raises(UserError, match=line):
        build(**{**dict(name='acdc', split='val', data_root=str(data / 'acdc')), **change})


def test_check_reads_every_set(data, tmp_path, capfd):
    told = run_tool(capfd, 'check_dataset', RECIPE, '--cfg-options', *small(data, tmp_path))
    assert told.code == 0 and 'segmentation, 19 classes' in told.out
    report = json.loads(run_tool(
        capfd, 'check_dataset', RECIPE, '--json', '--cfg-options', *small(data, tmp_path)).out)
    images = {name: split['images'] for name, split in report['splits'].items()}
    assert images == {'train': 2, 'val': 2, 'test': 2, 'test 2': 1, 'test 3': 4}
    assert 0 < report['splits']['train']['ignored_share'] < 1


# --- several test sets -----------------------------------------------------------------------


@pytest.mark.slow
def test_each_set_has_its_result_and_the_mean_is_theirs(data, tmp_path, capfd):
    """The oracle of a set's result is a test of that set alone."""
    options = small(data, tmp_path / 'work')
    run_setup.start(config.load(RECIPE, options, 'deep'), 'train', None).train()

    def tested(*more, options=options):
        told = run_tool(capfd, 'test', RECIPE, tmp_path / 'work/iter_1.pth', '--method', 'deep',
                        '--out', tmp_path / f'out{more[0][:20]}', '--force',
                        '--cfg-options', *options, *more)
        assert told.code == 0, told.err
        return told, json.loads((tmp_path / 'work/test.json').read_text())

    told, result = tested('batch_size=1')
    metrics = result['metrics']
    names = ('cityscapes', 'bdd100k', 'acdc')
    for name in names:
        plain = [option for option in options if not option.startswith('test_sets')]
        split = [f'test_dataloader.dataset.name={name}', 'test_sets=None',
                 f'test_dataloader.dataset.data_root={data / name}']
        _, alone = tested(*split, options=plain)
        for key, value in alone['metrics'].items():
            assert metrics[f'{name}/{key}'] == value
        rows = {row['class']: row['IoU'] for row in alone['per_class']}
        for row in result['per_class']:
            np.testing.assert_equal(row[f'{name}/IoU'], rows[row['class']])
    for key in ('mIoU', 'aAcc', 'mAcc'):
        assert metrics[key] == pytest.approx(np.mean([metrics[f'{n}/{key}'] for n in names]),
                                             abs=0.006)
    assert 'Results by test set' in told.out + told.err
    written = sorted(path.name for path in (tmp_path / 'outbatch_size=1').rglob('*.png'))
    assert len(written) == 2 + 1 + 4
    city, = (tmp_path / 'outbatch_size=1').rglob('bonn*.png')
    bdd, = (tmp_path / 'outbatch_size=1').rglob('0004*.png')
    assert set(np.unique(np.asarray(Image.open(city)))) <= set(TRAIN_IDS)  # ids of its masks
    assert set(np.unique(np.asarray(Image.open(bdd)))) <= set(range(19))


def metric_of(sets=('a', 'b')) -> SetsMetric:
    in_scope('mmseg')
    metric = SetsMetric(dict(type='vpt_dense.IoUMetric', iou_metrics=['mIoU']), sets)
    metric.dataset_meta = dict(classes=['x', 'y'])
    return metric


def sample(name, label, prediction):
    return dict(test_set=name, img_path=name, gt_sem_seg=dict(data=torch.tensor([[label]])),
                pred_sem_seg=dict(data=torch.tensor([[prediction]])))


def test_a_small_set_counts_as_much_as_a_large_one():
    metric = metric_of()
    metric.process({}, [sample('a', [0, 1], [0, 1]), sample('b', [0, 1], [0, 0])])
    metric.process({}, [sample('a', [0, 1], [0, 1])])
    found = metric.evaluate(3)  # of b class 0 has 1/2, class 1 has 0
    assert (found['a/mIoU'], found['b/mIoU'], found['mIoU']) == (100, 25, 62.5)
    metric.process({}, [sample('a', [0, 1], [0, 1]), sample('b', [0, 1], [0, 1])])
    assert metric.evaluate(2)['mIoU'] == 100  # it has started anew
    metric.process({}, [sample('a', [0, 1], [0, 1])] * 2)
    with pytest.raises(ValueError, match='2 images were processed and the test sets have 1'):
        metric.evaluate(1)


@pytest.mark.parametrize('given, line', [
    ('dict(a=dict())', 'test_sets needs two sets or more'),
    ('[dict(), dict()]', 'a dict was expected, of each set its name'),
    ("{'a/b': dict(), 'c': dict()}", 'has no / and no . in it')])
def test_what_is_wrong_with_test_sets_is_told(given, line, tmp_path):
    (tmp_path / 'leaf.py').write_text(
        f"_base_ = '{CONFIGS}/fields/linear_vit-l_dinov2_cityscapes.py'\ntest_sets = {given}\n")
    with pytest.raises(UserError, match=line):
        config.load(str(tmp_path / 'leaf.py'), None, 'deep')


@pytest.mark.slow
def test_a_set_of_another_kind_takes_pipeline_and_classes_alone(tmp_path):
    (tmp_path / 'leaf.py').write_text(
        f"_base_ = '{CONFIGS}/fields/linear_vit-l_dinov2_cityscapes.py'\n"
        "test_sets = dict(a=dict(), b=dict(type='vpt_dense.SegFolder', data_root='x', "
        'label_map={7: 0}))\n')
    cfg = config.load(str(tmp_path / 'leaf.py'), None, 'deep')
    first, second = cfg.test_dataloader.dataset.datasets
    assert (first.name, first.split) == ('cityscapes', 'val')
    assert set(second) == {'type', 'data_root', 'label_map', 'pipeline', 'metainfo'}
    assert len(second.metainfo.classes) == 19 and cfg.test_pipeline == second.pipeline[:-1]
    again = config.load(_written(cfg, tmp_path), ["test_sets={'c': {}, 'd': {'split': 'train'}}"])
    assert [step.name for part in again.test_dataloader.dataset.datasets
            for step in part.pipeline[-1:]] == ['c', 'd']
    assert again.test_evaluator[0].metric.type == 'vpt_dense.IoUMetric'


def _written(cfg, folder) -> str:
    path = folder / 'written.py'
    path.write_text(cfg.pretty_text)
    return str(path)


def test_a_comparison_has_a_column_a_set(tmp_path):
    base = dict(method='deep', trainable=1, backbone_trainable=1, total=2, percent=50.0,
                tuned_megabytes=1.0, disk_megabytes=1.0, train_seconds=1.0)
    results = [dict(base, seed=seed, metrics={'city/mIoU': 40 + seed, 'acdc/mIoU': 20.0,
                                              'mIoU': 30.0}) for seed in (0, 1)]
    rows = report.summarise(results, report.find_metric(results), ['deep'])
    assert rows[0]['sets'] == {'city': 40.5, 'acdc': 20.0}
    report.write(rows, 'mIoU', tmp_path, dict(command='x'), {})
    lines = (tmp_path / 'table.md').read_text().splitlines()
    assert lines[0].startswith('| method | mIoU (test) | city | acdc | seeds |')
    assert lines[2].startswith('| deep | 30.00 ± 0.00 | 40.50 | 20.00 | 0 1 |')
    assert (tmp_path / 'table.csv').read_text().splitlines()[0].endswith('scores,city,acdc')


# --- videos ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A leaf with random weights; 150 classes."""
    folder = tmp_path_factory.mktemp('model')
    save_model(write_leaf(folder, tiny_folder(folder / 'data')), folder / 'c.pth')
    return folder / 'c.pth'


def film(path, number=7, size=(48, 32), rate=12.5):
    """Frames, random cells that move, and a video of them in a codec without loss."""
    cells = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    frames = [np.roll(cv2.blur(cells, (9, 9)), 3 * i, axis=1) for i in range(number)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'FFV1'), rate, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return frames


def frames_of(path) -> tuple[list[np.ndarray], float]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (pair := capture.read())[0]:
        frames.append(pair[1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


def test_a_video_is_what_its_frames_are(model, tmp_path, capfd):
    frames = film(tmp_path / 'drive.avi')
    told = run_tool(capfd, 'predict', model, tmp_path / 'drive.avi', '--out', tmp_path / 'out',
                    '--batch-size', 2)
    assert told.code == 0, told.err
    drawn, rate = frames_of(tmp_path / 'out/videos/drive.mp4')
    assert len(drawn) == 7 and rate == 12.5
    predictor = vpt_dense.load(model)
    for frame, found in zip(frames, drawn, strict=True):
        result = predictor.predict(frame[..., ::-1].copy())
        labels = np.full(151, -1)
        labels[list(result.ids)] = range(150)
        wanted = visualization.draw_labels(
            frame[..., ::-1], labels[result.labels], result.classes, predictor.palette, -1,
            legend=False)
        difference = np.abs(wanted[..., ::-1].astype(int) - found)
        assert difference.mean() < 20  # MPEG-4 at 48x32
        shifted = np.abs(np.roll(wanted, 12, 1)[..., ::-1].astype(int) - found).mean()
        assert shifted > 1.5 * difference.mean()
    record = json.loads((tmp_path / 'out/summary.json').read_text())
    (each,) = record['videos']
    assert (each['frames'], each['frames_said'], each['size']) == (7, 7, [48, 32])
    assert sum(each['pixels'].values()) == 7 * 48 * 32 and record['finished']
    assert each['frames_per_second'] == pytest.approx(7 / each['seconds'], rel=0.1)
    assert f'{each["frames_per_second"]} frames/s' in told.out
    assert [path.name for path in sorted((tmp_path / 'out/videos').iterdir())] == [
        'drive.mp4', 'drive_legend.png']
    before = (tmp_path / 'out/videos/drive.mp4').stat().st_mtime_ns
    told = run_tool(capfd, 'predict', model, tmp_path / 'drive.avi', '--out', tmp_path / 'out',
                    '--skip-existing')
    assert told.code == 0 and (tmp_path / 'out/videos/drive.mp4').stat().st_mtime_ns == before


def test_a_folder_of_frames_becomes_a_video(model, tmp_path, capfd):
    for i, frame in enumerate(film(tmp_path / 'x.avi', 3)):
        save(tmp_path / f'drive/{i:03}.png', frame[..., ::-1])
    told = run_tool(capfd, 'predict', model, tmp_path / 'drive', '--video', 5, '--out',
                    tmp_path / 'out')
    assert told.code == 0, told.err
    drawn, rate = frames_of(tmp_path / 'out/videos/drive.mp4')
    assert (len(drawn), rate) == (3, 5)
    save(tmp_path / 'drive/003.png', np.zeros((20, 20, 3), np.uint8))
    told = run_tool(capfd, 'predict', model, tmp_path / 'drive', '--video', 5, '--out',
                    tmp_path / 'out', '--force')
    assert told.code == 2 and 'frame 3 has 20x20 pixels, the first one 48x32' in told.err
    assert len(frames_of(tmp_path / 'out/videos/drive.mp4')[0]) == 3  # the old one stands
    assert len(list((tmp_path / 'out/videos').iterdir())) == 2


def test_frames_of_a_long_video_are_not_kept(model, tmp_path, monkeypatch):
    """As many frames wait as are read ahead."""
    film(tmp_path / 'long.avi', 60)
    seen, most = [], []

    class Counted:
        task, classes, ids, ignored_id, palette = 'segmentation', ('a', 'b'), (0, 1), 255, [
            [0, 0, 0], [255, 0, 0]]

        def describe(self):
            return {}

        def stream(self, images, *_):
            images = iter(images)
            for ahead in iter(lambda: list(itertools.islice(images, 4)), []):
                seen.extend(weakref.ref(frame) for frame in ahead)
                for frame in ahead:
                    yield Segmentation(np.zeros(frame.shape[:2], np.uint8), ('a', 'b'), (0, 1))
                most.append(sum(ref() is not None for ref in seen))

    record = video.write(Counted(), video.find([str(tmp_path / 'long.avi')]), tmp_path / 'out',
                         writing.Wanted())
    assert record['videos'][0]['frames'] == 60 and 0 < max(most) <= 6


@pytest.mark.parametrize('arguments, line', [
    (['text.mp4'], 'no video that OpenCV can read'),
    (['lacking.mp4'], 'no such file'),
    (['text.mp4', 'x.png'], 'x.png is no video'),
    (['text.mp4', '--probabilities', 'npz'], '--probabilities is for images'),
    (['text.mp4', '--video', 'fast'], "frames a second, such as 25; found 'fast'")])
def test_what_no_video_can_be_made_of(arguments, line, model, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.mp4').write_text('no video')
    told = run_tool(capfd, 'predict', model, *arguments, '--out', 'out')
    assert told.code == 2 and line in told.err
    assert not list((tmp_path / 'out').rglob('*.mp4'))
