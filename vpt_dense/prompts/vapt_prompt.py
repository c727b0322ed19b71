"""Prompts that are computed from the image: visual adaptive prompt tuning."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_dropout, is_list
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.sizes import are_equal


@register
class VAPTPrompt(Prompt):
    """Visual adaptive prompt tuning (Le et al., ICLR 2026, https://arxiv.org/abs/2501.18936).

    Block 0 gets free prompts (1, P, C). The prompts of a block i >= 1 are made of the patch tokens
    X (h x w) that are about to enter it:

    1. X~ = LN_i(X), a norm of the layer's own.
    2. One K x K kernel for all channels, no padding: a map of (h - K + 1) x (w - K + 1).
    3. A linear layer over the places of this map, to P tokens; it starts at zero.
    4. z + W2 relu(W1 z), with W1 (C to r) and W2 (r to C) for all layers alike.

    As step 3 needs a fixed number of places, maps of another size than that of ``grid`` are pooled
    to it by adaptive averaging before. On images of this grid it is the published formula.

    Args:
        num_tokens: Number of prompt tokens P, at least 1.
        kernel_size: K.
        hidden_dims: r.
        grid: (rows, columns) of patches whose map step 3 mixes as it is; 14 x 14 are the
            published 224 pixels with patches of 16.
        dropout: Of whole channels behind step 2 and of the hidden layer of step 4.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default the tokens start as those of
            VPT, kernels with N(0, 1), W1 and W2 as PyTorch's linear layers.

    Attributes:
        tokens: The prompts of block 0, (1, P, C).
        norms: Step 1 for each block but the first.
        kernels: Step 2, likewise.
        mixes: Step 3, likewise.
        down: W1, where there is more than one block.
        up: W2, likewise.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'grid', 'one width'})

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        kernel_size: int = 2,
        hidden_dims: int = 8,
        grid: Sequence[int] = (14, 14),
        dropout: float = 0.1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        check_count(num_tokens, 'prompt.num_tokens')
        check_count(kernel_size, 'prompt.kernel_size')
        check_count(hidden_dims, 'prompt.hidden_dims')
        if not is_list(grid) or len(grid) != 2:
            raise ValueError(f'prompt.grid must be a pair (rows, columns), found {grid!r}')
        if any(check_count(side, 'prompt.grid') < kernel_size for side in grid):
            raise ValueError(
                f'prompt.kernel_size must be at most a side of prompt.grid {tuple(grid)}, '
                f'found {kernel_size}'
            )
        check_dropout(dropout, 'prompt.dropout')
        self.kernel_size = kernel_size
        self.map_size = tuple(side - kernel_size + 1 for side in grid)
        self.dropout = dropout
        embed_dims, num_layers = site.dims, site.num_layers
        bound = math.sqrt(6 / (3 * math.prod(site.patch_size) + embed_dims))
        self.tokens = nn.Parameter(torch.empty(1, num_tokens, embed_dims))
        nn.init.uniform_(self.tokens, -bound, bound)
        further = range(1, num_layers)
        self.norms = nn.ModuleList(nn.LayerNorm(embed_dims, eps=1e-6) for _ in further)
        self.kernels = nn.ParameterList(
            torch.randn(1, 1, kernel_size, kernel_size) for _ in further
        )
        self.mixes = nn.ModuleList(
            nn.Linear(math.prod(self.map_size), num_tokens) for _ in further
        )
        for mix in self.mixes:
            nn.init.zeros_(mix.weight)
            nn.init.zeros_(mix.bias)
        if num_layers > 1:  # else all prompts are free
            self.down = nn.Linear(embed_dims, hidden_dims, bias=False)
            self.up = nn.Linear(hidden_dims, embed_dims, bias=False)

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: its images must not be smaller than the kernel."""
        self._check_grid(backbone.patch_resolution)

    def _check_grid(self, grid: Sequence[int]) -> None:
        if min(grid) < self.kernel_size:
            raise ValueError(
                f'prompt.kernel_size={self.kernel_size} needs images of as many patches on each '
                f'side, found {grid[0]} x {grid[1]} patches; take larger images or a smaller kernel'
            )

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: object = None,
        layout: TokenLayout | None = None,
    ) -> Tensor:
        """See :meth:`Prompt.forward`.

        Raises:
            ValueError: If the image has fewer rows or columns of patches than the kernel.
        """
        if layer == 0:
            return self.tokens
        self._check_grid(layout.grid)
        patches = self.norms[layer - 1](layout.patches(x))  # (B, h * w, C)
        maps = patches.transpose(1, 2).unflatten(2, layout.grid)  # (B, C, h, w)
        # Each channel has the same kernel: far quicker than the channels as a batch.
        width = maps.shape[1]
        kernel = self.kernels[layer - 1].expand(width, -1, -1, -1)
        maps = F.conv2d(maps, kernel, groups=width)  # (B, C, h - K + 1, w - K + 1)
        maps = F.dropout2d(maps, self.dropout, self.training)
        if not are_equal(maps.shape[2:], self.map_size):
            maps = F.adaptive_avg_pool2d(maps, self.map_size)
        tokens = self.mixes[layer - 1](maps.flatten(2)).transpose(1, 2)  # (B, P, C)
        hidden = F.dropout(self.down(tokens).relu(), self.dropout, self.training)
        return tokens + self.up(hidden)

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`: every block has tokens of its own."""
        return True

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'num_tokens={self.tokens.shape[1]}, maps={self.map_size}, dropout={self.dropout}'
