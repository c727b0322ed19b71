"""Bottlenecks after the MLP."""

import math

from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter, Change
from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register


def zero_bottleneck(dims: int, hidden: int) -> tuple[nn.Linear, nn.Linear]:
    """Two linear layers, dims to hidden and back, whose composition starts at zero, but not dead.

    The first starts kaiming uniform (a = sqrt(5)), as PyTorch's do, with biases of zero; the second
    is zero. It gets a gradient from the first step on, the first one from the second.
    """
    down, up = nn.Linear(dims, hidden), nn.Linear(hidden, dims)
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    for parameter in (down.bias, up.weight, up.bias):
        nn.init.zeros_(parameter)
    return down, up


@register
class BottleneckAdapter(Adapter):
    """Adapter behind the MLP (Pfeiffer et al., EACL 2021, https://arxiv.org/abs/2005.00247).

    As Jia et al., ECCV 2022 (https://arxiv.org/abs/2203.12119) compare with it: with z the output
    of the MLP, z + U GELU(D z) is added to the tokens, D being C to floor(C / reduction) and U
    back. It acts on z before layer scale and stochastic depth, where the backbone has these. U
    starts at zero and D does not (theirs starts with both at zero, where neither ever moves).

    Args:
        reduction: How many times narrower than the backbone the bottleneck is.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If ``reduction`` is no integer from 1 to the width of the backbone.
    """

    needs = frozenset({'tokens', 'parts'})

    def __init__(
        self, backbone: nn.Module, reduction: int = 8, init_cfg: dict | None = None
    ) -> None:
        super().__init__(backbone, init_cfg)
        check_count(reduction, 'adapters.reduction')
        self.bottlenecks = nn.ModuleList()
        for block in backbone.block_list():
            if reduction > block.embed_dims:
                raise ValueError(
                    f'adapters.reduction={reduction} leaves nothing of the width '
                    f'{block.embed_dims} of {block.name}'
                )
            bottleneck = Bottleneck(block.embed_dims, block.embed_dims // reduction)
            # What fc2 puts out is what the MLP does; a SwiGLU has no module without the residual.
            block.fc2.register_forward_hook(bottleneck.add)
            self.bottlenecks.append(bottleneck)


class Bottleneck(Change):
    """U GELU(D z), (..., C) to (..., C)."""

    def __init__(self, dims: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = zero_bottleneck(dims, hidden)

    def forward(self, z: Tensor) -> Tensor:
        """Map (..., C) to (..., C)."""
        return self.up(nn.functional.gelu(self.down(z)))

    def add(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the last layer of the MLP."""
        return output + self(output)
