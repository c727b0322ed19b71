"""Panoptic annotations without mmdet: ids and colours, the converter, what a check finds."""

import json

import numpy as np
import pytest
from panoptic_data import make, make_masks
from PIL import Image
from scipy import ndimage
from tool_helpers import run_tool

from vpt_dense import segments
from vpt_dense.datasets import panoptic


def test_ids_and_colours():
    """As COCO has it: R + 256 G + 256^2 B."""
    ids = np.array([[0, 1, 255], [256, 65535, 65536], [16777215, 8345037, 300]], np.int32)
    colours = segments.to_colours(ids).astype(np.int64)
    assert (colours @ (1, 256, 65536) == ids).all()
    assert (segments.to_ids(colours.astype(np.uint8)) == ids).all()


def read(folder, split='train'):
    """(image's masks, ids of the PNG, annotation, category of each id) of each image."""
    content = json.loads((folder / f'{split}.json').read_text())
    names = {each['id']: (each['name'], each['isthing']) for each in content['categories']}
    for image, annotation in zip(content['images'], content['annotations'], strict=True):
        assert image['id'] == annotation['image_id']
        pixels = np.asarray(Image.open(folder / 'panoptic' / annotation['file_name']))
        ids = pixels.astype(np.int64) @ (1, 256, 65536)
        labels = np.asarray(Image.open(folder / 'masks' / image['file_name']))
        numbers = np.asarray(Image.open(folder / 'ids' / image['file_name']))
        yield labels, numbers, ids, annotation['segments_info'], names


