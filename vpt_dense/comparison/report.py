"""The results of a comparison: rows, tables and a picture."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt_dense import safe_files, tables, tasks
from vpt_dense.argument_checks import is_number
from vpt_dense.errors import UserError, suggest

#: Key of a row -> heading of its column in Markdown. CSV has the keys themselves.
COLUMNS = {
    'method': 'method',
    'score': '',  # the metric's name
    'seeds': 'seeds',
    'trainable': 'trainable',
    'backbone_trainable': 'of these in the backbone',
    'disk_megabytes': 'on disk, MB',
    'train_ms': 'training, ms/image',
    'test_ms': 'testing, ms/image',
    'peak_megabytes': 'peak memory, MB',
}
#: Behind the score of a row that has not all the seeds of the others.
MARK = ' †'
#: Of the points (M. Okabe and K. Ito's, which the colour-blind can tell apart).
_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_MARKS = 'os^Dv'


def find_metric(results: Sequence[Mapping[str, Any]], wanted: str | None = None) -> str:
    """Choose the metric that all results have.

    Args:
        results: As :meth:`vpt_dense.comparison.runs.Comparison.run_one` returns them.
        wanted: Its name; None: that of a task (mIoU, accuracy/top1), whichever they have.

    Raises:
        UserError: If a result lacks it.
    """
    first = results[0]['metrics']
    known = [name for name, value in first.items() if is_number(value, finite=False)]
    name = wanted or next((name for name in tasks.metrics() if name in known), None)
    for result in results:
        if not is_number(result['metrics'].get(name), finite=False):
            hint = suggest(name, known) if name else ''
            raise UserError(
                f'--metric: {result["method"]}, seed {result["seed"]}, has no number '
                f"{name or ' or '.join(tasks.metrics())}; its metrics: "
                f'{", ".join(result["metrics"])}{hint}'
            )
    return name


def summarise(
    results: Sequence[Mapping[str, Any]],
    metric: str,
    methods: Sequence[str],
    costs: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Gather the seeds of every method.

    Args:
        results: As :meth:`vpt_dense.comparison.runs.Comparison.run_one` returns them.
        metric: Name of the metric.
        methods: The order of the rows; methods without a result have none.
        costs: Method -> what :func:`vpt_dense.comparison.cost.measure` returned.

    Returns:
        One row a method: ``method``, ``mean``, ``std`` (sample standard deviation; None for one
        seed), ``scores`` and ``seeds`` in one order, ``marked`` (whether seeds lack that other rows
        have), the counts of its first result,
        ``disk_megabytes`` (mean), ``train_seconds`` (mean of the runs that know it, else None),
        and ``train_ms``, ``test_ms``, ``peak_megabytes`` (None if not measured).
    """
    rows = []
    for method in methods:
        own = [result for result in results if result['method'] == method]
        if not own:
            continue
        scores = [result['metrics'][metric] for result in own]
        seconds = [r['train_seconds'] for r in own if r['train_seconds'] is not None]
        cost = (costs or {}).get(method) or {}
        rows.append(dict(
            method=method, mean=statistics.mean(scores),
            std=spread(scores) if len(scores) > 1 else None, scores=scores,
            seeds=[result['seed'] for result in own],
            **{key: own[0][key] for key in
               ('trainable', 'backbone_trainable', 'total', 'percent', 'tuned_megabytes')},
            sets=_of_sets(own, metric),
            disk_megabytes=statistics.mean(result['disk_megabytes'] for result in own),
            train_seconds=statistics.mean(seconds) if seconds else None,
            **{key: cost.get(key) for key in ('train_ms', 'test_ms', 'peak_megabytes')},
        ))
    all_seeds = {seed for row in rows for seed in row['seeds']}
    return [{**row, 'marked': set(row['seeds']) != all_seeds} for row in rows]


