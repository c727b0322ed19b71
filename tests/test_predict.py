"""tools/predict.py and vpt_dense.load: what tools/test.py predicts, as files and as arrays."""

import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from mmengine import Config
from test_raster import write as write_tiff
from tool_helpers import forget_runs, run_tool, tiny_folder, write_leaf
from utils import CONFIGS, ROOT, randomise

import vpt_dense
from vpt_dense import building, config, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.datasets import raster
from vpt_dense.datasets.label_maps import annotation_ids, ignored_id
from vpt_dense.errors import UserError
from vpt_dense.predicting import inputs, writing
from vpt_dense.predicting import model as predicting
from vpt_dense.predicting.results import Classification, Segmentation
from vpt_dense.segmentors import tiles

CLS = """
_base_ = '{base}'
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/flowers')
model = dict(
    data_preprocessor=dict(mean=[100.0] * 3, std=[100.0] * 3),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=32, patch_size=8, init_cfg=None, prompt=dict(num_tokens=2)),
    head=dict(in_channels=32))
_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
train_dataloader = dict(num_workers=0, dataset=dict(pipeline=_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_pipeline))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_pipeline))
"""
NAMES = ('iris', 'lily', 'rose')


def save(leaf: Path, path: Path, dataset_meta: dict | None = None) -> str:
    """Write a checkpoint of a config with random weights, as a run does."""
    cfg = config.load(str(leaf))
    model = randomise(building.build_model(cfg))
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dataset_meta, iter=2)
    safe_files.write(dict(state_dict=model.state_dict(), meta=meta), path)
    forget_runs()
    return str(path)


def picture(path: Path, size: tuple[int, int] = (32, 32), seed: int = 0) -> str:
    """Write an image of cells of colour; every one of them of another seed differs."""
    cells = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.resize(cells, size[::-1]))
    return str(path)


@pytest.fixture(scope='module')
def seg(tmp_path_factory):
    """(folder with a blank and an umlaut: data, leaf.py, c.pth); 150 classes, ids from 1."""
    folder = tmp_path_factory.mktemp('ein größerer Ordner')
    leaf = write_leaf(folder, tiny_folder(folder / 'data', num_images=3))
    save(leaf, folder / 'c.pth')
    return folder


@pytest.fixture(scope='module')
def cls(tmp_path_factory):
    """The same for classification of three flowers."""
    folder = tmp_path_factory.mktemp('cls')
    for split in ('train', 'val'):
        for i, name in enumerate(NAMES):
            picture(folder / 'flowers' / split / name / 'a.png', (40, 50), i)
    leaf = folder / 'leaf.py'
    base = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
    leaf.write_text(CLS.format(base=base, folder=folder))
    save(leaf, folder / 'c.pth', dict(classes=list(NAMES)))
    return folder


def predict(capfd, *arguments, code=0):
    outcome = run_tool(capfd, 'predict', *arguments)
    assert outcome.code == code, outcome
    return outcome


def summary(out: Path) -> dict:
    return json.loads((out / 'summary.json').read_text(encoding='utf-8'))


def labels_of(out: Path, name: str) -> np.ndarray:
    return cv2.imread(str(out / 'labels' / f'{name}.png'), cv2.IMREAD_UNCHANGED)


# --- the same as tools/test.py ---------------------------------------------------------------


@pytest.mark.parametrize('tta', [[], ['--tta']], ids=['plain', 'tta'])
def test_segmentation_is_that_of_tools_test(capfd, seg, tmp_path, tta):
    leaf, checkpoint, images = seg / 'leaf.py', seg / 'c.pth', seg / 'data/images/validation'
    tested = tmp_path / 'tested'
    outcome = run_tool(
        capfd, 'test', leaf, checkpoint, *tta, '--work-dir', tmp_path / 'work', '--cfg-options',
        f'test_evaluator={{output_dir: {tested}}}')
    assert outcome.code == 0, outcome.err
    out = tmp_path / 'out ä'
    outcome = predict(capfd, leaf, checkpoint, images, '--out', out, '--batch-size', 2, *tta,
                      '--overlay', '--probabilities', 'npz', '--dtype', 'float32')
    assert not outcome.err, outcome.err
    forget_runs()
    predictor = vpt_dense.load(checkpoint, tta=bool(tta))
    assert len(predictor.classes) == 150 and predictor.task == 'segmentation'
    paths = sorted(images.iterdir())
    results = predictor.predict(paths, probabilities=True)
    found = set()
    for path, result in zip(paths, results, strict=True):
        expected = cv2.imread(str(tested / f'{path.stem}.png'), cv2.IMREAD_UNCHANGED)
        found.update(np.unique(expected).tolist())
        assert np.array_equal(labels_of(out, path.stem), expected)
        assert result.labels.dtype == np.uint8 and np.array_equal(result.labels, expected)
        stored = np.load(out / 'probabilities' / f'{path.stem}.npz')
        assert np.array_equal(stored['classes'], predictor.classes)
        maps = stored['probabilities']
        assert maps.dtype == np.float32 and maps.shape == (150, 32, 32)
        np.testing.assert_allclose(maps, result.probabilities, atol=1e-6)
        np.testing.assert_allclose(maps.sum(0), 1, rtol=1e-5)
        assert np.array_equal(stored['ids'][maps.argmax(0)], expected)
        drawn = cv2.imread(str(out / 'overlays' / f'{path.stem}.jpg'))
        assert drawn.shape[0] > drawn.shape[1] >= 224  # enlarged, with a legend below
    assert len(found) > 5 and min(found) > 0
    record = summary(out)
    assert record['finished'] and record['images'] == record['predicted'] == 3
    assert record['pixels']['wall']['id'] == 1
    assert sum(entry['pixels'] for entry in record['pixels'].values()) == 3 * 32 * 32
    assert record['versions']['vpt_dense'] == vpt_dense.__version__
    assert record['checkpoint'] == str(checkpoint)


