"""What backbones of transformer blocks share: their blocks, and what enters one."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from vpt_dense.adapters import Block
from vpt_dense.argument_checks import check_choice
from vpt_dense.backbones.beside import quietly, spread
from vpt_dense.backbones.guests import Guests
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.backbones.tuned_block import TunedBlock, what_to_recompute
from vpt_dense.image_prompts import ImagePrompt
from vpt_dense.parts import build
from vpt_dense.prompts import Site, StagePrompts, TokenLayout


class TokenTuning(TunedBackbone):
    """A backbone of transformer blocks, with prompts among its tokens.

    A family says what one of its blocks is (:meth:`adopt_block`) and where they are
    (:meth:`named_blocks`).

    Attributes:
        keys_values_layers: The blocks whose prompts are keys and values.
        recompute: What its blocks recompute in backward, see :class:`.TunedBlock`.
        feature_cache: Keeps what the frozen blocks in front make of each image; None: nothing does.
        last_norm_key: The argument that switches on :meth:`last_norm`.
    """

    offers = frozenset({
        'images', 'tokens', 'one width', 'open sizes', 'grid', 'patches', 'parts',
        'keys and values', 'outputs'})
    keys_values_layers: list[int]
    feature_cache: Any = None
    last_norm_key = 'final_norm'

    @abstractmethod
    def named_blocks(self) -> list[tuple[str, TunedBlock]]:
        """The blocks in order, each with its name among the modules."""

    @abstractmethod
    def adopt_block(self, block: TunedBlock) -> None:
        """Make a block of the parent one that takes prompts and adapters, in place."""

    def reads_prompts(self, i: int) -> bool:
        """Whether the outputs of block i are made of its prompts too."""
        return False

    def reads_only_first(self, i: int) -> bool:
        """Whether nothing reads what block i puts out but the first token."""
        return False

    def block_list(self) -> list[Block]:
        """See :meth:`.TunedBackbone.block_list`."""
        return [Block(name=n, module=b, **b.parts()) for n, b in self.named_blocks()]

    def sites(self) -> list[Site]:
        """Its runs of blocks of one width; one if it offers 'one width'."""
        found = [
            (block.embed_dims, block.num_heads, block.head_dims) for block in self.block_list()]
        patch = self.patch_size_pixels()
        sites, start = [], 0
        for (dims, heads, head_dims), run in groupby(found):
            layers = range(start, start := start + len(list(run)))
            sites.append(Site(dims, layers, len(found), heads, patch, found[0][0], head_dims))
        return sites

    def patch_size_pixels(self) -> tuple[int, int]:
        """Height and width of a patch."""
        return tuple(self.patch_layers()[0].kernel_size)

    def output_blocks(self) -> list[int]:
        """Indices of the blocks whose tokens are put out."""
        return list(self.out_indices)

    def read_blocks(self) -> list[Block]:
        """The blocks whose patches something behind them reads."""
        return self.block_list()

    @abstractmethod
    def out_dims(self) -> list[int]:
        """Widths of the maps or vectors that it puts out; empty: it puts out neither."""

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
        """Make the blocks ours, then as :meth:`.TunedBackbone.tune`.

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
            self.adopt_block(block)
            block.recompute = what_to_recompute(memory, getattr(block, 'with_cp', with_cp))
        self.recompute = what_to_recompute(memory, with_cp)
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
            and blocks[i].takes_keys_values and not self.reads_prompts(i)
        ]
        super().tune(built, image_prompt, adapters, trainable)
        for i, block in enumerate(blocks):
            block.adapters, block.index = tuple(self.adapters), i

    def invite(self, head: nn.Module) -> None:
        """See :meth:`.TunedBackbone.invite`."""
        super().invite(head)
        name, last = type(head).__name__, len(self.named_blocks()) - 1
        if head.num_blocks > last:
            raise ValueError(
                f'decode_head.num_blocks must be at most {last}, found {head.num_blocks}: the '
                f'backbone has {last + 1} blocks')
        if self.out_type != 'featmap' or self.output_blocks() != [last]:
            raise ValueError(
                f"decode_head: {name} needs backbone.out_type='featmap' and out_indices=[{last}], "
                f'found {self.out_type!r} and {self.output_blocks()}')
        if self.last_norm() is None:
            raise ValueError(
                f'decode_head: {name} reads tokens behind the last norm; set '
                f'backbone.{self.last_norm_key}=True')
        if self.image_prompt is not None and self.image_prompt.border:
            raise ValueError(
                f'decode_head: {name} cannot crop the border of '
                f'{type(self.image_prompt).__name__} off its masks; leave image_prompt out')

    def last_norm(self) -> nn.Module | None:
        """The norm behind the last block; None: what is put out passes none."""
        return None

    def guests(self) -> Guests | None:
        """The queries that pass the last blocks, for one pass; None: there are none."""
        if not self.guest:
            return None
        (head,) = self.guest
        return Guests(head, len(self.named_blocks()) - head.num_blocks, self.last_norm())

    def changes(self) -> list:
        """What acts on the tokens between the blocks, in order: the adapters, then the prompt."""
        return [*self.adapters, *([] if self.prompt is None else [self.prompt])]

    def enter_block(
        self, x: Tensor, i: int, layout: TokenLayout, prepared: object
    ) -> tuple[Tensor, TokenLayout, dict[str, Any]]:
        """Do what comes before a block: changes of its tokens, and its prompts.

        Args:
            x: The tokens in front of block i, (B, F + P + N, C).
            i: Index of the block.
            layout: What they are.
            prepared: What the prompt has prepared for this pass.

        Returns:
            The tokens that enter, what they are, and further arguments of the block.
        """
        for change in self.changes():
            x = change.before_block(x, i, layout)
        if self.prompt is None:
            return x, layout, dict(layout=layout)
        arguments: dict[str, Any] = {}
        tokens = self.prompt_tokens(x, i, prepared, layout)  # (B or 1, P, C)
        further = self.prompt.keys_values(i, prepared)
        if further is not None:
            arguments['keys_values'] = further
        if i in self.keys_values_layers:
            if tokens is not None:
                arguments['prompts'] = tokens
            if layout.num_prompts:  # those of earlier blocks end here
                x, layout = layout.replace(x, None)  # (B, F + N, C)
            if 'hidden prompts' in self.offers:
                visible = self.prompt.visible(x, i, prepared, layout)
                if visible is not None:
                    arguments['visible'] = visible
            if self.reads_only_first(i):
                arguments['only_first'] = True
        elif tokens is not None:
            tokens = spread(tokens, x.shape[0]).to(x.dtype)
            x, layout = layout.replace(x, tokens)  # (B, F + P + N, C)
        arguments['layout'] = layout
        return x, layout, arguments

    def prompt_tokens(
        self, x: Tensor, i: int, prepared: object = None, layout: TokenLayout | None = None
    ) -> Tensor | None:
        """The prompt's tokens as they enter block i; see ``Prompt.forward``."""
        return self.prompt(x, i, prepared, layout)

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
        tokens, own = self.prompt_tokens(x, i), self.prompt.keys_values(i)
        parts = [] if own is None else [own]
        if tokens is not None:
            block = self.block_list()[i]
            own = tokens.to(x.dtype)
            own = quietly(block.norm1, own) if block.prenorm else own
            parts.append(block.keys_values(own, quietly))
        keys, values = (torch.cat(same, dim=2) for same in zip(*parts, strict=True))
        return keys, values

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        if self.prompt is None:
            return ''
        layers = self.keys_values_layers
        return f'prompts as keys and values in layers {layers}' if layers else 'prompts as tokens'
