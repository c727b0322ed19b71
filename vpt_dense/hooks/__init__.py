"""Hooks that need nothing but mmengine; the registry knows those that draw, and need more."""

from vpt_dense.hooks.accumulation_hook import AccumulationHook
from vpt_dense.hooks.checkpoint_hook import CheckpointHook
from vpt_dense.hooks.data_check_hook import DataCheckHook
from vpt_dense.hooks.feature_cache_hook import FeatureCacheHook
from vpt_dense.hooks.gradient_hook import GradientHook
from vpt_dense.hooks.invalid_loss_hook import InvalidLossHook
from vpt_dense.hooks.label_mapping_hook import LabelMappingHook
from vpt_dense.hooks.label_maps_hook import LabelMapsHook
from vpt_dense.hooks.metric_loss_hook import MetricLossHook
from vpt_dense.hooks.missed_validation_hook import MissedValidationHook
from vpt_dense.hooks.monitor_hook import MonitorHook
from vpt_dense.hooks.plateau_hook import PlateauHook
from vpt_dense.hooks.predictions_hook import PredictionsHook
from vpt_dense.hooks.preemption_hook import PreemptionHook
from vpt_dense.hooks.progress_hook import ProgressHook
from vpt_dense.hooks.prompt_file_hook import PromptFileHook
from vpt_dense.hooks.prompt_loss_hook import PromptLossHook
from vpt_dense.hooks.prompt_start_hook import PromptStartHook
from vpt_dense.hooks.report_hook import ReportHook
from vpt_dense.hooks.seed_hook import SeedHook
from vpt_dense.hooks.sparse_places_hook import SparsePlacesHook

__all__ = [
    'AccumulationHook',
    'CheckpointHook',
    'DataCheckHook',
    'FeatureCacheHook',
    'GradientHook',
    'InvalidLossHook',
    'LabelMappingHook',
    'LabelMapsHook',
    'MetricLossHook',
    'MissedValidationHook',
    'MonitorHook',
    'PlateauHook',
    'PredictionsHook',
    'PreemptionHook',
    'ProgressHook',
    'PromptFileHook',
    'PromptLossHook',
    'PromptStartHook',
    'ReportHook',
    'SeedHook',
    'SparsePlacesHook',
]
