"""Pictures of label maps over their images, with a legend."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vpt_dense.datasets import raster
from vpt_dense.predicting.results import Segmentation

#: The longest edge of a picture in pixels; larger images lose rows and columns.
LONGEST = 4096
#: How much of a pixel's colour is that of its class.
OPACITY = 0.5


def overlay(path: str, result: Segmentation, palette: list[list[int]]) -> Image.Image:
    """Draw a label map over its image; what is there stands beside it, the largest first.

    Args:
        path: The image. Of more than three bands the first three are shown; what is no 8 bits is
            stretched from its 2nd to its 98th percentile.
        result: Its labels.
        palette: Of each class its colour, [R, G, B].

    Returns:
        An RGB picture.
    """
    step = -(-max(result.labels.shape) // LONGEST)
    labels = result.labels[::step, ::step]
    colours = np.zeros((max(result.ids) + 1, 3), np.float32)
    colours[list(result.ids)] = palette
    picture = _picture(path, step) * (1 - OPACITY)
    picture += colours[labels] * OPACITY
    drawn = Image.fromarray(picture.round().astype(np.uint8))
    pixels = result.pixels()
    rows = [(result.classes[i], tuple(palette[i]), pixels[i] / result.labels.size)
            for i in sorted(range(len(pixels)), key=lambda i: -pixels[i]) if pixels[i]]
    return _beside(drawn, rows)


def _picture(path: str, step: int) -> np.ndarray:
    """Every ``step``-th row and column of an image: (H, W, 3) float32 from 0 to 255, R first."""
    with raster.open_image(path) as image:
        bands = [1, 2, 3] if image.info.bands >= 3 else [1]
    parts = []
    for top, rows in raster.strips(path, bands):
        parts.append(rows[-top % step::step, ::step])
    array = np.concatenate(parts).astype(np.float32)
    if image.info.dtype != np.uint8:
        valid = array[np.isfinite(array)]
        low, high = np.percentile(valid, (2, 98)) if valid.size else (0, 1)
        array = np.nan_to_num((array - low) * (255 / max(high - low, 1e-6)), nan=0).clip(0, 255)
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _beside(drawn: Image.Image, rows: list[tuple[str, tuple[int, ...], float]]) -> Image.Image:
    """A picture with a legend at its right: (name, colour, share) a row."""
    size = min(max(12, max(drawn.size) // 45), 48)
    font, line = _font(size), round(size * 1.5)
    texts = [f'{name}  {share:.1%}' for name, _, share in rows]
    in_column = max(8, (drawn.height - line) // line)
    columns = [texts[i:i + in_column] for i in range(0, len(texts), in_column)]
    widths = [2 * line + max(round(font.getlength(text)) for text in column) for column in columns]
    height = max(drawn.height, line + line * max(map(len, columns)))
    canvas = Image.new('RGB', (drawn.width + sum(widths) + line // 2, height), 'white')
    canvas.paste(drawn, (0, 0))
    pen = ImageDraw.Draw(canvas)
    left = drawn.width
    for number, column in enumerate(columns):
        for index, text in enumerate(column):
            x, y = left + line // 2, line // 2 + index * line
            colour = rows[number * in_column + index][1]
            pen.rectangle((x, y, x + size, y + size), fill=colour, outline='black')
            pen.text((x + line, y), text, fill='black', font=font)
        left += widths[number]
    return canvas


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: it has the letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path(), 'fonts/ttf/DejaVuSans.ttf'), size)
