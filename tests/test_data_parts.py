"""Which images a data set takes: lists of names, parts side by side, what is said closest wins."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import DATASETS
from tool_helpers import run_tool, write_leaf
from utils import CONFIGS, in_scope, make_ade_folder

from vpt_dense import config, preflight, tree
from vpt_dense.datasets import checks
from vpt_dense.errors import UserError
from vpt_dense.hooks import report_hook

SEGFOLDER = CONFIGS / 'vpt/setr_vit-l_deep_segfolder.py'
IMAGEFOLDER = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
ADE = CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py'


def write(folder: Path, base: Path, text: str, name: str = 'leaf.py') -> str:
    (folder / name).write_text(f"_base_ = '{base}'\n{text}")
    return str(folder / name)


def image_folder(root: Path, **splits: dict[str, list[str]]) -> Path:
    """root/SPLIT/CLASS/NAME for every name."""
    for split, classes in splits.items():
        for name, files in classes.items():
            (root / split / name).mkdir(parents=True)
            for file in files:
                (root / split / name / file).parent.mkdir(exist_ok=True)
                cv2.imwrite(str(root / split / name / file), np.zeros((8, 8, 3), np.uint8))
    return root


def build(cfg: Config, split: str = 'train'):
    in_scope(cfg.default_scope)
    return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def roots(cfg: Config) -> dict[str, list]:
    return {name: [leaf.get('data_root') for leaf in tree.leaf_datasets(cfg.get(name))]
            for name in tree.DATALOADERS}  # fmt: skip


# --- lists of names --------------------------------------------------------------------------


@pytest.fixture
def voc(tmp_path):
    """A folder as VOC's: all images in one folder, lists of names without suffix."""
    for kind, suffix in (('JPEGImages', 'jpg'), ('SegmentationClass', 'png')):
        for name in ('a', 'b', 'c', 'sub/d'):
            path = tmp_path / 'voc' / kind / f'{name}.{suffix}'
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.zeros((64, 64), np.uint8))
    (tmp_path / 'voc/train.txt').write_text('sub/d\n\n  a \r\nb.jpg\n')
    (tmp_path / 'voc/val.txt').write_text('c\n')
    return tmp_path / 'voc'


VOC = """
dataset = dict(
    data_root='{root}', classes=['x', 'y'],
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'))
train_dataloader = dict(dataset=dict(ann_file='train.txt'))
val_dataloader = dict(dataset=dict(ann_file='val.txt'))
test_dataloader = dict(dataset=dict(ann_file='val.txt'))
"""


def test_only_listed_images_are_read(voc, capfd):
    path = write(voc, SEGFOLDER, VOC.format(root=voc))
    cfg = config.load(path)
    train, val = build(cfg), build(cfg, 'val')
    names = [Path(train.get_data_info(i)['img_path']).stem for i in range(len(train))]
    assert names == ['d', 'a', 'b'] and len(val) == 1
    assert train.get_data_info(0)['seg_map_path'].endswith('SegmentationClass/sub/d.png')
    # All tools see the same.
    splits = checks.check_config(cfg)['splits']
    assert {name: split['images'] for name, split in splits.items()} == {'train': 3, 'val': 1}
    assert not splits['val']['masks_without_image'] and not splits['train']['problems']
    for split in ('train', 'val', 'test'):
        for leaf in tree.leaf_datasets(cfg[f'{split}_dataloader']):
            preflight.check_dataset(leaf, split)
    outcome = run_tool(capfd, 'browse_dataset', path, '--split', 'train', '--out-dir', voc / 'out')
    assert outcome.code == 0, outcome.err
    pictures = sorted(str(path.relative_to(voc / 'out')) for path in voc.glob('out/**/*.png'))
    assert '3 of 3 images' in outcome.out
    assert pictures == ['0001_a.png', '0002_b.png', 'sub/0000_d.png']
    assert f'JPEGImages, listed in {voc}/train.txt, 3 images' in report_hook._describe_data(train)


