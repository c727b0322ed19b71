"""Prompts that are added to the tokens instead of extending the sequence."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.argument_checks import check_flag
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout
from vpt_dense.prompts.token_prompt import resolve_range
from vpt_dense.sizes import resize_positions


@register
class AddPrompt(Adapter):
    """Prompts added to tokens (VPT, https://arxiv.org/abs/2203.12119, section 4.3).

    The paper's "add": x + P before the first block, after the position embedding, x being the cls
    token and the patches, P (1, cls + N, C) learnt. ``per_token=False`` is its "add-1" of one P
    (1, 1, C) for all of them. ``layer_range`` has another block in place of the first. Register
    tokens, and prompt tokens if there are any too, stay as they are. All start in U(-v, v),
    v = sqrt(6 / (3 * ph * pw + C)).

    For images of another size the part of P for patches is resized as the position embedding is.

    Before the first block alone, and without a norm in front of the blocks (``pre_norm``), P can be
    merged into the position embedding exactly; what belongs to a cls token without a position, into
    that token.

    Args:
        backbone: Filled in by the backbone.
        per_token: A vector for each token ("add") instead of one for all ("add-1").
        deep: Vectors of their own are added before every block of the range instead of only the
            first.
        layer_range: ``(start, stop)`` as in :class:`vpt_dense.prompts.TokenPrompt`.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        tokens: The parameters, one for each block that they are added before.

    Raises:
        ValueError: If ``per_token`` or ``deep`` is no switch, or the range selects no block.
    """

    needs = frozenset({'tokens', 'grid', 'one width'})

    def __init__(
        self,
        backbone: nn.Module,
        per_token: bool = True,
        deep: bool = False,
        layer_range: Sequence[int | None] = (0, None),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        (site,) = backbone.sites()
        width = site.dims
        self.num_cls = backbone.num_extra_tokens
        self.grid = tuple(backbone.patch_resolution)
        self.interpolate_mode = backbone.interpolate_mode
        self.per_token = check_flag(per_token, 'adapters.per_token')
        check_flag(deep, 'adapters.deep')
        self.start, stop = resolve_range(
            layer_range, site.num_layers, 'adapters.layer_range')
        first = self.start == 0 and isinstance(backbone.pre_norm, nn.Identity)
        self.mergeable = not deep and first
        bound = math.sqrt(6 / (3 * math.prod(site.patch_size) + width))
        number = self.num_cls + math.prod(self.grid) if per_token else 1
        self.tokens = nn.ParameterList(
            torch.empty(1, number, width).uniform_(-bound, bound)
            for _ in range(stop - self.start if deep else 1)
        )

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """See :meth:`Adapter.before_block`."""
        if not self.start <= layer < self.start + len(self.tokens):
            return x
        added = self.tokens[layer - self.start]
        if self.per_token:
            added = resize_positions(
                added, self.grid, layout.grid, self.interpolate_mode, self.num_cls
            )
        added = added.to(x.dtype)
        patches = layout.patches(x)
        between = x[:, self.num_cls : x.shape[1] - patches.shape[1]]  # registers and prompts
        if not between.shape[1]:
            return x + added
        cls, rest = added, added
        if self.per_token:
            cls, rest = added[:, : self.num_cls], added[:, self.num_cls :]
        return torch.cat((x[:, : self.num_cls] + cls, between, patches + rest), dim=1)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        if not self.mergeable:
            raise ValueError(
                'AddPrompt can be merged into the position embedding with deep=False, before the '
                'first block and without the pre_norm of the backbone only'
            )
        if getattr(backbone, 'pos_embed', None) is None:
            raise ValueError('AddPrompt: the backbone has no position embedding to be merged into')
        if 'pos_embed' not in backbone._parameters:
            raise ValueError('pos_embed is computed from other tensors: nothing can be merged in')
        if backbone.pos_embed.dtype in (torch.bfloat16, torch.float16):
            raise ValueError('pos_embed is held in half precision, which would round the sum')

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`: P becomes a part of the position embedding."""
        number = self.num_cls + math.prod(self.grid)
        added, positions = self.tokens[0].expand(-1, number, -1), backbone.pos_embed
        first = positions.shape[1] - math.prod(self.grid)  # rows of cls and registers; or none
        positions[:, first:] += added[:, self.num_cls :]
        own = added[:, : self.num_cls]
        if first:
            positions[:, : self.num_cls] += own
        elif self.num_cls:
            backbone.cls_token += own
        self.tokens = nn.ParameterList()

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        blocks = f'{self.start}..{self.start + len(self.tokens) - 1}'
        return f'per_token={self.per_token}, blocks={blocks}'
