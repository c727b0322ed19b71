"""Updates of single weights."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter, Change, check_merge, find_linears
from vpt_dense.argument_checks import check_count, is_int
from vpt_dense.parts import register


@register
class SparseUpdate(Adapter):
    """Trains single weights of linear layers, the others of which stay frozen.

    y = W x + b + S x, with S zero but for k places of each layer, whose values train and start at
    zero. Merged, W becomes W + S. The places are drawn by a seed; sensitivity-aware tuning (He et
    al., ICCV 2023, https://arxiv.org/abs/2303.08566, section 3.2) chooses those that the loss
    depends on most: ``vpt-dense analyse sensitivity`` finds them, and
    :class:`vpt_dense.hooks.SparsePlacesHook` puts them here before a training. They are stored in
    checkpoints and deltas, 8 bytes each.

    Args:
        counts: Pattern -> k, a pattern being as those of ``targets`` in
            :class:`vpt_dense.adapters.LoRA`. A layer that two patterns match is refused.
        seed: Of the places.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Attributes:
        updates: One for each layer.
        names: Of these layers in the backbone.

    Raises:
        ValueError: If ``counts`` is no such mapping, a pattern matches no linear layer, or a layer
            has fewer weights.
    """

    mergeable = True

    def __init__(
        self,
        backbone: nn.Module,
        counts: Mapping[str, int],
        seed: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, init_cfg)
        if not isinstance(counts, Mapping) or not counts:
            raise ValueError(
                'adapters.counts must say how many weights train of which layers, for instance '
                rf"{{'\\.qkv$': 1000}}, found {counts!r}")
        check_count(seed, 'adapters.seed', 0)
        self.updates = nn.ModuleList()
        self.names: list[str] = []
        generator = torch.Generator().manual_seed(seed)
        for pattern, number in counts.items():
            for name, linear in find_linears(backbone, [pattern], 'adapters.counts').items():
                if name in self.names:
                    raise ValueError(
                        f'adapters.counts: {name} is matched twice, by {pattern!r} and before; '
                        'let a pattern say all of it')
                size = linear.weight.numel()
                if not is_int(number, 1) or number > size:
                    raise ValueError(
                        f'adapters.counts[{pattern!r}] must be an integer from 1 to {size:,}, the '
                        f'weights of {name}; found {number!r}')
                update = SingleWeights(tuple(linear.weight.shape), _draw(size, number, generator))
                update.handle = linear.register_forward_hook(update.add)
                self.updates.append(update)
                self.names.append(name)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, self.names)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for name, update in zip(self.names, self.updates, strict=True):
            weight = backbone.get_submodule(name).weight
            weight.copy_(weight.double() + update.weight(torch.float64))
            update.handle.remove()


def _draw(size: int, number: int, generator: torch.Generator) -> Tensor:
    """Different numbers below a size, in order, whatever device is the default, (number,)."""
    with torch.device('cpu'):
        found = torch.zeros(0, dtype=torch.int64)
        while len(found) < number:  # a permutation of a large matrix would take long
            more = torch.randint(size, (2 * number,), generator=generator)
            found = torch.cat((found, more)).unique()
        keep = torch.randperm(len(found), generator=generator)[:number]
        return found[keep].sort().values


class SingleWeights(Change):
    """The matrix S of one layer.

    Attributes:
        places: Buffer, where its values stand, row after row, (k,), int64.
        values: The parameter, (k,).
    """

    def __init__(self, shape: tuple[int, int], places: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.values = nn.Parameter(torch.zeros(len(places)))
        self.register_buffer('places', places.to(self.values.device))

    def weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """S, (out, in)."""
        values = self.values.to(dtype or self.values.dtype)
        empty = values.new_zeros(self.shape[0] * self.shape[1])
        return empty.scatter(0, self.places, values).view(self.shape)

    def add(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the linear layer."""
        return output + nn.functional.linear(args[0], self.weight())