def test_a_mask_that_a_listed_image_lacks(voc):
    (voc / 'SegmentationClass/a.png').unlink()
    cfg = config.load(write(voc, SEGFOLDER, VOC.format(root=voc)))
    assert len(build(cfg, 'val')) == 1  # it is not in this list
    with pytest.raises(UserError, match='1 of 3 images have no mask .*a.jpg'):
        build(cfg)


WRONG_LISTS = [
    ('absent', None, r'ann_file .*list.txt: no such file'),
    ('folder', ..., r'ann_file .*list.txt: is a folder'),
    ('empty', b'\n \n', r'list.txt lists no image'),
    ('doubled', b'{0}\n{1}\n{0}\n', r"list.txt has '.*' twice \(lines 1 and 3\)"),
    ('doubled-suffix', b'{0}\n{0}.jpg', r"list.txt has .*\.jpg twice: '.*' and '.*\.jpg'"),
    ('unknown', b'{0}\nzebra\nlion', r"list.txt: 2 of 3 names are no image in .*, e.g. 'zebra' "
     r'\(line 2\); each split may have its own: train_dataloader.dataset.ann_file'),
    ('binary', b'\xff\xfe\x00', r'list.txt is no text of UTF-8'),
]  # fmt: skip


@pytest.mark.parametrize('content, line', [w[1:] for w in WRONG_LISTS],
                         ids=[w[0] for w in WRONG_LISTS])
@pytest.mark.parametrize('task', ['segmentation', 'mmseg', 'classification'])
def test_wrong_lists_are_one_line(tmp_path, task, content, line):
    names = ('rose/a', 'rose/b') if task == 'classification' else ('000', '001')
    root = tmp_path / 'data'
    if task == 'classification':
        image_folder(root, train={'rose': ['a.jpg', 'b.jpg']}, val={'rose': ['a.jpg']})
        text, base = f"dataset = dict(data_root='{root}')", IMAGEFOLDER
    else:
        make_ade_folder(root, num_classes=2)
        text, base = f"dataset = dict(data_root='{root}', classes=['a', 'b', 'c'])", SEGFOLDER
        if task == 'mmseg':
            text += "\ndataset['type'] = 'BaseSegDataset'"
    if content is ...:
        (root / 'list.txt').mkdir()
    elif content is not None:
        for i, name in enumerate(names):
            content = content.replace(f'{{{i}}}'.encode(), name.encode())
        (root / 'list.txt').write_bytes(content)
    text += "\ntrain_dataloader = dict(dataset=dict(ann_file='list.txt'))"
    cfg = config.load(write(tmp_path, base, text))
    if task == 'mmseg' and 'jpg' in line:  # its names are without suffix
        line = '1 of 2 names are no image'
    with pytest.raises(UserError, match=line) as error:
        preflight.check_dataset(cfg.train_dataloader.dataset, 'train')
    assert '\n' not in str(error.value)
    if task != 'mmseg':
        with pytest.raises(UserError, match=line):
            build(cfg)
    preflight.check_dataset(cfg.val_dataloader.dataset, 'val')  # has no list


def test_lists_of_an_image_folder(tmp_path):
    root = image_folder(
        tmp_path / 'flowers', train={'iris': ['a.jpg', 'a.png', 'b c 7.jpg'], 'rose': ['s/a.jpg']},
        val={'rose': ['a.jpg']},
    )  # fmt: skip
    text = (f"dataset = dict(data_root='{root}')\n"
            "train_dataloader = dict(dataset=dict(ann_file='some.txt'))")
    cfg = config.load(write(tmp_path, IMAGEFOLDER, text))

    def read(lines):
        (root / 'some.txt').write_text(lines)
        dataset = build(cfg)
        infos = map(dataset.get_data_info, range(len(dataset)))
        return [(info['img_path'].partition('train/')[2], info['gt_label']) for info in infos]

    assert read('rose/s/a 1\niris/b c 7\niris/a.png 0') == [
        ('rose/s/a.jpg', 1), ('iris/b c 7.jpg', 0), ('iris/a.png', 0)]
    with pytest.raises(UserError, match=r"'iris/a' \(line 1\) may be iris/a.jpg or iris/a.png"):
        read('iris/a')
    with pytest.raises(UserError, match=r'label 0 of rose/s/a.jpg \(line 1\) is not that of its'):
        read('rose/s/a 0')
    assert len(build(cfg, 'val')) == 1
    read('rose/s/a')
    train = checks.check_config(cfg)['splits']['train']
    assert train['images'] == 1 and train['problems'] == ['1 classes without an image: iris']


