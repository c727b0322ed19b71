"""Metrics of dense prediction. Needs mmseg, so the registry imports it when asked."""

from vpt_dense.evaluation.iou_metric import IoUMetric

__all__ = ['IoUMetric']
