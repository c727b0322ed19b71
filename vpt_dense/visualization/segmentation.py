"""Drawing of masks and predictions. Needs mmseg, so the registry imports it when asked for."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer as _SegLocalVisualizer

from vpt_dense.registry import VISUALIZERS
from vpt_dense.visualization.drawing import Panel, draw_panels

#: Stands for pixels without data in predictions, in which every label from 0 on may be a class.
_NO_CLASS = -1


@VISUALIZERS.register_module()
class SegLocalVisualizer(_SegLocalVisualizer):
    """mmseg's, whose pictures say what they show.

    The mask is titled 'truth', what the model says 'prediction'; a legend below names the classes
    that occur, in place of names inside the picture; ignored pixels are striped, where mmseg draws
    them in the colour of a class or as nothing, and so are those of a prediction without data.

    Args:
        name: As in ``mmseg.visualization.SegLocalVisualizer``.
        ignore_index: The ignored label of the masks.
        alpha: How much of a colour covers the image, 0 to 1; mmseg's 0.8 hides it.
        **kwargs: As there.
    """

    def __init__(
        self, name: str = 'visualizer', ignore_index: int = 255, alpha: float = 0.6, **kwargs: Any
    ) -> None:
        super().__init__(name, alpha=alpha, **kwargs)
        self.ignore_index = ignore_index

    def draw(
        self, image: np.ndarray, data_sample: SegDataSample, classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None, draw_gt: bool = True,
        draw_pred: bool = True, with_labels: bool = True, with_image: bool = False,
    ) -> np.ndarray:
        """Draw the mask and the prediction that a sample has, in any process.

        Args:
            image: RGB, uint8 (H, W, 3), as large as they are.
            data_sample: With ``gt_sem_seg`` or ``pred_sem_seg``, (1, H, W), or both or none.
            classes: Names by label.
            palette: [R, G, B] by label.
            draw_gt: Whether to draw the mask.
            draw_pred: Whether to draw the prediction.
            with_labels: Whether to have a legend.
            with_image: Whether the image alone stands beside.

        Returns:
            RGB, uint8.
        """
        panels = [Panel('image')] if with_image else []
        for wanted, key, title, ignored in (
            (draw_gt, 'gt_sem_seg', 'truth', self.ignore_index),
            (draw_pred, 'pred_sem_seg', 'prediction', _NO_CLASS),
        ):
            if wanted and key in data_sample:
                labels = data_sample.get(key).data.squeeze(0).cpu().numpy()
                if key == 'pred_sem_seg' and data_sample.get('no_data') is not None:
                    labels = np.where(data_sample.no_data, _NO_CLASS, labels.astype(np.int64))
                panels.append(Panel(title, labels, ignored))
        panels = panels or [Panel('image')]
        return draw_panels(image, panels, classes, palette, self.alpha, with_labels)

    @master_only
    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: SegDataSample | None = None,
        draw_gt: bool = True, draw_pred: bool = True, show: bool = False, wait_time: float = 0,
        out_file: str | None = None, step: int = 0, with_labels: bool = True,
        with_image: bool = False,
    ) -> None:
        """Draw the mask and the prediction; arguments as in mmseg."""
        if data_sample is None or {'gt_depth_map', 'pred_depth_map'} & set(data_sample.keys()):
            super().add_datasample(name, image, data_sample, draw_gt, draw_pred, show, wait_time,
                                   out_file, step, with_labels, with_image)  # fmt: skip
            return
        drawn = self.draw(
            image, data_sample, self.dataset_meta['classes'], self.dataset_meta.get('palette'),
            draw_gt, draw_pred, with_labels, with_image)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(drawn), out_file)
        else:
            self.add_image(name, drawn, step)
