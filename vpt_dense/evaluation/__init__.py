"""Metrics of dense prediction. Needs mmseg, so the registry imports it when asked."""

from vpt_dense.evaluation.iou_metric import IoUMetric
from vpt_dense.evaluation.map_metrics import DepthMetric, NormalMetric

__all__ = ['DepthMetric', 'IoUMetric', 'NormalMetric']
