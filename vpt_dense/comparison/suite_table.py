"""The table of a suite: tasks x methods, and what is said of all tasks together."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpt_dense import safe_files, tables, tasks
from vpt_dense.comparison import page, report
from vpt_dense.comparison.suite import Cell, Suite

#: Share of the intervals.
LEVEL = 0.95
#: What is said of all tasks, by its key in ``table.json``.
_NAMES = {
    'group_mean': 'mean of group means', 'mean': 'mean of all tasks', 'won': 'won',
    'parameters': 'total parameters', 'difference': 'difference', 'wilcoxon': 'Wilcoxon, p'}


def gather(suite: Suite, states: Mapping[Cell, Mapping[str, Any]]) -> dict[str, Any]:
    """All that the table says.

    Args:
        suite: The suite.
        states: What there is of every cell, see :meth:`vpt_dense.comparison.suite.Suite.state`.

    Returns:
        ``cells``: one record a task and method, with ``task``, ``group``, ``method``, ``metric``,
        ``mean``, ``std``, ``scores``, ``seeds``, ``found``, ``missing`` and ``failures``;
        ``groups``: group -> method -> mean over its tasks; ``summary``: key -> method -> value, see
        :func:`summarise`; ``missing``: what is not there, a line each; ``notes``: what hinders a
        row.
    """
    cells = []
    for cell in suite.cells():
        state = states[cell]
        record = dict(
            task=cell.task, group=suite.tasks[cell.task].group, method=cell.method,
            metric=None, mean=None, std=None, scores=[], seeds=[], found=state['found'],
            missing=state['missing'], failures=state['failures'])
        if state['results']:
            metric = report.find_metric(state['results'])
            row, = report.summarise(state['results'], metric, [cell.method])
            record.update(
                metric=metric, **{key: row[key] for key in (
                    'mean', 'std', 'scores', 'seeds', 'trainable', 'backbone_trainable')},
                backbone_total=state['results'][0].get('backbone_total'))
        cells.append(record)
    return dict(cells=cells, **summarise(cells, suite.methods, suite.reference))


def summarise(
    cells: Sequence[Mapping[str, Any]], methods: Sequence[str], reference: str | None
) -> dict[str, Any]:
    """Means, wins, parameters and tests over tasks.

    A value over tasks is None for a method that lacks a run of one of them.

    Args:
        cells: Records of tasks and methods, see :func:`gather`.
        methods: Names of methods.
        reference: The method that others are compared with, or None.

    Returns:
        ``groups``, ``summary``, ``missing`` and ``notes``. ``summary`` has, by method:
        ``group_mean`` (None without groups), ``mean``, ``won`` (tasks, against the reference),
        ``parameters`` (of all tasks, in backbones; None where these differ), ``difference`` (mean
        of the paired differences from the reference, and the ends of its 95 % t interval) and
        ``wilcoxon`` (p, two-sided).
    """
    by = {(cell['task'], cell['method']): cell for cell in cells}
    groups = {cell['task']: cell['group'] for cell in cells}
    metrics = list(dict.fromkeys(cell['metric'] for cell in cells if cell['metric']))
    known = tasks.metrics()
    lower = bool(metrics) and metrics[0] in known and known[metrics[0]].less_is_better
    notes = []
    if len(metrics) > 1:
        notes.append(f'No means over tasks, as their metrics differ: {", ".join(metrics)}.')
    if len({cell.get('backbone_total') for cell in cells if cell['metric']}) > 1:
        notes.append('No total of parameters over tasks whose backbones have different sizes.')

    def scores(method: str, names: Sequence[str]) -> list[float] | None:
        """The scores of tasks; None if one is not whole."""
        found = [by[name, method] for name in names]
        return None if any(cell['missing'] for cell in found) else [cell['mean'] for cell in found]

    def mean(values: list[float] | None) -> float | None:
        return statistics.fmean(values) if values and len(metrics) == 1 else None

    members: dict[str, list[str]] = {}
    for task, group in groups.items():
        members.setdefault(group, []).append(task)
    means = {
        group: {method: mean(scores(method, names)) for method in methods}
        for group, names in members.items() if group is not None}
    summary: dict[str, dict[str, Any]] = {key: {} for key in _NAMES}
    for method in methods:
        own = scores(method, list(groups))
        of_groups = [means[group][method] for group in means]
        whole = bool(of_groups) and None not in of_groups
        summary['group_mean'][method] = statistics.fmean(of_groups) if whole else None
        summary['mean'][method] = mean(own)
        summary['parameters'][method] = _parameters(
            [by[task, method] for task in groups]) if own else None
        other = scores(reference, list(groups)) if reference and method != reference else None
        for key in ('won', 'difference', 'wilcoxon'):
            summary[key][method] = None
        if own and other:
            pairs = list(zip(own, other, strict=True))
            signs = [_less_is_better(by[task, method]['metric']) for task in groups]
            if all(math.isfinite(value) for value in (*own, *other)):  # nothing is above nan
                summary['won'][method] = sum(
                    (a < b if less else a > b) for (a, b), less in zip(pairs, signs, strict=True))
            if len(metrics) == 1:
                differences = [a - b for a, b in pairs]
                summary['difference'][method] = _interval(differences)
                summary['wilcoxon'][method] = _wilcoxon(differences)
    missing = [
        f'{cell["task"]}/{cell["method"]}: {", ".join(_missing(cell))}' for cell in cells
        if cell['missing']]
    return dict(reference=reference, less_is_better=lower, groups=means, summary=summary,
                missing=missing, notes=notes)


def _less_is_better(metric: str) -> bool:
    known = tasks.metrics()
    return metric in known and known[metric].less_is_better


def _missing(cell: Mapping[str, Any]) -> list[str]:
    """What a cell lacks, with the error where there was one."""
    errors = cell['failures']
    return [f'{name} ({errors[name]})' if name in errors else name for name in cell['missing']]


def _parameters(cells: Sequence[Mapping[str, Any]]) -> float | None:
    """The parameters of a method over all tasks, in backbones.

    As the VPT paper counts them (https://arxiv.org/abs/2203.12119, table 1): the backbone once, and
    for every task what it trains, its head too. Where all of the backbone trains, every task has
    its own and nothing is shared.
    """
    totals = {cell.get('backbone_total') for cell in cells}
    backbone = totals.pop()
    if totals or not backbone:
        return None  # several backbones, or records that do not say it
    shared = 0 if all(cell['backbone_trainable'] >= backbone for cell in cells) else backbone
    return (shared + sum(cell['trainable'] for cell in cells)) / backbone


def _interval(differences: Sequence[float]) -> list[float] | None:
    """Mean and the ends of its t interval; None of fewer than two."""
    count = len(differences)
    if count < 2:
        return None
    from scipy import stats

    mean = statistics.fmean(differences)
    half = stats.t.ppf((1 + LEVEL) / 2, count - 1) * report.spread(differences) / count**0.5
    return [mean, mean - half, mean + half]


def _wilcoxon(differences: Sequence[float]) -> float | None:
    """The p of the signed-rank test, two-sided; None of fewer than two."""
    if len(differences) < 2:
        return None
    if not any(differences):
        return 1.0
    from scipy import stats

    return float(stats.wilcoxon(differences).pvalue)


# --- files ---------------------------------------------------------------------------------------


def lay_out(table: Mapping[str, Any], suite: Suite) -> tuple[list[str], list[list[str]], int]:
    """The table as text.

    Returns:
        Headings, rows, and how many of the first columns are text.
    """
    by = {(cell['task'], cell['method']): cell for cell in table['cells']}
    grouped = bool(table['groups'])
    first = ['task', 'group'] if grouped else ['task']
    metrics = {cell['task']: cell['metric'] for cell in table['cells'] if cell['metric']}
    several = len(set(metrics.values())) > 1
    if several:
        first.append('metric')

    def row(name: str, texts: Sequence[str], group: str = '', metric: str = '') -> list[str]:
        lead = [name, *([group] if grouped else []), *([metric] if several else [])]
        return [*lead, *texts]

    def numbers(values: Mapping[str, Any], form: str) -> list[str]:
        return ['-' if values[method] is None else format(values[method], form)
                for method in suite.methods]

    rows = [
        row(task, [_score(by[task, method]) for method in suite.methods],
            suite.tasks[task].group or '', metrics.get(task, '-'))
        for task in suite.tasks]
    for group, values in table['groups'].items():
        count = sum(task.group == group for task in suite.tasks.values())
        rows.append(row(f'mean of {group} ({count})', numbers(values, '.2f'), group))
    summary = table['summary']
    if grouped:
        rows.append(row(_NAMES['group_mean'], numbers(summary['group_mean'], '.2f')))
    rows.append(row(f'{_NAMES["mean"]} ({len(suite.tasks)})', numbers(summary['mean'], '.2f')))
    rows.append(row(_NAMES['parameters'], [
        text if text == '-' else f'{text}x' for text in numbers(summary['parameters'], '.2f')]))
    if suite.reference:
        against = f'against {suite.reference}'
        rows.append(row(f'tasks won {against}', numbers(summary['won'], 'd')))
        rows.append(row(f'difference {against}, 95 % interval', [
            '-' if value is None else f'{value[0]:+.2f} [{value[1]:+.2f}, {value[2]:+.2f}]'
            for value in (summary['difference'][method] for method in suite.methods)]))
        rows.append(row(f'{_NAMES["wilcoxon"]} {against}', numbers(summary['wilcoxon'], '.2g')))
    return [*first, *suite.methods], rows, len(first)


def _score(cell: Mapping[str, Any]) -> str:
    if cell['mean'] is None:
        return '-'
    return report.format_score(dict(cell, marked=bool(cell['missing'])), 2)


def write(table: Mapping[str, Any], suite: Suite, command: str) -> list[Path]:
    """Write ``table.md``, ``table.csv``, ``table.json``.

    Args:
        table: As :func:`gather` returns it.
        suite: The suite.
        command: What was called.

    Returns:
        The files.
    """
    header, rows, text_columns = lay_out(table, suite)
    searched = any(task.trials for task in suite.tasks.values())
    metrics = list(dict.fromkeys(cell['metric'] for cell in table['cells'] if cell['metric']))
    text = [
        tables.markdown(header, rows, text_columns), f'`{command}`',
        f'{", ".join(metrics) or "No run is finished"}: means of the test over seeds '
        f'{" ".join(map(str, suite.seeds))}, ± their standard deviation'
        + (', after a search of each task and method' if searched else '')
        + ('. Less is better' if table['less_is_better'] else '') + '.',
        'Total parameters: those of all tasks together, in backbones: the backbone once and what '
        'each task trains, its head too; a method that tunes the whole backbone needs one for each '
        'task.']
    if suite.reference:
        text.append(
            'Differences are paired by task: the t interval is for their mean, the test is '
            "Wilcoxon's signed-rank test, two-sided.")
    text += table['notes']
    if table['missing']:
        text.append(f'A value over tasks is - where a run is missing;{report.MARK} has not all '
                    'seeds. Missing:')
        text.append('\n'.join(f'- {line}' for line in table['missing']))
    content = dict(command=command, methods=suite.methods, seeds=suite.seeds,
                   amp=suite.precision(), **table)
    written = {
        'table.md': '\n\n'.join(text) + '\n', 'table.csv': _csv(table),
        'table.json': json.dumps(content, indent=1) + '\n'}
    suite.folder.mkdir(parents=True, exist_ok=True)
    for name, told in written.items():
        safe_files.write_text(suite.folder / name, told)
    return [suite.folder / name for name in written]


def _csv(table: Mapping[str, Any]) -> str:
    """Every number in a line of its own: of a task, of a group, of all tasks."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(['of', 'name', 'group', 'method', 'value', 'std', 'low', 'high', 'seeds',
                     'scores', 'missing'])

    def line(of: str, name: str, group: str, method: str, value: Any, *rest: Any) -> None:
        cells = [of, name, group, method, value, *rest]
        cells += [''] * (11 - len(cells))
        writer.writerow(['' if cell is None else cell for cell in cells])

    for cell in table['cells']:
        line('task', cell['task'], cell['group'], cell['method'], cell['mean'], cell['std'], '', '',
             *(' '.join(map(str, cell[key])) for key in ('seeds', 'scores')),
             ', '.join(cell['missing']))
    for group, values in table['groups'].items():
        for method, value in values.items():
            line('group', group, group, method, value)
    for key, values in table['summary'].items():
        for method, value in values.items():
            value, *ends = value if isinstance(value, list) else [value]
            line('suite', key, '', method, value, '', *ends)
    return stream.getvalue()


