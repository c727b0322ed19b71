"""A learnt image of low rank that is added to every image."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from vpt_dense.argument_checks import check_count
from vpt_dense.image_prompts.base import ImagePrompt, resize
from vpt_dense.parts import register


@register
class LoRVP(ImagePrompt):
    """Low-rank visual prompt (Jin et al., ICLR 2025, https://arxiv.org/abs/2502.00896, LoR-VP).

    x' = normalise(x + B A) for images x in 0..1, with a matrix B A of rank r for each channel. Our
    images come normalised from values in 0..255, so 255 B A / std is added to them, which is the
    same. B starts at zero and A at N(0, 0.01^2): training starts from the backbone's function.
    r C (H + W) parameters: 5,376 for r = 4 and 224 x 224 pixels.

    For images of another size than the training images B A is resized, bilinearly.

    Args:
        rank: r, at least 1.
        img_size: Filled in by the backbone.
        in_channels: Filled in by the backbone.
        mean: See :class:`vpt_dense.image_prompts.ImagePrompt`.
        std: Likewise.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        left: B, the parameter, (C, H, r).
        right: A, the parameter, (C, r, W).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        img_size: Sequence[int],
        rank: int = 4,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(img_size, in_channels, mean, std, init_cfg)
        check_count(rank, 'image_prompt.rank')
        height, width = self.img_size
        self.left = nn.Parameter(torch.zeros(in_channels, height, rank))
        self.right = nn.Parameter(torch.randn(in_channels, rank, width) * 0.01)

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImagePrompt.forward`."""
        kind = images.device.type  # 'meta' has no autocast
        with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
            added = resize((self.left @ self.right)[None], images.shape[2:])  # (1, C, H, W)
            return images + (255 * added / self.std).to(images.dtype)
