"""What a test leaves beside its metric: label maps, stored classes, pictures; and by class."""

import json
import pickle
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from processes import run_two
from test_tools import IMAGE_FOLDER
from tool_helpers import forget_runs, run_tool, write_leaf
from utils import CONFIGS, ROOT

from vpt_dense import visualization
from vpt_dense.datasets.checks import label_table, read_mask
from vpt_dense.datasets.label_maps import annotation_ids
from vpt_dense.datasets.names import image_names, picture_names

#: Number of classes, reduce_zero_label, label_map -> the labels in the files.
IDS = {
    (3, False, None): [0, 1, 2],
    (3, True, None): [1, 2, 3],
    (2, False, ((255, 1),)): [0, 255],
    (2, False, ((254, 1), (7, 1))): [0, 1],  # merged with what has that label already
    (3, True, ((9, 2),)): [1, 2, 10],  # the map comes after label 0 has gone
    (2, False, ((0, 255), (1, 0), (2, 255), (3, 1))): [1, 3],  # as mmseg picks classes
    (2, False, ((0, 1), (1, 0))): [1, 0],
}


@pytest.mark.parametrize('case', IDS, ids=str)
def test_label_maps_have_the_labels_of_the_masks(case):
    number, reduced, pairs = case
    ids = list(annotation_ids(number, reduced, dict(pairs) if pairs else None))
    assert ids == IDS[case]
    # Read as a mask it is the prediction again.
    table = label_table(reduced, dict(pairs) if pairs else None)
    assert table[ids].tolist() == list(range(number))


class Data:
    def __init__(self, folder=None, parts=(), inner=None, root=None):
        self.data_prefix = folder if isinstance(folder, str) else dict(img_path=folder)
        self.datasets, self.dataset, self.data_root = list(parts), inner, root


#: Data set, path of an image -> its name.
NAMES = {
    'below': (Data('/d/val'), '/d/val/city0/a.jpg', 'city0/a.jpg'),
    'relative': (Data('d/val'), 'd/val/city0/a.jpg', 'city0/a.jpg'),
    'wrapped': (Data(inner=Data('/d/val')), '/d/val/a.jpg', 'a.jpg'),
    'parts': (Data(parts=[Data('/d/a/val'), Data('/d/b/val')]), '/d/b/val/a.jpg', 'b/val/a.jpg'),
    'elsewhere': (Data('/d/val'), '/e/x/a.jpg', 'e/x/a.jpg'),
    'a root': (Data(None, root='/d'), '/d/val/a.jpg', 'val/a.jpg'),
    'a bucket': (Data('s3://b/val'), 's3://b/val/x/a.jpg', 'x/a.jpg'),
}


@pytest.mark.parametrize('case', NAMES)
def test_names_keep_the_path_below_the_data_folder(case):
    dataset, path, name = NAMES[case]
    assert image_names(dataset)(path).as_posix() == name
    assert picture_names(dataset)(path).as_posix() == name.replace('.jpg', '.png')


def test_pictures_of_images_that_differ_in_their_suffix(tmp_path):
    for name in ('a.jpg', 'a.png', 'b.jpg', 'b.txt'):
        (tmp_path / name).touch()
    name_of = picture_names(Data(str(tmp_path)))
    found = [str(name_of(str(tmp_path / name))) for name in ('a.jpg', 'a.png', 'b.jpg')]
    assert found == ['a.jpg.png', 'a.png.png', 'b.png']


def test_the_metrics_label_maps(tmp_path, mmseg_scope):
    from vpt_dense.evaluation import IoUMetric

    def sample(path):
        return dict(pred_sem_seg=dict(data=torch.tensor([[[0, 1]]])), img_path=path)

    paths = ['/d/val/city0/a.jpg', '/d/val/city1/a.jpg']
    metric = IoUMetric(format_only=True, output_dir=str(tmp_path / 'out'))
    metric.dataset_meta = dict(classes=['a', 'b'], label_map={255: 1}, reduce_zero_label=False)
    metric.image_name = image_names(Data('/d/val'))
    metric.process({}, [sample(path) for path in paths])
    for city in ('city0', 'city1'):
        assert read_mask(str(tmp_path / f'out/{city}/a.png')).tolist() == [[0, 255]]
    alone = IoUMetric(format_only=True, output_dir=str(tmp_path / 'alone'))
    alone.dataset_meta = metric.dataset_meta
    with pytest.raises(ValueError, match='city0/a.jpg and /d/val/city1/a.jpg would both be a.png'):
        alone.process({}, [sample(path) for path in paths])