def _of_sets(results: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
    """Test set -> the mean of its metric over the seeds; empty where there is one test set."""
    names = [key.removesuffix(f'/{metric}') for key in results[0]['metrics']
             if key.endswith(f'/{metric}')]
    return {name: statistics.mean(result['metrics'][f'{name}/{metric}'] for result in results)
            for name in names if all(f'{name}/{metric}' in r['metrics'] for r in results)}


def spread(values: Sequence[float]) -> float:
    """The sample standard deviation; nan if a value is none, which the library stumbles over."""
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def format_score(row: Mapping[str, Any], digits: int = 1, metric: str = '') -> str:
    """Mean and spread of a row, with a mark if its seeds are not those of the others."""
    digits = tasks.decimals(metric, row['mean'], digits)
    spread = '' if row['std'] is None else f' ± {row["std"]:.{digits}f}'
    return f'{row["mean"]:.{digits}f}{spread}{MARK if row["marked"] else ""}'


def cells(row: Mapping[str, Any], metric: str = '') -> list[str]:
    """A row as text, as :func:`headings` says; a dash for what was not measured."""

    def number(key: str, form: str) -> str:
        return '-' if row[key] is None else format(row[key], form)

    return [
        row['method'], format_score(row, 2, metric),
        *(tasks.told(metric, score) for score in row.get('sets', {}).values()),
        ' '.join(map(str, row['seeds'])),
        f'{row["trainable"]:,}',
        f'{row["backbone_trainable"]:,}', number('disk_megabytes', ',.2f'),
        number('train_ms', ',.2f'), number('test_ms', ',.2f'), number('peak_megabytes', ',.0f'),
    ]


def headings(metric: str, rows: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """The headings of :func:`cells`: :data:`COLUMNS`, behind the score one a test set."""
    sets = list(rows[0].get('sets', {})) if rows else []
    first, score, *others = COLUMNS.values()
    return [first, score or f'{metric} (test)', *sets, *others]


def write(
    rows: Sequence[Mapping[str, Any]],
    metric: str,
    folder: Path,
    notes: Mapping[str, Any],
    failures: Mapping[str, str],
) -> list[Path]:
    """Write the table as ``table.md``, ``table.csv`` and ``table.json``.

    Args:
        rows: As :func:`summarise` returns them.
        metric: Name of the metric.
        folder: Where to.
        notes: What the figures were made with: ``command``, ``cost`` (sentence on the
            measurements, or None) and more, all of it for the JSON file.
        failures: What failed -> its error.

    Returns:
        The files.
    """
    table = tables.markdown(headings(metric, rows), [cells(row, metric) for row in rows])
    text = [table, f'`{notes["command"]}`']
    if any(row['marked'] for row in rows):
        text.append(f'{MARK.strip()}: lacks seeds that other rows have, do not compare with those.')
    if notes.get('cost'):
        text.append(notes['cost'])
    text += [f'Failed: {name}: {error}' for name, error in failures.items()]
    stream = io.StringIO()
    others = [key for key in COLUMNS if key not in ('method', 'score', 'seeds')]
    keys = ['method', 'mean', 'std', *others]
    sets = list(rows[0].get('sets', {})) if rows else []
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow([*keys, 'seeds', 'scores', *sets])
    for row in rows:
        lists = [' '.join(map(str, row[key])) for key in ('seeds', 'scores')]
        writer.writerow([*('' if row[key] is None else row[key] for key in keys), *lists,
                         *row.get('sets', {}).values()])
    content = {'metric': metric, **notes, 'rows': list(rows), 'failures': dict(failures)}
    written = {
        'table.md': '\n\n'.join(text) + '\n',
        'table.csv': stream.getvalue(),
        'table.json': json.dumps(content, indent=1) + '\n',
    }
    for name, content in written.items():
        safe_files.write_text(folder / name, content)
    return [folder / name for name in written]


def draw(rows: Sequence[Mapping[str, Any]], metric: str, out: Path) -> None:
    """Draw the metric over the trainable parameters of the backbone part, with error bars.

    The axis is logarithmic down to the smallest count, below that linear to 0 (head-only).

    Args:
        rows: As :func:`summarise` returns them.
        metric: Its name.
        out: The picture; its suffix tells the format. Equal rows give equal SVG files.
    """
    import matplotlib

    matplotlib.use('Agg')
    matplotlib.rcParams['svg.hashsalt'] = 'vpt_dense'
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6.5), layout='constrained')
    positive = [row['backbone_trainable'] for row in rows if row['backbone_trainable']]
    axes.set_xscale('symlog', linthresh=min(positive, default=1), linscale=0.5)
    points = []
    for index, row in enumerate(rows):
        x, y, spread = row['backbone_trainable'], row['mean'], row['std'] or 0
        colour = _COLOURS[index % len(_COLOURS)]
        axes.errorbar(x, y, spread, color=colour, marker=_MARKS[index % len(_MARKS)],
                      markersize=5, capsize=2)
        points.append((row['method'] + MARK * row['marked'], x, y, spread, colour))
    axes.set(xlabel='trainable parameters beside the head (0: the head alone)',
             ylabel=f'{metric} (test)')
    axes.grid(color='0.9')
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(0.06)
    _label(figure, axes, points)
    svg = out.suffix == '.svg'
    with safe_files.atomic(out) as unfinished:
        figure.savefig(
            unfinished, format=out.suffix[1:], metadata={'Date': None} if svg else None, dpi=150
        )
    pyplot.close(figure)


def _label(figure: Any, axes: Any, points: Sequence[tuple]) -> None:
    """Write names beside points, where they cover neither points nor one another.

    Args:
        figure: The figure.
        axes: Its axes, with all points drawn.
        points: (name, x, y, half the length of the error bar, colour) of each.
    """
    import numpy as np
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # settles the layout: from here on sizes are known
    scale = figure.dpi / 72
    centres = [axes.transData.transform(point[1:3]) for point in points]
    taken = []
    for (_, x, y, spread, _), centre in zip(points, centres, strict=True):
        bar = axes.transData.transform((x, y + spread))[1] - centre[1]
        reach = np.array([4 * scale, max(4 * scale, bar + 2 * scale)])
        taken.append(Bbox([centre - reach, centre + reach]))
    # Offsets in points: beside first, then up and down, then further away.
    offsets = [(side * (7 + 8 * far), 10 * sign * step) for far in range(4)
               for step in range(3 + 2 * far) for sign in (1, -1) for side in (1, -1)]
    for (name, x, y, _, colour), centre in zip(points, centres, strict=True):
        text = axes.annotate(name, (x, y), offsets[0], textcoords='offset points', va='center',
                             fontsize='small', color=colour)
        extent = text.get_window_extent()
        for dx, dy in offsets:
            left = centre[0] + dx * scale - (extent.width if dx < 0 else 0)
            bottom = centre[1] + dy * scale - extent.height / 2
            box = Bbox.from_bounds(left, bottom, extent.width, extent.height)
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and (
                axes.bbox.y0 <= box.y0 and box.y1 <= axes.bbox.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:  # no room: beside the point, over whatever is there
            (dx, dy), box = offsets[0], extent
        taken.append(box)
        text.remove()
        axes.annotate(
            name, (x, y), (dx, dy), textcoords='offset points', va='center', fontsize='small',
            color=colour, ha='left' if dx > 0 else 'right',
            arrowprops=dict(arrowstyle='-', color=colour, linewidth=0.5)
            if (abs(dx), dy) != (7, 0) else None,
        )
