"""Slices of NIfTI volumes, and DICOM files: ``pip install 'vpt-dense[medical]'``.

A slice is named like a file: ``scan#17.nii.gz`` is slice 17 of ``scan.nii.gz``, counted from 0 at
the feet. Slices are axial whatever the file's own order of axes is, anterior at the top, the
patient's left at the left; the fourth axis of a volume becomes the bands.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from vpt_dense.datasets.raster import ImageInfo, Opened, Wrong, told
from vpt_dense.errors import UserError

VOLUME_SUFFIXES = ('.nii', '.nii.gz')
DICOM_SUFFIXES = ('.dcm', '.dicom')

_SLICE = re.compile(r'(.*)#(\d+)(\.nii(?:\.gz)?)', re.IGNORECASE | re.DOTALL)


def split(path: str) -> tuple[str, int | None]:
    """The file and the number of a slice; the path itself and None, if it names no slice."""
    match = _SLICE.fullmatch(path)
    if match is None or os.path.exists(path):
        return path, None
    return match[1] + match[3], int(match[2])


def slices(path: str) -> list[str]:
    """The paths of all slices of a volume; the path itself of any other file.

    Raises:
        UserError: It cannot be read, or nibabel is not installed.
    """
    if not path.lower().endswith(VOLUME_SUFFIXES) or split(path)[1] is not None:
        return [path]
    number = _whole(path).number
    suffix = next(s for s in ('.nii.gz', '.nii') if path.lower().endswith(s))
    stem, suffix = path[: -len(suffix)], path[-len(suffix) :]
    return [f'{stem}#{index}{suffix}' for index in range(number)]


def pair_slices(image: str, mask: str | None) -> list[tuple[str, str | None]]:
    """Pairs the slices of a volume with those of its mask; other files stay as they are.

    Raises:
        UserError: As :func:`slices`, or the two do not lie upon one another.
    """
    images = slices(image)
    if mask is None or images == [image]:
        return [(each, mask) for each in images]
    masks = slices(mask)
    volumes = [_whole(path).image for path in (image, mask) if path != masks[0]]
    if len(volumes) < 2 or volumes[0].shape[:3] != volumes[1].shape[:3] or not np.allclose(
            volumes[0].affine, volumes[1].affine, atol=1e-3):  # fmt: skip
        raise UserError(
            f'{mask} has not the slices of {image}: both must be volumes of the same size, '
            'orientation and place'
        )
    return list(zip(images, masks, strict=True))


def _whole(path: str) -> Volume:
    try:
        with told(path):
            return Volume(path, False, whole=True)
    except ValueError as error:
        raise UserError(str(error)) from error


def spacing(path: str, index: int) -> tuple[float, ...] | None:
    """The size of a pixel in mm: (slices, height, width) of a volume, (height, width) of DICOM.

    Args:
        path: The file.
        index: Of a slice; below 0: the file is no volume.

    Returns:
        None: the file says nothing of it.
    """
    if index >= 0:
        return Volume(path, False, whole=True).spacing
    if not os.path.isfile(path):
        return None
    opened = reader(path, False)
    return opened.spacing if isinstance(opened, Dicom) else None


def write_volume(path: str | os.PathLike, like: str, slices: Iterable[np.ndarray]) -> None:
    """Write label maps of all slices as a NIfTI volume, whole or not at all.

    Args:
        path: Its name, with the suffix .nii or .nii.gz.
        like: The volume whose slices they are of: its affine, order of axes and size are taken.
        slices: (H, W) integers, one for each slice from the feet, as slices are read.

    Raises:
        UserError: The file cannot be written.
    """
    from vpt_dense import safe_files

    volume = Volume(like, False, whole=True)
    array: np.ndarray | None = None
    for index, labels in enumerate(slices):
        if array is None:
            array = np.zeros(volume.image.shape[:3], labels.dtype)
        labels = labels[:: -1 if volume.flips[0] else 1, :: -1 if volume.flips[1] else 1]
        array[volume.place_of(index)[:3]] = labels.T if volume.is_transposed else labels
    nibabel = _library('nibabel', like)
    header = volume.image.header.copy()
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    image = type(volume.image)(array, volume.image.affine, header)
    suffix = next(s for s in ('.nii.gz', '.nii') if os.fspath(path).lower().endswith(s))
    with safe_files.atomic(path) as unfinished:  # the suffix says whether it is compressed
        part = unfinished.with_name(f'{unfinished.name}{suffix}')
        try:
            nibabel.save(image, part)
            os.replace(part, unfinished)
        finally:
            part.unlink(missing_ok=True)


def reader(path: str, indices: bool) -> Opened | None:
    """Opens a slice or a DICOM file; None: it is neither."""
    if path.lower().endswith(VOLUME_SUFFIXES):
        return Volume(path, indices)
    if path.lower().endswith(DICOM_SUFFIXES):
        return Dicom(path)
    with open(path, 'rb') as stream:
        start = stream.read(132)
    return Dicom(path) if start[128:] == b'DICM' else None


def _library(name: str, path: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path}: reading it needs {error.name}; pip install 'vpt-dense[medical]'"
        ) from error


class Volume(Opened):
    """A slice of a NIfTI volume; ``whole``: to see how many it has."""

    def __init__(self, path: str, indices: bool, whole: bool = False) -> None:
        nibabel = _library('nibabel', path)
        super().__init__(path, 1)
        file, index = split(path)
        self.indices = indices
        self.image = image = nibabel.load(file)
        if len(image.shape) not in (3, 4):
            raise Wrong(f'image {path} has {len(image.shape)} axes; 3 are needed, or 4 with bands')
        axes = nibabel.io_orientation(image.affine)  # (axis to the right, front, head; direction)
        if np.isnan(axes).any():
            raise Wrong(f'image {path} does not say how its axes lie')
        right, front, head = (int(np.flatnonzero(axes[:, 0] == axis)[0]) for axis in range(3))
        self.number = image.shape[head]
        if index is None and (whole or self.number == 1):
            index = 0
        if index is None or index >= self.number:
            raise Wrong(
                f'image {path}: the volume has slices 0 to {self.number - 1}; name one of them as '
                'in scan#17.nii.gz'
            )
        self.head, self.to_head = head, axes[head, 1] > 0
        self.place = self.place_of(index)
        sizes = image.header.get_zooms()[:3]
        self.spacing = tuple(float(sizes[axis]) for axis in (head, front, right))
        self.is_transposed = right < front
        self.flips = axes[front, 1] > 0, axes[right, 1] < 0  # rows from the front to the back
        is_scaled = (image.dataobj.slope, image.dataobj.inter) != (1, 0)
        dtype = np.dtype(np.float64) if is_scaled else image.get_data_dtype().newbyteorder('=')
        if dtype.kind not in 'iuf':
            raise Wrong(f'image {path} holds {dtype} values, which are no intensities')
        bands = image.shape[3] if len(image.shape) == 4 else 1
        self.info = ImageInfo(image.shape[front], image.shape[right], bands, dtype, 'NIfTI')
        self.pixels: np.ndarray | None = None

    def place_of(self, index: int) -> tuple[slice | int, ...]:
        """Where a slice lies in the file's array."""
        place: list[slice | int] = [slice(None)] * len(self.image.shape)
        place[self.head] = index if self.to_head else self.number - 1 - index
        return tuple(place)

    def close(self) -> None:
        """Nothing is open between reads."""

    def _read(self, bands: list[int], top: int, left: int, height: int, width: int) -> np.ndarray:
        if self.pixels is None:
            array = np.asarray(self.image.dataobj[self.place], self.info.dtype)
            array = array.reshape(*array.shape[:2], -1)
            array = array.swapaxes(0, 1) if self.is_transposed else array
            array = array[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]
            # Labels are often stored as floats.
            if self.indices and array.dtype.kind == 'f' and (array == np.rint(array)).all():
                array = array.astype(np.int64)
            self.pixels = array
        window = self.pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(window[..., [band - 1 for band in bands]])