def test_accuracy_by_class(mmpretrain_scope):
    from mmpretrain.evaluation import Accuracy as Reference
    from mmpretrain.structures import DataSample
    from sklearn.metrics import precision_recall_fscore_support

    from vpt_dense.classifiers import Accuracy

    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(50, 4, generator=generator)
    truth = torch.randint(3, (50,), generator=generator)  # the last class has no image
    samples = [DataSample().set_gt_label(t).set_pred_score(s).set_pred_label(s.argmax()).to_dict()
               for t, s in zip(truth, scores, strict=True)]  # fmt: skip
    outcomes = []
    for metric in (Reference(topk=(1, 2)), Accuracy(topk=(1, 2))):
        metric.dataset_meta = dict(classes=['a', 'b', 'c', 'd'])
        metric.process({}, samples)
        outcomes.append(metric.evaluate(50))
    assert outcomes[0] == outcomes[1]
    expected = precision_recall_fscore_support(
        truth, scores.argmax(1), labels=range(4), zero_division=0)
    assert [row['class'] for row in metric.per_class] == ['a', 'b', 'c', 'd']
    for key, values in zip(('precision', 'accuracy', 'f1-score', 'support'), expected, strict=True):
        found = [row[key] for row in metric.per_class]
        scale = 1 if key == 'support' else 100
        assert found[:3] == pytest.approx((values[:3] * scale).tolist(), abs=0.006)
    assert np.isnan(metric.per_class[3]['accuracy']) and metric.per_class[3]['support'] == 0
    # Without scores.
    for sample in samples:
        del sample['pred_score']
    without = Accuracy()
    without.dataset_meta = metric.dataset_meta
    without.process({}, samples)
    without.evaluate(50)
    assert str(without.per_class) == str(metric.per_class)


def test_what_the_stack_draws_with_is_replaced(mmseg_scope):
    from mmseg.engine.hooks import SegVisualizationHook
    from mmseg.visualization import SegLocalVisualizer

    for kind, ours in (
        (SegVisualizationHook, 'vpt_dense.SegVisualizationHook'),
        ('mmpretrain.VisualizationHook', 'vpt_dense.VisualizationHook'),
        ('UniversalVisualizer', 'vpt_dense.UniversalVisualizer'),
        (SegLocalVisualizer, 'vpt_dense.SegLocalVisualizer'),
        ('mmdet.VisualizationHook', 'mmdet.VisualizationHook'),
        ('Visualizer', 'Visualizer'),
        (type('SegLocalVisualizer', (), {}), None),  # a class of the user's own
    ):
        assert visualization.ours(dict(type=kind, a=1)) == dict(type=ours or kind, a=1)


# --- the tools -------------------------------------------------------------------------------

SEG = """
dataset.update(type='vpt_dense.SegFolder', classes=['road', 'sky', 'tree'],
               palette=[[250, 0, 0], [0, 250, 0], [0, 0, 250]], reduce_zero_label=True,
               label_map={9: 2})
default_hooks.update(visualization=dict(draw=True, interval=1))
"""


@pytest.fixture
def seg_leaf(tmp_path):
    """Three images a split, all called frame.jpg; the masks have labels 0 (ignored), 1, 2, 10."""
    rng = np.random.default_rng(0)
    for split in ('training', 'validation'):
        for i in range(3):
            cells = np.array([0, 1, 2, 10], np.uint8)[rng.integers(0, 4, (4, 4))]
            labels = cv2.resize(cells, (40, 32), interpolation=cv2.INTER_NEAREST)
            image = np.repeat(labels[..., None] * 20, 3, axis=2)
            for kind, picture, name in (('images', image, 'jpg'), ('annotations', labels, 'png')):
                folder = tmp_path / 'data' / kind / split / f'city{i}'
                folder.mkdir(parents=True)
                cv2.imwrite(str(folder / f'frame.{name}'), picture)
    return write_leaf(tmp_path, tmp_path / 'data', SEG)


