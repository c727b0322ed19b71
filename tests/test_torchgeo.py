"""torchgeo's data sets: read as they are, checked, trained on; `make test-torchgeo` has them."""

import json
import pickle
import sys

import numpy as np
import pytest
from geo_data import BANDS, DEEPGLOBE, SCENES, TILES, make
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from PIL import Image
from tool_helpers import run_tool
from utils import CONFIGS, TINY_ARCH, in_scope

from vpt_dense import config, preflight, run_setup
from vpt_dense.datasets import checks, geo_samples, raster
from vpt_dense.errors import UserError

MASKS, CLASSES = 'fields/linear_vit-b_dinov2_deepglobe', 'fields/vit-b_dinov2_resisc45'
LOAD = dict(type='vpt_dense.LoadBands', mean=[0.0] * 3, std=[1.0] * 3)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp('geo'))


@pytest.fixture
def torchgeo():
    return pytest.importorskip('torchgeo.datasets')


def build(kind, name, root, **more):
    in_scope('mmpretrain' if kind == 'TorchGeoClasses' else 'mmseg')
    return DATASETS.build(dict(type=f'vpt_dense.{kind}', name=name, data_root=str(root), **more))


# --- without torchgeo ------------------------------------------------------------------------


@pytest.mark.parametrize('recipe, root', [(MASKS, 'deepglobe'), (CLASSES, 'resisc45')])
def test_its_absence_is_told_before_a_run(recipe, root, data, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchgeo', None)
    monkeypatch.setitem(sys.modules, 'torchgeo.datasets', None)
    options = {'dataset.data_root': str(data / root)}
    cfg = config.load(str(CONFIGS / f'{recipe}.py'), options, 'deep')
    with pytest.raises(UserError, match=r"need torchgeo.*pip install 'vpt-dense\[torchgeo\]'"):
        preflight.check_dataset(cfg.train_dataloader.dataset, 'train')
    with pytest.raises(UserError, match=r"pip install 'vpt-dense\[torchgeo\]'"):
        checks.check_config(cfg)


def test_another_reader_and_places_of_files_are_refused():
    with pytest.raises(UserError, match='reads images by vpt_dense.LoadBands.* found LoadImageFr'):
        geo_samples.check_pipeline([dict(type='LoadImageFromFile')], 'TorchGeo')
    for kind in geo_samples.KINDS:
        with pytest.raises(UserError, match='dataset.ann_file: torchgeo knows the files'):
            build(kind, 'LoveDA', '', ann_file='a.txt')


@pytest.mark.parametrize('kind, head, key', [
    ('TorchGeo', 'decode_head', 'with_masks'), ('TorchGeoClasses', 'head', 'with_label')])
def test_a_test_can_do_without_labels(kind, head, key):
    """`--no-labels`: no masks are loaded, and nothing is measured."""
    said = dict(type=f'vpt_dense.{kind}', pipeline=[LOAD, dict(type='vpt_dense.LoadMask')])
    cfg = Config(dict(model={head: dict()}, test_evaluator=dict(type='vpt_dense.IoUMetric'),
                      test_dataloader=dict(dataset=said)))
    assert not run_setup.leave_out_labels(cfg, False)
    assert run_setup.leave_out_labels(cfg, True) and cfg.test_evaluator == []
    dataset = cfg.test_dataloader.dataset
    assert dataset[key] is False and [step['type'] for step in dataset.pipeline] == [LOAD['type']]


def test_a_sample_of_no_set_is_told():
    with pytest.raises(ValueError, match='no data set that was opened has it'):
        raster.read_image('torchgeo://LoveDA-train-0/1.tif')


# --- with it ---------------------------------------------------------------------------------


def read(dataset, index):
    """Image and mask through our pipeline, as RGB and labels."""
    load = TRANSFORMS.build(dict(LOAD))
    mask = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))
    found = mask(load(dataset.get_data_info(index)))
    return found['img'], found['gt_seg_map']


def test_masks_are_those_of_the_files(torchgeo, data):
    """Read by Pillow, and the colours looked up one by one."""
    dataset = build('TorchGeo', 'DeepGlobeLandCover', data / 'deepglobe', split='train')
    assert [dataset.get_data_info(i)['img_path'].rpartition('/')[2] for i in range(3)] == [
        '15_sat.tif', '1_sat.tif', '8_sat.tif']
    assert dataset.metainfo['palette'] == DEEPGLOBE.tolist() and len(dataset) == 3
    for i, name in enumerate(('15', '1', '8')):
        folder = data / 'deepglobe/data/training_data'
        image, labels = read(dataset, i)
        np.testing.assert_array_equal(
            image, np.asarray(Image.open(folder / f'images/{name}_sat.jpg'), np.float32))
        colours = np.asarray(Image.open(folder / f'masks/{name}_mask.png'))
        np.testing.assert_array_equal(DEEPGLOBE[labels], colours)


