"""Writes predictions of any predictor, as complete files."""

import contextlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vpt_dense import live, safe_files, segments, tasks, visualization
from vpt_dense.datasets import map_files, medical, panoptic, raster
from vpt_dense.datasets.label_maps import count_pixels
from vpt_dense.errors import UserError
from vpt_dense.predicting.inputs import Image
from vpt_dense.predicting.partial import FOLDER
from vpt_dense.predicting.results import (
    DepthMap,
    Detection,
    DistanceMap,
    EdgeMap,
    NormalMap,
    OneTask,
    Panoptic,
    Predictor,
    Segmentation,
    SeveralTasks,
)

LABELS, OVERLAYS, PROBABILITIES = 'labels', 'overlays', 'probabilities'
VOLUMES = 'volumes'
LINES, SUMMARY = 'predictions.jsonl', 'summary.json'

#: The longest edge in pixels that is drawn; of larger images rows and columns are left out.
LONGEST = 2048
#: The score from which on a box is drawn.
DRAWN = 0.3
#: What of a model's description must be the same for a run that goes on with another's files.
_SAME = ('sha256', 'config', 'tta', 'cfg_options', 'folder')


@dataclass
class Wanted:
    """The files that are wanted, and how.

    Attributes:
        overlay: Whether pictures of the label maps over their images are drawn.
        probabilities: ``npz`` or ``tiff``: those of every pixel, in such files; None: none.
        dtype: ``float16`` or ``float32``, of the probabilities; None: the first.
        top_k: Classes of an image whose scores are written, for classification; None: 5.
        batch_size: Images that pass through the model together; None: as the predictor has it.
        skip_existing: Whether images whose results are there already are left out.
        force: Whether results that are there are overwritten.
    """

    overlay: bool = False
    probabilities: str | None = None
    dtype: str | None = None
    top_k: int | None = None
    batch_size: int | None = None
    skip_existing: bool = False
    force: bool = False


@dataclass
class _Counts:
    """The counts of a run so far."""

    predicted: int = 0
    existing: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)
    #: Pixels, or images, of each class.
    of_classes: dict[str, int] = field(default_factory=dict)
    #: Pixels without data.
    no_data: int = 0

    def add(self, found: dict[str | None, int]) -> None:
        """Count what an image has of each class; None: without data."""
        for name, number in found.items():
            if name is None:
                self.no_data += number
            else:
                self.of_classes[name] += number


