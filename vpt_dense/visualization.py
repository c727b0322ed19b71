"""Drawing of masks. Needs mmseg, so the registry imports it when it is asked for."""

from typing import Any

import numpy as np
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer as _SegLocalVisualizer

from vpt_dense.registry import VISUALIZERS

_NO_CLASS = 255  # mmseg draws no label that is beyond the classes


@VISUALIZERS.register_module()
class SegLocalVisualizer(_SegLocalVisualizer):
    """mmseg's, which draws ignored pixels in the colour of a class where they have its label.

    Args:
        name: As in ``mmseg.visualization.SegLocalVisualizer``.
        ignore_index: The ignored label of the masks.
        **kwargs: As there.
    """

    def __init__(
        self, name: str = 'visualizer', ignore_index: int = _NO_CLASS, **kwargs: Any
    ) -> None:
        super().__init__(name, **kwargs)
        self.ignore_index = ignore_index

    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: SegDataSample | None = None, *args: Any,
        **kwargs: Any,
    ) -> None:
        """Draw the mask (without ignored pixels) and the prediction; arguments as in mmseg."""
        if data_sample is not None and 'gt_sem_seg' in data_sample:
            data_sample = data_sample.clone()
            mask = data_sample.gt_sem_seg.data
            mask = mask.masked_fill(mask == self.ignore_index, _NO_CLASS)
            data_sample.gt_sem_seg = PixelData(data=mask)
        super().add_datasample(name, image, data_sample, *args, **kwargs)