def test_arrays_pictures_and_tensors(seg):
    predictor = vpt_dense.load(str(seg / 'c.pth'), seg / 'leaf.py')
    paths = sorted((seg / 'data/images/training').iterdir())
    arrays = [cv2.imread(str(path))[..., ::-1] for path in paths]  # R, G, B
    expected = [result.labels for result in predictor.predict(paths)]
    assert not np.array_equal(expected[0], predictor.predict(arrays[0][..., ::-1].copy()).labels)
    tensors = torch.stack([torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays])
    turned = [PIL.Image.fromarray(array).transpose(PIL.Image.Transpose.ROTATE_90)
              for array in arrays]
    for image in turned:
        image.getexif()[274] = 6  # to be turned to the right when it is shown
    for images in (arrays, [PIL.Image.fromarray(a) for a in arrays], np.stack(arrays), tensors,
                   list(tensors), tuple(arrays), turned):  # fmt: skip
        results = predictor.predict(images, batch_size=2)
        for result, labels in zip(results, expected, strict=True):
            assert np.array_equal(result.labels, labels)
    single = predictor.predict(str(paths[0]))
    assert isinstance(single, Segmentation) and single.probabilities is None
    half = predictor.predict(paths[0], probabilities='float16').probabilities
    assert half.dtype == np.float16
    with pytest.raises(ValueError, match="probabilities must be .* found 'half'"):
        predictor.predict(paths[0], probabilities='half')
    assert single.classes[single.ids.index(single.labels[0, 0])] in predictor.classes
    grey = arrays[0][..., 0]
    colour = np.stack([grey] * 3, axis=2)
    for image in (grey, grey[..., None], PIL.Image.fromarray(grey), torch.from_numpy(grey.copy())):
        assert np.array_equal(
            predictor.predict(image).labels, predictor.predict(colour).labels)
    assert predictor.predict([]) == []


@pytest.mark.parametrize(('image', 'message'), [
    (np.zeros((8, 8, 3), np.float32), r'images\[0\]: .*must be uint8, .*not float32'),
    (torch.zeros(3, 8, 8), 'must be uint8'),
    (np.zeros((8, 8, 4), np.uint8), r'4 bands, 3 \(or 1\) are expected'),
    (np.zeros(8, np.uint8), r'not a ndarray \(8,\)'),
    (PIL.Image.fromarray(np.zeros((8, 8), np.uint16)), 'of mode I;16 is not of 8 bits'),
    (7, 'an image is a path, a PIL image'),
    (PIL.Image.new('LAB', (8, 8)), 'of mode LAB is not of 8 bits and grey or R, G, B'),
    (np.zeros((0, 8, 3), np.uint8), 'the image is empty'),
    ('/nowhere/a.png', '/nowhere/a.png: no such file'),
], ids=[
    'float array', 'float tensor', 'four bands', 'one axis', 'grey of 16 bits', 'number',
    'colours of another kind', 'nothing in it', 'no file'])
def test_what_is_no_image(seg, image, message):
    predictor = vpt_dense.load(str(seg / 'c.pth'))
    with pytest.raises(ValueError, match=message):
        predictor.predict(image)


def test_classification_is_that_of_tools_test(capfd, cls, tmp_path):
    leaf, checkpoint, images = cls / 'leaf.py', cls / 'c.pth', cls / 'flowers/val'
    dumped = tmp_path / 'out.pkl'
    outcome = run_tool(
        capfd, 'test', leaf, checkpoint, '--work-dir', tmp_path / 'work', '--cfg-options',
        f'test_evaluator=[{{type: Accuracy}}, {{type: DumpResults, out_file_path: {dumped}}}]')
    assert outcome.code == 0, outcome.err
    expected = {sample['img_path']: sample['pred_score'].numpy()
                for sample in pickle.loads(dumped.read_bytes())}
    out = tmp_path / 'out'
    predict(capfd, leaf, checkpoint, images, '--out', out, '--top-k', 2)
    lines = [json.loads(line) for line in (out / 'predictions.jsonl').read_text().splitlines()]
    assert {line['path'] for line in lines} == set(expected) and len(lines) == 3
    forget_runs()
    predictor = vpt_dense.load(checkpoint)
    for line in lines:
        scores = expected[line['path']]
        order = np.argsort(-scores)
        assert line['class'] == NAMES[order[0]] == line['top'][0]['class']
        assert [entry['class'] for entry in line['top']] == [NAMES[i] for i in order[:2]]
        assert line['score'] == pytest.approx(scores.max(), rel=1e-4)
        array = cv2.imread(line['path'])[..., ::-1]
        for image in (line['path'], array, PIL.Image.fromarray(array)):
            result = predictor.predict(image)
            assert isinstance(result, Classification) and result.name == line['class']
            np.testing.assert_allclose(result.probabilities, scores, rtol=1e-5)
    counts = summary(out)['images_by_class']
    assert sum(counts.values()) == 3 and list(counts) == list(NAMES)
    # Goes on where it was, also after a line that was cut off.
    whole = (out / 'predictions.jsonl').read_text()
    (out / 'predictions.jsonl').write_text(whole[:-20])
    command = leaf, checkpoint, images, '--out', out, '--top-k', 2, '--skip-existing'
    outcome = predict(capfd, *command)
    assert '1 images predicted' in outcome.out and '2 were there' in outcome.out
    again = [json.loads(line) for line in (out / 'predictions.jsonl').read_text().splitlines()]
    assert [(line['path'], line['class']) for line in again] == [
        (line['path'], line['class']) for line in lines]
    assert summary(out)['images_by_class'] == counts
    outcome = predict(capfd, checkpoint, images, '--out', out, '--overlay', '--force', code=2)
    assert '--overlay is for segmentation' in outcome.err


