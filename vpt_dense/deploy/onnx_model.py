"""Predicting with an exported ONNX file: ONNX Runtime, OpenCV and NumPy, no model code.

What it gives is what the model gives: images are read and resized as the test's pipeline of the
config does, windows lie where mmseg lays them, logits are resized and averaged before labels are
taken. Scores may differ in the last digits, labels where two classes are as likely.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from vpt_dense.datasets import checks, raster
from vpt_dense.deploy import card as cards
from vpt_dense.errors import UserError
from vpt_dense.predicting.results import Classification, Result, Segmentation

_CV2 = dict(nearest=cv2.INTER_NEAREST, bilinear=cv2.INTER_LINEAR, bicubic=cv2.INTER_CUBIC,
            area=cv2.INTER_AREA, lanczos=cv2.INTER_LANCZOS4)
_PILLOW = dict(nearest=Image.Resampling.NEAREST, bilinear=Image.Resampling.BILINEAR,
               bicubic=Image.Resampling.BICUBIC, box=Image.Resampling.BOX,
               lanczos=Image.Resampling.LANCZOS, hamming=Image.Resampling.HAMMING)
#: Windows of a large image that pass through the model together.
_WINDOWS = 4


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
        task: ``segmentation`` or ``classification``.
        classes: The names of the classes.
        ids: Of each class the id in label maps; for classification its position.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
        card: What the file says of itself (:mod:`vpt_dense.deploy.card`).
    """

    def __init__(self, session: Any, card: dict[str, Any], path: str, device: str) -> None:
        self._session, self.card, self._path, self._device = session, card, path, device
        self.task: str = card['task']
        self.classes = tuple(card['classes'])
        self.ids = tuple(card['ids'])
        self.palette = card['palette']
        self._ids = np.array(self.ids, np.uint8 if max(self.ids) < 256 else np.uint16)
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
        self, images: Iterable[str], probabilities: bool = False, batch_size: int | None = None
    ) -> Iterator[Result | Exception]:
        """Predict one image after the other and keep none of them.

        Args:
            images: Paths.
            probabilities: Whether those of every pixel are wanted.
            batch_size: Images of one size, or windows of an image, that pass through the model
                together, at most; None: 4 windows, one image.

        Yields:
            In the order of the images the result; where one cannot be read, the error.

        Raises:
            UserError: If the pipeline of the config is one that is not known here, or
                probabilities are wanted of a file that gives labels.
        """
        if self.card['pipeline_problem']:
            raise UserError(
                f'{self._path} cannot read images by itself: of the pipeline that it was exported '
                f'with {self.card["pipeline_problem"]}; predict with the checkpoint')
        if probabilities and self._gives_labels:
            raise UserError(
                f'{self._path} gives labels, no probabilities; export without --argmax')
        batch: list[tuple[str, np.ndarray, tuple[int, int]]] = []
        for path in images:
            try:
                entry = (os.fspath(path), *self.prepare(path))
            except UserError as error:
                yield from self._run(batch, probabilities)
                batch = []
                yield error
                continue
            same = batch and (entry[1].shape, entry[2]) == (batch[0][1].shape, batch[0][2])
            if batch and not (same and len(batch) < (batch_size or 1)):
                yield from self._run(batch, probabilities)
                batch = []
            batch.append(entry)
        yield from self._run(batch, probabilities)

    def _run(
        self, batch: list[tuple[str, np.ndarray, tuple[int, int]]], probabilities: bool
    ) -> Iterator[Result | Exception]:
        if not batch:
            return
        inputs = np.stack([image for _, image, _ in batch])
        try:
            yield from self.predict(inputs, batch[0][2], probabilities, len(batch))
        except UserError as error:
            for path, _, _ in batch:
                yield UserError(f'{path}: {error}')

    def prepare(self, path: str | os.PathLike) -> tuple[np.ndarray, tuple[int, int]]:
        """Read an image as the config's pipeline does.

        Returns:
            (3, H, W), float32, R first, as the model takes it; and (height, width) of the file's
            image, in pixels.

        Raises:
            UserError: If it cannot be read; the message names the file.
        """
        path = os.fspath(path)
        self._check_bands(path)
        try:
            content = np.fromfile(path, np.uint8)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror.lower()}') from error
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if image is None:
            raise UserError(f'{path}: not an image, or a damaged one')
        original = image.shape[:2]
        for step in self.card['pipeline']:
            image = _STEPS[step['type']](image, **{k: v for k, v in step.items() if k != 'type'})
        image = image[..., ::-1].transpose(2, 0, 1)
        return np.ascontiguousarray(image, np.float32), original

    def _check_bands(self, path: str) -> None:
        """Refuse a file whose bands OpenCV would change, as predicting with the model does."""
        try:
            info = raster.image_info(path)
        except ValueError as error:
            raise UserError(str(error) if path in str(error) else f'{path}: {error}') from error
        loader = checks.Loader()
        fault = loader.fault(info)
        if fault and not (fault == 'deeply' and self._warned):
            line = checks.tell(fault, [(path, info)], loader)
            if fault != 'deeply':
                raise UserError(line)
            self._warned = True
            print(f'warning: {line}', file=sys.stderr, flush=True)

    # --- the model ---------------------------------------------------------------------------

    def predict(
        self,
        inputs: np.ndarray,
        original: tuple[int, int],
        probabilities: bool = False,
        batch_size: int = _WINDOWS,
    ) -> list[Result]:
        """Predict images that are prepared.

        Args:
            inputs: (B, C, H, W), float32, see :meth:`prepare`.
            original: (height, width) that label maps shall have.
            probabilities: Whether those of every pixel are wanted.
            batch_size: Windows, if it is more than 4 or 1, that pass through the model together.

        Raises:
            UserError: If the exported graph takes images of another size.
        """
        if self.task == 'classification':
            scores = self._scores(inputs)
            if self._gives_labels:
                scores = np.eye(len(self.classes), dtype=np.float32)[scores]
            else:
                scores = _softmax(scores)
            return [Classification(int(each.argmax()), self.classes, each) for each in scores]
        return [self._segmented(image[None], original, probabilities, max(batch_size, _WINDOWS))
                for image in inputs]

    def _scores(self, inputs: np.ndarray) -> np.ndarray:
        wanted, size = self.card['input']['size'], inputs.shape[2:]
        if wanted is not None and tuple(wanted) != size:
            raise UserError(
                f'{self._path} takes images of {wanted[0]}x{wanted[1]} pixels, this one is '
                f'{size[0]}x{size[1]} after its pipeline; export with --dynamic, or with --size '
                f'{size[0]} {size[1]}')
        return self._session.run(None, {self.card['input']['name']: inputs})[0]

    def _segmented(
        self, inputs: np.ndarray, original: tuple[int, int], probabilities: bool, windows: int
    ) -> Segmentation:
        size, test = inputs.shape[2:], self.card['test']
        rows, columns = (
            _starts(*axis) for axis in zip(
                size, test.get('crop_size', size), test.get('stride', size), strict=True))
        if self._gives_labels:
            if len(rows) * len(columns) > 1 or tuple(original) != size:
                raise UserError(
                    f'{self._path} gives labels, which cannot be averaged over windows or resized '
                    'to the image as scores are; export without --argmax')
            return self._result(self._scores(inputs)[0], None)
        height, width = (min(pair) for pair in zip(size, test.get('crop_size', size), strict=True))
        places = [(y, x) for y in rows for x in columns]
        total = None
        for start in range(0, len(places), windows):
            part = places[start:start + windows]
            crops = np.stack([inputs[0, :, y:y + height, x:x + width] for y, x in part])
            for (y, x), logits in zip(part, self._scores(crops), strict=True):
                logits = self._resize(logits, (height, width))
                if len(places) == 1:
                    total = logits
                    continue
                if total is None:
                    total = np.zeros((len(logits), *size), np.float32)
                    counts = np.zeros(size, np.float32)
                total[:, y:y + height, x:x + width] += logits
                counts[y:y + height, x:x + width] += 1
        if len(places) > 1:
            total /= counts
        logits = self._resize(total, original)
        if len(logits) == 1:
            share = 1 / (1 + np.exp(-logits))
            scores = np.concatenate([1 - share, share]) if probabilities else None
            return self._result((share[0] > self.card['threshold']).astype(int), scores)
        scores = _softmax(logits[None])[0] if probabilities else None
        return self._result(logits.argmax(0), scores)

    def _result(self, labels: np.ndarray, probabilities: np.ndarray | None) -> Segmentation:
        return Segmentation(self._ids[labels], self.classes, self.ids, probabilities)

    def _resize(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resize (K, h, w) bilinearly as torch does; nothing if they have the size."""
        corners = self.card['align_corners']
        if maps.shape[1] != size[0]:
            maps = _mixture(maps.shape[1], size[0], corners) @ maps
        if maps.shape[2] != size[1]:
            maps = maps @ _mixture(maps.shape[2], size[1], corners).T
        return maps


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Of (B, K, ...) over K."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)


def _starts(length: int, crop: int, stride: int) -> list[int]:
    """Where mmseg lays windows: the last one ends at the border."""
    number = max(length - crop + stride - 1, 0) // stride + 1
    window = min(crop, length)
    return [min(i * stride, length - window) for i in range(number)]


def _mixture(source: int, target: int, align_corners: bool) -> np.ndarray:
    """What each of ``target`` places takes of ``source``, (target, source), float32."""
    places = np.arange(target, dtype=np.float32)
    if align_corners:
        places = places * np.float32((source - 1) / max(target - 1, 1))
    else:
        places = np.maximum((places + np.float32(0.5)) * np.float32(source / target)
                            - np.float32(0.5), 0)
    low = np.minimum(places.astype(int), source - 1)
    share = places - low
    mixture = np.zeros((target, source), np.float32)
    index = np.arange(target)
    mixture[index, low] = 1 - share
    mixture[index, np.minimum(low + 1, source - 1)] += share
    return mixture


# --- the pipeline: transforms of mmcv and mmpretrain, on images as OpenCV reads them ----------


def _load(image: np.ndarray, to_float32: bool) -> np.ndarray:
    return image.astype(np.float32) if to_float32 else image


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


_STEPS = {'LoadImageFromFile': _load, 'Resize': _resize, 'ResizeEdge': _resize_edge,
          'CenterCrop': _center_crop}