def test_loveda_has_its_labels_not_the_order_of_torchgeos_names(torchgeo, data):
    """0 of the files is no data; torchgeo's list of names ends with it."""
    dataset = build('TorchGeo', 'LoveDA', data / 'loveda', split='val',
                    arguments=dict(scene=['rural']))
    assert torchgeo.LoveDA.classes[-1] == 'no-data'
    assert dataset.metainfo['classes'][:2] == ['background', 'building'] and len(dataset) == 1
    raw = np.asarray(Image.open(data / 'loveda/Val/Rural/masks_png/6.png'))
    np.testing.assert_array_equal(read(dataset, 0)[1], np.where(raw == 0, 255, raw - 1))


def test_splits_without_masks_are_told_and_can_be_predicted(torchgeo, data):
    with pytest.raises(UserError, match="has no masks in 'test'; .*with_masks=False"):
        build('TorchGeo', 'LoveDA', data / 'loveda', split='test')
    dataset = build('TorchGeo', 'LoveDA', data / 'loveda', split='test', with_masks=False)
    assert 'seg_map_path' not in dataset.get_data_info(0)


def labels_of(dataset):
    return checks.read_mask(dataset.get_data_info(0)['seg_map_path'])


@pytest.mark.parametrize('name, root, bands, split', [
    ('Potsdam2D', 'potsdam', 4, 'test'), ('EuroSAT', 'eurosat', BANDS, 'val')])
