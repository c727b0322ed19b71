"""Shared parts of the hooks that draw predictions. They need mmseg or mmpretrain; this does not."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend, Visualizer

from vpt_dense.datasets.names import image_names, picture_names
from vpt_dense.safe_files import shortened


def store(
    visualizer: Visualizer, picture: np.ndarray, dataset: Any, path: str | int, split: str,
    step: int, out_dir: str | None = None, show: bool = False, wait_time: float = 0,
) -> None:
    """Show or store a picture of an image; every process stores its own.

    Args:
        visualizer: Its backends take the picture where there is no ``out_dir``: ``SPLIT/PATH`` is
            its name. The main process alone has connections to services; the others know local
            files only.
        picture: RGB, uint8 (H, W, 3).
        dataset: The data set, whose folder the picture's path is relative to.
        path: Of the image; its number where it lies in no file.
        split: 'val' or 'test'.
        step: For the backends.
        out_dir: The folder for pictures; those of a validation go into ``val_STEP`` there.
        show: Whether to show it on the screen, and nothing else.
        wait_time: Seconds to show it.
    """
    number = Path(f'{path:06}.png') if isinstance(path, int) else None
    name = f'{split}/{(number or image_names(dataset)(path)).as_posix()}'
    if show:
        visualizer.show(picture, win_name=name, wait_time=wait_time)
    elif out_dir is not None:
        folder = Path(out_dir) if split == 'test' else Path(out_dir, f'{split}_{step}')
        file = shortened(folder / (number or picture_names(dataset)(path)))
        mmcv.imwrite(mmcv.rgb2bgr(picture), str(file))
    elif is_main_process():
        visualizer.add_image(name, picture, step)
    else:
        for backend in visualizer._vis_backends.values():
            if isinstance(backend, LocalVisBackend):
                backend.add_image(name, picture, step=step)


def dataset_of(runner: Runner, split: str) -> Any:
    """The data set of a split that runs."""
    loop = runner.val_loop if split == 'val' else runner.test_loop
    return loop.dataloader.dataset


class DrawingHook(Hook):
    """The base of hooks that draw truth and prediction side by side, named as their images.

    A hook says what is drawn: ``picture(visualizer, sample, dataset)`` gives RGB, uint8 (H, W, 3).

    Args:
        draw: Whether to draw at all.
        interval: Every which image is drawn; in tests all are.
        show: Whether to show the pictures on the screen.
        wait_time: Seconds to show one.
        out_dir: The folder for pictures; None: the visualizer's backends.
    """

    def __init__(
        self, draw: bool = False, interval: int = 50, show: bool = False, wait_time: float = 0.0,
        out_dir: str | None = None,
    ) -> None:
        self.draw, self.interval, self.out_dir = draw, interval, out_dir
        self.show, self.wait_time = show, wait_time
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
        visualizer, dataset = Visualizer.get_current_instance(), dataset_of(runner, split)
        for sample in outputs:
            self._seen += 1
            if (self._seen - 1) % interval:
                continue
            store(visualizer, self.picture(visualizer, sample, dataset), dataset,
                  sample.metainfo['img_path'], split, runner.iter, self.out_dir, self.show,
                  self.wait_time)
