"""Pictures with their labels. Needs mmpretrain, so the registry imports it when asked for."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmengine.dist import master_only
from mmpretrain.structures import DataSample
from mmpretrain.visualization import UniversalVisualizer as _UniversalVisualizer

from vpt_dense.registry import VISUALIZERS
from vpt_dense.visualization.drawing import draw_captions


@VISUALIZERS.register_module()
class UniversalVisualizer(_UniversalVisualizer):
    """mmpretrain's, which writes the labels above an image and not across it.

    The prediction is green where it is right and red where it is not. Arguments as in mmpretrain.
    """

    def draw(
        self, image: np.ndarray, data_sample: DataSample, classes: Sequence[str] | None = None,
        draw_gt: bool = True, draw_pred: bool = True, draw_score: bool = True,
        resize: int | None = None, rescale_factor: float | None = None,
    ) -> np.ndarray:
        """Draw an image with its labels, in any process.

        Args:
            image: RGB, uint8 (H, W, 3).
            data_sample: With ``gt_label`` or ``pred_label`` (and ``pred_score``), or both or none.
            classes: Names by label.
            draw_gt: Whether to tell the truth.
            draw_pred: Whether to tell the prediction.
            draw_score: Whether to tell its score.
            resize: The short side that the image gets, in pixels.
            rescale_factor: What its size is multiplied by, if ``resize`` is not given.

        Returns:
            RGB, uint8.
        """
        factor = resize / min(image.shape[:2]) if resize else rescale_factor
        if factor:
            image = mmcv.imrescale(image, factor)
        labels = {
            key: data_sample.get(key).tolist()
            for wanted, key in ((draw_gt, 'gt_label'), (draw_pred, 'pred_label'))
            if wanted and key in data_sample
        }
        truth = labels.get('gt_label')
        captions = []
        for key, indices in labels.items():
            names = [str(classes[index]) if classes else str(index) for index in indices]
            if key == 'gt_label':
                captions.append((f'truth: {", ".join(names)}', None))
                continue
            if draw_score and 'pred_score' in data_sample:
                scores = data_sample.pred_score
                names = [f'{name} ({scores[index].item():.2f})'
                         for name, index in zip(names, indices, strict=True)]  # fmt: skip
            right = None if truth is None else sorted(indices) == sorted(truth)
            captions.append((f'prediction: {", ".join(names)}', right))
        return draw_captions(image, captions)

    @master_only
    def visualize_cls(
        self, image: np.ndarray, data_sample: DataSample, classes: Sequence[str] | None = None,
        *args: Any, text_cfg: dict | None = None, show: bool = False, wait_time: float = 0,
        out_file: str | None = None, name: str = '', step: int = 0, **kwargs: Any,
    ) -> np.ndarray:
        """Draw an image with its labels; arguments as in mmpretrain.

        With ``text_cfg`` it is mmpretrain's picture.
        """
        classes = classes or (self.dataset_meta or {}).get('classes')
        if text_cfg:
            return super().visualize_cls(
                image, data_sample, classes, *args, text_cfg=text_cfg, show=show,
                wait_time=wait_time, out_file=out_file, name=name, step=step, **kwargs)
        drawn = self.draw(image, data_sample, classes, *args, **kwargs)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(drawn), out_file)
        else:
            self.add_image(name, drawn, step)
        return drawn