def test_a_classifier_without_its_folder(capfd, cls, tmp_path):
    """A leaf finds its classes in the data: without them they are the checkpoint's."""
    text = (cls / 'leaf.py').read_text().replace(f'{cls}/flowers', f'{tmp_path}/gone')
    (tmp_path / 'leaf.py').write_text(text)
    predict(capfd, tmp_path / 'leaf.py', cls / 'c.pth', cls / 'flowers/val', '--out',
            tmp_path / 'out')
    names = {json.loads(line)['class']
             for line in (tmp_path / 'out/predictions.jsonl').read_text().splitlines()}
    assert names <= set(NAMES)


def test_a_delta_and_its_base(capfd, tmp_path, monkeypatch):
    from test_deltas import save_base

    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / 'base.pth')
    init = "\nmodel['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='base.pth')\n"
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'), init)
    cfg = config.load(str(leaf))
    model = building.build_model(cfg)
    model.init_weights()
    randomise(model.decode_head)
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), 'c.pth')
    deltas.write(deltas.extract('c.pth'), 'd.safetensors')
    forget_runs()
    image = 'data/images/training/000.jpg'
    expected = vpt_dense.load('c.pth').predict(image).labels
    predict(capfd, 'd.safetensors', image, '--out', 'out')
    assert np.array_equal(labels_of(tmp_path / 'out', '000'), expected)
    (tmp_path / 'base.pth').rename(tmp_path / 'moved.pth')
    outcome = predict(capfd, 'd.safetensors', image, '--out', 'out2', code=2)
    assert 'pretrained weights' in outcome.err and '--base' in outcome.err
    predict(capfd, 'd.safetensors', image, '--out', 'out2', '--base', 'moved.pth')
    assert np.array_equal(labels_of(tmp_path / 'out2', '000'), expected)


# --- ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize(('arguments', 'expected'), [
    ((3,), (0, 1, 2)),
    ((3, True), (1, 2, 3)),
    ((2, False, {255: 1}), (0, 255)),
    ((2, False, {'255': 1}), (0, 255)),
    ((2, False, {1: 0, 2: 0, 3: 1}), (0, 3)),
    ((2, True, {2: 1, 3: 0}), (4, 3)),
    ((3, False, {0: 255, 1: 0, 2: 1, 3: 2}), (1, 2, 3)),
    ((2, False, {0: 1}), (2, 0)),  # no annotation has class 0
    ((300, True), tuple(range(1, 301))),
    ((2, True, {0: 1}), (3, 1)),
])  # fmt: skip
def test_ids_of_the_annotations(arguments, expected):
    from vpt_dense.datasets.checks import label_table

    assert annotation_ids(*arguments) == expected
    number, reduce, label_map = (*arguments, False, None)[:3]
    if number < 256:
        labels = label_table(reduce, {int(k): v for k, v in (label_map or {}).items()})
        for label, i in enumerate(expected):
            assert labels[i] == label or label not in labels and labels[i] >= number


@pytest.mark.parametrize(('arguments', 'expected'), [
    ((2, False, None, None), 255),
    ((2, True, None, None), 0),
    ((2, False, None, 7), 7),
    ((2, False, {255: 1}, None), 2),  # 1 would be read as a class
    ((2, False, {255: 1, 9: 255}, None), 9),
    ((2, True, {255: 0}, None), 3),
    ((2, False, {0: 255, 1: 0, 2: 1}, None), 255),
    ((256, False, None, None), 256),
])
def test_the_id_of_pixels_without_data_is_read_as_no_class(arguments, expected):
    number, reduce, label_map, ignore_index = arguments
    ids = annotation_ids(number, reduce, label_map)
    assert ignored_id(ids, reduce, ignore_index, label_map) == expected


FOLDER = """
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{root}', classes={classes},
               {more})
_load = [{load}, dict(type='vpt_dense.LoadMask')]
_pack = dict(type='PackSegInputs')
train_dataloader['dataset'] = dict(pipeline=[*_load, _pack])
val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[*_load, _pack])
"""
LOAD = "dict(type='LoadImageFromFile')"