def check_out(out: str | Path, skip_existing: bool = False, force: bool = False) -> None:
    """Refuse a folder with something in it, unless the user said what shall be of that.

    Raises:
        UserError: If it is not empty, or a file.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f'--out {out} is a file; name a folder')
    if not (skip_existing or force) and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f'--out {out} is not empty; name another folder, go on with what is there by '
            '--skip-existing, or overwrite it with --force')


def write(predictor: Predictor, images: Sequence[Image], out: str | Path, wanted: Wanted) -> dict:
    """Predict images and write what comes out.

    ``labels/NAME.png`` (a GeoTIFF where the image is georeferenced), ``overlays/NAME.jpg`` and
    ``probabilities/NAME.npz`` or ``.tif``; of slices of a NIfTI volume, if all are there,
    ``volumes/NAME.nii.gz`` too; or ``predictions.jsonl``, a line an image; of several tasks that
    trained together a folder each; and ``summary.json``. Each file is under its name only when it
    is whole. An image that cannot be read is told on stderr and left out.

    Args:
        predictor: Anything that predicts.
        images: See :func:`vpt_dense.predicting.inputs.find`.
        out: The folder to write to.
        wanted: What to write.

    Returns:
        What ``summary.json`` holds.

    Raises:
        UserError: If something is wanted that the task has not, the folder holds predictions of
            another model, or a file cannot be written.
    """
    out, task = Path(out), tasks.TASKS[predictor.task]
    dense = task.dense
    labels = dense and task.classes
    draws = wanted.overlay and not task.regions
    if not dense and draws or not labels and wanted.probabilities:
        key = '--overlay' if not dense and draws else '--probabilities'
        way = '' if dense else '; for the scores of more classes: --top-k'
        raise UserError(f'{key} is for segmentation, this model is of {task.name}{way}')
    if wanted.top_k and (dense or task.regions):
        raise UserError(
            f'--top-k is for classification, this model is of {task.name}; leave it out')
    if wanted.dtype and not wanted.probabilities:
        raise UserError('--dtype is of --probabilities, which are not asked for; leave it out')
    check_out(out, wanted.skip_existing, wanted.force)
    about = predictor.describe()
    if dense:  # lines of predictions.jsonl hold the whole path
        about['folder'] = images[0].root
    if wanted.skip_existing:
        check_same(out, about)
    partial = out / FOLDER
    if partial.is_dir() and not wanted.skip_existing:
        shutil.rmtree(partial)
    if hasattr(predictor, 'partial'):
        predictor.partial = partial
    writer = task.function('writer', '--out')(predictor, out, wanted)
    counts = _Counts(of_classes=dict.fromkeys(predictor.classes, 0))
    started = time.monotonic()

    def summary(finished: bool) -> dict:
        record = dict(
            task=predictor.task, finished=finished, images=len(images),
            predicted=counts.predicted, existing=counts.existing, skipped=counts.skipped,
            seconds=round(time.monotonic() - started, 1), **about)
        total = sum(counts.of_classes.values()) or 1
        if labels:
            record['pixels'] = {
                name: dict(id=i, pixels=number, share=round(number / total, 6))
                for i, (name, number) in zip(predictor.ids, counts.of_classes.items(), strict=True)}
            record['no_data'] = dict(id=predictor.ignored_id, pixels=counts.no_data)
        elif getattr(predictor, 'of_tasks', None):
            record['tasks'] = {
                name: dict(kind=each.task, **{
                    'ids': dict(zip(each.classes, each.ids, strict=True)),
                    'no_data': each.ignored_id} if each.classes else {})
                for name, each in predictor.of_tasks.items()}
        elif predictor.classes:
            unit = 'images'
            if task.regions:
                unit = 'segments' if task.name == 'panoptic' else 'boxes'
            record[f'{unit}_by_class'] = counts.of_classes
        return record

    with progress(len(images)) as bar:
        missing = []
        for image in images:
            found = writer.existing(image) if wanted.skip_existing else None
            if found is None:
                missing.append(image)
                continue
            counts.existing += 1
            counts.add(found)
            bar.step(counted=False)
        with contextlib.closing(writer), ThreadPoolExecutor(1) as thread:
            scores = (wanted.dtype or 'float16') if wanted.probabilities else False
            results = predictor.stream(
                (image.path for image in missing), scores, wanted.batch_size)
            written: Future | None = None  # while it is, the next image is predicted

            def wait() -> None:
                counts.add(written.result())
                counts.predicted += 1
                bar.step()

            for i, (image, result) in enumerate(zip(missing, results, strict=True)):
                if i == 0:  # whose the files are, also if the run does not come to its end
                    safe_files.write_text(out / SUMMARY, as_json(summary(finished=False)))
                if written is not None:
                    wait()
                    written = None
                if isinstance(result, Exception):
                    counts.skipped.append(dict(path=image.path, reason=str(result)))
                    bar.warn(f'skipped: {result}')
                    bar.step()
                else:
                    written = thread.submit(writer.put, image, result)
                del result
            if written is not None:
                wait()
            if isinstance(writer, (Labels, SeveralWriters)):
                writer.put_volumes(images)
        with contextlib.suppress(OSError):  # there was none, or something is left in it
            partial.rmdir()
        record = summary(finished=True)
        safe_files.write_text(out / SUMMARY, as_json(record))
    return record


def read_summary(out: Path) -> dict[str, Any]:
    """The summary that a folder has; empty where there is none.

    Raises:
        UserError: If it is damaged.
    """
    path = out / SUMMARY
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(f'{path} is no JSON; remove it, or take another --out') from error


def check_same(out: Path, about: dict) -> None:
    """Refuse to go on in a folder with predictions of another model.

    Raises:
        UserError: If it has those.
    """
    old = read_summary(out)
    for key in _SAME:
        if key in old and old.get(key) != about.get(key):
            raise UserError(
                f'--skip-existing: {out} holds predictions of {old.get("checkpoint")} with another '
                f'{key} ({old.get(key)!r}, now {about.get(key)!r}); take another --out, or --force')


def as_json(content: Any) -> str:
    """Text of a file of JSON."""
    return _encodable(json.dumps(content, indent=2, ensure_ascii=False), content, indent=2) + '\n'


def _encodable(text: str, content: Any, **kwargs: Any) -> str:
    """Text that UTF-8 can hold: names of files may be no text at all."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, **kwargs)
    return text


# --- segmentation ----------------------------------------------------------------------------


