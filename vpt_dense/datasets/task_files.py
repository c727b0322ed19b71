"""Files of maps of several tasks, as the sets PASCAL-Context and NYUDv2 have them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vpt_dense.datasets import checks, map_files

#: What a task's files hold -> what stands for unknown.
KINDS = {
    'labels': 255, 'saliency': 255, 'edges': 255, 'depth': 0, 'normals': 0,
    'context_edges': 255, 'context_parts': 255, 'context_normals': 0}
#: Arguments of a kind, beside ``kind``, ``path`` and ``suffix``.
OPTIONS = {'labels': {'zero_is_unknown', 'classes'}, 'saliency': {'classes'},
           'depth': {'scale'}, 'context_parts': {'classes'}}
#: Parts of persons of PASCAL-Part -> 1 to 6: head, torso, upper arms, lower arms, upper legs, lower
#: legs, as the multi-task literature groups them (K.-K. Maninis et al., CVPR 2019).
_PARTS = {
    **dict.fromkeys(('hair', 'head', 'lear', 'lebrow', 'leye', 'mouth', 'nose', 'rear', 'rebrow',
                     'reye'), 1),
    'neck': 2, 'torso': 2, 'luarm': 3, 'ruarm': 3,
    **dict.fromkeys(('llarm', 'lhand', 'rlarm', 'rhand'), 4),
    'luleg': 5, 'ruleg': 5,
    **dict.fromkeys(('llleg', 'lfoot', 'rlleg', 'rfoot'), 6)}
_PERSON = 15
#: Labels of PASCAL-Context that NYUDv2 has too, where normals that a network for NYUDv2 has found
#: count (as in the same literature).
_NORMALS = frozenset(map(int, '''
3 4 6 9 10 11 13 15 17 18 22 23 29 30 33 34 36 37 38 39 41 43 46 49 50 51 53 55 56 59 61 62 65 66
68 69 72 73 78 83 84 85 87 88 95 96 101 104 105 107 111 113 115 122 124 135 141 142 143 146 150 154
157 158 159 165 172 174 181 183 184 191 193 195 197 199 202 213 215 216 219 220 223 225 228 230 232
233 238 239 242 243 246 250 251 252 255 260 261 263 269 272 273 275 281 283 284 285 286 287 288 290
291 292 293 295 304 307 309 310 314 315 319 323 329 330 331 336 342 345 349 350 351 352 355 357 368
370 371 374 379 380 383 384 397 401 403 405 407 408 411 412 413 414 417 419 421 423 427 429 430 432
440 441 442 443 444 446 454 457'''.split()))


def read(
    kind: str, path: str | os.PathLike, how: Mapping[str, Any] | None = None,
    shape: tuple[int, int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Read the map of a task.

    Args:
        kind: One of :data:`KINDS`:

            - ``labels``: an image of ids; with ``zero_is_unknown`` 0 is not known and 1 becomes 0;
            - ``saliency``: an image; 1 where it is above half of its type's largest number, else 0;
            - ``edges``: an image or array; 1 where it is above 0, else 0;
            - ``depth``: as :func:`vpt_dense.datasets.map_files.read_depth`, of ``scale`` units a
              metre, by default 1;
            - ``normals``: as :func:`vpt_dense.datasets.map_files.read_normals`;
            - ``context_edges``: between the labels of a ``.mat`` file of PASCAL-Context
              (``LabelMap``), a pixel whose right or lower neighbour has another label;
            - ``context_parts``: of a ``.mat`` file of PASCAL-Part (``anno``), parts of persons,
              1 to 6, else 0;
            - ``context_normals``: as ``normals``, but where the labels of PASCAL-Context are none
              of NYUDv2 nothing is known; they are in
              ``../pascal-context/trainval/NAME.mat``, as the set has them.
        path: The file.
        how: Arguments of the kind.
        shape: (height, width) of the image; None: it is not compared.

    Returns:
        (H, W) uint8 (classes), (H, W) float32 (metres) or (H, W, 3) float32 (normals).

    Raises:
        ValueError: If the file cannot be read, is none of the kind, or has another size; the
            message names it.
    """
    how, path = how or {}, os.fspath(path)
    if kind == 'context_parts':
        found = _read_parts(path, shape)
    elif kind == 'context_edges':
        labels = _labels_of(path)
        found = np.zeros(labels.shape, np.uint8)
        found[:, :-1] |= labels[:, 1:] != labels[:, :-1]
        found[:-1] |= labels[1:] != labels[:-1]
    elif kind == 'depth':
        found = map_files.read_depth(path, how.get('scale', 1))
    elif kind in ('normals', 'context_normals'):
        found = map_files.read_normals(path)
        if kind == 'context_normals':
            place = Path(path)
            labels = _labels_of(place.parent.parent / 'pascal-context/trainval' /
                                f'{place.stem}.mat')
            if labels.shape != found.shape[:2]:  # they come at another size
                found = cv2.resize(found, labels.shape[::-1], interpolation=cv2.INTER_NEAREST)
            found = np.where(np.isin(labels, list(_NORMALS))[..., None], found, np.float32(0))
    else:
        found = _read_classes(kind, path, how)
    if shape is not None and found.shape[:2] != tuple(shape):
        raise ValueError(f'{path} is {found.shape[1]}x{found.shape[0]}, its image '
                         f'{shape[1]}x{shape[0]}')
    return found


