"""Hooks that every run gets. This is the one location of the HOOKS registry: needs mmengine."""

from vpt_dense.hooks.data_check_hook import DataCheckHook
from vpt_dense.hooks.invalid_loss_hook import InvalidLossHook
from vpt_dense.hooks.report_hook import ReportHook

__all__ = ['DataCheckHook', 'InvalidLossHook', 'ReportHook']
