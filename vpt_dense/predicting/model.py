"""Predicting with a checkpoint: what ``vpt_dense.load`` returns, and ``tools/predict.py`` runs."""

import contextlib
import copy
import dataclasses
import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS
from mmengine.runner.amp import autocast
from torch import Tensor, nn

from vpt_dense import (
    building,
    logging,
    preflight,
    safe_files,
    segments,
    shipped,
    tasks,
    visualization,
)
from vpt_dense import config as configs
from vpt_dense.checkpoints import deltas
from vpt_dense.datasets import checks, raster
from vpt_dense.datasets.label_maps import annotation_ids, id_type, ignored_id, to_ids
from vpt_dense.errors import FULL, UserError, explain, is_programs
from vpt_dense.predicting import several
from vpt_dense.predicting.partial import Partial
from vpt_dense.predicting.results import (
    Classification,
    DepthMap,
    Detection,
    NormalMap,
    Panoptic,
    Result,
    Segmentation,
    precision,
)
from vpt_dense.tree import kind_of, leaf_datasets
from vpt_dense.tta import parts as tta_parts
from vpt_dense.weights import checkpoints, stored_config

#: Threads that read and transform images while the model works.
READERS = 2
#: Bytes of logits at the size of the original, above which an image is segmented tile by tile; and
#: as many pixels, however few its classes are.
PLAIN_BYTES = 2**30
PLAIN_PIXELS = 2**26
#: Images of one size that :meth:`ModelPredictor.predict_by_size` lets pass together, at most.
TOGETHER = 16

_ANNOTATIONS = (
    'LoadAnnotations', 'LoadMask', 'LoadDepth', 'LoadNormals', 'LoadPanopticAnnotations',
    'LoadTasks', 'LabelTargets')
#: Transforms that do the same to some rows of an image as to the whole.
_BY_ROWS = ('LoadBands', 'PackSegInputs')


def load(
    checkpoint: str | os.PathLike,
    config: str | os.PathLike | Config | None = None,
    device: str = 'cpu',
    *,
    base: str | os.PathLike | None = None,
    cfg_options: Any = None,
    tta: bool = False,
    method: str | None = None,
    classes: Sequence[str] | None = None,
    assemble: Callable[[Config, dict, str, str | None], nn.Module] = deltas.load,
) -> 'ModelPredictor':
    """Load a model to predict with; see :func:`vpt_dense.load`.

    ``assemble`` builds the model of a config with the tensors of a checkpoint in it.
    """
    logging.filter_warnings()
    path = os.fspath(checkpoint)
    if Path(path).is_dir():
        path = checkpoints.find_last(path)
    content = deltas.read(path, bare=config is not None)
    meta = content['meta']
    cfg = _config(config, cfg_options, method, content, path)
    try:
        device = torch.device(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {device!r} cannot be used here ({_first_line(error)})') from error
    with building.scope(cfg):
        building.import_packages(cfg)
        info = _metainfo(cfg, meta, config is None)
        _check_classes(info, meta, path, config)
        preflight.check_model(cfg.model)
        preflight.check_heads(cfg)
        if cfg.get('data_preprocessor'):
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        other = deltas.other_setting(cfg, content, path)
        if other:
            print(f'warning: {path} was trained with another {other}; predicting with that of this '
                  'config', file=sys.stderr, flush=True)
        model = assemble(cfg, content, path, os.fspath(base) if base else None)
        if classes is not None:
            info = _take_classes(model, classes, os.fspath(base) if base else None)
        pipeline = cfg.get('test_pipeline')
        if not pipeline:
            raise UserError(
                'the config has no test_dataloader.dataset.pipeline that could read images')
        if tta or cfg.get('tta'):
            around, pipeline = tta_parts(cfg, pipeline, 'test_pipeline', 'predict')
            model = MODELS.build(dict(**around, module=model))
        origin = dict(
            checkpoint=path, sha256=_sha256(path),
            config=os.path.abspath(cfg.filename) if cfg.filename else None,
            tta=bool(tta or cfg.get('tta')), cfg_options=_as_texts(cfg_options),
            **({} if classes is None else dict(classes=list(classes))),
            **{key: meta[key] for key in ('iter', 'epoch', 'metric') if meta.get(key) is not None})
        return ModelPredictor(model.to(device).eval(), cfg, pipeline, info, origin)


def _config(
    config: Any, cfg_options: Any, method: str | None, content: dict, path: str
) -> Config:
    """The finished config: of a file, an object or the checkpoint."""
    if method is not None and (config is None or isinstance(config, Config)):
        raise UserError(f'--method {method} is for a recipe; name its file')
    if config is None:
        cfg = stored_config.parse(content['meta'].get('cfg'), path, everything=True)
        if 'model' not in cfg:
            raise UserError(f'checkpoint {path}: the config in it has no model; name its config')
    elif isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        cfg = configs.load(os.fspath(config), cfg_options, method)
    if config is None or isinstance(config, Config):
        if cfg_options:
            configs.override(cfg, cfg_options)
        configs.resolve(cfg)
    trained = _trained_classes(content['meta'])
    tests = leaf_datasets(cfg.get('test_dataloader')) or leaf_datasets(cfg.get('train_dataloader'))
    if trained and tests and kind_of(tests[0]) == 'ImageFolder':
        if not (tests[0].get('metainfo') or {}).get('classes'):  # its folder is not on this machine
            cfg.dataset = ConfigDict(cfg.get('dataset') or {}, classes=trained)
            configs.resolve(cfg)
    return cfg


def _trained_classes(meta: dict) -> list[str] | None:
    found = meta.get('dataset_meta')
    classes = found.get('classes') if isinstance(found, dict) else None
    return list(classes) if isinstance(classes, (list, tuple)) else None


def _metainfo(cfg: Config, meta: dict, stored: bool) -> dict[str, Any]:
    """``classes``, ``palette``, ``reduce_zero_label``, ``label_map``, ``ignore_index`` of the data.

    And ``maps`` of a data set of several tasks.

    Args:
        cfg: The config.
        meta: Of the checkpoint.
        stored: Whether the config is the one in the checkpoint, whose data set may be of a class
            that is not known here.
    """
    trained = meta.get('dataset_meta')
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        for dataset in leaf_datasets(cfg.get(name)):
            try:
                built = DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []})
            except KeyError:
                if stored and isinstance(trained, dict):
                    return trained
                raise
            info = dict(built.metainfo)
            for key in ('reduce_zero_label', 'label_map', 'ignore_index', 'maps'):
                info[key] = getattr(built, key, None)
            return info
    return trained if isinstance(trained, dict) else {}


