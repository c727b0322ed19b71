"""Pretrained weights: read safely, from many formats, and strictly."""

from vpt_dense.weights.pretrained import Converted, compute
from vpt_dense.weights.reading import read_state_dict

__all__ = ['Converted', 'compute', 'read_state_dict']
