"""Reading images and masks that the stack's loaders change silently or refuse obscurely."""

from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform

from vpt_dense.datasets.checks import label_table, read_mask
from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadBands(BaseTransform):
    """Loads all bands of an image at the file's own depth (mmcv's loader gives 3 x 8 bit).

    The bands keep the file's order, R first for an ordinary image. They are normalised here,
    because mmengine's data preprocessor takes 1 or 3 bands only: set ``model.data_preprocessor`` to
    ``mean=None, std=None`` and ``bgr_to_rgb=False`` (mmseg) or ``to_rgb=False`` (mmpretrain).

    Reads ``img_path``, or ``img`` as OpenCV reads it (``IMREAD_UNCHANGED``) where it is loaded
    already; adds ``img`` (H, W, bands) float32, ``img_shape`` and ``ori_shape``.

    Args:
        mean: One figure a band, in the file's units (0 to 65535 for 16 bits). Their number is the
            number of bands that every file must have.
        std: As ``mean``.

    Raises:
        ValueError: ``mean`` and ``std`` differ in length, or a file cannot be read or has another
            number of bands; the message names it.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(
                f'LoadBands: mean and std need one figure a band, std above 0; found {mean}, {std}'
            )
        self.mean = np.asarray(mean, np.float32)
        self.std = np.asarray(std, np.float32)

    def transform(self, results: dict) -> dict:
        """Loads ``results['img_path']`` or takes ``results['img']``."""
        path = results.get('img_path', 'that was given')
        img = results.get('img')
        if img is None:
            img = cv2.imread(path, cv2.IMREAD_UNCHANGED)
        elif 'img_path' not in results and img.ndim == 3 and img.shape[2] == 3:
            # mmpretrain's inferencers: of a path or of an array, they do not say.
            if img.dtype == np.uint8:
                raise ValueError(
                    'LoadBands: the image may have been read as 3 bands of 8 bits, whatever the '
                    'file holds; give the inferencer an array of its values in another type '
                    '(cv2.imread(path, cv2.IMREAD_UNCHANGED).astype("float32"))'
                )
        if img is None:
            raise ValueError(f'image {path} cannot be read')
        img = img.reshape(*img.shape[:2], -1).copy()  # (H, W, bands)
        if img.shape[2] != len(self.mean):
            raise ValueError(
                f'image {path} has {img.shape[2]} bands, LoadBands expects {len(self.mean)}'
            )
        if img.shape[2] >= 3:
            img[..., :3] = img[..., 2::-1]  # OpenCV swaps the first and the third band
        results['img'] = (img.astype(np.float32) - self.mean) / self.std
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(mean={self.mean.tolist()}, std={self.std.tolist()})'


@TRANSFORMS.register_module()
class LoadMask(BaseTransform):
    """Loads a label mask; the same as mmseg's ``LoadAnnotations``, but nothing passes unnoticed.

    mmseg's loader wraps ids above 255 round (256 becomes 0), lets a mask of another size or with
    colours through to an obscure error, and names no file.

    Reads ``seg_map_path``, ``reduce_zero_label`` and ``label_map``; adds ``gt_seg_map``
    (H, W) uint8 and its name to ``seg_fields``. An image without ``seg_map_path`` passes as it is:
    to predict, mmseg's inferencers run a config's own pipeline, from which they know to remove
    ``LoadAnnotations`` alone.

    Raises:
        ValueError: The mask cannot be read, has several channels, ids above 255, or another size
            than the image; the message names the file.
    """

    def transform(self, results: dict) -> dict:
        """Loads ``results['seg_map_path']``, if there is one."""
        path = results.get('seg_map_path')
        if path is None:
            return results
        mask = read_mask(path)
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
        results['gt_seg_map'] = mask
        results['seg_fields'].append('gt_seg_map')
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
