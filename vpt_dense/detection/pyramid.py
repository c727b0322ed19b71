"""A feature pyramid for backbones of one scale."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.registry import MODELS

#: What a scale is made with.
SCALES = (4, 2, 1, 0.5)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of maps (B, C, H, W), at each place."""

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`torch.nn.LayerNorm`."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The simple feature pyramid of ViTDet (Li et al., ECCV 2022, https://arxiv.org/abs/2203.16527).

    The last map of a plain backbone, at stride P, becomes maps of several scales: 4 times as large
    by two transposed convolutions of 2x2 with a layer norm and a GELU between them, twice by one,
    the map itself, half of it by max pooling. Each then passes a convolution of 1x1 and one of 3x3,
    each with a layer norm behind. Further levels are every second place of the one before.

    The strides are P / scale. Heads that are told none take them from here
    (:func:`vpt_dense.detection.settings.place`).

    Args:
        in_channels: Channels of the last map.
        out_channels: Of every level.
        scales: Of 4, 2, 1 and 0.5, from the largest to the smallest.
        num_outs: Levels; at least as many as scales. None: one more than scales.
        init_cfg: See :class:`mmengine.model.BaseModule`. None: PyTorch's start.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 256, scales: Sequence[float] = SCALES,
        num_outs: int | None = None, init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        wrong = [scale for scale in scales if scale not in SCALES]
        if wrong or not scales or sorted(set(scales), reverse=True) != list(scales):
            raise ValueError(
                f'SimpleFeaturePyramid: scales must be some of {SCALES}, each once and in this '
                f'order, not {tuple(scales)}')
        check_count(in_channels, 'SimpleFeaturePyramid: in_channels')
        check_count(out_channels, 'SimpleFeaturePyramid: out_channels')
        self.scales = tuple(scales)
        self.num_outs = len(scales) + 1 if num_outs is None else num_outs
        check_count(self.num_outs, 'SimpleFeaturePyramid: num_outs', len(scales))
        self.in_channels = in_channels
        self.levels = nn.ModuleList(
            nn.Sequential(*_scaled(in_channels, scale, out_channels)) for scale in scales)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Make the pyramid of the last of some maps.

        Args:
            inputs: (B, in_channels, H, W) is the last.

        Returns:
            ``num_outs`` maps (B, out_channels, H * scale, W * scale), rounded down where halved.

        Raises:
            ValueError: If the last input is no map.
        """
        x = inputs[-1]
        if x.ndim != 4:
            raise ValueError(
                f'SimpleFeaturePyramid takes maps (B, C, H, W), found {tuple(x.shape)}; set '
                "model.backbone.out_type='featmap'")
        outs = [level(x) for level in self.levels]
        while len(outs) < self.num_outs:
            outs.append(outs[-1][:, :, ::2, ::2])
        return tuple(out.contiguous() for out in outs)  # heads take views


def _scaled(channels: int, scale: float, out: int) -> list[nn.Module]:
    """What turns the map into a level."""
    up: list[nn.Module] = []
    half, quarter = max(channels // 2, 1), max(channels // 4, 1)
    if scale == 4:
        up = [nn.ConvTranspose2d(channels, half, 2, 2), LayerNorm2d(half, 1e-6), nn.GELU(),
              nn.ConvTranspose2d(half, quarter, 2, 2)]
    elif scale == 2:
        up = [nn.ConvTranspose2d(channels, half, 2, 2)]
    elif scale == 0.5:
        up = [nn.MaxPool2d(2, 2)]
    width = {4: quarter, 2: half}.get(scale, channels)
    return [
        *up, nn.Conv2d(width, out, 1, bias=False), LayerNorm2d(out, 1e-6),
        nn.Conv2d(out, out, 3, padding=1, bias=False), LayerNorm2d(out, 1e-6)]
