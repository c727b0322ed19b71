"""Testing a classifier with several versions of each image."""

from mmpretrain.models import AverageClsScoreTTA as _AverageClsScoreTTA
from mmpretrain.structures import DataSample

from vpt_dense.registry import MODELS


@MODELS.register_module()
class AverageClsScoreTTA(_AverageClsScoreTTA):
    """mmpretrain's, whose samples have the label of the averaged scores.

    mmpretrain leaves the label that was predicted for the first version; its metrics read the
    scores, but pictures and stored predictions the label. For one label an image.
    """

    def _merge_single_sample(self, data_samples: list[DataSample]) -> DataSample:
        """Merge the versions of one image."""
        sample = super()._merge_single_sample(data_samples)
        return sample.set_pred_label(sample.pred_score.argmax(dim=0))