class Labels:
    """Label maps, pictures and probabilities, a file each."""

    def __init__(self, predictor: Predictor, out: Path, wanted: Wanted) -> None:
        self.predictor, self.out, self.wanted = predictor, out, wanted

    def close(self) -> None:
        """Nothing is open."""

    def _places(self, image: Image, placed: bool) -> Iterator[Path]:
        yield self._place(LABELS, image, '.tif' if placed else '.png')
        if self.wanted.overlay:
            yield self._place(OVERLAYS, image, '.jpg')
        if self.wanted.probabilities:
            ending = dict(npz='.npz', tiff='.tif')[self.wanted.probabilities]
            yield self._place(PROBABILITIES, image, ending)

    def _place(self, folder: str, image: Image, ending: str) -> Path:
        return safe_files.shortened(self.out / folder / f'{image.name}{ending}')

    def existing(self, image: Image) -> dict[str | None, int] | None:
        """Pixels of each class if all is there that is wanted; a label map counts if it is read."""
        for placed in (False, True):
            labels, *others = self._places(image, placed)
            if not labels.is_file() or not all(path.is_file() for path in others):
                continue
            try:
                array = raster.read_image(labels)[..., 0]
            except ValueError:
                continue
            return self._counted(array)
        return None

    def _counted(self, labels: np.ndarray) -> dict[str | None, int]:
        predictor = self.predictor
        counts = count_pixels(labels, (*predictor.ids, predictor.ignored_id))
        return dict(zip((*predictor.classes, None), counts, strict=True))

    def put(self, image: Image, result: Segmentation) -> dict[str | None, int]:
        """Write what is wanted, the label map last: where it is, the rest is too."""
        info = raster.image_info(image.path)
        placed = info.crs is not None or info.transform is not None
        labels, *others = self._places(image, placed)
        like = image.path if placed else None
        if self.wanted.probabilities:
            self._put_probabilities(others[-1], result, like)
        if self.wanted.overlay:
            picture = _overlay(image.path, result, self.predictor.palette)
            _write(others[0], cv2.imencode('.jpg', picture[..., ::-1])[1])
        if placed:
            raster.write_raster(labels, result.labels, like, nodata=result.ignored_id)
        else:
            _write(labels, cv2.imencode('.png', result.labels)[1])
        counted = self._counted(result.labels)
        for path in result.leftovers:
            path.unlink(missing_ok=True)
        return counted

    def put_volumes(self, images: Sequence[Image]) -> None:
        """Write ``volumes/NAME.nii.gz`` for each volume of which all slices were predicted."""
        found: dict[str, dict[int, Image]] = {}
        for image in images:
            path, index = medical.split(image.path)
            if index is not None:
                found.setdefault(path, {})[index] = image
        for path, slices in found.items():
            maps = [self._place(LABELS, slices[i], '.png') for i in sorted(slices)]
            if len(medical.slices(path)) == len(maps) and all(map(Path.is_file, maps)):
                index, image = next(iter(slices.items()))
                name = image.name.removesuffix('.gz').removesuffix('.nii')
                name = name.removesuffix(f'#{index}')
                medical.write_volume(
                    safe_files.shortened(self.out / VOLUMES / f'{name}.nii.gz'), path,
                    (raster.read_image(each)[..., 0] for each in maps))

    def _put_probabilities(self, path: Path, result: Segmentation, like: str | None) -> None:
        maps = result.probabilities.astype(self.wanted.dtype or 'float16', copy=False)
        if path.suffix == '.tif':
            raster.write_raster(path, np.moveaxis(maps, 0, 2), like)
            return
        with safe_files.atomic(path) as unfinished, unfinished.open('wb') as stream:
            np.savez_compressed(
                stream, probabilities=maps, classes=np.array(result.classes),
                ids=np.array(result.ids))


