"""Looks through a data set before a run does: files, sizes, labels.

A folder can be checked without the training stack.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense import tasks
from vpt_dense.datasets import geo_samples, medical, raster
from vpt_dense.datasets.listing import read_names, select, select_labelled, walk
from vpt_dense.datasets.statistics import BandStatistics
from vpt_dense.errors import UserError
from vpt_dense.tree import kind_of, leaf_datasets

IMAGE_SUFFIXES = (
    '.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp', '.ppm', '.pgm', '.jp2', '.vrt',
    *medical.VOLUME_SUFFIXES, *medical.DICOM_SUFFIXES,
)  # fmt: skip
MASK_SUFFIXES = ('.png', '.tif', '.tiff', '.bmp', '.pgm', '.gif', *medical.VOLUME_SUFFIXES)

#: What is said where all masks hold 0 and 255 alone.
TWO_LABELS = (
    'masks hold 0 and 255 only, and 255 is ignored: is 255 your second class? Then say '
    "dataset.label_map={255: 1} (of type='vpt_dense.SegFolder')"
)

#: The same where label 0 is left out and one other is there.
ONE_LABEL = (
    'masks hold 0, 1 and 255 at most, and dataset.reduce_zero_label leaves 0 out: one class is '
    'left; if 0 is your first class, say dataset.reduce_zero_label=False'
)

# How many files of one kind a message names; the report (`--json`) has them all.
_NAMED = 3

Track = Callable[..., Iterable]


def _no_bar(items: Iterable, description: str = '', total: int | None = None) -> Iterable:
    """Stands in for `rich.progress.track` where nobody watches."""
    return items


# --------------------------------------------------------------------------- finding files


def list_files(folder: str | os.PathLike, suffixes: str | Sequence[str]) -> dict[str, str]:
    """Finds the files under a folder, by their name without the suffix.

    Args:
        folder: Searched with its sub-folders, see :func:`vpt_dense.datasets.listing.walk`.
        suffixes: One ending or several ('.jpg', '_mask.png'), compared without regard to case.
            The longest that fits counts.

    Returns:
        {path relative to `folder` without its suffix: whole path}, sorted.

    Raises:
        UserError: The folder is absent, or two files differ in nothing but the suffix.
    """
    if not os.path.isdir(folder):
        raise UserError(f'folder {folder} does not exist (layouts: docs/datasets.md)')
    endings = [suffixes] if isinstance(suffixes, str) else list(suffixes)
    endings.sort(key=len, reverse=True)
    found: dict[str, str] = {}
    for path in walk(folder):
        name = os.path.basename(path)
        ending = next((e for e in endings if name.lower().endswith(e.lower())), None)
        if ending is None:
            continue
        stem = os.path.relpath(path, folder)[: -len(ending)]
        if stem in found:
            raise UserError(
                f'{found[stem]} and {path} have the same name without the suffix: '
                'remove one, or give img_suffix / seg_map_suffix'
            )
        found[stem] = path
    return dict(sorted(found.items()))


def pair_files(
    img_dir: str,
    ann_dir: str | None,
    img_suffix: str | Sequence[str] = IMAGE_SUFFIXES,
    seg_map_suffix: str | Sequence[str] = MASK_SUFFIXES,
    ann_file: str | None = None,
    ignore_list_suffix: bool = True,
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Pairs images with the masks of the same name.

    Args:
        img_dir: Folder of images.
        ann_dir: Folder of masks, or None where there are none.
        img_suffix: What an image's name ends in.
        seg_map_suffix: What a mask's name ends in.
        ann_file: List of the images that are taken; none: all.
        ignore_list_suffix: Whether names in it may have a suffix.

    Returns:
        [(image, mask or None if it has none)] sorted by image, or in the order of the list; a NIfTI
        volume by its slices (:mod:`vpt_dense.datasets.medical`). And the masks without an image (of
        those only that no list leaves out).

    Raises:
        UserError: A folder is absent, there is no image, or the list is wrong.
    """
    images = list_files(img_dir, img_suffix)
    if not images:
        raise UserError(f'no image in {img_dir} (looked for {_suffixes(img_suffix)})')
    masks = list_files(ann_dir, seg_map_suffix) if ann_dir else {}
    if ann_file:
        stems = select(ann_file, img_dir, images, ignore_list_suffix)
        return _slices((images[stem], masks.get(stem)) for stem in stems), []
    pairs = _slices((path, masks.get(stem)) for stem, path in images.items())
    return pairs, [path for stem, path in masks.items() if stem not in images]


