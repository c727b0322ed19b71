"""The page of a comparison, or of several runs side by side."""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpt_dense import params, tasks
from vpt_dense.argument_checks import is_number
from vpt_dense.comparison.report import MARK, format_score
from vpt_dense.errors import UserError, explain
from vpt_dense.report import charts, page, parts, records
from vpt_dense.report import run as run_page
from vpt_dense.report.run import Run

#: The file that a folder of a comparison has.
TABLE = 'table.json'
#: Key of a row -> heading, how it is written, for what is known of methods beside the score.
_FIGURES = {
    'trainable': ('trainable', ','),
    'backbone_trainable': ('of these in the backbone', ','),
    'percent': ('% of the model', '.3g'),
    'disk_megabytes': ('on disk, MB', ',.2f'),
    'train_ms': ('training, ms/image', ',.2f'),
    'test_ms': ('testing, ms/image', ',.2f'),
    'peak_megabytes': ('peak memory, MB', ',.0f'),
    'train_seconds': ('trained for, s', ',.0f'),
}


@dataclass
class Entry:
    """A row of the page.

    Attributes:
        name: What it is called.
        row: As :func:`vpt_dense.comparison.report.summarise` makes it; older ones may lack keys.
        runs: By seed, those whose folders are there.
    """

    name: str
    row: Mapping[str, Any]
    runs: dict[Any, Run] = field(default_factory=dict)

    def first(self) -> Run | None:
        """The run of the first seed that is there."""
        return next(iter(self.runs.values()), None)


def is_comparison(folder: Path) -> bool:
    """Whether a folder is one of a comparison."""
    return (folder / TABLE).is_file()


