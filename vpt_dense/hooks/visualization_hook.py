"""Pictures of classifications during validation and tests. Needs mmpretrain."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.runner import Runner
from mmpretrain.engine.hooks import VisualizationHook as _VisualizationHook
from mmpretrain.structures import DataSample

from vpt_dense import params
from vpt_dense.hooks import pictures
from vpt_dense.registry import HOOKS
from vpt_dense.visualization import to_picture


@HOOKS.register_module()
class VisualizationHook(_VisualizationHook):
    """mmpretrain's, whose pictures keep the path of their image below the data folder.

    Of several processes each draws the images that it has predicted; in mmpretrain only the first
    does. Colours are those of the image: mmpretrain swaps red and blue of images that its loader
    reads. With test-time augmentation the first version of an image is drawn. A visualizer that is
    not :class:`vpt_dense.visualization.classification.UniversalVisualizer` draws mmpretrain's way.

    Args:
        *args: As in ``mmpretrain.engine.VisualizationHook``.
        **kwargs: As there.
    """

    _seen = 0  # images of this process and evaluation

    def before_val_epoch(self, runner: Runner) -> None:
        """Count from the start."""
        self._seen = 0

    before_test_epoch = before_val_epoch

    def after_val_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Draw every ``interval``-th image."""
        self._runner, self._split = runner, 'val'
        super().after_val_iter(runner, batch_idx, *args, **kwargs)

    def after_test_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Draw every ``interval``-th image."""
        self._runner, self._split = runner, 'test'
        super().after_test_iter(runner, batch_idx, *args, **kwargs)

    def _draw_samples(
        self, batch_idx: int, data_batch: dict, data_samples: Sequence[DataSample], step: int = 0
    ) -> None:
        if not self.enable:
            return
        if not hasattr(self._visualizer, 'draw') or self.draw_args.get('text_cfg'):
            super()._draw_samples(batch_idx, data_batch, data_samples, step)
            return
        images = data_batch['inputs']
        while isinstance(images[0], (list, tuple)) or images[0].ndim > 3:
            images = images[0]  # of the versions of test-time augmentation
        dataset = pictures.dataset_of(self._runner, self._split)
        arguments = {key: value for key, value in self.draw_args.items()
                     if key not in ('show', 'wait_time', 'out_file', 'name', 'step')}  # fmt: skip
        for image, sample in zip(images, data_samples, strict=True):
            index = sample.metainfo.get('sample_idx', self._seen)
            self._seen += 1
            if index % self.interval:
                continue
            drawn = self._visualizer.draw(
                to_picture(image.permute(1, 2, 0).cpu().numpy(), self._swapped(image)), sample,
                **{'classes': dataset.metainfo.get('classes'), **arguments})
            pictures.store(
                self._visualizer, drawn, dataset, sample.metainfo.get('img_path', index),
                self._split, step, self.out_dir, self.show, self.draw_args.get('wait_time', 0))

    def _swapped(self, image: torch.Tensor) -> bool:
        """Whether an image (C, H, W) is in the order BGR: the model knows."""
        preprocessor = getattr(params.unwrap(self._runner.model), 'data_preprocessor', None)
        return len(image) == 3 and bool(getattr(preprocessor, 'to_rgb', False))
