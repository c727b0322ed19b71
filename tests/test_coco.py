"""vpt_dense.datasets.coco, without mmdet: what annotations hold, and what is wrong with them."""

import json
import re

import numpy as np
import pytest
from detection_data import make
from PIL import Image
from tool_helpers import run_tool

from vpt_dense.datasets import coco
from vpt_dense.errors import UserError


@pytest.fixture
def folder(tmp_path):
    return make(tmp_path / 'data')


def change(folder, function, split='train'):
    file = folder / f'{split}.json'
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))
    return file


def check(folder, **how):
    return coco.check(folder / 'train.json', folder / 'images', **how)


def test_a_sound_folder(folder):
    found = check(folder, classes=['green', 'red'])
    assert found['problems'] == [] and found['images'] == 6 and found['boxes'] == 15
    assert sum(found['per_class'].values()) == 15 and list(found['per_class']) == ['green', 'red']
    assert found['instance_masks'] == 15 and found['crowds'] == 0
    assert len(found['images_without_boxes']) == 1
    assert any('1 of 6 images have no box' in line for line in found['warnings'])


def test_labels_go_by_names_whatever_the_order(folder):
    found = coco.read(folder / 'train.json')
    assert found.label_of(['green', 'red']) == {5: 0, 2: 1}
    assert found.label_of(['red']) == {2: 0}
    with pytest.raises(UserError, match=r"has no category 'pink', which dataset\.classes names"):
        found.label_of(['green', 'pink'])
    told = check(folder, classes=['red'])
    assert any('dataset.classes leaves out: ' in line for line in told['warnings'])
    lacking = check(folder)
    assert any('1 classes without a box: blue' in line for line in lacking['warnings'])


RLE = dict(counts=[100, 5, 64 * 48 - 105], size=[48, 64])


@pytest.mark.parametrize(('name', 'value', 'line'), [
    ('image_id', 4711, 'annotation of an image that is not there: annotation 8: image_id 4711'),
    ('image_id', [1], r'annotation of an image that is not there: annotation 8: image_id \[1\]'),
    ('category_id', 3, 'annotation of an unknown category: annotation 8: category_id 3'),
    ('bbox', [1, 2, 3], r'box that is no \[x, y, width, height\]: annotation 8: \[1, 2, 3\]'),
    ('bbox', [1, 2, 3, float('nan')], r'box that is no \[x, y, width, height\]: annotation 8'),
    ('bbox', ['1', 2, 3, 4], r'box that is no \[x, y, width, height\]: annotation 8'),
    ('bbox', [3, 4, 0, 9], r'box less than a pixel wide or high: annotation 8: \[3, 4, 0, 9\] in'),
    ('bbox', [3, 4, -5, 9], 'box less than a pixel wide or high: annotation 8'),
    ('bbox', [64, 0, 9, 9], r'box outside of its image: annotation 8: \[64, 0, 9, 9\] in an image'),
    ('id', 1, 'two annotations of one id: annotation 1'),
    ('id', None, r'annotation without an id: annotations\[1\]'),
    ('segmentation', [[1, 2, 3, 4]], 'mask that cannot be read: annotation 8: a polygon is a list'),
    ('segmentation', [[1, 2, 3, 4, 5, 'x']], 'annotation 8: a polygon holds what is no number'),
    ('segmentation', dict(RLE, size=[64, 48]), r'annotation 8: run lengths of size \[64, 48\]'),
    ('segmentation', dict(RLE, counts=[1, 2]), 'annotation 8: its run lengths are not those of'),
    ('segmentation', dict(RLE, counts='~'), 'annotation 8: its run lengths are not those of'),
    ('segmentation', dict(RLE, counts='PP'), 'annotation 8: its run lengths are not those of'),
    ('segmentation', 'x', 'annotation 8: neither polygons nor an RLE'),
])
def test_a_broken_annotation_is_named(folder, name, value, line):
    change(folder, lambda content: content['annotations'][1].update({name: value}))
    (problem,) = check(folder)['problems']
    assert re.search(line, problem) and '\n' not in problem


@pytest.mark.parametrize(('name', 'value', 'line'), [
    ('id', 10, 'two images of one id: image 10'),
    ('id', None, 'image without an id: images[2]'),
    ('file_name', '', 'image without a file_name: image 16'),
    ('width', 0, 'image without width and height: image 16 (train_2.png)'),
    ('width', 65, 'image of another size than the JSON says: image 16'),
    ('file_name', 'gone.png', 'image that is not there: '),
])
def test_a_broken_image_is_named(folder, name, value, line):
    change(folder, lambda content: content['images'][2].update({name: value}))
    assert any(problem.startswith(line) for problem in check(folder)['problems'])


