"""Images as they come: one way to read them for training, checks and prediction.

Any number of bands, any depth, the file's own values. Rasters (TIFF and what else GDAL knows, such
as .jp2 and .vrt) are read by rasterio: windows of huge files, every compression and layout, the
value that means "no data", georeferencing. Photographs are read by Pillow and turned as their EXIF
tag says.

=====================  ==============================================================
file                   bands
=====================  ==============================================================
grey, 1 to 64 bits     1 (a picture of 1 bit: 0 and 1)
grey with alpha        2
RGB, RGBA              3, 4, as stored: colours are not multiplied by alpha
palette                3: the colours, R, G, B
CMYK, YCbCr            3: converted to R, G, B
a raster of N bands    N, in the file's order
=====================  ==============================================================
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from vpt_dense.errors import UserError, is_programs

#: What Pillow reads; GDAL knows neither their turns nor all of their palettes.
PICTURES = ('PNG', 'JPEG', 'BMP', 'WEBP', 'GIF', 'PPM')
_TIFF = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_PHOTOMETRIC, _ORIENTATION, _COLOURS = 262, 274, 320

#: Values that are read at a time where a file is read in strips.
_STRIP = 1 << 23

# Pillow warns of images beyond 89 million pixels and refuses them beyond 178; those are for GDAL.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageInfo:
    """Size, bands and type of an image, as its file gives them.

    Attributes:
        height: Rows, in pixels, after the turn that an EXIF tag asks for.
        width: Columns, likewise.
        bands: Number of bands that :func:`read_image` gives.
        format: 'PNG', 'JPEG', 'GTiff' and so on, as Pillow or GDAL names it.
        dtype: Of their values.
        nodata: The value that means "no data"; a tuple with one for each band where they differ;
            None: the file names none.
        crs: Coordinate reference system (``rasterio.crs.CRS``); None: not georeferenced.
        transform: From (column, row) to its coordinates (``affine.Affine``), or None.
        is_plain: Whether OpenCV gives the same values, where it gives any: not of fewer than 8 bits
            a value, nor where 0 is white.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype
    format: str = ''
    nodata: float | tuple[float | None, ...] | None = None
    crs: Any = None
    transform: Any = None
    is_plain: bool = True

    @property
    def kind(self) -> str:
        """Bands and depth for people: '3 x 8 bit', '13 x 16 bit', '4 x float32'."""
        plain = {'uint8': '8 bit', 'uint16': '16 bit'}
        return f'{self.bands} x {plain.get(self.dtype.name, self.dtype.name)}'

    def nodata_of(self, bands: Sequence[int] | None) -> float | list[float | None] | None:
        """``nodata`` of some bands, 1 for the first; None: of all."""
        if not isinstance(self.nodata, tuple):
            return self.nodata
        return [self.nodata[band - 1] for band in bands or range(1, self.bands + 1)]


# --- what others call ------------------------------------------------------------------------


def read_image(path: str | os.PathLike, bands: Sequence[int] | None = None) -> np.ndarray:
    """Reads an image with the file's own values.

    Args:
        path: Any image; of a NIfTI volume a slice ('scan#17.nii.gz').
        bands: Which bands, 1 for the first (as in GDAL), in the order wanted; None: all.

    Returns:
        (H, W, bands) of the file's type, R first in a photograph, turned as EXIF says.

    Raises:
        ValueError: The file is absent or cannot be read, or has no such band; the message names it.
    """
    return read(path, bands)[0]


def read(
    path: str | os.PathLike, bands: Sequence[int] | None = None
) -> tuple[np.ndarray, ImageInfo]:
    """As :func:`read_image`, with what :func:`image_info` gives of the whole file."""
    with open_image(path) as image:
        return image.read(bands), image.info


def image_info(path: str | os.PathLike) -> ImageInfo:
    """Reads what a file says of its image, not the pixels.

    Args:
        path: As in :func:`read_image`.

    Raises:
        ValueError: As in :func:`read_image`.
    """
    with open_image(path) as image:
        return image.info


