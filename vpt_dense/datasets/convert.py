"""Lists of our own for sets as their authors publish them, and for image folders.

Which images are drawn follows from a seed, which is written beside them. They are not the draws of
the papers, whose lists are no longer to be had or come with TensorFlow.
"""

import contextlib
import io
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense import safe_files
from vpt_dense.datasets.checks import find_classes, list_class_files
from vpt_dense.datasets.list_files import missing, sorted_labels
from vpt_dense.errors import UserError, explain, is_programs, suggest

Samples = list[tuple[str, Any]]  # (path, class)

#: Share of the training images that are held out where a set has no validation split, as in the
#: VPT paper.
HELD_OUT = 0.1

# --- fine-grained sets -----------------------------------------------------------------------


def fine_grained(folder: str | os.PathLike, seed: int = 0) -> dict[str, int]:
    """Write train.json, val.json and test.json of a fine-grained set, from its authors' files.

    CUB-200-2011 and NABirds (images.txt, image_class_labels.txt, train_test_split.txt), Oxford
    Flowers (imagelabels.mat, setid.mat, jpg/), Stanford Dogs (train_list.mat, test_list.mat, in
    lists/ too) and Stanford Cars (devkit/ or cars_annos.mat). Where there is no validation split,
    a tenth of the training images, rounded up, is held out.

    Args:
        folder: Of the set.
        seed: Of what is held out.

    Returns:
        {list: images}; ``split.json`` beside them holds the seed.

    Raises:
        UserError: If the folder is none of these, its files are broken, images are missing or there
            twice, or the lists are there.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'no folder {root} (from {os.getcwd()})')
    there = [name for name in ('train.json', 'val.json', 'test.json') if (root / name).exists()]
    if there:
        raise UserError(f'{root / there[0]} is there already; move it away to draw anew')
    layouts: dict[tuple[str, ...], Callable[[Path], dict[str, Samples]]] = {
        ('images.txt', 'image_class_labels.txt', 'train_test_split.txt'): _birds,
        ('imagelabels.mat', 'setid.mat'): _flowers,
        ('train_list.mat', 'test_list.mat'): _dogs,
        ('lists/train_list.mat', 'lists/test_list.mat'): _dogs,
        ('cars_annos.mat',): _cars,
        ('devkit/cars_train_annos.mat',): _cars,
    }
    for files, read in layouts.items():
        if all((root / file).is_file() for file in files):
            try:
                splits = read(root)
            except Exception as error:
                if isinstance(error, UserError) or is_programs(error):
                    raise
                raise UserError(f'{root}: {", ".join(files)} are not as their authors have them '
                                f'({explain(error)}); unpack them again') from error
            break
    else:
        raise UserError(
            f'{root} is no fine-grained set that is known: CUB and NABirds have images.txt, '
            'image_class_labels.txt and train_test_split.txt; Flowers imagelabels.mat and '
            'setid.mat; Dogs train_list.mat and test_list.mat; Cars cars_annos.mat or devkit/')
    held_out = 'val' not in splits
    if held_out:
        train = splits['train']
        order = np.random.default_rng(seed).permutation(len(train))
        out = set(order[: math.ceil(HELD_OUT * len(train))].tolist())
        splits['val'] = [train[i] for i in sorted(out)]
        splits['train'] = [sample for i, sample in enumerate(train) if i not in out]
    for name in ('train', 'val', 'test'):
        content = json.dumps(dict(splits[name]), indent=0)
        safe_files.write_text(root / f'{name}.json', f'{content}\n')
    safe_files.write_text(root / 'split.json', json.dumps(dict(
        drawn_by='vpt_dense', seed=seed if held_out else None,
        held_out=HELD_OUT if held_out else None), indent=1) + '\n')  # fmt: skip
    return {name: len(splits[name]) for name in ('train', 'val', 'test')}


def _birds(root: Path) -> dict[str, Samples]:
    """CUB-200-2011 and NABirds: text files of (image, what)."""

    def read(name: str) -> dict[str, str]:
        lines = (root / name).read_text(encoding='utf-8').splitlines()
        return dict(line.strip().split(' ', 1) for line in lines if line.strip())

    paths, labels = read('images.txt'), read('image_class_labels.txt')
    trains = read('train_test_split.txt')
    splits: dict[str, Samples] = dict(train=[], test=[])
    for image, path in paths.items():
        if image not in labels or trains.get(image) not in ('0', '1'):
            raise UserError(f'{root}/images.txt: image {image} is not in the other two files')
        splits['train' if trains[image] == '1' else 'test'].append((path, int(labels[image])))
    return _there(root, root / 'images', splits)


def _flowers(root: Path) -> dict[str, Samples]:
    from mmpretrain.datasets import Flowers102

    return _of_mmpretrain(root, Flowers102, ('train', 'val', 'test'), root / 'jpg')


def _cars(root: Path) -> dict[str, Samples]:
    from mmpretrain.datasets import StanfordCars

    return _of_mmpretrain(root, StanfordCars, ('train', 'test'), root)


def _dogs(root: Path) -> dict[str, Samples]:
    import mat4py

    lists = root / 'lists' if (root / 'lists').is_dir() else root
    splits: dict[str, Samples] = {}
    for name in ('train', 'test'):
        content = mat4py.loadmat(str(lists / f'{name}_list.mat'))
        paths, labels = (_flat(content[key]) for key in ('file_list', 'labels'))
        splits[name] = [(path, int(label)) for path, label in zip(paths, labels, strict=True)]
    return _there(root, root / 'Images', splits)


def _flat(node: Any) -> list[Any]:
    return [leaf for item in node for leaf in _flat(item)] if isinstance(node, list) else [node]


def _of_mmpretrain(root: Path, kind: Any, names: Iterable[str], images: Path) -> dict[str, Samples]:
    splits = {}
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()):
            data = kind(data_root=str(root), split=name, pipeline=[]).load_data_list()
        splits[name] = [
            (Path(sample['img_path']).relative_to(images).as_posix(), int(sample['gt_label']))
            for sample in data]
    return _there(root, images, splits)


def _there(root: Path, images: Path, splits: dict[str, Samples]) -> dict[str, Samples]:
    listed = Counter(path for samples in splits.values() for path, _ in samples)
    path, times = listed.most_common(1)[0] if listed else ('', 0)
    if times > 1:
        raise UserError(f'{root}: {path} is in its lists {times} times')
    paths = {path: str(images / path) for path in listed}
    lacking = missing(paths)
    if lacking:
        raise UserError(
            f'{root}: {len(lacking)} of {len(paths)} images are not there, e.g. '
            f'{paths[lacking[0]]}')
    return splits


# --- VTAB-1k's layout ------------------------------------------------------------------------

#: Sets of torchvision with splits of their own -> arguments of the training parts and of the test.
TORCHVISION: dict[str, tuple[Sequence[Mapping[str, Any]], Mapping[str, Any] | None]] = {
    'CIFAR10': ([dict(train=True)], dict(train=False)),
    'CIFAR100': ([dict(train=True)], dict(train=False)),
    'CLEVRClassification': ([dict(split='train')], dict(split='val')),
    'DTD': ([dict(split='train'), dict(split='val')], dict(split='test')),
    'Flowers102': ([dict(split='train'), dict(split='val')], dict(split='test')),
    'FGVCAircraft': ([dict(split='trainval')], dict(split='test')),
    'Food101': ([dict(split='train')], dict(split='test')),
    'GTSRB': ([dict(split='train')], dict(split='test')),
    'OxfordIIITPet': ([dict(split='trainval')], dict(split='test')),
    'PCAM': ([dict(split='train'), dict(split='val')], dict(split='test')),
    'RenderedSST2': ([dict(split='train'), dict(split='val')], dict(split='test')),
    'StanfordCars': ([dict(split='train')], dict(split='test')),
    'SVHN': ([dict(split='train')], dict(split='test')),
    # No splits: a fifth of each class is the test.
    'Caltech101': ([{}], None), 'Caltech256': ([{}], None), 'EuroSAT': ([{}], None),
    'SUN397': ([{}], None),
}  # fmt: skip


def to_vtab(
    source: str, out: str | os.PathLike, root: str | os.PathLike = '', seed: int = 0,
    track: Callable = lambda items, **_: items,
) -> dict[str, int]:  # fmt: skip
    """Write a set in VTAB-1k's layout: 800 images for training, 200 for validation, the test.

    The images are written as PNG, or copied from an image folder. Labels are those of the
    set, so that classes without an image among the 1,000 keep their number.

    Args:
        source: ``torchvision::DTD``, see :data:`TORCHVISION`; or an image folder with train/,
            and val/ or test/, whose test is the last of them that is there.
        out: Folder that is made.
        root: Where torchvision's set is, as its class takes it; nothing is downloaded.
        seed: Of the draw, which is over all images alike.
        track: ``rich.progress.track`` or alike.

    Returns:
        {list: images}.

    Raises:
        UserError: If the source is not there or has fewer than 1,000 training images, or the folder
            is there.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f'{out} is there already; move it away, or name another folder')
    if source.startswith('torchvision::'):
        train, test, classes = _of_torchvision(source.partition('::')[2], root, seed)
    else:
        train, test, classes = _of_folder(source)
    if len(train) < 1000:
        raise UserError(f'{source}: 1,000 training images are needed, found {len(train)}')
    drawn = np.random.default_rng(seed).permutation(len(train))[:1000]
    parts = dict(train800=(train, drawn[:800]), val200=(train, drawn[800:]),
                 test=(test, range(len(test))))  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    with safe_files.told(out), tempfile.TemporaryDirectory(dir=out.parent) as place:
        made = Path(place, 'made')
        found: dict[str, list[tuple[str, Any]]] = {}
        for split, (samples, chosen) in parts.items():
            (made / 'images' / split).mkdir(parents=True)
            found[split] = []
            for number, i in enumerate(track(chosen, description=split)):
                image, label = samples[int(i)]
                name = _write(image, made / 'images' / split / f'{number:06}')
                found[split].append((f'images/{split}/{name}', label))
        if classes is None:  # the set has numbers alone, which need not begin at 0
            labels = sorted_labels(label for part in found.values() for _, label in part)
            found = {split: [(path, labels.index(label)) for path, label in part]
                     for split, part in found.items()}
            classes = list(map(str, labels))
        found['train800val200'] = found['train800'] + found['val200']
        for split, part in found.items():
            lines = ''.join(f'{path} {label}\n' for path, label in part)
            (made / f'{split}.txt').write_text(lines, encoding='utf-8')
        (made / 'classes.txt').write_text(
            ''.join(f'{name}\n' for name in classes), encoding='utf-8')
        (made / 'split.json').write_text(json.dumps(dict(
            drawn_by='vpt_dense', source=source, seed=seed), indent=1) + '\n', encoding='utf-8')
        made.rename(out)
    return {split: len(part) for split, part in found.items()}


