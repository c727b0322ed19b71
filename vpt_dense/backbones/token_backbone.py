"""The base of the backbones made of transformer blocks: the loop over the blocks."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import vpt_dense.weights.guard  # noqa: F401  checkpoints for our backbones are read safely
from vpt_dense.argument_checks import to_pair
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned_block import TunedBlock
from vpt_dense.image_prompts import ImagePrompt
from vpt_dense.prompts import TokenLayout
from vpt_dense.sizes import resize_positions


class TokenBackbone(TokenTuning):
    """A backbone of transformer blocks, with prompts among its tokens.

    A family says what one of its blocks is (:attr:`block_class`) and where they are
    (:meth:`named_blocks`), how images become tokens (:meth:`embed`), what a block needs beside
    them (:meth:`block_arguments`), and what happens between blocks and is returned
    (:meth:`leave_block`). In its ``__init__`` it calls :meth:`build_front` before its parent's and
    :meth:`tune` at the end.

    Attributes:
        block_class: What the blocks of the parent become.
        pos_embed_name: Name of the position embedding, (1, num_extra_tokens + N, C).
    """

    block_class: type[TunedBlock]
    pos_embed_name: str
    num_extra_tokens: int

    def adopt_block(self, block: TunedBlock) -> None:
        """See :meth:`.TokenTuning.adopt_block`."""
        self.block_class.adopt(block)

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, TokenLayout]:
        """Turn images (B, 3, H, W) into the tokens that enter the first block, (B, F + N, C)."""

    @abstractmethod
    def leave_block(
        self, x: Tensor, i: int, layout: TokenLayout, outs: list[Tensor]
    ) -> tuple[Tensor, TokenLayout]:
        """Do what follows a block: norms, merging of patches, outputs, which it adds to ``outs``.

        Args:
            x: The tokens behind block i, (B, F + P + N, C).
            i: Index of the block.
            layout: What they are.
            outs: The outputs so far.

        Returns:
            The tokens that enter the next block, and what they are.
        """

    def block_arguments(self, grid: tuple[int, int]) -> tuple[Any, ...]:
        """Arguments of the blocks after the tokens; computed once for a grid of patches."""
        return ()

    def add_positions(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Add the position embedding, resized to the grid, to cls and patches, (B, cls + N, C)."""
        return x + resize_positions(
            getattr(self, self.pos_embed_name), self.patch_resolution, grid,
            self.interpolate_mode, self.num_extra_tokens,
        )

    def build_front(
        self,
        image_prompt: dict | None,
        img_size: int | Sequence[int],
        patch_size: int | Sequence[int],
        in_channels: int,
        patch_cfg: dict,
    ) -> tuple[ImagePrompt | None, dict[str, Any]]:
        """Build the image prompt.

        Returns:
            It, and those four arguments as the parent needs them, for what it puts out.
        """
        image_hw, patch_hw = to_pair('img_size', img_size), to_pair('patch_size', patch_size)
        front = self.build_image_prompt(image_prompt, image_hw, in_channels)
        if front is not None:
            image_hw = tuple(n + 2 * front.border for n in image_hw)
            in_channels += front.extra_channels
            patch_cfg = {**front.patch_cfg(patch_hw), **patch_cfg}
        return front, dict(
            img_size=image_hw, patch_size=patch_hw, in_channels=in_channels, patch_cfg=patch_cfg)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of a batch of images.

        Args:
            x: Images, (B, in_channels, H, W).

        Returns:
            What the family puts out; prompts are never among it. F being the tokens in front (cls
            and registers) and N the patches, a block sees ``[first | prompts | patches]``. Behind
            it what :meth:`.Guests.outputs` says, where a head has been invited.
        """
        images, prompt, changes = x, self.prompt, self.changes()
        kept = None if self.feature_cache is None else self.feature_cache.open(images)
        x = images if self.image_prompt is None else self.image_prompt(images)
        x, layout = self.embed(x)  # (B, F + N, C)
        if prompt is None:
            prepared = None
        elif 'query' in prompt.needs:
            prepared = prompt.prepare_query(self.query(x, layout))
        else:
            prepared = prompt.prepare(self.embed_patches)
        outs: list[Tensor] = []
        grid, guests = None, self.guests()
        for i, (_, block) in enumerate(self.named_blocks()):
            if layout.grid != grid:
                grid = layout.grid
                needed = self.block_arguments(grid)
            if guests is not None:
                x, layout = guests.enter(x, i, layout)  # (B, F + Q + P + N, C)
            x, layout, arguments = self.enter_block(x, i, layout, prepared)
            if guests is not None:
                arguments |= guests.arguments(layout)
            through = partial(self._through, block, i, layout, needed, arguments)
            x = through(x) if kept is None else kept.through(i, x, partial(through, x))
            if guests is not None:
                x, layout = guests.leave(x, i, layout)
            x, layout = self.leave_block(x, i, layout, outs)
        features = self.crop_border(outs)
        for change in changes:
            features = change.after_backbone(features, images)
        return features if guests is None else (*features, *guests.outputs())

    @torch.no_grad()
    def query(self, x: Tensor, layout: TokenLayout) -> Tensor:
        """What the blocks make of tokens without prompts: the first token behind them.

        Args:
            x: The tokens that enter the first block, (B, F + N, C).
            layout: What they are.

        Returns:
            (B, C), behind the last block and norm; the mean of the patches if no token is first.
        """
        needed = self.block_arguments(layout.grid)
        for i, (_, block) in enumerate(self.named_blocks()):
            x, layout = self.leave_block(block(x, *needed), i, layout, [])
        return x[:, 0] if layout.num_first else layout.patches(x).mean(dim=1)

    def _through(
        self, block: TunedBlock, i: int, layout: TokenLayout, needed: tuple, arguments: dict,
        x: Tensor,
    ) -> Tensor:  # fmt: skip
        """Let tokens pass a block, and what acts behind it."""
        x = block(x, *needed, **arguments)
        if 'only_first' not in arguments:
            for change in self.changes():
                x = change.after_block(x, i, layout)
        return x

