"""Exported models in int8, and what that costs in accuracy."""

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS

from vpt_dense import building, safe_files
from vpt_dense.deploy import card as cards
from vpt_dense.deploy import graphs, onnx_model
from vpt_dense.errors import UserError
from vpt_dense.predicting.results import Segmentation

#: What is quantized: where the time goes. Norms, softmax and GELU stay as they are.
_OPERATORS = ['MatMul', 'Gemm', 'Conv']


def quantize(source: str | Path, out: str | Path, images: Iterable[np.ndarray]) -> None:
    """Quantize an exported ONNX file to int8, weights by channel, activations by their range.

    Args:
        source: The file in float32.
        out: The file to write.
        images: For calibration, each (1, C, H, W), float32, as the graph takes them.

    Raises:
        UserError: If there is no image to calibrate with.
    """
    cards.needed('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    source = str(source)
    name = onnx.load(source, load_external_data=False).graph.input[0].name

    class Reader(CalibrationDataReader):
        """Hands the images out."""

        def __init__(self) -> None:
            self.source, self.number = iter(images), 0

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.source, None)
            self.number += image is not None
            return None if image is None else {name: image}

    reader = Reader()
    with safe_files.atomic(out) as unfinished, tempfile.TemporaryDirectory(
        dir=Path(out).parent, prefix='.quantizing-'
    ) as folder, safe_files.told(out):
        prepared = os.path.join(folder, 'prepared.onnx')
        with graphs.quietly():
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            try:
                quantize_static(
                    prepared, str(unfinished), reader, quant_format=QuantFormat.QDQ,
                    op_types_to_quantize=_OPERATORS, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                    extra_options=dict(MatMulConstBOnly=True))
            except ValueError:
                if reader.number:
                    raise
                raise UserError('--quantize: there is no image to calibrate with') from None
        model = onnx.load(str(unfinished))
        card = cards.from_text(next(
            (entry.value for entry in onnx.load(source, load_external_data=False).metadata_props
             if entry.key == cards.KEY), None), source)
        del model.metadata_props[:]
        model.metadata_props.add(
            key=cards.KEY, value=cards.to_text({**card, 'quantized': 'int8'}))
        onnx.save_model(model, str(unfinished))
        onnx_model.load(unfinished)  # ONNX Runtime can run it


def quantize_graph(source: str | Path, out: str | Path) -> None:
    """Quantize the products of a graph of tasks to int8: weights by channel, once.

    Activations are quantized while it runs, by the range that they have then (ONNX Runtime's
    dynamic quantization): there is nothing to calibrate, and branches are quantized too, which
    static quantization does not reach. Weights have 7 bits: with 8 CPUs that lack VNNI may add up
    products to more than their 16 bits hold
    (https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).

    Args:
        source: The file in float32, of :meth:`vpt_dense.MultiTask.export`.
        out: The file to write; its card says ``quantized``.

    Raises:
        UserError: If a package is not installed.
    """
    cards.needed('onnx', 'onnxruntime')
    import onnx
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    with safe_files.atomic(out) as unfinished, tempfile.TemporaryDirectory(
        dir=Path(out).parent, prefix='.quantizing-'
    ) as folder, safe_files.told(out):
        prepared = os.path.join(folder, 'prepared.onnx')
        with graphs.quietly():
            quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantize_dynamic(
                prepared, str(unfinished), op_types_to_quantize=['MatMul', 'Gemm'],
                per_channel=True, reduce_range=True, weight_type=QuantType.QInt8,
                extra_options=dict(EnableSubgraph=True, MatMulConstBOnly=True))
        model = onnx.load(str(unfinished))
        entries = onnx.load(str(source), load_external_data=False).metadata_props
        card = json.loads(next(entry.value for entry in entries if entry.key == cards.KEY))
        del model.metadata_props[:]
        model.metadata_props.add(
            key=cards.KEY, value=cards.to_text({**card, 'quantized': 'int8'}))
        onnx.save_model(model, str(unfinished))


