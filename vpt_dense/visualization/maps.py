"""Drawing of depth and normals. Needs mmengine, so the registry imports it when asked for."""

from typing import Any

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmengine.visualization import Visualizer

from vpt_dense.registry import VISUALIZERS
from vpt_dense.visualization.map_colours import (
    colour_depth,
    colour_normals,
    depth_range,
    side_by_side,
)


@VISUALIZERS.register_module()
class MapLocalVisualizer(Visualizer):
    """Draws an image, the true and the found map side by side; depths in one scale.

    Args:
        name: As in :class:`mmengine.visualization.Visualizer`.
        **kwargs: As there.
    """

    def __init__(self, name: str = 'visualizer', **kwargs: Any) -> None:
        super().__init__(name, **kwargs)

    def draw(
        self, image: np.ndarray | None, data_sample: Any, draw_gt: bool = True,
        draw_pred: bool = True,
    ) -> np.ndarray:
        """Draw a sample.

        Args:
            image: RGB, uint8 (H, W, 3), of the maps' size; None: it stays out.
            data_sample: With maps of depth or of normals.
            draw_gt: Whether the truth is drawn.
            draw_pred: Whether the prediction is.

        Returns:
            RGB, uint8.
        """
        maps = {}
        for wanted, part, title in ((draw_gt, 'gt', 'truth'), (draw_pred, 'pred', 'prediction')):
            for kind in ('depth', 'normal'):
                key = f'{part}_{kind}_map'
                if wanted and key in data_sample:
                    data = data_sample.get(key).data.float().cpu().numpy()
                    maps[title] = data[0] if kind == 'depth' else data.transpose(1, 2, 0)
        limits = depth_range(*(each for each in maps.values() if each.ndim == 2))
        panels = [] if image is None else [('image', image)]
        for title, each in maps.items():
            if each.ndim == 2:
                panels.append((f'{title}, {limits[0]:.3g} to {limits[1]:.3g} m',
                               colour_depth(each, limits)))
            else:
                panels.append((title, colour_normals(each)))
        return side_by_side(panels)

    @master_only
    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: Any = None, draw_gt: bool = True,
        draw_pred: bool = True, show: bool = False, wait_time: float = 0,
        out_file: str | None = None, step: int = 0,
    ) -> None:
        """Draw a sample to a file, the screen or the backends; arguments as in mmseg."""
        drawn = self.draw(image, data_sample, draw_gt, draw_pred)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(drawn), out_file)
        elif not show:
            self.add_image(name, drawn, step)