def folder_leaf(folder, classes, more='', load=LOAD, extra=''):
    text = FOLDER.format(root=folder / 'data', classes=classes, more=more, load=load)
    return write_leaf(folder, folder / 'data', text + extra)


def test_label_map(capfd, tmp_path):
    image = picture(tmp_path / 'a.png')
    leaf = folder_leaf(tmp_path, ['x', 'y'], 'label_map={255: 1}')
    checkpoint = save(leaf, tmp_path / 'c.pth')
    predict(capfd, checkpoint, image, '--out', tmp_path / 'out')
    assert set(np.unique(labels_of(tmp_path / 'out', 'a'))) == {0, 255}


def test_ids_above_255(seg, tmp_path, monkeypatch):
    """They take 16 bits, here because label maps would."""
    monkeypatch.setattr(predicting, 'annotation_ids', lambda *_: tuple(range(200, 350)))
    predictor = vpt_dense.load(seg / 'c.pth')
    images = inputs.find([picture(tmp_path / 'a.png')])
    record = writing.write(predictor, images, tmp_path / 'out', writing.Wanted())
    labels = labels_of(tmp_path / 'out', 'a')
    assert labels.dtype == np.uint16 and labels.max() > 255
    assert np.array_equal(labels, predictor.predict(images[0].path).labels)
    assert record['pixels'][predictor.classes[labels.max() - 200]]['pixels'] > 0
    again = writing.write(
        predictor, images, tmp_path / 'out', writing.Wanted(skip_existing=True))
    assert again['existing'] == 1 and again['pixels'] == record['pixels']


def test_a_single_channel(tmp_path):
    extra = """
for _head in (model['decode_head'], model['auxiliary_head'][0]):
    _head.update(num_classes=2, out_channels=1, threshold=0.5,
                 loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
"""
    image = picture(tmp_path / 'a.png')
    checkpoint = save(folder_leaf(tmp_path, ['x', 'y'], extra=extra), tmp_path / 'c.pth')
    result = vpt_dense.load(checkpoint).predict(image, probabilities=True)
    assert result.probabilities.shape == (2, 32, 32) and set(result.pixels()) != {0}
    assert np.array_equal(result.labels, result.probabilities[1] > 0.5)


# --- which images ----------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with images in folders, and other things; the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ('in/city0/frame.png', 'in/city1/frame.png', 'in/Ü 1.JPG', 'in/.hidden.png',
                 'in/out/labels/x.png', 'other/a.png', 'other/a.bmp'):  # fmt: skip
        picture(Path(name))
    Path('in/notes.md').write_text('no image')
    Path('other/city1.txt').write_text('in/city1/frame.png')
    Path('other/list.txt').write_text('in/city1/frame.png\n\n a.png \nin/Ü 1.JPG\n', 'utf-8')
    return tmp_path


@pytest.mark.parametrize(('sources', 'expected'), [
    (['in'], ['city0/frame', 'city1/frame', 'Ü 1']),
    (['in/city0/'], ['frame']),
    (['in/city1/frame.png', 'in/city0/frame.png'], ['city1/frame', 'city0/frame']),
    (['in/city0/frame.png'], ['frame']),
    (['in/*/frame.png'], ['city0/frame', 'city1/frame']),
    (['in/**/*.png'], ['city0/frame', 'city1/frame']),
    (['in/city*'], ['city0/frame', 'city1/frame']),
    (['in/city0', 'in/city0/frame.png', './in/city0'], ['frame']),
    (['in', 'other'], ['in/city0/frame', 'in/city1/frame', 'in/Ü 1', 'other/a.bmp', 'other/a.png']),
    (['other/list.txt'], ['in/city1/frame', 'other/a', 'in/Ü 1']),
    (['other/city1.txt'], ['in/city1/frame']),
    (['-'], ['in/city0/frame', 'other/a']),
    (['in/notes.md'], ['notes']),
], ids=' '.join)  # fmt: skip
def test_sources(pictures, monkeypatch, sources, expected):
    monkeypatch.setattr(sys, 'stdin', io.StringIO('other/a.png\nin/city0/frame.png\n'))
    found = inputs.find(sources, 'in/out')
    assert sorted(image.name for image in found) == sorted(expected)
    assert all(os.path.exists(image.path) for image in found)
    assert len({image.root for image in found}) == 1


def test_a_link_that_leads_back_is_not_followed(pictures):
    os.symlink('..', 'in/city0/loop')
    os.symlink('../..', 'in/city1/loop')
    os.symlink('city0', 'in/city2')
    names = [image.name for image in inputs.find(['in'], 'in/out')]
    assert sorted(names) == ['city0/frame', 'city1/frame', 'city2/frame', 'Ü 1']


def test_names_of_one_stem_are_never_one(tmp_path):
    for name in ('a.png', 'a.jpg', 'a.png.tif'):
        (tmp_path / name).write_bytes(b'')
    names = [image.name for image in inputs.find([str(tmp_path)])]
    assert len(set(names)) == 3


def test_a_name_that_is_no_text_is_a_name(capfd, seg, tmp_path):
    for name in (b'\xff\xfe', b'\xff' + b'z' * 248):
        shutil.copy(seg / 'data/images/validation/000.jpg', bytes(tmp_path) + b'/' + name + b'.jpg')
    out = tmp_path / 'out'
    predict(capfd, seg / 'c.pth', tmp_path, '--out', out)
    assert len(os.listdir(out / 'labels')) == summary(out)['predicted'] == 2
    predict(capfd, seg / 'c.pth', tmp_path, '--out', out, '--skip-existing')
    assert summary(out)['existing'] == 2