def calibration_images(
    predictor: onnx_model.OnnxPredictor, cfg: Config, number: int, folder: str | None = None
) -> Iterator[np.ndarray]:
    """Images to calibrate with, as the graph takes them: of the training, or of a folder.

    They go the way of a test; of an image that is larger than the graph's it is the middle.

    Args:
        predictor: The file in float32.
        cfg: The config that it was exported from.
        number: How many, at most.
        folder: Where to take them from; None: the training's.

    Yields:
        Images (1, C, H, W).

    Raises:
        UserError: If they are smaller than what the graph takes.
    """
    if folder is not None:
        from vpt_dense.predicting import inputs

        found = inputs.find([folder])
        prepared = (predictor.prepare(image.path).whole() for image in _spread(found, number))
    else:
        dataset = dataset_of(cfg, 'train', cfg.get('test_pipeline'))
        prepared = (_input_of(dataset[i], cfg) for i in _spread(range(len(dataset)), number))
    size = predictor.card['input']['size'] or (predictor.card.get('test') or {}).get('crop_size')
    for image in prepared:
        if size is not None:
            spare = [have - want for have, want in zip(image.shape[1:], size, strict=True)]
            if min(spare) < 0:
                raise UserError(
                    f'--quantize: an image for calibration has {image.shape[1]}x{image.shape[2]} '
                    f'pixels, the exported graph takes {size[0]}x{size[1]}')
            top, left = (n // 2 for n in spare)
            image = image[:, top:top + size[0], left:left + size[1]]
        yield np.ascontiguousarray(image[None])


def _spread(things: Any, number: int) -> list:
    """So many of them, evenly."""
    count = len(things)
    return [things[i * count // min(number, count)] for i in range(min(number, count))]


def dataset_of(cfg: Config, split: str, pipeline: list | None = None) -> Any:
    """Build the data set of a split.

    Raises:
        UserError: If the config has none.
    """
    loader = cfg.get(f'{split}_dataloader')
    if not loader:
        raise UserError(f'the config has no {split}_dataloader')
    config = dict(loader['dataset'])
    if pipeline is not None:
        config['pipeline'] = pipeline
    with contextlib.redirect_stdout(io.StringIO()), building.scope(cfg):
        return DATASETS.build(config)


def _input_of(data: dict, cfg: Config) -> np.ndarray:
    """The packed image, (C, H, W), as exported graphs take it: float32, R first."""
    image = data['inputs'].numpy().astype(np.float32)
    has_blue_first = len(image) == 3 and not cards.loads_bands(cfg.get('test_pipeline') or ())
    return image[::-1] if has_blue_first else image


def measure(
    predictor: onnx_model.OnnxPredictor, cfg: Config, number: int | None = None
) -> tuple[dict[str, float], int]:
    """Measure an exported file on the validation data of a config, by the config's metric.

    Args:
        predictor: The file.
        cfg: The config.
        number: How many images, at most; None: all.

    Returns:
        The metrics, and the number of images.

    Raises:
        UserError: If the config has no validation.
    """
    from mmengine.evaluator import Evaluator
    from mmengine.structures import PixelData

    if not cfg.get('val_evaluator'):
        raise UserError('the config has no val_evaluator')
    dataset = dataset_of(cfg, 'val')
    with building.scope(cfg):
        evaluator = Evaluator(cfg.val_evaluator)
        evaluator.dataset_meta = dataset.metainfo
        indices = _spread(range(len(dataset)), number or len(dataset))
        position = {identity: i for i, identity in enumerate(predictor.ids)}
        for index in indices:
            data = dataset[index]
            sample = data['data_samples']
            inputs = _input_of(data, cfg)
            original = tuple(sample.get('ori_shape', inputs.shape[1:]))[:2]
            result = predictor.predict(inputs, original)
            if isinstance(result, Segmentation):
                labels = np.vectorize(position.get, otypes=[np.int64])(result.labels)
                sample.set_data(dict(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None])))
            else:
                scores = torch.from_numpy(result.probabilities)
                sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
            evaluator.process([sample], data)
        return evaluator.evaluate(len(indices)), len(indices)