def _of_folder(source: str) -> tuple[Samples, Samples, list[str]]:
    classes = find_classes(source)
    splits = [name for name in ('val', 'test') if Path(source, name).is_dir()]
    if not splits:
        raise UserError(f'{source} has neither val/ nor test/, which would be the test')
    train = list_class_files(Path(source, 'train'), classes)
    if len(splits) == 2:
        train += list_class_files(Path(source, 'val'), classes)
    return train, list_class_files(Path(source, splits[-1]), classes), classes


class _Pictures:
    """Images of sets of torchvision with their labels, read one at a time."""

    def __init__(self, places: Sequence[tuple[Any, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        data, i = self.places[index]
        return data[i]


def _of_torchvision(
    name: str, root: str | os.PathLike, seed: int
) -> tuple[Sequence, Sequence, list[str] | None]:
    if name not in TORCHVISION:
        raise UserError(
            f'torchvision::{name}: sets that can be taken are {", ".join(TORCHVISION)}'
            f'{suggest(name, TORCHVISION)}')
    import torchvision

    kind = getattr(torchvision.datasets, name)
    train, test = TORCHVISION[name]
    try:
        parts = [kind(root, **arguments) for arguments in train]
        held = None if test is None else kind(root, **test)
    except (RuntimeError, FileNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(
            f'torchvision::{name} is not whole in --root {root}: {first} (it is where '
            f'torchvision.datasets.{name}(root) looks)') from error
    places = [(part, i) for part in parts for i in range(len(part))]
    if held is None:
        order = np.random.default_rng(seed).permutation(len(places))
        fifth = len(places) // 5
        tested = [places[i] for i in sorted(order[:fifth])]
        places = [places[i] for i in sorted(order[fifth:])]
    else:
        tested = [(held, i) for i in range(len(held))]
    names = getattr(parts[0], 'classes', None) or getattr(parts[0], 'categories', None)
    return _Pictures(places), _Pictures(tested), list(map(str, names)) if names else None


def _write(image: Any, path: Path) -> str:
    """Write an image, a PIL one as PNG, or copy a file; return its name."""
    if isinstance(image, (str, Path)):
        path = path.with_name(path.name + Path(image).suffix.lower())
        shutil.copyfile(image, path)
    else:
        path = path.with_suffix('.png')
        (image.convert('RGB') if image.mode in ('CMYK', 'YCbCr') else image).save(path)
    return path.name
