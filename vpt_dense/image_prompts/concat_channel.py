"""Learnt channels behind those of the image."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.arguments import check_count
from vpt_dense.image_prompts.base import ImagePrompt, resize
from vpt_dense.registry import MODELS


@MODELS.register_module()
class ConcatChannelPrompt(ImagePrompt):
    """p learnt image channels behind those of the image (``concat-channel``, "below").

    Visual prompt tuning (Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, the ablation of
    prompt locations). The first convolution of the backbone gets p more input channels: pretrained
    weights fill those of the image, the others stay at their random start, and ``trainable`` names
    the whole convolution (``tuning/concat-channel.py`` does for every family). p H W pixels are
    learnt, beside the convolution.

    Pixels are learnt in 0..1, start at U(0, 1) and are normalised with the average of the image
    channels' means and standard deviations. For images of another size than the training images
    they are resized, bilinearly.

    Args:
        num_channels: p, at least 1.
        img_size: Filled in by the backbone.
        in_channels: Filled in by the backbone.
        mean: See :class:`vpt_dense.image_prompts.ImagePrompt`.
        std: Likewise.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        maps: The parameter, (1, p, H, W).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        num_channels: int,
        img_size: Sequence[int],
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(img_size, in_channels, mean, std, init_cfg)
        self.extra_channels = check_count(num_channels, 'image_prompt.num_channels')
        self.maps = nn.Parameter(torch.rand(1, num_channels, *self.img_size))

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImagePrompt.forward`."""
        maps = resize(self.maps, images.shape[2:])
        maps = (255 * maps - self.mean.mean()) / self.std.mean()
        # (B, C + p, H, W)
        return torch.cat((images, maps.to(images.dtype).expand(len(images), -1, -1, -1)), dim=1)