def _slices(pairs: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    """Volumes become their slices."""
    return [pair for image, mask in pairs for pair in medical.pair_slices(image, mask)]


def _suffixes(suffixes: str | Sequence[str]) -> str:
    return suffixes if isinstance(suffixes, str) else ', '.join(suffixes)


def some(names: Iterable[str]) -> str:
    """'a, b, c and 7 more'."""
    names = list(names)
    more = f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''
    return ', '.join(names[:_NAMED]) + more


def _class_folders(folder: str) -> list[str]:
    return sorted(d.name for d in os.scandir(folder) if d.is_dir() and not d.name.startswith('.'))


def find_classes(data_root: str | os.PathLike) -> list[str]:
    """Finds the class names of an image folder: the sub-folders of `data_root`/train, sorted.

    Args:
        data_root: Folder with train/<class>/ and, usually, val/<class>/ and test/<class>/.

    Returns:
        The class names; their position is the label.

    Raises:
        UserError: train/ is absent or has no sub-folder, or val/ has a class that train/ has not.
    """
    train = os.path.join(data_root, 'train')
    if not os.path.isdir(train):
        raise UserError(
            f'dataset.data_root: {train} does not exist; '
            'an image folder is train/<class>/*.jpg and val/<class>/*.jpg'
        )
    classes = _class_folders(train)
    if not classes:
        raise UserError(
            f'dataset.data_root: {train} has no sub-folders; there must be one for each class'
        )
    val = os.path.join(data_root, 'val')  # the folders of test/ need not be classes
    unknown = sorted(set(_class_folders(val) if os.path.isdir(val) else []) - set(classes))
    if unknown:
        raise UserError(f'{val} has classes that {train} has not: {some(unknown)}')
    return classes


# --------------------------------------------------------------------------- reading one file


@dataclass
class _File:
    """The findings about one image, or one image with its mask."""

    info: raster.ImageInfo | None = None
    error: str = ''
    mask_error: str = ''
    multi_channel: str = ''
    mismatch: str = ''
    ids: dict[int, int] = field(default_factory=dict)  # {label in the file: pixels}
    statistics: BandStatistics | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        """(Width, height) as seen in training."""
        return (self.info.width, self.info.height) if self.info and not self.error else None


@dataclass(frozen=True)
class Loader:
    """How a pipeline loads images.

    Attributes:
        count: Bands that ``LoadBands`` gives; None: it is mmcv's ``LoadImageFromFile``, which makes
            3 bands of 8 bits of every image.
        bands: Which of a file's bands those are, from 1; None: all.
        nodata: The value that means "no data", where the files do not count.
    """

    count: int | None = None
    bands: list[int] | None = None
    nodata: float | list[float] | None = None

    def fault(self, info: raster.ImageInfo) -> str | None:
        """The fault of an image: read 'wrongly', not 'deeply' enough, 'few' bands; or None."""
        if self.count is not None:
            wanted = max(self.bands) if self.bands else self.count
            fits = info.bands >= wanted if self.bands else info.bands == wanted
            return None if fits else 'few'
        is_picture = info.format in raster.PICTURES
        is_known = is_picture or (info.format == 'GTiff' and info.bands in (1, 3))
        if is_known and info.dtype == np.uint8:
            return None
        return 'deeply' if is_known and info.dtype == np.uint16 else 'wrongly'


def loader_of(pipeline: Iterable) -> Loader | None:
    """Finds how a pipeline loads images.

    Args:
        pipeline: Its transforms, or their config dicts.

    Returns:
        None where it is in another way than with ``LoadBands`` or mmcv's default.
    """
    found = None
    for step in pipeline or ():
        is_config = isinstance(step, dict)
        kind = kind_of(step) if is_config else type(step).__name__
        said = step if is_config else vars(step)
        if kind == 'LoadBands':
            bands = said.get('bands')
            return Loader(
                len(said.get('mean', ())), list(bands) if bands else None, said.get('nodata')
            )
        if kind == 'LoadImageFromFile':
            ways = said.get('color_type', 'color'), said.get('imdecode_backend', 'cv2')
            found = Loader() if ways == ('color', 'cv2') else None
    return found


class _SeveralChannels(ValueError):
    """A mask of colours."""


def read_mask(path: str) -> np.ndarray:
    """Reads a label mask in the file's own depth.

    Args:
        path: A grey or palette image of any bit depth; a palette's indices are the labels.

    Returns:
        (H, W) integers.

    Raises:
        ValueError: The file cannot be read, has several channels or is not of integers; the
            message names it.
    """
    with _open_mask(path) as mask:
        try:
            array = mask.read()
        except ValueError as error:
            raise _of_mask(error) from error
    return _ids(path, array)


def _open_mask(path: str) -> Any:
    """Opens a mask and looks at what its header says."""
    try:
        mask = raster.open_image(path, indices=True)
    except ValueError as error:
        raise _of_mask(error) from error
    if mask.info.bands != 1:
        mask.close()
        raise _SeveralChannels(
            f'mask {path} has {mask.info.bands} channels; a mask has one channel of class ids '
            '(convert colours to ids first)'
        )
    return mask


def _ids(path: str, mask: np.ndarray) -> np.ndarray:
    """(H, W) integers of (H, W, 1)."""
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f'mask {path} holds {mask.dtype} values; class ids are integers')
    return mask[..., 0]


