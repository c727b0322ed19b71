"""Segmenting images whose logits would not fit into memory: tile by tile, from top to bottom."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from mmseg.models.utils import resize
from torch import Tensor

from vpt_dense import safe_files
from vpt_dense.segmentors.encoder_decoder import EncoderDecoder, _add, _check, _counts
from vpt_dense.windows import Axis

#: Bytes of logits that are made at a time.
_TILE = 2**27
#: Bytes above which what is kept of a row of windows lies in a file.
_IN_MEMORY = 2**30


class _Band(NamedTuple):
    """The logits of a row of windows, added up along the width.

    Attributes:
        top: The first row of pixels.
        logits: (classes, h, width): of the head's height.
        heights: To which they are resized, one after the other; the last is the windows'.
    """

    top: int
    logits: Tensor
    heights: list[int]


def slide(
    model: EncoderDecoder, read: Callable[[int, int], Tensor], size: tuple[int, int], meta: dict,
    start: int = 0,
) -> Iterator[tuple[int, int, Tensor]]:
    """Compute what :meth:`EncoderDecoder.slide_inference` does, and keep rows of windows only.

    Widened, a row of windows is kept at the height of the head's logits until all rows of windows
    over its pixels are there. These are heightened and added up for some columns at a time, in the
    order and with the arithmetic of ``slide_inference``: the same logits, but for the rounding of
    other batches.

    Args:
        model: Its ``test_cfg`` has ``mode='slide'``.
        read: Gives rows of the image (1, C, bottom - top, width) as the backbone takes them. It is
            called from top to bottom; what it has given may be asked for again.
        size: Height and width of the image, in pixels.
        meta: What mmseg knows of the image.
        start: The first row of pixels that is wanted: one at which a tile begins.

    Yields:
        (top, left, logits (classes, rows, columns)) of tiles that cover the image from there,
        without overlap.
    """
    _check(model.test_cfg)
    crop, stride = model.test_cfg['crop_size'], model.test_cfg['stride']
    rows, columns = (Axis.of(*axis) for axis in zip(size, crop, stride, strict=True))
    bands: list[_Band] = []
    done = 0
    for index, top in enumerate(rows.starts):
        end = rows.starts[index + 1] if index + 1 < len(rows.starts) else rows.length
        if top + rows.window <= start:
            done = end
            continue
        band = _band(model, read(top, top + rows.window), meta, rows, columns, top)
        bands = [b for b in bands if b.top + rows.window > done]
        bands.append(band)
        if end > start:
            yield from _tiles(model, bands, done, end, rows, columns)
        done = end


def _band(
    model: EncoderDecoder, strip: Tensor, meta: dict, rows: Axis, columns: Axis, top: int
) -> _Band:
    """The row of windows at ``top``."""
    one = Axis([0], rows.window, rows.window)
    parts = model._window_logits(strip, [meta], one, columns)
    total, blend = None, model.test_cfg.get('blend', 'mean')
    for x in columns.starts:
        part, sizes = next(parts)  # (classes, h, w)
        classes, height, _ = part.shape
        for _, width in sizes:
            part = model._resize(part, (height, width), strip.dtype)
        if len(columns.starts) == 1:
            total = part.to(strip.dtype)
            break
        if total is None:
            total = _zeros((classes, height, columns.length), strip)
        _add(total[:, :, x:x + columns.window], part, columns, 2, blend)
        del part  # a view of all windows of its batch
    if len(columns.starts) > 1:
        total /= _counts(columns, total, blend)
    return _Band(top, total, [height for height, _ in sizes])


def _tiles(
    model: EncoderDecoder, bands: list[_Band], first: int, end: int, rows: Axis, columns: Axis
) -> Iterator[tuple[int, int, Tensor]]:
    """Logits of the rows of pixels from ``first`` to ``end``, to which no other band adds."""
    blend = model.test_cfg.get('blend', 'mean')
    counts = _counts(rows, bands[0].logits, blend)[first:end, None]
    classes = len(bands[0].logits)
    step = max(1, _TILE // (4 * classes * rows.window))
    for left in range(0, columns.length, step):
        right = min(left + step, columns.length)
        total = bands[0].logits.new_zeros(classes, end - first, right - left)
        for band in bands:
            part = band.logits[:, :, left:right]
            for height in band.heights:
                part = model._resize(part, (height, right - left))
            if blend != 'mean' and len(rows.starts) > 1:
                part = part * torch.from_numpy(rows.weights(blend)).to(part)[:, None]
            part = part[:, first - band.top:end - band.top]  # it may end above `end`
            total[:, :part.shape[1]] += part
        if len(rows.starts) > 1:
            total /= counts
        yield first, left, total


def enlarge(
    logits: Tensor, size: tuple[int, int], align_corners: bool
) -> Iterator[tuple[int, int, Tensor]]:
    """Resize logits bilinearly, some rows of the result at a time.

    Args:
        logits: (classes, h, w), floating point.
        size: Height and width of the result, in pixels.
        align_corners: As in ``torch.nn.functional.interpolate``, which gives the same.

    Yields:
        (top, 0, logits (classes, rows, width)) from top to bottom.
    """
    height, width = size
    lower, weights = _places(logits.shape[1], height, align_corners)
    upper = np.minimum(lower + 1, logits.shape[1] - 1)
    step = max(1, _TILE // (4 * len(logits) * width))
    for top in range(0, height, step):
        part = slice(top, min(top + step, height))
        first = int(lower[part][0])
        source = logits[:, first:int(upper[part][-1]) + 1]
        wide = resize(source[None], (source.shape[1], width), mode='bilinear',
                      align_corners=align_corners, warning=False)[0]
        weight = torch.from_numpy(weights[part]).to(logits)[:, None]
        above, below = (torch.from_numpy(index[part] - first).to(logits.device)
                        for index in (lower, upper))
        yield top, 0, wide[:, above] * (1 - weight) + wide[:, below] * weight


def _places(length: int, wanted: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of each place of the result the place before it in the source, and the next one's weight."""
    index = np.arange(wanted, dtype=np.float32)
    if align_corners:
        scale = np.float32((length - 1) / (wanted - 1)) if wanted > 1 else np.float32(0)
        place = scale * index
    else:
        scale = np.float32(length) / np.float32(wanted)
        place = np.maximum(scale * (index + np.float32(0.5)) - np.float32(0.5), 0)
    lower = np.minimum(place.astype(np.int64), length - 1)
    return lower, (place - lower).astype(np.float32)


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Of the dtype and device of ``like``; on the disk if it is large and on the CPU."""
    size = int(np.prod(shape)) * like.element_size()
    if size <= _IN_MEMORY or like.device.type != 'cpu' or like.dtype != torch.float32:
        return like.new_zeros(shape)
    return torch.from_numpy(safe_files.on_disk(shape, np.float32))
