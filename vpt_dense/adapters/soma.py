"""Low-rank updates that start from the smallest singular components of the weights: SoMA."""

from collections.abc import Sequence

from torch import nn

from vpt_dense.adapters.base import PARTS
from vpt_dense.adapters.pissa import ComponentUpdates
from vpt_dense.adapters.updates import find_rows
from vpt_dense.parts import register
from vpt_dense.prompts.token_prompt import resolve_range


@register
class SoMA(ComponentUpdates):
    r"""SoMA (Yun et al., CVPR 2025, https://arxiv.org/abs/2412.04077).

    As :class:`PiSSA`, with the r smallest singular values of W in place of the largest: what
    matters least to the pretrained function is what trains. Queries, keys and values each have
    components of their own, also where one layer makes them. The first blocks stay as they are.

    Args:
        rank: As in :class:`PiSSA`.
        alpha: As there.
        targets: As there, within the blocks of the range.
        layer_range: ``(start, stop)`` of the blocks, as in :class:`vpt_dense.prompts.TokenPrompt`;
            None: those behind the first third, as in the paper (8 of 24).
        backbone: Filled in by the backbone.
        init_cfg: As in :class:`mmengine.model.BaseModule`.

    Raises:
        ValueError: If an argument is out of its range or there is no such layer.
    """

    largest = False

    def __init__(
        self,
        backbone: nn.Module,
        rank: int = 16,
        alpha: float | None = None,
        targets: Sequence[str] = (r'\.(qkv|proj|fc1|fc2)$',),
        layer_range: Sequence[int | None] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        blocks = backbone.block_list()
        wanted = (len(blocks) // 3, None) if layer_range is None else layer_range
        start, stop = resolve_range(wanted, len(blocks), 'adapters.layer_range')
        names = tuple(f'{block.name}.' for block in blocks[start:stop])
        places = [
            rows for rows in find_rows(backbone, targets, PARTS) if rows.name.startswith(names)]
        if not places:
            raise ValueError(
                f'adapters.targets={list(targets)} names no layer of the blocks {start} to '
                f'{stop - 1}; change it or adapters.layer_range')
        super().__init__(backbone, places, rank, alpha, init_cfg)
