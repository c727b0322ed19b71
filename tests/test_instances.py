"""COCO annotations made of masks: what pycocotools or the pixels say of them."""

import json

import cv2
import numpy as np
import pytest
from scipy import ndimage
from tool_helpers import run_tool
from utils import ROOT

from vpt_dense.datasets import coco, instances
from vpt_dense.errors import UserError


def decode(segmentation):
    """The mask of uncompressed run lengths, column by column."""
    flat = np.repeat(np.arange(len(segmentation['counts'])) % 2, segmentation['counts'])
    return flat.reshape(segmentation['size'][::-1]).T.astype(bool)


@pytest.fixture
def folder(tmp_path):
    """Two images of a split, with masks of 16-bit ids and of classes."""
    rng = np.random.default_rng(0)
    for name in ('a', 'sub/b'):
        for kind in ('images', 'ids', 'classes'):
            (tmp_path / kind / 'train' / name).parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 256, (30, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f'images/train/{name}.jpg'), image)
        ids = np.zeros((30, 40), np.uint16)
        ids[2:9, 3:8], ids[2:9, 8:20] = 700, 3  # they touch
        ids[20, 30] = 9
        cv2.imwrite(str(tmp_path / f'ids/train/{name}.png'), ids)
        labels = (rng.random((30, 40)) * 4).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f'classes/train/{name}.png'), labels)
    return tmp_path


def made(folder, capfd, kind, *options):
    out = folder / f'{kind}.json'
    told = run_tool(capfd, 'data', 'coco', folder / 'images', folder / kind, out, *options)
    assert told.code == 0, told.err
    found = coco.read(out)
    found.raise_first()
    return json.loads(out.read_text()), told.out


def test_ids_of_instances(folder, capfd):
    content, told = made(folder, capfd, 'ids', '--instances', 'cell', '--min-area', 2)
    assert [each['file_name'] for each in content['images']] == [
        'train/a.jpg', 'train/sub/b.jpg']
    assert content['categories'] == [dict(id=1, name='cell')]
    boxes = [(each['image_id'], each['bbox'], each['area']) for each in content['annotations']]
    assert boxes == [(image, box, area) for image in (1, 2)
                     for box, area in (([8, 2, 12, 7], 84), ([3, 2, 5, 7], 35))]
    mask = np.zeros((30, 40), bool)
    mask[2:9, 8:20] = True
    assert (decode(content['annotations'][0]['segmentation']) == mask).all()
    assert '2 images, 4 of cell; 2 were smaller' in told


def test_connected_parts_of_classes(folder, capfd):
    """The parts that SciPy finds, of two ids that are one class and of another."""
    content, told = made(
        folder, capfd, 'classes', '--only', 'train', '--classes', '1=x', '2=y', '3=x')
    wanted = []
    for number, name in ((1, 'a'), (2, 'sub/b')):
        labels = cv2.imread(str(folder / f'classes/train/{name}.png'), -1)
        for category, ids in ((1, (1, 3)), (2, (2,))):
            parts, count = ndimage.label(np.isin(labels, ids), np.ones((3, 3)))
            wanted += [(number, category, np.packbits(parts == i).tobytes())
                       for i in range(1, count + 1)]
    found = [(each['image_id'], each['category_id'],
              np.packbits(decode(each['segmentation'])).tobytes())
             for each in content['annotations']]
    assert len(found) > 9 and sorted(found) == sorted(wanted)
    assert [each['name'] for each in content['categories']] == ['x', 'y']
    for each in content['annotations']:
        own = decode(each['segmentation'])
        x, y, width, height = each['bbox']
        assert own.sum() == own[y:y + height, x:x + width].sum() == each['area']
        assert own[:, [x, x + width - 1]].any(0).all() and own[[y, y + height - 1]].any(1).all()


@pytest.mark.parametrize(('options', 'message'), [
    ([], 'say what the masks hold: --instances NAME'),
    (['--instances', 'a', '--classes', '1=b'], 'say what the masks hold'),
    (['--classes', 'car'], '--classes car: write ID=NAME'),
    (['--classes', '1=a', '1=b'], '--classes 1=b: write ID=NAME, each id once'),
    (['--classes', '77=a'], 'no pixel of the ids 77'),
    (['--instances', 'a', '--min-area', '0'], '--min-area must be at least 1'),
    (['--instances', 'a', '--only', 'gone'], 'gone does not exist'),
])
def test_what_is_wrong_is_one_line(folder, capfd, options, message):
    told = run_tool(capfd, 'data', 'coco', folder / 'images', folder / 'classes',
                    folder / 'x.json', *options)
    assert told.code == 2 and message in told.err, told.err
    assert not (folder / 'x.json').exists()


def test_files_that_do_not_fit(folder):
    def run(out='x.json'):
        instances.to_coco(folder / 'images', folder / 'ids', folder / out, name='cell')

    cv2.imwrite(str(folder / 'ids/train/a.png'), np.ones((30, 41), np.uint8))
    with pytest.raises(UserError, match=r'a\.png has 41 x 30 pixels, its image 40 x 30'):
        run()
    (folder / 'ids/train/a.png').unlink()
    with pytest.raises(UserError, match='1 images have no mask of their name'):
        run()
    (folder / 'images/train/a.jpg').unlink()
    run()
    with pytest.raises(UserError, match='is there already'):
        run()
    (folder / 'images/train/sub/b.jpg').rename(folder / 'images/train/c.jpg')
    with pytest.raises(UserError, match='images have no mask'):
        run('y.json')


def test_the_sample_of_instances(capfd, tmp_path):
    """Real nuclei, some of which touch: as many as their ids, and the check finds no fault."""
    root = ROOT / 'samples/nuclei-instances'
    (tmp_path / 'images').symlink_to(root / 'images')
    for split in ('train', 'val'):
        told = run_tool(capfd, 'data', 'coco', root / 'images', root / 'instances',
                        tmp_path / f'{split}.json', '--instances', 'nucleus')
        assert told.code == 0, told.err
    content = json.loads((tmp_path / 'train.json').read_text())
    ids = [len(np.unique(cv2.imread(str(path), -1))) - 1
           for path in sorted((root / 'instances').glob('*.png'))]
    assert len(content['annotations']) == sum(ids) > 50
    told = run_tool(capfd, 'check_dataset', tmp_path)
    assert told.code == 0, told.out + told.err
