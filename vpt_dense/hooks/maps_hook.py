"""Predicted maps of depth and of normals, as files and as pictures."""

from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmengine.visualization import Visualizer

from vpt_dense.datasets import map_files
from vpt_dense.datasets.names import image_names, leaves
from vpt_dense.hooks import pictures
from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class MapsHook(Hook):
    """Writes what a test predicts for each image, as :mod:`vpt_dense.datasets.map_files` reads it.

    ``OUT_DIR/city0/frame.png`` for the image ``city0/frame.jpg`` of the data folder: 16 bits in the
    units of the annotations (``depth_scale``), or ``.npy`` in metres, see
    :func:`vpt_dense.datasets.map_files.depth_suffix`; normals as colours of 16 bits. Every process
    writes its own images.

    Args:
        out_dir: The folder.
    """

    def __init__(self, out_dir: str) -> None:
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Runner) -> None:
        """Know names and units."""
        dataset = runner.test_loop.dataloader.dataset
        self._name_of = image_names(dataset)
        self._scale = next((leaf.depth_scale for leaf in leaves(dataset)
                            if hasattr(leaf, 'depth_scale')), 1.0)
        model = unwrap(runner.model)
        head = getattr(model, 'module', model).decode_head
        self._farthest = getattr(head, 'max_depth', 0.0)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the maps of a batch."""
        for sample in outputs:
            path = self.out_dir / self._name_of(sample.img_path)
            if 'pred_depth_map' in sample:
                depth = sample.pred_depth_map.data[0].float().cpu().numpy()
                map_files.write_depth(path, depth, self._scale, self._farthest)
            else:
                normals = sample.pred_normal_map.data.float().cpu().numpy().transpose(1, 2, 0)
                map_files.write_normals(path, normals)


@HOOKS.register_module()
class MapVisualizationHook(pictures.DrawingHook):
    """Draws image, truth and prediction side by side, in pictures named as their images.

    Args:
        **kwargs: As in :class:`vpt_dense.hooks.pictures.DrawingHook`.
    """

    def picture(self, visualizer: Visualizer, sample: Any, dataset: Any) -> np.ndarray:
        """See :class:`vpt_dense.hooks.pictures.DrawingHook`."""
        image = mmcv.imfrombytes(get(sample.metainfo['img_path']), channel_order='rgb')
        if image.shape[:2] != tuple(sample.metainfo['ori_shape']):
            image = None  # of which the pipeline has cut off a part
        return visualizer.draw(image, sample)
