"""Drawing of boxes, masks and segments. Needs mmdet: the registry imports it when asked for."""

from collections.abc import Sequence
from typing import Any

import mmcv
import numpy as np
from mmdet.visualization import DetLocalVisualizer as _DetLocalVisualizer
from mmengine.dist import master_only

from vpt_dense import segments
from vpt_dense.registry import VISUALIZERS
from vpt_dense.visualization.drawing import Boxes, Panel, draw_boxes, draw_panels, segment_panel


@VISUALIZERS.register_module()
class DetLocalVisualizer(_DetLocalVisualizer):
    """mmdet's, whose pictures say what they show: 'truth' and 'prediction' side by side, a legend.

    Arguments as in mmdet.
    """

    def draw(
        self, image: np.ndarray, data_sample: Any, classes: Sequence[str],
        palette: Sequence[Sequence[int]] | None = None, draw_gt: bool = True,
        draw_pred: bool = True, score_thr: float = 0.3,
    ) -> np.ndarray:
        """Draw the boxes, and masks, that a sample has, or its segments; in any process.

        Args:
            image: RGB, uint8 (H, W, 3), as large as the boxes are meant.
            data_sample: With ``gt_instances`` or ``pred_instances``, or both or none; with
                ``gt_sem_seg`` or ``pred_panoptic_seg`` it is of panoptic segmentation.
            classes: Names by label.
            palette: [R, G, B] by label.
            draw_gt: Whether to draw the truth.
            draw_pred: Whether to draw the prediction.
            score_thr: The score from which on a predicted box is drawn.

        Returns:
            RGB, uint8.
        """
        if 'gt_sem_seg' in data_sample or 'pred_panoptic_seg' in data_sample:
            parts = [segment_panel(title, *found) for shown, title, found in (
                (draw_gt, 'truth', true_segments(data_sample, len(classes))),
                (draw_pred, 'prediction', found_segments(data_sample, len(classes))))
                if shown and found is not None]
            return draw_panels(image, parts or [Panel('image')], classes, palette)
        panels = []
        for wanted, key, title in ((draw_gt, 'gt_instances', 'truth'),
                                   (draw_pred, 'pred_instances', 'prediction')):
            if wanted and key in data_sample:
                panels.append(_boxes(data_sample.get(key), title, score_thr))
        return draw_boxes(image, panels or [Boxes('image')], classes, palette)

    @master_only
    def add_datasample(
        self, name: str, image: np.ndarray, data_sample: Any = None, draw_gt: bool = True,
        draw_pred: bool = True, show: bool = False, wait_time: float = 0,
        out_file: str | None = None, pred_score_thr: float = 0.3, step: int = 0,
    ) -> None:
        """Draw what a sample has; arguments as in mmdet."""
        drawn = self.draw(
            image, data_sample, self.dataset_meta['classes'], self.dataset_meta.get('palette'),
            draw_gt, draw_pred, pred_score_thr)
        self.set_image(drawn)
        if show:
            self.show(drawn, win_name=name, wait_time=wait_time)
        if out_file is not None:
            mmcv.imwrite(mmcv.rgb2bgr(drawn), out_file)
        else:
            self.add_image(name, drawn, step)


def true_segments(sample: Any, number: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and labels of the true segments of a sample; None: it has none."""
    if 'gt_sem_seg' not in sample:
        return None
    things = sample.gt_instances
    return segments.true_segments(
        sample.gt_sem_seg.sem_seg[0].cpu().numpy(), things.masks.to_ndarray(),
        things.labels.cpu().numpy(), number)


def found_segments(sample: Any, number: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Ids and labels of the segments that were found in a sample; None: it has none."""
    if 'pred_panoptic_seg' not in sample:
        return None
    return segments.found_segments(sample.pred_panoptic_seg.sem_seg[0].cpu().numpy(), number)


def _boxes(instances: Any, title: str, score_thr: float) -> Boxes:
    """What is drawn of instances: those of a sufficient score, if they have any."""
    boxes = instances.bboxes
    boxes = np.asarray(getattr(boxes, 'tensor', boxes).cpu().numpy(), np.float64).reshape(-1, 4)
    labels = instances.labels.cpu().numpy()
    scores = instances.scores.cpu().numpy() if 'scores' in instances else None
    kept = np.arange(len(labels)) if scores is None else np.flatnonzero(scores >= score_thr)
    masks = None
    if 'masks' in instances:
        masks = instances.masks
        if hasattr(masks, 'to_ndarray'):
            masks = masks.to_ndarray()
        masks = np.asarray(masks.cpu().numpy() if hasattr(masks, 'cpu') else masks, bool)[kept]
    return Boxes(
        title, boxes[kept], labels[kept], None if scores is None else scores[kept], masks)
