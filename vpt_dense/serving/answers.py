"""Results of tasks as clients get them: JSON, a PNG of labels, an array of NumPy."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vpt_dense.multitask.loading import About
from vpt_dense.serving.settings import Refused


def as_array(about: About, result: Any) -> np.ndarray:
    """A result as an array.

    Returns:
        Labels (H, W), the positions of the classes, uint8, or uint16 where there are more than 255
        (what has no data is 255 or 65535); probabilities (K,), float32; depths (H, W) in metres, or
        normals (H, W, 3), float32.

    Raises:
        ValueError: If a value is not finite.
    """
    if about.kind == 'segmentation':
        kind = np.uint8 if len(about.classes) <= 255 else np.uint16
        if isinstance(result, Tensor):
            return result.cpu().numpy().astype(kind)
        positions = np.full(np.iinfo(result.labels.dtype).max + 1, np.iinfo(kind).max, kind)
        positions[list(result.ids)] = np.arange(len(result.ids), dtype=kind)
        return positions[result.labels]
    if isinstance(result, Tensor):
        array = result.float().cpu().numpy()
    else:
        name = dict(classification='probabilities', depth='depth', normals='normals')[about.kind]
        array = np.asarray(getattr(result, name), np.float32)
    if not np.isfinite(array).all():
        raise ValueError('the task predicts values that are not finite')
    return array


def png(about: About, result: Any) -> bytes:
    """Labels as a grey PNG of 8 or 16 bits.

    Raises:
        Refused: If there are none.
    """
    if about.kind != 'segmentation':
        raise Refused(400, f'format=png is for segmentation; the task is one of {about.kind}: take '
                      'json or npy')  # fmt: skip
    stream = io.BytesIO()
    Image.fromarray(as_array(about, result)).save(stream, 'PNG')
    return stream.getvalue()


def npy(about: About, result: Any) -> bytes:
    """A result as a file of ``numpy.save``."""
    stream = io.BytesIO()
    np.save(stream, as_array(about, result), allow_pickle=False)
    return stream.getvalue()


def data(image: str, task: str, about: About, result: Any) -> dict[str, Any]:
    """A result as data for JSON.

    Args:
        image: As the client calls it.
        task: The name of the task.
        about: What that is.
        result: It.
    """
    told: dict[str, Any] = dict(image=image, task=task, kind=about.kind)
    array = as_array(about, result)
    if about.kind == 'classification':
        order = np.argsort(-array, kind='stable')
        told['scores'] = [{'class': about.classes[i], 'score': float(array[i])} for i in order]
        return told
    told.update(width=array.shape[1], height=array.shape[0])
    if about.kind == 'segmentation':
        counts = np.bincount(array.reshape(-1), minlength=len(about.classes))
        told['labels_png'] = base64.b64encode(png(about, result)).decode()
        told['shares'] = {
            name: int(count) / array.size
            for name, count in zip(about.classes, counts, strict=False)}
    else:
        told['values_npy'] = base64.b64encode(npy(about, result)).decode()
    return told
