"""Hooks that every run gets. This is the one location of the HOOKS registry: needs mmengine."""

from vpt_dense.hooks.report_hook import ReportHook

__all__ = ['ReportHook']