def read_window(
    path: str | os.PathLike,
    top: int,
    left: int,
    height: int,
    width: int,
    bands: Sequence[int] | None = None,
) -> np.ndarray:
    """Reads a part of an image; of a raster no more than the blocks that it touches.

    Args:
        path: As in :func:`read_image`.
        top: First row, in pixels, of the image as it is after the turn by EXIF.
        left: First column.
        height: Rows.
        width: Columns.
        bands: As in :func:`read_image`.

    Returns:
        (height, width, bands).

    Raises:
        ValueError: As in :func:`read_image`, or the window reaches beyond the image.
    """
    with open_image(path) as image:
        return image.read(bands, (top, left, height, width))


def strips(
    path: str | os.PathLike, bands: Sequence[int] | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """Reads an image from top to bottom in bounded memory, as far as its format allows.

    Args:
        path: As in :func:`read_image`.
        bands: As in :func:`read_image`.

    Yields:
        First row and (rows, W, bands).

    Raises:
        ValueError: As in :func:`read_image`.
    """
    with open_image(path) as image:
        yield from image.strips(bands)


def is_nodata(
    image: np.ndarray, nodata: float | Sequence[float | None] | None = None
) -> np.ndarray:
    """Tells which values mean "no data": NaN, infinity, and what the file or the user names.

    Args:
        image: (..., bands).
        nodata: One value for all bands, or one for each; None: there is none.

    Returns:
        The image's shape, bool.
    """
    found = ~np.isfinite(image) if image.dtype.kind == 'f' else np.zeros(image.shape, bool)
    values = nodata if isinstance(nodata, Sequence) else [nodata] * image.shape[-1]
    for band, value in enumerate(values):
        if value is None or not np.isfinite(value):
            continue
        if image.dtype.kind in 'iu':  # a value beyond the type's range is nowhere
            limits = np.iinfo(image.dtype)
            if value != int(value) or not limits.min <= value <= limits.max:
                continue
            value = int(value)
        found[..., band] |= image[..., band] == image.dtype.type(value)
    return found


def normalise(
    image: np.ndarray,
    mean: Sequence[float] | np.ndarray,
    std: Sequence[float] | np.ndarray,
    nodata: float | Sequence[float | None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Normalises the values of a file.

    Args:
        image: (H, W, bands), of any type.
        mean: Of each band.
        std: Of each band.
        nodata: As in :func:`is_nodata`.

    Returns:
        (H, W, bands) float32, 0 where there is no data; and where no band has any, (H, W) bool, or
        None: nowhere.
    """
    invalid = is_nodata(image, nodata)
    image = (image.astype(np.float32) - np.float32(mean)) / np.float32(std)
    if not invalid.any():
        return image, None
    image[invalid] = 0
    return image, invalid.all(axis=2)


def write_raster(
    path: str | os.PathLike,
    array: np.ndarray,
    like: str | os.PathLike | None = None,
    nodata: float | None = None,
) -> None:
    """Writes a GeoTIFF (tiled, deflate), whole or not at all.

    Args:
        path: Its name.
        array: Label map (H, W) or values (H, W, bands), of any integer or floating type or bool;
            a ``numpy.memmap`` is written piece by piece. float16 is stored as 16 bits of float32.
        like: File whose coordinate reference system and transform it gets; it has the same size.
        nodata: The value that means "no data".

    Raises:
        ValueError: ``like`` cannot be read or has another size, or the array another shape.
        UserError: The file cannot be written.
    """
    from vpt_dense import safe_files

    if array.ndim not in (2, 3):
        raise ValueError(f'{path}: an image is (H, W) or (H, W, bands), not {array.shape}')
    height, width = array.shape[:2]
    half = array.dtype == np.float16
    dtype = np.dtype(np.uint8) if array.dtype == bool else array.dtype
    dtype = np.dtype(np.float32) if half else dtype
    profile = dict(
        driver='GTiff', height=height, width=width, count=array.shape[2] if array.ndim == 3 else 1,
        dtype=dtype.name, nodata=nodata, tiled=True, blockxsize=256, blockysize=256,
        compress='deflate', bigtiff='if_safer',
    )  # fmt: skip
    if half:  # a type of its own is that of newer versions of GDAL only
        profile['nbits'] = 16
    if dtype.itemsize < 8:
        profile['predictor'] = 3 if dtype.kind == 'f' else 2
    if like is not None:
        info = image_info(like)
        if (info.height, info.width) != (height, width):
            raise ValueError(
                f'{path} would be {width}x{height}, but {like}, whose place it is to have, is '
                f'{info.width}x{info.height}'
            )
        profile |= dict(crs=info.crs, transform=info.transform)
    rasterio = _rasterio()
    with safe_files.atomic(path) as unfinished:
        try:
            with rasterio.open(unfinished, 'w', **profile) as target:
                for top in range(0, height, 256):
                    part = np.asarray(array[top : top + 256], dtype)
                    part = part[None] if part.ndim == 2 else np.moveaxis(part, 2, 0)
                    target.write(part, window=((top, top + part.shape[1]), (0, width)))
                    if top % 4096 == 0:
                        safe_files.release(array)
            with rasterio.open(unfinished) as written:  # a full disk shows at the end
                written.read(1, window=((height - 1, height), (0, width)))
        except rasterio.errors.RasterioError as error:
            raise UserError(
                f'cannot write {path}: {reason(error)}; is the disk full? Free some space, or '
                'choose another folder'
            ) from error


# --- files -----------------------------------------------------------------------------------


def open_image(path: str | os.PathLike, indices: bool = False) -> Opened:
    """Opens an image of any kind, to be closed by ``with``.

    Args:
        path: As in :func:`read_image`.
        indices: Give a palette's indices, one band, in place of its colours.

    Returns:
        An object with ``info`` (:class:`ImageInfo`), ``block_rows`` (rows that are read together
        anyway) and ``read(bands=None, window=None)``, which gives (H, W, bands); a window is (top,
        left, height, width).

    Raises:
        ValueError: As in :func:`read_image`.
    """
    path = os.fspath(path)
    with told(path):
        return _reader(path, indices)


class Wrong(ValueError):
    """An error whose message already names the file."""


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """Names the file that cannot be read: what readers raise differs by library and version."""
    try:
        yield
    except (Wrong, UserError):
        raise
    except Exception as error:
        if is_programs(error):
            raise
        raise ValueError(f'image {path} cannot be read: {reason(error)}') from error


def exists(path: str | os.PathLike) -> bool:
    """Whether the file of an image, or of the volume that it is a slice of, is there."""
    from vpt_dense.datasets import geo_samples, medical

    path = os.fspath(path)
    return geo_samples.is_sample(path) or os.path.isfile(medical.split(path)[0])


def _reader(path: str, indices: bool) -> Opened:
    from vpt_dense.datasets import geo_samples, medical  # which build on this

    if geo_samples.is_sample(path):
        return geo_samples.reader(path)
    opened = medical.reader(path, indices)
    if opened is not None:
        return opened
    with open(path, 'rb') as stream:
        start = stream.read(4)
    if start in _TIFF:
        return _Raster(path, indices, _tiff_tags(path))
    if start[:2] not in (b'P5', b'P6'):  # Pillow stretches or cuts those of 16 bits
        try:
            picture = Image.open(path, formats=PICTURES)
        except (Image.UnidentifiedImageError, Image.DecompressionBombError):
            return _Raster(path, indices)
        if picture.mode not in ('RGB', 'RGBA', 'LA') or ';16' not in str(picture.tile):
            return _Picture(path, picture, indices)
        turn = _turn_of(picture)
        picture.close()
        return _Raster(path, indices, {_ORIENTATION: turn})
    return _Raster(path, indices)


class Opened:
    """The base of readers of pictures and of rasters."""

    info: ImageInfo
    block_rows = 1

    def __init__(self, path: str, turn: int) -> None:
        self.path = path
        self.turn = turn if turn in range(2, 9) else 1  # as EXIF numbers them

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self, bands: Sequence[int] | None = None, window: tuple[int, int, int, int] | None = None
    ) -> np.ndarray:
        """Reads bands of a window (top, left, height, width)."""
        info = self.info
        chosen = list(range(1, info.bands + 1)) if bands is None else list(bands)
        wrong = [band for band in chosen if band not in range(1, info.bands + 1)]
        if wrong or not chosen:
            raise Wrong(
                f'image {self.path} has bands 1 to {info.bands}, but bands={chosen} are asked for'
            )
        top, left, height, width = window or (0, 0, info.height, info.width)
        if (min(top, left) < 0 or min(height, width) < 1
                or top + height > info.height or left + width > info.width):  # fmt: skip
            raise Wrong(
                f'image {self.path} is {info.width}x{info.height}: no window of {width}x{height} '
                f'at row {top} and column {left}'
            )
        with told(self.path):
            return self._read(chosen, top, left, height, width)

    def strips(self, bands: Sequence[int] | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """See :func:`strips`."""
        info = self.info
        number = info.bands if bands is None else len(bands)
        rows = max(_STRIP // max(info.width * number, 1), 1)
        rows = max(rows // self.block_rows, 1) * self.block_rows
        for top in range(0, info.height, rows):
            yield top, self.read(bands, (top, 0, min(rows, info.height - top), info.width))


class _Picture(Opened):
    """A photograph or drawing, which Pillow decodes as a whole."""

    def __init__(self, path: str, picture: Image.Image, indices: bool) -> None:
        super().__init__(path, _turn_of(picture))
        self.picture = picture
        width, height = picture.size[::-1] if self.turn > 4 else picture.size
        # Palettes and CMYK are colours; the others are what they are.
        plain = ('1', 'L', 'LA', 'RGB', 'RGBA', 'I', 'I;16', 'F', *(['P'] if indices else []))
        self.is_converted = picture.mode not in plain
        bands = 3 if self.is_converted else len(picture.getbands())
        dtype = {'I': np.int32, 'I;16': np.uint16, 'F': np.float32}.get(picture.mode, np.uint8)
        if picture.mode == 'I' and ';16' in str(picture.tile):  # Pillow before 11 has no such mode
            dtype = np.uint16
        self.info = ImageInfo(height, width, bands, np.dtype(dtype), picture.format,
                              is_plain=picture.mode != '1')  # fmt: skip
        self.pixels: np.ndarray | None = None

    def close(self) -> None:
        self.picture.close()

    def _read(self, bands: list[int], top: int, left: int, height: int, width: int) -> np.ndarray:
        if self.pixels is None:
            picture = self.picture.convert('RGB') if self.is_converted else self.picture
            array = np.array(picture, self.info.dtype)
            self.pixels = _turned(array.reshape(*array.shape[:2], -1), self.turn)
        window = self.pixels[top : top + height, left : left + width]
        if bands != list(range(1, self.info.bands + 1)):
            window = window[..., [band - 1 for band in bands]]
        return np.ascontiguousarray(window)


class _Raster(Opened):
    """An image that GDAL reads."""

    def __init__(self, path: str, indices: bool, tags: dict[int, Any] | None = None) -> None:
        rasterio = _rasterio()
        # Not to list the folder for each of its files.
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN='TRUE'):
            self.source = source = rasterio.open(path, sharing=False)
        super().__init__(path, self._turn(tags))
        if not source.count:
            self.close()
            raise Wrong(f'image {path} has no bands of its own (several images in one file?)')
        dtype = np.result_type(*(np.dtype(name) for name in source.dtypes))
        if dtype.kind not in 'iuf':
            self.close()
            raise Wrong(f'image {path} holds {dtype} values, which are no intensities')
        colours = source.colorinterp[0].name
        photometric = (tags or {}).get(_PHOTOMETRIC)
        bands, self.palette = source.count, None
        if not indices and colours == 'palette' and bands == 1 and photometric in (None, 3):
            if tags and _COLOURS in tags:  # GDAL before 3.10 rounds them otherwise
                colours = np.array(tags[_COLOURS]).reshape(3, -1).T
                colours = colours >> 8 if colours.max() > 255 else colours
            else:
                colours = [colour[:3] for _, colour in sorted(source.colormap(1).items())]
            self.palette = np.zeros((np.iinfo(dtype).max + 1, 3), np.uint8)
            self.palette[: len(colours)] = colours
            bands, dtype = 3, self.palette.dtype
        elif 'SOURCE_COLOR_SPACE' in source.tags(ns='IMAGE_STRUCTURE'):
            bands = 3  # GDAL has converted CMYK or CIELAB, and adds alpha
        bits = source.tags(1, ns='IMAGE_STRUCTURE').get('NBITS', '8')
        # Of one bit: 0 is black, whatever the file's 0 is.
        self.is_inverse = photometric == 0 and bits == '1'
        is_placed = self.turn == 1 and not (source.crs is None and source.transform.is_identity)
        nodata = source.nodatavals[:bands] if self.palette is None else (None,)
        height, width = source.shape[::-1] if self.turn > 4 else source.shape
        self.info = ImageInfo(
            height, width, bands, dtype, source.driver,
            nodata[0] if len({str(value) for value in nodata}) == 1 else tuple(nodata),
            source.crs if is_placed else None,
            source.transform if is_placed else None,
            photometric != 0 and int(bits) >= 8,
        )  # fmt: skip
        self.block_rows = source.block_shapes[0][0]

    def _turn(self, tags: dict[int, Any] | None) -> int:
        if tags is not None:
            return tags.get(_ORIENTATION, 1)
        return int(self.source.tags().get('EXIF_Orientation', 1))

    def close(self) -> None:
        self.source.close()

    def _read(self, bands: list[int], top: int, left: int, height: int, width: int) -> np.ndarray:
        rows = None if self.turn != 1 else ((top, top + height), (left, left + width))
        if self.palette is not None:
            colours = self.palette[self.source.read(1, window=rows)]
            array = colours[..., [band - 1 for band in bands]]
        else:
            array = self.source.read(bands, window=rows, out_dtype=self.info.dtype)
            array = np.moveaxis(array, 0, 2)
        if self.is_inverse:
            array = 1 - array
        if self.turn != 1:
            array = _turned(array, self.turn)[top : top + height, left : left + width]
        return np.ascontiguousarray(array)


def _turned(array: np.ndarray, turn: int) -> np.ndarray:
    """An (H, W, ...) array, turned as EXIF's orientation says (1 to 8)."""
    if turn > 4:
        array = array.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _turn_of(picture: Image.Image) -> int:
    told = {'exif', 'Raw profile type exif'} & set(picture.info)
    if picture.format != 'PNG' or told:
        return picture.getexif().get(_ORIENTATION, 1)
    # Pillow would decode the image to see what comes behind it.
    with open(picture.filename, 'rb') as stream:
        stream.seek(8)
        while len(header := stream.read(8)) == 8:
            length, kind = struct.unpack('>I4s', header)
            if kind == b'eXIf':
                exif = Image.Exif()
                exif.load(stream.read(length))
                return exif.get(_ORIENTATION, 1)
            stream.seek(length + 4, os.SEEK_CUR)
    return 1


def _tiff_tags(path: str) -> dict[int, Any]:
    """Photometric interpretation, orientation and palette, which GDAL does not tell."""
    with open(path, 'rb') as stream:
        header = stream.read(8)
        order = header[:2]
        if header[2:4] in (b'+\0', b'\0+'):  # BigTIFF; Pillow takes no big-endian header of it
            header = b'II+\0' + header[4:] + stream.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header, prefix=order)
        stream.seek(tags.next)
        tags.load(stream)
        return {t: tags[t] for t in (_PHOTOMETRIC, _ORIENTATION, _COLOURS) if t in tags}


def _rasterio() -> Any:
    """rasterio, imported when it is needed, without its warning that most images have no place."""
    # Megabytes of blocks that GDAL keeps; its own default, 5 % of the memory, is for one process.
    os.environ.setdefault('GDAL_CACHEMAX', '128')
    import rasterio

    # Not catch_warnings, which is not for threads.
    warnings.filterwarnings('ignore', category=rasterio.errors.NotGeoreferencedWarning)
    return rasterio


def reason(error: BaseException) -> str:
    """The last line of an exception, or of what caused it: rasterio says 'see previous'."""
    if isinstance(error, Image.UnidentifiedImageError):
        return 'not an image'
    if error.__cause__ is not None and 'previous exception' in str(error):
        error = error.__cause__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return (str(error) or type(error).__name__).strip().splitlines()[-1]
