"""A learnt border around the image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_flag
from vpt_dense.image_prompts.base import ImagePrompt, resize
from vpt_dense.parts import register


@register
class PadPrompt(ImagePrompt):
    """A learnt border of p pixels on each side of the image (``pad``).

    Visual prompt tuning (Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, the ablation of
    prompt locations; its method for convolutional networks). The pixels are learnt in 0..1, start
    at U(0, 1) and are normalised as the image is; 2 p C (H + W + 2 p) of them for images of H x W
    pixels and C channels.

    For images of another size than the training images the strips are resized along their length,
    bilinearly; their width stays.

    Args:
        width: p, in pixels, at least 1.
        aligned: Cut the border off the backbone's maps, so that they show the image alone, which
            needs p to be a multiple of the stride of every map. False: maps keep it, for heads
            that pool over them, where any p will do. Outputs that are no maps (cls token, pooled
            features) are made of image and border in both cases.
        img_size: Filled in by the backbone.
        in_channels: Filled in by the backbone.
        mean: See :class:`vpt_dense.image_prompts.ImagePrompt`.
        std: Likewise.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        top_bottom: The parameter, (1, C, 2 p, W + 2 p): p rows above the image, p below.
        left_right: The parameter, (1, C, H, 2 p): p columns to the left of it, p to the right.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    keeps_size = False

    def __init__(
        self,
        width: int,
        img_size: Sequence[int],
        aligned: bool = True,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(img_size, in_channels, mean, std, init_cfg)
        self.border = p = check_count(width, 'image_prompt.width')
        self.aligned = check_flag(aligned, 'image_prompt.aligned')
        height, length = self.img_size
        self.top_bottom = nn.Parameter(torch.rand(1, in_channels, 2 * p, length + 2 * p))
        self.left_right = nn.Parameter(torch.rand(1, in_channels, height, 2 * p))

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImagePrompt.forward`."""
        p = self.border
        height, width = images.shape[2:]
        rows = self.normalise(resize(self.top_bottom, (2 * p, width + 2 * p)))
        columns = self.normalise(resize(self.left_right, (height, 2 * p)))
        rows, columns = (
            strip.to(images.dtype).expand(images.shape[0], -1, -1, -1) for strip in (rows, columns)
        )
        middle = torch.cat((columns[..., :p], images, columns[..., p:]), dim=3)
        # (B, C, H + 2 p, W + 2 p)
        return torch.cat((rows[:, :, :p], middle, rows[:, :, p:]), dim=2)
