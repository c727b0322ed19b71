"""A trained copy of the last blocks, and convolutions on maps of a frozen backbone: ViT-Split."""

import copy
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vpt_dense.adapters.base import Adapter
from vpt_dense.argument_checks import check_count
from vpt_dense.parts import register
from vpt_dense.prompts import TokenLayout
from vpt_dense.prompts.base import without_autocast

#: The first block whose map is among several, as the authors' configs have it.
_FIRST = 2


class _Now(threading.local):
    """The passes that this thread is in.

    Attributes:
        seen: id of an adapter -> what blocks have put out, by their index; -1: the tokens that
            enter its copies, and what they are.
    """

    def __init__(self) -> None:
        self.seen: dict[int, dict] = {}


_NOW = _Now()


@register
class ViTSplit(Adapter):
    r"""ViT-Split (Y. Li et al., ICCV 2025, https://arxiv.org/abs/2506.03433).

    With x_i what block i of N puts out, t ``num_blocks`` and k ``num_maps``,

        task = LN(copy_N-1(... copy_N-t(x_N-t-1))),
        prior = g(D(g(W_p [LN(x_i1), ..., LN(x_ik)]))),
        out = g(D'(g(W_f [prior, task]))),

    the copies being trained blocks that start with the weights of the last t, i1 to ik blocks that
    lie evenly from the third to the last one, W 1x1 convolutions with a bias, g GELU, and D a
    deformable 3x3 convolution (J. Dai et al., ICCV 2017) whose offsets a 3x3 convolution finds. No
    gradient passes the backbone while nothing else of it trains. ``out``, C channels, takes the
    place of the map of the last block; maps of earlier blocks that the backbone puts out stay.

    The authors send tokens through the backbone's last norm. Here LN has no weights: a factor and a
    shift of each channel are what the 1x1 convolution behind it can do itself, and the backbone
    needs no ``final_norm``.

    To be listed first: the copies are of blocks without adapters. Prompts among the tokens do not
    enter the copies.

    Args:
        num_blocks: t, from 1 to N - 1. The authors' are 3 of 12 and 4 of 24 for ADE20K.
        num_maps: k, 1 (the last block's) to N - 2. The authors' are 4 of 12 and 8 of 24.
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range, the backbone does not put out the map of its
            last block, another adapter is on its last blocks, or an image prompt has a border.
    """

    needs = frozenset({'tokens', 'one width', 'outputs', 'copies'})

    def __init__(
        self, backbone: nn.Module, num_blocks: int = 3, num_maps: int = 4,
        init_cfg: dict | None = None,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init_cfg)
        named = backbone.named_blocks()
        last = len(named) - 1
        for key, value, most in (
                ('num_blocks', num_blocks, last), ('num_maps', num_maps, max(last - 1, 1))):
            if check_count(value, f'adapters.{key}') > most:
                raise ValueError(
                    f'adapters.{key} of ViTSplit must be at most {most} on {last + 1} blocks, '
                    f'found {value}')
        if not backbone.map_strides() or backbone.output_blocks()[-1] != last:
            raise ValueError(
                'adapters: ViTSplit takes the place of the map of the last block; set '
                f"backbone.out_type='featmap', and out_indices that end with {last}")
        if backbone.image_prompt is not None and backbone.image_prompt.border:
            raise ValueError(
                'adapters: ViTSplit reads maps between the blocks, from which no border of '
                f'{type(backbone.image_prompt).__name__} is cropped; leave image_prompt out')
        self.start = last + 1 - num_blocks
        self.maps = [
            _FIRST + i * (last - _FIRST) // (num_maps - 1) for i in range(num_maps - 1)] + [last]
        self.reads = frozenset({*self.maps, self.start - 1})
        sources = [block for _, block in named[self.start :]]
        if any(m._forward_hooks or m._forward_pre_hooks for b in sources for m in b.modules()):
            raise ValueError(
                'adapters: ViTSplit copies blocks without adapters; list it before the others')
        self.blocks = nn.ModuleList(map(copy.deepcopy, sources))
        self.blocks.requires_grad_(True)
        # No submodule, and in a tuple: a copy of the backbone has itself here.
        self._backbone = (backbone,)
        dims = backbone.block_list()[0].embed_dims
        self.prior, self.fusion = (
            nn.Sequential(nn.Conv2d(n * dims, dims, 1), nn.GELU(), DeformableConv(dims), nn.GELU())
            for n in (num_maps, 2))

    def start_from(self, backbone: nn.Module) -> None:
        """Give the copies the weights of the blocks; see :meth:`.Adapter.start_from`."""
        with torch.no_grad():
            for own, (_, block) in zip(
                    self.blocks, backbone.named_blocks()[self.start :], strict=True):
                for to, source in zip(_tensors(own), _tensors(block), strict=True):
                    to.copy_(source)

    def before_block(self, x: Tensor, layer: int, layout: TokenLayout) -> Tensor:
        """Note what the block before has put out.

        See :meth:`vpt_dense.prompts.base.Part.before_block`.
        """
        if layer == 0:
            _NOW.seen = {**_NOW.seen, id(self): {}}
        seen = _NOW.seen[id(self)]
        if layer == self.start:
            seen[-1] = layout.replace(x, None) if layout.num_prompts else (x, layout)
        if layer - 1 in self.maps:
            seen[layer - 1] = layout.maps(_normalise(x))
        return x

    def after_backbone(self, outs: tuple[Tensor, ...], images: Tensor) -> tuple[Tensor, ...]:
        """See :meth:`vpt_dense.prompts.base.Part.after_backbone`."""
        seen = _NOW.seen[id(self)]
        _NOW.seen = {key: value for key, value in _NOW.seen.items() if key != id(self)}
        (x, layout), last = seen[-1], outs[-1]  # (B, F + N, C), (B, C, h, w)
        needed = self._backbone[0].block_arguments(layout.grid)
        for block in self.blocks:
            x = block(x, *needed)
        task = layout.maps(_normalise(x))
        normed = _normalise(last.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        maps = [seen[i] for i in self.maps[:-1]] + [normed]
        prior = self.prior(torch.cat(maps, dim=1))  # (B, C, h, w)
        out = self.fusion(torch.cat((prior, task.to(prior.dtype)), dim=1))
        return *outs[:-1], out.to(last.dtype)

    def extra_repr(self) -> str:
        """One line for ``print(model)``."""
        return f'maps of blocks {self.maps}, copies of those from {self.start} on'


class DeformableConv(nn.Module):
    """A deformable 3x3 convolution, C to C channels, whose offsets a 3x3 convolution finds.

    It is computed without autocast: half a pixel less or more in the offsets is another place.

    Args:
        dims: C.
    """

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(dims, 2 * 9, 3, padding=1)
        self.conv = nn.Conv2d(dims, dims, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        from torchvision.ops import deform_conv2d  # half a second, and every run imports this

        with without_autocast(x):
            x = x.to(self.conv.weight.dtype)
            traced = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
            if traced:  # for export: not every runtime has that operator
                return self.sampled(x)
            return deform_conv2d(x, self.offsets(x), self.conv.weight, self.conv.bias, padding=1)

    def sampled(self, x: Tensor) -> Tensor:
        """The same as nine samplings and one 1x1 convolution."""
        rows, columns = x.shape[2:]
        offsets = self.offsets(x).unflatten(1, (9, 2))  # (B, 9, 2, h, w)
        y, x_ = (torch.arange(n, device=x.device, dtype=x.dtype) for n in (rows, columns))
        found = []
        for place in range(9):
            i, j = divmod(place, 3)
            down = y[:, None] + (i - 1) + offsets[:, place, 0]  # (B, h, w), rows
            right = x_ + (j - 1) + offsets[:, place, 1]
            # What grid_sample calls -1 and 1 are the outer edges of the first and the last pixel.
            grid = torch.stack(((2 * right + 1) / columns - 1, (2 * down + 1) / rows - 1), dim=-1)
            found.append(F.grid_sample(x, grid, align_corners=False))
        weight = self.conv.weight.permute(0, 2, 3, 1).flatten(1)  # (C, 9 C)
        return F.conv2d(torch.cat(found, dim=1), weight[..., None, None], self.conv.bias)


def _normalise(x: Tensor) -> Tensor:
    """Bring (..., C) to mean 0 and variance 1 over the channels."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _tensors(block: nn.Module) -> Iterator[Tensor]:
    yield from block.parameters()
    yield from block.buffers()
