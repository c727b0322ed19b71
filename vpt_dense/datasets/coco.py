"""Annotations in COCO's form: one JSON for many images. Reads and checks them, without mmdet.

The form: https://cocodataset.org/#format-data. ``area`` and ``iscrowd`` may be left out: the box's
area, and no crowd.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpt_dense.argument_checks import is_int, is_number
from vpt_dense.datasets import checks, raster
from vpt_dense.errors import UserError

#: Data sets of this form.
KINDS = ('CocoFolder', 'CocoDataset')
#: Folder of the images, below ``data_root``.
IMAGES = 'images'


def ann_file_of(dataset: Mapping[str, Any]) -> Path:
    """The JSON of a data set's config."""
    return Path(dataset.get('data_root') or '', dataset.get('ann_file') or '')


def classes_of(dataset: Mapping[str, Any]) -> list[str]:
    """The names of the classes that the JSON of a data set's config has, in its order."""
    return [category['name'] for category in read(ann_file_of(dataset)).categories]


def check_paths(dataset: Mapping[str, Any], split: str) -> None:
    """Check that a data set's JSON and the folder of its images are there.

    Raises:
        UserError: If not.
    """
    file, prefix = ann_file_of(dataset), dataset.get('data_prefix')
    if not dataset.get('ann_file'):
        raise UserError(f'data of {split}: no ann_file, the JSON of annotations')
    if not file.is_file():
        raise UserError(
            f'data of {split}: no file {file}; set {split}_dataloader.dataset.ann_file')
    folder = Path(dataset.get('data_root') or '', (prefix or {}).get('img') or '')
    if not folder.is_dir():
        raise UserError(f'data of {split}: no folder {folder} (data_prefix.img)')


# --- reading ---------------------------------------------------------------------------------


@dataclass
class Annotations:
    """What a JSON holds, checked.

    Attributes:
        path: The file.
        images: ``id``, ``file_name``, ``width``, ``height`` of each, in the file's order.
        categories: ``id`` and ``name`` of each.
        annotations: Those of sound form; ``area`` and ``iscrowd`` are filled in.
        faults: Kind of fault -> one line for each annotation or image with it.
    """

    path: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def fail(self, kind: str, line: str) -> None:
        """Note a fault."""
        self.faults.setdefault(kind, []).append(line)

    def by_image(self) -> dict[Any, list[dict[str, Any]]]:
        """Id of an image -> its annotations."""
        found: dict[Any, list[dict[str, Any]]] = {image['id']: [] for image in self.images}
        for annotation in self.annotations:
            found[annotation['image_id']].append(annotation)
        return found

    def label_of(self, classes: Sequence[str]) -> dict[Any, int]:
        """Id of a category -> its label, the position of its name among ``classes``.

        Raises:
            UserError: If a class is no category.
        """
        ids = {category['name']: category['id'] for category in self.categories}
        absent = [name for name in classes if name not in ids]
        if absent:
            raise UserError(
                f'{self.path} has no category {absent[0]!r}, which dataset.classes names; it has '
                f'{", ".join(map(repr, ids))}')
        return {ids[name]: label for label, name in enumerate(classes)}

    def raise_first(self) -> None:
        """Raise the first fault, if there is any.

        Raises:
            UserError: With how many there are.
        """
        if self.faults:
            kind, lines = next(iter(self.faults.items()))
            number = sum(map(len, self.faults.values()))
            more = f' (and {number - 1} more faults: vpt-dense check)' if number > 1 else ''
            raise UserError(f'{self.path}: {kind}: {lines[0]}{more}')


def read(path: str | os.PathLike) -> Annotations:
    """Read and check a JSON.

    Returns:
        What is sound of it, and the faults of what is not.

    Raises:
        UserError: If it is no JSON of this form as a whole.
    """
    path, content = Path(path), content_of(path)
    found = Annotations(path)
    read_categories(content['categories'], found)
    sizes = read_images(content['images'], found)
    known = {category['id'] for category in found.categories}
    seen: set = set()
    for place, annotation in enumerate(content['annotations']):
        _read_annotation(place, annotation, found, sizes, known, seen)
    return found


