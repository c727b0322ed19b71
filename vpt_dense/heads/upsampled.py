"""mmseg's heads whose scores are smaller than the image, with a loss that does not keep them."""

from mmseg.models import decode_heads

from vpt_dense.heads.losses import UpsampledLoss
from vpt_dense.registry import MODELS


@MODELS.register_module()
class UPerHead(UpsampledLoss, decode_heads.UPerHead):
    """mmseg's head of UperNet (T. Xiao et al., ECCV 2018, https://arxiv.org/abs/1807.10221).

    Args:
        log_accuracy: bool; see :class:`vpt_dense.heads.losses.UpsampledLoss`. Default: True.
        **kwargs: As in :class:`mmseg.models.UPerHead`.
    """


@MODELS.register_module()
class FCNHead(UpsampledLoss, decode_heads.FCNHead):
    """mmseg's head of convolutions; with ``num_convs=0`` one linear layer on every position.

    Args:
        log_accuracy: bool; see :class:`vpt_dense.heads.losses.UpsampledLoss`. Default: True.
        **kwargs: As in :class:`mmseg.models.FCNHead`.
    """


@MODELS.register_module()
class SegmenterMaskTransformerHead(UpsampledLoss, decode_heads.SegmenterMaskTransformerHead):
    """mmseg's mask transformer of Segmenter (R. Strudel et al., ICCV 2021, section 3.2).

    https://arxiv.org/abs/2105.05633

    Args:
        log_accuracy: bool; see :class:`vpt_dense.heads.losses.UpsampledLoss`. Default: True.
        **kwargs: As in :class:`mmseg.models.SegmenterMaskTransformerHead`.
    """
