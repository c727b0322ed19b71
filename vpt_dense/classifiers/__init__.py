"""Parts of classifiers. Needs mmpretrain, so the registry imports it when one is asked for."""

from vpt_dense.classifiers.accuracy import Accuracy
from vpt_dense.classifiers.label_mapping_head import LabelMappingHead
from vpt_dense.classifiers.score_tta import AverageClsScoreTTA

__all__ = ['Accuracy', 'AverageClsScoreTTA', 'LabelMappingHead']