def write_comparison(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a comparison.

    Args:
        folder: With ``table.json``, and the runs.
        out: The page; None: in that folder.

    Returns:
        The page.

    Raises:
        UserError: If the table cannot be read.
    """
    problems: list[str] = []
    table = records.read(folder / TABLE, dict, problems)
    rows = (table or {}).get('rows')
    if not isinstance(rows, list) or not all(isinstance(row, dict) and 'method' in row and
                                             is_number(row.get('mean')) for row in rows):
        reason = problems[0] if problems else f'{TABLE} has no rows with a method and a mean'
        raise UserError(f'{folder} holds no comparison: {reason}')
    entries = [
        Entry(str(row.get('name', row['method'])), _whole(row), _runs_of(folder, row, table))
        for row in rows
    ]
    metric = table.get('metric') or next(
        (run.metric() for entry in entries for run in entry.runs.values()), 'score')
    described = _describe(folder.resolve().name, metric, 'test', entries, table, problems)
    return page.write(described, out or folder / page.NAME)


def try_to_write(folder: Path) -> Path | None:
    """Write the page of a comparison; if it cannot be made, a line says so and None is returned.

    What was compared is in other files already, and no error of a page may hide it.
    """
    try:
        return write_comparison(folder)
    except Exception as error:
        print(f'{page.NAME} could not be written: {explain(error)}', file=sys.stderr)
        return None


def write_runs(folders: Sequence[Path], out: Path) -> Path:
    """Write a page of several runs side by side.

    Args:
        folders: Of the runs.
        out: The page.

    Raises:
        UserError: If they have no score in common.
    """
    runs = [run_page.load(folder) for folder in folders]
    problems = [f'{run.folder}: {told}' for run in runs for told in run.problems]
    metric, where, scores = _common_score(runs)
    entries = []
    for name, run, score in zip(_names_of(folders), runs, scores, strict=True):
        counts, summary, seed = run.counts() or {}, run.summary or {}, run.identity().get('seed')
        row = {
            'method': name, 'mean': score, 'std': None, 'scores': [score], 'seeds': [seed],
            'trainable': counts.get('trainable'), 'percent': counts.get('percent'),
            'train_seconds': summary.get('wall_time_seconds'),
        }  # fmt: skip
        if isinstance(counts.get('parts'), dict):
            both = {key: (n['trainable'], n['total']) for key, n in counts['parts'].items()}
            row['backbone_trainable'] = params.backbone_trainable(both)
        entries.append(Entry(name, _whole(row), {seed: run}))
    return page.write(
        _describe(f'{len(runs)} runs', metric, where, entries, {}, problems), out)


def _describe(
    title: str, metric: str, where: str, entries: list[Entry], table: Mapping[str, Any],
    problems: list[str],
) -> dict[str, Any]:
    label, head = parts.label_of(metric), _head_only(entries)

    def attempt(what: str, make: Callable, *args: Any) -> Any:
        return parts.attempt(problems, what, make, *args)

    failures = table.get('failures') or {}
    failed = {'kind': 'list', 'lines': [f'{name}: {error}' for name, error in failures.items()]}
    sections = [
        parts.section('Scores', [attempt('scores', _scores, metric, where, entries, head),
                                 attempt('plot', _plot, metric, f'{label} ({where})', entries)]),
        parts.section('Failures', [failed if failures else None]),
        parts.section('Pictures', attempt('pictures', _pictures, entries, head, metric) or []),
        parts.section('Classes', [attempt('classes', _classes, entries, head, metric)]),
        parts.section('Training', [attempt('curves', _curves, metric, entries)]),
        parts.section('Search', [attempt('search', _searched, table)]),
        parts.section('How to repeat it', [
            attempt('command', _about, table, entries),
            *(attempt('configs', _config, entry) for entry in entries)]),
    ]  # fmt: skip
    missing = [entry.name for entry in entries if not entry.runs]
    if missing:
        problems.append(f'The folders of these runs are not there: {", ".join(missing)}.')
    if entries and not any(entry.first() and entry.first().pictures for entry in entries):
        problems.append('No pictures: the runs have left none (pictures_test.json).')
    return {
        'kicker': 'Comparison', 'title': title,
        'subtitle': f'{len(entries)} method{"s" * (len(entries) != 1)} by {label} on the test split'
        if table else f'Side by side, by {label} of the {where}',
        'tiles': attempt('figures', _tiles, metric, entries, head, failures) or [],
        'sections': [each for each in sections if each],
        'problems': problems,
    }


# --- what is compared ------------------------------------------------------------------------


def _whole(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all that is read of it; what it lacks is None."""
    scores = row.get('scores') or [row['mean']]
    found = {key: row.get(key) for key in _FIGURES}
    return {**row, **found, 'scores': scores, 'seeds': row.get('seeds') or [0] * len(scores),
            'std': row.get('std'), 'marked': row.get('marked', False)}


def _runs_of(folder: Path, row: Mapping[str, Any], table: Mapping[str, Any]) -> dict[Any, Run]:
    """Seed -> run, of those folders whose record has the method, the seed and the score."""
    wanted = dict(zip(row.get('seeds') or (), row.get('scores') or (), strict=False))
    found = {}
    for file in sorted(folder.glob('*/run.json'), key=lambda file: file.stat().st_mtime):
        try:
            known = json.loads(file.read_text(encoding='utf-8'))
            metrics = known['metrics']
            metric = table.get('metric')
            scores = [metrics.get(metric)] if metric else metrics.values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        seed = known.get('seed')
        if known.get('method') == row['method'] and seed in wanted and wanted[seed] in scores:
            found[seed] = run_page.load(file.parent)
    return {seed: found[seed] for seed in wanted if seed in found}


def _common_score(runs: Sequence[Run]) -> tuple[str, str, list[float]]:
    """The metric that all runs have, which evaluation it is of, and the scores."""
    names = dict.fromkeys(name for run in runs if (name := run.metric()))
    for name in names:
        for where in ('test', 'best validation', 'validation'):
            scores = [run.scores().get(where, {}).get(name) for run in runs]
            if all(map(is_number, scores)):
                return name, where, scores
    without = [str(run.folder) for run in runs if run.score() is None]
    if without:
        raise UserError(f'nothing to compare: {", ".join(without)} has no score')
    raise UserError(
        f'nothing to compare: the runs have no metric in common ({", ".join(names)}), of the test '
        'or of a validation')


def _names_of(folders: Sequence[Path]) -> list[str]:
    """What the runs are called: the shortest ends of their folders' paths that all differ."""
    paths = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, paths)) + 1):
        names = ['/'.join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _head_only(entries: Sequence[Entry]) -> Entry | None:
    """The entry whose head alone trains, which others are compared with."""
    found = [entry for entry in entries if entry.row['backbone_trainable'] == 0]
    found.sort(key=lambda entry: entry.row['method'] not in ('head', 'head-only'))
    return found[0] if found and len(entries) > 1 else None


# --- parts of the page -----------------------------------------------------------------------


def _sign(metric: str) -> int:
    task = tasks.metrics().get(metric)
    return -1 if task and task.less_is_better else 1


def _difference(value: float, other: float, metric: str) -> dict[str, str]:
    """The note of a cell: a difference, good or bad."""
    difference = value - other
    digits = tasks.decimals(metric, value)
    better = _sign(metric) * round(difference, digits)
    return {'note': f'{difference:+.{digits}f}'.replace('-', '−'),
            'tone': 'good' if better > 0 else 'bad' if better < 0 else ''}


def _tiles(
    metric: str, entries: Sequence[Entry], head: Entry | None, failures: Mapping[str, str]
) -> list[dict[str, str]]:
    best = max(entries, key=lambda entry: _sign(metric) * entry.row['mean'])
    tiles = [{'label': f'best {parts.label_of(metric)}',
              'value': format_score(best.row, metric=metric), 'note': best.name}]  # fmt: skip
    if head and head is not best:
        tiles.append({
            'label': f'{head.name}, backbone frozen',
            'value': format_score(head.row, metric=metric),
            'note': f'{best.row["mean"] - head.row["mean"]:+.2f} with {best.name}'})
    share = best.row['percent']
    if is_number(best.row['trainable']):
        tiles.append({
            'label': f'trainable with {best.name}', 'value': parts.short(best.row['trainable']),
            'note': f'{params.format_percent(share)} of the model' if is_number(share) else ''})
    runs = sum(len(entry.row['scores']) for entry in entries)
    seeds = dict.fromkeys(seed for entry in entries for seed in entry.row['seeds'])
    note = f'seeds {", ".join(map(str, seeds))}' if len(seeds) > 1 else (
        f'seed {next(iter(seeds))}' if any(seed is not None for seed in seeds) else '')
    if failures:
        note = f'{note}; {len(failures)} failed'.lstrip('; ')
    tiles.append({'label': 'runs', 'value': str(runs), 'note': note})
    return tiles


def _scores(
    metric: str, where: str, entries: Sequence[Entry], head: Entry | None
) -> dict[str, Any] | None:
    if not entries:
        return None
    seeds = list(dict.fromkeys(seed for entry in entries for seed in entry.row['seeds']))
    several = len(seeds) > 1 and all(len(entry.row['seeds']) == len(set(entry.row['seeds']))
                                     for entry in entries)
    most = max(entry.row['mean'] for entry in entries)
    most = 100.0 if 1 < most <= 100 else most
    known = {key: told for key, told in _FIGURES.items()
             if any(is_number(entry.row[key]) for entry in entries)}  # fmt: skip
    columns = ['method', f'{parts.label_of(metric)} ({where})']
    columns += [f'against {head.name}'] if head else []
    columns += [f'seed {seed}' for seed in seeds] if several else []
    columns += [heading for heading, _ in known.values()]
    rows = []
    for entry in entries:
        row = entry.row
        cells = [parts.cell(entry.name, head=True),
                 parts.cell(format_score(row, 2, metric), row['mean'],
                            100 * row['mean'] / (most or 1))]
        if head:
            difference = _difference(row['mean'], head.row['mean'], metric)
            cells.append(parts.cell(None) if entry is head else parts.cell(
                '', row['mean'] - head.row['mean'], **difference))
        if several:
            by_seed = dict(zip(row['seeds'], row['scores'], strict=False))
            form = f'.{tasks.decimals(metric, row["mean"])}f'
            cells += [parts.number(by_seed.get(seed), form) for seed in seeds]
        cells += [parts.number(row[key], form) for key, (_, form) in known.items()]
        rows.append(cells)
    note = f'{MARK.strip()}: lacks seeds that other rows have, do not compare with those.' if any(
        entry.row['marked'] for entry in entries) else ''
    return parts.table('Methods', columns, rows, note)


def _plot(metric: str, label: str, entries: Sequence[Entry]) -> dict[str, Any] | None:
    points = [
        charts.Point(entry.name + MARK * entry.row['marked'], entry.row['backbone_trainable'],
                     entry.row['mean'], entry.row['std'] or 0.0)
        for entry in entries if is_number(entry.row['backbone_trainable'])
    ]  # fmt: skip
    if len(points) < 2:
        return None
    told = '; '.join(f'{point.name} {tasks.told(metric, point.y)} with {point.x:,}'
                     for point in points)
    wide, narrow = (
        charts.scatter(points, f'{label} over trainable parameters beside the head: {told}',
                       'trainable parameters beside the head', label, *size)
        for size in ((1080, 400), (360, 340)))
    return {'kind': 'charts', 'charts': [{
        'title': 'Score over parameters', 'svg': narrow, 'wide': wide, 'legend': [],
        'note': '0: the head alone. The axis is logarithmic.'}]}  # fmt: skip


def _pictures(
    entries: Sequence[Entry], head: Entry | None, metric: str
) -> list[dict[str, Any] | None]:
    found = {entry.name: run for entry in entries
             if (run := entry.first()) and run.pictures}  # fmt: skip
    if not found:
        return []
    split = {run.pictured for run in found.values()}
    where = 'test split' if split == {'test'} else 'validation split'
    best = max((entry for entry in entries if entry.name in found and entry is not head),
               key=lambda entry: _sign(metric) * entry.row['mean'], default=head)
    return parts.galleries({name: run.pictures for name, run in found.items()}, where,
                           head and head.name, best and best.name)  # fmt: skip


def _classes(
    entries: Sequence[Entry], head: Entry | None, metric: str
) -> dict[str, Any] | None:
    """Class x method of the first result by class, the mean of the seeds that have it."""
    tables = {}  # name of the entry -> class -> values of the seeds
    key = None
    for entry in entries:
        for run in entry.runs.values():
            for row in (run.per_class() or ((), ''))[0]:
                key = key or next((k for k, v in row.items() if is_number(v)), None)
                if key and is_number(row.get(key)):
                    own = tables.setdefault(entry.name, {})
                    own.setdefault(row['class'], []).append(row[key])
    if not tables:
        return None
    classes = dict.fromkeys(name for own in tables.values() for name in own)
    means = {name: {label: statistics.mean(values) for label, values in own.items()}
             for name, own in tables.items()}  # fmt: skip
    base = means.get(head.name) if head else None
    rows = []
    for label in classes:
        cells = [parts.cell(label, head=True)]
        for name, own in means.items():
            value, other = own.get(label), (base or {}).get(label)
            note = {} if value is None or other is None or name == head.name else _difference(
                value, other, metric)
            cells.append(parts.number(value, bar=len(means) < 5, **note))
        rows.append(cells)
    several = any(len(values) > 1 for own in tables.values() for values in own.values())
    note = f'{"Means of the seeds. " if several else ""}' + (
        f'Small figures: the difference to {head.name}.' if base else '')
    return parts.table(f'{key} by class', ['class', *means], rows, note.strip())


def _curves(metric: str, entries: Sequence[Entry]) -> dict[str, Any] | None:
    """The validations of the first seed of every method."""
    lines = []
    for entry in entries:
        run = entry.first()
        points = [(e['iter'], e['metrics'][metric]) for e in run and run.evaluations or ()
                  if is_number((e['metrics'] or {}).get(metric))]  # fmt: skip
        if len(points) > 1:
            lines.append(charts.Line(entry.name, points))
    if not lines:
        return None
    label = f'{parts.label_of(metric)} of the validations'
    wide = charts.lines(lines, label, 'iteration', 1080, 320)
    narrow = charts.lines(lines, label, 'iteration', 360, 260)
    return {'kind': 'charts', 'charts': [{
        'title': label, **narrow, 'wide': wide['svg'],
        'legend': narrow['legend'] or [(0, lines[0].name)]}]}  # fmt: skip


def _searched(table: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings that a search has found, a column each."""
    searched = table.get('searched')
    if not searched:
        return None
    found = {method: dict(option.split('=', 1) for option in options)
             for method, options in searched.items()}  # fmt: skip
    keys = list(dict.fromkeys(key for own in found.values() for key in own))
    rows = [[parts.cell(method, head=True), *(_setting(own.get(key)) for key in keys)]
            for method, own in found.items()]  # fmt: skip
    trials = table.get('trials')
    note = f'The best of {trials} trials of each method, on validation.' if trials else ''
    return parts.table('What the search found', ['method', *keys], rows, note)


def _setting(text: str | None) -> dict[str, Any]:
    try:
        return parts.cell(text, None if text is None else float(text))
    except ValueError:
        return parts.cell(text)


def _about(table: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any] | None:
    amp = table.get('amp')
    found = parts.facts([
        ('command', table.get('command')), ('cost', table.get('cost')),
        ('mixed precision', None if amp is None else 'yes' if amp else 'no'),
        ('threads of a run', table.get('threads')),
        ('versions', run_page.versions_of(_versions(table, entries))),
    ])
    return found if found['pairs'] else None


def _versions(table: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Any]:
    if table.get('versions'):
        return {'versions': table['versions']}
    return next((run.identity() for entry in entries for run in entry.runs.values()
                 if run.identity().get('versions')), {})  # fmt: skip


def _config(entry: Entry) -> dict[str, Any] | None:
    run = entry.first()
    text = run and records.config_text(run.folder, run.identity().get('config'))
    return parts.code(f'Config of {entry.name}', text) if text else None
