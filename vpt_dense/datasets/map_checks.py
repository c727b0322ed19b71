"""Looks through maps of depth and of normals before a run does."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vpt_dense.datasets import map_files, raster
from vpt_dense.datasets.checks import check_classification, some

#: Metres: a middle depth of a data set out of this is odd.
_USUAL = (0.05, 500.0)


def check_depth_of(dataset: Any, name: str, how: dict) -> dict:
    """Check a :class:`vpt_dense.datasets.map_folder.DepthFolder`, every file of it.

    Args:
        dataset: Built, without a pipeline.
        name: Of the split.
        how: As in :func:`vpt_dense.datasets.checks.check_classification`.

    Returns:
        As there, with ``maps``, ``maps_without_image``, ``depth`` (``min``, ``median``, ``max`` of
        all maps in metres: the median is that of their medians; None without any) and ``known``
        (the share of pixels with a depth, 0 to 1).
    """
    split, found = _check(dataset, name, how, functools.partial(_look_at_depth, dataset))
    known = [each for each in found.values() if each['median'] is not None]
    split['depth'] = dict(
        min=min(each['min'] for each in known), max=max(each['max'] for each in known),
        median=float(np.median([each['median'] for each in known]))) if known else None
    warnings = split['warnings']
    negative = [path for path, each in found.items() if each['negative']]
    if negative:
        warnings.append(f'{len(negative)} maps have depths below 0, which count as none: '
                        f'{some(negative)}')
    coarse = [path for path, each in found.items() if each['bits'] == 8]
    if coarse:
        warnings.append(
            f'{len(coarse)} maps have 8 bits, too few for metres: {some(coarse)}; are they '
            'pictures of depth, or disparities?')
    if known and not _USUAL[0] <= split['depth']['median'] <= _USUAL[1]:
        warnings.append(
            f'the middle depth is {split["depth"]["median"]:.3g} m: is dataset.depth_scale='
            f'{dataset.depth_scale:g} the number of units in a metre?')
    return split


def check_normals_of(dataset: Any, name: str, how: dict) -> dict:
    """Check a :class:`vpt_dense.datasets.map_folder.NormalFolder`, as :func:`check_depth_of`.

    Returns:
        As there, without ``depth``; ``facing`` is the share, 0 to 1, of normals with z above 0.
    """
    split, found = _check(dataset, name, how, _look_at_normals)
    facing = [each['facing'] for each in found.values() if each['facing'] is not None]
    split['facing'] = float(np.mean(facing)) if facing else None
    if facing and 0.2 < split['facing'] < 0.8:
        split['warnings'].append(
            f'{split["facing"]:.0%} of the normals have z above 0, the others below: of what a '
            'camera sees nearly all have one sign; are x, y, z the channels R, G, B?')
    return split


def _check(
    dataset: Any, name: str, how: dict, look: Callable[[str], dict]
) -> tuple[dict, dict[str, dict]]:
    """Check images and maps; what ``look`` finds of each map that can be read."""
    pairs, extra = dataset.list_pairs()
    split = check_classification(
        [(image, None) for image, _ in pairs], (), name=name, needs_all_classes=False, **how)
    maps = [(image, path) for image, path in pairs if path is not None]
    found, unreadable, different, empty = {}, {}, [], []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looked = pool.map(functools.partial(_look, look), maps)
        for (image, path), each in zip(maps, how['track'](
                looked, description=f'{name}, maps', total=len(maps)), strict=True):
            if isinstance(each, str):
                unreadable[path] = each
                continue
            found[path] = each
            size = _size_of(image)
            if size is not None and size != each['size']:
                different.append(f'{image} is {size[1]}x{size[0]}, its map {each["size"][1]}x'
                                 f'{each["size"][0]}')
            if not each['known']:
                empty.append(path)
    problems, warnings = split['problems'], split['warnings']
    bare = [image for image, path in pairs if path is None]
    if bare and dataset.data_prefix.get(dataset.KEY) is not None:
        problems.append(f'{len(bare)} images without a map: {some(bare)}')
    if unreadable:
        problems.append(f'{len(unreadable)} maps cannot be read: '
                        f'{some(unreadable.values())}')
    if different:
        problems.append(f'image and map differ in size: {some(different)}')
    if empty:
        (problems if len(empty) == len(found) else warnings).append(
            f'{len(empty)} of {len(found)} maps are 0 everywhere: {some(empty)}')
    if extra:
        warnings.append(f'{len(extra)} maps without an image: {some(extra)}')
    split['unreadable'] |= unreadable
    pixels = sum(each['size'][0] * each['size'][1] for each in found.values())
    split.update(
        maps=len(maps), maps_without_image=list(extra), size_mismatch=different, maps_empty=empty,
        known=sum(each['known'] for each in found.values()) / pixels if pixels else None)
    return split, found


def _look(look: Callable[[str], dict], pair: tuple[str, str]) -> dict | str:
    try:
        return look(pair[1])
    except (ValueError, OSError) as error:
        return str(error) if pair[1] in str(error) else f'{pair[1]}: {error}'


def _size_of(image: str) -> tuple[int, int] | None:
    try:
        info = raster.image_info(image)
    except ValueError:
        return None  # told of the images
    return info.height, info.width


def _look_at_depth(dataset: Any, path: str) -> dict:
    array = map_files.read_map(path)
    depth = map_files.read_depth(path, dataset.depth_scale)
    known = depth[depth > 0]
    return dict(
        size=depth.shape, known=len(known), bits=8 * array.dtype.itemsize,
        negative=bool((array < 0).any()),
        **{key: float(getattr(np, key)(known)) if len(known) else None
           for key in ('min', 'median', 'max')})


def _look_at_normals(path: str) -> dict:
    normals = map_files.read_normals(path)
    known = (normals != 0).any(2)
    return dict(
        size=known.shape, known=int(known.sum()),
        facing=float((normals[known][:, 2] > 0).mean()) if known.any() else None)
