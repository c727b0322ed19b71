"""Decode heads. Needs mmseg, so the registry imports it when one of them is asked for."""

from vpt_dense.heads.setr import SETRMLAHead, SETRUPHead

__all__ = ['SETRMLAHead', 'SETRUPHead']
