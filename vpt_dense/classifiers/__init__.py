"""Classification heads. Needs mmpretrain, so the registry imports it when one is asked for."""

from vpt_dense.classifiers.label_mapping_head import LabelMappingHead

__all__ = ['LabelMappingHead']