def test_a_file_that_is_no_image_is_named(folder):
    (folder / 'images/train_0.png').write_bytes(b'x')
    assert any('train_0.png' in problem for problem in check(folder)['problems'])


@pytest.mark.parametrize(('text', 'line'), [
    ('[1', 'is no JSON'), ('[]', 'a dict was expected'), ('{"images": []}', 'no list annotations'),
    (json.dumps(dict(images=[], annotations=[], categories=[])), 'has no categories'),
    (json.dumps(dict(images=[], annotations=[], categories=[dict(id=1)])), 'has no id and name'),
    (json.dumps(dict(images=[], annotations=[], categories=[
        dict(id=1, name='a'), dict(id=1, name='b')])), 'two categories have the id 1'),
])
def test_what_is_no_coco_json(tmp_path, text, line):
    file = tmp_path / 'a.json'
    file.write_text(text)
    with pytest.raises(UserError, match=line) as told:
        coco.read(file)
    assert str(file) in str(told.value)
    with pytest.raises(UserError, match='cannot be read'):
        coco.read(tmp_path / 'none.json')


def test_what_other_tools_leave_out_is_filled_in(folder):
    change(folder, lambda content: [
        (each.pop('area'), each.pop('iscrowd')) for each in content['annotations']])
    found = coco.read(folder / 'train.json')
    assert not found.faults
    assert all(each['area'] == each['bbox'][2] * each['bbox'][3] and each['iscrowd'] == 0
               for each in found.annotations)


def test_boxes_beyond_the_border():
    assert coco.box_fault([0, 0, 64, 48], 64, 48) is None
    assert coco.box_fault([-1, -1, 66, 50], 64, 48) is None  # a pixel is a matter of rounding
    assert coco.box_fault([-2, 0, 10, 10], 64, 48) == 'beyond'
    assert coco.box_fault([60, 40, 10, 10], 64, 48) == 'beyond'
    assert coco.box_fault([-9, 0, 9, 9], 64, 48) == 'outside'


def compress(runs):
    """Run lengths as COCO writes them, from the description of its format."""
    text = ''
    for i, run in enumerate(runs):
        value, more = run - (runs[i - 2] if i > 2 else 0), True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def test_compressed_run_lengths():
    rng = np.random.default_rng(0)
    for _ in range(30):
        runs = [int(run) for run in rng.integers(0, 5000, rng.integers(1, 12))]
        assert list(coco._runs(compress(runs))) == runs
        assert coco.mask_fault(dict(counts=compress(runs), size=[1, sum(runs)]),
                               (sum(runs), 1)) is None


def test_run_lengths_of_pycocotools():
    mask = pytest.importorskip('pycocotools.mask')
    pixels = np.asfortranarray(np.random.default_rng(1).integers(0, 2, (33, 17)), np.uint8)
    counts = mask.encode(pixels)['counts'].decode()
    runs = list(coco._runs(counts))
    flat = np.concatenate([np.full(run, i % 2) for i, run in enumerate(runs)])
    assert np.array_equal(flat.reshape(17, 33).T, pixels)


def test_detection_without_mmdet_is_one_line(folder, capfd, monkeypatch):
    from utils import CONFIGS

    from vpt_dense import tasks

    find = tasks.importlib.util.find_spec
    monkeypatch.setattr(tasks.importlib.util, 'find_spec',
                        lambda name, *a: None if name == 'mmdet' else find(name, *a))
    config = CONFIGS / 'vpt/faster-rcnn_vit-s_dinov2_coco-folder.py'
    for tool in ('count_params', 'check_dataset', 'train'):
        told = run_tool(capfd, tool, config, '--method', 'head', '--cfg-options',
                        f'dataset.data_root={folder}', 'model.backbone.init_cfg=None')
        assert told.code == 2 and told.err.count('\n') == 1, told.err
        assert "detection needs mmdet, which is not installed: pip install 'vpt-dense[d" in told.err


def test_images_of_any_kind(folder):
    Image.open(folder / 'images/train_0.png').save(folder / 'images/train_0.webp')
    change(folder, lambda content: content['images'][0].update(file_name='train_0.webp'))
    assert check(folder)['problems'] == []


def test_a_folder_without_a_config(folder, capfd):
    told = run_tool(capfd, 'check_dataset', folder, '--json')
    report = json.loads(told.out)
    assert told.code == 0 and report['task'] == 'detection' and list(report['splits']) == [
        'train', 'val']
    assert report['classes'] == ['red', 'blue', 'green']
    change(folder, lambda content: content['annotations'][1].update(category_id=3), 'val')
    told = run_tool(capfd, 'check_dataset', folder)
    assert told.code == 1 and 'val: annotation of an unknown category: annotation 8' in told.out
    assert 'boxes a class' in told.out