def write_pages(
    suite: Suite, states: Mapping[Cell, Mapping[str, Any]], command: str
) -> list[Path]:
    """Write the table and the page of each task that has results, as ``vpt-dense compare`` does.

    Args:
        suite: The suite.
        states: As in :func:`gather`.
        command: What was called.

    Returns:
        The pages.
    """
    pages = []
    for task in suite.tasks.values():
        own_cells = [cell for cell in states if cell.task == task.name]
        own = {cell.method: states[cell] for cell in own_cells}
        results = [result for state in own.values() for result in state['results']]
        if not results:
            continue
        metric = report.find_metric(results)
        rows = report.summarise(results, metric, suite.methods)
        failures = {f'{method}, {name}': error for method, state in own.items()
                    for name, error in state['failures'].items()}
        folder = suite.folder / task.name
        counts = sorted({suite.trials(cell) for cell in own_cells})
        notes = dict(
            command=command, cost=None, amp=results[0]['amp'], threads=results[0]['threads'],
            versions=results[0]['versions'], costs={},
            trials=' to '.join(map(str, counts)) if counts[-1] else None,
            searched={method: state['found'] for method, state in own.items()
                      if state['found']})
        report.write(rows, metric, folder, notes, failures)
        if found := page.try_to_write(folder):
            pages.append(found)
    return pages
