"""Files of depth and of normals; needs no framework."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from vpt_dense import safe_files
from vpt_dense.argument_checks import check_number
from vpt_dense.datasets import raster
from vpt_dense.datasets.checks import IMAGE_SUFFIXES, pair_files
from vpt_dense.errors import UserError

#: What the names of files of maps end in.
MAP_SUFFIXES = ('.png', '.tif', '.tiff', '.npy')
#: Data sets -> the key of ``data_prefix`` and of samples that says where the maps are.
KEYS = {'DepthFolder': 'depth_map_path', 'NormalFolder': 'normal_map_path'}


def check_scale(scale: float | None) -> float:
    """Return how many units of a file are a metre.

    Raises:
        UserError: If it is not said, or no number above 0.
    """
    if scale is None:
        raise UserError(
            'dataset.depth_scale: say how many units of the depth files are a metre: 1000 for '
            'millimetres (NYU), 256 for KITTI, 1 for metres')
    return check_number(scale, 'dataset.depth_scale', positive=True)


def read_map(path: str | os.PathLike) -> np.ndarray:
    """Read the numbers of a file as they are.

    Args:
        path: A ``.npy`` file or an image.

    Returns:
        (H, W) or (H, W, bands).

    Raises:
        ValueError: If it cannot be read, or holds no such array; the message names the file.
    """
    path = os.fspath(path)
    if not path.lower().endswith('.npy'):
        array = raster.read_image(path)
        return array[..., 0] if array.shape[2] == 1 else array
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f'{path} cannot be read: {error}') from error
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or array.dtype.kind not in 'fiu' or not array.size:
        raise ValueError(f'{path} holds {array.dtype} of shape {array.shape}, no map of numbers')
    return array


def read_depth(path: str | os.PathLike, scale: float) -> np.ndarray:
    """Read a depth map.

    Args:
        path: Of one channel.
        scale: How many units of the file are a metre.

    Returns:
        (H, W) float32, metres; 0 where there is none: at 0, below 0, NaN and infinity.

    Raises:
        ValueError: If it cannot be read, or has several channels; the message names the file.
    """
    array = read_map(path)
    if array.ndim != 2:
        raise ValueError(
            f'depth {path} has {array.shape[2]} channels; a depth map has one, of numbers, no '
            'colours')
    with np.errstate(over='ignore'):
        depth = (array / scale).astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def read_normals(path: str | os.PathLike) -> np.ndarray:
    """Read a map of normals.

    Args:
        path: Floating point holds the vectors themselves. Integers code each part v as
            (v + 1) / 2 of the largest number of their type, in the channels R, G, B; a pixel of
            three zeros has no normal.

    Returns:
        (H, W, 3) float32: x, y, z of length 1; zeros where there is no normal.

    Raises:
        ValueError: If it cannot be read, or has not three channels; the message names the file.
    """
    array = read_map(path)
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f'normals {path} are of shape {array.shape}; (H, W, 3) was expected')
    vectors = array.astype(np.float32)
    if array.dtype.kind == 'u':
        vectors = vectors * np.float32(2 / np.iinfo(array.dtype).max) - 1
        vectors[(array == 0).all(2)] = 0
    elif array.dtype.kind != 'f':
        raise ValueError(f'normals {path} are of {array.dtype}; take uint8, uint16 or floats')
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    there = np.isfinite(length) & (length > 0.1)  # of none, and of what rounding leaves of none
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=there)


def code_normals(vectors: np.ndarray) -> np.ndarray:
    """Vectors (H, W, 3) from -1 to 1 as 16 bits, see :func:`read_normals`; zeros stay zeros."""
    coded = np.round((vectors.astype(np.float64) + 1) / 2 * 65535).clip(1, 65535)
    return np.where((vectors != 0).any(2, keepdims=True), coded, 0).astype(np.uint16)


def depth_suffix(scale: float, farthest: float) -> str:
    """What files of predicted depth end in.

    Args:
        scale: How many units of the data set's files are a metre.
        farthest: The greatest depth that can be predicted, in metres.

    Returns:
        '.png', 16 bits in those units, where they are fine enough (a centimetre) and hold the
        greatest depth; else '.npy', float32 in metres.
    """
    return '.png' if scale >= 100 and farthest * scale <= np.iinfo(np.uint16).max else '.npy'


def write_depth(path: Path, depth: np.ndarray, scale: float, farthest: float) -> Path:
    """Write a depth map (H, W) in metres; see :func:`depth_suffix`.

    Args:
        path: The file; its suffix is replaced.
        depth: The map.
        scale: As there.
        farthest: As there.

    Returns:
        The file that was written.
    """
    path = path.with_suffix(depth_suffix(scale, farthest))
    if path.suffix == '.npy':
        with safe_files.atomic(path) as unfinished, unfinished.open('wb') as stream:
            np.save(stream, depth.astype(np.float32))
    else:
        units = np.round(depth.astype(np.float64) * scale).clip(0, 65535)
        _write_png(path, units.astype(np.uint16))
    return path


def write_normals(path: Path, normals: np.ndarray) -> Path:
    """Write normals (H, W, 3) as colours of 16 bits; arguments as in :func:`write_depth`."""
    path = path.with_suffix('.png')
    _write_png(path, code_normals(normals)[..., ::-1])
    return path


def write_edges(path: Path, edges: np.ndarray) -> Path:
    """Write probabilities of edges (H, W) as 16 bits, 65535 is 1; see :func:`write_depth`."""
    path = path.with_suffix('.png')
    _write_png(path, np.round(edges.astype(np.float64) * 65535).clip(0, 65535).astype(np.uint16))
    return path


def write_distance(path: Path, distance: np.ndarray) -> Path:
    """Write distances (H, W) in pixels as float32, ``.npy``; see :func:`write_depth`."""
    path = path.with_suffix('.npy')
    with safe_files.atomic(path) as unfinished, unfinished.open('wb') as stream:
        np.save(stream, distance.astype(np.float32))
    return path


def _write_png(path: Path, array: np.ndarray) -> None:
    with safe_files.atomic(path) as unfinished:
        unfinished.write_bytes(cv2.imencode('.png', array)[1])


# --- finding files ---------------------------------------------------------------------------


def list_pairs(
    images: str, maps: str | None, img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
    map_suffix: str | Sequence[str] = MAP_SUFFIXES, ann_file: str = '',
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Pair images with their maps: by their names, or as a list says.

    Args:
        images: Folder of images.
        maps: Folder of maps; None: there are none.
        img_suffix: What an image's name ends in.
        map_suffix: What a map's name ends in; the rest must equal the image's name.
        ann_file: Names of the images to take, one a line; or ``image map`` a line, below the two
            folders, as the splits of KITTI and NYU are published (what follows, the focal length,
            is not used; a map called None leaves its line out).

    Returns:
        [(image, map or None)], and the maps without an image.

    Raises:
        UserError: If a folder or a list is absent or empty.
    """
    for folder in filter(None, (images, maps)):
        if not os.path.isdir(folder):
            raise UserError(f'folder {folder} does not exist (layouts: docs/depth.md)')
    listed = _listed(ann_file, images, maps) if ann_file and maps else None
    if listed is not None:
        return listed, []
    return pair_files(images, maps, img_suffix, map_suffix, ann_file or None)