class Dicom(Opened):
    """A DICOM file with one image, in the units that its rescaling gives (Hounsfield in CT)."""

    def __init__(self, path: str) -> None:
        self.pydicom = _library('pydicom', path)
        super().__init__(path, 1)
        header = self.pydicom.dcmread(path, stop_before_pixels=True)
        if 'Rows' not in header:
            raise Wrong(f'image {path} is a DICOM file without pixels')
        frames = int(header.get('NumberOfFrames') or 1)
        if frames > 1:
            raise Wrong(f'image {path} has {frames} frames; split it into files of one')
        self.is_palette = header.PhotometricInterpretation == 'PALETTE COLOR'
        self.is_rescaled = 'RescaleSlope' in header or 'ModalityLUTSequence' in header
        sign = 'i' if header.PixelRepresentation else 'u'
        dtype = np.dtype(f'{sign}{header.BitsAllocated // 8 or 1}')
        bands = 3 if self.is_palette else int(header.SamplesPerPixel)
        size = header.get('PixelSpacing') or header.get('ImagerPixelSpacing')
        self.spacing = tuple(float(length) for length in size) if size else None
        nodata = header.get('PixelPaddingValue')
        if nodata is not None and 'RescaleSlope' in header:
            nodata = nodata * float(header.RescaleSlope) + float(header.RescaleIntercept)
        if self.is_rescaled:
            dtype = np.dtype(np.float64)
        if self.is_palette:
            dtype, nodata = np.dtype(np.uint16), None
        self.info = ImageInfo(int(header.Rows), int(header.Columns), bands, dtype, 'DICOM', nodata)
        self.pixels: np.ndarray | None = None

    def close(self) -> None:
        """Nothing is open between reads."""

    def _read(self, bands: list[int], top: int, left: int, height: int, width: int) -> np.ndarray:
        if self.pixels is None:
            from pydicom.pixels import apply_color_lut, apply_modality_lut

            data = self.pydicom.dcmread(self.path)
            array = data.pixel_array
            if self.is_palette:
                array = apply_color_lut(array, data)
            elif self.is_rescaled:
                array = apply_modality_lut(array, data)
            self.pixels = array.reshape(*array.shape[:2], -1).astype(self.info.dtype)
        window = self.pixels[top : top + height, left : left + width]
        return np.ascontiguousarray(window[..., [band - 1 for band in bands]])
