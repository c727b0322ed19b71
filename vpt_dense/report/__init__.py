"""The page that one opens, ``report.html``: records in, one file out, no network, no framework."""

from vpt_dense.report.page import NAME, write
from vpt_dense.report.run import describe, is_run, write_run

__all__ = ['NAME', 'describe', 'is_run', 'write', 'write_run']