def test_one_list_for_all_splits(voc):
    text = VOC.partition('train_dataloader')[0] + "dataset['ann_file'] = 'train.txt'"
    with pytest.raises(UserError, match=r'dataset.ann_file is one list for all splits, and val_da'):
        config.load(write(voc, SEGFOLDER, text.format(root=voc)))
    # Where the splits are folders of their own, the list says whose it is.
    root = make_ade_folder(voc / 'ade', num_classes=2)
    (root / 'train.txt').write_text('000\n')
    text = f"dataset = dict(data_root='{root}', classes=['a'], ann_file='train.txt')"
    cfg = config.load(write(voc, SEGFOLDER, text))
    assert len(build(cfg)) == len(build(cfg, 'val')) == 1


# --- parts -----------------------------------------------------------------------------------


@pytest.fixture
def ade(tmp_path):
    """A: 3 images a split; B: 2."""
    for name, number in (('A', 3), ('B', 2)):
        make_ade_folder(tmp_path / name, num_classes=1, num_images=number)
    return tmp_path


PARTS = """
dataset = dict(data_root='{root}/A', classes=['x', 'y'])
_part = dict(
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    pipeline=_base_.train_pipeline)
_other = dict(_part, data_root='{root}/B')
train_dataloader = dict(dataset=dict(_delete_=True, {wrapper}))
"""
WRAPPERS = [
    ("type='ConcatDataset', datasets=[_part, _other]", 5, ['A', 'B']),
    ("type='RepeatDataset', times=2, dataset=_other", 4, ['B']),
    ("type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', "
     "datasets=[_other, dict(type='RepeatDataset', times=2, dataset=_part)])", 24, ['B', 'A']),
]  # fmt: skip


@pytest.mark.parametrize('wrapper, number, parts', WRAPPERS, ids=['concat', 'repeat', 'nested'])
def test_each_part_is_what_it_says(ade, wrapper, number, parts):
    path = write(ade, SEGFOLDER, PARTS.format(root=ade, wrapper=wrapper))
    cfg = config.load(path)
    assert [Path(root).name for root in roots(cfg)['train_dataloader']] == parts
    assert roots(cfg)['val_dataloader'] == [f'{ade}/A']
    dataset = build(cfg)
    assert len(dataset) == number
    assert dataset.metainfo['classes'] == ['x', 'y']
    told = report_hook._describe_data(dataset)
    for part in parts:
        assert f'{ade}/{part}/images/training, {dict(A=3, B=2)[part]} images' in told
    splits = checks.check_config(cfg)['splits']
    assert [splits[name]['images'] for name in splits] == [
        *(dict(A=3, B=2)[part] for part in parts), 3]


@pytest.mark.slow
def test_a_run_tells_every_part(ade, capfd):
    leaf = write_leaf(ade, ade / 'A', f"""
dataset = dict(_delete_=True, type='vpt_dense.SegFolder', data_root='{ade}/A', classes=['x', 'y'])
_prefix = dict(img_path='images/training', seg_map_path='annotations/training')
_crop = [dict(type='LoadImageFromFile'), dict(type='vpt_dense.LoadMask'),
         dict(type='RandomCrop', crop_size=(32, 32)), dict(type='PackSegInputs')]
train_dataloader['dataset'] = dict(_delete_=True, type='ConcatDataset', datasets=[
    dict(data_prefix=_prefix, pipeline=_crop),
    dict(data_root='{ade}/B', data_prefix=_prefix, pipeline=_crop)])
""")  # fmt: skip
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 0, outcome.err
    line = next(line for line in outcome.out.splitlines() if line.startswith('  train '))
    assert line.endswith(f'5 images: SegFolder, {ade}/A/images/training, 3 images + '
                         f'SegFolder, {ade}/B/images/training, 2 images')


