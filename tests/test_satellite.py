"""Satellite images: layouts of public sets, windows that are blended, scenes that go on."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import torch
from field_data import eyes, satellites
from mmengine.registry import DATASETS, TRANSFORMS
from rasterio.transform import from_origin
from test_predict import save as save_model
from test_raster import write as write_tiff
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, FIELDS, ROOT, TINY_ARCH, in_scope

import vpt_dense
from vpt_dense import building, config, params, preflight, run_setup
from vpt_dense.datasets import checks, raster
from vpt_dense.errors import UserError
from vpt_dense.predicting import model as predicting
from vpt_dense.predicting.partial import Partial
from vpt_dense.segmentors import tiles
from vpt_dense.windows import Axis

RNG = np.random.default_rng(0)


# --- windows ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model')
    save_model(write_leaf(folder, tiny_folder(folder / 'data')), folder / 'c.pth')
    return folder


@pytest.mark.parametrize('size', [(70, 53), (32, 70), (50, 20)], ids=str)
def test_hann_is_the_mean_weighted_by_its_formula(seg, size):
    """In float64, window by window, at the size of the image."""
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'hann'})
    model = predictor.model.double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    meta = [dict(ori_shape=size, img_shape=size, pad_shape=size)]
    height, width = (min(32, length) for length in size)
    hann = [np.sin(np.pi * (np.arange(n) + 0.5) / n) ** 2 for n in (height, width)]
    weights = torch.from_numpy(np.outer(*hann))
    total, divisor = 0, 0
    with torch.no_grad():
        found = model.slide_inference(image, meta)[0]
        for top in Axis.of(size[0], 32, 21).starts:
            for left in Axis.of(size[1], 32, 21).starts:
                crop = image[:, :, top:top + height, left:left + width]
                one = model.encode_decode(crop, [dict(meta[0], img_shape=torch.Size(
                    (height, width)))])[0]
                placed = torch.zeros(len(one) + 1, *size, dtype=torch.float64)
                placed[:-1, top:top + height, left:left + width] = one * weights
                placed[-1, top:top + height, left:left + width] = weights
                total, divisor = total + placed[:-1], divisor + placed[-1]
    # Weights are float32.
    torch.testing.assert_close(found, total / divisor, rtol=1e-5, atol=1e-5)
    plain = vpt_dense.load(seg / 'c.pth').model.double().slide_inference(image, meta)[0]
    assert size == (50, 20) or (plain - found).abs().max() > 1e-3 * found.abs().max()


@pytest.mark.parametrize('size', [(150, 131), (30, 131), (150, 32)], ids=str)
def test_tiles_are_blended_as_the_whole(seg, size, monkeypatch):
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'hann'})
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    expected = predictor.predict(array, probabilities=True)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    monkeypatch.setattr(tiles, '_TILE', 150 * 4 * 32 * 9)
    result = predictor.predict(array, probabilities=True)
    assert isinstance(result.probabilities, np.memmap)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)


@pytest.mark.parametrize('size', [(115, 131), (64, 97), (33, 200)], ids=str)
def test_a_scene_is_padded_as_a_small_image_is(seg, tmp_path, size, monkeypatch):
    """``img_size`` pads test images to whole patches; rows of a raster are read all the same."""
    options = {'model.data_preprocessor.test_cfg': dict(size_divisor=8),
               'model.data_preprocessor.pad_val': 3}
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options=options)
    path = scene(tmp_path / 'a.tif', size)
    expected = predictor.predict(str(path), probabilities=True)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    monkeypatch.setattr(tiles, '_TILE', 150 * 4 * 32 * 9)
    reads = []
    read = tiles.slide
    monkeypatch.setattr(tiles, 'slide', lambda *args: reads.append(args[2]) or read(*args))
    result = predictor.predict(str(path), probabilities=True)
    assert reads == [tuple(-(-length // 8) * 8 for length in size)]
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-6)
    np.testing.assert_array_equal(result.labels, expected.labels)


def test_a_way_to_blend_that_there_is_not(seg):
    with pytest.raises((UserError, ValueError), match='model.test_cfg.blend'):
        vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.blend': 'gauss'})


# --- scenes ----------------------------------------------------------------------------------


def scene(path, size=(110, 70)):
    array = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
    write_tiff(path, array, crs='EPSG:32633', transform=from_origin(500000, 5300000, 10, 10))
    return path


def test_a_scene_goes_on_where_it_was_left(seg, tmp_path, monkeypatch):
    """Interrupted at every row of windows in turn; what was done is not done again."""
    path = scene(tmp_path / 'scene.tif')
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    expected = vpt_dense.load(seg / 'c.pth').predict(str(path)).labels
    reads, done = [], Partial.done

    class Killed(KeyboardInterrupt):
        pass

    def stop(self, rows):
        done(self, rows)
        if rows < 110:
            raise Killed

    monkeypatch.setattr(Partial, 'done', stop)
    whole = tiles._band
    monkeypatch.setattr(tiles, '_band', lambda *args: reads.append(args[-1]) or whole(*args))
    for _ in range(50):
        predictor = vpt_dense.load(seg / 'c.pth')
        predictor.partial = tmp_path / 'partial'
        try:
            result = predictor.predict(str(path))
            break
        except Killed:
            continue
    starts = Axis.of(110, 32, 21).starts
    # A row of windows comes again for the pixels that the next one adds to, and no more.
    assert set(reads) == set(starts) and len(reads) <= 4 * len(starts)
    np.testing.assert_array_equal(result.labels, expected)
    assert sorted(file.suffix for file in (tmp_path / 'partial').iterdir()) == ['.json', '.labels']
    state, = (tmp_path / 'partial').glob('*.json')
    assert json.loads(state.read_text())['rows'] == 110

    other = vpt_dense.load(seg / 'c.pth', cfg_options={'model.test_cfg.stride': (16, 16)})
    other.partial = tmp_path / 'partial'
    reads.clear()
    with pytest.raises(Killed):
        other.predict(str(path))
    assert reads[0] == 0  # another way to predict begins anew


KILLED = """
import sys
from vpt_dense.predicting import model, partial
from vpt_dense import cli
model.PLAIN_PIXELS = 10
done = partial.Partial.done
flag = sys.argv[-1]
def slow(self, rows):
    done(self, rows)
    if rows > 30 and flag == 'wait':
        print('rows', rows, flush=True)
        import time; time.sleep(60)
