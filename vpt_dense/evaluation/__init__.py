"""Metrics of dense prediction. Needs mmseg, so the registry imports it when asked."""

from vpt_dense.evaluation.iou_metric import IoUMetric
from vpt_dense.evaluation.map_metrics import DepthMetric, NormalMetric
from vpt_dense.evaluation.multi_task_metric import (
    EdgeMetric,
    MapErrorMetric,
    MultiTaskMetric,
    delta_m,
)

__all__ = [
    'DepthMetric', 'EdgeMetric', 'IoUMetric', 'MapErrorMetric', 'MultiTaskMetric', 'NormalMetric',
    'delta_m',
]
