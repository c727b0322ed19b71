"""A linear classifier of patch tokens."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from vpt_dense.heads.losses import UpsampledLoss
from vpt_dense.registry import MODELS


@MODELS.register_module()
class LinearHead(UpsampledLoss, BaseDecodeHead):
    """Batch norm and a 1x1 convolution, the linear evaluation of DINOv2.

    M. Oquab et al., TMLR 2024, https://arxiv.org/abs/2304.07193, section 7.4.

    DINOv2 sends the tokens of each block that it reads through the backbone's last norm. Here
    every token is normalised over its channels without weights: those of that norm, one factor
    and one shift a channel, would be undone by the batch norm. The backbone takes
    ``final_norm=False`` then, and one block or several are treated alike.

    Args:
        in_channels: Channels of the one feature map that is read, or of
            several that are concatenated.
        in_index: Which of the backbone's outputs.
        norm_cfg: Config of the batch norm.
        log_accuracy: bool; see :class:`vpt_dense.heads.losses.UpsampledLoss`. Default: True.
        **kwargs: As in :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`, without
            ``channels`` and ``input_transform``.

    Raises:
        ValueError: If there is not one index for each of ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int | Sequence[int],
        in_index: int | Sequence[int],
        norm_cfg: dict,
        **kwargs,
    ) -> None:
        several = not isinstance(in_channels, int)
        lengths = [len(x) if isinstance(x, Sequence) else None for x in (in_channels, in_index)]
        if lengths[0] != lengths[1]:
            raise ValueError(
                'decode_head.in_channels and in_index must be two integers or two lists of one '
                f'length, found {in_channels!r} and {in_index!r}'
            )
        super().__init__(
            in_channels=in_channels,
            in_index=in_index,
            channels=sum(in_channels) if several else in_channels,
            input_transform='resize_concat' if several else None,
            norm_cfg=norm_cfg,
            **kwargs,
        )
        self.norm = build_norm_layer(norm_cfg, self.channels)[1]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn feature maps, each (B, C, h, w), into class scores (B, num_classes, h, w)."""
        x = self._transform_inputs([normalise_tokens(features) for features in inputs])
        return self.cls_seg(self.norm(x))


def normalise_tokens(x: Tensor) -> Tensor:
    """Bring the channels of every position of (B, C, h, w) to mean 0 and variance 1."""
    return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
