"""Segmentors. Needs mmseg, so the registry imports it when one of them is asked for."""

from vpt_dense.segmentors.encoder_decoder import EncoderDecoder
from vpt_dense.segmentors.map_estimator import DepthEstimator, MapTTAModel, NormalEstimator
from vpt_dense.segmentors.multi_task_estimator import MultiTaskEstimator, MultiTaskTTAModel
from vpt_dense.segmentors.seg_tta import SegTTAModel

__all__ = [
    'DepthEstimator', 'EncoderDecoder', 'MapTTAModel', 'MultiTaskEstimator',
    'MultiTaskTTAModel', 'NormalEstimator', 'SegTTAModel',
]
