"""Pictures of labels over their image: truth, prediction and a legend of the colours.

Needs no framework.
"""

import functools
import math
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

#: The short side, in pixels, that a picture with text has at least: smaller images are enlarged,
#: as long as their long side does not pass the other.
_SHORT_SIDE, _LONG_SIDE = 224, 2048
#: The two colours of the stripes of ignored pixels, and of labels that are no class.
_IGNORED = ((96, 96, 96), (200, 200, 200))
_NO_CLASS = ((255, 0, 255), (0, 0, 0))
#: Colours of a caption that says nothing right or wrong, something right, something wrong.
_TEXT, _RIGHT, _WRONG = (0, 0, 0), (0, 110, 0), (190, 0, 0)


class Panel(NamedTuple):
    """An image and what is drawn over it.

    Attributes:
        title: What stands above; None: nothing.
        labels: (H, W) integers; None: the image alone.
        ignore_index: The label of pixels that are left out. None, as in a prediction: no label is.
        edges: (H, W) of True and False: what is drawn white; None: nothing.
    """

    title: str | None
    labels: np.ndarray | None = None
    ignore_index: int | None = 255
    edges: np.ndarray | None = None


def segment_panel(title: str | None, ids: np.ndarray, labels: np.ndarray) -> Panel:
    """The colours of the classes of segments, with white lines between segments.

    Args:
        title: What stands above; None: nothing.
        ids: Of each pixel the number of its segment, 1 to N, (H, W); 0: of none.
        labels: Of each segment, (N,).
    """
    edges = np.zeros(ids.shape, bool)
    edges[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    edges[1:] |= ids[1:] != ids[:-1]
    return Panel(title, np.concatenate([[-1], labels]).astype(np.int64)[ids], -1, edges)


def draw_labels(
    image: np.ndarray, labels: np.ndarray, classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None, ignore_index: int | None = 255,
    title: str | None = None, alpha: float = 0.6, legend: bool = True,
) -> np.ndarray:
    """Draw one label map over its image; see :func:`draw_panels`.

    Args:
        image: RGB, uint8 (H, W, 3).
        labels: (H, W) integers.
        classes: Names by label.
        palette: [R, G, B] by label; None: :func:`make_palette`.
        ignore_index: The label of pixels that are left out; None: no label is.
        title: What stands above ('prediction').
        alpha: How much of a colour covers the image, 0 to 1.
        legend: Whether the classes that occur are named below.

    Returns:
        RGB, uint8. Without title and legend it is as large as the image.
    """
    panel = Panel(title, labels, ignore_index)
    return draw_panels(image, [panel], classes, palette, alpha, legend)


def draw_panels(
    image: np.ndarray, panels: Sequence[Panel], classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None, alpha: float = 0.6, legend: bool = True,
) -> np.ndarray:
    """Draw label maps over an image, side by side, with one legend of what occurs in them.

    Ignored pixels have grey stripes, labels that are no class pink ones; both are in the legend.

    Args:
        image: RGB, uint8 (H, W, 3).
        panels: From left to right.
        classes: Names by label.
        palette: [R, G, B] by label; None: :func:`make_palette`.
        alpha: How much of a colour covers the image, 0 to 1.
        legend: Whether the classes that occur are named below.

    Returns:
        RGB, uint8. Images below 224 pixels are enlarged by a whole number if there is any text.

    Raises:
        ValueError: If labels and image differ in size, or there are fewer colours than classes.
    """
    height, width = image.shape[:2]
    palette = make_palette(len(classes)) if palette is None else palette
    if len(palette) < len(classes):
        raise ValueError(f'{len(palette)} colours for {len(classes)} classes')
    colours = np.asarray(palette, np.uint8).reshape(-1, 3)[: len(classes)]
    titled = any(panel.title for panel in panels)
    times = _times(image) if titled or legend else 1
    size = max(13, min(height, width) * times // 24)
    found: set[int] = set()
    ignored, columns = False, []
    for panel in panels:
        picture = _enlarged(image, times)
        if panel.labels is not None:
            labels = np.asarray(panel.labels)
            if labels.shape != (height, width):
                raise ValueError(
                    f'labels of {labels.shape} pixels over an image of {height, width}')
            out = labels == panel.ignore_index if panel.ignore_index is not None else None
            kept = labels if out is None else labels[~out]
            found.update(np.unique(kept).tolist())
            ignored |= out is not None and bool(out.any())
            large = _enlarged(labels, times)
            picture = _covered(picture, large, panel.ignore_index, colours, alpha)
            if panel.edges is not None:
                picture[_enlarged(panel.edges, times)] = 255
        if titled:
            picture = np.concatenate([_lines([(panel.title or '', _TEXT)], picture.shape[1], size),
                                      picture])  # fmt: skip
        if columns:  # a white gap
            columns.append(np.full((len(picture), max(4, size // 4), 3), 255, np.uint8))
        columns.append(picture)
    drawn = np.concatenate(columns, axis=1)
    if not legend:
        return drawn
    known = [label for label in sorted(found) if 0 <= label < len(classes)]
    beyond = [str(label) for label in sorted(found) if label not in known]
    entries: list[tuple[str, Any]] = [(str(classes[label]), colours[label]) for label in known]
    entries += [('ignored', _IGNORED)] if ignored else []
    entries += [(f'no class: {", ".join(beyond[:9])}', _NO_CLASS)] if beyond else []
    return np.concatenate([drawn, _legend(entries, drawn.shape[1], size)])


def draw_captions(
    image: np.ndarray, captions: Iterable[tuple[str, bool | None]]
) -> np.ndarray:
    """Write lines above an image.

    Args:
        image: RGB, uint8 (H, W, 3).
        captions: (text, whether it is right; None: nothing to tell).

    Returns:
        RGB, uint8. Images below 224 pixels are enlarged by a whole number; where the text is
        wider than the image there is white beside it, up to twice its width.
    """
    picture = _enlarged(image, _times(image))
    lines = [(text, {None: _TEXT, True: _RIGHT, False: _WRONG}[right]) for text, right in captions]
    if not lines:
        return picture
    size = max(13, min(picture.shape[:2]) // 18)
    longest = max(math.ceil(_font(size).getlength(text)) for text, _ in lines) + size
    beside = min(longest - picture.shape[1], 2 * picture.shape[1])
    if beside > 0:
        picture = np.pad(picture, ((0, 0), (0, beside), (0, 0)), constant_values=255)
    return np.concatenate([_lines(lines, picture.shape[1], size), picture])


class Boxes(NamedTuple):
    """Boxes that are drawn over an image.

    Attributes:
        title: What stands above; None: nothing.
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        labels: (N,) integers.
        scores: (N,), 0 to 1; None: there are none.
        masks: (N, H, W) of True and False; None: there are none.
    """

    title: str | None
    boxes: np.ndarray = np.zeros((0, 4))
    labels: np.ndarray = np.zeros(0, np.int64)
    scores: np.ndarray | None = None
    masks: np.ndarray | None = None


def draw_boxes(
    image: np.ndarray, panels: Sequence[Boxes], classes: Sequence[str],
    palette: Sequence[Sequence[int]] | None = None, alpha: float = 0.4, legend: bool = True,
) -> np.ndarray:
    """Draw boxes and masks over an image, side by side, with one legend of their classes.

    Args:
        image: RGB, uint8 (H, W, 3).
        panels: From left to right.
        classes: Names by label.
        palette: [R, G, B] by label; None: :func:`make_palette`.
        alpha: How much of a colour covers a mask, 0 to 1.
        legend: Whether the classes that occur are named below.

    Returns:
        RGB, uint8. Images below 224 pixels are enlarged by a whole number if there is any text.
    """
    palette = make_palette(len(classes)) if palette is None else palette
    titled = any(panel.title for panel in panels)
    times = _times(image) if titled or legend else 1
    size = max(13, min(image.shape[:2]) * times // 24)
    line = max(1, size // 8)
    columns: list[np.ndarray] = []
    for panel in panels:
        picture = np.ascontiguousarray(image)
        for mask, label in zip(() if panel.masks is None else panel.masks,
                               panel.labels if panel.masks is not None else (), strict=True):
            mixed = picture[mask] * (1 - alpha) + np.asarray(palette[label]) * alpha
            picture = picture.copy()
            picture[mask] = np.round(mixed).astype(np.uint8)
        picture = _enlarged(picture, times).copy()
        scores = panel.scores if panel.scores is not None else [None] * len(panel.boxes)
        for box, label, score in zip(panel.boxes, panel.labels, scores, strict=True):
            colour = tuple(map(int, palette[label]))
            x1, y1, x2, y2 = (int(round(float(side) * times)) for side in box)
            cv2.rectangle(picture, (x1, y1), (x2 - 1, y2 - 1), colour, line)
            if score is not None:
                text, small = Image.fromarray(picture), _font(max(9, size * 2 // 3))
                ImageDraw.Draw(text).text(
                    (x1 + line + 1, y1 + line), f'{score:.2f}', colour, small)
                picture = np.array(text)
        if titled:
            picture = np.concatenate(
                [_lines([(panel.title or '', _TEXT)], picture.shape[1], size), picture])
        if columns:  # a white gap
            columns.append(np.full((len(picture), max(4, size // 4), 3), 255, np.uint8))
        columns.append(picture)
    drawn = np.concatenate(columns, axis=1)
    if not legend:
        return drawn
    found = sorted({int(label) for panel in panels for label in panel.labels})
    entries = [(str(classes[label]), tuple(palette[label])) for label in found]
    return np.concatenate([drawn, _legend(entries, drawn.shape[1], size)])


def make_palette(number: int) -> list[list[int]]:
    """Colours for classes that have none: the same in every process and run.

    Args:
        number: Of classes.

    Returns:
        [R, G, B], 0 to 254, for each.
    """
    return np.random.RandomState(42).randint(0, 255, (number, 3)).tolist()


def to_picture(bands: np.ndarray, swap: bool = False) -> np.ndarray:
    """Turn an image of any bands and depth into one that can be shown.

    Args:
        bands: (H, W, C) or (H, W).
        swap: Whether the first three bands are in the order BGR.

    Returns:
        RGB, uint8 (H, W, 3). Of more than three bands the first three are shown, of fewer the
        first; values beyond 8 bits are scaled to the image's own range.
    """
    picture = bands.reshape(*bands.shape[:2], -1)
    picture = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1].repeat(3, axis=2)
    if swap:
        picture = picture[..., ::-1]
    if picture.dtype != np.uint8:
        low, high = float(picture.min()), float(picture.max())
        if low < 0 or high > 255:
            picture = (picture.astype(np.float64) - low) * (255 / max(high - low, 1e-6))
    return np.ascontiguousarray(picture.astype(np.uint8))


# --- parts -----------------------------------------------------------------------------------


def _times(image: np.ndarray) -> int:
    """The factor by which a picture is enlarged before text is written beside it."""
    short, long = sorted(image.shape[:2])
    return max(1, min(-(-_SHORT_SIDE // short), _LONG_SIDE // long))


def _enlarged(pixels: np.ndarray, times: int) -> np.ndarray:
    return pixels.repeat(times, axis=0).repeat(times, axis=1) if times > 1 else pixels


def _covered(
    image: np.ndarray, labels: np.ndarray, ignore_index: int | None, colours: np.ndarray,
    alpha: float,
) -> np.ndarray:
    """The image (H, W, 3) below the colours of its labels (H, W)."""
    number = len(colours)
    stripes = _stripes(labels.shape, max(4, min(labels.shape) // 48))
    table = np.concatenate([colours, np.asarray(_IGNORED + _NO_CLASS, np.uint8)])
    known = (labels >= 0) & (labels < number)
    index = np.where(known, labels, number + 2 + stripes)
    if ignore_index is not None:
        index = np.where(labels == ignore_index, number + stripes, index)
    mixed = image * np.float32(1 - alpha) + table[index] * np.float32(alpha)
    return np.round(mixed).astype(np.uint8)


def _stripes(shape: tuple[int, ...], width: int) -> np.ndarray:
    """Diagonal stripes of 0 and 1, (H, W) integers."""
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows + columns) // width % 2


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # DejaVu comes with it: Latin, Greek, Cyrillic, ...

    return ImageFont.truetype(
        os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf'), size)


def _fitting(text: str, width: float, size: int) -> str:
    """The text, or as much of its beginning as fits into a width in pixels."""
    text = ' '.join(text.split())
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(f'{text}…') > width:
        text = text[:-1]
    return f'{text}…'


def _lines(lines: Sequence[tuple[str, tuple]], width: int, size: int) -> np.ndarray:
    """A white strip with lines of text (text, colour), RGB."""
    row = math.ceil(size * 1.4)
    strip = Image.new('RGB', (width, row * len(lines)), 'white')
    draw = ImageDraw.Draw(strip)
    for i, (text, colour) in enumerate(lines):
        fitting = _fitting(text, width - size // 2, size)
        draw.text((size // 4, i * row + row // 2), fitting, colour, _font(size), 'lm')
    return np.asarray(strip)


def _legend(entries: Sequence[tuple[str, Any]], width: int, size: int) -> np.ndarray:
    """A white strip with (name, colour or the two of stripes), in as many rows as they need."""
    row, pad = math.ceil(size * 1.5), max(3, size // 3)
    placed, x, y = [], pad, 0
    for name, colour in entries:
        name = _fitting(name, width - size - 4 * pad, size)
        needed = size + 4 * pad + math.ceil(_font(size).getlength(name))
        if x > pad and x + needed - pad > width:
            x, y = pad, y + row
        placed.append((x, y, name, colour))
        x += needed
    strip = np.full((y + row if entries else 0, width, 3), 255, np.uint8)
    for x, y, _, colour in placed:
        top = y + (row - size) // 2
        box = strip[top : top + size, x : x + size]
        colour = np.asarray(colour, np.uint8)
        box[:] = colour if colour.ndim == 1 else colour[_stripes(box.shape, max(2, size // 5))]
        cv2.rectangle(strip, (x, top), (x + size - 1, top + size - 1), (0, 0, 0), 1)
    image = Image.fromarray(strip)
    draw = ImageDraw.Draw(image)
    for x, y, name, _ in placed:
        draw.text((x + size + pad, y + row // 2), name, _TEXT, _font(size), 'lm')
    return np.asarray(image)
