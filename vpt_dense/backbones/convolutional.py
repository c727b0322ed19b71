"""The base of the convolutional backbones."""

from collections.abc import Sequence

from torch import Tensor

import vpt_dense.weights.guard  # noqa: F401  checkpoints for our backbones are read safely
from vpt_dense.adapters import Block
from vpt_dense.argument_checks import to_pair
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.image_prompts import ImagePrompt


class ConvolutionalBackbone(TunedBackbone):
    """A backbone without tokens and transformer blocks: prompts are in image space alone."""

    embed_dims: int
    depths: Sequence[int]

    def build_front(
        self,
        prompt: dict | None,
        image_prompt: dict | None,
        img_size: int | Sequence[int],
        in_channels: int,
    ) -> tuple[ImagePrompt | None, int]:
        """Build the image prompt, and refuse a token prompt.

        Returns:
            The image prompt, and the channels of what it puts out.
        """
        if prompt is not None:
            self.check_part('prompt', prompt)
        front = self.build_image_prompt(image_prompt, to_pair('img_size', img_size), in_channels)
        return front, in_channels + (0 if front is None else front.extra_channels)

    def block_list(self) -> list[Block]:
        """See :meth:`.TunedBackbone.block_list`."""
        return []

    def prompted(self, images: Tensor) -> Tensor:
        """The images, as the stem gets them."""
        return images if self.image_prompt is None else self.image_prompt(images)

    def describe(self) -> str:
        """The backbone in a few words: class, depth and width."""
        return f'{type(self).__name__} of {sum(self.depths)} blocks, width {self.embed_dims}'
