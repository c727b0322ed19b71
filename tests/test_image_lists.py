"""Data sets of lists, VTAB-1k and FGVC; what is missing of them; lists of few images."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine import DATASETS
from PIL import Image
from tool_helpers import run_tool
from utils import CONFIGS, in_scope, make_ade_folder

from vpt_dense import config, registry  # noqa: F401  registers
from vpt_dense.comparison import runs
from vpt_dense.datasets import collections, convert, few_images, list_files
from vpt_dense.datasets.checks import read_mask
from vpt_dense.errors import UserError

VTAB_RECIPE = str(CONFIGS / 'vpt/vit-b_vtab.py')
#: A ViT that trains in a second.
TINY = ["model.backbone.arch={'embed_dims': 32, 'num_layers': 1, 'num_heads': 2, "
        "'feedforward_channels': 32}", 'model.head.in_channels=32', 'model.backbone.init_cfg=None',
         'img_size=32', 'batch_size=4', 'epochs=1', 'warmup=0',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'test_dataloader.num_workers=0']  # fmt: skip


def picture(path: Path, value: int = 0, size=(10, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value % 256, np.uint8))


def make_vtab(root: Path, classes: int = 4) -> Path:
    """A task of 8 + 4 training images and 12 for the test."""
    parts = dict(train800=range(8), val200=range(8, 12), test=range(12, 24))
    lines = {}
    for split, numbers in parts.items():
        for i in numbers:
            picture(root / f'images/{i}.png', i)
        lines[split] = ''.join(f'images/{i}.png {i % classes}\n' for i in numbers)
    lines['train800val200'] = lines['train800'] + lines['val200']
    for split, text in lines.items():
        (root / f'{split}.txt').write_text(text)
    return root


def build(**settings):
    in_scope('mmpretrain')
    return DATASETS.build(dict(settings, pipeline=[]))


def samples(dataset):
    dataset.full_init()
    found = [dataset.get_data_info(i) for i in range(len(dataset))]
    return [(Path(each['img_path']).name, each['gt_label']) for each in found]


# --- the data sets ---------------------------------------------------------------------------


def test_a_task_of_vtab(tmp_path):
    root = make_vtab(tmp_path / 'kitti')
    data = build(type='vpt_dense.VTAB', data_root=str(root), split='val200')
    assert samples(data) == [('8.png', 0), ('9.png', 1), ('10.png', 2), ('11.png', 3)]
    assert list(data.metainfo['classes']) == ['0', '1', '2', '3']
    assert len(build(type='vpt_dense.VTAB', data_root=str(root))) == 12
    assert len(build(type='vpt_dense.VTAB', data_root=str(root),
                     ann_file=['val200.txt', 'test.txt'])) == 16
    with pytest.raises(UserError, match='dataset.split'):
        build(type='vpt_dense.VTAB', data_root=str(root), split='train')
    other = make_vtab(tmp_path / 'kity')
    with pytest.raises(UserError, match='kity is none of the 19 tasks.*kitti'):
        build(type='vpt_dense.VTAB', data_root=str(other))
    (other / 'classes.txt').write_text('near\nfar\nvery far\nnone\n')
    assert build(type='vpt_dense.VTAB', data_root=str(other)).metainfo['classes'][2] == 'very far'


def test_vtab_has_the_paper_s_tasks():
    # Sums of https://arxiv.org/abs/2203.12119, table 8: 7 + 4 + 8 tasks.
    groups = [task.group for task in list_files.VTAB_TASKS.values()]
    assert [groups.count(g) for g in ('Natural', 'Specialized', 'Structured')] == [7, 4, 8]


def test_a_fine_grained_set(tmp_path):
    content = dict(train={'b/1.jpg': 7, 'a/2.jpg': 12, 'a/3.jpg': 100}, val={'b/4.jpg': 12},
                   test={'b/5.jpg': 7})  # fmt: skip
    for split, part in content.items():
        (tmp_path / f'{split}.json').write_text(json.dumps(part))
        for path in part:
            picture(tmp_path / 'images' / path)
    data = build(type='vpt_dense.FGVC', data_root=str(tmp_path), split='trainval')
    assert samples(data) == [('1.jpg', 0), ('2.jpg', 1), ('3.jpg', 2), ('4.jpg', 1)]
    assert list(data.metainfo['classes']) == ['7', '12', '100']  # by value, not by letter
    assert samples(build(type='vpt_dense.FGVC', data_root=str(tmp_path), split='test')) == [
        ('5.jpg', 0)]


def test_lists_of_other_systems(tmp_path):
    picture(tmp_path / 'ä b/1.png'), picture(tmp_path / '2.png')
    (tmp_path / 'l.txt').write_bytes('\ufeffä b\\1.png\t1\r\n\r\n2.png   0\r\n'.encode())
    (tmp_path / 'l.json').write_text(json.dumps({'ä b\\1.png': 1, '2.png': 0}))
    for name in ('l.txt', 'l.json'):
        assert samples(build(type='vpt_dense.ImageList', data_root=str(tmp_path), ann_file=name,
                             num_classes=2)) == [('1.png', 1), ('2.png', 0)]


def write(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)


BROKEN = {
    'absent': (None, 'no list .*l.txt'),
    'empty': ('\n', 'l.txt is empty'),
    'no label': ('a.png\n', "line 1: PATH LABEL was expected, found 'a.png'"),
    'text label': ('a.png 0\nb.png one\n', 'line 2: PATH LABEL was expected'),
    'label beyond': ('a.png 0\n\nb.png 2\n', 'line 3: label 2, but there are 2 classes'),
    'twice': ('a.png 0\na.png 1\n', "line 2: 'a.png' is there twice"),
    'no image': ('a.png 0\nno.png 1\nnope.png 1\n', '2 of 3 images are not there, e.g. .*no.png'),
    'no text': (b'\xff\xfe\x00', 'no text of UTF-8'),
    'negative label': ('a.png -1\n', "line 1: PATH LABEL was expected, found 'a.png -1'"),
    'twice, told apart': ('a.png 0\n./a.png 1\n', "'a.png' and './a.png' are one image"),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_broken_list_is_told(tmp_path, name):
    content, message = BROKEN[name]
    picture(tmp_path / 'a.png'), picture(tmp_path / 'b.png')
    if content is not None:
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / 'l.txt').write_bytes(content)
    with pytest.raises(UserError, match=message):
        samples(build(type='vpt_dense.ImageList', data_root=str(tmp_path), ann_file='l.txt',
                      num_classes=2))


@pytest.mark.parametrize(('content', 'message'), [
    ('{', 'is no JSON'), ('{}', 'at least one image'), ('["a.png"]', 'at least one image'),
    ('{"a.png": 0, "a.png": 1}', "has 'a.png' twice"), ('{"a.png": [1]}', 'at least one image'),
])
def test_a_broken_json_is_told(tmp_path, content, message):
    picture(tmp_path / 'a.png')
    write(tmp_path, 'train.json', content)
    with pytest.raises(UserError, match=message):
        samples(build(type='vpt_dense.FGVC', data_root=str(tmp_path)))


def test_classes_must_be_said(tmp_path):
    picture(tmp_path / 'a b.png')
    write(tmp_path, 'l.txt', 'a b.png 1\n')  # with a blank in its name
    settings = dict(type='vpt_dense.ImageList', data_root=str(tmp_path), ann_file='l.txt')
    with pytest.raises(UserError, match='nothing says the classes'):
        build(**settings)
    assert samples(build(**settings, metainfo=dict(classes=['x', 'y']))) == [('a b.png', 1)]
    with pytest.raises(UserError, match='num_classes is 3, but dataset.classes has 2'):
        build(**settings, metainfo=dict(classes=['x', 'y']), num_classes=3)
    with pytest.raises(UserError, match="dataset.classes has the class 'x' twice"):
        build(**settings, metainfo=dict(classes=['x', 'y', 'x']))
    write(tmp_path, 'classes.txt', 'x\ny\n')
    with pytest.raises(UserError, match='num_classes is 3, but .*classes.txt has 2 names'):
        build(**settings, num_classes=3)
    (tmp_path / 'classes.txt').unlink()
    write(tmp_path, 'train.json', '{"a b.png": 1, "c.png": "1"}')
    assert list_files.class_names(tmp_path) == ['1']
    with pytest.raises(UserError, match='dataset.ann_file: a ImageList needs a list'):
        list_files.lists_of(dict(type='ImageList'))
    (tmp_path / 'train.json').unlink()
    write(tmp_path, 'other.json', '{"a b.png": "z"}')
    with pytest.raises(UserError, match="is of class 'z', which is none of the 2 classes"):
        samples(build(**{**settings, 'ann_file': 'other.json'}, num_classes=2))
    write(tmp_path, 'again.txt', 'a b.png 0\n')
    with pytest.raises(UserError, match='is in both'):
        samples(build(**{**settings, 'ann_file': ['l.txt', 'again.txt']}, num_classes=2))


# --- in a config and a run -------------------------------------------------------------------


def test_the_head_has_the_task_s_classes(tmp_path):
    root = make_vtab(tmp_path / 'dmlab')
    cfg = config.load(VTAB_RECIPE, [f'dataset.data_root={root}'], 'deep')
    assert cfg.model.head.num_classes == 6
    places = {str(path) for path in runs._data_places(cfg)}
    assert str(root) in places  # so that other images make another run of it


def test_other_lists_make_another_run(tmp_path):
    for split in ('train', 'val', 'test'):
        picture(tmp_path / f'images/{split}.png')
        write(tmp_path, f'{split}.json', json.dumps({f'{split}.png': 0}))
    cfg = config.load(str(CONFIGS / 'vpt/vit-b_fgvc.py'), [
        f'dataset.data_root={tmp_path}', 'dataset.data_prefix=images'], 'deep')
    places = {path.name for path in runs._data_places(cfg)}
    assert places >= {'images', 'train.json', 'val.json', 'test.json', 'classes.txt'}


@pytest.mark.parametrize(('recipe', 'split', 'message'), [
    ('vtab', 'train800val200', r'val_dataloader.dataset.split is val200.*training reads val200'),
    ('vtab', 'test', 'test_dataloader.dataset.split is test'),
    ('fgvc', 'trainval', 'val_dataloader.dataset.split is val'),
])
def test_what_trains_is_no_validation(tmp_path, recipe, split, message):
    path = str(CONFIGS / f'vpt/vit-b_{recipe}.py')
    root = make_vtab(tmp_path / 'kitti')
    options = [f'dataset.data_root={root}', f'train_dataloader.dataset.split={split}']
    with pytest.raises(UserError, match=message):
        config.load(path, options, 'deep')


def test_a_run_on_both_parts(capfd, tmp_path):
    root = make_vtab(tmp_path / 'a folder' / 'kitti')
    out = tmp_path / 'run'
    outcome = run_tool(
        capfd, 'train', VTAB_RECIPE, '--method', 'linear', '--work-dir', str(out),
        '--cfg-options', f'dataset.data_root={root}', *TINY,
        'train_dataloader.dataset.split=train800val200', 'val_dataloader=None', 'val_cfg=None',
        'val_evaluator=None', 'default_hooks.checkpoint.save_best=None')
    assert outcome.code == 0, outcome.err
    assert '[3/3]' in outcome.out + outcome.err  # 12 images in batches of 4
    outcome = run_tool(capfd, 'test', VTAB_RECIPE, str(out), '--method', 'linear',
                       '--cfg-options', f'dataset.data_root={root}', *TINY)
    assert outcome.code == 0 and 'top1' in outcome.out + outcome.err, outcome.err


def test_a_missing_image_is_told_before_the_run(capfd, tmp_path):
    root = make_vtab(tmp_path / 'kitti')
    (root / 'images/9.png').unlink()
    outcome = run_tool(capfd, 'train', VTAB_RECIPE, '--method', 'linear', '--work-dir',
                       str(tmp_path / 'run'), '--cfg-options', f'dataset.data_root={root}', *TINY)
    assert outcome.code == 2 and 'val200.txt: 1 of 4 images are not there' in outcome.err
    assert not (tmp_path / 'run').exists()


# --- what is missing -------------------------------------------------------------------------


def test_copies_of_both_parts_are_no_fault(tmp_path, monkeypatch):
    """A shared set may hold the images of each list in a folder of its own."""
    monkeypatch.setitem(list_files.VTAB_TASKS, 'kitti', list_files.VTABTask('Structured', 4, 12))
    root = make_vtab(tmp_path / 'kitti')
    lines = (root / 'train800val200.txt').read_text().splitlines()
    for line in lines:
        picture(root / 'both' / line.split()[0])
    write(root, 'train800val200.txt', ''.join(f'both/{line}\n' for line in lines))

    def together():
        return [line for each in collections.check('vtab-1k', tmp_path)
                for line in each['problems'] if 'together' in line]

    assert together() == []
    write(root, 'train800val200.txt', ''.join(f'both/{line}\n' for line in lines[1:]))
    assert len(together()) == 1


def test_classes_of_a_fine_grained_set_are_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(list_files.FGVC_SETS, 'nabirds', list_files.FGVCSet(4, 18, 3, 4))
    root = make_birds(tmp_path / 'nabirds')
    convert.fine_grained(root)
    # NABirds and CUB come with a file of that name, whose lines are something else.
    write(root, 'classes.txt', '0 Birds\n817 Owls\n')
    found, = (each for each in collections.check('fgvc', tmp_path) if each['name'] == 'nabirds')
    assert found['classes'] == (3, 4) and found['problems'] == ['3 classes, 4 expected']
    data = build(type='vpt_dense.FGVC', data_root=str(root))
    assert list(data.metainfo['classes']) == ['817', '818', '819']


def test_vtab_is_looked_through(capfd, tmp_path, monkeypatch):
    task = list_files.VTABTask('Structured', 4, 12)
    monkeypatch.setitem(list_files.VTAB_TASKS, 'kitti', task)
    make_vtab(tmp_path / 'kitti')
    other = make_vtab(tmp_path / 'dmlab')
    (other / 'test.txt').unlink()
    write(other, 'val200.txt', 'images/8.png 0\nimages/0.png 0\n')
    found = {each['name']: each for each in collections.check('vtab-1k', tmp_path)}
    assert len(found) == 19 and found['cifar']['problems'] == [f'no folder {tmp_path}/cifar']
    assert found['kitti']['classes'] == (4, 4)
    assert found['kitti']['images'] == dict(
        train800=(8, 800), val200=(4, 200), train800val200=(12, 1000), test=(12, 12))
    assert len(found['kitti']['problems']) == 3  # three lists are too short
    told = '\n'.join(found['dmlab']['problems'])
    for part in ('no test.txt', 'train800.txt and val200.txt share 1 images, e.g. ',
                 'train800val200.txt is not train800.txt and val200.txt together',
                 '4 classes have an image in the lists, 6 expected'):
        assert part in told, told
    outcome = run_tool(capfd, 'data', 'check', 'vtab-1k', '--root', str(tmp_path))
    assert outcome.code == 1 and '0 of 19 are whole' in outcome.out
    assert re.search('kitti .*4 .*8 of 800', outcome.out), outcome.out
    outcome = run_tool(capfd, 'data', 'check', 'fgvc', '--root', str(tmp_path / 'no'))
    assert outcome.code == 2 and 'no folder' in outcome.err


# --- lists of our own ------------------------------------------------------------------------


def make_birds(root: Path, images: int = 25) -> Path:
    """NABirds' files; classes are numbers with gaps, images have names of letters."""
    lines = dict(images=[], image_class_labels=[], train_test_split=[])
    for i in range(images):
        name = f'{817 + i % 3:04}/id-{i}.jpg'
        picture(root / 'images' / name, i)
        lines['images'].append(f'id-{i} {name}')
        lines['image_class_labels'].append(f'id-{i} {817 + i % 3}')
        lines['train_test_split'].append(f'id-{i} {int(i < 21)}')
    for name, content in lines.items():
        write(root, f'{name}.txt', '\n'.join(content) + '\n')
    return root