@pytest.mark.parametrize(('sources', 'message'), [
    (['nothing'], 'nothing: no such file or folder'),
    (['*.nothing'], r'\*.nothing: no file fits the pattern'),
    (['empty'], 'no images in empty; folders are searched for .jpg'),
    (['empty.txt'], 'empty.txt lists no image'),
])
def test_no_images(tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    Path('empty.txt').write_text('\n')
    with pytest.raises(UserError, match=message):
        inputs.find(sources)


# --- files -----------------------------------------------------------------------------------


def test_broken_images_are_named_and_skipped(capfd, seg, pictures):
    Path('in/city0/broken.jpg').write_text('no image')
    content = Path('in/city0/frame.png').read_bytes()
    Path('in/city0/half.png').write_bytes(content[:len(content) // 2])
    Path('list.txt').write_text('in/city0/gone.png\nin\nin/city0/frame.png\n')
    out = pictures / 'in/out'
    outcome = predict(capfd, seg / 'c.pth', 'in', 'list.txt', '--out', out, '--force', code=2)
    *skipped, last = [line for line in outcome.err.splitlines() if 'libpng' not in line]
    names = ('in/city0/broken.jpg', 'in/city0/half.png', 'in/city0/gone.png', 'in')
    assert len(skipped) == len(names)
    for line, name in zip(skipped, names, strict=True):
        assert line.startswith('skipped: ') and name in line
    assert last.startswith('error: 4 of 7 images could not be predicted: in/city0/broken.jpg, ...')
    assert [entry['path'] for entry in summary(out)['skipped']] == list(names)
    assert summary(out)['predicted'] == 3
    for name in ('city0/frame', 'city1/frame', 'Ü 1'):
        assert labels_of(out, f'in/{name}') is not None, name


def test_what_is_there(capfd, seg, tmp_path):
    """Never overwritten unasked, gone on with if asked, and only if it is of this model."""
    images, out, checkpoint = seg / 'data/images/training', tmp_path / 'out', seg / 'c.pth'
    predict(capfd, checkpoint, images, '--out', out)
    before = {path: path.read_bytes() for path in out.rglob('*.png')}
    pixels = summary(out)['pixels']
    outcome = predict(capfd, checkpoint, images, '--out', out, code=2)
    assert 'is not empty' in outcome.err and '--skip-existing' in outcome.err
    (out / 'labels/001.png').write_bytes(b'damaged')
    (out / 'labels/002.png').unlink()
    times = os.stat(out / 'labels/000.png').st_mtime_ns
    outcome = predict(capfd, checkpoint, images, '--out', out, '--skip-existing')
    assert '2 images predicted' in outcome.out and '1 were there' in outcome.out
    assert {path: path.read_bytes() for path in out.rglob('*.png')} == before
    assert os.stat(out / 'labels/000.png').st_mtime_ns == times
    assert summary(out)['pixels'] == pixels and summary(out)['existing'] == 1
    predict(capfd, checkpoint, images, '--out', out, '--skip-existing', '--overlay')
    assert len(list(out.glob('overlays/*.jpg'))) == 3
    other = save(seg / 'leaf.py', tmp_path / 'other.pth', dict(seed=1))
    for arguments in ([other], [checkpoint, '--tta'], [seg / 'leaf.py', checkpoint]):
        outcome = predict(capfd, *arguments, images, '--out', out, '--skip-existing', code=2)
        assert 'holds predictions of' in outcome.err
    namesakes = seg / 'data/images/validation'
    outcome = predict(capfd, checkpoint, namesakes, '--out', out, '--skip-existing', code=2)
    assert f"another folder ('{images}', now '{namesakes}')" in outcome.err
    predict(capfd, other, images, '--out', out, '--force')
    outcome = predict(capfd, checkpoint, images, '--out', seg / 'leaf.py', code=2)
    assert 'is a file' in outcome.err


@pytest.mark.slow
@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_a_full_disk(capfd, small_disk, tmp_path, task, request):
    folder, out = request.getfixturevalue(task), small_disk / 'out'
    for i in range(60):
        picture(tmp_path / f'in/{"x" * 100}{i:02}.png', (48, 48), i)
    left = (60 if task == 'seg' else 16) * 1024
    with open(small_disk / 'filler', 'wb') as stream:
        space = os.statvfs(small_disk)
        stream.write(b'x' * (space.f_bavail * space.f_frsize - left))
    command = [folder / 'c.pth', tmp_path / 'in', '--out', out]
    outcome = predict(capfd, *command, code=2)
    (line,) = outcome.err.splitlines()
    assert line.startswith('error: cannot write ') and 'full' in line and '--skip-existing' in line
    assert not list(out.rglob('*.unfinished')) and not summary(out)['finished']
    if task == 'seg':
        done = list((out / 'labels').iterdir())
        assert all(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) is not None for path in done)
    else:
        done = [json.loads(line) for line in (out / 'predictions.jsonl').read_text().splitlines()]
    assert 0 < len(done) < 60
    (small_disk / 'filler').unlink()
    outcome = predict(capfd, *command, '--skip-existing')
    assert f'{len(done)} were there' in outcome.out
    assert summary(out)['predicted'] + len(done) == 60 and summary(out)['finished']


def test_exif(capfd, seg, tmp_path):
    """A picture that is turned for showing gives labels that lie over it as it is shown."""
    array = cv2.imread(picture(tmp_path / 'plain.png', (32, 48)))[..., ::-1]
    image = PIL.Image.fromarray(np.ascontiguousarray(np.rot90(array)))  # stored turned to the left
    exif = PIL.Image.Exif()
    exif[274] = 6
    (tmp_path / 'in').mkdir()
    image.save(tmp_path / 'in/turned.png', exif=exif)
    image.save(tmp_path / 'in/turned.jpg', exif=exif, quality=100)
    predict(capfd, seg / 'c.pth', tmp_path / 'in', '--out', tmp_path / 'out', '--overlay')
    expected = vpt_dense.load(seg / 'c.pth').predict(array).labels
    assert labels_of(tmp_path / 'out', 'turned.jpg').shape == (32, 48)
    assert np.array_equal(labels_of(tmp_path / 'out', 'turned.png'), expected)


def test_georeferenced_bands(capfd, tmp_path):
    from rasterio.transform import from_origin

    bands = "dict(type='vpt_dense.LoadBands', mean=[2e4] * 4, std=[1e4] * 4)"
    leaf = folder_leaf(tmp_path, ['x', 'y'], load=bands, extra="""
model['data_preprocessor'].update(mean=None, std=None, bgr_to_rgb=False)
model['backbone']['in_channels'] = 4
""")
    checkpoint = save(leaf, tmp_path / 'c.pth')
    array = np.random.default_rng(0).integers(0, 60000, (40, 50, 4)).astype(np.uint16)
    place = dict(crs='EPSG:32633', transform=from_origin(400000, 5800000, 10, 10))
    path, out = tmp_path / 'in/scene.tif', tmp_path / 'out'
    path.parent.mkdir()
    write_placed(path, array, place)
    predict(capfd, checkpoint, path, '--out', out, '--overlay', '--probabilities', 'tiff')
    labels, maps = out / 'labels/scene.tif', out / 'probabilities/scene.tif'
    for written in (labels, maps):
        info = raster.image_info(written)
        assert info.crs.to_epsg() == 32633 and info.transform == place['transform']
    result = vpt_dense.load(checkpoint).predict(array, probabilities=True)
    assert np.array_equal(raster.read_image(labels)[..., 0], result.labels)
    assert 0 < result.labels.mean() < 1
    np.testing.assert_array_equal(
        raster.read_image(maps), np.moveaxis(result.probabilities, 0, 2).astype(np.float16))
    outcome = predict(capfd, checkpoint, path, '--out', out, '--skip-existing')
    assert '1 were there' in outcome.out
    tensor = torch.from_numpy(array.astype(np.float32)).permute(2, 0, 1)
    assert np.array_equal(vpt_dense.load(checkpoint).predict(tensor).labels, result.labels)


FOUR = """
dataset.update({data})
model['data_preprocessor'].update(mean=None, std=None, bgr_to_rgb=False)
model['backbone']['in_channels'] = 4
tta_pipeline = [_load[0], dict(type='TestTimeAug', transforms=[
    [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
    [dict(type='PackSegInputs')]])]
"""


@pytest.mark.slow
@pytest.mark.parametrize(('data', 'ignored'), [
    ('', 255), ('ignore_index=7', 7), ('reduce_zero_label=True', 0)])
def test_no_data_is_no_class(capfd, tmp_path, monkeypatch, data, ignored):
    """In maps of every door, whichever way the image is gone through."""
    from rasterio.transform import from_origin

    root = tmp_path / 'data'
    array = np.random.default_rng(0).integers(1, 60000, (40, 50, 4)).astype(np.uint16)
    array[:10, :20] = 0
    array[20, 20, 0] = 0  # in one band alone
    place = dict(crs='EPSG:32633', transform=from_origin(400000, 5800000, 10, 10), nodata=0)
    mask = np.random.default_rng(1).integers(0, 2, (40, 50)) + int('reduce' in data)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        write_placed(root / 'images' / split / 'a.tif', array, place)
        cv2.imwrite(str(root / 'annotations' / split / 'a.png'), mask)
    bands = "dict(type='vpt_dense.LoadBands', mean=[2e4] * 4, std=[1e4] * 4)"
    leaf = folder_leaf(tmp_path, ['x', 'y'], load=bands, extra=FOUR.format(data=data))
    checkpoint = save(leaf, tmp_path / 'c.pth')
    out = tmp_path / 'out'
    predict(capfd, checkpoint, root / 'images/validation/a.tif', '--out', out, '--overlay')
    labels = raster.read_image(out / 'labels/a.tif')[..., 0]
    assert raster.image_info(out / 'labels/a.tif').nodata == ignored
    empty = np.zeros((40, 50), bool)
    empty[:10, :20] = True
    assert (labels[empty] == ignored).all() and not (labels[~empty] == ignored).any()
    assert summary(out)['no_data'] == dict(id=ignored, pixels=200)
    assert sum(each['pixels'] for each in summary(out)['pixels'].values()) == 1800
    again = predict(capfd, checkpoint, root / 'images/validation/a.tif', '--out', out,
                    '--skip-existing', '--overlay')
    assert '1 were there' in again.out and summary(out)['no_data']['pixels'] == 200

    path = str(root / 'images/validation/a.tif')
    augmented = vpt_dense.load(checkpoint, tta=True)
    assert ((augmented.predict(path).labels == ignored) == empty).all()
    assert ((augmented.predict(path, probabilities=True).labels == ignored) == empty).all()
    predictor = vpt_dense.load(checkpoint)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    assert np.array_equal(predictor.predict(path).labels, labels)  # tile by tile

    outcome = run_tool(capfd, 'test', leaf, checkpoint, '--out', tmp_path / 'maps',
                       '--show-dir', tmp_path / 'pictures')
    assert outcome.code == 0, outcome.err
    assert np.array_equal(cv2.imread(str(tmp_path / 'maps/a.png'), -1), labels)


def write_placed(path, array, place):
    import rasterio

    with rasterio.open(path, 'w', driver='GTiff', height=array.shape[0], width=array.shape[1],
                       count=array.shape[2], dtype=array.dtype.name, **place) as target:
        target.write(np.moveaxis(array, 2, 0))


def test_bands_that_the_loader_would_change(capfd, seg, tmp_path):
    array = np.zeros((40, 50, 4), np.uint16)
    raster.write_raster(tmp_path / 'four.tif', array)
    raster.write_raster(tmp_path / 'deep.tif', array[..., :3])
    outcome = predict(capfd, seg / 'c.pth', tmp_path, '--out', tmp_path / 'out', code=2)
    warning, skipped, _ = outcome.err.splitlines()
    assert 'keeps the upper 8 bits' in warning and 'deep.tif' not in skipped
    assert skipped.startswith('skipped: images that the default loader') and 'four.tif' in skipped
    assert labels_of(tmp_path / 'out', 'deep') is not None


class Constant:
    """Another kind of predictor: what an exported model would be."""

    task, classes, ids, ignored_id = 'segmentation', ('a', 'b'), (0, 7), 255
    palette = [[0, 0, 0], [255, 0, 0]]

    def describe(self):
        return dict(checkpoint='m.onnx', sha256='0')

    def stream(self, images, probabilities=False, batch_size=None):
        for path in images:
            if 'bad' in path:
                yield ValueError(f'{path}: no')
            else:
                yield Segmentation(np.full((4, 5), 7, np.uint8), self.classes, self.ids)


def test_any_predictor_can_be_written(tmp_path, capfd):
    images = inputs.find([picture(tmp_path / 'in' / name, (4, 5)) for name in ('a.png', 'bad.png')])
    record = writing.write(Constant(), images, tmp_path / 'out', writing.Wanted(overlay=True))
    assert record['skipped'] == [dict(path=images[1].path, reason=f'{images[1].path}: no')]
    assert record['pixels']['b'] == dict(id=7, pixels=20, share=1.0)
    assert (labels_of(tmp_path / 'out', 'a') == 7).all()


# --- large images ----------------------------------------------------------------------------

RESIZED = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 64), keep_ratio=True),
           dict(type='PackSegInputs')]  # fmt: skip


