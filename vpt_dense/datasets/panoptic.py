"""Panoptic annotations in COCO's form: a JSON and a PNG for each image. Without mmdet.

The form: https://cocodataset.org/#format-data. A PNG has 3 bands of 8 bits; R + 256 G + 256^2 B is
the id of a segment, 0 is no segment (void). The JSON says of each image which segments it has, and
of each segment its category; categories with ``isthing`` 1 are things, 0 is stuff. ``bbox`` and
``area`` are not read: the PNG knows them. A segment with ``iscrowd`` 1 is a group of things.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vpt_dense.argument_checks import is_int
from vpt_dense.datasets import checks, coco
from vpt_dense.errors import UserError
from vpt_dense.segments import to_ids

#: Data sets of this form.
KINDS = ('PanopticFolder',)
#: Folder of the PNGs, below ``data_root``.
SEGMENTS = 'panoptic'
#: Ids are below it.
LARGEST = 256**3


def read_ids(path: str | os.PathLike) -> np.ndarray:
    """The ids of a PNG, (H, W) int32.

    Raises:
        UserError: If it cannot be read or is no image of 3 bands of 8 bits.
    """
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if os.path.isfile(path) else None
    if image is None:
        raise UserError(f'{path} cannot be read: a PNG with the ids of segments was expected')
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        bands = image.shape[2] if image.ndim == 3 else 1
        raise UserError(
            f'{path} has {bands} bands of {image.dtype}: ids of segments are colours, 3 bands of '
            'uint8 (R + 256 G + 256^2 B)')
    return to_ids(image[..., ::-1])


# --- reading ---------------------------------------------------------------------------------


class Segments(coco.Annotations):
    """What a JSON holds, checked; ``annotations`` are one for each image that has one.

    Each has ``image_id``, ``file_name`` (of the PNG), and ``segments_info``: ``id``,
    ``category_id``, ``iscrowd``.
    """

    def is_thing(self) -> dict[str, bool]:
        """Name of a category -> whether it is of things."""
        return {each['name']: bool(each['isthing']) for each in self.categories}

    def names(self, classes: Sequence[str] | None = None) -> tuple[list[str], list[str]]:
        """The names of things, and of stuff; of ``classes``, None: of all categories.

        Raises:
            UserError: If a class is no category, or stuff comes before a thing: labels of things
                come first.
        """
        if classes is not None:
            self.label_of(classes)
        known = self.is_thing()
        names = list(known if classes is None else classes)
        things = [name for name in names if known[name]]
        stuff = [name for name in names if not known[name]]
        if classes is not None and list(classes) != things + stuff:
            raise UserError(
                f'dataset.classes: things come before stuff: {things + stuff}, not {names} '
                f'({self.path} says which are things)')
        return things, stuff


def read(path: str | os.PathLike) -> Segments:
    """Read and check a JSON, without its PNGs.

    Raises:
        UserError: If it is no JSON of this form as a whole.
    """
    content, found = coco.content_of(path), Segments(Path(path))
    coco.read_categories(content['categories'], found)
    for category in found.categories:
        if category.get('isthing') not in (0, 1):
            raise UserError(
                f'{path}: category {category["name"]!r} has no isthing, 1 for things and 0 for '
                'stuff: it is no JSON of panoptic segmentation')
    sizes = coco.read_images(content['images'], found)
    known = {category['id'] for category in found.categories}
    seen: set = set()
    for place, annotation in enumerate(content['annotations']):
        _read_annotation(place, annotation, found, sizes, known, seen)
    for image in found.images:
        if image['id'] not in seen:
            found.fail('image without an annotation',
                       f'image {image["id"]} ({image["file_name"]})')
    return found


def _read_annotation(
    place: int, annotation: Any, found: Segments, sizes: dict, known: set, seen: set
) -> None:
    image = annotation.get('image_id') if isinstance(annotation, dict) else None
    if not isinstance(image, (int, str)) or image not in sizes:
        found.fail('annotation of an image that is not there',
                   f'annotations[{place}]: image_id {image!r}')
        return
    if image in seen:
        found.fail('two annotations of one image', f'image {image}')
        return
    seen.add(image)
    if not isinstance(annotation.get('file_name'), str) or not annotation['file_name']:
        found.fail('annotation without a file_name', f'image {image}')
        return
    if not isinstance(annotation.get('segments_info'), list):
        found.fail('annotation without a list segments_info', f'image {image}')
        return
    ids: set = set()
    kept = []
    for segment in annotation['segments_info']:
        name = segment.get('id') if isinstance(segment, dict) else None
        if not is_int(name, 1) or name >= LARGEST:
            found.fail(f'segment whose id is none from 1 to {LARGEST - 1}',
                       f'image {image}: id {name!r}')
        elif name in ids:
            found.fail('two segments of one id', f'image {image}: id {name}')
        elif not isinstance(segment.get('category_id'), int) or segment['category_id'] not in known:
            found.fail('segment of an unknown category',
                       f'image {image}, segment {name}: category_id '
                       f'{segment.get("category_id")!r}')
        else:
            ids.add(name)
            kept.append(dict(segment, iscrowd=int(bool(segment.get('iscrowd', 0)))))
    if sizes[image] is not None:
        found.annotations.append(dict(annotation, segments_info=kept))


def classes_of(dataset: Mapping[str, Any]) -> list[str]:
    """The names of the classes that the JSON of a data set's config has: things, then stuff."""
    things, stuff = read(coco.ann_file_of(dataset)).names()
    return things + stuff