def _of_mask(error: ValueError) -> ValueError:
    return ValueError(f'mask{str(error).removeprefix("image")}')


def label_table(reduce_zero_label: bool, label_map: dict[int, int] | None) -> np.ndarray:
    """The table by which mmseg changes the labels of a file on loading.

    Args:
        reduce_zero_label: 0 becomes 255 and every other label but 255 one less.
        label_map: {label after that: new label}.

    Returns:
        (256,) uint8: the label that training sees, by the one in the file.
    """
    table = np.arange(256, dtype=np.uint8)
    if reduce_zero_label:
        table[:255] -= 1  # 0 becomes 255: bytes go round
    new = np.arange(256, dtype=np.uint8)
    for old, label in (label_map or {}).items():
        new[old] = label
    return new[table]


def _reason(error: Exception, path: str) -> str:
    """The last line of an exception, without the file that is named beside it."""
    line = (str(error) or type(error).__name__).splitlines()[-1]
    return line.partition(f'{path} cannot be read: ')[2] or line


def _look(sample: tuple[str, str | int | None], loader: Loader | None, stats: bool) -> _File:
    image, mask_path = sample
    file = _File()
    bands = loader.bands if loader else None
    try:
        with raster.open_image(image) as opened:
            info = file.info = opened.info
            if bands and max(bands) > info.bands:
                bands = None
            nodata = info.nodata_of(bands)
            if loader and loader.nodata is not None:
                nodata = loader.nodata
            is_default = loader is not None and loader.count is None
            for _, part in opened.strips(bands):
                if stats and not (is_default and not info.is_plain):
                    if is_default and part.dtype == np.uint16:
                        part = (part >> 8).astype(np.uint8)  # as OpenCV does
                    if file.statistics is None:
                        file.statistics = BandStatistics(part.shape[2])
                    file.statistics.add(part, raster.is_nodata(part, nodata))
        if stats and is_default and not info.is_plain:
            import cv2

            seen = cv2.imdecode(np.fromfile(image, np.uint8), cv2.IMREAD_COLOR)
            if seen is not None:
                file.statistics = BandStatistics(3)
                file.statistics.add(seen[..., ::-1], np.zeros(seen.shape, bool))
    except ValueError as error:
        file.error = _reason(error, image)
    if not isinstance(mask_path, str):
        return file
    try:
        with _open_mask(mask_path) as mask:
            counts: Counter[int] = Counter()
            for _, part in mask.strips():
                counts.update(_count(_ids(mask_path, part)))
            file.ids = dict(sorted(counts.items()))
            size = mask.info.width, mask.info.height
    except _SeveralChannels as error:
        file.multi_channel = str(error)
        return file
    except ValueError as error:
        file.mask_error = _reason(error, mask_path)
        return file
    if file.size and size != file.size:
        file.mismatch = (
            f'{image} is {file.size[0]}x{file.size[1]}, its mask {size[0]}x{size[1]}'
        )
    return file


def _count(ids: np.ndarray) -> dict[int, int]:
    if ids.dtype.itemsize <= 2 and ids.dtype.kind == 'u':
        counts = np.bincount(ids.ravel())  # ten times faster than unique, which sorts
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    values, counts = np.unique(ids, return_counts=True)
    return {int(v): int(c) for v, c in zip(values, counts, strict=True)}


def _look_at_all(
    name: str, samples: Sequence, track: Track, loader: Loader | None, stats: bool
) -> list[_File]:
    # Threads: decoding runs outside Python's lock, and files need not be pickled.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(lambda sample: _look(sample, loader, stats), samples)
        return list(track(found, description=name, total=len(samples)))


# --------------------------------------------------------------------------- one split


def _sizes(sizes: Iterable[tuple[int, int] | None]) -> dict:
    sizes = Counter(size for size in sizes if size)
    if not sizes:
        return {}
    common, count = sizes.most_common(1)[0]
    return dict(
        min=list(min(sizes, key=lambda s: s[0] * s[1])),
        max=list(max(sizes, key=lambda s: s[0] * s[1])),
        most_common=list(common),
        most_common_share=count / sum(sizes.values()),
        distinct=len(sizes),
    )