def test_parts_of_a_classification_set(tmp_path):
    for name, files in (('A', ['1.png', '2.png', '3.png']), ('B', ['1.png', '2.png'])):
        image_folder(tmp_path / name, train={'rose': files, 'iris': []}, val={'rose': files})
    text = f"""
dataset = dict(data_root='{tmp_path}/A')
_a = dict(data_prefix='train', pipeline=_base_.train_pipeline)
_b = dict(_a, data_root='{tmp_path}/B')
train_dataloader = dict(dataset=dict(
    _delete_=True, type='ConcatDataset', datasets=[
        _a, dict(type='ClassBalancedDataset', oversample_thr=1e-3, dataset=_b)]))
test_dataloader = dict(dataset=dict(data_root='{tmp_path}/B'))
"""
    cfg = config.load(write(tmp_path, IMAGEFOLDER, text))
    assert len(build(cfg)) == 5 and len(build(cfg, 'val')) == 3 and len(build(cfg, 'test')) == 2
    assert cfg.model.head.num_classes == 2
    splits = checks.check_config(cfg)['splits']
    assert {name: split['images'] for name, split in splits.items()} == {
        'train': 3, 'train 2': 2, 'val': 3, 'test': 2}


def test_parts_must_have_the_same_classes(ade):
    wrapper = "type='ConcatDataset', datasets=[_part, dict(_other, classes=['y', 'x'])]"
    with pytest.raises(UserError, match=r"datasets.1.classes are \['y', 'x'\], .* two classes"):
        config.load(write(ade, SEGFOLDER, PARTS.format(root=ade, wrapper=wrapper)))


def test_a_wrapper_merged_into_a_data_set(ade):
    text = PARTS.format(root=ade, wrapper=WRAPPERS[1][0]).replace('_delete_=True, ', '')
    with pytest.raises(UserError, match='RepeatDataset takes no data_root.*_delete_=True'):
        config.load(write(ade, SEGFOLDER, text))


# --- what is said closest --------------------------------------------------------------------


def test_what_a_loader_says_wins(tmp_path):
    text = """
dataset = dict(data_root='mine', classes=['x', 'y'])
test_dataloader = dict(dataset=dict(
    data_root='{}', type='BaseSegDataset', metainfo=dict(classes=['u', 'v'])))
"""
    default = Config.fromfile(SEGFOLDER).dataset.data_root
    for other in ('other', default):  # also where it is what the base says
        cfg = config.load(write(tmp_path, SEGFOLDER, text.format(other)))
        assert roots(cfg) == dict(
            train_dataloader=['mine'], val_dataloader=['mine'], test_dataloader=[other])
        assert cfg.val_dataloader.dataset.type == 'vpt_dense.SegFolder'
        test = cfg.test_dataloader.dataset
        assert (test.type, test.metainfo.classes) == ('BaseSegDataset', ['u', 'v'])
        assert cfg.model.decode_head.num_classes == 2


@pytest.mark.parametrize('key, value', [('data_root', 'other'), ('type', 'BaseSegDataset'),
                                        ('reduce_zero_label', True)])
def test_an_option_of_a_loader_wins(key, value):
    cfg = config.load(str(SEGFOLDER), {
        'dataset.classes': ['a', 'b'], f'train_dataloader.dataset.{key}': value})  # fmt: skip
    assert cfg.train_dataloader.dataset[key] == value
    assert cfg.val_dataloader.dataset.get(key) != value


def test_classes_of_the_training_set_alone_reach_the_heads():
    cfg = config.load(str(SEGFOLDER), {'train_dataloader.dataset.classes': ['a', 'b', 'c']})
    assert cfg.train_dataloader.dataset.metainfo.classes == ['a', 'b', 'c']
    assert {head.num_classes for head in config.heads(cfg.model)} == {3}
    assert cfg.val_dataloader.dataset.metainfo.classes == ['a', 'b', 'c']


