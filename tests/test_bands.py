"""LoadBands, what means "no data", and what the checks say of images beyond 3 x 8 bits."""

import ast
import json
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image
from test_raster import write
from tool_helpers import run_tool, write_leaf
from utils import ROOT, in_scope

from vpt_dense import config, preflight
from vpt_dense.datasets import checks, listing, raster
from vpt_dense.datasets.statistics import BandStatistics
from vpt_dense.errors import UserError

RNG = np.random.default_rng(0)


def load(path, number=2, **kwargs):
    step = dict(type='vpt_dense.LoadBands', mean=[100.0] * number, std=[10.0] * number, **kwargs)
    return TRANSFORMS.build(step)(dict(img_path=str(path)))


# --- LoadBands -------------------------------------------------------------------------------


def test_the_fourth_band_is_no_alpha(tmp_path):
    """OpenCV multiplies by it: (2, 3, 5, 40)."""
    write(tmp_path / 'a.tif', np.full((4, 5, 4), [10, 20, 30, 40], np.uint8),
          photometric='RGB', alpha='yes')  # fmt: skip
    found = load(tmp_path / 'a.tif', 4)
    assert np.array_equal(found['img'][0, 0], [-9, -8, -7, -6])
    assert np.array_equal(load(tmp_path / 'a.tif', bands=[4, 1])['img'][0, 0], [-6, -9])


@pytest.mark.parametrize('kwargs, tag, invalid', [
    (dict(), 0, 0), (dict(nodata=7), 0, 7), (dict(nodata=[7, None]), None, 7), (dict(), None, None),
])  # fmt: skip
@pytest.mark.parametrize('bands', [None, [3, 1]])
def test_no_data_is_the_mean_and_ignored(kwargs, tag, invalid, bands, tmp_path):
    stored = RNG.integers(8, 900, (6, 7, 3)).astype(np.uint16)
    if bands is None:
        stored = stored[..., :2]
    first, last = (2, 0) if bands else (0, 1)  # the first and last of those taken
    stored[0, 0] = 0 if invalid is None else invalid  # all
    stored[1, 1, first] = stored[0, 0, 0]  # one of them
    write(tmp_path / 'a.tif', stored, nodata=tag)
    results = load(tmp_path / 'a.tif', bands=bands, **kwargs)
    wanted = (stored[..., [first, last]] - np.float32(100)) / 10
    only_first = kwargs.get('nodata') == [7, None]
    if invalid is not None:
        wanted[1, 1, 0] = 0
        wanted[0, 0] = [0, wanted[0, 0, 1] if only_first else 0]
    np.testing.assert_array_equal(results['img'], wanted)
    Image.fromarray(np.ones((6, 7), np.uint8)).save(tmp_path / 'a.png')
    loader = TRANSFORMS.build(dict(type='vpt_dense.LoadMask', ignore_index=9))
    mask = loader(dict(results, seg_map_path=str(tmp_path / 'a.png'), seg_fields=[]))['gt_seg_map']
    ignored = np.zeros((6, 7), bool)
    ignored[0, 0] = invalid is not None and not only_first
    assert np.array_equal(mask, np.where(ignored, 9, 1)) and mask.dtype == np.uint8


