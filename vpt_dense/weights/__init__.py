"""Reading pretrained weights: safely, from several layouts, and strictly."""

from vpt_dense.weights.pretrained import load_pretrained
from vpt_dense.weights.reading import read_state_dict

__all__ = ['load_pretrained', 'read_state_dict']