CITIES = [f'city{i}/frame.png' for i in range(3)]


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def record(folder, name='test.json'):
    return json.loads((folder / name).read_text())


@pytest.mark.slow
def test_segmentation(capfd, seg_leaf, tmp_path):
    work, data = tmp_path / 'work', tmp_path / 'data'
    done = run_tool(capfd, 'train', seg_leaf)
    assert (done.code, done.err) == (0, '')
    drawn = [path for path in work.rglob('vis_image/**/*.png')]
    assert sorted(str(path).partition('vis_image/')[2] for path in drawn) == [
        f'val/city{i}/frame.jpg_{2 + i}.png' for i in range(3)]

    out, shown = tmp_path / 'out', tmp_path / 'shown'
    done = run_tool(capfd, 'test', seg_leaf, work, '--work-dir', tmp_path / 't', '--out', out,
                    '--show-dir', shown)  # fmt: skip
    assert (done.code, done.err) == (0, '')
    assert tree(out) == tree(shown) == CITIES
    equal = counted = 0
    for name in CITIES:
        found, truth = (read_mask(str(f / name)) for f in (out, data / 'annotations/validation'))
        assert found.shape == truth.shape and set(np.unique(found)) <= {1, 2, 10}
        equal += (found == truth).sum()
        counted += (truth > 0).sum()
    accuracy = record(tmp_path / 't')['metrics']['aAcc']
    assert accuracy == pytest.approx(equal / counted * 100, abs=0.01)

    # Without masks: the same label maps, pictures without truth, no metric.
    bare, pictures = tmp_path / 'bare', tmp_path / 'pictures'
    none = f'test_dataloader.dataset.data_prefix.seg_map_path={None}'
    for i, options in enumerate((['--no-labels'], ['--cfg-options', none])):
        folders = [f'{bare}{i}', '--show-dir', f'{pictures}{i}', '--work-dir', tmp_path / f'b{i}']
        done = run_tool(capfd, 'test', seg_leaf, work, '--out', *folders, *options)
        assert (done.code, done.err) == (0, '')
        assert done.out.count('no labels: no metric is reported') == 1
        assert record(tmp_path / f'b{i}')['metrics'] == {}
        for name in CITIES:
            assert (tmp_path / f'bare{i}' / name).read_bytes() == (out / name).read_bytes()
        widths = [cv2.imread(str(folder / CITIES[0])).shape[1]
                  for folder in (shown, tmp_path / f'pictures{i}')]  # fmt: skip
        assert widths == [2 * 280 + 4, 280]


MIRROR = """
default_hooks = dict(visualization=dict(enable=True, interval=1))
"""


