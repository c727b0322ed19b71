"""COCO annotations of masks: of ids of instances, or of connected parts of classes."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vpt_dense import safe_files
from vpt_dense.datasets import checks, raster
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
    pairs, alone = checks.pair_files(str(Path(images, only)), str(Path(masks, only)))
    lacking = [image for image, mask in pairs if mask is None]
    for what, paths in (('images have no mask', lacking), ('masks have no image', alone)):
        if paths:
            raise UserError(f'{len(paths)} {what} of their name: {checks.some(paths)}')
    names = [name] if classes is None else list(dict.fromkeys(classes.values()))
    content: dict[str, Any] = dict(
        images=[], annotations=[], categories=[
            dict(id=i, name=each) for i, each in enumerate(names, 1)])
    found = {'images': len(pairs), 'annotations': 0, 'left_out': 0, **{
        f'class {each}': 0 for each in names}}
    for number, (image, path) in enumerate(track(pairs, description=str(out)), 1):
        mask = _read(image, path)
        content['images'].append(dict(
            id=number, file_name=Path(os.path.relpath(image, images)).as_posix(),
            width=mask.shape[1], height=mask.shape[0]))
        for category, labels in _labelled(mask, names, classes):
            for own in _each(labels):
                area = int(own.sum())
                if area < min_area:
                    found['left_out'] += 1
                    continue
                rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
                sides = [int(side) for side in (
                    columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])]
                found['annotations'] += 1
                found[f'class {names[category]}'] += 1
                content['annotations'].append(dict(
                    id=found['annotations'], image_id=number, category_id=category + 1, bbox=sides,
                    area=area, iscrowd=0,
                    segmentation=dict(size=list(mask.shape), counts=run_lengths(own))))
    if not found['annotations']:
        raise UserError(
            f'{masks}: no pixel of '
            + (f'the ids {", ".join(map(str, classes))}' if classes else 'an id above 0')
            + f' in instances of {min_area} pixels and more')
    safe_files.write_text(out, json.dumps(content) + '\n')
    return found


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