partial.Partial.done = slow
from vpt_dense.commands import predict
predict.main(sys.argv[1:-1])
"""


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(seg, tmp_path):
    path, out = scene(tmp_path / 'scene.tif'), tmp_path / 'out'
    command = [sys.executable, '-c', KILLED, str(seg / 'c.pth'), str(path), '--out', str(out)]
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    process = subprocess.Popen([*command, 'wait'], env=env, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith('rows'):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    state, = (out / '.partial').glob('*.json')
    assert json.loads(state.read_text())['rows'] > 30 and not list(out.glob('labels/*'))
    subprocess.run([*command, '--skip-existing', 'on'], env=env, check=True, capture_output=True)
    with rasterio.open(out / 'labels/scene.tif') as file, rasterio.open(path) as source:
        assert file.crs == source.crs and file.transform == source.transform
        labels = file.read(1)
    np.testing.assert_array_equal(labels, vpt_dense.load(seg / 'c.pth').predict(str(path)).labels)
    assert not (out / '.partial').exists()
    assert json.loads((out / 'summary.json').read_text())['finished']


# --- public sets -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return eyes(satellites(tmp_path_factory.mktemp('satellites')))


SETS = {  # name: (folder, {split: images}, classes, labels of a mask that are ignored)
    'sen1floods11': ('sen1floods11', dict(train=2, val=1, test=1, bolivia=1), 2, {-1}),
    'hls-burn-scars': ('hls_burn_scars', dict(train=1, val=1), 2, {-1}),
    'loveda': ('loveda', dict(train=2, val=2, test=2), 7, {0}),
    'potsdam': ('potsdam', dict(train=1, val=1), 6, {0}),
    'isaid': ('isaid', dict(train=1, val=1), 16, set()),
    'drive': ('drive', dict(train=2, test=2), 2, set()),
    'refuge': ('refuge', dict(train=1, val=1, test=1), 3, set()),
}


@pytest.mark.parametrize('name', SETS)
def test_labels_are_the_classes_of_the_set(name, data):
    in_scope('mmseg')
    folder, splits, classes, ignored = SETS[name]
    load = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))
    seen: set[int] = set()
    for split, number in splits.items():
        dataset = DATASETS.build(dict(
            type='vpt_dense.PublicSet', name=name, split=split, data_root=str(data / folder)))
        assert len(dataset) == number and len(dataset.metainfo['classes']) == classes
        for i in range(number):
            sample = dataset.get_data_info(i)
            assert (name, split) == ('loveda', 'test') or sample['seg_map_path']
            if 'seg_map_path' not in sample:
                continue
            raw = raster.read_image(sample['seg_map_path'])[..., 0]
            out = np.isin(raw, list(ignored))
            wanted = np.where(out, 255, (raw // 255 if name == 'drive' else raw) - (0 in ignored))
            np.testing.assert_array_equal(load(sample)['gt_seg_map'], wanted)
            seen.update(wanted.ravel().tolist())
    assert seen - {255} <= set(range(classes)) and (255 in seen) == bool(ignored)


@pytest.mark.parametrize('recipe, root, images', [
    ('linear_vit-b_dinov2_sen1floods11', 'sen1floods11', dict(train=2, val=1, test=1)),
    ('linear_vit-b_dinov2_burn-scars', 'hls_burn_scars', dict(train=1, val=1)),
    ('linear_vit-b_dinov2_loveda', 'loveda', dict(train=2, val=2)),
    ('linear_vit-b_dinov2_retina', 'drive', dict(train=2, val=2)),
    ('vit-b_dinov2_eurosat-ms', 'eurosat', dict(train=2, val=1, test=1))])
def test_check_looks_at_the_recipes(recipe, root, images, data):
    cfg = config.load(str(CONFIGS / f'fields/{recipe}.py'), {'dataset.data_root': str(data / root)},
                      trains=False)
    found = checks.check_config(cfg)
    assert {name: split['images'] for name, split in found['splits'].items()} == images
    problems = [line for split in found['splits'].values() for line in split['problems']]
    # Of ten classes two have an image.
    assert not problems or root == 'eurosat' and len(problems) == 1, problems


@pytest.mark.parametrize('recipe', FIELDS)
def test_recipes_take_a_method(recipe):
    cfg = config.load(str(CONFIGS / recipe), None, 'deep')
    preflight.check_model(cfg.model)
    preflight.check_bands(cfg)
    preflight.check_optimizer(cfg.optim_wrapper, cfg.default_scope)
    counts = params.count(building.build_model(cfg, 'meta'))
    assert 0 < params.add_up(counts)[0] < params.add_up(counts)[1] / 50
    head, = config.heads(cfg.model)
    assert head.num_classes == len(cfg.train_dataloader.dataset.metainfo.classes) > 1


def test_lists_and_classes_that_do_not_fit_are_told(data, tmp_path):
    in_scope('mmseg')
    floods = dict(type='vpt_dense.PublicSet', name='sen1floods11')
    with pytest.raises(UserError, match='no list v1.1/splits/flood_handlabeled/flood_train_data.t'):
        DATASETS.build(dict(floods, data_root=str(tmp_path)))
    shutil.copytree(data / 'sen1floods11', tmp_path / 'f')
    listed, = (tmp_path / 'f').rglob('flood_train_data.txt')
    listed.write_text('Ghana_1\nMali_9\n')
    with pytest.raises(UserError, match='1 of 2 names are no image .* e.g. Mali_9'):
        DATASETS.build(dict(floods, data_root=str(tmp_path / 'f')))
    in_scope('mmpretrain')
    (tmp_path / 'eurosat-train.txt').write_text('Sea_1.jpg\n')
    with pytest.raises(UserError, match="line 1: 'Sea_1.jpg' is no image"):
        DATASETS.build(dict(type='vpt_dense.EuroSAT', data_root=str(tmp_path)))


def test_negative_labels_are_wrong_unless_they_are_to_be_ignored(tmp_path):
    write_tiff(tmp_path / 'm.tif', np.array([[[-1], [1]]], np.int16))
    load = TRANSFORMS.build(dict(type='vpt_dense.LoadMask', ignore_index=7))
    sample = dict(seg_map_path=str(tmp_path / 'm.tif'), seg_fields=[])
    with pytest.raises(ValueError, match='has ids from -1 to 1'):
        load(dict(sample))
    found = load(dict(sample, ignore_negative=True, label_map={0: 5}))['gt_seg_map']
    assert found.tolist() == [[7, 1]]


@pytest.mark.slow
def test_a_recipe_with_six_bands_trains_and_predicts_in_place(data, tmp_path, capfd):
    options = {
        'work_dir': str(tmp_path / 'work'), 'img_size': 28, 'batch_size': 1, 'iters': 2,
        'dataset.data_root': str(data / 'hls_burn_scars'),
        'model.backbone.arch': dict(TINY_ARCH, _delete_=True), 'model.backbone.out_indices': [3],
        'model.backbone.init_cfg': None, 'model.decode_head.in_channels': 64,
        **{f'{name}_dataloader.num_workers': 0 for name in ('train', 'val', 'test')}}
    cfg = config.load(str(CONFIGS / 'fields/linear_vit-b_dinov2_burn-scars.py'), options, 'deep')
    run_setup.start(cfg, 'train', None).train()
    metrics = json.loads((tmp_path / 'work/summary.json').read_text())['last']['metrics']
    assert 0 <= metrics['mIoU'] <= 100
    image, = (data / 'hls_burn_scars/validation').glob('*_merged.tif')
    told = run_tool(capfd, 'predict', tmp_path / 'work/iter_2.pth', image, '--out',
                    tmp_path / 'out')
    assert told.code == 0, told.err
    labels, = (tmp_path / 'out/labels').iterdir()
    found = raster.read_image(labels)
    assert found.shape == (32, 32, 1) and set(np.unique(found)) <= {0, 1}