def check_segmentation(
    pairs: Sequence[tuple[str, str | None]],
    *,
    name: str = '',
    valid_ids: Iterable[int] | None = None,
    ignored_ids: Iterable[int] = (255,),
    class_names: dict[int, str] | None = None,
    needs_masks: bool = True,
    extra_masks: Sequence[str] = (),
    track: Track = _no_bar,
    loader: Loader | None = None,
    stats: bool = False,
) -> dict:
    """Checks the images and masks of one split by decoding every file.

    Args:
        pairs: [(image, mask or None)].
        name: The split's name, for the progress bar.
        valid_ids: Labels, as stored in the files, that stand for a class. None: not known, then
            only the range is reported.
        ignored_ids: Labels, as stored, that are left out of loss and metric.
        class_names: {label as stored: class name}, to name classes that never occur.
        needs_masks: Whether an image without a mask is wrong (it is not in a test split).
        extra_masks: Masks without an image.
        track: `rich.progress.track` or alike.
        loader: How images are loaded; None: not known, then what the default loader would change
            is a warning.
        stats: Whether to gather `statistics`: `mean`, `std` and `pixels` by band, of the values
            that the loader gives before they are normalised, without those that mean "no data".

    Returns:
        A dict for JSON: counts, `image_sizes` ([width, height] in pixels), `image_kinds`
        ({'3 x 8 bit': files}), `labels` ([least, greatest], ignored ones left out),
        `ignored_share` (of the pixels of all masks, 0 to 1), `class_pixels` ({class, or label where
        classes are not known: pixels}), the files with each fault, and `problems` and `warnings`:
        lines for people. Without problems the split can be trained on.
    """
    ignored = set(ignored_ids)
    valid = None if valid_ids is None else set(valid_ids)
    without_mask = [image for image, mask in pairs if mask is None or not raster.exists(mask)]
    lacking = set(without_mask)
    samples = [(image, None if image in lacking else mask) for image, mask in pairs]
    files = _look_at_all(name, samples, track, loader, stats)

    pixels: Counter[int] = Counter()
    outside: dict[str, list[int]] = {}
    all_ignored: list[str] = []
    for (_, mask), file in zip(samples, files, strict=True):
        if not file.ids:
            continue
        pixels.update(file.ids)
        if set(file.ids) <= ignored:
            all_ignored.append(mask)
        wrong = sorted(set(file.ids) - valid - ignored) if valid is not None else []
        if wrong:
            outside[mask] = wrong
    total = sum(pixels.values())
    labels = sorted(set(pixels) - ignored)
    looked = list(zip(samples, files, strict=True))
    unreadable = {image: f.error for (image, _), f in looked if f.error}
    unreadable |= {mask: f.mask_error for (_, mask), f in looked if f.mask_error}
    split = dict(
        images=len(pairs),
        masks=len(pairs) - len(without_mask),
        images_without_mask=without_mask,
        masks_without_image=list(extra_masks),
        image_sizes=_sizes(f.size for f in files),
        image_kinds=dict(Counter(f.info.kind for f in files if f.size)),
        labels=[labels[0], labels[-1]] if labels else None,
        ids_outside=outside if valid is not None else None,
        multi_channel_masks=[mask for (_, mask), f in looked if f.multi_channel],
        unreadable=unreadable,
        size_mismatch=[f.mismatch for f in files if f.mismatch],
        masks_all_ignored=all_ignored,
        ignored_share=sum(pixels[i] for i in ignored) / total if total else None,
        absent_classes=[n for i, n in (class_names or {}).items() if not pixels[i]],
        class_pixels=_by_class(pixels, ignored, class_names),
    )

    problems, warnings = split['problems'], split['warnings'] = [], []
    if not pairs:
        problems.append('no images')
    if without_mask and needs_masks:
        problems.append(f'{len(without_mask)} images without a mask: {some(without_mask)}')
    if unreadable:
        named = (f'{path} ({error})' for path, error in unreadable.items())
        problems.append(f'{len(unreadable)} files cannot be read: {some(named)}')
    if split['multi_channel_masks']:
        masks = split['multi_channel_masks']
        problems.append(
            f'{len(masks)} masks have several channels (colours instead of ids): {some(masks)}'
        )
    if split['size_mismatch']:
        problems.append(f'image and mask differ in size: {some(split["size_mismatch"])}')
    if outside:
        named = (f'{path} ({some(map(str, ids))})' for path, ids in outside.items())
        problems.append(
            f'{len(outside)} masks have ids outside the {len(valid)} classes: {some(named)}'
        )
    if set(pixels) == {0, 255} and 255 in ignored and (valid is None or {0, 1} <= valid):
        (warnings if valid is None else problems).append(TWO_LABELS)
    if 1 in pixels and set(pixels) <= {0, 1, 255} and {0, 255} <= ignored:
        warnings.append(ONE_LABEL)
    if total and not labels:
        problems.append('every pixel of every mask is ignored')
    elif all_ignored:
        warnings.append(f'{len(all_ignored)} masks are ignored altogether: {some(all_ignored)}')
    if extra_masks:
        warnings.append(f'{len(extra_masks)} masks without an image: {some(extra_masks)}')
    if total and split['absent_classes']:
        absent = split['absent_classes']
        warnings.append(f'{len(absent)} classes never occur: {some(absent)}')
    _look_at_kinds(samples, files, loader, split)
    if stats:
        split['statistics'] = _statistics(files, loader, warnings)
    return split


