"""Metrics of dense prediction. This is the one location of the METRICS registry: needs mmseg."""

from vpt_dense.evaluation.iou_metric import IoUMetric

__all__ = ['IoUMetric']
