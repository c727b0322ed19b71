"""``dataset.ignore_index`` reaches all that reads labels: the result is that of 255."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine import Config
from mmengine.structures import PixelData
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, LEAVES, in_scope

from vpt_dense import config
from vpt_dense.datasets import checks
from vpt_dense.errors import UserError
from vpt_dense.visualization import ours
from vpt_dense.weights import checkpoints

#: On top of the tiny leaf: everything that fills borders or counts labels.
EXTRA = """
dataset = dict(
    _delete_=True, type='vpt_dense.SegFolder', data_root='{root}', {more}
    classes=[str(i) for i in range(11)])
_load = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask')]
_train = [
    *_load,
    dict(type='RandomRotate', prob=1.0, degree=30),
    dict(type='{crop}', crop_size=(28, 24), cat_max_ratio=0.5),
    dict(type='Pad', size=(30, 30)),
    dict(type='PackSegInputs')]
train_dataloader['dataset'] = dict(pipeline=_train)
val_dataloader['dataset'] = dict(pipeline=[*_load, dict(type='PackSegInputs')])
test_dataloader['dataset'] = val_dataloader['dataset']
_ce = dict(type='CrossEntropyLoss', avg_non_ignore=True)
model['auxiliary_head'][0]['loss_decode'] = _ce
model['decode_head']['loss_decode'] = {losses}
tta_pipeline = []
"""


def make(root: Path, void: int, absent: int) -> Path:
    """Masks of classes 0 to 10 without ``absent``, a third of the pixels of label ``void``."""
    rng = np.random.default_rng(0)
    labels = np.array([label for label in range(11) if label != absent], np.uint8)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(3):
            cells = rng.choice(labels, (4, 4))
            cells[rng.random((4, 4)) < 0.33] = void
            mask = cv2.resize(cells, (32, 32), interpolation=cv2.INTER_NEAREST)
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), mask)
            image = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            cv2.imwrite(str(root / f'images/{split}/{i}.png'), image)
    return root


def train(capfd, folder: Path, void: int, absent: int, **how) -> tuple[dict, list, dict]:
    """Weights, losses and results by class of a short run, which starts from seed 0."""
    folder.mkdir()
    root = make(folder / 'data', void, absent)
    more = '' if void == 255 else f'ignore_index={void},'
    leaf = write_leaf(folder, root, EXTRA.format(root=root, more=more, **how))
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 0, outcome.err
    log = next(folder.glob('work/*/vis_data/scalars.json')).read_text().splitlines()
    lines = [json.loads(line) for line in log]
    losses = [{k: v for k, v in line.items() if 'loss' in k or 'acc' in k} for line in lines]
    results = json.loads((folder / 'work/evaluations.json').read_text())
    for result in results:
        del result['run_id']
    return checkpoints.read(str(folder / 'work/iter_2.pth'))['state_dict'], losses, results


@pytest.mark.slow
@pytest.mark.parametrize(
    'void, how',
    [
        (11, dict(crop='vpt_dense.RandomCrop', losses='_ce')),
        (0, dict(crop='RandomCrop', losses="[_ce, dict(type='DiceLoss', use_sigmoid=False)]")),
        (9, dict(crop='vpt_dense.RandomCrop',
                 losses="dict(_delete_=True, type='LovaszLoss', per_image=True)")),
    ],
    ids=['behind the classes', 'the first class', 'among the classes'],
)  # fmt: skip
def test_any_void_trains_and_scores_as_255(capfd, tmp_path, void, how):
    absent = void if void < 11 else 4
    if 'Dice' in how['losses']:  # Dice has a term for each class: also without void's in 255's run
        how_255 = dict(how, losses=how['losses'].replace('dict(', 'dict(ignore_index=0,'))
    else:
        how_255 = how
    found = train(capfd, tmp_path / 'void', void, absent, **how)
    expected = train(capfd, tmp_path / 'plain', 255, absent, **how_255)
    assert found[1:] == expected[1:]
    assert sum(losses.get('loss', 0) > 0 for losses in found[1]) == 2
    for name, tensor in expected[0].items():
        assert torch.equal(found[0][name], tensor), name


SEGMENTATION = [path for path in LEAVES if path.endswith('_ade20k.py')]


@pytest.mark.parametrize('path', SEGMENTATION[::4] + ['vpt/setr_vit-l_deep-ensemble-5_ade20k.py',
                                                     'vpt/setr-mla_vit-l_deep_ade20k.py'])
def test_it_reaches_all_heads_metrics_and_pipelines(path):
    options = {'dataset.ignore_index': 11, 'dataset.reduce_zero_label': False}
    cfg = config.load(str(CONFIGS / path), options)
    assert {head.ignore_index for head in config.heads(cfg.model)} == {11}
    assert cfg.model.data_preprocessor.seg_pad_val == 11
    assert cfg.val_evaluator.ignore_index == cfg.test_evaluator.ignore_index == 11
    crop = next(t for t in cfg.train_dataloader.dataset.pipeline if 'Crop' in t.type)
    assert crop.ignore_index == 11
    assert cfg.visualizer.ignore_index == 11
    # What a run has written says the same.
    again = Config(cfg.to_dict())
    config.resolve(again)
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize('path', SEGMENTATION[::4])
def test_unsaid_nothing_changes(path):
    text = config.load(str(CONFIGS / path)).pretty_text
    assert 'ignore_index' not in text and 'vpt_dense.SegLocalVisualizer' not in text


def small(**more) -> Config:
    head = dict(type='FCNHead', num_classes=3)
    leaf = dict(type='vpt_dense.SegFolder', pipeline=[dict(type='RandomCrop')])
    return Config(dict(
        model=dict(decode_head=head, auxiliary_head=[head],
                   data_preprocessor=dict(seg_pad_val=255)),
        train_dataloader=dict(dataset=leaf), val_dataloader=dict(dataset=leaf),
        val_evaluator=[dict(type='IoUMetric'), dict(type='Other')], **more))  # fmt: skip


def test_what_a_head_alone_says_holds_too():
    cfg = small()
    cfg.model.decode_head.ignore_index = 0
    config.resolve(cfg)
    assert cfg.model.auxiliary_head[0].ignore_index == 0
    assert cfg.model.data_preprocessor.seg_pad_val == 0
    assert cfg.train_dataloader.dataset.ignore_index == 0
    assert cfg.train_dataloader.dataset.pipeline[0].ignore_index == 0
    assert cfg.val_evaluator[0].ignore_index == 0 and 'ignore_index' not in cfg.val_evaluator[1]


def test_each_split_has_its_own():
    cfg = small()
    cfg.train_dataloader.dataset.ignore_index = 3
    cfg.val_dataloader.dataset.ignore_index = 255
    config.resolve(cfg)
    assert cfg.model.decode_head.ignore_index == 3
    assert cfg.val_evaluator[0].get('ignore_index', 255) == 255


def test_a_border_that_is_a_class_stays():
    cfg = small(dataset=dict(ignore_index=9))
    cfg.model.data_preprocessor.seg_pad_val = 2
    config.resolve(cfg)
    assert cfg.model.data_preprocessor.seg_pad_val == 2


@pytest.mark.parametrize(
    'where, value, line',
    [
        ('model.decode_head.ignore_index', 255, r'model.decode_head.ignore_index is 255, but '
         r'train_dataloader.dataset.ignore_index is 3; set dataset.ignore_index alone'),
        ('val_evaluator.0.ignore_index', 4, r'val_evaluator.0.ignore_index is 4, but val_data'),
        ('dataset.ignore_index', 256, r'ignore_index is 256; it must be a label, an integer from'),
        ('dataset.ignore_index', True, r'ignore_index is True'),
        ('dataset.reduce_zero_label', True, r'reduce_zero_label makes label 0 to 255'),
        ('train_dataloader.dataset.pipeline.0.ignore_index', 5, r'pipeline.0.ignore_index is 5'),
    ],
)  # fmt: skip
def test_what_disagrees_is_refused(where, value, line):
    cfg = small(dataset=dict(ignore_index=3))
    cfg.merge_from_dict({where: value})
    with pytest.raises(UserError, match=line):
        config.resolve(cfg)


def test_data_sets_of_one_loader_must_agree():
    cfg = small()
    one, two = (dict(type='vpt_dense.SegFolder', ignore_index=i) for i in (3, 4))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, two])
    with pytest.raises(UserError, match=r'datasets.1.ignore_index is 4, but .*datasets.0.* is 3'):
        config.resolve(cfg)
    cfg.train_dataloader.dataset.datasets[1].pop('ignore_index')
    with pytest.raises(UserError, match=r'datasets.1.ignore_index is 255, but'):
        config.resolve(cfg)


# --- checks and drawing ----------------------------------------------------------------------


def load_with(tmp_path, void):
    root = make(tmp_path / 'data', void, 4)
    extra = EXTRA.format(root=root, more='ignore_index=11,', crop='RandomCrop', losses='_ce')
    return write_leaf(tmp_path, root, extra)


def test_the_check_counts_it(tmp_path):
    in_scope('mmseg')
    split = checks.check_config(config.load(str(load_with(tmp_path, 11))))['splits']['train']
    assert not split['problems'] and split['labels'] == [0, 10]
    assert 0.2 < split['ignored_share'] < 0.5


def test_the_check_does_not_ignore_255_then(tmp_path):
    in_scope('mmseg')
    split = checks.check_config(config.load(str(load_with(tmp_path, 255))))['splits']['train']
    assert split['problems'] and r'(255)' in split['problems'][0]


def test_a_run_names_the_mask(capfd, tmp_path):
    outcome = run_tool(capfd, 'train', load_with(tmp_path, 255))
    assert outcome.code == 2
    assert 'label id 255, but there are 11 classes (ids 0 to 10; 11 is ignored)' in outcome.err


def test_classes_that_count_from_one_are_told_apart(capfd, tmp_path):
    root = make(tmp_path / 'data', 11, 0)
    extra = EXTRA.format(root=root, more='ignore_index=0,', crop='RandomCrop', losses='_ce')
    outcome = run_tool(capfd, 'train', write_leaf(tmp_path, root, extra))
    assert outcome.code == 2 and 'say dataset.reduce_zero_label=True in place of' in outcome.err


@pytest.mark.parametrize('void', [0, 11])
def test_it_is_drawn_as_ignored(void):
    """And not in the colour of a class; as 255 is where that is ignored."""
    from mmengine.registry import VISUALIZERS
    from mmseg.structures import SegDataSample

    in_scope('mmseg')
    mask = torch.tensor([[[1, void], [void, 1]]]).repeat_interleave(100, 1)
    cfg = small(dataset=dict(ignore_index=void, classes=['a', 'b']),
                visualizer=dict(type='SegLocalVisualizer'))  # fmt: skip
    config.resolve(cfg)
    pictures = []
    for visualizer, labels in (
        (dict(cfg.visualizer), mask),
        (ours(dict(type='SegLocalVisualizer')), mask.masked_fill(mask == void, 255)),
    ):
        drawn = VISUALIZERS.build(dict(visualizer, alpha=1.0, name=f'{void} {len(pictures)}'))
        drawn.dataset_meta = dict(classes=['a', 'b'], palette=[[9, 9, 9], [200, 0, 0]])
        sample = SegDataSample(gt_sem_seg=PixelData(data=labels.clone()))
        picture = np.full((200, 2, 3), 50, np.uint8)
        drawn.add_datasample('x', picture, sample)
        pictures.append(drawn.get_image())
        assert torch.equal(sample.gt_sem_seg.data, labels)
    assert np.array_equal(*pictures)
    colours = np.unique(pictures[0].reshape(-1, 3), axis=0).tolist()
    assert [200, 0, 0] in colours and [200, 200, 200] in colours and [9, 9, 9] not in colours
