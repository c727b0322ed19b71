"""Pictures of segmentations during validation and tests. Needs mmseg."""

from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.runner import Runner
from mmseg.engine.hooks import SegVisualizationHook as _SegVisualizationHook
from mmseg.structures import SegDataSample

from vpt_dense.datasets import geo_samples, raster
from vpt_dense.hooks import pictures
from vpt_dense.registry import HOOKS
from vpt_dense.visualization import to_picture


@HOOKS.register_module()
class SegVisualizationHook(_SegVisualizationHook):
    """mmseg's, whose pictures keep the path of their image below the data folder.

    Of several processes each draws the images that it has predicted; in mmseg only the first does.
    A visualizer that is not :class:`vpt_dense.visualization.segmentation.SegLocalVisualizer` draws
    mmseg's way.

    Args:
        *args: As in ``mmseg.engine.SegVisualizationHook``.
        out_dir: The folder for pictures, in place of the visualizer's backends; those of a
            validation go into ``val_STEP`` there.
        **kwargs: As there.
    """

    def __init__(self, *args: Any, out_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.out_dir = out_dir

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw the first image of every ``interval``-th batch."""
        step = runner.iter + batch_idx
        if not self.draw or step % self.interval:
            return
        if not hasattr(self._visualizer, 'draw'):
            super().after_val_iter(runner, batch_idx, data_batch, outputs)
            return
        self._store(runner, outputs[0], 'val', step)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict, outputs: Sequence[SegDataSample]
    ) -> None:
        """Draw every image."""
        if not self.draw or not hasattr(self._visualizer, 'draw'):
            super().after_test_iter(runner, batch_idx, data_batch, outputs)
            return
        for sample in outputs:
            self._test_index += 1
            self._store(runner, sample, 'test', self._test_index)

    def _store(self, runner: Runner, sample: SegDataSample, split: str, step: int) -> None:
        dataset = pictures.dataset_of(runner, split)
        drawn = self._visualizer.draw(
            self._read(sample), sample, dataset.metainfo['classes'],
            dataset.metainfo.get('palette'))
        pictures.store(self._visualizer, drawn, dataset, sample.img_path, split, step,
                       self.out_dir, self.show, self.wait_time)  # fmt: skip

    def _read(self, sample: SegDataSample) -> np.ndarray:
        """The image of a sample, RGB, uint8, in the size of its prediction.

        Raises:
            ValueError: If it cannot be read, or not in that size.
        """
        path, size = sample.img_path, tuple(sample.pred_sem_seg.shape)
        for read in (self._as_mmcv, _all_bands, _as_it_lies):
            image = read(path)
            if image is not None and image.shape[:2] == size:
                return image
        raise ValueError(f'image {path} cannot be drawn in {size[0]} x {size[1]} pixels')

    def _as_mmcv(self, path: str) -> np.ndarray | None:
        if geo_samples.is_sample(path):
            return None
        try:
            content = get(path, backend_args=self.backend_args)
            return mmcv.imfrombytes(content, channel_order='rgb')
        except cv2.error:  # a number of bands that OpenCV makes no picture of
            return None


def _all_bands(path: str) -> np.ndarray:
    return to_picture(raster.read_image(path))


def _as_it_lies(path: str) -> np.ndarray | None:
    """A photograph that its EXIF tag would turn: loaders of all bands may not."""
    bands = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    return bands if bands is None else to_picture(bands, swap=bands.ndim == 3)