def _by_class(
    pixels: Counter[int], ignored: set[int], class_names: dict[int, str] | None
) -> dict[str, int]:
    """Pixels by class, those without any too; by label where the classes are not known."""
    found = dict.fromkeys((class_names or {}).values(), 0)
    for label, count in sorted(pixels.items()):
        if label not in ignored:
            name = (class_names or {}).get(label, str(label))
            found[name] = found.get(name, 0) + count
    return found


def _statistics(
    files: Sequence[_File], loader: Loader | None, warnings: list[str]
) -> dict | None:
    """Mean and std of all images; of three bands where the default loader reads them well."""
    read = [f for f in files if f.statistics is not None and not f.error]
    if not read:
        return None
    is_default = loader.count is None if loader else not any(Loader().fault(f.info) for f in read)
    found: BandStatistics | None = None
    for file in read:
        part = file.statistics
        if is_default:
            part = part.pick([0, 0, 0] if len(part.mean) < 3 else [0, 1, 2])
        if found is not None and len(found.mean) != len(part.mean):
            warnings.append('no mean and std: the images differ in their number of bands')
            return None
        found = found or BandStatistics(len(part.mean))
        found.join(part)
    said = {key: getattr(loader, key, None) for key in ('bands', 'nodata')}
    return dict(found.to_dict(), loader='LoadImageFromFile' if is_default else 'LoadBands',
                **{key: value for key, value in said.items() if value is not None})  # fmt: skip


def check_classification(
    samples: Sequence[tuple[str, int | None]],
    classes: Sequence[str],
    *,
    name: str = '',
    needs_all_classes: bool = True,
    track: Track = _no_bar,
    loader: Loader | None = None,
    stats: bool = False,
) -> dict:
    """Checks the images of one split of a classification set by decoding every file.

    Args:
        samples: [(image, label; None if it has none)].
        classes: The class names.
        name: The split's name, for the progress bar.
        needs_all_classes: Whether a class without an image is wrong (true for training).
        track: `rich.progress.track` or alike.
        loader: As `check_segmentation`.
        stats: As `check_segmentation`.

    Returns:
        As `check_segmentation`, with `per_class` ({class: images}; empty without labels) in place
        of what concerns masks.
    """
    files = _look_at_all(name, samples, track, loader, stats)
    labels = [label for _, label in samples if label is not None]
    per_class = Counter({c: 0 for c in classes} if labels or not samples else {})
    per_class.update(classes[label] for label in labels)
    unreadable = {i: f.error for (i, _), f in zip(samples, files, strict=True) if f.error}
    split = dict(
        images=len(samples),
        per_class=dict(per_class),
        image_sizes=_sizes(f.size for f in files),
        image_kinds=dict(Counter(f.info.kind for f in files if f.size)),
        unreadable=unreadable,
    )
    problems, warnings = split['problems'], split['warnings'] = [], []
    if not samples:
        problems.append('no images')
    if unreadable:
        named = (f'{path} ({error})' for path, error in unreadable.items())
        problems.append(f'{len(unreadable)} files cannot be read: {some(named)}')
    empty = [c for c, count in per_class.items() if not count]
    if empty and samples:
        line = f'{len(empty)} classes without an image: {some(empty)}'
        (problems if needs_all_classes else warnings).append(line)
    _look_at_kinds(samples, files, loader, split)
    if stats:
        split['statistics'] = _statistics(files, loader, warnings)
    return split


