"""Training on a part of the data."""

import cv2
import numpy as np
import pytest
from mmengine import DATASETS
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, in_scope, make_ade_folder

from vpt_dense import config, registry  # noqa: F401  registers
from vpt_dense.errors import UserError

CLASSES = dict(daisy=5, rose=3, tulip=4)


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    root = tmp_path_factory.mktemp('flowers')
    for name, number in CLASSES.items():
        for split, images in (('train', number), ('val', 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                picture = np.full((8, 8, 3), i, np.uint8)
                cv2.imwrite(str(root / split / name / f'{i}.png'), picture)
    return root


def build(root, **settings):
    in_scope('mmpretrain')
    inner = dict(type='vpt_dense.ImageFolder', data_root=str(root), data_prefix='train',
                 pipeline=[])
    return DATASETS.build(dict(type='vpt_dense.Subset', dataset=inner, **settings))


def names(data):
    return [data.get_data_info(i)['img_path'] for i in range(len(data))]


def test_so_many_of_each_class(flowers):
    data = build(flowers, per_class=3)
    assert len(data) == 9 and sorted(data.get_gt_labels()) == [0] * 3 + [1] * 3 + [2] * 3
    assert list(data.metainfo['classes']) == list(CLASSES)
    smaller = build(flowers, per_class=1)
    assert set(names(smaller)) < set(names(data)) and len(set(names(smaller))) == 3
    assert names(build(flowers, per_class=1)) == names(smaller)
    others = [names(build(flowers, per_class=1, seed=seed)) for seed in range(1, 6)]
    assert any(other != names(smaller) for other in others)


def test_a_share_and_a_number(flowers):
    assert len(build(flowers, share=0.5)) == 6 == len(build(flowers, images=6))
    assert names(build(flowers, share=0.5)) == names(build(flowers, images=6))
    assert len(build(flowers, share=0.01)) == 1
    whole = build(flowers, share=1)
    assert len(whole) == 12 and set(names(build(flowers, images=4))) < set(names(whole))
    assert whole[3]['img_path'] == names(whole)[3]


@pytest.mark.parametrize(('settings', 'message'), [
    ({}, 'one of share, images and per_class'), (dict(share=1, images=2), 'one of share, images'),
    (dict(share=0), 'subset.share must be above 0'), (dict(share=1.5), 'at most 1'),
    (dict(images=13), 'subset.images is 13, but there are 12'),
    (dict(per_class=4), 'subset.per_class is 4, but class rose has 3'),
    (dict(images=1, seed=-1), 'subset.seed'), (dict(images='all'), 'subset.images must be'),
])
def test_what_cannot_be_is_refused(flowers, settings, message):
    with pytest.raises(UserError, match=message):
        build(flowers, **settings)


def test_the_key_goes_around_the_training_data(tmp_path):
    path = str(CONFIGS / 'vpt/vit-b_deep_imagefolder.py')
    cfg = config.load(path, ['subset.per_class=4', 'img_size=112'])
    data = cfg.train_dataloader.dataset
    assert (data.type, data.per_class, data.dataset.type) == (
        'vpt_dense.Subset', 4, 'vpt_dense.ImageFolder')
    assert data.dataset.pipeline[2].crop_size == 112
    assert cfg.val_dataloader.dataset.type == 'vpt_dense.ImageFolder' and 'subset' not in cfg
    file = tmp_path / 'finished.py'
    cfg.dump(str(file))
    again = config.load(str(file), ['subset.share=0.5']).train_dataloader.dataset
    assert (again.share, again.dataset.type) == (0.5, 'vpt_dense.ImageFolder')
    assert 'per_class' not in again
    for option, message in (('subset=5', 'subset: a dict'), ('subset.shots=5', 'subset: a dict')):
        with pytest.raises(UserError, match=message):
            config.load(path, [option])


@pytest.mark.slow
def test_a_segmentation_trains_on_a_part(capfd, tmp_path):
    path = write_leaf(tmp_path, make_ade_folder(tmp_path / 'data', size=(32, 32), num_images=4))
    options = ['model.backbone.init_cfg=None', 'batch_size=1']
    outcome = run_tool(capfd, 'train', path, '--cfg-options', 'epochs=1', 'subset.images=3',
                       *options)
    assert outcome.code == 0 and '[3/3]' in outcome.out + outcome.err, outcome.err
    outcome = run_tool(capfd, 'train', path, '--cfg-options', 'subset.per_class=1', *options)
    assert outcome.code == 2 and 'not of one class each' in outcome.err
