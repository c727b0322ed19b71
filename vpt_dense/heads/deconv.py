"""Two transposed convolutions and a classifier: the head of ViT-Split."""

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from vpt_dense.argument_checks import is_int
from vpt_dense.heads.losses import UpsampledLoss
from vpt_dense.registry import MODELS

#: Groups of channels that are normalised together, the authors' number.
_GROUPS = 32


@MODELS.register_module()
class DeconvHead(UpsampledLoss, BaseDecodeHead):
    """The head of ViT-Split (Y. Li et al., ICCV 2025, https://arxiv.org/abs/2506.03433).

    A map becomes four times as high and wide by two steps of a transposed 2x2 convolution of stride
    2, a group norm and GELU; then come a batch norm and a 1x1 convolution.

    Args:
        in_channels: Channels C of the map, which stay; divisible by 32.
        in_index: Which of the backbone's outputs.
        norm_cfg: Config of the batch norm.
        log_accuracy: bool; see :class:`vpt_dense.heads.losses.UpsampledLoss`. Default: True.
        **kwargs: As in :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`, without
            ``channels`` and ``input_transform``.

    Raises:
        ValueError: If ``in_channels`` is not such a number.
    """

    def __init__(self, in_channels: int, in_index: int, norm_cfg: dict, **kwargs) -> None:
        if not is_int(in_channels, 1) or in_channels % _GROUPS:
            raise ValueError(
                f'decode_head.in_channels of DeconvHead must be a multiple of {_GROUPS}, found '
                f'{in_channels!r}')
        super().__init__(
            in_channels=in_channels, in_index=in_index, channels=in_channels, norm_cfg=norm_cfg,
            **kwargs)
        self.up = nn.Sequential(*(
            layer for _ in range(2) for layer in (
                nn.ConvTranspose2d(in_channels, in_channels, 2, 2),
                nn.GroupNorm(_GROUPS, in_channels), nn.GELU())))
        self.norm = build_norm_layer(norm_cfg, in_channels)[1]

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn a feature map (B, C, h, w) into class scores (B, num_classes, 4 h, 4 w)."""
        return self.cls_seg(self.norm(self.up(self._transform_inputs(inputs))))
