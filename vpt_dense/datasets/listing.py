"""Lists of names (``ann_file``): which images of a folder a data set takes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vpt_dense.errors import UserError

_PER_SPLIT = 'each split may have its own: train_dataloader.dataset.ann_file'


def walk(folder: str | os.PathLike) -> Iterator[str]:
    """Goes through a folder and its sub-folders, through links too.

    Args:
        folder: Hidden files and folders in it are left out. A link that leads back to a folder
            that it is in, this one or one above, is left out as well; two links to one folder are
            two folders.

    Yields:
        The files, sorted within a folder.
    """

    def enter(place: str, above: tuple[str, ...]) -> Iterator[str]:
        real = os.path.realpath(place)
        if real in above:
            return
        with os.scandir(place) as entries:
            found = sorted((e for e in entries if not e.name.startswith('.')), key=lambda e: e.name)
        folders = [entry.path for entry in found if entry.is_dir()]
        yield from (entry.path for entry in found if not entry.is_dir())
        for path in folders:
            yield from enter(path, (*above, real))

    return enter(os.fspath(folder), tuple(map(str, Path(folder).resolve().parents)))


def read_names(ann_file: str | os.PathLike) -> dict[str, int]:
    """Reads a list of names, one a line; blank lines are left out.

    Args:
        ann_file: A text file.

    Returns:
        {name: its line, from 1}, in the file's order.

    Raises:
        UserError: The file is absent or no text, lists nothing, or a name twice.
    """
    path = Path(ann_file)
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'no such file'
        raise UserError(f'ann_file {path}: {what}; it must be a text file with a name a line')
    try:
        lines = path.read_text(encoding='utf-8-sig').splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f'ann_file {path} is no text of UTF-8 with a name a line') from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        name = line.strip()
        if not name:
            continue
        if name in names:
            raise UserError(
                f'ann_file {path} has {name!r} twice (lines {names[name]} and {number})'
            )
        names[name] = number
    if not names:
        raise UserError(f'ann_file {path} lists no image; leave it out to take the whole folder')
    return names


def select(
    ann_file: str | os.PathLike, folder: str, by_name: Mapping[str, str], ignore_suffix: bool = True
) -> list[str]:
    """Picks the files that a list names.

    Args:
        ann_file: The list. A name is a path relative to ``folder``.
        folder: Where the names are looked for, for messages.
        by_name: {path relative to ``folder`` without its suffix: whole path}.
        ignore_suffix: Whether a name may have the file's suffix too ('a', 'b/c.jpg').

    Returns:
        Keys of ``by_name``, in the list's order.

    Raises:
        UserError: As :func:`read_names`; or a name is not there, or two names are one file.
    """
    with_suffix = {
        os.path.relpath(path, folder).replace(os.sep, '/'): stem
        for stem, path in (by_name.items() if ignore_suffix else ())
    }
    stems = {stem.replace(os.sep, '/'): stem for stem in by_name}
    found: dict[str, str] = {}
    lacking = []
    names = read_names(ann_file)
    for name, line in names.items():
        plain = os.path.normpath(name.replace('\\', '/')).replace(os.sep, '/')
        stem = stems.get(plain, with_suffix.get(plain))
        if stem is None:
            lacking.append(f'{name!r} (line {line})')
        elif stem in found:
            raise UserError(
                f'ann_file {ann_file} has {by_name[stem]} twice: {found[stem]!r} and {name!r}'
            )
        else:
            found[stem] = name
    if lacking:
        raise UserError(
            f'ann_file {ann_file}: {len(lacking)} of {len(names)} names are no image in {folder}, '
            f'e.g. {lacking[0]}; {_PER_SPLIT}'
        )
    return list(found)


def select_labelled(
    ann_file: str | os.PathLike, folder: str, samples: list[tuple[str, int]]
) -> list[tuple[str, int]]:
    """Picks the images of an image folder that a list names.

    Args:
        ann_file: The list. A name is a path relative to ``folder``, with or without its suffix
            ('rose/a.jpg', 'rose/a'); behind a blank may stand the label, as in mmpretrain's lists.
        folder: The split's folder, with the sub-folders of the classes.
        samples: [(path, label)] of all images in it.

    Returns:
        [(path, label)] of those that are listed, in the list's order.

    Raises:
        UserError: As :func:`select`; or a name fits two images, or a label is another than that of
            the folder.
    """
    exact = {os.path.relpath(path, folder).replace(os.sep, '/'): (path, label)
             for path, label in samples}  # fmt: skip
    by_stem: dict[str, list[str]] = {}
    for name in exact:
        by_stem.setdefault(os.path.splitext(name)[0], []).append(name)

    def lookup(text: str) -> list[str]:
        name = os.path.normpath(text.replace('\\', '/')).replace(os.sep, '/')
        return [name] if name in exact else by_stem.get(name, [])

    found: dict[str, str] = {}
    lacking = []
    names = read_names(ann_file)
    for text, line in names.items():
        fitting, label = lookup(text), None
        before, _, last = text.rpartition(' ')
        if not fitting and last.isdigit():
            fitting, label = lookup(before.strip()), int(last)
        if not fitting:
            lacking.append(f'{text!r} (line {line})')
            continue
        if len(fitting) > 1:
            raise UserError(
                f'ann_file {ann_file}: {text!r} (line {line}) may be {" or ".join(fitting)}; '
                'say it with its suffix'
            )
        (name,) = fitting
        if name in found:
            raise UserError(f'ann_file {ann_file} has {name} twice: {found[name]!r} and {text!r}')
        if label is not None and label != exact[name][1]:
            raise UserError(
                f'ann_file {ann_file}: label {label} of {name} (line {line}) is not that of its '
                f'folder, which is {exact[name][1]}; leave labels out, they follow from the folders'
            )
        found[name] = text
    if lacking:
        raise UserError(
            f'ann_file {ann_file}: {len(lacking)} of {len(names)} names are no image in {folder}, '
            f'e.g. {lacking[0]}; {_PER_SPLIT}'
        )
    return [exact[name] for name in found]
