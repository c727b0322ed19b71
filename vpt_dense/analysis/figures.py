"""Pictures of what was analysed; equal numbers give equal files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense import safe_files


def save(out: Path, draw: Callable[[Any], None], width: float, height: float) -> Path:
    """Draw a figure and write it.

    Args:
        out: The file, .png or .svg.
        draw: Draws into a figure of matplotlib.
        width: In inches.
        height: Likewise.
    """
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(width, height), layout='constrained')
    draw(figure)
    metadata = {'Date': None} if out.suffix == '.svg' else {'Software': None}
    with safe_files.atomic(out) as unfinished:
        figure.savefig(unfinished, format=out.suffix[1:], metadata=metadata, dpi=130)
    pyplot.close(figure)
    return out


def grid(
    out: Path, rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str],
    labels: Sequence[str] | None = None,
) -> Path:  # fmt: skip
    """Pictures in rows and columns.

    Args:
        out: The file.
        rows: Of each row its pictures, RGB or one channel.
        columns: Headings.
        labels: What stands at the left of each row.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots(len(rows), len(columns), squeeze=False)
        for i, (line, places) in enumerate(zip(rows, axes, strict=True)):
            for j, (picture, place) in enumerate(zip(line, places, strict=True)):
                place.imshow(picture, cmap='viridis')
                place.set(xticks=[], yticks=[])
                if i == 0:
                    place.set_title(columns[j], fontsize='small')
            if labels is not None:
                places[0].set_ylabel(labels[i], fontsize='x-small')

    height, width = rows[0][0].shape[:2]
    return save(out, draw, 2.2 * len(columns), 2.2 * len(rows) * height / width + 0.3)


def heatmap(
    out: Path, matrix: np.ndarray, names: Sequence[str], axes: tuple[str, str]
) -> Path:  # fmt: skip
    """A square matrix as colours, with names at its sides."""

    def draw(figure: Any) -> None:
        place = figure.subplots()
        shown = place.imshow(matrix, cmap='Blues')
        place.set_xticks(range(len(names)), names, rotation=60, ha='right', fontsize='small')
        place.set_yticks(range(len(names)), names, fontsize='small')
        place.set(xlabel=axes[1], ylabel=axes[0])
        figure.colorbar(shown, shrink=0.8)

    side = 2.5 + 0.3 * len(names)
    return save(out, draw, side + 0.8, side)


def lines(
    out: Path, series: Mapping[str, Sequence[tuple[float, float, float]]], x: str, y: str,
    log: bool = False,
) -> Path:  # fmt: skip
    """Lines with error bars.

    Args:
        out: The file.
        series: Name -> (x, y, half the error bar) of its points.
        x: What the axis shows.
        y: Likewise.
        log: Whether x is logarithmic; 0 is shown all the same.
    """

    def draw(figure: Any) -> None:
        place = figure.subplots()
        smallest = min((point[0] for points in series.values() for point in points if point[0]),
                       default=1)
        if log:
            place.set_xscale('symlog', linthresh=smallest)
        for name, points in series.items():
            place.errorbar(*zip(*points, strict=True), marker='o', markersize=4, capsize=2,
                           label=name)
        place.set(xlabel=x, ylabel=y)
        place.grid(color='0.9')
        place.spines[['top', 'right']].set_visible(False)
        place.legend(fontsize='small', frameon=False)

    return save(out, draw, 6, 4)


def points(
    out: Path, panels: Mapping[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str]
) -> Path:  # fmt: skip
    """Points in the plane, coloured by class.

    Args:
        out: The file.
        panels: Title -> coordinates (n, 2) and classes (n,).
        classes: Names.
    """

    def draw(figure: Any) -> None:
        from matplotlib import colormaps

        colours = colormaps['tab20'](np.arange(len(classes)) % 20)
        places = figure.subplots(1, len(panels), squeeze=False)[0]
        for place, (title, (where, labels)) in zip(places, panels.items(), strict=True):
            for label in np.unique(labels):
                place.scatter(*where[labels == label].T, s=6, color=colours[label],
                              label=classes[label])
            place.set(xticks=[], yticks=[], title=title)
        handles, names = places[-1].get_legend_handles_labels()
        figure.legend(handles, names, loc='outside right upper', fontsize='x-small', frameon=False)

    return save(out, draw, 4.2 * len(panels) + 1.6, 4.2)