def test_lists_of_birds(capfd, tmp_path):
    root = make_birds(tmp_path / 'nabirds')
    outcome = run_tool(capfd, 'data', 'lists', str(root))
    assert outcome.code == 0, outcome.err
    parts = {name: json.loads((root / f'{name}.json').read_text())
             for name in ('train', 'val', 'test')}
    assert {name: len(part) for name, part in parts.items()} == dict(train=18, val=3, test=4)
    assert len({path for part in parts.values() for path in part}) == 25
    assert json.loads((root / 'split.json').read_text())['seed'] == 0
    data = build(type='vpt_dense.FGVC', data_root=str(root))
    assert len(data) == 18 and list(data.metainfo['classes']) == ['817', '818', '819']
    again = make_birds(tmp_path / 'again')
    convert.fine_grained(again)
    assert json.loads((again / 'val.json').read_text()) == parts['val']
    outcome = run_tool(capfd, 'data', 'lists', str(root))
    assert outcome.code == 2 and 'train.json is there already' in outcome.err
    with pytest.raises(UserError, match='is no fine-grained set that is known'):
        convert.fine_grained(tmp_path)


@pytest.mark.parametrize(('name', 'old', 'new', 'message'), [
    ('images', ' ', '\t', 'images.txt, .* are not as their authors have them'),
    ('image_class_labels', '817', 'x', "authors have them .*'x'"),
    ('images', '818/id-1.', '817/id-0.', r'0817/id-0.jpg is in its lists 2 times'),
])
def test_broken_files_of_birds(tmp_path, name, old, new, message):
    root = make_birds(tmp_path)
    file = root / f'{name}.txt'
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        convert.fine_grained(root)
    assert not list(root.glob('*.json'))


