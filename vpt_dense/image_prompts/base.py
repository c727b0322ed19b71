"""The contract between a prompt in image space and a backbone."""

from abc import ABCMeta, abstractmethod
from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor

#: ImageNet's mean and standard deviation, in the 0..255 of our data preprocessors.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class ImagePrompt(BaseModule, metaclass=ABCMeta):
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
        extra_channels: Channels that it adds behind those of the image.
        families: The backbones that it fits, by their ``weights_family``.
    """

    border = 0
    extra_channels = 0
    families: tuple[str, ...] = ('vit', 'swin', 'resnet', 'convnext')

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
        self.mean = tuple(MEAN if mean is None else mean)
        self.std = tuple(STD if std is None else std)

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Change normalised images.

        Args:
            images: (B, in_channels, H, W), any H and W.

        Returns:
            (B, in_channels + extra_channels, H + 2 border, W + 2 border).
        """
