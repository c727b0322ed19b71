"""Predicting with an exported ONNX file: ONNX Runtime, OpenCV and NumPy, no model code.

What it gives is what the model gives: images are read and resized as the test's pipeline of the
config does, windows lie where mmseg lays them, logits are resized and averaged before labels are
taken. Scores may differ in the last digits, labels where two classes are as likely.
"""

import hashlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vpt_dense import safe_files, tasks
from vpt_dense.datasets import checks, raster
from vpt_dense.datasets.label_maps import id_type, to_ids
from vpt_dense.deploy import boxes
from vpt_dense.deploy import card as cards
from vpt_dense.deploy.boxes import mixture
from vpt_dense.errors import UserError
from vpt_dense.predicting.results import (
    Classification,
    DepthMap,
    NormalMap,
    Result,
    Segmentation,
    precision,
)
from vpt_dense.windows import Axis

_CV2 = dict(nearest=cv2.INTER_NEAREST, bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC,
            area=cv2.INTER_AREA, lanczos=cv2.INTER_LANCZOS4)
_PILLOW = dict(nearest=Image.Resampling.NEAREST, bilinear=Image.Resampling.BILINEAR,
               bicubic=Image.Resampling.BICUBIC, box=Image.Resampling.BOX,
               lanczos=Image.Resampling.LANCZOS, hamming=Image.Resampling.HAMMING)
#: Windows of a large image that pass through the model together.
_WINDOWS = 4
#: Bytes of logits that are made at a time, and above which what is kept lies in a file.
_TILE, _IN_MEMORY = 2**27, 2**30


def load(path: str | os.PathLike, device: str = 'cpu', threads: int = 0) -> 'OnnxPredictor':
    """Load an exported model.

    Args:
        path: A file that ``tools/export.py`` wrote.
        device: ``cpu``, or ``cuda`` where ONNX Runtime was built for it.
        threads: Of an operator; 0: one for each core.

    Raises:
        UserError: If the file is absent, damaged or was not made by ``tools/export.py``, or ONNX
            Runtime is not installed.
    """
    path = os.fspath(path)
    if not Path(path).is_file():
        raise UserError(f'no file {path}')
    (runtime,) = cards.needed('onnxruntime')
    provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}.get(
        device.partition(':')[0])
    if provider not in runtime.get_available_providers():
        raise UserError(
            f'device {device!r}: this ONNX Runtime has '
            f'{", ".join(runtime.get_available_providers())}; take cpu, or install its build for '
            'that device')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path, options, providers=[provider])
        text = session.get_modelmeta().custom_metadata_map.get(cards.KEY)
    except Exception as error:  # of classes that ONNX Runtime makes for itself
        if isinstance(error, MemoryError):
            raise
        line = ' '.join((str(error).splitlines() or ['?'])[0].split())
        raise UserError(f'{path} is no model that ONNX Runtime can run: {line}') from error
    return OnnxPredictor(session, cards.from_text(text, path), path, device)