def test_a_broken_file_of_matlab(tmp_path):
    for name in ('train_list.mat', 'test_list.mat'):
        write(tmp_path, name, 'x')
    with pytest.raises(UserError, match='train_list.mat, test_list.mat are not as their authors'):
        convert.fine_grained(tmp_path)


def test_a_picture_that_png_cannot_hold(tmp_path):
    name = convert._write(Image.new('CMYK', (3, 2), (0, 255, 255, 0)), tmp_path / '1')
    assert cv2.imread(str(tmp_path / name))[0, 0].tolist() == [0, 0, 255]  # red; OpenCV has BGR


def test_the_held_out_tenth_is_the_paper_s_number(tmp_path, monkeypatch):
    # CUB: 5,994 training images of its authors become 5,394 and 600 in the paper (table 8).
    samples = [(f'{i}.jpg', 0) for i in range(5994)]
    monkeypatch.setattr(convert, '_birds', lambda root: dict(train=samples, test=samples[:1]))
    for name in ('images.txt', 'image_class_labels.txt', 'train_test_split.txt'):
        write(tmp_path, name, '')
    found = convert.fine_grained(tmp_path)
    cub = list_files.FGVC_SETS['CUB_200_2011']
    assert (found['train'], found['val']) == (cub.train, cub.val)


