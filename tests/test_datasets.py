"""Segmentation folders, unusual files, the checks, and the two tools that look at data."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image
from utils import CONFIGS, ROOT, TINY_ARCH, in_scope, make_ade_folder, tiny_auxiliary_heads
from utils import tiny_setr_overrides as tiny_setr

from vpt_dense import config, run_setup
from vpt_dense.datasets import checks
from vpt_dense.errors import UserError

EXAMPLES = CONFIGS / 'examples'
SEGFOLDER = str(CONFIGS / 'vpt/setr_vit-l_deep_segfolder.py')


def make_seg_folder(root, sizes=((64, 64), (50, 90), (120, 40)), classes=2, splits=None):
    """Write a folder with a random label a cell, an image of every size, and .png, .jpg, .tif."""
    rng = np.random.default_rng(0)
    for split in splits or ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for i, (height, width) in enumerate(sizes):
            cells = rng.integers(0, classes, (4, 4), dtype=np.uint8)
            cells[0, :classes] = range(classes)
            labels = cv2.resize(cells, (width, height), interpolation=cv2.INTER_NEAREST)
            image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) // 4 + 60
            image += labels[..., None] * 60
            Image.fromarray(image).save(root / f'images/{split}/{i}.{("jpg", "png", "tif")[i % 3]}')
            Image.fromarray(labels).save(root / f'annotations/{split}/{i}.{("png", "tif")[i % 2]}')
    return root


def tiny(data_root, work_dir, classes, **more):
    """Overrides that shrink a SETR config to a tiny model for images around 64 pixels."""
    options = tiny_setr(data_root, work_dir)
    options['model.backbone.arch'] = dict(TINY_ARCH, _delete_=True)
    options['model.auxiliary_head'] = tiny_auxiliary_heads(classes)
    # The pipelines of the bases are for images of 512 pixels.
    options['train_dataloader.dataset.pipeline.2.scale'] = (256, 64)
    options['train_dataloader.dataset.pipeline.3.crop_size'] = (64, 64)
    for split in ('val', 'test'):
        options[f'{split}_dataloader.dataset.pipeline.1.scale'] = (256, 64)
    return {**options, **more}


def run(cfg):
    """Train two iterations and validate once; return the runner and the metrics."""
    runner = run_setup.start(cfg, 'train', None)
    runner.train()
    return runner, json.loads(Path(runner.work_dir, 'summary.json').read_text())


# --------------------------------------------------------------------------- new data sets


@pytest.mark.slow
def test_example_of_a_new_segmentation_set(tmp_path):
    path = EXAMPLES / 'new_segmentation_dataset.py'
    assert len(path.read_text().splitlines()) <= 6
    root = make_seg_folder(tmp_path / 'potholes')  # three sizes, three formats
    cfg = config.load(str(path), tiny(root, tmp_path / 'work', 2))
    assert [head['num_classes'] for head in config.heads(cfg.model)] == [2, 2, 2, 2]
    runner, summary = run(cfg)
    assert runner.val_dataloader.dataset.metainfo['classes'] == ['road', 'pothole']
    assert runner.val_dataloader.dataset.metainfo['palette'] == [[90, 90, 90], [255, 0, 0]]
    assert 'mIoU' in json.dumps(summary)


@pytest.mark.slow
def test_example_with_four_bands_of_16_bits(tmp_path):
    root = make_seg_folder(tmp_path / 'fields', sizes=((64, 64), (70, 64)), classes=3)
    rng = np.random.default_rng(0)
    for path in sorted(root.glob('images/*/*')):
        height, width = cv2.imread(str(path)).shape[:2]
        bands = rng.integers(0, 65536, (height, width, 4)).astype(np.uint16)
        path.unlink()
        cv2.imwrite(str(path.with_suffix('.tif')), bands)
    options = tiny(root, tmp_path / 'work', 3)
    cfg = config.load(str(EXAMPLES / 'four_band_images.py'), options)
    runner, _ = run(cfg)
    assert runner.model.backbone.patch_embed.projection.weight.shape[1] == 4
    inputs = runner.train_dataloader.dataset[0]['inputs']
    # 0 to 65535 became -2 to 4.55, less what resizing evens out
    assert inputs.shape[0] == 4 and -2 <= inputs.min() < -1 and 3 < inputs.max() <= 4.56


def test_classes_must_be_named(tmp_path):
    make_seg_folder(tmp_path)
    in_scope('mmseg')
    cfg = config.load(SEGFOLDER, {'dataset.data_root': str(tmp_path)})
    with pytest.raises(UserError, match='dataset.classes: name the classes'):
        build_dataset(cfg)


def build_dataset(cfg, split='train'):
    from mmengine.registry import DATASETS

    return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def load_segfolder(root, **dataset):
    """Build the training set of the segfolder config on a folder, two classes."""
    in_scope('mmseg')
    options = {f'dataset.{key}': value for key, value in dataset.items()}
    options |= {'dataset.data_root': str(root), 'dataset.classes': ['road', 'pothole']}
    return build_dataset(config.load(SEGFOLDER, options))


def test_segfolder_reads_what_mmseg_reads(tmp_path, mmseg_scope):
    from mmseg.datasets import BaseSegDataset

    root = make_ade_folder(tmp_path, num_classes=2)
    prefix = dict(img_path='images/training', seg_map_path='annotations/training')
    ours = load_segfolder(root, reduce_zero_label=True)
    theirs = BaseSegDataset(
        data_root=str(root), data_prefix=prefix, metainfo=dict(classes=['road', 'pothole']),
        reduce_zero_label=True,
    )  # fmt: skip
    assert ours.metainfo == theirs.metainfo  # made-up palette included
    assert len(ours) == len(theirs) == 2
    for i in range(2):
        one, other = ours.get_data_info(i), theirs.get_data_info(i)
        assert {key: one[key] for key in other} == other


@pytest.mark.parametrize(
    'spoil, line',
    [
        (lambda root: (root / 'annotations/training/0.png').unlink(), '1 of 3 images have no'),
        (lambda root: shutil.rmtree(root / 'annotations/training'), 'training does not exist'),
        (lambda root: [f.unlink() for f in root.glob('images/training/*')], 'no image in'),
        (
            lambda r: shutil.copy(r / 'images/training/0.jpg', r / 'images/training/0.bmp'),
            'have the same name without the suffix',
        ),
    ],
)
def test_segfolder_tells_what_is_missing(spoil, line, tmp_path):
    spoil(make_seg_folder(tmp_path))
    with pytest.raises(UserError, match=line) as error:
        load_segfolder(tmp_path)
    assert '\n' not in str(error.value)


def test_palette_must_fit_the_classes(tmp_path):
    make_seg_folder(tmp_path)
    with pytest.raises(UserError, match='3 colours for the 2'):
        load_segfolder(tmp_path, palette=[[0, 0, 0]] * 3)


# --------------------------------------------------------------------------- masks


def save_mask(path, labels, form):
    """Write labels in one of the forms that people have."""
    if form == 'palette':
        image = Image.fromarray(labels).convert('P')
        image.putdata(labels.ravel().tolist())
        image.putpalette([200, 10, 10, 10, 200, 10] + [0] * 762)
    elif form == '16 bit':
        image = Image.fromarray(labels.astype(np.uint16))
    elif form == '1 bit':
        image = Image.fromarray(labels.astype(bool))
    elif form == 'colours':
        image = Image.fromarray(np.repeat(labels[..., None], 3, axis=2))
    elif form == 'id 300':
        image = Image.fromarray(labels.astype(np.uint16) * 300)
    elif form == 'other size':
        image = Image.fromarray(labels[:-1])
    else:
        image = Image.fromarray(labels)
    image.save(path)
    if form == 'truncated':
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


LABELS = (np.random.default_rng(0).random((40, 30)) > 0.5).astype(np.uint8)


def load_mask(path, **results):
    loader = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))
    return loader(dict(seg_map_path=str(path), ori_shape=(40, 30), seg_fields=[], **results))


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('form', ['8 bit', 'palette', '16 bit', '1 bit'])
def test_masks_of_all_forms_hold_the_same_labels(form, suffix, tmp_path):
    path = tmp_path / f'mask{suffix}'
    save_mask(path, LABELS, form)
    results = load_mask(path)
    assert results['gt_seg_map'].dtype == np.uint8
    assert np.array_equal(results['gt_seg_map'], LABELS)
    assert results['seg_fields'] == ['gt_seg_map']


@pytest.mark.parametrize(
    'form, line',
    [
        ('colours', 'has 3 channels; a mask has one channel of class ids'),
        ('id 300', 'has ids from 0 to 300; class ids are 0 to 254'),
        ('other size', 'is 30x39, its image 30x40'),
        ('truncated', 'cannot be read'),
    ],
)
def test_wrong_masks_are_told_in_one_line(form, line, tmp_path):
    save_mask(tmp_path / 'mask.png', LABELS, form)
    with pytest.raises(ValueError, match=line) as error:
        load_mask(tmp_path / 'mask.png')
    assert 'mask.png' in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('label_map', [None, {0: 1, 1: 255, 149: 0}])
@pytest.mark.parametrize('reduce_zero_label', [False, True])
def test_masks_are_read_as_by_mmseg(reduce_zero_label, label_map, tmp_path, mmseg_scope):
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    Image.fromarray(labels).save(tmp_path / 'mask.png')
    results = dict(
        seg_map_path=str(tmp_path / 'mask.png'),
        reduce_zero_label=reduce_zero_label,
        label_map=label_map,
    )
    ours = TRANSFORMS.build(dict(type='vpt_dense.LoadMask'))(dict(results, seg_fields=[]))
    theirs = TRANSFORMS.build(dict(type='LoadAnnotations'))(dict(results, seg_fields=[]))
    assert np.array_equal(ours['gt_seg_map'], theirs['gt_seg_map'])


# --------------------------------------------------------------------------- images


@pytest.mark.parametrize('suffix', ['.png', '.tif'])
@pytest.mark.parametrize('bands', [1, 3, 4])
@pytest.mark.parametrize('depth', [np.uint8, np.uint16])
def test_all_bands_are_loaded_as_stored(depth, bands, suffix, tmp_path):
    path = tmp_path / f'image{suffix}'
    top = np.iinfo(depth).max
    stored = np.random.default_rng(0).integers(0, top, (20, 30, bands)).astype(depth)
    stored[0, 0, 0] = top
    order = [2, 1, 0, 3][:bands] if bands > 1 else [0]  # OpenCV writes BGR
    assert cv2.imwrite(str(path), stored[..., order])
    if depth == np.uint8:
        assert np.array_equal(np.array(Image.open(path)).reshape(20, 30, bands), stored)
    loader = dict(type='vpt_dense.LoadBands', mean=[100] * bands, std=[2, 1, 1, 1][:bands])
    results = TRANSFORMS.build(loader)(dict(img_path=str(path)))
    assert results['img'].dtype == np.float32 and results['ori_shape'] == (20, 30)
    wanted = stored.astype(np.float32) - 100
    wanted[..., 0] /= 2
    assert np.array_equal(results['img'], wanted)
    # The default loader takes the same file, as 3 bands of 8 bits.
    default = TRANSFORMS.build(dict(type='LoadImageFromFile'))(dict(img_path=str(path)))
    assert default['img'].shape == (20, 30, 3) and default['img'].dtype == np.uint8


def test_photographs_turned_by_exif_have_one_size_everywhere(tmp_path):
    root = make_seg_folder(tmp_path, sizes=((40, 30),))  # height 40, width 30
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new('RGB', (40, 30)).save(root / 'images/training/0.jpg', exif=exif)
    results = dict(img_path=str(root / 'images/training/0.jpg'))
    results = TRANSFORMS.build(dict(type='LoadImageFromFile'))(results)
    assert results['ori_shape'] == (40, 30)
    training = checks.check_folder(root)['splits']['training']
    assert training['image_sizes']['max'] == [30, 40] and not training['problems']


def test_masks_of_32_bits_are_counted(tmp_path):
    root = make_seg_folder(tmp_path, sizes=((40, 30),))
    mask = LABELS.astype(np.int32)
    mask[0, 0] = 70_000
    Image.fromarray(mask).save(root / 'annotations/training/0.tif')
    (root / 'annotations/training/0.png').unlink()
    training = checks.check_folder(root)['splits']['training']
    assert training['labels'] == [0, 70_000] and training['masks'] == 1


def test_loading_bands_tells_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match='one figure a band'):
        TRANSFORMS.build(dict(type='vpt_dense.LoadBands', mean=[0] * 4, std=[1] * 3))
    loader = TRANSFORMS.build(dict(type='vpt_dense.LoadBands', mean=[0] * 4, std=[1] * 4))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / 'rgb.png')
    with pytest.raises(ValueError, match='rgb.png has 3 bands, LoadBands expects 4'):
        loader(dict(img_path=str(tmp_path / 'rgb.png')))
    (tmp_path / 'text.png').write_text('not an image')
    with pytest.raises(ValueError, match='text.png cannot be read'):
        loader(dict(img_path=str(tmp_path / 'text.png')))


# --------------------------------------------------------------------------- checks


def test_check_counts(tmp_path):
    in_scope('mmseg')
    root = make_seg_folder(tmp_path)
    labels = np.full((50, 90), 255, np.uint8)  # the second of 64x64, 50x90 and 120x40 pixels
    labels[:, :9] = 1
    for path in root.glob('annotations/training/1.*'):
        Image.fromarray(labels).save(path)
    report = checks.check_config(
        config.load(SEGFOLDER, {'dataset.data_root': str(root), 'dataset.classes': ['a', 'b']})
    )
    assert report['ok'] and report['task'] == 'segmentation' and report['classes'] == ['a', 'b']
    assert list(report['splits']) == ['train', 'val']
    train = report['splits']['train']
    assert (train['images'], train['masks'], train['labels']) == (3, 3, [0, 1])
    sizes = train['image_sizes']
    assert (sizes['min'], sizes['max'], sizes['distinct']) == ([64, 64], [40, 120], 3)
    assert train['image_kinds'] == {'3 x 8 bit': 3}
    assert train['ignored_share'] == pytest.approx(50 * 81 / (64 * 64 + 50 * 90 + 120 * 40))
    assert json.loads(json.dumps(report)) == report


def test_images_that_are_trained_on_too_are_told(tmp_path):
    in_scope('mmseg')
    root = make_seg_folder(tmp_path)
    image = min(root.glob('images/training/*'))
    other = min(root.glob('images/validation/*'))
    other.unlink()
    other.symlink_to(image)
    report = checks.check_config(config.load(
        SEGFOLDER, {'dataset.data_root': str(root), 'dataset.classes': ['a', 'b']}))
    assert report['ok'] and not report['splits']['train']['warnings']
    (line,) = [each for each in report['splits']['val']['warnings'] if 'trained' in each]
    assert re.search(r'^1 of its \d images are trained on too, such as \S+training', line)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def recolour(path, **how):
    mask = np.array(Image.open(path))
    save_mask(path, mask, **how)


FAULTS = {
    'no mask': (
        lambda root: (root / 'annotations/training/0.png').unlink(),
        '1 images without a mask: .*0.jpg',
    ),
    'id outside': (
        lambda root: Image.fromarray(np.full((64, 64), 7, np.uint8)).save(
            root / 'annotations/training/0.png'
        ),
        r'1 masks have ids outside the 2 classes: .*0\.png \(7\)',
    ),
    'colours': (
        lambda root: recolour(root / 'annotations/training/0.png', form='colours'),
        r'1 masks have several channels .*0\.png',
    ),
    'truncated image': (
        lambda root: truncate(root / 'images/training/0.jpg'),
        r'1 files cannot be read: .*0\.jpg',
    ),
    'truncated mask': (
        lambda root: recolour(root / 'annotations/training/0.png', form='truncated'),
        r'1 files cannot be read: .*0\.png',
    ),
    'no image': (
        lambda root: (root / 'images/training/0.jpg').write_text('no image'),
        r'1 files cannot be read: .*0\.jpg',
    ),
    'sizes': (
        lambda root: recolour(root / 'annotations/training/0.png', form='other size'),
        r'differ in size: .*0\.jpg is 64x64, its mask 64x63',
    ),
    'all ignored': (
        lambda root: [
            Image.fromarray(np.full(size, 255, np.uint8)).save(path)
            for path, size in zip(
                sorted(root.glob('annotations/training/*')),
                ((64, 64), (50, 90), (120, 40)),
                strict=True,
            )
        ],
        'every pixel of every mask is ignored',
    ),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_check_finds_every_fault(fault, tmp_path):
    spoil, line = FAULTS[fault]
    root = tmp_path / 'two channels'  # what a path says is no reason
    spoil(make_seg_folder(root))
    in_scope('mmseg')
    cfg = config.load(
        SEGFOLDER, {'dataset.data_root': str(root), 'dataset.classes': ['road', 'pothole']}
    )
    report = checks.check_config(cfg)
    assert not report['ok']
    assert not report['splits']['val']['problems']
    assert any(re.search(line, problem) for problem in report['splits']['train']['problems'])


def test_check_of_ade20k_knows_the_zero_label(ade_folder, tmp_path):
    root = tmp_path / 'ade'
    shutil.copytree(ade_folder, root)
    path = str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py')
    options = {'dataset.data_root': str(root)}
    assert checks.check_config(config.load(path, options))['ok']
    labels = np.zeros((64, 64), np.uint8)
    labels[0, 0], labels[0, 1] = 150, 151  # the last class, and one too many
    Image.fromarray(labels).save(root / 'annotations/training/000.png')
    train = checks.check_config(config.load(path, options))['splits']['train']
    assert list(train['ids_outside'].values()) == [[151]]
    # Label 0 is ignored, so it is not among the labels but among the ignored pixels.
    assert train['labels'][0] > 0 and train['ignored_share'] >= (64 * 64 - 2) / (2 * 64 * 64)


def test_check_warns_of_deep_images(tmp_path):
    make_seg_folder(tmp_path)
    cv2.imwrite(str(tmp_path / 'images/training/1.png'), np.zeros((50, 90, 3), np.uint16))
    report = checks.check_folder(tmp_path)
    training = report['splits']['training']
    assert report['ok'] and training['image_kinds'] == {'3 x 8 bit': 2, '3 x 16 bit': 1}
    assert any('beyond 8 bits: 1 of 3 x 16 bit' in line for line in training['warnings'])


def test_check_of_an_image_folder(tmp_path):
    for split, names in (('train', ('cat', 'dog', 'owl')), ('val', ('cat', 'dog'))):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            Image.new('RGB', (9, 7)).save(tmp_path / split / name / 'a.jpg')
    report = checks.check_folder(tmp_path)
    assert report['ok'] and report['classes'] == ['cat', 'dog', 'owl']
    assert report['splits']['val']['warnings'] == ['1 classes without an image: owl']
    (tmp_path / 'train/owl/a.jpg').unlink()
    report = checks.check_folder(tmp_path)
    assert report['splits']['train']['problems'] == ['1 classes without an image: owl']
    # Images to predict, in folders that are no classes.
    (tmp_path / 'test/city').mkdir(parents=True)
    Image.new('RGB', (9, 7)).save(tmp_path / 'test/city/a.jpg')
    test = checks.check_folder(tmp_path)['splits']['test']
    assert test['images'] == 1 and not (test['per_class'] or test['problems'] or test['warnings'])
    (tmp_path / 'val/rat').mkdir()
    with pytest.raises(UserError, match='classes that .*train has not: rat'):
        checks.check_folder(tmp_path)


# --------------------------------------------------------------------------- tools


def call_tool(name, *args, monkeypatch):
    """Run tools/NAME.py in this process; return its exit code."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, 'argv', [name, *map(str, args)])
    with pytest.raises(SystemExit) as leaving:
        module.errors.main(module.main)
    return leaving.value.code


