"""The stack's own entries (inferencers, ``Runner.from_cfg``) give what our tools give."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config
from mmengine.runner import Runner
from test_raster import write
from tool_helpers import forget_runs, run_tool, write_leaf
from utils import CONFIGS

from vpt_dense import config
from vpt_dense.datasets import raster
from vpt_dense.errors import UserError

SEG = """
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{root}', classes=['x', 'y'])
_load = [{load}, dict(type='vpt_dense.LoadMask')]
_pack = dict(type='PackSegInputs')
train_dataloader['dataset'] = dict(
    pipeline=[*_load, dict(type='RandomCrop', crop_size=(32, 32)), _pack])
val_dataloader['dataset'] = test_dataloader['dataset'] = dict(pipeline=[*_load, _pack])
model['data_preprocessor'].update(size=(32, 32), mean={mean}, std={mean}, bgr_to_rgb=False)
model['backbone']['in_channels'] = {bands}
optim_wrapper = dict(optimizer=dict(lr=0.0))
test_evaluator = dict(type='vpt_dense.IoUMetric', output_dir='{root}/predicted')
"""
BANDS = "dict(type='vpt_dense.LoadBands', mean=[20000.0] * {0}, std=[10000.0] * {0})"
CASES = {
    'plain': (3, np.uint8, "dict(type='LoadImageFromFile')", [100.0] * 3),
    'six bands': (6, np.uint16, BANDS.format(6), None),
    'three bands': (3, np.uint16, BANDS.format(3), None),
}


def images(folder: Path, bands: int, dtype: type, number: int = 2) -> list[Path]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = [folder / f'{i}.{"png" if bands <= 4 else "tif"}' for i in range(number)]
    for path in paths:
        image = rng.integers(0, np.iinfo(dtype).max, (32, 32, bands)).astype(dtype)
        if bands <= 4:
            cv2.imwrite(str(path), image)
        else:
            write(path, image, interleave='band', nodata=0)
    return paths


def as_opencv(path: Path) -> np.ndarray:
    """What inferencers take for an array: the first and the third band are swapped."""
    image = raster.read_image(path)
    return image[..., [2, 1, 0, *range(3, image.shape[2])]]


@pytest.fixture(scope='module', params=CASES)
def trained(request, tmp_path_factory):
    """(folder of a finished run, its test images): masks from the first band."""
    folder = tmp_path_factory.mktemp('run')
    bands, dtype, load, mean = CASES[request.param]
    root = folder / 'data'
    for split in ('training', 'validation'):
        (root / f'annotations/{split}').mkdir(parents=True)
        for path in images(root / f'images/{split}', bands, dtype):
            mask = as_opencv(path)[..., 0] > np.iinfo(dtype).max / 2
            cv2.imwrite(str(root / f'annotations/{split}/{path.name}'), mask.astype(np.uint8))
    (root / 'predicted').mkdir()
    leaf = write_leaf(folder, root, SEG.format(root=root, load=load, mean=mean, bands=bands))
    yield folder, leaf, sorted((root / 'images/validation').iterdir())


@pytest.mark.slow
def test_all_entries_of_mmseg_predict_the_same(trained, capfd):
    from mmseg.apis import MMSegInferencer, inference_model, init_model

    folder, leaf, paths = trained
    for tool in ('train', 'test'):
        path = [folder / 'work/iter_2.pth'] if tool == 'test' else []
        outcome = run_tool(capfd, tool, leaf, *path)
        assert outcome.code == 0, outcome.err
    expected = [cv2.imread(str(folder / f'data/predicted/{path.stem}.png'), 0) for path in paths]
    assert all(0 < mask.mean() < 1 for mask in expected)
    finished, weights = str(folder / 'work/leaf.py'), str(folder / 'work/iter_2.pth')
    forget_runs()
    model = init_model(finished, weights, device='cpu')
    inferencer = MMSegInferencer(finished, weights=weights, device='cpu', show_progress=False)
    arrays = [as_opencv(path) for path in paths]
    for inputs in ([str(path) for path in paths], arrays):
        for mask, sample, each in zip(
            expected, inference_model(model, inputs), inputs, strict=True
        ):
            assert np.array_equal(sample.pred_sem_seg.data[0].numpy(), mask)
            assert np.array_equal(inferencer(each)['predictions'], mask)
    # The config file itself has 150 classes until it is resolved.
    for load in (lambda: init_model(str(leaf), weights, device='cpu'),
                 lambda: MMSegInferencer(str(leaf), weights=weights, device='cpu')):
        forget_runs()
        with pytest.raises(UserError, match=r'conv_seg.weight is \(2, .* the model has \(150, .*'
                           r'name the config that the run has written into its work_dir'):
            load()
    model = init_model(config.load(str(leaf)), weights, device='cpu')
    assert np.array_equal(
        inference_model(model, str(paths[0])).pred_sem_seg.data[0].numpy(), expected[0])


CLS = """
_base_ = '{base}'
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/data')
model = dict(
    data_preprocessor=dict(mean={mean}, std={mean}, to_rgb=False),
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=32, patch_size=8, init_cfg=None, in_channels={bands}, prompt=dict(num_tokens=2)),
    head=dict(in_channels=32))