def test_lists_of_dogs(tmp_path):
    import scipy.io

    names = [f'n{i % 2}-dog/n{i}.jpg' for i in range(12)]
    for name in names:
        picture(tmp_path / 'Images' / name)
    for split, part in (('train', names[:10]), ('test', names[10:])):
        cells = np.array([[name] for name in part], dtype=object)
        labels = np.array([[float(name[1] == '1') + 1] for name in part])
        scipy.io.savemat(tmp_path / f'{split}_list.mat', dict(file_list=cells, labels=labels))
    assert convert.fine_grained(tmp_path, seed=3) == dict(train=9, val=1, test=2)
    data = build(type='vpt_dense.FGVC', data_root=str(tmp_path), split='test')
    assert samples(data) == [('n10.jpg', 0), ('n11.jpg', 1)]


def test_lists_of_flowers(tmp_path):
    import scipy.io

    for i in range(1, 7):
        picture(tmp_path / f'jpg/image_{i:05}.jpg')
    scipy.io.savemat(tmp_path / 'imagelabels.mat', dict(labels=[1, 2, 2, 1, 1, 2]))
    scipy.io.savemat(tmp_path / 'setid.mat', dict(trnid=[1, 3], valid=[2, 4], tstid=[5, 6]))
    assert convert.fine_grained(tmp_path) == dict(train=2, val=2, test=2)
    assert json.loads((tmp_path / 'split.json').read_text())['seed'] is None  # nothing was drawn
    for split, expected in (
            ('train', [('image_00001.jpg', 0), ('image_00003.jpg', 1)]),
            ('test', [('image_00005.jpg', 0), ('image_00006.jpg', 1)])):
        data = build(type='vpt_dense.FGVC', data_root=str(tmp_path), split=split)
        assert samples(data) == expected


