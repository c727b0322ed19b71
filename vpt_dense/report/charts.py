"""Curves and points as SVG, drawn without a library. Colours are the page's (``page.css``)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

#: How many colours the page has for lines and points; beyond them lines are dashed.
COLOURS = 7
#: Points of a line beyond which neighbours are drawn as their mean.
MOST_POINTS = 300
_FONT, _LETTER = 12, 6.6  # size of text, mean width of a letter


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        name: What it shows.
        points: (x, y).
    """

    name: str
    points: Sequence[tuple[float, float]]


class Point(NamedTuple):
    """A point of a scatter plot.

    Attributes:
        name: What it shows.
        x: Not negative.
        y: Its height.
        spread: Half the length of its error bar.
    """

    name: str
    x: float
    y: float
    spread: float = 0.0


def lines(
    series: Sequence[Line], label: str, unit: str, width: int = 400, height: int = 230
) -> dict[str, Any]:
    """Draw lines.

    Args:
        series: At least one, with at least a point each.
        label: Of the picture, for those who do not see it.
        unit: Of x: 'iteration'.
        width: Of the picture.
        height: Of the picture.

    Returns:
        ``svg``; ``legend`` ((index, name) of each line, if there are several); ``note``, what
        else is to be known, or None.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    (left, right), (low, high) = _range(xs), _range(ys, 0.06)
    margin = max(len(_text(tick)) for tick in ticks(low, high)) * _LETTER + 12
    plot = _Plot(width, height, margin, (left, right), (low, high))
    parts = [plot.axes(ticks(left, right), ticks(low, high), unit)]
    thinned = 1
    for index, line in reversed(list(enumerate(series))):
        size = -(-len(line.points) // MOST_POINTS)
        thinned = max(thinned, size)
        path = [plot.at(*_mean(line.points[i : i + size]))
                for i in range(0, len(line.points), size)]  # fmt: skip
        colour, dash = index % COLOURS, index // COLOURS
        if len(path) > 1:
            where = ' '.join(f'{x:.1f},{y:.1f}' for x, y in path)
            parts.append(Markup('<polyline class="line c{} d{}" points="{}"/>').format(
                colour, dash, where))
        if len(path) <= 30:
            parts += [
                Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title>'
                       '</circle>').format(colour, x, y, f'{line.name}: {value:g} at {at:g}')
                for (x, y), (at, value) in zip(path, line.points, strict=True)]
    told = '; '.join(
        f'{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}' for line in series)
    legend = [(i, line.name) for i, line in enumerate(series)] if series[1:] else []
    note = f'each point is the mean of {thinned}' if thinned > 1 else None
    return {'svg': _svg(width, height, f'{label}: {told}', parts), 'legend': legend, 'note': note}


def scatter(
    points: Sequence[Point], label: str, x_label: str, y_label: str, width: int, height: int
) -> Markup:
    """Draw points with their names; x is logarithmic, with a place for 0 on its left.

    Long names are cut; whole they are in the titles of the points.

    Args:
        points: At least one.
        label: Of the picture, for those who do not see it.
        x_label: Of the axis.
        y_label: Of the axis.
        width: Of the picture.
        height: Of the picture.
    """
    positive = [point.x for point in points if point.x > 0]
    low = math.floor(math.log10(min(positive))) if positive else 0
    high = math.ceil(math.log10(max(positive))) if positive else 1
    high = max(high, low + 1)
    zero = low - max(0.5, (high - low) / 8) if any(point.x <= 0 for point in points) else low
    bottom, top = _range(
        [point.y + sign * point.spread for point in points for sign in (1, -1)], 0.1)
    margin = max(len(_text(tick)) for tick in ticks(bottom, top)) * _LETTER + 12
    plot = _Plot(width, height, margin, (zero - 0.15 * (zero < low), high), (bottom, top), above=24)
    decades = range(low, high + 1, max(1, -(-(high - low) // (3 if width < 500 else 7))))
    marks = {float(ten): _text(10.0**ten) for ten in decades}
    if zero < low:
        marks[zero] = '0'
    parts = [plot.axes(list(marks), ticks(bottom, top), x_label, list(marks.values()))]
    parts.append(Markup('<text x="0" y="12">{}</text>').format(y_label))
    taken, placed = [], []
    most = int(width / 3 / _LETTER)  # letters of a name
    names = [point.name if len(point.name) <= most else f'{point.name[: most - 1]}…'
             for point in points]  # fmt: skip
    for index, point in enumerate(points):
        x, y = plot.at(math.log10(point.x) if point.x > 0 else zero, point.y)
        reach = abs(plot.at(0, point.y + point.spread)[1] - y)
        colour = index % COLOURS
        if reach > 0.5:
            parts.append(Markup(
                '<path class="bar c{0}" d="M{1:.1f} {2:.1f}V{3:.1f}M{4:.1f} {2:.1f}h6M{4:.1f} '
                '{3:.1f}h6"/>').format(colour, x, y - reach, y + reach, x - 3))
        parts.append(Markup(
            '<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4.5"><title>{}</title></circle>'
        ).format(colour, x, y, f'{point.name}: {point.y:.2f}, {point.x:,g} parameters'))
        taken.append((x - 5, y - max(5, reach), x + 5, y + max(5, reach)))
        placed.append((x, y))
    for index, (name, (x, y)) in enumerate(zip(names, placed, strict=True)):
        box, anchor = _free_place(x, y, len(name) * _LETTER, plot, taken)
        taken.append(box)
        start = box[0] if anchor == 'start' else box[2] if anchor == 'end' else (
            box[0] + box[2]) / 2
        middle = (box[1] + box[3]) / 2
        if max(abs(middle - y), box[0] - x, x - box[2]) > 2 * _FONT:
            parts.append(Markup(
                '<path class="lead c{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
                    index % COLOURS, x, y, start, middle))
        parts.append(Markup(
            '<text class="name" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
                start, middle + 4, anchor, name))
    return _svg(width, height, label, parts)


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """About ``number`` round values between two others."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    power = 10 ** math.floor(math.log10(span / number))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if span / (power * f) <= number + 0.5)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


