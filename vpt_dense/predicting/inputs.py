"""Finds images by files, folders, patterns and lists of paths, and names each result."""

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vpt_dense.datasets import listing, medical, raster
from vpt_dense.datasets.checks import IMAGE_SUFFIXES
from vpt_dense.errors import UserError


class Image(NamedTuple):
    """An image to predict.

    Attributes:
        path: Where it is, as the user said.
        name: Of its results: the path below the folder that all images have in common (of relative
            paths in a list, that from which they are seen), without suffix; '/' between folders.
    """

    path: str
    name: str

    @property
    def root(self) -> str:
        """The folder below which the name is the path."""
        path = os.path.abspath(self.path)
        for _ in range(self.name.count('/') + 1):
            path = os.path.dirname(path)
        return path


def find(sources: Iterable[str], out: str | Path | None = None) -> list[Image]:
    """Find the images that are meant.

    Args:
        sources: Each is a file; a folder, searched with its sub-folders for names that end as
            images do (hidden ones are left out); a pattern such as ``'data/**/*_rgb.tif'``; a text
            file (``.txt``) with a path a line; or ``-``, the same from standard input. A path in a
            list is seen from the current folder, or, if there is no such file, from the list's.
        out: The folder of the results, which is left out of every search.

    Returns:
        The images in that order, none twice. No two have the same name: of two that differ in the
        suffix alone it is a part of the name.

    Raises:
        UserError: If a source is not there, or there is no image.
    """
    sources = list(sources)
    hidden = os.path.abspath(out) if out is not None else None
    found: dict[str, str] = {}  # absolute path -> as the user said
    roots = []
    for source in sources:
        for root, path in _expand(source, hidden):
            for each in medical.slices(path):
                found.setdefault(os.path.abspath(each), each)
            roots.append(os.path.abspath(root))
    if not found:
        raise UserError(
            f'no images in {", ".join(sources)}; folders are searched for '
            f'{", ".join(IMAGE_SUFFIXES)}, other files have to be named'
        )
    common = os.path.commonpath({*roots, *map(os.path.dirname, found)})
    whole = {path: os.path.relpath(path, common).replace(os.sep, '/') for path in found}
    stems = Counter(os.path.splitext(name)[0] for name in whole.values())
    names = {}
    for path, name in whole.items():
        stem = os.path.splitext(name)[0]
        names[path] = stem if stems[stem] == 1 else name
    if len(set(names.values())) < len(names):  # a.png, a.jpg and a.png.tif
        names = whole
    return [Image(found[path], name) for path, name in names.items()]


def _expand(source: str, hidden: str | None) -> Iterator[tuple[str, str]]:
    """(The folder that a name begins at, path) of every image that a source means."""
    if source == '-':
        yield from _listed(sys.stdin, 'standard input', '')
    elif os.path.isdir(source):
        yield from ((source, path) for path in _walk(source, hidden))
    elif source.lower().endswith('.txt') and os.path.isfile(source):
        with open(source, encoding='utf-8-sig', errors='surrogateescape') as stream:
            yield from _listed(stream, source, os.path.dirname(source))
    elif os.path.exists(source) or raster.exists(source):
        yield os.path.dirname(source), source
    elif glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
        if not matches:
            raise UserError(f'{source}: no file fits the pattern (from {os.getcwd()})')
        for match in matches:
            if os.path.isdir(match):
                if '**' not in source:  # which fits what is in the folders too
                    yield from ((match, path) for path in _walk(match, hidden))
            elif not _is_below(match, hidden):
                yield os.path.dirname(match), match
    else:
        raise UserError(f'{source}: no such file or folder (from {os.getcwd()})')


def _walk(folder: str, hidden: str | None) -> Iterator[str]:
    """The images below a folder, sorted; a folder that a link leads back to is not entered."""
    for path in listing.walk(folder):
        if path.lower().endswith(IMAGE_SUFFIXES) and not _is_below(path, hidden):
            yield path


def _is_below(path: str, folder: str | None) -> bool:
    if folder is None:
        return False
    path = os.path.abspath(path)
    return path == folder or path.startswith(os.path.join(folder, ''))


def _listed(lines: Iterable[str], where: str, folder: str) -> Iterator[tuple[str, str]]:
    empty = True
    try:
        for line in lines:
            path = line.strip('\r\n')
            path = path if raster.exists(path) else path.strip()
            if not path:
                continue
            empty = False
            beside = os.path.join(folder, path)
            path = beside if not raster.exists(path) and raster.exists(beside) else path
            # A list of other images of the same folder shall not name them by another root.
            seen_from = folder if path is beside else ''
            yield os.path.dirname(path) if os.path.isabs(path) else seen_from, path
    except UnicodeDecodeError as error:
        raise UserError(f'{where} is no text with a path a line') from error
    if empty:
        raise UserError(f'{where} lists no image; it must have a path a line')
