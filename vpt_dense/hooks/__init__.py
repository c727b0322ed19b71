"""Hooks that every run gets. This is the one location of the HOOKS registry: needs mmengine."""

from vpt_dense.hooks.data_check_hook import DataCheckHook
from vpt_dense.hooks.invalid_loss_hook import InvalidLossHook
from vpt_dense.hooks.report_hook import ReportHook
from vpt_dense.hooks.vit_start_hook import ViTStartHook

__all__ = ['DataCheckHook', 'InvalidLossHook', 'ReportHook', 'ViTStartHook']
