"""Trains on a part of the labels: every n-th pixel."""

from mmcv.transforms import BaseTransform

from vpt_dense.argument_checks import check_count
from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class StrideLabels(BaseTransform):
    """Keeps every n-th pixel of the label map and leaves the image as it is.

    mmsegmentation enlarges logits to the size of the labels before the loss; with many classes
    that costs more than a small backbone does.

    Args:
        stride: Distance of the pixels that are kept, in both directions.
    """

    def __init__(self, stride: int):
        self.stride = check_count(stride, 'StrideLabels.stride')

    def transform(self, results: dict) -> dict:
        """Shrinks every array named in `seg_fields`.

        Args:
            results: With (H, W) label maps.

        Returns:
            With label maps of (ceil(H / stride), ceil(W / stride)).
        """
        for key in results.get('seg_fields', []):
            results[key] = results[key][:: self.stride, :: self.stride].copy()
        return results
