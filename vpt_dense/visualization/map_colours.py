"""Pictures of depth and of normals. Needs no framework."""

from collections.abc import Sequence

import cv2
import numpy as np

from vpt_dense.visualization.drawing import draw_captions


def depth_range(*maps: np.ndarray | None) -> tuple[float, float]:
    """The least and greatest depth of the first map that has any: of the truth, if it comes first.

    Args:
        *maps: (H, W) in metres, 0 where there is none; None: there is no such map.
    """
    for depth in maps:
        known = depth[depth > 0] if depth is not None else ()
        if len(known):
            return float(known.min()), float(known.max())
    return 0.0, 1.0


def colour_depth(depth: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Colours from red (near) to blue (far), even in 1 / depth; black where there is none.

    Args:
        depth: (H, W) in metres.
        limits: What is nearest and farthest, in metres.

    Returns:
        RGB, uint8.
    """
    low, high = (1 / max(limit, 1e-3) for limit in (limits[1], limits[0]))
    near = (1 / np.maximum(depth, 1e-3) - low) / max(high - low, 1e-9)
    index = np.round(near.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(index, cv2.COLORMAP_TURBO)[..., ::-1]
    return np.where((depth > 0)[..., None], colours, 0).astype(np.uint8)


def colour_normals(normals: np.ndarray) -> np.ndarray:
    """The usual colours of normals (H, W, 3): R, G, B are (x, y, z) from -1 to 1; black for none.

    Returns:
        RGB, uint8.
    """
    colours = np.round((normals + 1) * 127.5).clip(0, 255)
    return np.where((normals != 0).any(2, keepdims=True), colours, 0).astype(np.uint8)


def colour_numbers(numbers: np.ndarray, highest: float) -> np.ndarray:
    """Colours from violet (0) to yellow (``highest``) of a map (H, W); black below 0.

    Returns:
        RGB, uint8.
    """
    index = np.round((numbers / highest).clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(index, cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.where((numbers >= 0)[..., None], colours, 0).astype(np.uint8)


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Pictures of one size with what they are called above them.

    Args:
        panels: (title, RGB uint8), from left to right.

    Returns:
        RGB, uint8.
    """
    drawn = [draw_captions(picture, [(title, None)]) for title, picture in panels]
    height, gap = max(map(len, drawn)), np.full((1, 6, 3), 255, np.uint8)
    columns = []
    for each in drawn:
        each = np.pad(each, ((height - len(each), 0), (0, 0), (0, 0)), constant_values=255)
        columns += [each, np.broadcast_to(gap, (height, 6, 3))]
    return np.concatenate(columns[:-1], axis=1)
