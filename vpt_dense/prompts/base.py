"""The contract between a prompt and a prompted backbone."""

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available

from vpt_dense.startable import Startable


@dataclass(frozen=True)  # mmengine's configs would take a tuple of names apart
class Site:
    """The blocks of one width that a prompt serves; a backbone has one or several.

    Attributes:
        dims: Width C of these blocks.
        layers: Which they are, counted through all blocks of the backbone.
        num_layers: Number of all its blocks.
        heads: Attention heads of these blocks.
        patch_size: The backbone's patch size (height, width) in pixels.
        first_dims: Width of its first block.
        head_dims: Width d of a head; None: dims / heads.
    """

    dims: int
    layers: range
    num_layers: int
    heads: int
    patch_size: tuple[int, int]
    first_dims: int
    head_dims: int | None = None

    def __post_init__(self) -> None:
        if self.head_dims is None:
            object.__setattr__(self, 'head_dims', self.dims // self.heads)


class TokenLayout(NamedTuple):
    """The parts of a sequence of tokens (B, F + P + N, C).

    Attributes:
        num_first: F, class and register tokens.
        num_prompts: P, prompts that earlier blocks left there.
        grid: (rows, columns) of the N = rows * columns patches.
    """

    num_first: int
    num_prompts: int
    grid: tuple[int, int]

    def prompts(self, x: Tensor) -> Tensor:
        """The prompts among tokens, (B, P, C)."""
        return x[:, self.num_first : self.num_first + self.num_prompts]

    def patches(self, x: Tensor) -> Tensor:
        """The patches among tokens, (B, N, C)."""
        return x[:, self.num_first + self.num_prompts :]

    def maps(self, x: Tensor) -> Tensor:
        """The patches among tokens on their grid, (B, C, rows, columns)."""
        return self.patches(x).transpose(1, 2).unflatten(2, self.grid)

    def put_maps(self, x: Tensor, maps: Tensor) -> Tensor:
        """Tokens, (B, F + P + N, C), with maps (B, C, rows, columns) in the place of patches."""
        patches = maps.flatten(2).transpose(1, 2)  # (B, N, C)
        first = self.num_first + self.num_prompts
        return torch.cat((x[:, :first], patches), dim=1) if first else patches

    def replace(self, x: Tensor, prompts: Tensor | None) -> tuple[Tensor, 'TokenLayout']:
        """Put prompts, (B, P, C), in the place of those among tokens; None: take these out.

        Returns:
            The tokens, (B, F + P + N, C), and what they are.
        """
        first = [x[:, : self.num_first]] if self.num_first else []
        parts = [*first, *([] if prompts is None else [prompts]), self.patches(x)]
        number = 0 if prompts is None else prompts.shape[1]
        tokens = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        return tokens, TokenLayout(self.num_first, number, self.grid)


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Within it operations on the device of a tensor are as precise as their inputs."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()


class Part(Startable, metaclass=ABCMeta):
    """A part that tuning adds to the blocks of a backbone: a prompt or an adapter.

    The backbone calls its methods in the places that they are named after.

    Attributes:
        needs: What a backbone must offer, of :data:`vpt_dense.tuning.OFFERS`; others refuse it.
    """

    needs: frozenset[str] = frozenset({'tokens'})

    def start_from(self, backbone: nn.Module) -> None:
        """Take starting values from the backbone, whose weights have just been initialised.

        Args:
            backbone: The backbone that it belongs to, with its pretrained weights.
        """

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Change the tokens about to enter a block, (B, F + P + N, C).

        Args:
            x: The tokens; prompts are those that earlier blocks left there.
            layer: Index of the block, counted through all stages.
            layout: What the tokens are.
        """
        return x

    def after_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Change what a block puts out, (B, F + P + N, C)."""
        return x

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """Change the features: what the backbone is about to return for a batch of images."""
        return outs


class Prompt(Part):
    """Yields the prompt tokens of a transformer, block by block.

    A prompt knows no backbone: the backbone that builds it fills in ``site``, the blocks that it
    serves, and where its tokens go is the backbone's business (ViT: ``[cls | prompts | patches]``).
    A backbone of several widths builds one prompt for each
    (:class:`vpt_dense.prompts.StagePrompts`).

    Attributes:
        depends_on_input: Whether the tokens depend on ``x`` in eval mode. Those that do not have
            keys and values that can be stored in their place (``tools/delta.py fold``).
        first_layer: The first block that prompts may enter.
        num_tokens: P, how many enter a block.
        least_words: Tokens of a text that it reads behind its own.
        reads_image: Whether it needs :meth:`prepare_for` in place of :meth:`prepare`.
        adds_loss: Whether it has :meth:`penalties`.
        fills: Arguments that a model of two towers fills in.
    """

    depends_on_input = True
    first_layer = 0
    num_tokens = 0
    least_words = 0
    reads_image = False
    adds_loss = False
    fills: frozenset[str] = frozenset()

    def check(self, backbone: nn.Module) -> None:
        """Refuse a backbone whose other settings do not go with this prompt.

        Args:
            backbone: The backbone that this prompt belongs to, when it has frozen what does not
                train.

        Raises:
            ValueError: If so; the message names the key.
        """

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> object:
        """Compute once a forward pass what all blocks share, whatever the images.

        Args:
            embed: The backbone's patch embedding without positions: images (b, 3, h, w) to tokens
                (b, n, C).

        Returns:
            What :meth:`forward` gets as ``prepared`` for every block of this pass. It may be
            changed there: it is of this pass alone.
        """
        return None

    def prepare_query(self, query: Tensor) -> object:
        """Take the place of :meth:`prepare` in prompts that need a 'query'.

        Args:
            query: What the backbone makes of each image without any prompt, (B, C), without
                gradients: the first token behind the last block and norm.

        Returns:
            What :meth:`forward` and :meth:`keys_values` get as ``prepared``.
        """
        raise TypeError(f'{type(self).__name__} asks for no query')

    def penalties(self) -> dict[str, Tensor]:
        """Terms that the last pass in training mode adds to the loss, by their names.

        :class:`vpt_dense.hooks.PromptLossHook` adds them. They are handed out once.
        """
        return {}

    def prepare_for(self, image: Tensor) -> object:
        """As :meth:`prepare`, for texts that are compared with one image.

        Args:
            image: Its embedding, (D,); or those of several, (B, D), each with texts of its own.
        """
        raise TypeError(f'{type(self).__name__} does not depend on an image')

    def order(self, length: int, ends: Tensor) -> Tensor | None:
        """The order of a text's tokens where it is not [start | prompts | words . end].

        Args:
            length: 1 + P + N of the tokens.
            ends: Where the end of each of T texts is without prompts, (T,).

        Returns:
            Of each place the token that comes there, (T, 1 + P + N), int64; None: as they are.
        """
        return None

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: object = None,
        layout: TokenLayout | None = None,
    ) -> Tensor | None:
        """Return the prompt tokens that enter one block.

        Args:
            x: The tokens about to enter the block, (B, N, C), those of earlier prompts included
                unless they were discarded.
            layer: Index of the block, 0 to num_layers - 1.
            prepared: What :meth:`prepare` returned in this pass; None: without it.
            layout: Where in ``x`` prompts and patches are.

        Returns:
            (B, P, C), or (1, P, C) when the tokens do not depend on the input: they take the
            place of the prompts in ``x``. P may be 0 (the prompts in ``x`` are removed). None:
            whatever prompts ``x`` holds flow on as ordinary tokens.
        """

    def keys_values(self, layer: int, prepared: object = None) -> tuple[Tensor, Tensor] | None:
        """Return keys and values that all tokens of a block attend to, beside its tokens.

        Args:
            layer: Index of the block.
            prepared: As :meth:`forward` gets it.

        Returns:
            Two tensors (1, heads, P, C / heads), or (B, ...) where they depend on the images; None:
            there are none beside those of the tokens.
        """
        return None

    def visible(
        self, x: Tensor, layer: int, prepared: object, layout: TokenLayout
    ) -> Tensor | None:
        """Tell which of a block's prompts each token attends to, if not to all.

        For prompts that are keys and values alone, on backbones that offer 'hidden prompts'.

        Args:
            x: The tokens that enter the block, (B, F + N, C).
            layer: Index of the block.
            prepared: As :meth:`forward` gets it.
            layout: What the tokens are.

        Returns:
            (B, F + N, P), bool; None: all tokens attend to all prompts.
        """
        return None

    def leaves(self, layer: int) -> bool:
        """Tell whether prompts are among the tokens behind a block, where none are discarded.

        Asked by backbones that can pool them.

        Args:
            layer: Index of the block.
        """
        return True

    def is_discarded(self, layer: int) -> bool:
        """Tell whether tokens enter a block and what it puts out at their places is discarded.

        The backbone then computes keys and values for them and nothing else.

        Args:
            layer: Index of the block.
        """
        return False