_pipeline = [{load}, dict(type='Resize', scale=32), dict(type='PackInputs')]
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=_pipeline))
test_dataloader = dict(num_workers=0, dataset=dict(pipeline=_pipeline))
train_cfg = dict(max_epochs=1)
param_scheduler = []
test_evaluator = [dict(type='Accuracy'), dict(type='DumpResults', out_file_path='{folder}/out.pkl')]
"""


@pytest.mark.parametrize('case', CASES)
def test_mmpretrains_inferencer_predicts_the_same(tmp_path, capfd, case):
    from mmpretrain import ImageClassificationInferencer

    bands, dtype, load, mean = CASES[case]
    for split in ('train', 'val'):
        for name in ('iris', 'rose'):
            paths = images(tmp_path / 'data' / split / name, bands, dtype)
    leaf = tmp_path / 'leaf.py'
    base = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
    leaf.write_text(CLS.format(base=base, folder=tmp_path, bands=bands, load=load, mean=mean))
    weights = str(tmp_path / 'work/epoch_1.pth')
    for tool, path in (('train', []), ('test', [weights])):
        outcome = run_tool(capfd, tool, leaf, *path)
        assert outcome.code == 0, outcome.err
    found = pickle.loads((tmp_path / 'out.pkl').read_bytes())
    expected = {Path(sample['img_path']): sample['pred_score'].numpy() for sample in found}
    forget_runs()
    finished = ImageClassificationInferencer(
        str(tmp_path / 'work/leaf.py'), pretrained=weights, device='cpu')
    arrays = [as_opencv(path) for path in paths]
    if dtype == np.uint16:
        with pytest.raises(ValueError, match='3 bands|Failed to read'):  # 3 bands of 8 bits
            finished(str(paths[0]))
    else:
        arrays += map(str, paths)
    for path, each in zip(paths * 2, arrays, strict=False):
        np.testing.assert_allclose(
            finished(each)[0]['pred_scores'], expected[path], rtol=1e-5, atol=0)
    forget_runs()
    with pytest.raises(UserError, match=r'head.fc.weight is \(2, 32\), the model has \(1000, 32\)'):
        ImageClassificationInferencer(str(leaf), pretrained=weights, device='cpu')


def test_from_cfg_leaves_the_config_and_those_of_others(tmp_path, monkeypatch):
    from vpt_dense.weights import guard

    built = []
    monkeypatch.setattr(guard, '_mmengine_init_runner', lambda _, **kwargs: built.append(kwargs))
    cfg = Config.fromfile(write_leaf(tmp_path, tmp_path, "dataset['classes'] = ['a', 'b']\n"))
    text = cfg.pretty_text
    Runner.from_cfg(cfg)
    assert built[0]['model'].decode_head.num_classes == 2 and cfg.pretty_text == text
    assert built[0]['cfg'].model == built[0]['model']
    theirs = Config(dict(
        model=dict(decode_head=dict(num_classes=150)), work_dir='x', dataset=dict(classes=['a']),
        train_dataloader=dict(dataset=dict(type='X'))))  # fmt: skip
    Runner.from_cfg(theirs)
    assert built[1]['model'].decode_head.num_classes == 150


def test_from_cfg_finishes_a_leaf(tmp_path, monkeypatch):
    from vpt_dense.weights import guard

    built = []
    monkeypatch.setattr(guard, '_mmengine_init_runner', lambda _, **kwargs: built.append(kwargs))
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f"_base_ = ['{CONFIGS}/vpt/setr_vit-l_ade20k.py', '{CONFIGS}/_base_/methods/rein.py']\n"
        "model = dict(backbone=_base_.method)\nwork_dir = 'x'\n"
        'optim_wrapper = _base_.optim[_base_.optim_group]\n')
    Runner.from_cfg(Config.fromfile(leaf))
    assert built[0]['optim_wrapper'] == config.load(str(leaf)).optim_wrapper
    assert built[0]['optim_wrapper'].optimizer.lr == 1e-4
    cfg = Config(Config.fromfile(leaf).to_dict())  # of no file
    Runner.from_cfg(cfg)
    assert built[1]['optim_wrapper'] == cfg.optim_wrapper


@pytest.mark.parametrize('path', ['vpt/vit-b_deep_imagefolder.py', 'demo/setr_deep_digits.py',
                                  'vpt/setr_vit-l_deep_ade20k.py', 'examples/four_band_images.py'])
def test_the_test_pipeline_is_that_of_the_dataloader(path):
    cfg = config.load(str(CONFIGS / path))
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    assert cfg.test_pipeline[0].type == 'LoadImageFromFile'
    cfg = config.load(str(CONFIGS / path), {'test_dataloader.dataset.pipeline.1.x': 7})
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline
    assert 7 in [transform.get('x') for transform in cfg.test_pipeline]