def content_of(path: str | os.PathLike) -> dict[str, Any]:
    """What a JSON holds, with lists of images, annotations and categories.

    Raises:
        UserError: If it cannot be read or lacks one of them.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f'{path} cannot be read ({error.strerror})') from error
    except ValueError as error:
        raise UserError(f'{path} is no JSON ({error})') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} is no COCO JSON: a dict was expected, found a list or a value')
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content.get(key), list):
            raise UserError(f'{path} is no COCO JSON: it has no list {key}')
    return content


def read_categories(categories: list, found: Annotations) -> None:
    """Put categories into ``found``.

    Raises:
        UserError: If one has no id and name, or those of another, or there is none.
    """
    for category in categories:
        if (not isinstance(category, dict) or not is_int(category.get('id'), 0)
                or not isinstance(category.get('name'), str)):
            raise UserError(f'{found.path}: category {category!r} has no id and name')
        for key in ('id', 'name'):
            if any(category[key] == other[key] for other in found.categories):
                raise UserError(f'{found.path}: two categories have the {key} {category[key]!r}')
        found.categories.append(category)
    if not categories:
        raise UserError(f'{found.path} has no categories')


def read_images(images: list, found: Annotations) -> dict[Any, tuple[int, int] | None]:
    """Put images, and their faults, into ``found``; id -> (width, height), None: not known."""
    sizes: dict[Any, tuple[int, int] | None] = {}
    for place, image in enumerate(images):
        if not isinstance(image, dict) or not isinstance(image.get('id'), (int, str)):
            found.fail('image without an id', f'images[{place}]')
            continue
        name = image['id']
        if name in sizes:
            found.fail('two images of one id', f'image {name}')
            continue
        sizes[name] = None
        if not isinstance(image.get('file_name'), str) or not image['file_name']:
            found.fail('image without a file_name', f'image {name}')
        elif not is_int(image.get('width'), 1) or not is_int(image.get('height'), 1):
            found.fail('image without width and height', f'image {name} ({image["file_name"]})')
        else:
            sizes[name] = image['width'], image['height']
            found.images.append(image)
    return sizes


def _read_annotation(
    place: int, annotation: Any, found: Annotations, sizes: dict, known: set, seen: set
) -> None:
    name = annotation.get('id') if isinstance(annotation, dict) else None
    if not isinstance(name, (int, str)):
        found.fail('annotation without an id', f'annotations[{place}]')
        return
    if name in seen:
        found.fail('two annotations of one id', f'annotation {name}')
        return
    seen.add(name)
    image, category, box = (annotation.get(key) for key in ('image_id', 'category_id', 'bbox'))
    if not isinstance(image, (int, str)) or image not in sizes:
        found.fail('annotation of an image that is not there',
                   f'annotation {name}: image_id {image!r}')
        return
    if not isinstance(category, int) or category not in known:
        found.fail('annotation of an unknown category',
                   f'annotation {name}: category_id {category!r}')
        return
    if (not isinstance(box, list) or len(box) != 4
            or not all(is_number(n) and math.isfinite(n) for n in box)):
        found.fail('box that is no [x, y, width, height]', f'annotation {name}: {box!r}')
        return
    size, mask = sizes[image], annotation.get('segmentation')
    if size is None:
        return  # told of the image
    fault = mask_fault(mask, size) if mask else None
    if fault:
        found.fail('mask that cannot be read', f'annotation {name}: {fault}')
        return
    annotation.setdefault('iscrowd', 0)
    if not is_number(annotation.get('area')):
        annotation['area'] = box[2] * box[3]
    found.annotations.append(annotation)


def box_fault(box: Sequence[float], width: int, height: int) -> str | None:
    """What is wrong with a box [x, y, width, height] in pixels: 'empty', 'outside' or 'beyond'.

    Empty and outside are left out by mmdet: less than a pixel wide or high; no pixel in the image.
    Beyond: more than a pixel of it lies outside; it stays. None: nothing.
    """
    x, y, w, h = box
    if w < 1 or h < 1:
        return 'empty'
    if min(x + w, width) <= max(x, 0) or min(y + h, height) <= max(y, 0):
        return 'outside'
    return 'beyond' if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1 else None


# --- masks -----------------------------------------------------------------------------------


def mask_fault(mask: Any, size: tuple[int, int]) -> str | None:
    """What is wrong with a mask: polygons, or run lengths as a list or compressed.

    Args:
        mask: ``segmentation`` of an annotation.
        size: (width, height) of the image in pixels.
    """
    if isinstance(mask, list):
        for polygon in mask:
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                return 'a polygon is a list [x1, y1, x2, y2, x3, y3, ...]'
            if not all(is_number(n) and math.isfinite(n) for n in polygon):
                return 'a polygon holds what is no number'
        return None
    counts = mask.get('counts') if isinstance(mask, dict) else None
    if counts is None or mask.get('size') != [size[1], size[0]]:
        return (f'run lengths of size {mask.get("size")!r} for an image of height and width '
                f'{[size[1], size[0]]}' if counts is not None else 'neither polygons nor an RLE')
    try:
        runs = list(_runs(counts)) if isinstance(counts, str) else list(counts)
        fits = all(is_int(run, 0) for run in runs) and sum(runs) == size[0] * size[1]
    except (TypeError, ValueError):
        fits = False
    return None if fits else f'its run lengths are not those of {size[0]} x {size[1]} pixels'


def _runs(text: str) -> Iterator[int]:
    """The run lengths of compressed ones.

    Numbers of 5 bits a character, from the fourth on as differences to the last but one
    (https://github.com/cocodataset/cocoapi, maskApi.c).
    """
    before: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(character)
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(before) > 2:
            value += before[-2]
        before.append(value)
        yield value
        value = shift = 0
    if shift:
        raise ValueError('it ends in the middle of a number')


# --- checking --------------------------------------------------------------------------------


def check_boxes_of(dataset: Any, name: str, how: dict) -> dict:
    """Checks the images and annotations of a data set, see :mod:`vpt_dense.datasets.checks`."""
    if not dataset.ann_file:
        raise UserError(f'{name}: no ann_file, the JSON of annotations')
    return check(
        dataset.ann_file, dataset.data_prefix.get('img') or '', dataset.metainfo.get('classes'),
        name=name, **how)


def check(
    ann_file: str | os.PathLike, folder: str | os.PathLike, classes: Sequence[str] | None = None,
    *, name: str = '', **how: Any,
) -> dict:
    """Checks a JSON and its images by decoding every file.

    Args:
        ann_file: The JSON.
        folder: Of the images.
        classes: The names of those that count, in label order; None: all.
        name: The split's, for the progress bar.
        **how: As in :func:`vpt_dense.datasets.checks.check_classification`.

    Returns:
        As there; ``per_class`` counts boxes. And ``boxes``, ``instance_masks``,
        ``crowds``, ``images_without_boxes``, and ``faults``: {kind: [line, ...]}, all of which are
        problems.
    """
    found = read(ann_file)
    labels = found.label_of(classes or [each['name'] for each in found.categories])
    names = list(classes or [each['name'] for each in found.categories])
    paths = {image['id']: str(Path(folder, image['file_name'])) for image in found.images}
    absent = [path for path in paths.values() if not os.path.isfile(path)]
    there = [(path, None) for path in paths.values() if os.path.isfile(path)]
    split = checks.check_classification(there, (), name=name, **how)
    problems, warnings = split['problems'], split['warnings']
    if not paths or absent:
        problems[:] = [line for line in problems if line != 'no images']
    if not paths:
        problems.append(f'{ann_file} has no image')
    split['images'] = len(paths)
    if absent:
        found.fail('image that is not there', '')
        found.faults['image that is not there'] = absent
    check_sizes(found, paths, set(absent) | set(split['unreadable']))
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    other: Counter[Any] = Counter()
    sizes = {image['id']: (image['width'], image['height']) for image in found.images}
    lines: dict[str, list[str]] = {}
    filled = set()
    for annotation in found.annotations:
        if annotation['category_id'] not in labels:
            other[annotation['category_id']] += 1
            continue
        fault = box_fault(annotation['bbox'], *sizes[annotation['image_id']])
        if fault:
            lines.setdefault(fault, []).append(
                f'annotation {annotation["id"]}: {annotation["bbox"]} in an image of '
                '{} x {}'.format(*sizes[annotation['image_id']]))
        if fault in (None, 'beyond'):
            counts[names[labels[annotation['category_id']]]] += 1
            filled.add(annotation['image_id'])
    for fault, kind in (('empty', 'box less than a pixel wide or high'),
                        ('outside', 'box outside of its image')):
        if fault in lines:
            found.faults[kind] = lines[fault]
    for kind, each in found.faults.items():
        problems.append(f'{kind}: {checks.some(each)}')
    if 'beyond' in lines:
        warnings.append(f'boxes that reach beyond their image: {checks.some(lines["beyond"])}')
    empty = [paths[key] for key in paths if key not in filled]
    if empty and len(empty) < len(paths):
        warnings.append(
            f'{len(empty)} of {len(paths)} images have no box, and train as background: '
            f'{checks.some(empty)}')
    elif paths and not filled:
        problems.append('no image has a box')
    if other:
        told = (f'{number} of category {key}' for key, number in other.items())
        warnings.append(f'annotations that dataset.classes leaves out: {checks.some(told)}')
    lacking = [label for label, number in counts.items() if not number]
    if lacking and filled:
        warnings.append(f'{len(lacking)} classes without a box: {checks.some(lacking)}')
    split.update(
        per_class=dict(counts), boxes=sum(counts.values()), faults=found.faults,
        instance_masks=sum(bool(each.get('segmentation')) for each in found.annotations),
        crowds=sum(bool(each['iscrowd']) for each in found.annotations),
        images_without_boxes=empty)
    return split


def check_sizes(found: Annotations, paths: dict[Any, str], skipped: set[str]) -> None:
    """Note images that have another size than the JSON says, but for the skipped paths."""
    for image in found.images:
        path = paths[image['id']]
        if path in skipped:
            continue
        info = raster.image_info(path)
        if (info.width, info.height) != (image['width'], image['height']):
            found.fail('image of another size than the JSON says', (
                f'image {image["id"]} ({path}) has {info.width} x {info.height}, the JSON '
                f'{image["width"]} x {image["height"]}'))
