"""Lists of images with labels: VTAB-1k's text files, the JSON files of fine-grained sets."""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vpt_dense.argument_checks import is_list
from vpt_dense.errors import UserError, suggest

#: The lists of a task of VTAB-1k; the third is the first two together.
VTAB_SPLITS = ('train800', 'val200', 'train800val200', 'test')
#: The lists of a fine-grained set; the third is the first two together.
FGVC_SPLITS = ('train', 'val', 'trainval', 'test')


class VTABTask(NamedTuple):
    """A task of VTAB-1k.

    Attributes:
        group: ``Natural``, ``Specialized`` or ``Structured``.
        classes: How many.
        test: Images of the test.
    """

    group: str
    classes: int
    test: int


#: Folder -> task. The folders are those that the field shares (https://arxiv.org/abs/2206.04673
#: and later ones); classes and images are those of https://arxiv.org/abs/2203.12119, table 8.
VTAB_TASKS = {
    'cifar': VTABTask('Natural', 100, 10_000),
    'caltech101': VTABTask('Natural', 102, 6_084),
    'dtd': VTABTask('Natural', 47, 1_880),
    'oxford_flowers102': VTABTask('Natural', 102, 6_149),
    'oxford_iiit_pet': VTABTask('Natural', 37, 3_669),
    'svhn': VTABTask('Natural', 10, 26_032),
    'sun397': VTABTask('Natural', 397, 21_750),
    'patch_camelyon': VTABTask('Specialized', 2, 32_768),
    'eurosat': VTABTask('Specialized', 10, 5_400),
    'resisc45': VTABTask('Specialized', 45, 6_300),
    'diabetic_retinopathy': VTABTask('Specialized', 5, 42_670),
    'clevr_count': VTABTask('Structured', 8, 15_000),
    'clevr_dist': VTABTask('Structured', 6, 15_000),
    'dmlab': VTABTask('Structured', 6, 22_735),
    'kitti': VTABTask('Structured', 4, 711),
    'dsprites_loc': VTABTask('Structured', 16, 73_728),
    'dsprites_ori': VTABTask('Structured', 16, 73_728),
    'smallnorb_azi': VTABTask('Structured', 18, 12_150),
    'smallnorb_ele': VTABTask('Structured', 9, 12_150),
}


class FGVCSet(NamedTuple):
    """A fine-grained set.

    Attributes:
        classes: How many.
        train: Images for training, without those held out.
        val: Images held out.
        test: Images of the test.
    """

    classes: int
    train: int
    val: int
    test: int


#: Folder -> set; numbers of https://arxiv.org/abs/2203.12119, table 8.
FGVC_SETS = {
    'CUB_200_2011': FGVCSet(200, 5_394, 600, 5_794),
    'nabirds': FGVCSet(555, 21_536, 2_393, 24_633),
    'OxfordFlower': FGVCSet(102, 1_020, 1_020, 6_149),
    'Stanford-dogs': FGVCSet(120, 10_800, 1_200, 8_580),
    'Stanford-cars': FGVCSet(196, 7_329, 815, 8_041),
}


def vtab_task(data_root: str | os.PathLike) -> VTABTask:
    """The task that a folder is named after.

    Raises:
        UserError: If it is none.
    """
    name = Path(os.path.abspath(data_root)).name
    if name not in VTAB_TASKS:
        raise UserError(
            f'dataset.data_root: {name} is none of the 19 tasks of VTAB-1k'
            f'{suggest(name, VTAB_TASKS)} ({", ".join(VTAB_TASKS)}); for a task of your own set '
            'dataset.classes, or write their names into its classes.txt')
    return VTAB_TASKS[name]


#: Data sets of lists, see :mod:`vpt_dense.datasets.image_list`.
KINDS = ('ImageList', 'VTAB', 'FGVC')


def parts_of(dataset: Mapping[str, Any]) -> tuple[str, ...]:
    """The parts that a split of a data set consists of; none of others than VTAB and FGVC."""
    kind, split = str(dataset.get('type')).rpartition('.')[2], dataset.get('split')
    if kind == 'VTAB':
        return ('train800', 'val200') if split in (None, 'train800val200') else (split,)
    if kind == 'FGVC':
        return ('train', 'val') if split == 'trainval' else (split or 'train',)
    return ()