def test_lists_of_cars(tmp_path):
    import scipy.io

    kind = [('relative_im_path', object), ('class', object), ('test', object)]
    annotations = np.array(
        [(f'car_ims/{i}.jpg', 1 + i % 2, int(i >= 10)) for i in range(12)], dtype=kind)
    for i in range(12):
        picture(tmp_path / f'car_ims/{i}.jpg')
    scipy.io.savemat(tmp_path / 'cars_annos.mat', dict(annotations=annotations))
    assert convert.fine_grained(tmp_path) == dict(train=9, val=1, test=2)
    data = build(type='vpt_dense.FGVC', data_root=str(tmp_path), split='test')
    assert samples(data) == [('10.jpg', 0), ('11.jpg', 1)]


def test_an_image_folder_in_vtab_s_layout(capfd, tmp_path):
    for split, number in (('train', 501), ('test', 5)):
        for name in ('rose', 'tulip'):
            for i in range(number):
                picture(tmp_path / 'flowers' / split / name / f'{i}.png', i, (2, 2))
    out = tmp_path / 'vtab' / 'own'
    outcome = run_tool(capfd, 'data', 'vtab', str(tmp_path / 'flowers'), str(out), '--seed', '4')
    assert outcome.code == 0 and 'drawn by this command' in outcome.out, outcome.err
    sizes = {split: len(build(type='vpt_dense.VTAB', data_root=str(out), split=split))
             for split in list_files.VTAB_SPLITS}
    assert sizes == dict(train800=800, val200=200, train800val200=1000, test=10)
    data = build(type='vpt_dense.VTAB', data_root=str(out), split='test')
    assert list(data.metainfo['classes']) == ['rose', 'tulip']
    assert [label for _, label in samples(data)] == [0] * 5 + [1] * 5
    outcome = run_tool(capfd, 'data', 'vtab', str(tmp_path / 'flowers'), str(out))
    assert outcome.code == 2 and 'is there already' in outcome.err
    with pytest.raises(UserError, match=r'1,000 training images are needed, found 10'):
        (tmp_path / 'few' / 'train').mkdir(parents=True)
        (tmp_path / 'few' / 'train' / 'a').symlink_to(tmp_path / 'flowers/test/rose')
        (tmp_path / 'few' / 'train' / 'b').symlink_to(tmp_path / 'flowers/test/tulip')
        (tmp_path / 'few' / 'val').symlink_to(tmp_path / 'few' / 'train')
        convert.to_vtab(str(tmp_path / 'few'), tmp_path / 'x')
    assert sorted(path.name for path in (tmp_path / 'vtab').iterdir()) == ['own']


