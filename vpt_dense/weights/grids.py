"""Position embeddings: which grid of patches their rows are."""

import math
from collections.abc import Sequence


def grids(
    rows: int, has_cls: bool, num_registers: int, given: Sequence[int] | None
) -> list[tuple[int, tuple[int, int]]]:
    """Ways to take a position embedding apart: (rows before the grid, (grid rows, columns)).

    The number of rows says nothing about a grid's shape: without ``given`` it has to be square.
    """
    ways = []
    for extra in dict.fromkeys((int(has_cls), 0, has_cls + num_registers)):
        side = math.isqrt(max(rows - extra, 0))
        grid = (side, side) if given is None else tuple(given)
        if rows > extra and grid[0] * grid[1] == rows - extra:
            ways.append((extra, grid))
    return ways