def lists_of(dataset: Mapping[str, Any]) -> list[str]:
    """The lists that a data set of :data:`KINDS` reads, relative to its ``data_root``."""
    kind = str(dataset['type']).rpartition('.')[2]
    files = dataset.get('ann_file') or []
    if kind == 'VTAB' and not files:
        return [f'{dataset.get("split") or "train800val200"}.txt']
    if kind == 'FGVC' and not files:
        return [f'{part}.json' for part in parts_of(dataset)]
    if not files:
        raise UserError(f'dataset.ann_file: a {kind} needs a list of images')
    return list(files) if is_list(files) else [files]


def samples_of(dataset: Mapping[str, Any]) -> list[tuple[str, int]]:
    """[(path, label)] of a data set of :data:`KINDS`, by its config.

    Raises:
        UserError: As :class:`vpt_dense.datasets.image_list.ImageList`.
    """
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix')
    if prefix is None and str(dataset['type']).endswith('FGVC'):
        prefix = find_prefix(root)
    files = [os.path.join(root, name) for name in lists_of(dataset)]
    return read_list(files, os.path.join(root, prefix or ''), classes_of(dataset))


def find_prefix(data_root: str | os.PathLike) -> str:
    """The folder of the images of a fine-grained set, of those that the sets have."""
    try:
        names = json.loads(Path(data_root, 'train.json').read_text('utf-8-sig'))
        first = next(iter(names)).replace('\\', '/')
    except (OSError, ValueError, StopIteration, TypeError, AttributeError):
        return ''  # what is wrong is told when the list is read
    prefixes = ('images', 'Images', 'jpg')
    return next((name for name in prefixes if Path(data_root, name, first).is_file()), '')


def classes_of(dataset: Mapping[str, Any]) -> list[str]:
    """The class names of a data set of :data:`KINDS`, by its config.

    Raises:
        UserError: If nothing says them.
    """
    classes = (dataset.get('metainfo') or {}).get('classes')
    number = dataset.get('num_classes')
    named = classes is not None or Path(dataset.get('data_root') or '', 'classes.txt').is_file()
    if str(dataset['type']).endswith('VTAB') and number is None and not named:
        number = vtab_task(dataset['data_root']).classes
    return class_names(dataset.get('data_root') or '', classes, number)


def class_names(
    data_root: str | os.PathLike, classes: Sequence[str] | None = None, number: int | None = None
) -> list[str]:
    """The names of the classes of a list, see :class:`vpt_dense.datasets.image_list.ImageList`.

    Args:
        data_root: Folder of the lists.
        classes: Names that are known.
        number: Of classes, if they have no names.

    Raises:
        UserError: If nothing says them, one is there twice, or the number is another than that of
            the names.
    """
    root, where = Path(data_root), 'dataset.classes'
    if classes is None and (root / 'classes.txt').is_file():
        where = str(root / 'classes.txt')
        lines = Path(where).read_text(encoding='utf-8-sig').splitlines()
        classes = [line.strip() for line in lines if line.strip()]
        if (root / 'train.json').is_file():  # authors of sets have files of that name too
            labels = sorted_labels(map(str, read_json(root / 'train.json').values()))
            classes = classes if set(labels) <= set(classes) else labels
    if classes is not None:
        if number is not None and number != len(classes):
            raise UserError(
                f'dataset.num_classes is {number}, but {where} has {len(classes)} names; '
                'leave one of them out')
        names = list(map(str, classes))
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(f'{where} has the class {twice!r} twice')
        return names
    if number is not None:
        return [str(label) for label in range(number)]
    if (root / 'train.json').is_file():
        return sorted_labels(map(str, read_json(root / 'train.json').values()))
    if not root.is_dir():
        raise UserError(f'dataset.data_root: no folder {root} (from {os.getcwd()})')
    raise UserError(
        f'dataset: nothing says the classes of {root}: it has no classes.txt and no train.json; '
        'set dataset.classes, or dataset.num_classes')