@pytest.mark.parametrize('with_ids', [False, True])
def test_masks_become_segments(tmp_path, capfd, with_ids):
    """Every pixel is of the class of its mask; things are parts by SciPy, or the ids' own."""
    folder = make_masks(tmp_path)
    told = run_tool(
        capfd, 'data', 'panoptic', folder / 'images', folder / 'masks', folder / 'train.json',
        '--only', 'train', '--stuff', '0=wall', '1=floor', '--things', '2=box', '3=disc',
        *(['--instances', folder / 'ids'] if with_ids else []))
    assert told.code == 0, told.err
    assert '4 images' in told.out
    for labels, numbers, ids, rows, names in read(folder):
        seen = np.full(labels.shape, 9)
        for row in rows:
            part = ids == row['id']
            name, is_thing = names[row['category_id']]
            seen[part] = ('wall', 'floor', 'box', 'disc').index(name)
            assert row['area'] == part.sum() and row['iscrowd'] == 0
            y, x = np.nonzero(part)
            assert row['bbox'] == [
                x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1] and is_thing == (name in 'boxdisc')
        assert (seen == labels).all() and (ids[labels == 9] == 0).all()
        for label in (2, 3):
            wanted = numbers * (labels == label) if with_ids else ndimage.label(
                labels == label, np.ones((3, 3)))[0]
            pairs = set(zip(wanted[labels == label], ids[labels == label], strict=True))
            assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_small_things_and_things_without_an_id(tmp_path):
    folder = make_masks(tmp_path)
    ids = np.asarray(Image.open(folder / 'ids/train/0.png')).copy()
    third = ids == 3
    ids[third] = 0
    Image.fromarray(ids).save(folder / 'ids/train/0.png')
    from vpt_dense.datasets import instances

    found = instances.to_panoptic(
        folder / 'images', folder / 'masks', folder / 'train.json', {0: 'wall', 1: 'floor'},
        {2: 'box', 3: 'disc'}, folder / 'ids', 'train', min_area=60)
    _, _, png, rows, names = next(read(folder))
    crowd = [row for row in rows if row['iscrowd']]
    assert len(crowd) == found['crowds'] == 1 and names[crowd[0]['category_id']] == ('box', 1)
    assert (png[third] == crowd[0]['id']).all()
    assert all(row['area'] >= 60 for row in rows if names[row['category_id']][1])
    whole = folder / 'whole'
    make_masks(whole)
    more = instances.to_panoptic(
        whole / 'images', whole / 'masks', whole / 'train.json', {}, {2: 'box', 3: 'disc'},
        whole / 'ids', 'train', min_area=10**4 // 100)
    small = sum((np.asarray(Image.open(path)) == i).sum() < 100
                for path in (whole / 'ids/train').iterdir() for i in (1, 2, 3))
    assert more['left_out'] == small > 0


@pytest.mark.parametrize(('options', 'message'), [
    ([], 'say what the masks hold'),
    (['--things', '2'], '--things 2: write ID=NAME'),
    (['--things', '2=box', '--stuff', '1=box'], "'box' is named among things and among stuff"),
    (['--things', '7=box'], 'no pixel of the ids 7'),
    (['--stuff', '1=floor', '--instances', 'x'], '--instances: there are no --things'),
    (['--things', '2=box', '--min-area', '0'], '--min-area must be at least 1'),
])
def test_what_cannot_be_converted(tmp_path, capfd, options, message):
    folder = make_masks(tmp_path, 1)
    told = run_tool(capfd, 'data', 'panoptic', folder / 'images', folder / 'masks',
                    folder / 'train.json', '--only', 'train', *options)
    assert told.code == 2 and message in told.err.splitlines()[-1]
    assert told.err.count('error: ') == 1
    assert not (folder / 'train.json').exists() and not (folder / 'panoptic').exists()
    assert not list(folder.glob('.panoptic-*'))


def test_nothing_is_overwritten(tmp_path, capfd):
    folder = make_masks(tmp_path, 1)
    command = ['data', 'panoptic', folder / 'images', folder / 'masks', folder / 'train.json',
               '--only', 'train', '--stuff', '1=floor']
    assert run_tool(capfd, *command).code == 0
    (folder / 'train.json').unlink()
    told = run_tool(capfd, *command)
    assert told.code == 2 and '0.png is there already' in told.err


def test_a_folder_that_is_right(tmp_path, capfd):
    told = run_tool(capfd, 'check_dataset', make(tmp_path), '--json')
    report = json.loads(told.out)
    assert told.code == 0 and report['task'] == 'panoptic'
    assert report['classes'] == ['box', 'disc', 'wall', 'floor']
    train = report['splits']['train']
    assert train['things'] == 12 and 0.004 < train['void_share'] < 0.006
    assert train['segments'] == 12 + 8 and not train['problems']


def broken(change):
    """A JSON of which one image, or segment, was changed."""
    def made(folder):
        content = json.loads((folder / 'train.json').read_text())
        change(folder, content)
        (folder / 'train.json').write_text(json.dumps(content))
    return made


def recolour(folder, content):
    path = folder / 'panoptic' / content['annotations'][0]['file_name']
    pixels = np.asarray(Image.open(path)).copy()
    pixels[10, 10] = (9, 1, 0)
    Image.fromarray(pixels).save(path)


def shrink(folder, content):
    path = folder / 'panoptic' / content['annotations'][0]['file_name']
    Image.open(path).crop((0, 0, 60, 48)).save(path)


def grey(folder, content):
    path = folder / 'panoptic' / content['annotations'][0]['file_name']
    Image.open(path).convert('L').save(path)


def first(content):
    return content['annotations'][0]['segments_info'][0]


FAULTS = {
    'colours that are not in the JSON: ': recolour,
    'PNG of another size than the JSON says': shrink,
    'has 1 bands of uint8: ids of segments are colours': grey,
    'segment of an unknown category: image 1, segment 1: category_id 99':
        lambda _, content: first(content).update(category_id=99),
    'two segments of one id: image 1: id 2': lambda _, content: first(content).update(id=2),
    'segment whose id is none from 1 to 16777215: image 1: id 0':
        lambda _, content: first(content).update(id=0),
    'segments that have no pixel': lambda _, content: first(content).update(id=77),
    'two annotations of one image: image 1':
        lambda _, content: content['annotations'].append(content['annotations'][0]),
    'image without an annotation: image 1': lambda _, content: content['annotations'].pop(0),
    'annotation of an image that is not there':
        lambda _, content: content['annotations'][0].update(image_id=77),
    'annotation without a file_name': lambda _, content: content['annotations'][0].pop('file_name'),
}


@pytest.mark.parametrize('message', FAULTS)
def test_faults_are_found(tmp_path, message):
    folder = make(tmp_path)
    broken(FAULTS[message])(folder)
    found = panoptic.check(folder / 'train.json', folder / 'images', folder / 'panoptic')
    assert any(message in line for line in found['problems']), found['problems']


def test_a_json_of_boxes_is_told(tmp_path):
    folder = make(tmp_path)
    content = json.loads((folder / 'train.json').read_text())
    del content['categories'][0]['isthing']
    (folder / 'train.json').write_text(json.dumps(content))
    with pytest.raises(Exception, match='has no isthing, 1 for things and 0 for stuff'):
        panoptic.read(folder / 'train.json')


def test_things_come_before_stuff(tmp_path):
    found = panoptic.read(make(tmp_path) / 'train.json')
    assert found.names(['box', 'wall']) == (['box'], ['wall'])
    with pytest.raises(Exception, match='things come before stuff'):
        found.names(['wall', 'box'])
    with pytest.raises(Exception, match="has no category 'sofa'"):
        found.names(['sofa'])
