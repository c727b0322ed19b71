"""Shared prompts, and group prompts that an image chooses by keys."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, is_int, is_list
from vpt_dense.prompts.base import Prompt, Site, TokenLayout
from vpt_dense.registry import MODELS

#: Added to the shares of groups, so that one that nobody chose can be chosen.
_FLOOR = 5e-4


@MODELS.register_module()
class SharedGroupPrompt(Prompt):
    """Prompts that all images share, then prompts of the group that an image belongs to.

    After SGPT (https://arxiv.org/abs/2310.18285): before each of the ``shared_layers`` one more
    prompt enters behind those that flow on; before each of the ``group_layers`` one of the
    image's group. The group is that whose key k is next to the query q:

        training:  argmin_g (1 - q' . k'_g) (pi_g + 5e-4),  pi_g the share of images of group g
        else:      argmin_g (1 - q' . k'_g)

    with q' = ReLU(q) / norm(ReLU(q)) and k' = k / norm(k). Keys start orthogonal; they learn by
    -mean(q' . k'_chosen) alone, which :class:`vpt_dense.federated.local.Stages` adds to the losses.

    Differs from the original: q is the class token about to enter the first of the group layers,
    in the same pass, and not that of a pass without prompts; the head reads the class token alone;
    shared prompts start as those of VPT, not at zero, where the norm of a block magnifies the
    first steps up to a thousandfold (1 / sqrt(eps)).

    Args:
        groups: How many, at least 2.
        shared_layers: ``(start, stop)``.
        group_layers: ``(start, stop)``, from ``stop`` of the shared ones on.
        num_tokens: Of each layer.
        site: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`; by default shared prompts start as
            those of :class:`vpt_dense.prompts.TokenPrompt`, those of groups by Xavier.

    Attributes:
        shared: (layers, P, C).
        group: (layers, G, P, C).
        keys: (G, C).
        selects: Whether group prompts enter.
        share: pi, (G,), not saved.
        counts: Images of each group in training since it was set to zero, (G,).
        similarity: Mean of q' . k' over the last batch in training; None: there was none.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    needs = frozenset({'tokens', 'one width'})
    depends_on_input = True

    def __init__(
        self,
        site: Site,
        groups: int = 4,
        shared_layers: Sequence[int] = (0, 4),
        group_layers: Sequence[int] = (4, 7),
        num_tokens: int = 1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not is_int(groups, 2):
            raise ValueError(f'prompt.groups must be at least 2, found {groups!r}')
        check_count(num_tokens, 'prompt.num_tokens')
        ranges = []
        for key, value in (('shared_layers', shared_layers), ('group_layers', group_layers)):
            if not (is_list(value) and len(value) == 2 and all(is_int(n, 0) for n in value)
                    and value[0] < value[1] <= site.num_layers):
                raise ValueError(
                    f'prompt.{key} must be (start, stop) within the {site.num_layers} blocks, '
                    f'found {value!r}')
            ranges.append(range(*value))
        self.shared_layers, self.group_layers = ranges
        if self.group_layers.start < self.shared_layers.stop:
            raise ValueError(
                f'prompt.group_layers begins at {self.group_layers.start}, before '
                f'prompt.shared_layers ends at {self.shared_layers.stop}')
        self.first_layer = self.shared_layers.start
        shape = num_tokens, site.dims
        self.shared = nn.Parameter(torch.empty(len(self.shared_layers), *shape))
        bound = (6 / (3 * math.prod(site.patch_size) + site.dims)) ** 0.5
        nn.init.uniform_(self.shared, -bound, bound)
        self.group = nn.Parameter(torch.empty(len(self.group_layers), groups, *shape))
        bound = (6 / (num_tokens + site.dims)) ** 0.5
        nn.init.uniform_(self.group, -bound, bound)
        self.keys = nn.Parameter(torch.empty(groups, site.dims))
        nn.init.orthogonal_(self.keys)
        self.register_buffer('share', torch.full((groups,), 1 / groups), persistent=False)
        self.register_buffer('counts', torch.zeros(groups), persistent=False)
        self.selects = True
        self.similarity: Tensor | None = None

    def check(self, backbone: nn.Module) -> None:
        """See :meth:`Prompt.check`: a query needs a class token."""
        if not getattr(backbone, 'cls_token', None) is not None:
            raise ValueError(
                f'prompt: SharedGroupPrompt asks the class token, and a {type(backbone).__name__} '
                'has none')

    def prepare(self, embed: Callable[[Tensor], Tensor] | None = None) -> dict:
        """A place for the groups of the images of a pass."""
        self.similarity = None
        return {}

    def forward(
        self, x: Tensor, layer: int, prepared: dict, layout: TokenLayout | None = None
    ) -> Tensor | None:
        """See :meth:`Prompt.forward`: what flows on, and one more prompt behind it."""
        if layer in self.shared_layers:
            more = self.shared[layer - self.shared_layers.start]
            more = more.expand(x.shape[0], -1, -1)  # (B, P, C)
        elif layer in self.group_layers and self.selects:
            if 'chosen' not in prepared:
                prepared['chosen'] = self.choose(x[:, 0])
            more = self.group[layer - self.group_layers.start, prepared['chosen']]  # (B, P, C)
        else:
            return None
        return torch.cat([layout.prompts(x), more.to(x.dtype)], dim=1)

    def choose(self, query: Tensor) -> Tensor:
        """The group of each image, (B,), by its query (B, C), through which no gradient flows."""
        query = F.normalize(query.detach().float().relu(), dim=1)
        near = query @ F.normalize(self.keys.float(), dim=1).T  # (B, G)
        far = (1 - near) * (self.share + _FLOOR) if self.training else 1 - near
        chosen = far.argmin(dim=1)
        if self.training:
            self.similarity = near.gather(1, chosen[:, None]).mean()
            self.counts += torch.bincount(chosen, minlength=len(self.keys)).to(self.counts)
        return chosen
