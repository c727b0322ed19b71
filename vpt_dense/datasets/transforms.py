"""Transforms that mmcv and mmsegmentation do not have."""

from mmcv.transforms import BaseTransform

from vpt_dense.registry import TRANSFORMS


@TRANSFORMS.register_module()
class StrideLabels(BaseTransform):
    """Keeps every n-th pixel of the label map and leaves the image as it is.

    mmsegmentation enlarges logits to the size of the labels before the loss; with many classes
    that costs more than a small backbone does.

    Args:
        stride (int): Distance of the pixels that are kept, in both directions.
    """

    def __init__(self, stride):
        if not isinstance(stride, int) or stride < 1:
            raise ValueError(f'stride must be a positive integer, found {stride!r}')
        self.stride = stride

    def transform(self, results):
        """Shrinks every array named in `seg_fields`.

        Args:
            results (dict): With (H, W) label maps.

        Returns:
            dict: With label maps of (ceil(H / stride), ceil(W / stride)).
        """
        for key in results.get('seg_fields', []):
            results[key] = results[key][:: self.stride, :: self.stride].copy()
        return results