def _listed(ann_file: str, images: str, maps: str) -> list[tuple[str, str | None]] | None:
    """The pairs of a list; None: it holds names alone."""
    try:
        lines = Path(ann_file).read_text(encoding='utf-8').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'dataset.ann_file {ann_file}: {error}') from error
    rows = [line.split() for line in lines if line.strip()]
    if not rows or not all(len(row) > 1 and _is_map(row[1]) for row in rows):
        return None
    found = []
    for image, map_, *_ in rows:
        if map_ == 'None':
            continue
        pair = [os.path.join(folder, name.lstrip('/'))
                for folder, name in ((images, image), (maps, map_))]
        lacking = next((path for path in pair if not os.path.isfile(path)), None)
        if lacking:
            raise UserError(f'{ann_file} names {lacking}, which does not exist')
        found.append(tuple(pair))
    if not found:
        raise UserError(f'{ann_file} names no image with a map')
    return found


def _is_map(name: str) -> bool:
    return name == 'None' or name.lower().endswith(MAP_SUFFIXES)


def pairs_of(dataset: dict, split: str) -> None:
    """Check that a data set's files are there, as far as its config says where.

    Args:
        dataset: Config of one of :data:`KEYS`.
        split: ``train``, ``val`` or ``test``, for messages.

    Raises:
        UserError: If not.
    """
    kind = str(dataset.get('type')).rpartition('.')[2]
    key, root = KEYS[kind], dataset.get('data_root') or ''
    if kind == 'DepthFolder':
        check_scale(dataset.get('depth_scale'))
    prefix = dataset.get('data_prefix') or {'img_path': 'images', key: 'annotations'}
    maps = prefix.get(key)
    if maps is None and split != 'test':
        raise UserError(f'data of {split}: no data_prefix.{key}; only a test can do without')
    listing = os.path.join(root, dataset['ann_file']) if dataset.get('ann_file') else ''
    pairs, _ = list_pairs(
        os.path.join(root, prefix.get('img_path') or ''),
        None if maps is None else os.path.join(root, maps),
        dataset.get('img_suffix', IMAGE_SUFFIXES), dataset.get('map_suffix', MAP_SUFFIXES), listing)
    if maps is not None:
        need_maps(pairs, maps)


def need_maps(pairs: Sequence[tuple[str, str | None]], folder: str) -> None:
    """Refuse images without a map.

    Raises:
        UserError: Names one.
    """
    bare = [image for image, map_ in pairs if map_ is None]
    if bare:
        raise UserError(f'{len(bare)} of {len(pairs)} images have no map in {folder}, e.g. '
                        f'{bare[0]} (dataset.map_suffix: what the names end in)')
