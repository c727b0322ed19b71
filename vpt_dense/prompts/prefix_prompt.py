"""Prompts that are keys and values: VPT-prefix."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.prompts.token_prompt import common, resolve_range


@register
class PrefixPrompt(Prompt):
    """VPT-prefix: trainable keys and values that all tokens of a block attend to.

    Jia et al. (ECCV 2022, https://arxiv.org/abs/2203.12119, appendix, "prefix") put the prompts
    straight among the keys and values of self-attention: prompts ask nothing and pass no MLP. The
    paper gives no start. Ours is that of VPT-deep, P_i ~ U(-v, v), taken through block i,

        K_i = LN1_i(P_i) Wk_i + bk_i,    V_i = LN1_i(P_i) Wv_i + bv_i,

    so that training starts from the function of VPT-deep with these P_i (:meth:`take_tokens`).
    From there keys and values move freely.

    Args:
        num_tokens: Number P of keys, and of values, in each layer, at least 1.
        layer_range: ``(start, stop)`` as in :class:`vpt_dense.prompts.TokenPrompt`.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        keys: Parameter, (layers, heads, P, C / heads).
        values: Parameter, the same shape.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'parts', 'keys and values'})
    depends_on_input = False

    def __init__(
        self,
        site: Site,
        num_tokens: int,
        layer_range: Sequence[int | None] = (0, None),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_tokens = check_count(num_tokens, 'prompt.num_tokens')
        self.start, self.stop = resolve_range(layer_range, site.num_layers)
        self.first_layer = self.start
        self.own = common(range(self.start, self.stop), site.layers)
        self.embed_dims = site.dims
        self.bound = math.sqrt(6 / (3 * math.prod(site.patch_size) + site.first_dims))
        shape = (len(self.own), site.heads, num_tokens, site.head_dims)
        self.keys = nn.Parameter(torch.empty(shape))
        self.values = nn.Parameter(torch.empty(shape))
        for parameter in (self.keys, self.values):  # until the backbone has its weights
            nn.init.uniform_(parameter, -self.bound, self.bound)

    def start_from(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.start_from`: starts as VPT-deep with random prompts."""
        shape = (len(self.own), self.num_tokens, self.embed_dims)
        tokens = torch.empty(shape, device=self.keys.device)
        self.take_tokens(tokens.uniform_(-self.bound, self.bound), backbone)

    @torch.no_grad()
    def take_tokens(self, tokens: Tensor, backbone: nn.Module) -> None:
        """Set keys and values to what the blocks make of the prompts of VPT-deep.

        Adapters that act on the first norm or on the layer of queries, keys and values (SSF,
        LoRA) are part of the block as it is now: what they learn later changes the prompts of
        VPT-deep, but not the keys and values here.

        Args:
            tokens: Prompts of each layer of the range (of the stage), (layers, P, C).
            backbone: The backbone, with its weights.
        """
        half = getattr(backbone, 'frozen_dtype', None)
        blocks = backbone.block_list()
        with torch.autocast(self.keys.device.type, half, enabled=half is not None):
            for i, layer in enumerate(self.own):
                block = blocks[layer]
                own = tokens[i : i + 1].to(self.keys)  # (1, P, C)
                keys, values = block.keys_values(
                    block.norm1(own) if block.prenorm else own, lambda layer, x: layer(x))
                self.keys[i].copy_(keys[0])
                self.values[i].copy_(values[0])

    def forward(
        self,
        x: Tensor,
        layer: int,
        prepared: object = None,
        layout: TokenLayout | None = None,
    ) -> None:
        """See :meth:`Prompt.forward`: there are no tokens."""

    def keys_values(self, layer: int, prepared: object = None) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Prompt.keys_values`."""
        if layer not in self.own:
            return None
        index = layer - self.own.start
        return self.keys[index : index + 1], self.values[index : index + 1]

    def leaves(self, layer: int) -> bool:
        """See :meth:`Prompt.leaves`: there are no tokens."""
        return False

    def is_discarded(self, layer: int) -> bool:
        """See :meth:`Prompt.is_discarded`."""
        return self.start <= layer < self.stop

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'num_tokens={self.num_tokens}, layers={self.start}..{self.stop - 1}'