class OnnxPredictor:
    """A :class:`vpt_dense.predicting.results.Predictor` of an exported file; see :func:`load`.

    Attributes:
        task: ``segmentation``, ``classification``, ``detection``, ``panoptic``, ``depth`` or
            ``normals``.
        classes: The names of the classes.
        ids: Of each class the id in label maps; elsewhere its position.
        ignored_id: The id of pixels without data.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
        things: Of a panoptic model, how many of the classes, the first ones, are things.
        card: What the file says of itself (:mod:`vpt_dense.deploy.card`).
    """

    def __init__(self, session: Any, card: dict[str, Any], path: str, device: str) -> None:
        self._session, self.card, self._path, self._device = session, card, path, device
        self.task: str = card['task']
        task = tasks.TASKS[self.task]
        self._maps: dict[str, Any] | None = card.get('maps')
        if not task.classes and self._maps is None:
            raise UserError(
                f'{path} does not say what its maps of {self.task} are, as files of earlier '
                'versions; export it again')
        self._dense, self._finds = task.dense, task.regions
        self.things: int = card.get('detector', {}).get('things', 0)
        self.classes = tuple(card['classes'])
        self.ids = tuple(card['ids'])
        self.palette = card['palette']
        self.ignored_id: int = card.get('ignored_id', 255)  # unused without LoadBands
        self._warned = False
        self._gives_labels = card['output']['name'] == 'labels'

    def describe(self) -> dict[str, Any]:
        """See :class:`vpt_dense.predicting.results.Predictor`."""
        import onnxruntime

        digest = hashlib.sha256()
        with open(self._path, 'rb') as stream:
            while block := stream.read(2**20):
                digest.update(block)
        return dict(
            checkpoint=self._path, sha256=digest.hexdigest(), tta=False, cfg_options=[],
            exported_from={k: self.card.get(k) for k in ('checkpoint', 'sha256', 'iter', 'epoch')},
            quantized=self.card['quantized'], device=self._device,
            versions=dict(onnxruntime=onnxruntime.__version__, vpt_dense=self.card['version']))

    def stream(
        self, images: Iterable[str], probabilities: bool | str = False,
        batch_size: int | None = None,
    ) -> Iterator[Result | Exception]:
        """Predict one image after the other and keep none of them.

        Args:
            images: Paths.
            probabilities: Whether those of every pixel are wanted: 'float16' or 'float32', which is
                what True means.
            batch_size: Images of one size, or windows of an image, that pass through the model
                together, at most; None: 4 windows, one image. Detectors take one.

        Yields:
            In the order of the images the result; where one cannot be read, the error.

        Raises:
            UserError: If the pipeline of the config is one that is not known here, or
                probabilities (of a classifier always) are wanted of a file that gives labels.
        """
        if self.card['pipeline_problem']:
            raise UserError(
                f'{self._path} cannot read images by itself: of the pipeline that it was exported '
                f'with {self.card["pipeline_problem"]}; predict with the checkpoint')
        if (probabilities or not self._dense) and self._gives_labels:
            raise UserError(
                f'{self._path} gives labels, no probabilities; export without --argmax')
        batch: list[tuple[str, np.ndarray]] = []
        for path in map(os.fspath, images):
            try:
                image = self.prepare(path)
                if self._maps is not None:
                    yield self._mapped(image, batch_size or _WINDOWS)
                    continue
                if self._dense:
                    yield self._segmented(image, probabilities, batch_size or _WINDOWS)
                    continue
                if self._finds:
                    outputs = self._outputs(image.whole()[None])
                    yield boxes.found(outputs, self.card, image.size, image.original)
                    continue
                inputs = image.whole()
            except (UserError, ValueError) as error:
                yield from self._classified(batch)
                batch = []
                yield UserError(str(error) if path in str(error) else f'{path}: {error}')
                continue
            if batch and (len(batch) == (batch_size or 1) or inputs.shape != batch[0][1].shape):
                yield from self._classified(batch)
                batch = []
            batch.append((path, inputs))
        yield from self._classified(batch)

    def prepare(self, path: str | os.PathLike) -> '_Image':
        """Open an image as the config's pipeline reads it.

        Raises:
            ValueError: If it cannot be read; the message names the file.
            UserError: If the pipeline would change its bands.
        """
        path = os.fspath(path)
        first, *others = self.card['pipeline']
        reads_bands = first['type'] == 'LoadBands'
        info = raster.image_info(path)
        self._check_bands(path, info)
        if not others and reads_bands:
            return _Bands(path, info, first)
        if not others and info.format == 'GTiff' and info.dtype == np.uint8 and info.is_plain:
            return _Colours(path, info)
        no_data = None
        if reads_bands:
            pixels, no_data = _Bands(path, info, first).read(0, info.height)
        else:
            pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
            if pixels is None:
                raise UserError(f'{path}: not an image, or a damaged one')
            if first['to_float32']:
                pixels = pixels.astype(np.float32)
        original = pixels.shape[:2]
        for step in others:
            pixels = _STEPS[step['type']](
                pixels, **{k: v for k, v in step.items() if k != 'type'})
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return _Read(pixels if reads_bands else pixels[..., ::-1], original, no_data)

    def _check_bands(self, path: str, info: raster.ImageInfo) -> None:
        """Refuse a file whose bands the loader would change, as predicting with the model does."""
        loader = checks.loader_of(self.card['pipeline'])
        fault = loader.fault(info)
        if fault and not (fault == 'deeply' and self._warned):
            line = checks.tell(fault, [(path, info)], loader)
            if fault != 'deeply':
                raise UserError(line)
            self._warned = True
            print(f'warning: {line}', file=sys.stderr, flush=True)

    # --- the model ---------------------------------------------------------------------------

    def predict(self, inputs: np.ndarray, original: tuple[int, int]) -> Result:
        """Predict an image that is prepared.

        Args:
            inputs: (C, H, W), float32, as the graph takes it.
            original: (height, width) that its label map shall have, or that boxes are of.

        Raises:
            UserError: If the exported graph takes images of another size.
        """
        if self._dense:
            image = _Read(inputs.transpose(1, 2, 0), original, None)
            if self._maps is not None:
                return self._mapped(image, _WINDOWS)
            return self._segmented(image, False, _WINDOWS)
        if self._finds:
            return boxes.found(
                self._outputs(inputs[None]), self.card, inputs.shape[1:], original)
        (result,) = self._classified([('', inputs)])
        if isinstance(result, Exception):
            raise result
        return result

    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        return self._outputs(inputs)[0]

    def _outputs(self, inputs: np.ndarray) -> list[np.ndarray]:
        wanted, size = self.card['input']['size'], inputs.shape[2:]
        if wanted is not None and tuple(wanted) != size:
            raise UserError(
                f'{self._path} takes images of {wanted[0]}x{wanted[1]} pixels, this one is '
                f'{size[0]}x{size[1]} after its pipeline; export with --dynamic, or with --size '
                f'{size[0]} {size[1]}')
        return self._session.run(None, {self.card['input']['name']: inputs})

    def _classified(self, batch: list[tuple[str, np.ndarray]]) -> Iterator[Result | Exception]:
        if not batch:
            return
        try:
            scores = self._scores(np.stack([inputs for _, inputs in batch]))
        except UserError as error:
            yield from (UserError(f'{path}: {error}') for path, _ in batch)
            return
        for each in _softmax(scores):
            yield Classification(int(each.argmax()), self.classes, each)

    def _segmented(
        self, image: '_Image', probabilities: bool | str, windows: int
    ) -> Segmentation:
        padding = self.card['test'].get('padding')
        image = _Padded(image, **padding) if padding else image
        original = image.original
        labels = np.empty(original, id_type(self.ids, self.ignored_id))
        maps = None
        if probabilities:
            shape = (len(self.classes), *original)
            large = np.prod(shape) * 4 > _IN_MEMORY
            maps = (safe_files.on_disk if large else np.empty)(shape, precision(probabilities))
        for top, left, found in self._labels(image) if self._gives_labels else self._tiles(
                image, windows):
            height, width = found.shape[-2:]
            place = slice(top, top + height), slice(left, left + width)
            if found.ndim == 3:
                found, shares = self._classes_of(found, probabilities)
                if maps is not None:
                    maps[(slice(None), *place)] = shares
            labels[place] = to_ids(found, self.ids, self.ignored_id)
        if image.no_data is not None:
            labels[image.no_data] = self.ignored_id
        return Segmentation(labels, self.classes, self.ids, self.ignored_id, maps)

    def _mapped(self, image: '_Image', windows: int) -> DepthMap | NormalMap:
        """The depth or the normals of an image, at its original size.

        Raises:
            UserError: If normals would be averaged or resized that are of length 1 already.
        """
        padding = self.card['test'].get('padding')
        image = _Padded(image, **padding) if padding else image
        is_depth = self.task == 'depth'
        changes = image.original != image.content or any(
            len(axis.starts) > 1 for axis in self._axes(image.size))
        if not is_depth and self.card['output']['resized'] and changes:
            raise UserError(
                f'{self._path} gives normals at the size of its input, which are not those of the '
                'model once they are averaged over windows or resized; export without --resize')
        whole = None
        for top, left, found in self._tiles(image, windows):
            if whole is None:
                whole = np.empty((len(found), *image.original), np.float32)
            whole[:, top:top + found.shape[1], left:left + found.shape[2]] = found
        if is_depth:
            return DepthMap(whole[0], self._maps['scale'], self._maps['farthest'])
        length = np.sqrt(np.square(whole).sum(0))
        return NormalMap((whole / np.maximum(length, 1e-12)).transpose(1, 2, 0))

    def _labels(self, image: '_Image') -> Iterator[tuple[int, int, np.ndarray]]:
        height, width = image.content
        if any(len(axis.starts) > 1 for axis in self._axes(image.size)) or (
                image.original != image.content):
            raise UserError(
                f'{self._path} gives labels, which cannot be averaged over windows or resized '
                'to the image as scores are; export without --argmax')
        yield 0, 0, self._scores(image.whole()[None])[0, :height, :width]

    def _classes_of(
        self, logits: np.ndarray, probabilities: bool | str
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels (H, W) of logits (K, H, W), and if they are wanted their probabilities."""
        if len(logits) > 1:
            return logits.argmax(0), _softmax(logits[None])[0] if probabilities else None
        share = 1 / (1 + np.exp(-logits))
        return share[0] > self.card['threshold'], np.concatenate([1 - share, share])

    # --- windows -----------------------------------------------------------------------------

    def _axes(self, size: tuple[int, int]) -> list[Axis]:
        """Where windows lie along the height and the width."""
        test = self.card['test']
        crop, stride = test.get('crop_size', size), test.get('stride', size)
        return [Axis.of(*axis) for axis in zip(size, crop, stride, strict=True)]

    def _tiles(
        self, image: '_Image', windows: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Logits (K, rows, columns) at the original size, tile by tile: (top, left, logits)."""
        if image.content == image.original:
            yield from self._inside(image, windows)
            return
        total = None
        for top, left, logits in self._inside(image, windows):
            if total is None:
                total = np.empty((len(logits), *image.content), np.float32)
            total[:, top:top + logits.shape[1], left:left + logits.shape[2]] = logits
        height, width = image.original
        step = max(1, _TILE // (4 * len(total) * width))
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            yield top, 0, self._resize(self._resize(total, 1, height, rows), 2, width)

    def _inside(
        self, image: '_Image', windows: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """The same at the size of what the graph takes, without what is padding."""
        height, width = image.content
        for top, left, logits in self._averaged(image, windows):
            logits = logits[:, :max(height - top, 0), :max(width - left, 0)]
            if logits.size:
                yield top, left, logits

    def _averaged(
        self, image: '_Image', windows: int
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """The same with padding.

        Rows of windows are kept at the height of the graph's logits until the pixels below them are
        reached: as many of them as overlap, not the image.
        """
        rows, columns = self._axes(image.size)
        bands: list[tuple[int, np.ndarray]] = []
        done = 0
        for index, top in enumerate(rows.starts):
            bands = [band for band in bands if band[0] + rows.window > done]
            bands.append((top, self._band(image, top, rows, columns, windows)))
            end = rows.starts[index + 1] if index + 1 < len(rows.starts) else rows.length
            classes = len(bands[0][1])
            counts = rows.counts()[done:end, None]
            step = max(1, _TILE // (4 * classes * max(end - done, 1)))
            for left in range(0, columns.length, step):
                right = min(left + step, columns.length)
                total = np.zeros((classes, end - done, right - left), np.float32)
                for first, logits in bands:
                    below = slice(done - first, min(end - first, rows.window))
                    part = self._resize(logits[:, :, left:right], 1, rows.window, below)
                    total[:, :part.shape[1]] += part
                if len(rows.starts) > 1:
                    total /= counts
                yield done, left, total
            done = end

    def _band(
        self, image: '_Image', top: int, rows: Axis, columns: Axis, windows: int
    ) -> np.ndarray:
        """The row of windows at ``top``, (K, h, W): averaged along the width."""
        strip = image.rows(top, top + rows.window)
        total = None
        for start in range(0, len(columns.starts), windows):
            part = columns.starts[start:start + windows]
            crops = np.stack([strip[:, :, x:x + columns.window] for x in part])
            for x, logits in zip(part, self._scores(crops), strict=True):
                logits = self._resize(logits, 2, columns.window)
                if len(columns.starts) == 1:
                    return logits
                if total is None:
                    shape = (*logits.shape[:2], columns.length)
                    large = np.prod(shape) * 4 > _IN_MEMORY
                    total = safe_files.on_disk(shape, np.float32) if large else np.zeros(
                        shape, np.float32)
                total[:, :, x:x + columns.window] += logits
        total /= columns.counts()
        return total

    def _resize(
        self, maps: np.ndarray, axis: int, length: int, part: slice = slice(None)
    ) -> np.ndarray:
        """Resize (K, h, w) along an axis bilinearly, as torch does; a part of the result."""
        if maps.shape[axis] == length:
            return maps[:, part] if axis == 1 else maps[:, :, part]
        shares = mixture(maps.shape[axis], length, self.card['align_corners'])[part]
        return shares @ maps if axis == 1 else maps @ shares.T


# --- images ----------------------------------------------------------------------------------


class _Image(ABC):
    """An image as the graph takes it.

    Attributes:
        size: (height, width) of that, in pixels.
        original: Of the file's image.
        no_data: (H, W) bool of the original, where there are none, as far as it has been read;
            None: nowhere.
    """

    size: tuple[int, int]
    original: tuple[int, int]
    no_data: np.ndarray | None = None

    @property
    def content(self) -> tuple[int, int]:
        """(height, width) of what is not padding."""
        return self.size

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """(C, bottom - top, width) float32."""
        pixels = self.pixels(top, bottom)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1), np.float32)

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.rows(0, self.size[0])

    @abstractmethod
    def pixels(self, top: int, bottom: int) -> np.ndarray:
        """(bottom - top, width, C) of any type."""


class _Read(_Image):
    """In memory."""

    def __init__(
        self, pixels: np.ndarray, original: tuple[int, int], no_data: np.ndarray | None
    ) -> None:
        self._pixels, self.original, self.no_data = pixels, tuple(original), no_data
        self.size = pixels.shape[:2]

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        return self._pixels[top:bottom]


class _Colours(_Image):
    """In a TIFF of 8 bits: read when it is asked for."""

    def __init__(self, path: str, info: raster.ImageInfo) -> None:
        self.path, self.info = path, info
        self.size = self.original = (info.height, info.width)

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        read = raster.read_window(self.path, top, 0, bottom - top, self.size[1])[..., :3]
        return np.broadcast_to(read, (*read.shape[:2], 3))


class _Bands(_Colours):
    """As ``LoadBands`` reads it."""

    def __init__(self, path: str, info: raster.ImageInfo, said: dict[str, Any]) -> None:
        super().__init__(path, info)
        self.said = said

    def read(self, top: int, bottom: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Normalised rows, and where no band has data, see :func:`.raster.normalise`."""
        said = self.said
        image = raster.read_window(self.path, top, 0, bottom - top, self.size[1], said['bands'])
        nodata = said['nodata']
        nodata = self.info.nodata_of(said['bands']) if nodata is None else nodata
        return raster.normalise(image, said['mean'], said['std'], nodata)

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        image, no_data = self.read(top, bottom)
        if no_data is not None:
            if self.no_data is None:
                self.no_data = np.zeros(self.size, bool)
            self.no_data[top:bottom] = no_data
        return image


class _Padded(_Image):
    """Another one, padded at the lower right to a multiple of ``divisor``, as mmseg does."""

    def __init__(self, image: _Image, divisor: int, values: list[float]) -> None:
        self.image, self.original, self.values = image, image.original, values
        self.size = tuple(-(-length // divisor) * divisor for length in image.size)

    @property
    def content(self) -> tuple[int, int]:
        return self.image.size

    @property
    def no_data(self) -> np.ndarray | None:
        return self.image.no_data

    def pixels(self, top: int, bottom: int) -> np.ndarray:
        height, width = self.content
        inside = self.image.pixels(min(top, height), min(bottom, height))
        padded = np.empty((bottom - top, self.size[1], inside.shape[2]), np.float32)
        padded[:] = self.values
        padded[:len(inside), :width] = inside
        return padded


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Of (B, K, ...) over K."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


# --- the pipeline: transforms of mmcv and mmpretrain, on images as OpenCV reads them ----------


def _to_size(
    image: np.ndarray, size: tuple[int, int], backend: str, interpolation: str
) -> np.ndarray:
    """To (width, height)."""
    if backend == 'pillow':
        return np.asarray(Image.fromarray(image).resize(size, _PILLOW[interpolation]))
    return cv2.resize(image, size, interpolation=_CV2[interpolation])


def _scaled(image: np.ndarray, factors: tuple[float, float]) -> tuple[int, int]:
    height, width = image.shape[:2]
    return int(width * float(factors[0]) + 0.5), int(height * float(factors[1]) + 0.5)


def _resize(
    image: np.ndarray, scale: Any, scale_factor: Any, keep_ratio: bool, **how: str
) -> np.ndarray:
    if scale is None:
        pair = scale_factor if isinstance(scale_factor, list) else [scale_factor] * 2
        scale = _scaled(image, pair)
    scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
    if keep_ratio:
        sides = image.shape[:2]
        factor = min(max(scale) / max(sides), min(scale) / min(sides))
        scale = _scaled(image, (factor, factor))
    return _to_size(image, scale, **how)


def _resize_edge(image: np.ndarray, scale: int, edge: str, **how: str) -> np.ndarray:
    height, width = image.shape[:2]
    by_width = edge == 'width' or edge == 'short' and width < height or (
        edge == 'long' and width > height)
    size = (scale, int(scale * height / width))
    if not by_width:
        size = (int(scale * width / height), scale)
    return _to_size(image, size, **how)


def _center_crop(image: np.ndarray, crop_size: Any) -> np.ndarray:
    crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    width, height = (min(pair) for pair in zip(crop, image.shape[1::-1], strict=True))
    top = max(0, round((image.shape[0] - height) / 2.0))
    left = max(0, round((image.shape[1] - width) / 2.0))
    return image[top:top + height, left:left + width]


_STEPS = {'Resize': _resize, 'ResizeEdge': _resize_edge, 'CenterCrop': _center_crop}