def test_copies_in_a_base_follow(tmp_path):
    """Through a leaf of a leaf, by an option, and in what a run has written."""
    write(tmp_path, SEGFOLDER, "dataset = dict(data_root='one', classes=['x', 'y'])", 'one.py')
    path = write(tmp_path, 'one.py', "dataset = dict(data_root='two')", 'two.py')
    cfg = config.load(path)
    assert {root for (root,) in roots(cfg).values()} == {'two'}
    finished = tmp_path / 'finished.py'
    for key in ('val_dataloader.dataset.data_root', 'dataset.palette'):
        value = 'val' if 'root' in key else [[0, 0, 0], [1, 1, 1]]
        cfg = config.load(path, {'dataset.data_root': 'three', key: value})
        assert roots(cfg)['train_dataloader'] == ['three']
        cfg.dump(finished)
        assert config.load(str(finished)).to_dict() == cfg.to_dict()
    cfg = config.load(path, {'val_dataloader.dataset.data_root': 'val'})
    cfg.dump(finished)
    cfg = config.load(str(finished), {'dataset.data_root': 'four'})
    assert roots(cfg) == dict(
        train_dataloader=['four'], val_dataloader=['val'], test_dataloader=['four'])


def test_what_a_base_says_for_each_split_follows_too():
    prefix = dict(img_path='a', seg_map_path='b')
    cfg = config.load(str(ADE), {'dataset.data_prefix': prefix})
    assert [leaf.data_prefix for name in tree.DATALOADERS
            for leaf in tree.leaf_datasets(cfg[name])] == [prefix] * 3


def test_what_would_change_nothing_is_refused(tmp_path):
    own = ''.join(f"{name} = dict(dataset=dict(data_root='{name[0]}'))\n"
                  for name in tree.DATALOADERS)
    path = write(tmp_path, SEGFOLDER, own)
    assert roots(config.load(path))['test_dataloader'] == ['t']  # the base's is out of use
    with pytest.raises(UserError, match=r"dataset.data_root changes nothing.*is 't'\); set it the"):
        config.load(path, {'dataset.data_root': 'x'})
    with pytest.raises(UserError, match='dataset.data_root changes nothing'):
        config.load(write(tmp_path, SEGFOLDER, own + "dataset = dict(data_root='x')"))


@pytest.mark.parametrize('deletes', ['', '_delete_=True, '])
def test_the_colours_of_a_base_go_with_its_classes(tmp_path, deletes):
    """Of a base whose dataloaders hold both, as those of a BaseSegDataset do."""
    said = f"dataset = dict({deletes}type='vpt_dense.SegFolder', data_root='x', classes=['a', 'b']"
    base = str(CONFIGS / 'demo/setr_deep_digits.py')
    weights = "\nmodel = dict(decode_head=dict(loss_decode=dict(class_weight=[1.0, 2.0])))"
    for palette in (None, [[1, 2, 3], [4, 5, 6]]):
        text = said + (f', palette={palette})' if palette else ')') + weights
        cfg = config.load(write(tmp_path, base, text))
        for name in tree.DATALOADERS:
            (dataset,) = tree.leaf_datasets(cfg[name])
            assert dataset.metainfo.classes == ['a', 'b']
            assert dataset.metainfo.get('palette') == palette


def test_parts_are_not_made_equal(tmp_path):
    part = ("dict(type='vpt_dense.SegFolder', data_root='{}', data_prefix=dict(img_path='i'),"
            " pipeline=[])")
    parts = f"[{part.format('A')}, {part.format('B')}]"
    write(tmp_path, SEGFOLDER, "dataset = dict(_delete_=True, classes=['x', 'y'])\n"
          "train_dataloader = dict(dataset=dict("
          f"_delete_=True, type='ConcatDataset', datasets={parts}))", 'parts.py')  # fmt: skip
    path = write(tmp_path, 'parts.py', "dataset = dict(data_root='C')")
    with pytest.raises(UserError, match=r'dataset.data_root is said for all, but the parts of'):
        config.load(path)
