"""What the convolutional backbones share."""

from collections.abc import Sequence

from torch import Tensor

from vpt_dense.adapters import Block
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.image_prompts import ImagePrompt


class ConvolutionalBackbone(TunedBackbone):
    """A backbone without tokens and transformer blocks: prompts are in image space alone."""

    embed_dims: int
    depths: Sequence[int]

    @staticmethod
    def check_stages(indices: Sequence[int], stages: int, from_end: bool = False) -> None:
        """Refuse ``out_indices`` that name no stage.

        Raises:
            ValueError: If one is no integer from 0 (``from_end``: from -``stages``) to ``stages``
                - 1.
        """
        least = -stages if from_end else 0
        if any(not isinstance(i, int) or not least <= i < stages for i in indices):
            raise ValueError(
                f'out_indices must be integers from {least} to {stages - 1}, found '
                f'{list(indices)}'
            )

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
            self.check_family('prompt', prompt.get('type'))
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if len(size) != 2 or any(not isinstance(n, int) or n < 1 for n in size):
            raise ValueError(
                f'img_size must be a positive integer or a pair of them, found {img_size!r}')
        front = self.build_image_prompt(image_prompt, size, in_channels)
        return front, in_channels + (0 if front is None else front.extra_channels)

    def blocks(self) -> list[Block]:
        """See :meth:`TunedBackbone.blocks`."""
        return []

    def prompted(self, images: Tensor) -> Tensor:
        """The images, as the stem gets them."""
        return images if self.image_prompt is None else self.image_prompt(images)

    def describe(self) -> str:
        """The backbone in a few words: class, depth and width."""
        return f'{type(self).__name__} of {sum(self.depths)} blocks, width {self.embed_dims}'