def test_nan_and_infinity_are_no_data(tmp_path):
    stored = np.ones((2, 2, 2), np.float32)
    stored[0, 0], stored[0, 1], stored[1, 1, 0] = np.nan, [np.inf, np.nan], np.nan
    write(tmp_path / 'a.tif', stored)
    results = load(tmp_path / 'a.tif')
    assert np.isfinite(results['img']).all() and (results['img'][0] == 0).all()
    assert results['no_data'].tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize('kwargs, line', [
    (dict(bands=[0, 1]), r'numbers from 1, such as \[4, 3, 2\]; found \[0, 1\]'),
    (dict(bands=['R', 'G']), 'numbers from 1'),
    (dict(bands=[]), 'numbers from 1'),
    (dict(bands=[1, 2, 3]), r'found 2 for bands=\[1, 2, 3\]'),
    (dict(nodata=[1, 2, 3]), r'nodata is one value, or one for each of the 2 bands'),
    (dict(bands=[1, 9]), r'a.tif has bands 1 to 3, but bands=\[1, 9\]'),
    (dict(), 'a.tif has 3 bands, LoadBands expects 2'),
])  # fmt: skip
def test_wrong_bands_are_one_line(kwargs, line, tmp_path):
    write(tmp_path / 'a.tif', np.ones((4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=line) as error:
        load(tmp_path / 'a.tif', **kwargs)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('turn', [3, 6])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_masks_are_turned_as_images_are(turn, suffix, tmp_path):
    exif = Image.Exif()
    exif[274] = turn
    labels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    Image.fromarray(labels).save(tmp_path / f'mask.{suffix}', exif=exif)
    Image.fromarray(labels).save(tmp_path / 'image.png', exif=exif)
    image = load(tmp_path / 'image.png', 1)
    upright = np.rot90(labels, {3: 2, 6: 3}[turn])
    np.testing.assert_allclose(image['img'][..., 0] * 10 + 100, upright, atol=1e-4)
    assert np.array_equal(checks.read_mask(str(tmp_path / f'mask.{suffix}')), upright)


# --- checks ----------------------------------------------------------------------------------


def seg_folder(root, images, mask=None):
    """images/ and annotations/ of both splits; ``images``: {name: writes it, given a path}."""
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for name, save in images.items():
            path = root / 'images' / split / name
            save(path)
            labels = np.arange(64 * 64).reshape(64, 64) // 2048 if mask is None else mask
            target = root / 'annotations' / split / f'{path.stem}.png'
            Image.fromarray(labels.astype(np.uint8)).save(target)
    return root


def tif(bands, dtype='uint8', **profile):
    stored = RNG.integers(1, 200, (64, 64, bands)).astype(dtype)
    return lambda path: write(path, stored, **profile)


def png(bands, dtype='uint8'):
    stored = RNG.integers(1, 200, (64, 64, bands)).astype(dtype)
    return lambda path: cv2.imwrite(str(path), stored)


BANDS = ("dict(type='vpt_dense.LoadBands', mean=[100.0] * {n}, std=[50.0] * {n}, bands={bands})")
EXTRA = """
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{root}', classes=['x', 'y'])
_load = [{load}, dict(type='vpt_dense.LoadMask')]
_pack = dict(type='PackSegInputs')
train_dataloader['dataset'] = dict(
    pipeline=[*_load, dict(type='RandomCrop', crop_size=(32, 32)), _pack])
val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[*_load, _pack])
model['data_preprocessor'].update(size=(32, 32), mean=None, std=None, bgr_to_rgb=False)
model['backbone']['in_channels'] = {n}
custom_hooks = [dict(type='vpt_dense.DataCheckHook')]
"""


def leaf(folder, root, n=3, bands=None, load="dict(type='LoadImageFromFile')"):
    load = load.format(n=n, bands=bands)
    return write_leaf(folder, root, EXTRA.format(root=root, load=load, n=n))


CASES = {  # image, problem (or None), warning (or None) with the default loader
    'RGB': ('a.tif', tif(3, photometric='RGB'), None, None),
    'RGBA': ('a.png', png(4), None, None),
    '16 bit': ('a.png', png(3, 'uint16'), None, 'beyond 8 bits: 1 of 3 x 16 bit'),
    'four': ('a.tif', tif(4), 'reads wrongly or not at all: 1 of 4 x 8 bit', None),
    'thirteen': ('a.tif', tif(13, 'uint16'), 'wrongly or not at all: 1 of 13 x 16 bit', None),
    'float': ('a.tif', tif(3, 'float32'), 'wrongly or not at all: 1 of 3 x float32', None),
    'signed': ('a.tif', tif(1, 'int16'), 'wrongly or not at all: 1 of 1 x int16', None),
    'no data': ('a.tif', tif(3, photometric='RGB', nodata=0), None, 'means "no data"'),
}


@pytest.mark.parametrize('case', CASES)
def test_images_that_the_default_loader_changes_are_told(case, tmp_path, capfd):
    name, save, problem, warning = CASES[case]
    root = seg_folder(tmp_path / 'data', {name: save})
    in_scope('mmseg')
    path = str(leaf(tmp_path, root))
    train = checks.check_config(config.load(path))['splits']['train']
    for lines, expected in ((train['problems'], problem), (train['warnings'], warning)):
        assert bool(lines) == bool(expected), lines
        assert not expected or (expected in lines[0] and 'LoadBands' in lines[0])
    # Without a config nobody knows how they will be loaded.
    training = checks.check_folder(root)['splits']['training']
    assert not training['problems']
    assert any((problem or warning or '') in line for line in training['warnings']) or (
        not problem and not warning)
    if case == 'four':  # a run says so as well, before the first iteration
        outcome = run_tool(capfd, 'train', path)
        assert outcome.code == 2 and not list(tmp_path.glob('work/*.pth'))
        assert re.search(r'error: data of train: images that the default loader .*a\.tif.*'
                         r'LoadBands: docs/datasets.md', outcome.err)  # fmt: skip


@pytest.mark.parametrize('bands, problem', [
    ([4, 3, 2], None), (None, 'without the 3 bands that LoadBands takes: 1 of 4 x 16 bit'),
    ([4, 5, 2], r'without the bands=[4, 5, 2] that LoadBands takes'),
])  # fmt: skip
def test_bands_of_files_are_compared_with_those_taken(bands, problem, tmp_path):
    root = seg_folder(tmp_path / 'data', {'a.tif': tif(4, 'uint16')})
    in_scope('mmseg')
    train = checks.check_config(config.load(str(leaf(tmp_path, root, 3, bands, BANDS))))
    problems = train['splits']['train']['problems']
    assert problems == [] if problem is None else problem in problems[0]


@pytest.mark.parametrize('change, line', [
    ({'model.backbone.in_channels': 3}, r'in_channels is 3, but LoadBands of .* gives 4 bands'),
    ({'model.data_preprocessor.mean': [1.0, 2.0, 3.0]}, r'data_preprocessor.mean is .*normalised'),
    ({'model.data_preprocessor.bgr_to_rgb': True}, r'data_preprocessor.bgr_to_rgb is True'),
    ({'val_dataloader.dataset.pipeline.0': dict(type='LoadImageFromFile', _delete_=True)},
     r'train_dataloader.* with LoadBands, but val_dataloader.dataset.pipeline with the default'),
])  # fmt: skip
def test_a_config_with_bands_fits_itself(change, line, tmp_path):
    path = str(leaf(tmp_path, tmp_path, 4, None, BANDS))
    preflight.check_bands(config.load(path))
    with pytest.raises(UserError, match=line):
        preflight.check_bands(config.load(path, change))


def test_other_arguments_than_in_training_are_told(tmp_path, capfd):
    path = str(leaf(tmp_path, tmp_path, 4, None, BANDS))
    preflight.check_bands(config.load(path, {'val_dataloader.dataset.pipeline.0.mean': [1.0] * 4}))
    said = ''.join(capfd.readouterr())
    assert 'val_dataloader.dataset.pipeline has LoadBands with other arguments' in said
    assert 'test_dataloader' not in said


def test_augmented_tests_load_bands_too(tmp_path):
    cfg = config.load(str(leaf(tmp_path, tmp_path, 4, None, BANDS)))
    assert cfg.tta_pipeline[0] == cfg.train_dataloader.dataset.pipeline[0]


# --- statistics ------------------------------------------------------------------------------


def test_statistics_of_parts_are_those_of_the_whole():
    values = RNG.normal(1e6, 3, (50, 40, 3))
    invalid = RNG.random(values.shape) < 0.3
    found = BandStatistics(3)
    for start in range(0, 50, 7):
        found.add(values[start : start + 7], invalid[start : start + 7])
    found.join(BandStatistics(3))
    whole = np.ma.array(values, mask=invalid).reshape(-1, 3)
    assert found.to_dict()['pixels'] == whole.count(0).tolist()
    np.testing.assert_allclose(found.to_dict()['mean'], whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.to_dict()['std'], whole.std(0), rtol=1e-9)


def test_stats_of_bands(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(raster, '_STRIP', 64 * 20)
    first = RNG.integers(1, 3000, (64, 64, 4)).astype(np.uint16)
    first[:9] = 0
    second = RNG.integers(1, 9000, (64, 64, 4)).astype(np.uint16)
    mask = np.ones((64, 64))
    mask[:16], mask[16:32] = 0, 255
    root = seg_folder(tmp_path / 'data', {
        'a.tif': lambda path: write(path, first, nodata=0),
        'b.tif': lambda path: write(path, second, nodata=0)}, mask)  # fmt: skip
    path = leaf(tmp_path, root, 2, [4, 2], BANDS)
    outcome = run_tool(capfd, 'check_dataset', path, '--stats', '--json')
    train = json.loads(outcome.out)['splits']['train']
    valid = np.concatenate([first[9:].reshape(-1, 4), second.reshape(-1, 4)])[:, [3, 1]]
    np.testing.assert_allclose(train['statistics']['mean'], valid.mean(0))
    np.testing.assert_allclose(train['statistics']['std'], valid.std(0))
    assert train['class_pixels'] == {'x': 2 * 16 * 64, 'y': 2 * 32 * 64}
    outcome = run_tool(capfd, 'check_dataset', path, '--stats')
    assert outcome.code == 0
    pasted = eval(re.search(r'dict\(.*LoadBands.*\)', outcome.out)[0])
    assert pasted['bands'] == [4, 2]
    np.testing.assert_allclose(pasted['mean'], valid.mean(0), rtol=1e-5)
    assert 'nodata' not in pasted
    assert re.search(r'x .*33\.33%.*\n.*y .*66\.67%', outcome.out)
    outcome = run_tool(capfd, 'check_dataset', path, '--stats', '--cfg-options',
                       'train_dataloader.dataset.pipeline.0.nodata=7')
    assert eval(re.search(r'dict\(.*LoadBands.*\)', outcome.out)[0])['nodata'] == 7


def test_stats_of_bits_are_what_the_default_loader_gives(tmp_path, capfd):
    image = RNG.integers(0, 2, (64, 64, 1)).astype(np.uint8)
    root = seg_folder(tmp_path / 'data', {
        'a.tif': lambda path: write(path, image, nbits=1),
        'b.png': lambda path: Image.fromarray(image[..., 0] > 0).save(path),
        'c.tif': lambda path: write(path, 200 * image, photometric='miniswhite')},
        np.ones((64, 64)))  # fmt: skip
    outcome = run_tool(capfd, 'check_dataset', leaf(tmp_path, root, 3), '--stats', '--json')
    found = json.loads(outcome.out)['splits']['train']['statistics']
    means = 255 * image.mean(), 255 * image.mean(), 255 - 200 * image.mean()
    np.testing.assert_allclose(found['mean'], [np.mean(means)] * 3)


@pytest.mark.long
def test_what_is_printed_for_programs_is_nothing_else(tmp_path):
    """The packages print when they are imported first."""
    root = seg_folder(tmp_path / 'data', {'a.tif': tif(4)}, np.ones((64, 64)))
    path = leaf(tmp_path, root, 4, None, BANDS)
    for tool, *more in (('check_dataset', '--json'), ('print_config',)):
        done = subprocess.run([sys.executable, ROOT / f'tools/{tool}.py', path, *more],
                              capture_output=True, text=True, check=True)  # fmt: skip
        json.loads(done.stdout) if more else ast.parse(done.stdout)


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_stats_of_a_folder_of_pictures(task, tmp_path, capfd):
    """Grey, RGB and RGBA are what the default loader makes of them: R, G, B."""
    arrays = [RNG.integers(0, 256, (9, 8, bands)).astype(np.uint8) for bands in (1, 3, 4)]
    for split, other in (('train', 'training'), ('val', 'validation')):
        for i, array in enumerate(arrays):
            place = f'images/{other}' if task == 'segmentation' else f'{split}/{"ab"[i % 2]}'
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.squeeze()).save(tmp_path / place / f'{i}.png')
            if task == 'segmentation':
                (tmp_path / 'annotations' / other).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array[..., 0] // 128).save(
                    tmp_path / f'annotations/{other}/{i}.png')
    outcome = run_tool(capfd, 'check_dataset', tmp_path, '--stats')
    assert outcome.code == 0, outcome.err
    whole = np.concatenate([np.broadcast_to(a[..., :3], (9, 8, 3)) for a in arrays]).reshape(-1, 3)
    model = eval(re.search(r'dict\(data_preprocessor.*\)', outcome.out)[0])['data_preprocessor']
    np.testing.assert_allclose(model['mean'], whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model['std'], whole.std(0), rtol=1e-5)
    share = '66.67%' if task == 'classification' else '%'
    assert share in outcome.out


# --- links -----------------------------------------------------------------------------------


def test_a_link_into_its_own_folder_is_not_entered(tmp_path):
    root = tmp_path / 'images'
    for name in ('a', 'b/c'):
        (root / name).mkdir(parents=True)
        Image.new('L', (4, 4)).save(root / name / '0.png')
    (root / 'b/up').symlink_to(root, target_is_directory=True)
    (root / 'b/c/here').symlink_to('.', target_is_directory=True)
    (tmp_path / 'outside').mkdir()
    Image.new('L', (4, 4)).save(tmp_path / 'outside/1.png')
    (root / 'd').symlink_to(tmp_path / 'outside', target_is_directory=True)
    (root / 'e').symlink_to(tmp_path / 'outside', target_is_directory=True)
    (root / '.hidden').mkdir()
    Image.new('L', (4, 4)).save(root / '.hidden/2.png')
    found = checks.list_files(root, '.png')
    assert list(found) == ['a/0', 'b/c/0', 'd/1', 'e/1']
    assert sorted(listing.walk(root)) == sorted(found.values())
    (tmp_path / 'set/train').mkdir(parents=True)
    (tmp_path / 'set/train/x').symlink_to(root, target_is_directory=True)
    assert len(checks.list_class_files(tmp_path / 'set/train', ['x'])) == 4
    (root / 'a/back').symlink_to(tmp_path, target_is_directory=True)  # above what is looked through
    assert list(checks.list_files(root, '.png')) == list(found)


# --- the table of docs/datasets.md -----------------------------------------------------------

COLOURS = RNG.integers(0, 256, (9, 8, 4)).astype(np.uint8)
DEEP = RNG.integers(0, 65536, (9, 8)).astype(np.uint16)
PALETTE = Image.fromarray(COLOURS[..., :3]).quantize(8)
CMYK = Image.fromarray(cv2.resize(COLOURS, (64, 64)), 'CMYK')
THREE = np.s_[..., :3]
FORMS = {  # file: (image, what LoadBands gives, what the default loader gives, how near)
    'grey.png': (Image.fromarray(COLOURS[..., 0]), COLOURS[..., :1], COLOURS[..., [0] * 3], 0),
    'deep.png': (Image.fromarray(DEEP), DEEP[..., None], (DEEP >> 8)[..., None].repeat(3, 2), 0),
    'alpha.png': (Image.fromarray(COLOURS), COLOURS, COLOURS[THREE], 0),
    'palette.png': (PALETTE, np.array(PALETTE.convert('RGB')), np.array(PALETTE.convert('RGB')), 0),
    'bits.png': (Image.fromarray(DEEP > 999), (DEEP > 999)[..., None],
                 (DEEP > 999)[..., None].repeat(3, 2) * 255, 0),
    'cmyk.jpg': (CMYK, None, None, 3), 'cmyk.tif': (CMYK, None, None, 3),
}  # fmt: skip


@pytest.mark.parametrize('name', FORMS)
def test_both_loaders_give_what_the_table_says(name, tmp_path, mmseg_scope):
    image, bands, default, near = FORMS[name]
    path = tmp_path / name
    image.save(path)
    found = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))['img']
    found = found[..., ::-1].astype(int)
    own = raster.read_image(path).astype(int)
    if bands is None:  # both convert, and agree
        assert abs(own - found).max() <= near
    else:
        assert np.array_equal(own, bands) and np.array_equal(found, default)


def test_a_window_cuts_what_lies_outside(tmp_path):
    """Hounsfield units: air and metal become the ends of the window."""
    values = np.array([[-1000, -125, 0], [100, 275, 3000]], np.int16)
    write(tmp_path / 'a.tif', values[..., None], nodata=3000)
    load = TRANSFORMS.build(dict(
        type='vpt_dense.LoadBands', mean=[75.0], std=[50.0], window=[-125, 275]))
    found = load(dict(img_path=str(tmp_path / 'a.tif')))
    expected = (np.clip(values.astype(np.float64), -125, 275) - 75) / 50
    expected[1, 2] = 0  # no data
    np.testing.assert_allclose(found['img'][..., 0], expected, rtol=1e-6)
    assert 'window=[-125, 275]' in repr(load)
    with pytest.raises(ValueError, match=r'window is \(lowest, highest\) .* found \[5, 5\]'):
        TRANSFORMS.build(dict(type='vpt_dense.LoadBands', mean=[0.0], std=[1.0], window=[5, 5]))