def sorted_labels(labels: Iterable[Any]) -> list[Any]:
    """Different labels in order: numbers by value ('10' behind '9'), names by letter."""
    found = set(labels)
    if all(re.fullmatch(r'-?[0-9]+', str(label)) for label in found):
        return sorted(found, key=int)
    return sorted(found, key=str)


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A list in JSON: {path: class}.

    Raises:
        UserError: If it is absent, empty, or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no list {path} (from {os.getcwd()}); it is {{"PATH": CLASS, ...}}')
    repeated: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, label in pairs:
            repeated.extend([name] if name in seen else [])
            seen[name] = label
        return seen

    try:
        content = json.loads(path.read_text(encoding='utf-8-sig'), object_pairs_hook=once)
    except ValueError as error:
        raise UserError(f'list {path} is no JSON: {error}') from error
    if repeated:
        raise UserError(f'list {path} has {repeated[0]!r} twice')
    if not isinstance(content, dict) or not content or any(
            not isinstance(label, (int, str)) or isinstance(label, bool)
            for label in content.values()):
        raise UserError(f'list {path}: {{"PATH": CLASS, ...}} was expected, at least one image')
    return content


def read_text(path: str | os.PathLike, classes: int) -> dict[str, int]:
    """A list in text, a line ``PATH LABEL`` for each image.

    Args:
        path: The file.
        classes: Their number; labels count from 0.

    Raises:
        UserError: If it is absent, empty, has a line of another kind, an image twice, or a label
            that is no class.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f'no list {path} (from {os.getcwd()}); it has a line PATH LABEL an image')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'list {path} is no text of UTF-8') from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, label = [*line.rsplit(maxsplit=1), ''][:2]
        name = name.strip().replace('\\', '/')
        if not label.isdecimal():
            raise UserError(f'list {path}, line {number}: PATH LABEL was expected, found {line!r}')
        if int(label) >= classes:
            raise UserError(
                f'list {path}, line {number}: label {label}, but there are {classes} classes, 0 to '
                f'{classes - 1}')
        if name in found:
            raise UserError(f'list {path}, line {number}: {name!r} is there twice')
        found[name] = int(label)
    if not found:
        raise UserError(f'list {path} is empty; it has a line PATH LABEL an image')
    return found


def read_list(
    files: Sequence[str | os.PathLike], folder: str | os.PathLike, classes: Sequence[str]
) -> list[tuple[str, int]]:
    """The images and labels of lists.

    Args:
        files: The lists, ``.json`` or text.
        folder: What their paths are relative to.
        classes: The names; the position is the label.

    Returns:
        [(path, label)], in the order of the lists.

    Raises:
        UserError: As :func:`read_json` and :func:`read_text`; or images are not there, or there
            twice, in one of the lists or in two.
    """
    numbers = {str(name): label for label, name in enumerate(classes)}
    found: dict[str, int] = {}
    for file in files:
        if str(file).lower().endswith('.json'):
            content = read_json(file)
            wrong = next((i for i in content.items() if str(i[1]) not in numbers), None)
            if wrong:
                raise UserError(
                    f'list {file}: {wrong[0]!r} is of class {wrong[1]!r}, which is none of the '
                    f'{len(classes)} classes of the training')
            labels = {name.replace('\\', '/'): numbers[str(label)]
                      for name, label in content.items()}
        else:
            labels = read_text(file, len(classes))
        both = next((name for name in labels if name in found), None)
        if both:
            raise UserError(f'lists {" and ".join(map(str, files))}: {both!r} is in both')
        found.update(labels)
    paths = {name: os.path.join(folder, name) for name in found}
    seen: dict[str, str] = {}
    for name, path in paths.items():
        other = seen.setdefault(os.path.normpath(path), name)
        if other != name:
            raise UserError(
                f'list {", ".join(map(str, files))}: {other!r} and {name!r} are one image')
    lacking = missing(paths)
    if lacking:
        raise UserError(
            f'list {", ".join(map(str, files))}: {len(lacking)} of {len(found)} images are not '
            f'there, e.g. {paths[lacking[0]]}')
    return [(paths[name], label) for name, label in found.items()]


def missing(paths: Mapping[str, str]) -> list[str]:
    """Names whose file is not there; a folder is read once, which is quick on file servers too."""
    @functools.cache
    def content(folder: str) -> set[str]:
        return set(os.listdir(folder)) if os.path.isdir(folder) else set()

    return [name for name, path in paths.items()
            if os.path.basename(path) not in content(os.path.dirname(path) or '.')]