def _look_at_kinds(
    samples: Sequence[tuple], files: Sequence[_File], loader: Loader | None, split: dict
) -> None:
    """Says which images hold more, or less, than the loader gives to the model."""
    warnings = split['warnings']
    looked = [(image, f.info) for (image, *_), f in zip(samples, files, strict=True) if f.size]
    faults: dict[str, list] = {}
    for image, info in looked:
        fault = (loader or Loader()).fault(info)
        if fault:
            faults.setdefault(fault, []).append((image, info))
    for fault, found in faults.items():
        is_problem = loader is not None and fault != 'deeply'
        (split['problems'] if is_problem else warnings).append(tell(fault, found, loader))
    if loader is None or loader.count is None:
        kinds = {(info.bands, info.format in raster.PICTURES) for _, info in looked}
        if (4, True) in kinds and len({bands for bands, _ in kinds}) > 1:
            warnings.append(
                'some images have 4 bands and some have not; the default loader keeps 3'
            )
        empty = [image for image, info in looked if info.nodata is not None]
        if empty:
            warnings.append(
                f'{len(empty)} images name a value that means "no data", which the default loader '
                f'takes for data: {some(empty)} (use vpt_dense.LoadBands: docs/datasets.md)'
            )


def tell(
    fault: str, found: Sequence[tuple[str, raster.ImageInfo]], loader: Loader | None
) -> str:
    """One line for images with the same fault, see :meth:`Loader.fault`.

    Args:
        fault: What it is.
        found: [(path, what the file says)].
        loader: How they are loaded.
    """
    kinds = Counter(info.kind for _, info in found)
    counts = some(f'{count} of {kind}' for kind, count in kinds.items())
    names = some(image for image, _ in found)
    if fault == 'few':
        wanted = f'bands={loader.bands}' if loader.bands else f'{loader.count} bands'
        return f'images without the {wanted} that LoadBands takes: {counts} ({names})'
    if fault == 'deeply':
        return (
            f'images beyond 8 bits: {counts}; the default loader keeps the upper 8 bits (use '
            'vpt_dense.LoadBands: docs/datasets.md)'
        )
    return (
        f'images that the default loader (LoadImageFromFile, 3 x 8 bit) reads wrongly or not at '
        f'all: {counts} ({names}); use vpt_dense.LoadBands: docs/datasets.md'
    )


# --------------------------------------------------------------------------- a folder, a config


def _report(task: str, source: str, classes: Sequence[str] | None, splits: dict) -> dict:
    return dict(
        task=task,
        source=str(source),
        classes=list(classes) if classes is not None else None,
        splits=splits,
        ok=not any(s['problems'] for s in splits.values()),
    )


