"""Loads images and masks that mmcv's and mmseg's loaders change silently or refuse obscurely."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import LocalBackend, register_backend

from vpt_dense.argument_checks import is_int, is_list
from vpt_dense.datasets import raster
from vpt_dense.datasets.checks import label_table, read_mask
from vpt_dense.registry import TRANSFORMS

#: What stands for an image that ``LoadBands`` is to read itself.
_LEFT = np.frombuffer(b'LoadBands', np.uint8)[None]


@register_backend('left_to_LoadBands', force=True)
class _LeftToLoadBands(LocalBackend):
    """Gives a few bytes in place of any file.

    mmseg's inferencers look for a ``LoadImageFromFile``, which would read the image in its own way:
    :func:`vpt_dense.data_config.place_test_pipeline` gives them one that leaves it alone.
    """

    def get(self, filepath: str) -> bytes:
        return cv2.imencode('.png', _LEFT)[1].tobytes()


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Loads bands of an image at the file's own depth (mmcv's loader gives 3 x 8 bit).

    Reads what :func:`vpt_dense.datasets.raster.read_image` reads: rasters of any number of bands, 8
    bits to float64. The bands keep the file's order, R first for an ordinary image, unless
    ``bands`` says another. They are normalised here, because mmengine's data preprocessor takes 1
    or 3 bands only: set ``model.data_preprocessor`` to ``mean=None, std=None`` and
    ``bgr_to_rgb=False`` (mmseg) or ``to_rgb=False`` (mmpretrain).

    Where a band has no data (the value that the file or ``nodata`` names; NaN and infinity) it gets
    its mean, 0 after normalisation. Where all of the bands have none, ``LoadMask`` gives the pixel
    the ignored label.

    Reads ``img_path``, or ``img`` as OpenCV reads it (``IMREAD_UNCHANGED``, B before R) where it is
    loaded already; ``nodata`` then says which value means "no data". Adds ``img`` (H, W, bands)
    float32, ``img_shape``, ``ori_shape`` and ``no_data``, (H, W) bool or None.

    Args:
        mean: One figure a band, in the file's units (0 to 65535 for 16 bits);
            ``tools/check_dataset.py --stats`` prints them.
        std: As ``mean``.
        bands: Which bands, 1 for the first as in GDAL: ``[4, 3, 2]``. None: all, and every file
            must have as many as ``mean`` has figures.
        nodata: The value that means "no data", or one for each band taken. None: what the file
            says.

    Raises:
        ValueError: The arguments differ in length or are none, or a file cannot be read or has
            other bands; the message names it.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        bands: Sequence[int] | None = None,
        nodata: float | Sequence[float | None] | None = None,
    ) -> None:
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f'LoadBands: mean and std need one figure a band, std above 0; found {mean}, {std}'
            )
        if bands is not None:
            if not bands or not all(is_int(band, 1) for band in bands):
                raise ValueError(
                    f'LoadBands: bands are numbers from 1, such as [4, 3, 2]; found {bands}'
                )
            if len(bands) != len(mean):
                raise ValueError(
                    f'LoadBands: mean and std need one figure a band; found {len(mean)} for '
                    f'bands={list(bands)}'
                )
        if isinstance(nodata, str) or (is_list(nodata) and len(nodata) != len(mean)):
            raise ValueError(
                f'LoadBands: nodata is one value, or one for each of the {len(mean)} bands; found '
                f'{nodata!r}'
            )
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)
        self.bands = None if bands is None else list(bands)
        self.nodata = nodata

    def transform(self, results: dict) -> dict:
        """Loads ``results['img_path']`` or takes ``results['img']``."""
        path = results.get('img_path') or 'that was given'
        img = results.get('img')
        if img is None or (img.size == _LEFT.size and img.tobytes() == _LEFT.tobytes()):
            img, info = raster.read(path, self.bands)
            nodata, count = info.nodata_of(self.bands), img.shape[2]
        else:
            if 'img_path' not in results and img.ndim == 3 and img.shape[2] == 3:
                # mmpretrain's inferencers: of a path or of an array, they do not say.
                if img.dtype == np.uint8:
                    raise ValueError(
                        'LoadBands: the image may have been read as 3 bands of 8 bits, whatever '
                        'the file holds; give the inferencer an array of its values in another '
                        'type (cv2.imread(path, cv2.IMREAD_UNCHANGED).astype("float32"))'
                    )
            img = img.reshape(*img.shape[:2], -1)  # (H, W, bands)
            nodata, count = results.get('nodata'), img.shape[2]
            if isinstance(nodata, tuple):
                nodata = [nodata[band - 1] for band in self.bands or range(1, count + 1)]
            if count >= 3:  # OpenCV swaps the first and the third band
                img = img[..., [2, 1, 0, *range(3, count)]]
            if self.bands is not None:
                if max(self.bands) > count:
                    raise ValueError(
                        f'image {path} has bands 1 to {count}, but bands={self.bands} are asked for'
                    )
                img = img[..., [band - 1 for band in self.bands]]
        if img.shape[2] != len(self.mean):
            raise ValueError(
                f'image {path} has {count} bands, LoadBands expects {len(self.mean)} (one for each '
                'figure of mean); choose some with bands=[...]'
            )
        results['img'], results['no_data'] = raster.normalise(
            img, self.mean, self.std, nodata if self.nodata is None else self.nodata)
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        more = '' if self.bands is None else f', bands={self.bands}'
        more += '' if self.nodata is None else f', nodata={self.nodata}'
        return f'{type(self).__name__}(mean={self.mean.tolist()}, std={self.std.tolist()}{more})'


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Loads a label mask; the same as mmseg's ``LoadAnnotations``, but nothing passes unnoticed.

    mmseg's loader wraps ids above 255 round (256 becomes 0), lets a mask of another size or with
    colours through to an obscure error, and names no file.

    Reads ``seg_map_path``, ``reduce_zero_label``, ``label_map`` and ``ignore_negative``; adds
    ``gt_seg_map`` (H, W) uint8 and its name to ``seg_fields``. Where the image has no data
    (``no_data``, of :class:`LoadBands`), the label is the ignored one. A mask with an EXIF tag is
    turned as an image is. An image without ``seg_map_path`` passes as it is:
    to predict, mmseg's inferencers run a config's own pipeline, from which they know to remove
    ``LoadAnnotations`` alone.

    Args:
        ignore_index: The label that is left out; ``dataset.ignore_index`` sets it.

    Raises:
        ValueError: The mask cannot be read, has several channels, ids above 255, or another size
            than the image; the message names the file.
    """

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def transform(self, results: dict) -> dict:
        """Loads ``results['seg_map_path']``, if there is one."""
        path = results.get('seg_map_path')
        if path is None:
            return results
        mask = read_mask(path)
        negative = mask < 0 if results.get('ignore_negative') else None
        if negative is not None:
            mask = np.where(negative, 0, mask)
        if mask.size and not 0 <= mask.min() <= mask.max() <= 255:
            raise ValueError(
                f'mask {path} has ids from {mask.min()} to {mask.max()}; class ids are 0 to 254, '
                'and 255 is ignored (dataset.ignore_index)'
            )
        shape = tuple(results.get('ori_shape', mask.shape))[:2]
        if mask.shape != shape:
            raise ValueError(
                f'mask {path} is {mask.shape[1]}x{mask.shape[0]}, its image {shape[1]}x{shape[0]} '
                '(if they are transposed: the image is turned by an EXIF tag)'
            )
        mask = mask.astype(np.uint8, copy=False)
        changes = results.get('reduce_zero_label', False), results.get('label_map')
        if any(changes):
            mask = cv2.LUT(mask, label_table(*changes))
        if negative is not None:
            mask = np.where(negative, np.uint8(self.ignore_index), mask)
        if results.get('no_data') is not None:
            mask = np.where(results['no_data'], np.uint8(self.ignore_index), mask)
        results['gt_seg_map'] = mask
        results['seg_fields'].append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(ignore_index={self.ignore_index})'
