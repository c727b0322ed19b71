"""The contract between a prompt and a prompted backbone."""

from abc import ABCMeta, abstractmethod

from mmengine.model import BaseModule
from torch import Tensor


class Prompt(BaseModule, metaclass=ABCMeta):
    """Yields the prompt tokens of a transformer, block by block.

    A prompt knows no backbone: it is told the width and depth that it serves when the backbone
    builds it (``embed_dims``, ``num_layers`` and ``patch_size`` are filled in), and where its
    tokens go is the backbone's business (ViT: ``[cls | prompts | patches]``).

    Attributes:
        depends_on_input: Whether the tokens depend on ``x`` in eval mode. Those that do not may be
            computed once for all inputs.
    """

    depends_on_input = True

    def prepare(self) -> object:
        """Compute once a forward pass what all blocks share, whatever the images.

        Returns:
            What :meth:`forward` gets as ``prepared`` for every block of this pass.
        """
        return None

    @abstractmethod
    def forward(self, x: Tensor, layer: int, prepared: object = None) -> Tensor | None:
        """Return the prompt tokens that enter one block.

        Args:
            x: The tokens about to enter the block, (B, N, C), those of earlier prompts included
                unless they were discarded.
            layer: Index of the block, 0 to num_layers - 1.
            prepared: What :meth:`prepare` returned in this pass; None: without it.

        Returns:
            (B, P, C), or (1, P, C) when the tokens do not depend on the input: they take the
            place of the prompts in ``x``. P may be 0 (the prompts in ``x`` are removed). None:
            whatever prompts ``x`` holds flow on as ordinary tokens.
        """

    def keys_values(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """Return keys and values for a block whose prompts are discarded, in place of tokens.

        Args:
            layer: Index of the block.

        Returns:
            Two tensors (1, heads, P, C / heads); None: the backbone makes them of the tokens.
        """
        return None

    def is_discarded(self, layer: int) -> bool:
        """Tell whether tokens enter a block and what it puts out at their places is discarded.

        The backbone then computes keys and values for them and nothing else.

        Args:
            layer: Index of the block.
        """
        return False
