"""Pictures of what detectors find, during validation and tests."""

from collections.abc import Sequence
from typing import Any

import mmcv
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from vpt_dense.hooks import pictures
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class DetVisualizationHook(Hook):
    """Draws the truth and what is found side by side, in pictures named as their images.

    Args:
        draw: Whether to draw at all.
        interval: Every which image is drawn; in tests all are.
        score_thr: The score from which on a box is drawn.
        show: Whether to show the pictures on the screen.
        wait_time: Seconds to show one.
        out_dir: The folder for pictures; None: the visualizer's backends.
        test_out_dir: What mmdet calls it.
        backend_args: As in mmdet's: where images are read from.
    """

    def __init__(
        self, draw: bool = False, interval: int = 50, score_thr: float = 0.3, show: bool = False,
        wait_time: float = 0.0, out_dir: str | None = None, test_out_dir: str | None = None,
        backend_args: dict | None = None,
    ) -> None:
        self.draw, self.interval, self.score_thr = draw, interval, score_thr
        self.show, self.wait_time, self.out_dir = show, wait_time, out_dir or test_out_dir
        self.backend_args = backend_args
        self._seen = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Count from the start."""
        self._seen = 0

    before_test_epoch = before_val_epoch

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw every ``interval``-th image."""
        self._draw(runner, outputs, 'val', self.interval)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any, outputs: Sequence[Any]
    ) -> None:
        """Draw every image."""
        self._draw(runner, outputs, 'test', 1)

    def _draw(self, runner: Runner, outputs: Sequence[Any], split: str, interval: int) -> None:
        if not self.draw:
            return
        visualizer = Visualizer.get_current_instance()
        dataset = pictures.dataset_of(runner, split)
        for sample in outputs:
            self._seen += 1
            if (self._seen - 1) % interval:
                continue
            path = sample.metainfo['img_path']
            image = mmcv.imfrombytes(get(path, self.backend_args), channel_order='rgb')
            drawn = visualizer.draw(
                image, sample, dataset.metainfo['classes'], dataset.metainfo.get('palette'),
                score_thr=self.score_thr)
            pictures.store(visualizer, drawn, dataset, path, split, runner.iter, self.out_dir,
                           self.show, self.wait_time)