def test_bands_and_names_are_those_of_the_files(torchgeo, data, name, root, bands, split):
    kind = 'TorchGeo' if name == 'Potsdam2D' else 'TorchGeoClasses'
    dataset = build(kind, name, data / root, split=split)
    path = dataset.get_data_info(0)['img_path']
    stem = f'{TILES["test"][0]}_RGBIR' if bands == 4 else f'airplane_{split}0'
    file, = (data / root).rglob(f'{stem}.tif')
    assert path.endswith(f'/{stem}.tif')
    np.testing.assert_array_equal(
        raster.read_image(path, [bands, 1]), raster.read_image(file, [bands, 1]))
    np.testing.assert_array_equal(
        raster.read_window(path, 3, 5, 7, 9), raster.read_window(file, 3, 5, 7, 9))
    if bands == 4:
        colours = np.asarray(Image.open(data / f'potsdam/{TILES["test"][0]}_label.tif'))
        np.testing.assert_array_equal(np.array(dataset.metainfo['palette'])[labels_of(dataset)],
                                      colours)
        return
    assert [dataset.get_data_info(i)['gt_label'] for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert dataset.metainfo['classes'] == SCENES
    two = build(kind, name, data / root, split=split, arguments=dict(bands=['B04', 'B02']))
    np.testing.assert_array_equal(
        raster.read_image(two.get_data_info(0)['img_path']), raster.read_image(file, [4, 2]))


def test_worker_processes_open_a_set_anew(torchgeo, data):
    dataset = build('TorchGeo', 'DeepGlobeLandCover', data / 'deepglobe', split='test')
    path, packed = dataset.get_data_info(1)['img_path'], pickle.dumps(dataset)
    wanted = raster.read_image(path)
    geo_samples._opened.clear()
    with pytest.raises(ValueError, match='no data set that was opened'):
        raster.read_image(path)
    pickle.loads(packed)
    np.testing.assert_array_equal(raster.read_image(path), wanted)


@pytest.mark.parametrize('more, told', [
    (dict(name='LovedA'), "none of torchgeo's sets of images.*LoveDA"),
    (dict(name='Landsat8'), 'sets of whole scenes'),
    (dict(split=None), 'dataset.split: say which.*train, val, test'),
    (dict(split='valid'), r"LoveDA\(root='.*split='valid'\)"),
    (dict(data_root='/none'), r"LoveDA\(root='/none', split='train'\): Dataset not found"),
    (dict(arguments=dict(root='x')), 'arguments.root: dataset.data_root says it'),
    (dict(arguments=dict(scenes=['urban'])), "no such argument; it has checksum, download, scene"),
    (dict(arguments=dict(scene=['sea'])), 'possible scenes'),
    (dict(classes=None, name='SKIPPD', arguments=dict(task='nowcast')), 'SKIPPD')])
def test_what_a_set_has_not_is_told_in_one_line(torchgeo, data, more, told):
    said = {**dict(name='LoveDA', data_root=str(data / 'loveda'), split='train'), **more}
    said.pop('classes', None)
    with pytest.raises(UserError, match=told) as error:
        build('TorchGeo', root=said.pop('data_root'), **said)
    assert '\n' not in str(error.value)


def test_samples_of_another_kind_are_told(torchgeo):
    """Series of images, several classes, distances: what some of torchgeo's sets give."""
    import torch

    class Series(torchgeo.NonGeoDataset):
        def __init__(self, root='', image=(3, 8, 8), **sample):
            self.sample = dict(image=torch.zeros(image), **sample)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return self.sample

    def source(**sample):
        return geo_samples.Source('k', Series, '', None, sample)

    with pytest.raises(ValueError, match=r'sample 1: there is no image of the shape \(2, 3, 8, 8'):
        source(image=(2, 3, 8, 8)).image(1)
    with pytest.raises(ValueError, match='there is no mask of numbers that are no labels'):
        source(mask=torch.full((8, 8), 0.5)).mask(0)
    with pytest.raises(ValueError, match=r'there is no mask of the shape \(3, 8, 8\)'):
        source(mask=torch.zeros(3, 8, 8)).mask(0)
    with pytest.raises(ValueError, match='there is no mask to be read: it has image, label'):
        source(label=torch.tensor(1)).mask(0)
    with pytest.raises(UserError, match=r'one class was expected, found label \[0, 1, 1\]'):
        source(label=torch.tensor([0, 1, 1])).labels()
    assert source(label=torch.tensor(3)).labels() == [3, 3]
    assert list(source().numbers) == ['000000', '000001']
    assert source(mask=torch.ones(1, 8, 8)).mask(0).sum() == 64


def options(folder, root):
    return {
        'work_dir': str(folder / 'work'), 'img_size': 28, 'batch_size': 2,
        'dataset.data_root': str(root), 'model.backbone.arch': dict(TINY_ARCH, _delete_=True),
        'model.backbone.init_cfg': None, 'visualizer.vis_backends': [],
        **{f'{name}_dataloader.num_workers': number for name, number in
           dict(train=1, val=0, test=0).items()},
        **{f'{name}_dataloader.persistent_workers': False for name in ('train', 'val', 'test')}}


def run(recipe, root, folder, more):
    cfg = config.load(str(CONFIGS / f'{recipe}.py'), options(folder, root) | more, 'deep')
    run_setup.start(cfg, 'train', None).train()
    return cfg


def test_check_counts_pixels_and_gathers_statistics(torchgeo, data, tmp_path):
    cfg = config.load(str(CONFIGS / f'{MASKS}.py'), options(tmp_path, data / 'deepglobe'),
                      trains=False)
    found = checks.check_config(cfg, stats=True)
    assert {name: split['images'] for name, split in found['splits'].items()} == dict(
        train=3, val=2)
    split = found['splits']['train']
    files = sorted((data / 'deepglobe/data/training_data/images').iterdir())
    pixels = np.stack([np.asarray(Image.open(file), np.float64) for file in files])
    np.testing.assert_allclose(split['statistics']['mean'], pixels.mean((0, 1, 2)))
    np.testing.assert_allclose(split['statistics']['std'], pixels.std((0, 1, 2)))
    assert not split['problems'] and split['image_kinds'] == {'3 x float32': 3}
    masks = sorted((data / 'deepglobe/data/training_data/masks').iterdir())
    water = sum((np.asarray(Image.open(file)) == DEEPGLOBE[4]).all(-1).sum() for file in masks)
    assert split['class_pixels']['water'] == water > 0


@pytest.mark.slow
def test_masks_train_test_and_predict(torchgeo, data, tmp_path, capfd):
    cfg = run(MASKS, data / 'deepglobe', tmp_path, {
        'iters': 2, 'model.backbone.out_indices': [3], 'model.decode_head.in_channels': 64})
    summary = json.loads((tmp_path / 'work/summary.json').read_text())
    assert 0 <= summary['last']['metrics']['mIoU'] <= 100
    assert (tmp_path / 'work/report.html').is_file()
    config_file, checkpoint = tmp_path / 'c.py', tmp_path / 'work/iter_2.pth'
    cfg.dump(config_file)
    told = run_tool(capfd, 'test', config_file, checkpoint, '--work-dir', tmp_path / 'test',
                    '--out', tmp_path / 'out', '--show-dir', tmp_path / 'shown')
    assert told.code == 0, told.err
    assert sorted(p.name for p in (tmp_path / 'out').rglob('*.png')) == ['1_sat.png', '8_sat.png']
    assert len(list((tmp_path / 'shown').rglob('*.png'))) == 2
    image = data / 'deepglobe/data/test_data/images/8_sat.jpg'
    told = run_tool(capfd, 'predict', checkpoint, image, '--out', tmp_path / 'found')
    assert told.code == 0, told.err
    predicted, = (tmp_path / 'found/labels').iterdir()
    tested, = (tmp_path / 'out').rglob('8_sat.png')
    np.testing.assert_array_equal(raster.read_image(predicted), raster.read_image(tested))


@pytest.mark.slow
def test_classes_train_and_test(torchgeo, data, tmp_path, capfd):
    cfg = run(CLASSES, data / 'resisc45', tmp_path, {
        'epochs': 1, 'dataset.classes': list(SCENES), 'model.head.in_channels': 64})
    assert cfg.model.head.num_classes == 3
    config_file = tmp_path / 'c.py'
    cfg.dump(config_file)
    told = run_tool(capfd, 'test', config_file, tmp_path / 'work/epoch_1.pth', '--work-dir',
                    tmp_path / 'test', '--out', tmp_path / 'out.json')
    assert told.code == 0, told.err
    rows = json.loads((tmp_path / 'out.json').read_text())
    assert 'airplane_test0.tif' in json.dumps(rows)
    with pytest.raises(UserError, match='a label would mean another class'):
        build('TorchGeoClasses', 'RESISC45', data / 'resisc45', split='val',
              metainfo=dict(classes=['lake', 'airplane', 'wetland']))