@pytest.mark.parametrize('pipeline', [None, RESIZED], ids=['windows', 'resized'])
@pytest.mark.parametrize('size', [(150, 131), (30, 131), (150, 32), (20, 20)], ids=str)
def test_tiles_are_the_whole(seg, tmp_path, monkeypatch, pipeline, size):
    """Of windows of 32 that overlap: in tiles of a few rows and columns, from a raster by rows."""
    options = {'test_dataloader.dataset.pipeline': pipeline} if pipeline else None
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options=options)
    array = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    raster.write_raster(tmp_path / 'a.tif', array)
    expected = predictor.predict(array, probabilities=True)
    monkeypatch.setattr(predicting, 'PLAIN_BYTES', 150 * 4 * (96 * 64 if pipeline else 1))
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    monkeypatch.setattr(tiles, '_TILE', 150 * 4 * 32 * 9)
    monkeypatch.setattr(tiles, '_IN_MEMORY', 100)
    for image in (array, str(tmp_path / 'a.tif')):
        for wanted in ('float32', 'float16'):
            result = predictor.predict(image, probabilities=wanted)
            assert isinstance(result.probabilities, np.memmap)
            assert result.probabilities.dtype == wanted
            assert np.array_equal(result.labels, expected.labels)
            np.testing.assert_allclose(
                result.probabilities, expected.probabilities,
                atol=1e-6 if wanted == 'float32' else 1e-4)


