"""Scales and shifts of what a backbone computes: SSF."""

import torch
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter, Change, check_merge, names_of
from vpt_dense.parts import register


@register
class SSF(Adapter):
    """SSF (Lian et al., NeurIPS 2022, https://arxiv.org/abs/2210.08823, section 3.2).

    gamma * y + beta, a number of each for every channel, takes the place of what these put out: the
    patch embedding's convolution (and its norm, if it has one), in every block both norms, the
    layer of queries, keys and values, the projection and both layers of the MLP, and the norms
    behind the blocks. gamma starts as N(1, 0.02^2), beta as N(0, 0.02^2), so that it does not
    start exactly at the backbone's function. Merged, these layers have weights gamma W and biases
    gamma b + beta. Layers without a bias (the patch embedding of a CLIP) cannot take beta and
    refuse to be merged.

    The norm before the blocks of a CLIP (``pre_norm``) and the patch merging of a Swin stay as they
    are.

    Args:
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.
    """

    needs = frozenset({'tokens', 'grid', 'parts'})
    mergeable = True

    def __init__(self, backbone: nn.Module, init_cfg: dict | None = None) -> None:
        super().__init__(backbone, init_cfg)
        modules = backbone.patch_layers()
        for block in backbone.block_list():
            modules += [
                block.norm1, *block.qkv, block.proj, block.norm2, *block.fc1, block.fc2]
        modules += backbone.output_norms()
        self.names = names_of(backbone, modules)
        self.affines = nn.ModuleList()
        for module in modules:
            affine = Affine(len(module.weight), is_map=isinstance(module, nn.Conv2d))
            affine.handle = module.register_forward_hook(affine.change)
            self.affines.append(affine)

    def check_mergeable(self, backbone: nn.Module) -> None:
        """See :meth:`Adapter.check_mergeable`."""
        check_merge(backbone, self.names, needs_bias=True)

    def _merge(self, backbone: nn.Module) -> None:
        """See :meth:`.Adapter.merge`."""
        for name, affine in zip(self.names, self.affines, strict=True):
            module = backbone.get_submodule(name)
            gamma = affine.gamma.double()
            rows = gamma.view(-1, *[1] * (module.weight.ndim - 1))
            module.weight.copy_(rows * module.weight.double())
            module.bias.copy_(gamma * module.bias.double() + affine.beta.double())
            affine.handle.remove()


class Affine(Change):
    """gamma * y + beta for every channel, the last dimension or that of a map (B, C, H, W)."""

    def __init__(self, dims: int, is_map: bool) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dims).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.empty(dims).normal_(0, 0.02))
        self.is_map = is_map

    def forward(self, y: Tensor) -> Tensor:
        """Keeps shape and type."""
        gamma, beta = self.gamma, self.beta
        if self.is_map:
            gamma, beta = gamma[:, None, None], beta[:, None, None]
        return (y * gamma + beta).to(y.dtype)

    def change(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        """Forward hook of the layer."""
        return self(output)
