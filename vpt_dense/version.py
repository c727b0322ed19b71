"""The version of vpt_dense, in one place."""

__version__ = '0.1.0'
