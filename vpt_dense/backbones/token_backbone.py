"""The base of the backbones made of transformer blocks: the loop over the blocks."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

import vpt_dense.weights.guard  # noqa: F401  checkpoints for our backbones are read safely
from vpt_dense.adapters import Block
from vpt_dense.argument_checks import check_choice, to_pair
from vpt_dense.backbones.beside import quietly, spread
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.backbones.tuned_block import TunedBlock, what_to_recompute
from vpt_dense.image_prompts import ImagePrompt
from vpt_dense.parts import build
from vpt_dense.prompts import Site, StagePrompts, TokenLayout
from vpt_dense.sizes import resize_positions


class TokenBackbone(TunedBackbone):
    """A backbone of transformer blocks, with prompts among its tokens.

    A family says what one of its blocks is (:attr:`block_class`) and where they are
    (:meth:`named_blocks`), how images become tokens (:meth:`embed`), what a block needs beside
    them (:meth:`block_arguments`), and what happens between blocks and is returned
    (:meth:`leave_block`). In its ``__init__`` it calls :meth:`build_front` before its parent's and
    :meth:`tune` at the end.

    Attributes:
        block_class: What the blocks of the parent become.
        pos_embed_name: Name of the position embedding, (1, num_extra_tokens + N, C).
        keys_values_layers: The blocks whose prompts are keys and values.
    """

    offers = frozenset({'images', 'tokens', 'one width', 'open sizes'})
    block_class: type[TunedBlock]
    pos_embed_name: str
    num_extra_tokens: int

    @abstractmethod
    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """The blocks in order, each with its name among the modules."""

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

    def reads_prompts(self, i: int) -> bool:
        """Whether the outputs of block i are made of its prompts too."""
        return False

    def reads_only_first(self, i: int) -> bool:
        """Whether nothing reads what block i puts out but the first token."""
        return False

    def blocks(self) -> list[Block]:
        """See :meth:`TunedBackbone.blocks`."""
        return [Block(name=n, module=b, **b.parts()) for n, b in self.named_blocks()]

    def sites(self) -> list[Site]:
        """Its runs of blocks of one width; one if it offers 'one width'."""
        found = [(block.embed_dims, block.num_heads) for block in self.blocks()]
        patch = tuple(self.patch_embed.projection.kernel_size)
        sites, start = [], 0
        for (dims, heads), run in groupby(found):
            layers = range(start, start := start + len(list(run)))
            sites.append(Site(dims, layers, len(found), heads, patch, found[0][0]))
        return sites

    def read_blocks(self) -> list[Block]:
        """The blocks whose patches something behind them reads."""
        return self.blocks()

    @abstractmethod
    def out_dims(self) -> list[int]:
        """Widths of the maps or vectors that it puts out; empty: it puts out neither."""

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

    def tune(
        self,
        prompt: dict | None,
        image_prompt: ImagePrompt | None,
        adapters: Sequence[dict] | None,
        trainable: Sequence[str] | None,
        prompts_as: str = 'keys_values',
        memory: str = 'default',
        with_cp: bool = False,
    ) -> None:
        """Make the blocks ours, then as :meth:`TunedBackbone.tune`.

        Args:
            prompt: Config of the token prompt.
            image_prompt: As there.
            adapters: As there.
            trainable: As there.
            prompts_as: 'keys_values' or 'tokens'.
            memory: 'default' or 'lean'.
            with_cp: Recompute every block in backward from its input, where the blocks of the
                parent do not know.

        Raises:
            ValueError: As there, or if one of the others is out of its range.
        """
        blocks = [block for _, block in self.named_blocks()]
        for block in blocks:
            self.block_class.adopt(block)
            block.recompute = what_to_recompute(memory, getattr(block, 'with_cp', with_cp))
        built = None
        if prompt is not None:
            self.check_part('prompt', prompt)
            sites = self.sites()
            built = (
                build(prompt, site=sites[0])
                if 'one width' in self.offers else StagePrompts(prompt, sites)
            )
        check_choice(prompts_as, 'prompts_as', ('keys_values', 'tokens'))
        self.keys_values_layers = [
            i for i in range(len(blocks))
            if prompts_as == 'keys_values' and built is not None and built.is_discarded(i)
            and not self.reads_prompts(i)
        ]
        super().tune(built, image_prompt, adapters, trainable)
        for i, block in enumerate(blocks):
            block.adapters, block.index = tuple(self.adapters), i

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the features of a batch of images.

        Args:
            x: Images, (B, in_channels, H, W).

        Returns:
            What the family puts out; prompts are never among it. F being the tokens in front (cls
            and registers) and N the patches, a block sees ``[first | prompts | patches]``.
        """
        images = x
        prompt, changes = self.prompt, list(self.adapters)
        if prompt is not None:
            changes.append(prompt)
        x = images if self.image_prompt is None else self.image_prompt(images)
        x, layout = self.embed(x)  # (B, F + N, C)
        prepared = None if prompt is None else prompt.prepare(self.embed_patches)
        outs: list[Tensor] = []
        grid = None
        for i, (_, block) in enumerate(self.named_blocks()):
            if layout.grid != grid:
                grid = layout.grid
                needed = self.block_arguments(grid)
            arguments: dict[str, Any] = {}
            for change in changes:
                x = change.before_block(x, i, layout)
            if prompt is not None:
                tokens = prompt(x, i, prepared, layout)  # (B or 1, P, C)
                arguments['keys_values'] = prompt.keys_values(i)
                if i in self.keys_values_layers:
                    arguments['prompts'] = tokens
                    if layout.num_prompts:  # those of earlier blocks end here
                        x, layout = layout.replace(x, None)  # (B, F + N, C)
                    if self.reads_only_first(i):
                        arguments['only_first'] = True
                elif tokens is not None:
                    tokens = spread(tokens, x.shape[0]).to(x.dtype)
                    x, layout = layout.replace(x, tokens)  # (B, F + P + N, C)
            x = block(x, *needed, **arguments)
            if 'only_first' not in arguments:
                for change in changes:
                    x = change.after_block(x, i, layout)
            x, layout = self.leave_block(x, i, layout, outs)
        features = self.crop_border(outs)
        for change in changes:
            features = change.after_backbone(features, images)
        return features

    def embed_patches(self, images: Tensor) -> Tensor:
        """Images (b, 3, h, w) to patch tokens (b, n, C), without positions."""
        return self.patch_embed(images)[0]

    def prompt_keys_values(self, x: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """Compute all keys and values of the prompts of a block whose outputs are discarded.

        Args:
            x: Tells type and device of tokens; prompts that depend on it have no such keys.
            i: Index of the block, one of :attr:`keys_values_layers`.

        Returns:
            Two tensors (1, heads, P, C / heads).
        """
        tokens, own = self.prompt(x, i), self.prompt.keys_values(i)
        parts = [] if own is None else [own]
        if tokens is not None:
            block = self.blocks()[i]
            projected = quietly(block.qkv, quietly(block.norm1, tokens.to(x.dtype)))
            split = projected.unflatten(-1, (3, block.num_heads, -1)).permute(2, 0, 3, 1, 4)
            parts.append((split[1], split[2]))
        keys, values = (torch.cat(same, dim=2) for same in zip(*parts, strict=True))
        return keys, values

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        if self.prompt is None:
            return ''
        layers = self.keys_values_layers
        return f'prompts as keys and values in layers {layers}' if layers else 'prompts as tokens'