def test_a_set_of_torchvision(tmp_path):
    """DTD's own files: lists of partition 1, images in folders."""
    kinds = ['banded', 'dotted', 'woven']
    (tmp_path / 'dtd/dtd/labels').mkdir(parents=True)
    numbers = dict(train=400, val=200, test=4)
    for split, number in numbers.items():
        names = [f'{kind}/{split}_{i}.jpg' for kind in kinds for i in range(number)]
        write(tmp_path, f'dtd/dtd/labels/{split}1.txt', '\n'.join(names) + '\n')
        for name in names:
            path = tmp_path / 'dtd/dtd/images' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (3, 2), (kinds.index(name.split('/')[0]) * 100, 0, 0)).save(path)
    out = tmp_path / 'vtab/dtd'
    found = convert.to_vtab('torchvision::DTD', out, tmp_path)
    assert found == dict(train800=800, val200=200, train800val200=1000, test=12)
    assert (out / 'classes.txt').read_text().split() == kinds
    for path, label in list_files.read_list([out / 'test.txt'], out, kinds):
        assert abs(int(cv2.imread(path)[0, 0, 2]) - 100 * label) < 8  # the image is of its class
    with pytest.raises(UserError, match='torchvision::DTT: sets that can be taken.*DTD'):
        convert.to_vtab('torchvision::DTT', tmp_path / 'x')
    with pytest.raises(UserError, match=r'torchvision::SVHN is not whole in --root .*nowhere'):
        convert.to_vtab('torchvision::SVHN', tmp_path / 'x', tmp_path / 'nowhere')


