"""Labels that have not come yet, in a test."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import BaseTransform

from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class KeepLabels(BaseTransform):
    """Keeps some labels of a label map and makes another one of the rest.

    It stands behind what loads ``gt_seg_map``.

    Args:
        labels: That are kept, the ignored one among them, unless it is ``other``.
        other: What the rest becomes: the ignored label, or that of the background.
    """

    def __init__(self, labels: Sequence[int], other: int) -> None:
        self.labels, self.other = list(labels), other
        self._table = np.full(256, other, np.uint8)
        self._table[self.labels] = self.labels

    def transform(self, results: dict) -> dict:
        """Change ``gt_seg_map``, (H, W)."""
        if 'gt_seg_map' in results:  # to predict there is none
            results['gt_seg_map'] = self._table[results['gt_seg_map']]
        return results

    def __repr__(self) -> str:
        """One line."""
        return f'{type(self).__name__}(labels={self.labels}, other={self.other})'
