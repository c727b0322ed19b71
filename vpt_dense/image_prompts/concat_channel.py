"""Learnt channels behind those of the image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_choice, check_count
from vpt_dense.image_prompts.base import ImagePrompt, resize
from vpt_dense.parts import register


@register
class ConcatChannelPrompt(ImagePrompt):
    """p learnt image channels behind those of the image (``concat-channel``, "below").

    Visual prompt tuning (Jia et al., ECCV 2022, https://arxiv.org/abs/2203.12119, the ablation of
    prompt locations). The first convolution of the backbone gets p more input channels: pretrained
    weights fill those of the image, the others stay at their random start, and ``trainable`` names
    the whole convolution (``methods/concat-channel.py`` does for every family). p H W pixels are
    learnt, beside the convolution.

    ``form='normalised'``: pixels are learnt in 0..1, start at U(0, 1) and are normalised with the
    average of the image channels' means and standard deviations. It is the original's form for
    ResNet and ConvNeXt. ``form='original'``: the original's for a ViT. The channels enter the
    convolution as they are, beside the normalised image; they and their part of its kernel start
    at U(-v, v), v = sqrt(6 / (3 * ph * pw + C)), for patches of ph x pw pixels and the width C. The
    two compute the same functions; gradients of the channels are 255 / std times as large in the
    first (4.4 times).

    For images of another size than the training images the channels are resized, bilinearly.

    Args:
        num_channels: p, at least 1.
        form: 'normalised' or 'original'; the latter for ViT and Swin alone, without ``mean`` and
            ``std``.
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

    keeps_size = False

    def __init__(
        self,
        num_channels: int,
        img_size: Sequence[int],
        form: str = 'normalised',
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(img_size, in_channels, mean, std, init_cfg)
        self.extra_channels = check_count(num_channels, 'image_prompt.num_channels')
        self.form = check_choice(form, 'image_prompt.form', ('normalised', 'original'))
        start = torch.rand if form == 'normalised' else torch.zeros  # until the backbone is known
        self.maps = nn.Parameter(start(1, num_channels, *self.img_size))

    def start_in(self, backbone: nn.Module) -> None:
        """See :meth:`ImagePrompt.start_in`.

        Raises:
            ValueError: If the original has another form for this family of backbones.
        """
        if self.form != 'original':
            return
        embedding = getattr(backbone, 'patch_embed', None)
        if embedding is None:
            raise ValueError(
                "image_prompt.form='original' is that of patch embeddings; a "
                f"{type(backbone).__name__} has the original's with form='normalised'"
            )
        kernel = embedding.projection.weight  # (C, in_channels + p, ph, pw)
        bound = math.sqrt(6 / (3 * math.prod(kernel.shape[2:]) + kernel.shape[0]))
        nn.init.uniform_(self.maps, -bound, bound)
        with torch.no_grad():
            kernel[:, self.in_channels :].uniform_(-bound, bound)

    def forward(self, images: Tensor) -> Tensor:
        """See :meth:`ImagePrompt.forward`."""
        maps = resize(self.maps, images.shape[2:])
        if self.form == 'normalised':
            maps = (255 * maps - self.mean.mean()) / self.std.mean()
        # (B, C + p, H, W)
        return torch.cat((images, maps.to(images.dtype).expand(images.shape[0], -1, -1, -1)), dim=1)
