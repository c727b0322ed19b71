"""Augmentation of mmseg at less cost: the same pixels from the same random numbers."""

import numpy as np
import torch
from mmcv.transforms.utils import cache_randomness
from mmseg.datasets.transforms import RandomCrop as _RandomCrop

from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class RandomCrop(_RandomCrop):
    """mmseg's ``RandomCrop``, which sorts a crop's labels to see how much one class takes.

    Counting them gives the same crop. Arguments as there; the label map holds integers from 0
    (uint8, int16, int32 or int64).
    """

    @cache_randomness
    def crop_bbox(self, results: dict) -> tuple[int, int, int, int]:
        """Draw a crop; up to ten times again while one class takes too much of it.

        Args:
            results: With ``img`` (H, W, ...) and, if ``cat_max_ratio`` is below 1,
                ``gt_seg_map`` (H, W).

        Returns:
            First row, row behind the last, first column, column behind the last.
        """
        sizes = zip(results['img'].shape[:2], self.crop_size, strict=True)
        margins = [max(size - crop, 0) for size, crop in sizes]

        def draw() -> tuple[int, int, int, int]:
            top, left = (np.random.randint(0, margin + 1) for margin in margins)
            return top, top + self.crop_size[0], left, left + self.crop_size[1]

        box = draw()
        if self.cat_max_ratio < 1:
            for _ in range(10):
                if self._is_mixed(self.crop(results['gt_seg_map'], box)):
                    break
                box = draw()
        return box

    def _is_mixed(self, labels: np.ndarray) -> bool:
        """Whether there are two classes or more and none takes ``cat_max_ratio`` of the pixels."""
        # torch counts bytes as they are; numpy makes integers of 8 bytes of them first.
        counts = torch.from_numpy(labels.ravel()).bincount().numpy()
        if 0 <= self.ignore_index < len(counts):
            counts[self.ignore_index] = 0
        return np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < self.cat_max_ratio