# --- few images ------------------------------------------------------------------------------


def test_the_draws():
    labels = [0] * 50 + [1] * 20 + [2] * 3
    names = ['a', 'b', 'c']
    two, one = (few_images.per_class(labels, names, n, 5) for n in (2, 1))
    assert [labels[i] for i in two] == [0, 0, 1, 1, 2, 2] and set(one) < set(two)
    assert few_images.per_class(labels, names, 2, 6) != two
    with pytest.raises(UserError, match='--per-class 4: class c has 3 images'):
        few_images.per_class(labels, names, 4, 0)
    tenth = few_images.share(labels, 0.1, 0)
    assert [labels[i] for i in tenth] == [0] * 5 + [1] * 2 + [2]
    assert set(tenth) < set(few_images.share(labels, 0.5, 0))
    assert few_images.share(labels, 1, 0) == list(range(73))


def test_images_that_hold_a_class():
    present = [[0], [0, 1], [0, 255], [1], [0, 2], [0]]
    for seed in range(5):
        chosen, fewer = few_images.holding(present, ['a', 'b', 'c'], 2, seed)
        held = [label for i in chosen for label in present[i]]
        assert held.count(0) >= 2 and held.count(1) == 2 and 4 in chosen
        assert fewer == dict(c=1) and len(chosen) <= 5


