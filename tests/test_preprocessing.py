"""Pipelines and statistics by name: ``preprocessing``, ``normalize``."""

import cv2
import numpy as np
import pytest
from mmcv.transforms import Compose
from PIL import Image
from tool_helpers import write_leaf
from utils import CONFIGS, in_scope

from vpt_dense import config, registry  # noqa: F401  registers
from vpt_dense.errors import UserError

RECIPES = {name: str(CONFIGS / f'vpt/{name}.py') for name in (
    'vit-b_imagefolder', 'vit-b_cifar100', 'vit-b_vtab')}


def load(*options: str, recipe: str = 'vit-b_imagefolder'):
    return config.load(RECIPES[recipe], options, 'deep')


def kinds(cfg, split: str) -> list[str]:
    return [step.type for step in cfg[f'{split}_dataloader'].dataset.pipeline]


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize(('name', 'size', 'resample'), [
    ('resize224', 224, Image.BILINEAR), ('resize96-bicubic', 96, Image.BICUBIC)])
def test_resized_images_are_pillow_s(tmp_path, recipe, name, size, resample):
    cfg = load(f'preprocessing={name}', recipe=recipe)
    for split in ('train', 'val', 'test'):
        assert kinds(cfg, split)[-2:] == ['Resize', 'PackInputs']
    assert cfg.model.backbone.img_size == size
    image = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    in_scope('mmpretrain')
    pipeline = Compose(cfg.train_dataloader.dataset.pipeline)
    sample = dict(img_path=str(tmp_path / 'a.png'), gt_label=0)
    if recipe == 'vit-b_cifar100':  # whose images are in memory
        sample = dict(img=image, gt_label=0)
    found = pipeline(sample)['inputs'].numpy().transpose(1, 2, 0)
    expected = np.asarray(Image.fromarray(image).resize((size, size), resample))
    assert (found == expected).all()


def test_crops():
    cfg = load('preprocessing=crop384', recipe='vit-b_vtab')
    assert kinds(cfg, 'train') == [
        'LoadImageFromFile', 'ResizeEdge', 'RandomCrop', 'RandomFlip', 'PackInputs']
    assert kinds(cfg, 'test') == ['LoadImageFromFile', 'ResizeEdge', 'CenterCrop', 'PackInputs']
    pipeline = cfg.test_dataloader.dataset.pipeline
    assert (pipeline[1].scale, pipeline[2].crop_size) == (439, 384)
    # By name it is the folder's own way.
    named, own = load('preprocessing=crop224'), load()
    for split in ('train', 'val', 'test'):
        assert named[f'{split}_dataloader'] == own[f'{split}_dataloader']


@pytest.mark.parametrize(('option', 'text', 'message'), [
    ('preprocessing=resize224', 'train_dataloader.dataset.pipeline.3.prob=0.9',
     'preprocessing is resize224, but train_dataloader.dataset.pipeline is said beside it'),
    ('normalize=half', 'model.data_preprocessor.mean=[1.0,2.0,3.0]',
     'normalize is half, but model.data_preprocessor.mean is said beside it'),
])
def test_what_it_sets_is_not_said_too(tmp_path, option, text, message):
    with pytest.raises(UserError, match=message):
        load(option, text)
    key, _, value = option.partition('=')
    place, _, inner = text.partition('=')
    steps = "dict(type='RandomCrop', crop_size=224), dict(type='PackInputs')"
    written = (f'train_dataloader = dict(dataset=dict(pipeline=[{steps}]))'
               if 'pipeline' in place else f'model = dict(data_preprocessor=dict(mean={inner}))')
    file = tmp_path / 'mine.py'
    file.write_text(f"_base_ = {RECIPES['vit-b_imagefolder']!r}\n{key} = {value!r}\n{written}\n")
    with pytest.raises(UserError, match=message):
        config.load(str(file), [], 'deep')
    file.write_text(f"_base_ = {RECIPES['vit-b_imagefolder']!r}\n{written}\n")
    config.load(str(file), [option], 'deep')  # what is above wins


def test_the_size_is_the_config_s(tmp_path):
    assert load('preprocessing=resize', 'img_size=112').train_dataloader.dataset.pipeline[
        1].scale == (112, 112)
    leaf = tmp_path / 'leaf.py'
    leaf.write_text(
        f"_base_ = {RECIPES['vit-b_imagefolder']!r}\nimg_size = 96\npreprocessing = 'resize'\n")
    cfg = config.load(str(leaf), [], 'deep')
    assert cfg.model.backbone.img_size == 96 and 'preprocessing' not in cfg
    assert cfg.val_dataloader.dataset.pipeline[1].scale == (96, 96)
    finished = tmp_path / 'finished.py'
    cfg.dump(str(finished))
    assert config.load(str(finished)).val_dataloader == cfg.val_dataloader


def test_statistics():
    node = load('normalize=half').model.data_preprocessor
    assert (list(node.mean), list(node.std), node.to_rgb) == ([127.5] * 3, [127.5] * 3, True)
    assert load('normalize=imagenet').model.data_preprocessor == load().model.data_preprocessor


@pytest.mark.parametrize(('options', 'message'), [
    (['preprocessing=resise224'], "'resize224' or 'crop224' was expected.*found 'resise224'"),
    (['preprocessing=224'], 'was expected'), (['normalize=0.5'], 'normalize.*imagenet'),
    (['preprocessing=resize224', 'img_size=112'], 'say the size once'),
    (['preprocessing=resize', 'img_size=[96,112]'], 'no square size'),
    (['preprocessing=resize223'], '223'),  # no multiple of the patch
])
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        load(*options)


def test_segmentation_has_its_own(tmp_path):
    path = str(write_leaf(tmp_path, tmp_path))
    for option in ('preprocessing=resize224', 'normalize=half'):
        with pytest.raises(UserError, match='it is for classification'):
            config.load(path, [option])


def test_pipelines_that_cannot_be_made():
    load = dict(type='vpt_dense.LoadBands', mean=[0.0] * 3, std=[1.0] * 3)
    read = [load, dict(type='PackInputs')]
    for options, message in (
            ({'normalize': 'half', 'val_dataloader.dataset.pipeline': read}, 'LoadBands'),
            ({'preprocessing': 'resize224', 'val_dataloader.dataset.pipeline': read[:1]},
             'val_dataloader.dataset.pipeline has no PackInputs')):
        with pytest.raises(UserError, match=message):
            config.load(RECIPES['vit-b_imagefolder'], options, 'deep')