def _read_classes(kind: str, path: str, how: Mapping[str, Any]) -> np.ndarray:
    of_array = path.lower().endswith('.npy')
    array = map_files.read_map(path) if of_array else checks.read_mask(path)
    if array.ndim != 2:
        raise ValueError(f'{path} has {array.shape[2]} channels; {kind} have one')
    if kind == 'edges':
        return (array > 0).astype(np.uint8)
    if kind == 'saliency':
        top = np.iinfo(array.dtype).max if array.dtype.kind == 'u' else 1
        return (array > top / 2).astype(np.uint8)
    if array.size and not 0 <= array.min() <= array.max() <= 255:
        raise ValueError(f'{path} has ids from {array.min()} to {array.max()}; class ids are 0 to '
                         '254, and 255 is ignored')
    found = array.astype(np.uint8)
    return found - np.uint8(1) if how.get('zero_is_unknown') else found  # 0 becomes 255


def _mat(path: str | os.PathLike, key: str) -> Any:
    from scipy.io import loadmat  # takes a third of a second

    try:
        return loadmat(os.fspath(path))[key]
    except (OSError, ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ValueError(f'{path} cannot be read as a .mat file with {key}: {error}') from error


def _labels_of(path: str | os.PathLike) -> np.ndarray:
    labels = _mat(path, 'LabelMap')
    if labels.ndim != 2:
        raise ValueError(f'{path}: LabelMap is of shape {labels.shape}, (H, W) was expected')
    return labels


def _read_parts(path: str, shape: tuple[int, int] | None) -> np.ndarray:
    anno = _mat(path, 'anno')
    found = None
    try:
        things = anno[0][0][1][0]  # of (name of the image, things)
        for thing in things:  # (class, its number, mask, parts)
            mask = np.asarray(thing[2])
            found = np.zeros(mask.shape, np.uint8) if found is None else found
            if int(thing[1][0][0]) != _PERSON or not len(thing[3]):
                continue
            for part in thing[3][0]:  # (name, mask)
                name = str(part[0][0])
                if name not in _PARTS:
                    raise ValueError(f'{path}: there is no part of persons called {name}')
                found[np.asarray(part[1]).astype(bool)] = _PARTS[name]
    except (IndexError, TypeError) as error:
        raise ValueError(f'{path}: anno is none of PASCAL-Part: {error}') from error
    if found is None:
        if shape is None:
            raise ValueError(f'{path} holds nothing, not even the size of its image')
        found = np.zeros(shape, np.uint8)
    return found