@pytest.fixture
def cls_leaf(tmp_path):
    """Three classes; the images of each have the same names, of one there is a mirror image."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for channel, name in enumerate(('blue', 'green', 'red')):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                image = rng.integers(0, 50, (32, 32, 3)).astype(np.uint8)
                image[:, 8:20, channel] += 200
                cv2.imwrite(str(folder / f'{i}.png'), image)
            cv2.imwrite(str(folder / 'mirrored.png'), image[:, ::-1])
    path = tmp_path / 'images.py'
    base = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
    text = IMAGE_FOLDER.format(base=base, work_dir=tmp_path / 'work', data_root=tmp_path / 'data')
    path.write_text(text + MIRROR)
    return path


IMAGES = [f'{name}/{i}.png' for name in ('blue', 'green', 'red') for i in ('0', '1', 'mirrored')]


@pytest.mark.slow
def test_classification(capfd, cls_leaf, tmp_path):
    work = tmp_path / 'work'
    done = run_tool(capfd, 'train', cls_leaf)
    assert (done.code, done.err) == (0, '') and 'Results by class in percent' in done.out
    rows = record(work, 'evaluations.json')[-1]['per_class']
    assert [row['class'] for row in rows] == ['blue', 'green', 'red']
    assert all(row['support'] == 3 for row in rows)
    drawn = {str(path).partition('vis_image/')[2] for path in work.rglob('vis_image/**/*.png')}
    assert {f'val/{name}_2.png' for name in IMAGES} <= drawn

    def test(name, *options):
        done = run_tool(capfd, 'test', cls_leaf, work, '--work-dir', tmp_path / name, *options)
        assert (done.code, done.err) == (0, ''), done
        return done

    shown = tmp_path / 'shown'
    test('plain', '--out', tmp_path / 'p.json', '--show-dir', shown)
    assert tree(shown) == IMAGES
    blue = cv2.imread(str(shown / 'blue/0.png'))[-100, 100]  # BGR; mmpretrain swaps it
    assert blue[0] >= 200 and max(blue[1:]) < 50
    stored = json.loads((tmp_path / 'p.json').read_text())
    assert [s['path'] for s in stored] == [str(tmp_path / 'data/val' / name) for name in IMAGES]
    assert [s['truth'] for s in stored] == [name.partition('/')[0] for name in IMAGES]
    assert all(s['prediction'] == max(s['scores'], key=s['scores'].get) for s in stored)
    result = record(tmp_path / 'plain')
    right = [s['truth'] == s['prediction'] for s in stored]
    assert result['metrics']['accuracy/top1'] == pytest.approx(100 * np.mean(right), abs=0.01)
    for i, row in enumerate(result['per_class']):
        assert row['accuracy'] == pytest.approx(100 * np.mean(right[3 * i : 3 * i + 3]), abs=0.01)

    # Each image and its mirror image averaged: so those of a mirror image are the same.
    test('tta', '--tta', '--out', tmp_path / 't.pkl', '--show-dir', tmp_path / 'averaged')
    assert tree(tmp_path / 'averaged') == IMAGES
    averaged = pickle.loads((tmp_path / 't.pkl').read_bytes())
    for i in (1, 4, 7):
        one, other = (torch.tensor(list(stored[k]['scores'].values())) for k in (i, i + 1))
        assert not torch.allclose(one, other, atol=1e-4)
        for sample in averaged[i : i + 2]:
            assert torch.allclose(sample['pred_score'], (one + other) / 2, atol=1e-5)
            assert sample['pred_label'].item() == sample['pred_score'].argmax()

    # A flat folder of images that belong to no class.
    (tmp_path / 'flat/more').mkdir(parents=True)
    for source, name in ((IMAGES[0], 'x.png'), (IMAGES[3], 'more/x.png')):
        (tmp_path / 'flat' / name).write_bytes((tmp_path / 'data/val' / source).read_bytes())
    where = [f'test_dataloader.dataset.data_root={tmp_path}',
             'test_dataloader.dataset.data_prefix=flat']  # fmt: skip
    done = test('flat', '--no-labels', '--out', tmp_path / 'f.jsonl', '--show-dir', tmp_path / 'f',
                '--cfg-options', *where)  # fmt: skip
    assert done.out.count('no labels: no metric is reported') == 1
    assert record(tmp_path / 'flat')['metrics'] == {}
    assert tree(tmp_path / 'f') == ['more/x.png', 'x.png']
    lines = [json.loads(line) for line in (tmp_path / 'f.jsonl').read_text().splitlines()]
    assert [line['truth'] for line in lines] == [None, None]
    assert [line['scores'] for line in lines] == [stored[k]['scores'] for k in (0, 3)]


def test_the_label_of_averaged_scores(mmpretrain_scope):
    """mmpretrain leaves that of the first version."""
    from mmpretrain.structures import DataSample

    from vpt_dense.classifiers import AverageClsScoreTTA

    model = torch.nn.Module()
    model.test_step = None
    versions = [DataSample().set_pred_score(torch.tensor(s)).set_pred_label(s.index(max(s)))
                for s in ([0.6, 0.4], [0.1, 0.9])]  # fmt: skip
    sample, = AverageClsScoreTTA(model).merge_preds([versions])
    assert sample.pred_score.tolist() == pytest.approx([0.35, 0.65])
    assert sample.pred_label.tolist() == [1]


#: Options of tools/test.py -> what is said.
REFUSED = {
    ('seg', '--no-labels'): 'nothing would come of a test; add --out or --show-dir',
    ('seg', '--out', 'x.json'): 'a segmentation writes a file an image; name a folder',
    ('cls', '--out', 'x'): 'a classification writes one file; name it *.json, *.jsonl or *.pkl',
    ('seg', '--cfg-options', 'val_dataloader.dataset.data_prefix.seg_map_path=None', 'train'):
        'data of val: no data_prefix.seg_map_path; only a test can do without masks',
    ('cls', '--cfg-options', 'train_dataloader.dataset.with_label=False', 'train'):
        'data of train: with_label=False is for tests alone',
    ('seg', '--cfg-options', 'test_dataloader.dataset.data_prefix.seg_map_path=none'):
        'images without masks: --no-labels',
    ('seg', '--tta', '--cfg-options', 'tta_pipeline.0.type=vpt_dense.LoadBands'):
        'tta_pipeline reads images with LoadBands, test_dataloader.dataset.pipeline with LoadImage',
    ('seg', '--cfg-options', 'test_evaluator.output_dir=there'): 'there is not empty; name another',
}


@pytest.mark.parametrize('case', REFUSED, ids=' '.join)
def test_what_is_refused(capfd, seg_leaf, cls_leaf, tmp_path, monkeypatch, case):
    task, *options = case
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there').mkdir()
    (tmp_path / 'there/mine').touch()
    torch.save(dict(state_dict={}, meta={}), 'c.pth')
    tool = 'train' if options[-1] == 'train' else 'test'
    options = options[:-1] if tool == 'train' else ['c.pth', *options]
    before = tree(tmp_path)
    done = run_tool(capfd, tool, dict(seg=seg_leaf, cls=cls_leaf)[task], *options)
    assert done.code == 2 and len(done.err.splitlines()) == 1 and REFUSED[case] in done.err, done
    assert tree(tmp_path) == before


# --- two processes ---------------------------------------------------------------------------


def test_in_process(rank, jobs, found):
    from unittest import mock

    for argv in jobs:
        forget_runs()
        argv = ['tools/test.py', *argv, '--launcher', 'pytorch']
        with mock.patch.object(sys, 'argv', argv):
            runpy.run_path(str(ROOT / 'tools/test.py'), run_name='tool')['main']()


test_in_process.__test__ = False


@pytest.mark.slow
def test_two_processes_write_what_one_does(capfd, seg_leaf, cls_leaf, tmp_path):
    """Three and nine images: one process has an image more, or the repeat of one."""
    jobs = {1: [], 2: []}
    for leaf, options in ((seg_leaf, ['--out', 'maps']), (cls_leaf, ['--out', 'p.jsonl']),
                          (seg_leaf, ['--no-labels', '--out', 'bare'])):  # fmt: skip
        name = f'{leaf.stem}{"bare" in options}'
        if '--no-labels' not in options:
            folder = ['--work-dir', tmp_path / leaf.stem]
            assert run_tool(capfd, 'train', leaf, *folder).code == 0
        for number in jobs:
            folder = tmp_path / str(number)
            jobs[number].append([
                str(leaf), str(tmp_path / leaf.stem), *options[:-1], str(folder / options[-1]),
                '--show-dir', str(folder / f'shown-{name}'), '--work-dir', str(folder / name)])
    for arguments in jobs[1]:
        assert run_tool(capfd, 'test', *arguments).code == 0
    run_two(test_in_process, jobs[2])
    for kind in ('maps', 'bare', 'p.jsonl', 'shown-leafFalse', 'shown-imagesFalse'):
        one, two = tmp_path / '1' / kind, tmp_path / '2' / kind
        if one.is_file():
            assert one.read_text() == two.read_text()
            continue
        assert tree(one) == tree(two) == (IMAGES if 'images' in kind else CITIES)
        for name in tree(one):
            assert (one / name).read_bytes() == (two / name).read_bytes()
    for name in ('leafFalse', 'imagesFalse'):
        one, two = (record(tmp_path / number / name) for number in '12')
        assert one['metrics'] == two['metrics'] and one['per_class'] == two['per_class']