def things_of(dataset: Mapping[str, Any], classes: Sequence[str] | None) -> list[str] | None:
    """Which of the classes of a data set's config are things; None: nobody knows here.

    Raises:
        UserError: If a class is no category, or they are in another order.
    """
    said = (dataset.get('metainfo') or {}).get('thing_classes')
    if said is not None:
        return list(said)
    file = coco.ann_file_of(dataset)
    return read(file).names(classes)[0] if file.is_file() else None


def segment_folder(dataset: Mapping[str, Any]) -> Path:
    """The folder of the PNGs of a data set's config."""
    prefix = dataset.get('data_prefix') or {}
    return Path(dataset.get('data_root') or '', prefix.get('seg') or '')


def check_paths(dataset: Mapping[str, Any], split: str) -> None:
    """Check that a data set's JSON and folders are there.

    Raises:
        UserError: If not.
    """
    coco.check_paths(dataset, split)
    folder = segment_folder(dataset)
    if not folder.is_dir():
        raise UserError(f'data of {split}: no folder {folder} (data_prefix.seg)')


# --- a PNG against its annotation ------------------------------------------------------------


def faults_of(
    ids: np.ndarray, annotation: Mapping[str, Any], size: tuple[int, int] | None = None
) -> list[tuple[str, str]]:
    """What of a PNG does not fit its annotation: (kind, what).

    Args:
        ids: (H, W).
        annotation: Of its image.
        size: (width, height) that the JSON says; None: not asked.
    """
    if size is not None and ids.shape != size[::-1]:
        return [('PNG of another size than the JSON says',
                 f'{ids.shape[1]} x {ids.shape[0]}, the JSON {size[0]} x {size[1]}')]
    there = set(np.unique(ids).tolist()) - {0}
    said = {segment['id'] for segment in annotation['segments_info']}
    found = []
    for kind, odd in (('colours that are not in the JSON', there - said),
                      ('segments that have no pixel', said - there)):
        if odd:
            found.append((kind, f'ids {checks.some(map(str, sorted(odd)))}'))
    return found


def read_segments(
    folder: str | os.PathLike, annotation: Mapping[str, Any], size: tuple[int, int] | None = None
) -> np.ndarray:
    """The ids (H, W) int32 of an image's PNG, which fit its annotation.

    Args:
        folder: Of the PNGs.
        annotation: Of the image.
        size: (width, height) that the JSON says; None: not asked.

    Raises:
        UserError: If the PNG cannot be read, or they do not fit.
    """
    path = Path(folder, annotation['file_name'])
    ids = read_ids(path)
    for kind, line in faults_of(ids, annotation, size):
        raise UserError(f'{path}: {kind}: {line} (vpt-dense check names all)')
    return ids


# --- checking --------------------------------------------------------------------------------


def check_segments_of(dataset: Any, name: str, how: dict) -> dict:
    """Checks images and segments of a data set, see :mod:`vpt_dense.datasets.checks`."""
    return check(
        dataset.ann_file, dataset.data_prefix.get('img') or '',
        dataset.data_prefix.get('seg') or '', dataset.metainfo.get('classes'), name=name, **how)


def check(
    ann_file: str | os.PathLike, folder: str | os.PathLike, segments: str | os.PathLike,
    classes: Sequence[str] | None = None, *, name: str = '', **how: Any,
) -> dict:
    """Checks a JSON, its images and its PNGs by decoding every file.

    Args:
        ann_file: The JSON.
        folder: Of the images.
        segments: Of the PNGs.
        classes: The names of those that count, in label order; None: all.
        name: The split's, for the progress bar.
        **how: As in :func:`vpt_dense.datasets.checks.check_classification`.

    Returns:
        As there; ``per_class`` counts segments. And ``segments``, ``things``, ``crowds``,
        ``void_share`` (pixels of no segment, 0 to 1; None: no PNG was read), and ``faults``:
        {kind: [line, ...]}, all of which are problems.
    """
    found = read(ann_file)
    things, stuff = found.names(classes)
    names, labels = things + stuff, found.label_of(things + stuff)
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
        found.faults['image that is not there'] = absent
    coco.check_sizes(found, paths, set(absent) | set(split['unreadable']))
    counts: Counter[str] = Counter(dict.fromkeys(names, 0))
    other: Counter[Any] = Counter()
    void = pixels = crowds = 0
    sizes = {image['id']: (image['width'], image['height']) for image in found.images}
    for annotation in found.annotations:
        for segment in annotation['segments_info']:
            if segment['category_id'] not in labels:
                other[segment['category_id']] += 1
                continue
            counts[names[labels[segment['category_id']]]] += 1
            crowds += segment['iscrowd']
        path = Path(segments, annotation['file_name'])
        try:
            ids = read_ids(path)
        except UserError as error:
            found.fail('PNG that cannot be read', str(error))
            continue
        void, pixels = void + int((ids == 0).sum()), pixels + ids.size
        for kind, line in faults_of(ids, annotation, sizes[annotation['image_id']]):
            found.fail(kind, f'{path}: {line}')
    for kind, each in found.faults.items():
        problems.append(f'{kind}: {checks.some(each)}')
    if other:
        told = (f'{number} of category {key}' for key, number in other.items())
        warnings.append(f'segments that dataset.classes leaves out: {checks.some(told)}')
    if paths and not sum(counts.values()):
        problems.append('no image has a segment')
    lacking = [label for label, number in counts.items() if not number]
    if lacking and sum(counts.values()):
        warnings.append(f'{len(lacking)} classes without a segment: {checks.some(lacking)}')
    split.update(
        per_class=dict(counts), segments=sum(counts.values()), crowds=crowds,
        things=sum(counts[each] for each in things),
        void_share=void / pixels if pixels else None, faults=found.faults)
    return split