def _take_classes(
    model: nn.Module, classes: Sequence[str], base: str | None
) -> dict[str, Any]:
    """Have a model tell other classes apart; ``metainfo`` of such data."""
    head = dict(model.named_children()).get(tasks.need(
        dict(model.named_children()), '--classes').head)
    if not hasattr(head, 'set_classes'):
        raise UserError(
            f'--classes: a {type(head).__name__} knows its classes by their numbers; other classes '
            'are for models that know them by their names (docs/clip.md)')
    try:
        head.set_classes(list(classes), base)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f'--{error}') from error
    for key in ('num_classes', 'out_channels'):  # mmseg's models have the head's
        if hasattr(model, key):
            setattr(model, key, len(classes))
    return dict(classes=tuple(classes))


def _check_classes(info: dict, meta: dict, path: str, config: Any) -> None:
    """The names of the config are those of the training."""
    trained, classes = _trained_classes(meta), list(info.get('classes') or ())
    told = meta.get('dataset_meta')
    of_tasks = (told.get('task_classes') if isinstance(told, dict) else None) or {}
    for name, own in (info.get('task_classes') or {}).items():
        if name in of_tasks and list(of_tasks[name]) != list(own):
            raise UserError(
                f'the task {name} has other classes than checkpoint {path} was trained with; use '
                'the config that it was trained with')
    if not trained or not classes or trained == classes:
        return
    where = 'the config' if config is None or isinstance(config, Config) else f'config {config}'
    if len(trained) != len(classes):
        raise UserError(
            f'{where} has {len(classes)} classes, checkpoint {path} was trained with '
            f'{len(trained)}; use the config that it was trained with')
    at = next(i for i, pair in enumerate(zip(trained, classes, strict=True)) if pair[0] != pair[1])
    raise UserError(
        f'{where} has other classes than checkpoint {path} was trained with: class {at} is '
        f'{classes[at]!r} and was {trained[at]!r}; use the config that it was trained with')


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(shipped.place(path), 'rb') as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _as_texts(cfg_options: Any) -> list[str]:
    if isinstance(cfg_options, Mapping):
        return [f'{key}={value!r}' for key, value in cfg_options.items()]
    return list(cfg_options or ())