@pytest.mark.parametrize('profile', [dict(nbits=1), dict(photometric='miniswhite')], ids=str)
def test_rows_of_a_raster_are_what_the_loader_gives(seg, tmp_path, monkeypatch, profile):
    """OpenCV makes 255 of the 1 of a bit, and black of what is white as 0."""
    predictor, path = vpt_dense.load(seg / 'c.pth'), str(tmp_path / 'a.tif')
    stored = np.random.default_rng(0).integers(0, 2, (50, 60, 1)).astype(np.uint8)
    write_tiff(path, stored * (1 if 'nbits' in profile else 200), **profile)
    expected = predictor.predict(path)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    assert np.array_equal(predictor.predict(path).labels, expected.labels)


@pytest.mark.parametrize(('options', 'tta', 'message'), [
    ({'model.test_cfg': dict(mode='whole')}, False, "'model.test_cfg={mode: slide, crop_size"),
    (None, True, 'leave --tta out'),
])
def test_too_large_says_what_to_do(capfd, seg, tmp_path, monkeypatch, options, tta, message):
    predictor = vpt_dense.load(seg / 'c.pth', cfg_options=options, tta=tta)
    monkeypatch.setattr(predicting, 'PLAIN_PIXELS', 10)
    with pytest.raises(UserError, match='more than fit at once') as raised:
        predictor.predict(picture(tmp_path / 'a.png'))
    assert message in str(raised.value)


