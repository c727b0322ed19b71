"""Names of files that are made from images: they keep the path below the data folder."""

import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpt_dense.datasets.checks import IMAGE_SUFFIXES


def image_names(dataset: Any) -> Callable[[str], Path]:
    """Names for what is made from the images of a data set.

    Args:
        dataset: A built data set; wrappers and data sets of several parts too.

    Returns:
        A function that takes an image's path to that below the folder of images, with its suffix
        ('city0/frame.jpg'). Of a data set in parts the folder is the one that holds all of theirs.
        Below another folder it is the whole path without its root.
    """
    folders = [os.path.abspath(folder) for folder in _folders(dataset)]
    folder = os.path.commonpath(folders) if folders else os.getcwd()

    def name(path: str) -> Path:
        whole = os.path.abspath(path.partition('://')[2] or path)
        below = os.path.relpath(whole, folder)
        outside = below.split(os.sep)[0] == os.pardir
        return Path(os.path.splitdrive(whole)[1].lstrip(os.sep) if outside else below)

    return name


def picture_names(dataset: Any) -> Callable[[str], Path]:
    """Names for pictures of the images of a data set, no two of them alike.

    Args:
        dataset: See :func:`image_names`.

    Returns:
        As there, but the name ends in '.png' in place of its suffix; where two images of a folder
        differ in nothing else, behind it.
    """
    name_of = image_names(dataset)

    def name(path: str) -> Path:
        name = name_of(path)
        if _stems(os.path.dirname(path))[name.stem] > 1:
            return name.with_name(f'{name.name}.png')
        return name.with_suffix('.png')

    return name


@functools.lru_cache(maxsize=100)
def _stems(folder: str) -> Counter[str]:
    """How many images of a folder have a name without its suffix."""
    names = os.listdir(folder or '.') if os.path.isdir(folder or '.') else []
    return Counter(Path(name).stem for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def leaves(dataset: Any) -> Iterator[Any]:
    """The data sets inside a built one: itself, or what its wrappers hold."""
    parts = [*getattr(dataset, 'datasets', []), getattr(dataset, 'dataset', None)]
    parts = [part for part in parts if part is not None]
    for part in parts:
        yield from leaves(part)
    if not parts:
        yield dataset


def _folders(dataset: Any) -> Iterator[str]:
    """The folders of images of a data set's parts."""
    for leaf in leaves(dataset):
        prefix = getattr(leaf, 'data_prefix', None)
        if isinstance(prefix, dict):  # mmdet's name is the second
            prefix = prefix.get('img_path') or prefix.get('img')
        folder = prefix or getattr(leaf, 'data_root', None)
        if folder:
            yield folder.partition('://')[2] or folder
