"""COCO annotations of masks of ids of instances, or of classes; panoptic ones too."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vpt_dense import safe_files, segments
from vpt_dense.datasets import checks, panoptic, raster
from vpt_dense.datasets.label_maps import run_lengths
from vpt_dense.errors import UserError


def to_coco(
    images: str | os.PathLike, masks: str | os.PathLike, out: str | os.PathLike,
    only: str = '', name: str | None = None, classes: Mapping[int, str] | None = None,
    min_area: int = 1, track: Callable = lambda items, **_: items,
) -> dict[str, int]:
    """Write the COCO JSON of images and masks of the same names.

    Either each id of a mask is an instance of one class (``name``), and 0 none; or the masks are of
    ids of classes, and an instance is what is connected of one of ``classes``, corners included.
    Things of a class that touch are then one.

    Args:
        images: Folder of images, with its sub-folders. ``file_name`` in the JSON is relative to it.
        masks: Folder of masks of one channel of integers, named as the images.
        out: The JSON that is written.
        only: A sub-folder of both, which alone is read: a split.
        name: Of the class of the instances.
        classes: Id in the masks -> name.
        min_area: Instances of fewer pixels are left out.
        track: ``rich.progress.track`` or alike.

    Returns:
        ``images``, ``annotations``, ``left_out``: how many; and how many of each class, as
        ``class NAME``.

    Raises:
        UserError: If a folder or a mask is absent, a mask cannot be read or has another size than
            its image, nothing is found, or the file is there.
    """
    if Path(out).exists():
        raise UserError(f'{out} is there already; move it away, or name another file')
    pairs = _pairs(images, masks, only)
    names = [name] if classes is None else list(dict.fromkeys(classes.values()))
    content: dict[str, Any] = dict(
        images=[], annotations=[], categories=[
            dict(id=i, name=each) for i, each in enumerate(names, 1)])
    found = {'images': len(pairs), 'annotations': 0, 'left_out': 0, **{
        f'class {each}': 0 for each in names}}
    for number, (image, path) in enumerate(track(pairs, description=str(out)), 1):
        mask = _read(image, path)
        content['images'].append(dict(
            id=number, file_name=_name_below(image, images),
            width=mask.shape[1], height=mask.shape[0]))
        for category, labels in _labelled(mask, names, classes):
            for own in _each(labels):
                area = int(own.sum())
                if area < min_area:
                    found['left_out'] += 1
                    continue
                found['annotations'] += 1
                found[f'class {names[category]}'] += 1
                content['annotations'].append(dict(
                    id=found['annotations'], image_id=number, category_id=category + 1,
                    bbox=_sides(own), area=area, iscrowd=0,
                    segmentation=dict(size=list(mask.shape), counts=run_lengths(own))))
    if not found['annotations']:
        raise UserError(
            f'{masks}: no pixel of '
            + (f'the ids {", ".join(map(str, classes))}' if classes else 'an id above 0')
            + f' in instances of {min_area} pixels and more')
    safe_files.write_text(out, json.dumps(content) + '\n')
    return found


def to_panoptic(
    images: str | os.PathLike, masks: str | os.PathLike, out: str | os.PathLike,
    stuff: Mapping[int, str], things: Mapping[int, str], instances: str | os.PathLike | None = None,
    only: str = '', min_area: int = 1, track: Callable = lambda items, **_: items,
) -> dict[str, int]:
    """Write the panoptic JSON and PNGs of images and masks of ids of classes, of the same names.

    What an image shows of a class of stuff is one segment. Of a class of things it is what is
    connected, corners included; or, with ``instances``, what has one id there, and pixels of the
    class without an id are a crowd. Other pixels, and things that are too small, are void.

    Args:
        images: Folder of images, with its sub-folders.
        masks: Folder of masks of one channel of ids of classes.
        out: The JSON; the PNGs go into the folder ``panoptic`` beside it, named as the images.
        stuff: Id in the masks -> name.
        things: Likewise.
        instances: Folder of masks of ids of instances, 0 none.
        only: A sub-folder of all, which alone is read: a split.
        min_area: Things of fewer pixels are left out.
        track: ``rich.progress.track`` or alike.

    Returns:
        ``images``, ``left_out`` and ``crowds``: how many; and how many segments of each class, as
        ``class NAME``.

    Raises:
        UserError: If a folder or a mask is absent, a mask cannot be read or has another size than
            its image, a name is of a thing and of stuff, nothing is found, or a file is there.
    """
    both = sorted(set(stuff.values()) & set(things.values())) or sorted(set(stuff) & set(things))
    if both:
        raise UserError(f'{both[0]!r} is named among things and among stuff')
    folder = Path(out).parent / panoptic.SEGMENTS
    pairs = _pairs(images, masks, only)
    named = [_name_below(image, images) for image, _ in pairs]
    targets = [folder / Path(name).with_suffix('.png') for name in named]
    if len(set(targets)) < len(targets):
        raise UserError(f'{images}: two images have the same name but for its ending')
    for path in (Path(out), *targets):
        if path.exists():
            raise UserError(f'{path} is there already; move it away, or name another file')
    ids_of = {} if instances is None else dict(_pairs(images, instances, only))
    names = list(dict.fromkeys([*things.values(), *stuff.values()]))
    content: dict[str, Any] = dict(images=[], annotations=[], categories=[
        dict(id=i, name=each, isthing=int(each in things.values()))
        for i, each in enumerate(names, 1)])
    found = {'images': len(pairs), 'left_out': 0, 'crowds': 0, **{
        f'class {each}': 0 for each in names}}
    with safe_files.told(out):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=Path(out).parent, prefix='.panoptic-')
    with place:
        for number, ((image, path), name, target) in enumerate(
                zip(track(pairs, description=str(out)), named, targets, strict=True), 1):
            mask = _read(image, path)
            own = _read(image, ids_of[image]) if ids_of else None
            ids, segments_info = np.zeros(mask.shape, np.int32), []
            for category, part, is_crowd in _segments(mask, own, names, stuff, things):
                area = int(part.sum())
                if area < min_area and names[category] in things.values():
                    found['left_out'] += 1
                    continue
                ids[part] = len(segments_info) + 1
                segments_info.append(dict(
                    id=len(segments_info) + 1, category_id=category + 1, area=area,
                    iscrowd=is_crowd, bbox=_sides(part)))
                found[f'class {names[category]}'] += 1
                found['crowds'] += is_crowd
            content['images'].append(dict(
                id=number, file_name=name, width=mask.shape[1], height=mask.shape[0]))
            content['annotations'].append(dict(
                image_id=number, file_name=target.relative_to(folder).as_posix(),
                segments_info=segments_info))
            cv2.imwrite(str(Path(place.name, f'{number}.png')),
                        segments.to_colours(ids)[..., ::-1])
        if not any(each['segments_info'] for each in content['annotations']):
            ids_told = ', '.join(map(str, [*things, *stuff]))
            raise UserError(f'{masks}: no pixel of the ids {ids_told}')
        with safe_files.told(out):
            for number, target in enumerate(targets, 1):
                target.parent.mkdir(parents=True, exist_ok=True)
                Path(place.name, f'{number}.png').replace(target)
    safe_files.write_text(out, json.dumps(content) + '\n')
    return found


def _segments(
    mask: np.ndarray, own: np.ndarray | None, names: list[str], stuff: Mapping[int, str],
    things: Mapping[int, str],
) -> Any:
    """(Position of a class, its pixels (H, W), 1 of a crowd) of each segment."""
    for position, name in enumerate(names):
        labels = [each for each, of in (*things.items(), *stuff.items()) if of == name]
        part = np.isin(mask, labels)
        if name in stuff.values():
            if part.any():
                yield position, part, 0
            continue
        if own is None:
            numbers = cv2.connectedComponents(part.astype(np.uint8), None, 8)[1]
        else:
            numbers = np.where(part, own, 0)
            rest = part & (own <= 0)
            if rest.any():
                yield position, rest, 1
        for each in _each(numbers):
            yield position, each, 0


def _pairs(
    images: str | os.PathLike, masks: str | os.PathLike, only: str
) -> list[tuple[str, str]]:
    """(Image, mask) of a folder."""
    pairs, alone = checks.pair_files(str(Path(images, only)), str(Path(masks, only)))
    lacking = [image for image, mask in pairs if mask is None]
    for what, paths in (('images have no mask', lacking), ('masks have no image', alone)):
        if paths:
            raise UserError(f'{len(paths)} {what} of their name: {checks.some(paths)}')
    return pairs


def _name_below(image: str, folder: str | os.PathLike) -> str:
    return Path(os.path.relpath(image, folder)).as_posix()


def _sides(part: np.ndarray) -> list[int]:
    """[x, y, width, height] around pixels, (H, W) of True and False."""
    rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
    return [int(side) for side in (
        columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]


def _read(image: str, path: str) -> np.ndarray:
    """The mask of an image."""
    try:
        mask, info = checks.read_mask(path), raster.image_info(image)
    except ValueError as error:
        raise UserError(str(error)) from error
    if mask.shape != (info.height, info.width):
        raise UserError(
            f'mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, its image {info.width} x '
            f'{info.height}')
    return mask


def _labelled(mask: np.ndarray, names: list, classes: Mapping[int, str] | None) -> Any:
    """(Position of a class, map of its instances, 0 none)."""
    if classes is None:
        yield 0, mask
        return
    for position, name in enumerate(names):
        ids = [each for each, own in classes.items() if own == name]
        yield position, cv2.connectedComponents(np.isin(mask, ids).astype(np.uint8), None, 8)[1]


def _each(labels: np.ndarray) -> Any:
    """The masks of the ids above 0."""
    for each in np.unique(labels):
        if each > 0:
            yield labels == each