def test_lists_that_a_config_takes(capfd, tmp_path):
    for split in ('train', 'val'):
        for name, number in (('rose', 4), ('lily', 6)):
            for i in range(number):
                picture(tmp_path / 'data' / split / name / f'{i}.png', i)
    recipe = str(CONFIGS / 'vpt/vit-b_imagefolder.py')
    where = f'dataset.data_root={tmp_path}/data'
    outcome = run_tool(
        capfd, 'data', 'few', recipe, '--per-class', '1', '3', '--share', '0.5', '--seeds', '0',
        '1', '--out', str(tmp_path / 'lists'), '--cfg-options', where)
    assert outcome.code == 0, outcome.err
    files = sorted(path.name for path in (tmp_path / 'lists').iterdir())
    assert files == [f'{kind}_seed-{seed}.txt' for kind in (
        'per_class-1', 'per_class-3', 'share-0.5') for seed in (0, 1)]
    for name, number in (('per_class-3_seed-1', 6), ('share-0.5_seed-0', 5)):
        cfg = config.load(recipe, [
            where, f'train_dataloader.dataset.ann_file={tmp_path}/lists/{name}.txt'], 'deep')
        assert len(build(**{**cfg.train_dataloader.dataset, 'pipeline': []})) == number
    (tmp_path / 'old').mkdir()
    write(tmp_path / 'old', 'share-0.5_seed-0.txt', 'daisy/1.png\n')
    for arguments, message in (
            ((), 'say which lists'), (('--share', '2'), '--share must be above 0'),
            (('--per-class', '0'), 'at least 1'), (('--holding', '1'), 'is for segmentation'),
            (('--per-class', '5'), 'class rose has 4'),
            (('--share', '.5', '--seeds', '-1'), 'seed'),
            (('--share', '.5', '--out', str(tmp_path / 'old')), 'there already, of other images'),
            (('--share', '.5', '--cfg-options', 'subset.images=4'), 'leave subset and')):
        outcome = run_tool(capfd, 'data', 'few', recipe, *arguments, '--cfg-options', where)
        assert outcome.code == 2 and message in outcome.err, outcome.err
    outcome = run_tool(capfd, 'data', 'few', str(CONFIGS / 'vpt/vit-b_cifar100.py'), '--share', '1')
    assert outcome.code == 2 and 'a CIFAR100 takes no list' in outcome.err


def test_a_list_of_a_task(tmp_path, capfd):
    root = make_vtab(tmp_path / 'kitti')
    where = f'dataset.data_root={root}'
    outcome = run_tool(capfd, 'data', 'few', VTAB_RECIPE, '--per-class', '1', '--out',
                       str(tmp_path), '--cfg-options', where)
    assert outcome.code == 0, outcome.err
    options = [where, f'train_dataloader.dataset.ann_file={tmp_path}/per_class-1_seed-0.txt']
    cfg = config.load(VTAB_RECIPE, options, 'deep')
    data = build(**{**cfg.train_dataloader.dataset, 'pipeline': []})
    assert sorted(label for _, label in samples(data)) == [0, 1, 2, 3]


@pytest.mark.parametrize('recipe', ['setr_vit-l_ade20k', 'setr_vit-l_segfolder'])
def test_lists_of_a_segmentation(capfd, tmp_path, recipe):
    data = make_ade_folder(tmp_path / 'data', size=(16, 16), num_images=6)
    path = str(CONFIGS / f'vpt/{recipe}.py')
    options = [f'dataset.data_root={data}']
    if 'segfolder' in recipe:
        options.append(f'dataset.classes={[str(i) for i in range(151)]}')
    outcome = run_tool(capfd, 'data', 'few', path, '--holding', '1', '--share', '0.5', '--out',
                       str(tmp_path), '--cfg-options', *options)
    assert outcome.code == 0, outcome.err
    masks = {mask.stem: set(np.unique(read_mask(str(mask))).tolist())
             for mask in (Path(data) / 'annotations/training').iterdir()}
    ignored = {255} | ({0} if 'ade20k' in recipe else set())
    chosen = (tmp_path / 'holding-1_seed-0.txt').read_text().split()
    held = set().union(*(masks[name] for name in chosen))
    assert held - ignored == set().union(*masks.values()) - ignored
    in_scope('mmseg')
    for name, number in (('holding-1', len(chosen)), ('share-0.5', 3)):
        cfg = config.load(path, [
            *options, f'train_dataloader.dataset.ann_file={tmp_path}/{name}_seed-0.txt'], 'deep')
        assert len(DATASETS.build({**cfg.train_dataloader.dataset, 'pipeline': []})) == number
    outcome = run_tool(capfd, 'data', 'few', path, '--per-class', '1', '--cfg-options', *options)
    assert outcome.code == 2 and '--holding N' in outcome.err