def check_folder(
    folder: str | os.PathLike, track: Track = _no_bar, stats: bool = False
) -> dict:
    """Checks a folder in one of four layouts, without a config.

    Args:
        folder: images/{training,validation[,test]} + annotations/..., train/<class>/ +
            val/<class>/, or images/ + train.json and others in COCO's form; with panoptic/ too,
            those are of panoptic segmentation.
        track: `rich.progress.track` or alike.
        stats: As `check_segmentation`.

    Returns:
        dict(task, source, classes (None for segmentation: not known), splits, ok).

    Raises:
        UserError: The folder is absent or of none of them.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'folder {folder} does not exist')
    splits = {}
    if (root / 'images').is_dir() and (root / 'annotations').is_dir():
        for name in ('training', 'validation', 'test'):
            images, masks = root / 'images' / name, root / 'annotations' / name
            if name == 'test' and not images.is_dir():
                continue
            with_masks = name != 'test' or masks.is_dir()
            pairs, extra = pair_files(str(images), str(masks) if with_masks else None)
            splits[name] = check_segmentation(
                pairs, name=name, needs_masks=with_masks, extra_masks=extra, track=track,
                stats=stats,
            )  # fmt: skip
        return _report('segmentation', folder, None, splits)
    if (root / 'train').is_dir():
        classes = find_classes(root)
        for name in ('train', 'val', 'test'):
            if name == 'test' and not (root / name).is_dir():
                continue
            if name == 'test' and not set(_class_folders(root / name)) & set(classes):
                samples = [(path, None) for path in list_images(root / name)]
            else:
                samples = list_class_files(root / name, classes)
            splits[name] = check_classification(
                samples, classes, name=name, needs_all_classes=name == 'train', track=track,
                stats=stats,
            )  # fmt: skip
        return _report('classification', folder, classes, splits)
    files = sorted(root.glob('*.json'))
    if (root / 'images').is_dir() and files:
        from vpt_dense.datasets import coco, panoptic  # which are made of this module

        pngs = root / panoptic.SEGMENTS
        for file in files if pngs.is_dir() else ():
            splits[file.stem] = panoptic.check(
                file, root / 'images', pngs, name=file.stem, track=track, stats=stats)
        if splits:
            return _report('panoptic', folder, list(splits[files[0].stem]['per_class']), splits)
        for file in files:
            splits[file.stem] = coco.check(
                file, root / 'images', name=file.stem, track=track, stats=stats)
        return _report('detection', folder, list(splits[files[0].stem]['per_class']), splits)
    raise UserError(
        f'{folder} is neither a segmentation set (images/training, annotations/training, ...) nor '
        'an image folder (train/<class>/, val/<class>/) nor a COCO folder (images/, train.json)'
    )


def list_class_files(
    folder: str | os.PathLike, classes: Sequence[str], ann_file: str | None = None
) -> list[tuple[str, int]]:
    """Lists the images of one split of an image folder.

    Args:
        folder: Holds one sub-folder for each class; a class may be absent.
        classes: Class names; the position is the label.
        ann_file: List of the images that are taken; none: all.

    Returns:
        [(path, label)], by class and name, or in the order of the list.

    Raises:
        UserError: The folder is absent, has a sub-folder that is no class, or has no image; or the
            list is wrong.
    """
    if not os.path.isdir(folder):
        raise UserError(f'no folder {folder}; an image folder is {folder}/<class>/*.jpg')
    unknown = sorted(set(_class_folders(folder)) - set(classes))
    if unknown:
        raise UserError(f'{folder} has sub-folders that are not classes: {some(unknown)}')
    samples = []
    for label, name in enumerate(classes):
        path = os.path.join(folder, name)
        if os.path.isdir(path):
            samples += [(file, label) for file in _images_below(path)]
    if not samples:
        raise UserError(f'no image in {folder}/<class>/ (looked for {", ".join(IMAGE_SUFFIXES)})')
    if ann_file:
        samples = select_labelled(ann_file, str(folder), samples)
    return [(each, label) for path, label in samples for each in medical.slices(path)]


def list_images(folder: str | os.PathLike, ann_file: str | None = None) -> list[str]:
    """Lists the images below a folder, which have no labels.

    Args:
        folder: Searched with its sub-folders; hidden files are left out.
        ann_file: List of the images that are taken; none: all.

    Returns:
        Paths, sorted, or in the order of the list.

    Raises:
        UserError: The folder is absent or has no image, or the list is wrong.
    """
    if not os.path.isdir(folder):
        raise UserError(f'no folder {folder}')
    found = _images_below(folder)
    if not found:
        raise UserError(f'no image in {folder} (looked for {", ".join(IMAGE_SUFFIXES)})')
    if ann_file:
        found = [p for p, _ in select_labelled(ann_file, str(folder), [(p, 0) for p in found])]
    return [each for path in found for each in medical.slices(path)]


def _images_below(folder: str | os.PathLike) -> list[str]:
    # Not by stem: a.jpg and a.png of a class are two images.
    return [path for path in walk(folder) if path.lower().endswith(IMAGE_SUFFIXES)]


def dataset_configs(cfg: dict) -> dict[str, dict]:
    """Finds the data sets of a config, through wrappers such as RepeatDataset.

    Args:
        cfg: A whole config.

    Returns:
        {'train', 'val', 'test' (and 'train 2' for a second part of a ConcatDataset): config of the
        data set}. A test set that reads the same as the validation set is left out.
    """

    def read(datasets: list[dict]) -> list[dict]:
        return [{k: v for k, v in d.items() if k not in ('pipeline', 'test_mode')}
                for d in datasets]  # fmt: skip

    found: dict[str, list[dict]] = {}
    for split in ('train', 'val', 'test'):
        parts = leaf_datasets(cfg.get(f'{split}_dataloader'))
        if parts and not any(read(parts) == read(other) for other in found.values()):
            found[split] = parts
    return {split if i == 0 else f'{split} {i + 1}': dataset
            for split, parts in found.items() for i, dataset in enumerate(parts)}  # fmt: skip


def check_config(cfg, track: Track = _no_bar, stats: bool = False) -> dict:
    """Checks every data set of a config; the files are those that a run would read.

    Args:
        cfg: A resolved `mmengine.Config` (from `vpt_dense.config.load`).
        track: `rich.progress.track` or alike.
        stats: As `check_segmentation`.

    Returns:
        dict(task, source, classes, splits, ok).

    Raises:
        UserError: A folder is absent or empty, or the config has no data.
    """
    # Only a config needs the stack.
    from mmengine.registry import DATASETS, init_default_scope

    tasks.check_installed(cfg.get('default_scope', 'mmengine'))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    configs = dataset_configs(cfg)
    if not configs:
        raise UserError(f'{cfg.filename} has no train_, val_ or test_dataloader')
    splits, classes, task, seen = {}, None, tasks.of(cfg.get('model') or {}), {}
    for name, config in configs.items():
        how = dict(loader=loader_of(config.get('pipeline')), stats=stats, track=track)
        config = dict(config, pipeline=[], lazy_init=True)
        with DATASETS.switch_scope_and_registry(None) as registry:  # the default scope's
            kind = registry.get(config['type'])
            if kind is None:
                raise UserError(f'{name}_dataloader.dataset: no data set named {config["type"]}')
            if 'download' in inspect.signature(kind).parameters:
                config['download'] = False
            dataset = registry.build(config)
        if task is None:  # data sets alone
            masks = hasattr(dataset, 'seg_map_suffix')
            task = tasks.TASKS['segmentation' if masks else 'classification']
        check = task.function('check_data', 'checking data')
        splits[name] = check(dataset, name, how)
        seen[name] = set()
        with contextlib.suppress(UserError):  # what lacks has been told
            seen[name] = {
                os.path.realpath(data['img_path']) for data in dataset.load_data_list()
                if isinstance(data.get('img_path'), str)}
        trained = set().union(*(seen[each] for each in seen if each.startswith('train')))
        shared = seen[name] & trained
        if shared and not name.startswith('train'):
            splits[name]['warnings'].append(
                f'{len(shared):,} of its {len(seen[name]):,} images are trained on too, such as '
                f'{min(shared)}: its score says little of new images')
        classes = dataset.metainfo.get('classes')
    return _report(task.name, cfg.filename, classes, splits)


def check_masks_of(dataset, name: str, how: dict) -> dict:
    """Checks an `mmseg.BaseSegDataset`, with its own idea of names, zero label and label map."""
    img_dir, ann_dir = dataset.data_prefix['img_path'], dataset.data_prefix.get('seg_map_path')
    for folder in filter(None, (img_dir, ann_dir)):
        if not (geo_samples.is_sample(folder) or os.path.isdir(folder)):
            raise UserError(f'{name}: folder {folder} does not exist (layouts: docs/datasets.md)')
    if hasattr(dataset, 'list_pairs'):
        pairs, extra = dataset.list_pairs()
    else:
        if dataset.ann_file:
            read_names(dataset.ann_file)
        data = dataset.load_data_list()
        pairs = [(d['img_path'], d.get('seg_map_path')) for d in data]
        masks = list_files(ann_dir, dataset.seg_map_suffix).values() if ann_dir else []
        extra = sorted({*map(os.path.abspath, masks)} - {os.path.abspath(m) for _, m in pairs if m})
        if dataset.ann_file:  # a list of names leaves files out on purpose
            extra = []
    if not pairs:
        suffixes = _suffixes(dataset.img_suffix)
        raise UserError(f'{name}: no image in {img_dir} (looked for {suffixes})')
    table = label_table(dataset.reduce_zero_label, dataset.label_map).tolist()
    ignored = {i for i, label in enumerate(table) if label == dataset.ignore_index}
    if getattr(dataset, 'ignore_negative', False):
        ignored.update(range(-(2**15), 0))
    names = dataset.metainfo.get('classes')
    by_id = None
    if names:
        by_id = {i: names[label] for i, label in enumerate(table) if label < len(names)}
    return check_segmentation(
        pairs,
        name=name,
        valid_ids=by_id,
        ignored_ids=ignored,
        class_names={i: n for i, n in by_id.items() if i not in ignored} if by_id else None,
        needs_masks=bool(ann_dir),
        extra_masks=extra,
        **how,
    )


def check_classes_of(dataset, name: str, how: dict) -> dict:
    """Checks an `mmpretrain.BaseDataset`; images held in memory (CIFAR) are counted only."""
    try:
        data = dataset.load_data_list()
    except (RuntimeError, FileNotFoundError, AssertionError) as error:
        if getattr(dataset, 'download', None) is False:  # a check does not fetch 170 MB
            kind = type(dataset).__name__
            raise UserError(f'{dataset.data_root} has no {kind} yet; a run fetches it') from error
        raise UserError(f'{name}_dataloader: {_reason(error, name)}') from error
    classes = dataset.metainfo['classes']
    train = name.startswith('train')
    if data and 'img' in data[0]:
        split = check_classification([], classes, name=name)
        sizes = Counter(d['img'].shape[1::-1] for d in data)
        per_class = Counter(classes[d['gt_label']] for d in data)
        split.update(images=len(data), per_class=dict(per_class), problems=[],
                     image_sizes=_sizes(sizes.elements()),
                     image_kinds={'3 x 8 bit': len(data)})  # fmt: skip
        if how['stats']:
            found = BandStatistics(3)
            for image in (d['img'] for d in data):
                found.add(image, np.zeros(image.shape, bool))
            split['statistics'] = dict(found.to_dict(), loader='LoadImageFromFile')
        return split
    samples = [(d['img_path'], d.get('gt_label')) for d in data]
    return check_classification(samples, classes, name=name, needs_all_classes=train, **how)
