"""Images that clients send: looked at before they are decoded, and decoded as a whole."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from vpt_dense.serving.settings import Refused

#: Formats by Pillow's names, and what their files end in.
FORMATS = {'PNG': '.png', 'JPEG': '.jpg', 'WEBP': '.webp', 'BMP': '.bmp', 'TIFF': '.tif'}


def check_header(stream: BinaryIO, name: str, max_pixels: int) -> tuple[str, int]:
    """Look at the head of an image.

    Args:
        stream: Its file.
        name: As its client calls it, for messages.
        max_pixels: What it may have.

    Returns:
        What a file of this format ends in, and how many pixels it has.

    Raises:
        Refused: If it is none, or larger.
    """
    with _told(name), _open(stream) as image:
        width, height = image.size
        if width < 1 or height < 1:
            raise Refused(400, f'{name}: the image is empty')
        if width * height > max_pixels:
            raise Refused(413, f'{name}: {width}x{height} are {width * height:,} pixels, more than '
                          f'the {max_pixels:,} that are taken here')  # fmt: skip
        return FORMATS[image.format], width * height


def check_whole(path: Path, name: str) -> None:
    """Decode an image, since other readers make grey of what a truncated file lacks.

    Args:
        path: Its file.
        name: As its client calls it.

    Raises:
        Refused: If it is damaged.
    """
    with _told(name), path.open('rb') as stream, _open(stream) as image:
        image.load()


def _open(stream: BinaryIO) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of many pixels: they are counted here
        return Image.open(stream, formats=list(FORMATS))


@contextlib.contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever Pillow raises of a file that it cannot read is the file's fault."""
    try:
        yield
    except (Refused, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Refused(413, f'{name}: too many pixels ({error})') from error
    except UnidentifiedImageError as error:
        raise Refused(400, f'{name}: not an image; taken are {", ".join(FORMATS)}') from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise Refused(400, f'{name}: a damaged image ({reason[:120]})') from error
