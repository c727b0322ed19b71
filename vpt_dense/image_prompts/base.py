"""The contract between a prompt in image space and a backbone."""

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_channels
from vpt_dense.sizes import are_equal
from vpt_dense.startable import Startable

#: ImageNet's mean and standard deviation, in the 0..255 of our data preprocessors.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class ImagePrompt(Startable, metaclass=ABCMeta):
    """Changes the images before the patch embedding or stem of a backbone.

    Args:
        img_size: Training image size (height, width) in pixels. Filled in by the backbone.
        in_channels: Channels of the images. Filled in by the backbone.
        mean: Mean of each channel that the data preprocessor subtracts, in 0..255. None in a
            config: that of ``model.data_preprocessor``.
        std: Standard deviation that it divides by, likewise.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        border: Pixels that :meth:`forward` adds on each side.
        aligned: Whether maps of the backbone must show the image alone, without the border.
        extra_channels: Channels that it adds behind those of the image.
        keeps_size: Whether what it puts out has the size and channels of the image.
        mean: (C, 1, 1), float32, in 0..255.
        std: Likewise.
        needs: What a backbone must offer, of :data:`vpt_dense.tuning.OFFERS`.

    Raises:
        ValueError: If there is not one mean and one standard deviation above 0 for each channel;
            the message names the key.
    """

    border = 0
    aligned = True
    extra_channels = 0
    keeps_size = True
    needs: frozenset[str] = frozenset({'images'})

    def __init__(
        self,
        img_size: Sequence[int],
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.img_size = tuple(img_size)
        self.in_channels = in_channels
        for name, given, usual in (('mean', mean, MEAN), ('std', std, STD)):
            values = check_channels(
                usual if given is None else given, f'image_prompt.{name}', in_channels,
                positive=name == 'std')
            values = torch.tensor(values, dtype=torch.float32)[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def start_in(self, backbone: nn.Module) -> None:
        """Start what hangs on the backbone, which is built; pretrained weights are loaded later."""

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bring pixels of 0..1, (..., C, H, W), to the values that the backbone gets."""
        return (255 * pixels - self.mean) / self.std

    def patch_cfg(self, patch_size: tuple[int, int]) -> dict:
        """Arguments of mmpretrain's ``PatchEmbed`` for images with the border.

        By default it pads images at the lower right to whole patches. Where the border is what
        leaves a remainder, the remainder is dropped instead, as in the original.

        Args:
            patch_size: (height, width) in pixels.
        """
        return dict(padding=0) if any(2 * self.border % size for size in patch_size) else {}

    def check_strides(self, strides: Sequence[tuple[int, int]]) -> None:
        """Refuse a border that cannot be cut off the backbone's maps.

        Args:
            strides: Pixels (height, width) of one place of each map.

        Raises:
            ValueError: If it is no multiple of them and :attr:`aligned` is asked for.
        """
        whole = math.lcm(*(n for stride in strides for n in stride))
        if self.aligned and self.border % whole:
            raise ValueError(
                f'image_prompt.width must be a multiple of the stride of every map ({whole} '
                f'pixels), so that the border can be cut off, found {self.border}; or set '
                'image_prompt.aligned=False to keep it, for a head that pools over maps'
            )

    def crop(
        self, maps: Sequence[Tensor], strides: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, ...]:
        """Cut the border off maps, each (B, C, h, w).

        Args:
            maps: Maps of the image with its border.
            strides: As in :meth:`check_strides`, which has let them pass.

        Returns:
            Maps of the image; the same with ``aligned=False``.
        """
        if not (self.border and self.aligned):
            return tuple(maps)
        cropped = []
        for each, stride in zip(maps, strides, strict=True):
            top, left = (self.border // n for n in stride)
            cropped.append(each[..., top : each.shape[-2] - top, left : each.shape[-1] - left])
        return tuple(cropped)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Change normalised images.

        Args:
            images: (B, in_channels, H, W), any H and W.

        Returns:
            (B, in_channels + extra_channels, H + 2 border, W + 2 border).
        """


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (b, C, h, w) bilinearly (half-pixel centres) to (height, width), if it is another."""
    if are_equal(maps.shape[2:], size):
        return maps
    return F.interpolate(maps, tuple(size), mode='bilinear', align_corners=False)