def _overlay(path: str, result: Segmentation, palette: list[list[int]]) -> np.ndarray:
    """A label map over its image, with a legend: RGB, uint8."""
    step = -(-max(result.labels.shape) // LONGEST)
    with raster.open_image(path) as image:
        bands = [1, 2, 3] if image.info.bands >= 3 else [1]
    rows = [part[-top % step::step, ::step].copy() for top, part in raster.strips(path, bands)]
    labels = np.full(max(*result.ids, result.ignored_id) + 1, -1)
    labels[list(result.ids)] = range(len(result.ids))
    return visualization.draw_labels(
        visualization.to_picture(np.concatenate(rows)), labels[result.labels[::step, ::step]],
        result.classes, palette, ignore_index=-1)


def _write(path: Path, content: Any) -> None:
    with safe_files.atomic(path) as unfinished:
        unfinished.write_bytes(content)


# --- maps of numbers -------------------------------------------------------------------------


class Maps:
    """Maps of numbers, a file each; and, if wanted, pictures of them.

    Args:
        predictor: The predictor, or one of its tasks.
        out: The folder of the results.
        wanted: What to write.
        folder: Of the maps, in that; None: that of the task's name.
    """

    def __init__(
        self, predictor: Predictor | OneTask, out: Path, wanted: Wanted, folder: str | None = None
    ) -> None:
        self.folder, self.wanted = out / (folder or predictor.task), wanted
        self.pictures = out / OVERLAYS

    def close(self) -> None:
        """Nothing is open."""

    def _place(self, folder: Path, image: Image, ending: str) -> Path:
        return safe_files.shortened(folder / f'{image.name}{ending}')

    def existing(self, image: Image) -> dict[str | None, int] | None:
        """An empty count if all is there that is wanted; a map counts if it is read."""
        if self.wanted.overlay and not self._place(self.pictures, image, '.jpg').is_file():
            return None
        for ending in ('.png', '.npy'):
            path = self._place(self.folder, image, ending)
            if path.is_file():
                with contextlib.suppress(ValueError):
                    map_files.read_map(path)
                    return {}
        return None

    def put(
        self, image: Image, result: DepthMap | NormalMap | EdgeMap | DistanceMap
    ) -> dict[str | None, int]:
        """Write the picture that is wanted, and the map last: where it is, the picture is too."""
        if self.wanted.overlay:
            picture = _picture_of(result)
            step = -(-max(picture.shape) // LONGEST)
            picture = np.ascontiguousarray(picture[::step, ::step, ::-1])
            _write(self._place(self.pictures, image, '.jpg'), cv2.imencode('.jpg', picture)[1])
        path = self._place(self.folder, image, '.png')
        if isinstance(result, DepthMap):
            map_files.write_depth(path, result.depth, result.scale, result.farthest)
        elif isinstance(result, NormalMap):
            map_files.write_normals(path, result.normals)
        elif isinstance(result, EdgeMap):
            map_files.write_edges(path, result.edges)
        else:
            map_files.write_distance(path, result.distance)
        return {}


def _picture_of(result: DepthMap | NormalMap | EdgeMap | DistanceMap) -> np.ndarray:
    """A map of numbers in colours: RGB, uint8."""
    if isinstance(result, DepthMap):
        return visualization.colour_depth(result.depth, visualization.depth_range(result.depth))
    if isinstance(result, NormalMap):
        return visualization.colour_normals(result.normals)
    if isinstance(result, EdgeMap):
        return visualization.colour_numbers(result.edges, 1.0)
    return visualization.colour_numbers(result.distance, result.farthest)


class SeveralWriters:
    """A folder for each task of a model of several, with what such a task writes.

    ``NAME/labels`` of classes, ``NAME/maps`` of numbers; ``NAME/overlays``, if wanted.
    """

    def __init__(self, predictor: Any, out: Path, wanted: Wanted) -> None:
        self.writers: dict[str, Labels | Maps] = {
            name: Labels(each, out / name, wanted) if each.classes
            else Maps(each, out / name, wanted, 'maps')
            for name, each in predictor.of_tasks.items()}

    def close(self) -> None:
        """Nothing is open."""

    def existing(self, image: Image) -> dict[str | None, int] | None:
        """An empty count if all is there of all tasks."""
        there = all(each.existing(image) is not None for each in self.writers.values())
        return {} if there else None

    def put(self, image: Image, result: SeveralTasks) -> dict[str | None, int]:
        """Write what is wanted of each task."""
        for name, each in self.writers.items():
            each.put(image, result[name])
        return {}

    def put_volumes(self, images: Sequence[Image]) -> None:
        """As :meth:`vpt_dense.predicting.writing.Labels.put_volumes`, of each task with classes."""
        for each in self.writers.values():
            if isinstance(each, Labels):
                each.put_volumes(images)


# --- classification --------------------------------------------------------------------------


class Lines:
    """A file with a line of JSON for each image; a line is there whole or not at all."""

    def __init__(self, predictor: Predictor, out: Path, wanted: Wanted) -> None:
        self.path, self.wanted = out / LINES, wanted
        self.classes = set(predictor.classes)
        self.done: dict[str, str] = {}
        self.stream = None
        if wanted.skip_existing and self.path.is_file():
            content = self.path.read_bytes()
            self.whole = content.rfind(b'\n') + 1  # a run that was killed may have left a part
            for line in content[:self.whole].decode(errors='surrogateescape').splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    self.done[record['path']] = record.get('class')
        else:
            self.whole = 0

    def existing(self, image: Image) -> dict[str, int] | None:
        """One image of its class, if it has a line."""
        if image.path not in self.done:
            return None
        name = self.done[image.path]
        if not self.classes:
            return {}
        return {name: 1} if name in self.classes else None

    def put(self, image: Image, result: Any) -> dict[str, int]:
        """Write a line."""
        record = self._append(image, result)
        return {record['class']: 1} if self.classes else {}

    def _append(self, image: Image, result: Any, **further: Any) -> dict[str, Any]:
        record = dict(path=image.path, **further, **result.line(self.wanted.top_k or 5))
        line = _encodable(json.dumps(record, ensure_ascii=False), record).encode() + b'\n'
        with safe_files.told(self.path):
            if self.stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.stream = open(self.path, 'r+b' if self.whole else 'wb', buffering=0)
                self.stream.truncate(self.whole)
                self.stream.seek(self.whole)
            try:
                if self.stream.write(line) < len(line):  # the rest would tell why
                    self.stream.write(line)
            except OSError:
                self.stream.truncate(self.whole)
                raise
        self.whole += len(line)
        return record

    def close(self) -> None:
        """Let go of the file."""
        if self.stream is not None:
            self.stream.close()


# --- detection -------------------------------------------------------------------------------


class Boxes(Lines):
    """Lines of boxes; and, if wanted, pictures of those of a score of 0.3 and more."""

    def __init__(self, predictor: Predictor, out: Path, wanted: Wanted) -> None:
        super().__init__(predictor, out, wanted)
        self.predictor, self.out = predictor, out
        self.there: dict[str, Counter] = {}
        if self.done:
            for line in self.path.read_bytes()[: self.whole].decode(
                    errors='surrogateescape').splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    self.there[record['path']] = Counter(
                        row['class'] for row in record['boxes'])

    def _picture(self, image: Image) -> Path:
        return safe_files.shortened(self.out / OVERLAYS / f'{image.name}.jpg')

    def existing(self, image: Image) -> dict[str, int] | None:
        """Boxes of each class, if it has a line, and a picture where that is wanted."""
        found = self.there.get(image.path)
        if found is None or not set(found) <= self.classes:
            return None
        if self.wanted.overlay and not self._picture(image).is_file():
            raise UserError(
                f'--skip-existing: {image.path} has a line in {self.path} and no picture; take '
                'another --out, or --force')
        return dict(found)

    def put(self, image: Image, result: Detection) -> dict[str, int]:
        """Write the picture that is wanted, and the line."""
        if self.wanted.overlay:
            picture = _boxes_over(image.path, result, self.predictor.palette)
            _write(self._picture(image), cv2.imencode('.jpg', picture[..., ::-1])[1])
        self._append(image, result)
        return dict(Counter(result.classes[label] for label in result.labels))


def _boxes_over(path: str, result: Detection, palette: list[list[int]]) -> np.ndarray:
    """Boxes over their image, with a legend: RGB, uint8."""
    with raster.open_image(path) as image:
        bands = [1, 2, 3] if image.info.bands >= 3 else [1]
        step = -(-max(image.info.height, image.info.width) // LONGEST)
    rows = [part[-top % step::step, ::step].copy() for top, part in raster.strips(path, bands)]
    kept = result.scores >= DRAWN
    masks = None if result.masks is None else result.masks[kept][:, ::step, ::step]
    panel = visualization.Boxes(
        None, result.boxes[kept] / step, result.labels[kept], result.scores[kept], masks)
    return visualization.draw_boxes(
        visualization.to_picture(np.concatenate(rows)), [panel], result.classes, palette)


# --- panoptic segmentation -------------------------------------------------------------------


class Segments(Lines):
    """PNGs and lines of segments, and in the end ``panoptic.json``, all as COCO has them.

    ``panoptic/NAME.png``: R + 256 G + 256^2 B is the id of a segment, 0 is none. Pictures, if
    wanted.
    """

    def __init__(self, predictor: Predictor, out: Path, wanted: Wanted) -> None:
        super().__init__(predictor, out, wanted)
        self.predictor, self.out = predictor, out

    def _place(self, folder: str, image: Image, ending: str) -> Path:
        return safe_files.shortened(self.out / folder / f'{image.name}{ending}')

    def _records(self) -> dict[str, dict[str, Any]]:
        """Path of an image -> its line, the last one if there are several."""
        found = {}
        if self.path.is_file():
            for line in self.path.read_bytes()[: self.whole].decode(
                    errors='surrogateescape').splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    found[record['path']] = record
        return found

    def existing(self, image: Image) -> dict[str, int] | None:
        """Segments of each class, if it has a line, and all files that are wanted."""
        if image.path not in self.done:
            return None
        files = [self._place(panoptic.SEGMENTS, image, '.png')]
        if self.wanted.overlay:
            files.append(self._place(OVERLAYS, image, '.jpg'))
        lacking = [file for file in files if not file.is_file()]
        if lacking:
            raise UserError(
                f'--skip-existing: {image.path} has a line in {self.path} and no {lacking[0]}; '
                'take another --out, or --force')
        if not hasattr(self, '_old'):
            self._old = self._records()
        return dict(Counter(row['class'] for row in self._old[image.path]['segments']))

    def put(self, image: Image, result: Panoptic) -> dict[str, int]:
        """Write the picture that is wanted, the PNG, and last the line."""
        if self.wanted.overlay:
            picture = _segments_over(image.path, result, self.predictor.palette)
            _write(self._place(OVERLAYS, image, '.jpg'),
                   cv2.imencode('.jpg', picture[..., ::-1])[1])
        path = self._place(panoptic.SEGMENTS, image, '.png')
        _write(path, cv2.imencode('.png', segments.to_colours(result.ids)[..., ::-1])[1])
        self._append(image, result, file_name=path.relative_to(
            self.out / panoptic.SEGMENTS).as_posix())
        return dict(Counter(result.classes[label] for label in result.labels))

    def close(self) -> None:
        """Let go of the lines, and write what they say in COCO's form."""
        super().close()
        records = self._records()
        if records:
            things = self.predictor.things
            safe_files.write_text(self.out / 'panoptic.json', as_json(segments.as_coco(
                [(number, path, record) for number, (path, record) in enumerate(
                    records.items(), 1)], self.predictor.classes, things)))


def _segments_over(path: str, result: Panoptic, palette: list[list[int]]) -> np.ndarray:
    """Segments over their image, with a legend: RGB, uint8."""
    with raster.open_image(path) as image:
        bands = [1, 2, 3] if image.info.bands >= 3 else [1]
        step = -(-max(image.info.height, image.info.width) // LONGEST)
    rows = [part[-top % step::step, ::step].copy() for top, part in raster.strips(path, bands)]
    ids = result.ids[::step, ::step]
    panel = visualization.segment_panel(None, ids, result.labels)
    return visualization.draw_panels(
        visualization.to_picture(np.concatenate(rows)), [panel], result.classes, palette)


# --- how far it is ---------------------------------------------------------------------------


class _Bar:
    """How many images are done; plain lines now and then where nobody watches."""

    def __init__(
        self, total: int, advance: Callable | None, say: Callable[[str], None], unit: str
    ) -> None:
        self.total, self.done, self.counted, self.unit = total, 0, 0, unit
        self.advance, self.warn = advance, say
        self.started = time.monotonic()

    def step(self, counted: bool = True) -> None:
        """An image is done; not counted for the rate if it was done before."""
        self.done += 1
        self.counted += counted
        rate = self.counted / max(time.monotonic() - self.started, 1e-9)
        if self.advance:
            self.advance(rate)
        else:
            left = max(0, self.total - self.done) / rate if rate else 0
            live.show(lambda: f'{self.done:,} of {self.total:,} {self.unit}, {rate:.1f} '
                              f'{self.unit}/s, {left:,.0f} s left', print)


@contextlib.contextmanager
def progress(total: int, unit: str = 'images') -> Iterator[_Bar]:
    """Show how far it is, on a terminal by a bar.

    Args:
        total: How many there are to do.
        unit: What they are.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    live.clear()  # from here on seconds count
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Bar(total, None, lambda line: print(line, file=sys.stderr, flush=True), unit)
        return
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(),
               TextColumn('{task.fields[rate]:.1f} ' + f'{unit}/s'), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task('predicting', total=total, rate=0.0)
        yield _Bar(
            total, lambda rate: progress.update(task, advance=1, rate=rate),
            lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True),
            unit)