class _Plot:
    """Places of values in a picture.

    Args:
        width: Of the picture.
        height: Of the picture.
        left: Of the axis.
        xs: Range.
        ys: Range.
        above: Of the highest value.
    """

    def __init__(
        self, width: int, height: int, left: float, xs: tuple[float, float],
        ys: tuple[float, float], above: int = 10,
    ) -> None:
        self.left, self.right, self.top, self.bottom = left, width - 12, above, height - 38
        self._xs, self._ys = xs, ys

    def at(self, x: float, y: float) -> tuple[float, float]:
        (left, right), (low, high) = self._xs, self._ys
        return (
            self.left + (x - left) / (right - left) * (self.right - self.left),
            self.bottom - (y - low) / (high - low) * (self.bottom - self.top),
        )

    def axes(
        self, xs: Sequence[float], ys: Sequence[float], unit: str,
        names: Sequence[str] | None = None,
    ) -> Markup:
        parts = []
        for y in ys:
            place = self.at(self._xs[0], y)[1]
            parts.append(Markup(
                '<path class="grid" d="M{0:.1f} {1:.1f}H{2:.1f}"/><text x="{3:.1f}" y="{4:.1f}" '
                'text-anchor="end">{5}</text>').format(
                    self.left, place, self.right, self.left - 7, place + 4, _text(y)))
        for x, name in zip(xs, names or map(_text, xs), strict=True):
            place = self.at(x, self._ys[0])[0]
            parts.append(Markup(
                '<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                    min(place, self.right - len(name) * _LETTER / 2 + 10), self.bottom + 16, name))
        parts.append(Markup(
            '<path class="axis" d="M{0:.1f} {1:.1f}H{2:.1f}"/><text class="unit" x="{2:.1f}" '
            'y="{3:.1f}" text-anchor="end">{4}</text>').format(
                self.left, self.bottom, self.right, self.bottom + 33, unit))
        return Markup('').join(parts)


def _free_place(
    x: float, y: float, width: float, plot: _Plot, taken: Sequence[tuple]
) -> tuple[tuple[float, float, float, float], str]:
    """A box for a name near a point that covers nothing else, and the side it is anchored at."""
    half = _FONT / 2 + 1
    choices = []
    for far in range(5):
        for up in (0, *(sign * step for step in range(1, 3 + 2 * far) for sign in (-1, 1))):
            middle, gap = y + up * (_FONT + 2), 9 + 12 * far
            choices += [((x + gap, middle - half, x + gap + width, middle + half), 'start'),
                        ((x - gap - width, middle - half, x - gap, middle + half), 'end')]
            if up and not far:
                sides = (x - width / 2, middle - half, x + width / 2, middle + half)
                choices.append((sides, 'middle'))
    for box, anchor in choices:
        inside = (plot.left <= box[0] and box[2] <= plot.right + 12
                  and plot.top - 4 <= box[1] and box[3] <= plot.bottom)
        if inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]
            for other in taken
        ):
            return box, anchor
    if choices[0][0][2] > plot.right + 12:
        return choices[1]
    return choices[0]


def _svg(width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        width, height, label, Markup('').join(parts))


def _range(values: Sequence[float], margin: float = 0.0) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        space = abs(low) * 0.1 or 1.0
        return low - space, high + space
    return low - margin * (high - low), high + margin * (high - low)


def _mean(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return tuple(sum(values) / len(points) for values in zip(*points, strict=True))


def _text(value: float) -> str:
    """A number at an axis, short."""
    size = abs(value)
    if size >= 1e6:
        return f'{value / 1e6:.3g}M'
    if size >= 1e4 or (size >= 1e3 and value % 100 == 0):
        return f'{value / 1e3:.3g}k'
    if 0 < size < 1e-3:
        mantissa, power = f'{value:.1e}'.split('e')
        return f'{float(mantissa):g}e{int(power)}'
    return f'{value:.4g}'