CHILD = """
import sys
import numpy as np
import vpt_dense
from vpt_dense.machine import resident_peak
predictor = vpt_dense.load(sys.argv[1], cfg_options={'model.test_cfg.crop_size': (256, 256),
                                                     'model.test_cfg.stride': (192, 192)})
predictor.predict(np.zeros((32, 32, 3), np.uint8))
before = resident_peak()
result = predictor.predict(sys.argv[2])
assert result.labels.shape == (2000, 2000)
print((resident_peak() - before) / 2**20)
"""


@pytest.mark.long
def test_memory_of_a_large_image_is_bounded(seg, tmp_path):
    """Its logits would take 2.2 GiB."""
    rng = np.random.default_rng(0)
    raster.write_raster(
        tmp_path / 'a.tif', rng.integers(0, 256, (2000, 2000, 3)).astype(np.uint8))
    done = subprocess.run(
        [sys.executable, '-c', CHILD, str(seg / 'c.pth'), str(tmp_path / 'a.tif')],
        capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1000


# --- what a user may get wrong ---------------------------------------------------------------


@pytest.fixture(scope='module')
def others(seg, tmp_path_factory):
    """(folder: checkpoints that say their classes, configs of other ones)."""
    folder = tmp_path_factory.mktemp('others')
    for name, classes in (('two', ['x', 'y']), ('renamed', ['x', 'z'])):
        (folder / name).mkdir()
        folder_leaf(folder / name, classes)
    save(folder / 'two/leaf.py', folder / 'two.pth', dict(classes=['x', 'y']))
    content = safe_files.read(seg / 'c.pth')
    content['meta']['dataset_meta'] = dict(classes=[str(i) for i in range(150)])
    safe_files.write(content, folder / 'named.pth')
    return folder


@pytest.mark.parametrize(('arguments', 'message'), [
    (['{c}', 'in'], '--out'),
    (['{c}', '--out', 'out'], 'name images'),
    (['leaf.py', '--out', 'out'], 'name a checkpoint and images'),
    (['leaf.py', 'in', '--out', 'out'], 'name images'),
    (['gone.pth', 'in', '--out', 'out'], 'gone.pth: no such file'),
    (['in/notes.md', 'in', '--out', 'out'], 'notes.md'),
    (['gone.py', '{c}', 'in', '--out', 'out'], 'gone.py'),
    (['{c}', 'gone', '--out', 'out'], 'gone: no such file or folder'),
    (['{c}', 'empty', '--out', 'out'], 'no images in empty'),
    (['{others}/two/leaf.py', '{others}/named.pth', 'in', '--out', 'out'], '2 classes, .* 150'),
    (['{others}/renamed/leaf.py', '{others}/two.pth', 'in', '--out', 'out'],
     "class 1 is 'z' and was 'y'"),
    (['{c}', 'in', '--out', 'out', '--device', 'warp'], "device 'warp' cannot be used"),
    (['{c}', 'in', '--out', 'out', '--batch-size', '0'], 'no number of at least 1'),
    (['{c}', 'in', '--out', 'out', '--top-k', 'x'], 'no number of at least 1'),
    (['{c}', 'in', '--out', 'out', '--top-k', '3'], '--top-k is for classification, this model is'),
    (['{c}', 'in', '--out', 'out', '--dtype', 'float32'], '--dtype is of --probabilities, which'),
    (['{c}', 'in', '--out', 'out', '--cfg-options', 'model.test_cfg.stide=3'], 'stride'),
    (['{c}', 'in', '--out', 'out', '--force', '--skip-existing'], 'not allowed with'),
    (['{others}/two.pth', 'in', '--out', 'out', '--tta', '--cfg-options', 'tta_model=None'],
     'no tta_model'),
], ids=lambda value: ' '.join(value)[:60] if isinstance(value, list) else '')  # fmt: skip
def test_one_line(capfd, seg, others, pictures, arguments, message):
    Path('empty').mkdir()
    outcome = predict(
        capfd, *(text.format(c=seg / 'c.pth', others=others) for text in arguments), code=2)
    (line,) = outcome.err.splitlines()
    assert line.startswith('error: ') and re.search(message, line), line
    assert not Path('out').exists()


def test_a_config_object(seg):
    cfg = Config.fromfile(seg / 'leaf.py')
    text = cfg.pretty_text
    predictor = vpt_dense.load(seg / 'c.pth', cfg)
    assert predictor.task == 'segmentation' and cfg.pretty_text == text
