"""mmseg's heads whose scores are smaller than the image, with a loss that does not keep them."""

from mmseg.models import decode_heads
from mmseg.models.utils import Upsample
from torch import Tensor

from vpt_dense.heads.setr import ClassifyFirst
from vpt_dense.overrides import are_of
from vpt_dense.registry import MODELS


class SmallLoss(ClassifyFirst):
    """What these heads do otherwise than mmseg's: the loss of :class:`ClassifyFirst`.

    They have no upsampling of their own; mmseg upsamples their scores in the loss and in testing.

    Args:
        **kwargs: As in :class:`ClassifyFirst` and in mmseg.
    """

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn feature maps, each (B, C, h, w), into class scores (B, num_classes, h, w)."""
        return self.small_scores(inputs)

    def upsamples_last(self) -> bool:
        """See :meth:`ClassifyFirst.upsamples_last`."""
        return are_of(SmallLoss, self, 'forward')

    def small_scores(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`ClassifyFirst.small_scores`."""
        return super(ClassifyFirst, self).forward(inputs)  # mmseg's

    def last_upsampling(self) -> Upsample:
        """See :meth:`ClassifyFirst.last_upsampling`: none."""
        return Upsample(scale_factor=1)


@MODELS.register_module()
class UPerHead(SmallLoss, decode_heads.UPerHead):
    """mmseg's head of UperNet (T. Xiao et al., ECCV 2018, https://arxiv.org/abs/1807.10221).

    Args:
        log_accuracy (bool): See :class:`ClassifyFirst`. Default: True.
        **kwargs: As in :class:`mmseg.models.UPerHead`.
    """


@MODELS.register_module()
class FCNHead(SmallLoss, decode_heads.FCNHead):
    """mmseg's head of convolutions; with ``num_convs=0`` one linear layer on every position.

    Args:
        log_accuracy (bool): See :class:`ClassifyFirst`. Default: True.
        **kwargs: As in :class:`mmseg.models.FCNHead`.
    """


@MODELS.register_module()
class SegmenterMaskTransformerHead(SmallLoss, decode_heads.SegmenterMaskTransformerHead):
    """mmseg's mask transformer of Segmenter (R. Strudel et al., ICCV 2021, section 3.2).

    https://arxiv.org/abs/2105.05633

    Args:
        log_accuracy (bool): See :class:`ClassifyFirst`. Default: True.
        **kwargs: As in :class:`mmseg.models.SegmenterMaskTransformerHead`.
    """
