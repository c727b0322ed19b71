"""What is there of a collection of data sets, VTAB-1k or FGVC, and what is missing."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vpt_dense.datasets import list_files
from vpt_dense.datasets.list_files import FGVC_SETS, VTAB_TASKS
from vpt_dense.errors import UserError

#: Name -> folders of the collection.
COLLECTIONS: dict[str, tuple[str, ...]] = {'vtab-1k': tuple(VTAB_TASKS), 'fgvc': tuple(FGVC_SETS)}


def check(name: str, root: str | os.PathLike) -> list[dict[str, Any]]:
    """Look at the lists of every set of a collection; images are looked for, and not read.

    Args:
        name: ``vtab-1k`` or ``fgvc``.
        root: Holds a folder for each set.

    Returns:
        Of each set ``name``, ``classes`` (found, expected), ``images`` ({list: (found, expected)};
        found is None where the list is not there), ``problems`` (lines; what makes results others
        than the field's, or a run fail).

    Raises:
        UserError: If there is no folder.
    """
    if not Path(root).is_dir():
        raise UserError(
            f'no folder {root} (from {os.getcwd()}); it holds {", ".join(COLLECTIONS[name][:3])}, '
            '...; --root says where it is')
    look: Callable[[Path], dict[str, Any]] = _vtab if name == 'vtab-1k' else _fgvc
    return [dict(name=folder, **look(Path(root, folder))) for folder in COLLECTIONS[name]]


def _vtab(folder: Path) -> dict[str, Any]:
    task = VTAB_TASKS[folder.name]
    expected = dict(train800=800, val200=200, train800val200=1000, test=task.test)
    lists = {split: f'{split}.txt' for split in expected}
    names = [str(i) for i in range(task.classes)]
    return _look(folder, lists, expected, names, '')


def _fgvc(folder: Path) -> dict[str, Any]:
    found = FGVC_SETS[folder.name]
    expected = dict(train=found.train, val=found.val, test=found.test)
    lists = {split: f'{split}.json' for split in expected}
    try:
        names = list_files.class_names(folder)
    except UserError:
        names = []
    prefix = list_files.find_prefix(folder)
    seen = _look(folder, lists, expected, names, prefix)
    if names and len(names) != found.classes:
        seen['problems'].append(f'{len(names)} classes, {found.classes} expected')
    return {**seen, 'classes': (len(names) or None, found.classes)}


def _look(
    folder: Path, lists: dict[str, str], expected: dict[str, int], names: list[str], prefix: str
) -> dict[str, Any]:
    problems, images, labels = [], dict.fromkeys(lists), Counter()
    if not folder.is_dir():
        return dict(classes=(None, len(names)), images={s: (None, expected[s]) for s in lists},
                    problems=[f'no folder {folder}'])
    for split, file in lists.items():
        if not (folder / file).is_file():
            problems.append(f'no {file}')
            continue
        try:
            samples = list_files.read_list([folder / file], folder / prefix, names)
        except UserError as error:
            problems.append(str(error))
            continue
        images[split] = len(samples)
        labels.update(label for _, label in samples)
    for split, number in images.items():
        if number is not None and number != expected[split]:
            problems.append(f'{lists[split]} has {number:,} images, {expected[split]:,} expected')
    problems += _overlaps(folder, lists, prefix, names, images)
    found = len(labels) or None
    if found is not None and found != len(names):
        problems.append(f'{found} classes have an image in the lists, {len(names)} expected')
    return dict(classes=(found, len(names)), problems=problems,
                images={split: (images[split], expected[split]) for split in lists})


def _overlaps(
    folder: Path, lists: dict[str, str], prefix: str, names: list[str], images: dict[str, Any]
) -> Iterator[str]:
    """Lines for images that two lists share which must share none, and for a sum that is none."""
    content = {split: dict(list_files.read_list([folder / lists[split]], folder / prefix, names))
               for split, number in images.items() if number is not None}
    apart = [split for split in content if split != 'train800val200']
    for i, first in enumerate(apart):
        for second in apart[i + 1 :]:
            shared = content[first].keys() & content[second].keys()
            if shared:
                yield (f'{lists[first]} and {lists[second]} share {len(shared):,} images, '
                       f'e.g. {min(shared)}')
    if {'train800', 'val200', 'train800val200'} <= content.keys():
        both, parts = content['train800val200'], {**content['train800'], **content['val200']}
        if both.keys().isdisjoint(parts):  # a folder of copies: their names say nothing
            same = Counter(both.values()) == Counter(parts.values())
        else:
            same = both == parts
        if not same:
            yield 'train800val200.txt is not train800.txt and val200.txt together'