def test_check_tool_prints_a_table_and_the_exit_code_tells(tmp_path, monkeypatch, capsys):
    make_seg_folder(tmp_path)
    options = (f'dataset.data_root={tmp_path}', 'dataset.classes=road,pothole')
    args = ('check_dataset', SEGFOLDER, '--cfg-options', *options)
    assert call_tool(*args, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert 'segmentation, 2 classes' in out and '64x64' in out and out.rstrip().endswith('ok')

    (tmp_path / 'annotations/training/0.png').unlink()
    assert call_tool(*args, '--json', monkeypatch=monkeypatch) == 1
    report = json.loads(capsys.readouterr().out)
    assert report['splits']['train']['images_without_mask'] == [f'{tmp_path}/images/training/0.jpg']


@pytest.mark.parametrize(
    'source, line',
    [
        ('no/such/folder', 'error: no/such/folder: no such config or folder'),
        (str(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'), 'images/training does not exist'),
        (str(CONFIGS / 'vpt/vit-b_deep_cifar100.py'), 'has no CIFAR100 yet'),
        (str(CONFIGS / 'vpt/vit-b_deep_imagefolder.py'), 'train does not exist'),
    ],
)
def test_check_tool_on_absent_data(source, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert call_tool('check_dataset', source, monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err.strip()
    assert line in told.splitlines()[-1]


def test_browse_writes_images_with_masks(tmp_path, monkeypatch, capsys):
    root = make_seg_folder(tmp_path / 'data', sizes=((64, 64),))
    labels = np.zeros((64, 64), np.uint8)
    labels[:, 32:] = 1
    for path in root.glob('annotations/*/*'):
        Image.fromarray(labels).save(path)
    for path in root.glob('images/*/*'):
        Image.new('RGB', (64, 64), (100, 100, 100)).save(path)
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    code = call_tool(
        'browse_dataset', EXAMPLES / 'new_segmentation_dataset.py', '--split', 'val',
        '--out-dir', tmp_path / 'out', '--cfg-options', f'dataset.data_root={root}',
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0 and '1 of 1 images written' in capsys.readouterr().out
    (picture,) = (tmp_path / 'out').glob('*.png')
    pixels = np.array(Image.open(picture))  # four times as large, a title above, a legend below
    # 0.4 image, 0.6 palette: (90, 90, 90) for road on the left, (255, 0, 0) on the right.
    assert pixels.shape[1] == 256 and pixels.shape[0] > 256
    assert np.allclose(pixels[150, 20], [94, 94, 94], atol=1)
    assert np.allclose(pixels[150, 240], [193, 40, 40], atol=1)
    assert (pixels[-20:].reshape(-1, 3) == [255, 0, 0]).all(1).any()


@pytest.mark.parametrize('content, message', [
    (np.ones((64, 64, 4), np.uint16), 'reads wrongly or not at all: 1 of 4 x 16 bit'),
    (None, 'cannot read or transform'),
])
def test_browse_refuses_what_a_run_would(tmp_path, monkeypatch, capsys, content, message):
    root = make_seg_folder(tmp_path / 'data', sizes=((64, 64),))
    (path,) = root.glob('images/validation/*')
    path.write_bytes(b'no image')
    if content is not None:
        path.unlink()
        cv2.imwrite(str(path.with_suffix('.tif')), content)
    code = call_tool(
        'browse_dataset', EXAMPLES / 'new_segmentation_dataset.py', '--split', 'val',
        '--out-dir', tmp_path / 'out', '--cfg-options', f'dataset.data_root={root}',
        monkeypatch=monkeypatch,
    )  # fmt: skip
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and message in line and path.stem in line


def test_browse_shows_four_bands_of_16_bits(tmp_path, monkeypatch, capsys):
    root = make_seg_folder(tmp_path / 'data', sizes=((64, 64),))
    for path in root.glob('images/*/*'):
        path.unlink()
        bands = np.zeros((64, 64, 4), np.uint16)
        bands[32:, :, 2] = 60_000  # OpenCV writes BGR: the lower half is red
        cv2.imwrite(str(path.with_suffix('.tif')), bands)
    for path in root.glob('annotations/*/*'):
        Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    code = call_tool(
        'browse_dataset', EXAMPLES / 'four_band_images.py', '--split', 'val',
        '--out-dir', tmp_path / 'out', '--cfg-options', f'dataset.data_root={root}',
        monkeypatch=monkeypatch,
    )  # fmt: skip
    assert code == 0
    (picture,) = (tmp_path / 'out').glob('*.png')
    pixels = np.array(Image.open(picture)).astype(int)
    top, bottom = pixels[30:140], pixels[160:270]  # below the stripes of ignored pixels
    assert np.allclose(bottom[..., 0].mean() - top[..., 0].mean(), 0.4 * 255, atol=5)
    assert np.allclose(bottom[..., 1:].mean(), top[..., 1:].mean(), atol=5)


def test_browse_writes_images_with_labels(tmp_path, monkeypatch, capsys):
    for split in ('train', 'val'):
        for name, colour in (('blue', (0, 0, 255)), ('red', (255, 0, 0))):
            (tmp_path / 'data' / split / name).mkdir(parents=True)
            Image.new('RGB', (300, 300), colour).save(tmp_path / f'data/{split}/{name}/a.png')
    args = (
        'browse_dataset', EXAMPLES / 'new_image_folder.py', '--out-dir', tmp_path / 'out',
        '--cfg-options', f'dataset.data_root={tmp_path}/data',
    )  # fmt: skip
    assert call_tool(*args, monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    first, second = sorted((tmp_path / 'out').glob('*/*.png'))
    assert [str(path.relative_to(tmp_path / 'out')) for path in (first, second)] == [
        'blue/0000_a.png', 'red/0001_a.png']
    assert np.array(Image.open(first))[-1, -1].tolist() == [0, 0, 255]
    assert np.array(Image.open(second))[-1, -1].tolist() == [255, 0, 0]
    # The label is written above.
    assert np.unique(np.array(Image.open(first))[:20, :100].reshape(-1, 3), axis=0).shape[0] > 2


@pytest.mark.parametrize(
    ('name', 'split'),
    [('ade20k', 'train'), ('ade20k', 'val'), ('dinov2_deep_ade20k', 'test'), ('segfolder', 'test'),
     ('demo', 'test'), ('image', 'val')])
def test_browse_shows_every_split_of_every_family(tmp_path, monkeypatch, name, split):
    """Images are resized in tests and their masks are not: that was an IndexError."""
    sub = {'train': 'training', 'val': 'validation', 'test': 'validation'}[split]
    if name == 'image':
        leaf = "'{}/vpt/vit-b_deep_imagefolder.py'"
        folders = ['train/a', 'val/a']
    else:
        path = 'demo/setr_deep_digits' if name == 'demo' else 'vpt/setr_vit-l_' + (
            name if name.startswith('dino') else f'deep_{name}')
        leaf = f"'{{}}/{path}.py'"
        sub = 'test' if (name, split) == ('demo', 'test') else sub
        folders = [f'images/{sub}/city{i}' for i in range(2)]
    suffix = '.png' if name == 'demo' else '.jpg'
    image = np.full((96, 130, 3), 90, np.uint8)
    for folder in folders:
        for kind in ('images', 'annotations')[: 1 if name == 'image' else 2]:
            where = tmp_path / 'data' / folder.replace('images', kind)
            where.mkdir(parents=True, exist_ok=True)
            mask = kind == 'annotations'
            ending = '.png' if mask else suffix
            cv2.imwrite(str(where / f'a{ending}'), image[..., 0] // 90 if mask else image)
    text = f"_base_ = {leaf.format(CONFIGS)}\ndataset = dict(data_root='{tmp_path}/data')\n"
    if name == 'segfolder':
        text = text.replace("data')", "data', classes=['a', 'b'])")
    (tmp_path / 'leaf.py').write_text(text)
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    code = call_tool('browse_dataset', tmp_path / 'leaf.py', '--split', split,
                     '--out-dir', tmp_path / 'out', monkeypatch=monkeypatch)  # fmt: skip
    assert code == 0
    out = tmp_path / 'out'
    found = sorted(str(path.relative_to(out)) for path in out.glob('**/*.png'))
    wanted = ['a/0000_a.png'] if name == 'image' else ['city0/0000_a.png', 'city1/0001_a.png']
    assert found == wanted


# --------------------------------------------------------------------------- documentation


def documented_configs():
    """The configs that docs/datasets.md shows."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/datasets.md').read_text(), re.S)
    return [block for block in blocks if block.startswith('_base_')]


def test_documented_configs_load(tmp_path):
    blocks = documented_configs()
    assert len(blocks) >= 5
    for i, block in enumerate(blocks):
        path = tmp_path / f'leaf_{i}.py'
        path.write_text(block.replace("'../vpt/", f"'{CONFIGS}/vpt/"))
        config.load(str(path))


def test_documented_examples_are_the_shipped_ones():
    def code(path):
        return ''.join(
            line + '\n' for line in path.read_text().splitlines() if not line.startswith('#')
        )

    blocks = documented_configs()
    for path in EXAMPLES.glob('*.py'):
        assert code(path) in blocks, f'{path.name} is not in docs/datasets.md'
