"""Pictures of what detectors find, during validation and tests."""

from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.visualization import Visualizer

from vpt_dense.hooks import pictures
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class DetVisualizationHook(pictures.DrawingHook):
    """Draws the truth and what is found side by side, in pictures named as their images.

    Args:
        score_thr: The score from which on a box is drawn.
        test_out_dir: What mmdet calls ``out_dir``.
        backend_args: As in mmdet's: where images are read from.
        **kwargs: As in :class:`vpt_dense.hooks.pictures.DrawingHook`.
    """

    def __init__(
        self, score_thr: float = 0.3, test_out_dir: str | None = None,
        backend_args: dict | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(**kwargs)
        self.score_thr, self.backend_args = score_thr, backend_args
        self.out_dir = self.out_dir or test_out_dir

    def picture(self, visualizer: Visualizer, sample: Any, dataset: Any) -> np.ndarray:
        """See :class:`vpt_dense.hooks.pictures.DrawingHook`."""
        path = sample.metainfo['img_path']
        image = mmcv.imfrombytes(get(path, self.backend_args), channel_order='rgb')
        return visualizer.draw(
            image, sample, dataset.metainfo['classes'], dataset.metainfo.get('palette'),
            score_thr=self.score_thr)