def _first_line(error: BaseException) -> str:
    return ' '.join((str(error).splitlines() or [type(error).__name__])[0].split())


class _Large(NamedTuple):
    """An image that is segmented tile by tile."""

    image: Any
    name: str
    size: tuple[int, int]


class ModelPredictor:
    """A model with a checkpoint in it; made by :func:`vpt_dense.load`.

    Attributes:
        task: ``segmentation``, ``classification`` or another of :mod:`vpt_dense.tasks`.
        classes: The names of the classes.
        ids: Of each class the id in label maps, as in the annotations; elsewhere its position.
        ignored_id: The id of pixels without data, in images that ``LoadBands`` reads.
        palette: Of each class its colour, [R, G, B] from 0 to 255.
        model: The model, in eval mode on its device.
        cfg: Its config.
        things: Of a panoptic model, how many of the classes, the first ones, are things.
        of_tasks: Of a model of several tasks, name -> what each predicts
            (:class:`vpt_dense.predicting.results.OneTask`); else empty.
        batch_size: Images that pass through the model together if nothing else is said: the
            batch size of the config's test.
        partial: Folder for what is there of large images, so that another run can go on with it;
            None: it ends with this one.
    """

    partial: Path | None = None

    def __init__(
        self, model: nn.Module, cfg: Config, pipeline: list, info: dict, origin: dict
    ) -> None:
        self.model, self.cfg, self._origin = model, cfg, origin
        self._inner = getattr(model, 'module', model)  # inside test-time augmentation
        parts = dict(self._inner.named_children())
        self._task = task = tasks.need(parts, 'predicting')
        self.task = task.name
        self._predict = task.function('predict', 'predicting')
        number = 0
        if task.classes:
            key = next(key for key in task.heads if key in parts)
            head = parts[key]
            number = 0 if task.regions else getattr(head, 'num_classes', None)
            number = number or len(info.get('classes') or ())
            if not number:
                raise UserError(f'model.{key}: a {type(head).__name__} has no classes')
        self.classes = tuple(info.get('classes') or map(str, range(number))) if number else ()
        if len(self.classes) != number:
            raise UserError(
                f'the data set of the config has {len(self.classes)} classes, the model {number}; '
                'set dataset.classes, the heads follow')
        self.things = getattr(self._inner, 'num_things_classes', 0)
        self.of_tasks = several.tasks_of(self._inner, info)
        #: Of the largest map that is made of an image.
        self._channels = max((len(each.classes) for each in self.of_tasks.values()), default=number)
        palette = info.get('palette')
        if not palette or len(palette) != number:
            palette = visualization.make_palette(number)
        self.palette = [list(map(int, colour)) for colour in palette]
        self.ids, changes = tuple(range(number)), (False, None)
        if task.labels and number:
            changes = bool(info.get('reduce_zero_label')), info.get('label_map')
            self.ids = annotation_ids(number, *changes)
        self.ignored_id = ignored_id(self.ids, changes[0], info.get('ignore_index'), changes[1])
        self.batch_size = (cfg.get('test_dataloader') or {}).get('batch_size', 1)
        self._half = bool((cfg.get('test_cfg') or {}).get('fp16'))
        self._steps = _without_annotations(pipeline)
        kinds = [kind_of(step) for step in self._steps]
        self._reads_bands = 'LoadBands' in kinds
        self._loader, self._warned = checks.loader_of(self._steps), False
        first = self._steps[0] if kinds[0].startswith('LoadImage') else {}
        self._grey = first.get('color_type') == 'grayscale'
        self._float = bool(first.get('to_float32'))
        self._by_rows = all(k in _BY_ROWS for k in kinds if not k.startswith('LoadImage'))
        self._pipelines: SimpleQueue = SimpleQueue()
        for _ in range(READERS):
            self._pipelines.put(Compose(self._steps))

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self._inner.parameters()).device

    def describe(self) -> dict[str, Any]:
        """See :class:`vpt_dense.predicting.results.Predictor`."""
        from vpt_dense.hooks.report_hook import versions

        return dict(self._origin, device=str(self.device), versions=versions())

    def predict(
        self, images: Any, probabilities: bool | str = False, batch_size: int | None = None
    ) -> Result | list[Result]:
        """Predict one image or several.

        Args:
            images: One image or a list of them. An image is

                - a path;
                - a PIL image; it is turned as its EXIF tag says;
                - an array (H, W, 3) in the order R, G, B, or (H, W), uint8;
                - a tensor (3, H, W) in the order R, G, B, uint8, on any device.

                For a config with ``LoadBands`` arrays and tensors have the bands of its files, in
                the files' order and units, of any type. Arrays and tensors of four dimensions are
                several images. Tensors and arrays in floating point are refused elsewhere: whether
                they go to 1 or to 255, or are normalised, nobody can see.
            probabilities: Whether those of every pixel are wanted: 'float16' or 'float32', which is
                what True means. For classification they always come, in float32.
            batch_size: Images of one size that pass through the model together, at most. None:
                the config's.

        Returns:
            A :class:`~vpt_dense.predicting.results.Segmentation` or
            :class:`~vpt_dense.predicting.results.Classification`, or a list of them.

        Raises:
            UserError: If a file cannot be read; it is named.
            ValueError: If an array, or ``probabilities``, is none of the above.
        """
        several = isinstance(images, (list, tuple)) or getattr(images, 'ndim', 0) == 4
        found = []
        for result in self.stream(images if several else [images], probabilities, batch_size):
            if isinstance(result, Exception):
                raise result
            found.append(result)
        return found if several else found[0]

    def stream(
        self, images: Iterable[Any], probabilities: bool | str = False,
        batch_size: int | None = None,
    ) -> Iterator[Result | Exception]:
        """Predict one image after the other and keep none of them.

        Args:
            images: As in :meth:`predict`, any number.
            probabilities: As there.
            batch_size: As there.

        Yields:
            In the order of the images the result; where an image cannot be read, the error.
        """
        yield from self._stream(enumerate(images), probabilities, batch_size or self.batch_size)

    def predict_by_size(
        self, images: Sequence[Any], probabilities: bool | str = False
    ) -> list[Result]:
        """As :meth:`predict` of a list, but images of one size pass the model together.

        Wherever they stand in the list; at most :data:`TOGETHER`, and fewer of large images.
        """
        sizes = [self._size_of(image) for image in images]
        order = sorted(range(len(images)), key=sizes.__getitem__)
        largest = max((height * width for height, width in sizes), default=0)
        bytes_ = max(largest * max(self._channels, 1) * 4, 1) if self._task.dense else 1
        number = max(1, min(TOGETHER, PLAIN_BYTES // 4 // bytes_))
        found: dict[int, Result] = {}
        results = self._stream(
            ((i, images[i]) for i in order), probabilities, max(number, self.batch_size))
        for i, result in zip(order, results, strict=True):
            if isinstance(result, Exception):
                raise result
            found[i] = result
        return [found[i] for i in range(len(images))]

    def _size_of(self, image: Any) -> tuple[int, int]:
        """Height and width, in pixels; (0, 0) of what cannot be read, of which others tell."""
        try:
            return self._check_size(image)
        except (UserError, ValueError, OSError):
            return 0, 0

    def _stream(
        self, source: Iterator[tuple[int, Any]], probabilities: bool | str, size: int
    ) -> Iterator[Result | Exception]:
        """As :meth:`stream`, of images with the numbers that messages call them by."""
        precision(probabilities)  # before anything is read
        waiting: deque[Future] = deque()
        batch: list[tuple[str, dict]] = []
        pool = ThreadPoolExecutor(READERS)
        try:
            while True:
                while len(waiting) < size + READERS and (entry := next(source, None)):
                    waiting.append(pool.submit(self._prepare, *entry))
                if not waiting:
                    break
                name, item = waiting.popleft().result()
                fits = isinstance(item, dict) and len(batch) < size
                if batch and not (fits and _shape(item) == _shape(batch[0][1])):
                    yield from self._run(batch, probabilities)
                    batch = []
                if isinstance(item, dict):
                    batch.append((name, item))
                elif isinstance(item, _Large):
                    yield self._run_large(item, probabilities)
                else:
                    yield item
                del item
            if batch:
                yield from self._run(batch, probabilities)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    # --- reading -----------------------------------------------------------------------------

    def _prepare(self, index: int, image: Any) -> tuple[str, dict | _Large | Exception]:
        """Read and transform an image; an error is returned if it is the image's fault."""
        name = os.fspath(image) if _is_path(image) else f'images[{index}]'
        try:
            size = self._check_size(image)
            if self._task.dense:
                pixels = size[0] * size[1]
                # Of several tasks there are no tiles: what memory can hold is made at once.
                limit = PLAIN_BYTES * (4 if self.of_tasks else 1)
                if pixels * self._channels * 4 > limit or pixels > PLAIN_PIXELS:
                    return name, _Large(image, name, size)
            return name, self._transform(image, name)
        except Exception as error:
            return name, _of_image(error, name)

    def _check_size(self, image: Any) -> tuple[int, int]:
        """Height and width of an image as it is seen, in pixels; (0, 0) of what is none.

        Raises:
            ValueError: If it is a file whose bands the pipeline's loader would change.
        """
        if not _is_path(image):
            return _size(image)
        if not raster.exists(image):
            return 0, 0
        info = raster.image_info(image)
        fault = self._loader.fault(info) if self._loader else None
        if fault:
            line = checks.tell(fault, [(os.fspath(image), info)], self._loader)
            if fault != 'deeply':
                raise UserError(line)
            if not self._warned:
                self._warned = True
                print(f'warning: {line}', file=sys.stderr, flush=True)
        return info.height, info.width

    def _transform(self, image: Any, name: str, nodata: Any = None) -> dict:
        """The image after the test's pipeline; ``nodata`` is that of an array's file."""
        data = dict(img_path=name, seg_fields=[], reduce_zero_label=False, label_map=None)
        if _is_path(image):
            if not raster.exists(image):
                what = 'a folder' if os.path.isdir(image) else 'no such file'
                raise UserError(f'{name}: {what}')
        else:
            array = self._as_loaded(image)
            data.update(
                img=array, nodata=nodata, img_shape=array.shape[:2], ori_shape=array.shape[:2])
        pipeline = self._pipelines.get()
        try:
            for step in pipeline.transforms:
                if 'img' in data and type(step).__name__.startswith('LoadImage'):
                    continue
                data = step(data)
                if data is None:
                    raise ValueError('the pipeline leaves it out')
        finally:
            self._pipelines.put(pipeline)
        return data

    def _as_loaded(self, image: Any) -> np.ndarray:
        """An image as ``LoadImageFromFile`` of the pipeline would have loaded it."""
        image = _as_array(image, self._reads_bands)
        bands = image.shape[2]
        if self._reads_bands:
            if bands >= 3:  # LoadBands expects the order of OpenCV
                image = image[..., [2, 1, 0, *range(3, bands)]]
            return image
        if image.dtype != np.uint8:
            raise ValueError(
                f'arrays and tensors must be uint8, from 0 to 255, not {image.dtype}: of other '
                'types nobody can see what 1 means')
        if bands not in (1, 3):
            raise ValueError(
                f'the image has {bands} bands, 3 (or 1) are expected: arrays are (H, W, 3), '
                'tensors (3, H, W)')
        if self._grey:
            if bands == 3:
                raise ValueError('the config reads grey images, this one has 3 bands')
            image = image[..., 0]
        else:
            image = np.ascontiguousarray(np.broadcast_to(image[..., ::-1], (*image.shape[:2], 3)))
        return image.astype(np.float32) if self._float else image

    # --- predicting --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        half = autocast(enabled=self._half)
        with torch.no_grad(), half, building.scope(self.cfg):
            yield

    def _run(
        self, batch: list[tuple[str, dict]], probabilities: bool | str
    ) -> Iterator[Result | Exception]:
        """Predict images of one size together; alone, if that fails."""
        try:
            with self._at_work():
                found = self._predict(self, [data for _, data in batch], probabilities)
        except Exception as error:
            if _ran_out(error):
                advice = 'lower the batch size' if len(batch) > 1 else self._advice()
                raise UserError(
                    f'{batch[0][0]}: out of memory with {len(batch)} images at a time; {advice}'
                ) from error
            if isinstance(error, UserError):
                raise
            if len(batch) == 1:
                yield _of_image(error, batch[0][0])
                return
            for each in batch:
                yield from self._run([each], probabilities)
            return
        yield from found

    def _to_ids(self, labels: Tensor, no_data: np.ndarray | None) -> np.ndarray:
        """Labels (1, H, W) as the ids (H, W) of the annotations."""
        return to_ids(labels[0].cpu().numpy(), self.ids, self.ignored_id, no_data)

    def _segmented(self, labels: np.ndarray, probabilities: np.ndarray | None) -> Segmentation:
        return Segmentation(labels, self.classes, self.ids, self.ignored_id, probabilities)

    def _probabilities(self, scores: Tensor, averaged: bool = False) -> Tensor:
        """Probabilities (classes, H, W), float32, of what the model gives."""
        scores = scores.float()
        if len(scores) == 1:  # a sigmoid has been applied
            return torch.cat([1 - scores, scores])
        return scores if averaged else scores.softmax(dim=0)

    # --- large images ------------------------------------------------------------------------

    def _run_large(self, large: _Large, probabilities: bool | str) -> Result | Exception:
        """Segment an image tile by tile."""
        try:
            with self._at_work(), contextlib.ExitStack() as stack:
                return self._predict_large(large, probabilities, stack)
        except Exception as error:
            if _ran_out(error):
                raise UserError(f'{large.name}: out of memory; {self._advice()}') from error
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(
                    'no room for intermediate results in the folder for temporary files; set '
                    'TMPDIR to one on a larger disk') from error
            return _of_image(error, large.name)

    def _advice(self) -> str:
        test_cfg = getattr(self._inner, 'test_cfg', None) or {}
        if self._task.dense and test_cfg.get('mode') == 'whole':
            return (
                "model.test_cfg.mode is 'whole': predict by windows with --cfg-options "
                "'model.test_cfg={mode: slide, crop_size: [512, 512], stride: [341, 341]}' (the "
                "size of the training's crops)")
        return 'lower model.test_cfg.windows_per_batch, or take a device with more memory'

    def _predict_large(
        self, large: _Large, probabilities: bool | str, stack: contextlib.ExitStack
    ) -> Segmentation:
        from vpt_dense.overrides import are_of
        from vpt_dense.segmentors import tiles
        from vpt_dense.segmentors.encoder_decoder import EncoderDecoder

        model, (height, width) = self.model, large.size
        megapixels = f'{large.name} has {height * width / 1e6:,.0f} million pixels'
        if not self._task.classes:
            raise UserError(f'{megapixels}, more than {self._task.name} takes; make it smaller')
        if not isinstance(model, EncoderDecoder) or not are_of(
            EncoderDecoder, model, 'forward', 'predict', 'inference', 'slide_inference',
            'postprocess_result', 'whole_inference',
        ):
            raise UserError(
                f'{megapixels}, more than fit at once, and only a vpt_dense.EncoderDecoder without '
                'test-time augmentation goes over it in tiles; leave --tta out, or cut the image')
        is_file = _is_path(large.image) and os.path.isfile(large.image)
        kept = Partial(
            self.partial if is_file and not probabilities else None, str(large.image), large.size,
            id_type(self.ids, self.ignored_id),
            dict({key: self._origin.get(key) for key in ('sha256', 'tta', 'classes')},
                 test_cfg=dict(model.test_cfg), pipeline=str(self._steps)))
        padding = getattr(model.data_preprocessor, 'test_cfg', None) or {}
        if self._by_rows and set(padding) <= {'size_divisor'}:
            if model.test_cfg['mode'] == 'whole':
                raise UserError(f'{megapixels}, more than fit at once; {self._advice()}')
            step = padding.get('size_divisor') or 1
            padded = tuple(-(-length // step) * step for length in large.size)
            meta = dict(ori_shape=large.size, img_shape=padded, pad_shape=padded)
            no_data = safe_files.on_disk(large.size, bool) if self._reads_bands else None
            found = tiles.slide(
                model, self._rows(large, stack, no_data), padded, meta, kept.rows)
        else:
            data = model.data_preprocessor(pseudo_collate([self._transform(large.image,
                                                                           large.name)]), False)
            inputs, meta = data['inputs'], data['data_samples'][0].metainfo
            no_data = meta.pop('no_data', None)
            if inputs.shape[2] * inputs.shape[3] * len(self.classes) * 4 > 2 * PLAIN_BYTES:
                raise UserError(
                    f'{megapixels}, and its pipeline resizes it to {inputs.shape[2]} x '
                    f'{inputs.shape[3]}, more than fit at once; leave Resize out of '
                    'test_dataloader.dataset.pipeline to have it read by windows')
            kept.rows = 0  # all of its logits are there at once
            logits = next(model.each_logits(inputs, [meta]))
            logits = model.undo(logits, meta)
            found = tiles.enlarge(logits, large.size, model.align_corners)
        labels = kept.labels
        maps = safe_files.on_disk((len(self.classes), height, width), precision(probabilities)) \
            if probabilities else None
        for top, left, logits in found:
            if kept.rows < top < height and left == 0:
                kept.done(top)
                for each in (no_data, maps):
                    safe_files.release(each)
            logits = logits[:, :max(0, height - top), :max(0, width - left)]  # without padding
            if not logits.numel():
                continue
            place = slice(top, top + logits.shape[1]), slice(left, left + logits.shape[2])
            logits = logits.sigmoid() if len(logits) == 1 else logits
            labels[place] = self._to_ids(
                model.classify(logits), None if no_data is None else no_data[place])
            if maps is not None:
                maps[(slice(None), *place)] = self._probabilities(logits).cpu().numpy()
        kept.done(height)
        return dataclasses.replace(self._segmented(labels, maps), leftovers=kept.files)

    def _rows(
        self, large: _Large, stack: contextlib.ExitStack, no_data: np.ndarray | None
    ) -> Callable[[int, int], Tensor]:
        """Reads rows of an image, from top to bottom, as the backbone takes them.

        Where ``LoadBands`` finds no data, that is noted in ``no_data`` (H, W). Of a raster no more
        is read than that; other files are decoded whole, one byte a value.
        """
        (height, width), whole, nodata = large.size, None, None
        if not _is_path(large.image):
            whole = _as_array(large.image, self._reads_bands)
        else:
            image = stack.enter_context(raster.open_image(large.image))
            info = image.info
            bands, nodata = info.bands, info.nodata
            if not self._reads_bands:
                if (info.format != 'GTiff' or info.dtype != np.uint8 or not info.is_plain
                        or self._grey):
                    # The others are decoded whole anyway, as the loader does it.
                    whole = self._load(large.image)
                bands = min(bands, 3)
            chosen = list(range(1, bands + 1))

        def read(top: int, bottom: int) -> np.ndarray:
            if whole is not None:
                return whole[top:bottom]
            return image.read(chosen, (top, 0, bottom - top, width))

        first, kept = 0, read(0, 1)[:0]

        def rows(top: int, bottom: int) -> Tensor:
            nonlocal first, kept
            kept = kept[top - first:]  # windows overlap
            there = min(bottom, height)  # the rest is padded
            if there > top + len(kept):
                kept = np.concatenate([kept, read(top + len(kept), there)])
            first = top
            data = pseudo_collate([self._transform(kept, large.name, nodata)])
            found = data['data_samples'][0].get('no_data')
            if found is not None:
                no_data[top:there] = found
            preprocessor = self.model.data_preprocessor
            inputs = preprocessor(data, False)['inputs'][:, :, :there - top]
            return nn.functional.pad(
                inputs, (0, 0, 0, bottom - there), value=getattr(preprocessor, 'pad_val', 0))

        return rows

    def _load(self, path: str | os.PathLike) -> np.ndarray:
        """A file as the first transform reads it, R first."""
        pipeline = self._pipelines.get()
        try:
            image = pipeline.transforms[0](dict(img_path=os.fspath(path)))['img']
        finally:
            self._pipelines.put(pipeline)
        return image[..., ::-1] if image.ndim == 3 else image


# --- tasks -----------------------------------------------------------------------------------


def segment(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Predict the labels of images of one size, see :attr:`vpt_dense.tasks.Task.predict`."""
    data, model, inner = pseudo_collate(batch), predictor.model, predictor._inner
    if model is inner or not probabilities:
        samples = model.test_step(data)
        scores = [sample.get('seg_logits') if probabilities else None for sample in samples]
        scores = [None if each is None else each.data for each in scores]
        labels = [sample.pred_sem_seg.data for sample in samples]
    else:
        if not getattr(model, '_is_ours', bool)():
            raise UserError(
                f'{type(model).__name__} gives no probabilities; set tta_model.type='
                "'vpt_dense.SegTTAModel', or predict without --tta")
        scores, samples = model.average(data)
        labels = [inner.classify(each) for each in scores]
    results = []
    for label, score, sample in zip(labels, scores, samples, strict=True):
        if score is not None:
            score = predictor._probabilities(score, model is not inner).cpu().numpy()
            score = score.astype(precision(probabilities), copy=False)
        label = predictor._to_ids(label, sample.get('no_data'))
        results.append(predictor._segmented(label, score))
    return results


def classify(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Predict the classes of images of one size."""
    scores = [sample.pred_score.float().cpu().numpy()
              for sample in predictor.model.test_step(pseudo_collate(batch))]
    return [Classification(int(each.argmax()), predictor.classes, each) for each in scores]


def detect(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Find boxes, and masks, in images of one size."""
    found = []
    for sample in predictor.model.test_step(pseudo_collate(batch)):
        parts = sample.pred_instances.to('cpu')
        order = parts.scores.argsort(descending=True, stable=True)
        masks = parts.masks[order].numpy().astype(bool) if 'masks' in parts else None
        found.append(Detection(
            parts.bboxes[order].float().numpy(), parts.labels[order].numpy(),
            parts.scores[order].float().numpy(), predictor.classes, masks))
    return found


def find_segments(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Find things and stuff in images of one size."""
    return [Panoptic(*segments.found_segments(
                sample.pred_panoptic_seg.sem_seg[0].cpu().numpy(), len(predictor.classes)),
                predictor.classes, predictor.things)
            for sample in predictor.model.test_step(pseudo_collate(batch))]


def measure_depth(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Find the depth in images of one size."""
    tests = leaf_datasets(predictor.cfg.get('test_dataloader'))
    scale = float((tests[0] if tests else {}).get('depth_scale') or 1)
    farthest = predictor._inner.decode_head.max_depth
    return [DepthMap(sample.pred_depth_map.data[0].float().cpu().numpy(), scale, farthest)
            for sample in predictor.model.test_step(pseudo_collate(batch))]


def find_normals(
    predictor: ModelPredictor, batch: list[dict], probabilities: bool | str
) -> list[Result]:
    """Find the normals of surfaces in images of one size."""
    return [NormalMap(sample.pred_normal_map.data.float().cpu().numpy().transpose(1, 2, 0))
            for sample in predictor.model.test_step(pseudo_collate(batch))]


# --- images ----------------------------------------------------------------------------------


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def _size(image: Any) -> tuple[int, int]:
    """Height and width of a PIL image, array or tensor, in pixels; (0, 0) of what is none."""
    if isinstance(image, PIL.Image.Image):
        return image.height, image.width
    shape = tuple(getattr(image, 'shape', ()))
    if isinstance(image, Tensor) and len(shape) == 3:
        shape = shape[1:]
    return (int(shape[0]), int(shape[1])) if len(shape) >= 2 else (0, 0)


def _as_array(image: Any, bands: bool) -> np.ndarray:
    """A PIL image, array or tensor as an array (H, W, bands), R first."""
    if isinstance(image, PIL.Image.Image):
        image = _from_pil(image, bands)
    elif isinstance(image, Tensor):
        image = image.detach().cpu().numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    if not isinstance(image, np.ndarray) or image.ndim not in (2, 3):
        what = f'{type(image).__name__} {tuple(getattr(image, "shape", ()))}'
        raise ValueError(
            f'an image is a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W), not a '
            f'{what}')
    if not image.size:
        raise ValueError(f'the image is empty: {image.shape}')
    return image[..., None] if image.ndim == 2 else image


def _from_pil(image: PIL.Image.Image, bands: bool) -> np.ndarray:
    """A PIL image as an array, turned as its EXIF tag says."""
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode == 'P' or not bands and image.mode in ('1', 'LA', 'PA', 'RGBA', 'CMYK', 'YCbCr'):
        image = image.convert('RGB')
    if not bands and image.mode not in ('L', 'RGB'):
        raise ValueError(
            f'a PIL image of mode {image.mode} is not of 8 bits and grey or R, G, B; give its '
            'path, or convert it')
    return np.asarray(image)


def _shape(data: dict) -> Any:
    """The shapes that images of a batch must have in common."""
    inputs, samples = data['inputs'], data['data_samples']
    inputs = inputs if isinstance(inputs, list) else [inputs]
    samples = samples if isinstance(samples, list) else [samples]
    return [each.shape for each in inputs], [each.get('ori_shape') for each in samples]


def _without_annotations(pipeline: list) -> list:
    """A test's pipeline without what loads annotations, also inside test-time augmentation."""
    kept = []
    for step in copy.deepcopy(list(pipeline)):
        if isinstance(step, (list, tuple)):
            step = _without_annotations(step)
            if not step:
                continue
        elif kind_of(step) in _ANNOTATIONS:
            continue
        elif step.get('transforms'):
            step['transforms'] = _without_annotations(step['transforms'])
        kept.append(step)
    return kept


# --- errors ----------------------------------------------------------------------------------


def _of_image(error: Exception, name: str) -> Exception:
    """One line that names the image; an error of the program is raised."""
    if is_programs(error):
        raise error
    reason = explain(error)
    if 'failed to load image' in reason:  # OpenCV does not say more
        reason = 'not an image, or a damaged one'
    return UserError(reason if name in reason else f'{name}: {reason}')


def _ran_out(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and 'memory' in text and 'alloc' in text)
