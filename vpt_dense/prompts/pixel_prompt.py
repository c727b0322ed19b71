"""Prompt tokens that are learnt as pixels."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_channels, check_choice, check_count
from vpt_dense.image_prompts.base import MEAN, STD
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout


@register
class PixelPrompt(Prompt):
    """Prompts in front of the patch embedding (VPT, https://arxiv.org/abs/2203.12119, section 4.3).

    The paper's "prepend-pixel": P patches of pixels go through the backbone's own (frozen) patch
    embedding, with its bias, and enter the first block as prompt tokens without a position. What
    the blocks put out at their places flows on (shallow). There is no dropout.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        start: How the pixels, which are those of normalised images, start. 'uniform': U(-v, v),
            v = sqrt(6 / (3 * ph * pw + C)), as in the paper; 'normal': N(0, 1); 'image': U(0, 1),
            normalised as images of that range are.
        in_channels: Channels of the images that reach the patch embedding.
        mean: Mean of each channel that the data preprocessor subtracts, in 0..255, for
            ``start='image'``. None in a config: that of ``model.data_preprocessor``, else
            ImageNet's.
        std: Standard deviation that it divides by, likewise.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        pixels: The parameter, (1, in_channels, ph, P * pw).

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width', 'patches'})
    depends_on_input = False

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        start: str = 'uniform',
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_count(num_tokens, 'prompt.num_tokens')
        check_count(in_channels, 'prompt.in_channels')
        self.num_tokens = num_tokens
        self.in_channels = in_channels
        self.start = check_choice(start, 'prompt.start', ('uniform', 'normal', 'image'))
        height, width = site.patch_size
        self.pixels = nn.Parameter(torch.empty(1, in_channels, height, num_tokens * width))
        if start == 'uniform':
            bound = math.sqrt(6 / (3 * height * width + site.dims))
            nn.init.uniform_(self.pixels, -bound, bound)
        elif start == 'normal':
            nn.init.normal_(self.pixels)
        else:
            mean, std = (
                torch.tensor(check_channels(
                    usual if value is None else value, f'prompt.{key}', in_channels,
                    positive=key == 'std'), dtype=torch.float32)[:, None, None]
                for key, value, usual in (('mean', mean, MEAN), ('std', std, STD))
            )
            with torch.no_grad():
                self.pixels.uniform_().mul_(255).sub_(mean).div_(std)

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: the patch embedding takes images of as many channels."""
        channels = backbone.patch_layers()[0].in_channels
        if self.in_channels != channels:
            raise ValueError(
                f'prompt.in_channels is {self.in_channels}, but the patch embedding takes '
                f'images of {channels} channels'
            )

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Embed the pixels, (1, P, C)."""
        return embed(self.pixels)

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: Tensor | None = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`; the tokens come from :meth:`prepare`."""
        return prepared if layer == 0 else None

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'num_tokens={self.num_tokens}, start={self.start}'
