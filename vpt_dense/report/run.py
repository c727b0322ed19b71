"""The page of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vpt_dense import params, tasks
from vpt_dense.argument_checks import is_number
from vpt_dense.report import charts, page, parts, records
from vpt_dense.tree import as_list
from vpt_dense.tuning import ADDED


@dataclass
class Run:
    """What a run has left; None for what is not there.

    Attributes:
        folder: Of the run.
        summary: Of the training, if it has ended.
        test: Of the last test.
        val: Of the last validation without a training.
        evaluations: Of the training, as they came.
        params: Counts by part.
        pictures: Of the last test, or else of the last validation.
        pictured: Which of the two: 'test' or 'val'.
        problems: What cannot be read.
    """

    folder: Path
    summary: dict | None = None
    test: dict | None = None
    val: dict | None = None
    evaluations: list | None = None
    params: dict | None = None
    pictures: dict | None = None
    pictured: str = ''
    problems: list[str] = field(default_factory=list)

    def identity(self) -> dict[str, Any]:
        """The newest record that says what ran: of the training, else of a test."""
        return self.summary or self.test or self.val or {}

    def metric(self) -> str | None:
        """The name of the metric that counts."""
        known = (self.summary or {}).get('metric')
        if known:
            return known
        last = (self.evaluations or [{}])[-1]
        for record in (self.test, self.val, last):
            found = [name for name, value in ((record or {}).get('metrics') or {}).items()
                     if is_number(value)]  # fmt: skip
            for name in (*(name for name in tasks.metrics() if name in found), *found):
                return name
        return None

    def best(self) -> dict | None:
        """The best validation of the training."""
        if self.summary is not None:
            return self.summary.get('best')
        name = self.metric()
        task = tasks.metrics().get(name)
        scored = [e for e in self.evaluations or () if is_number(e['metrics'].get(name))]
        sign = -1 if task and task.less_is_better else 1
        return max(scored, key=lambda e: sign * e['metrics'][name], default=None)

    def scores(self) -> dict[str, dict[str, Any]]:
        """Which evaluation -> its metrics, those that count first."""
        last = (self.summary or {}).get('last') or (self.evaluations or [None])[-1]
        found = {
            'test': self.test, 'validation': self.val, 'best validation': self.best(),
            'last validation': last,
        }  # fmt: skip
        return {name: record['metrics'] for name, record in found.items()
                if record and record.get('metrics')}  # fmt: skip

    def score(self) -> tuple[float, str] | None:
        """The score that counts, and where it is from; None without any."""
        name = self.metric()
        for where, metrics in self.scores().items():
            if is_number(metrics.get(name)):
                return metrics[name], where
        return None

    def per_class(self) -> tuple[list[dict], str] | None:
        """Results by class, and which evaluation they are of."""
        best = self.best() or {}
        places = [(self.test, 'test'), (self.val, 'validation')]
        places += [(e, f'best validation, {_when(e)}') for e in self.evaluations or ()
                   if e.get('iter') == best.get('iter')]  # fmt: skip
        places += [(e, f'last validation, {_when(e)}') for e in (self.evaluations or ())[-1:]]
        return next(((record['per_class'], where) for record, where in places
                     if record and record.get('per_class')), None)  # fmt: skip

    def counts(self) -> dict | None:
        """Parameters by part."""
        return self.identity().get('params') or self.params


def is_run(folder: Path) -> bool:
    """Whether a folder is one of a run."""
    return any((folder / name).is_file() for name in records.OF_RUNS)


def load(folder: Path) -> Run:
    """Read what a run has left."""
    run = Run(folder)
    for name in ('summary', 'test', 'val', 'params'):
        setattr(run, name, records.read(folder / f'{name}.json', dict, run.problems))
    evaluations = records.read(folder / 'evaluations.json', list, run.problems)
    if evaluations is not None:
        run.evaluations = [each for each in evaluations if _scored(each)]
    # What all parts of a page read is as expected, or is not there.
    for name in ('summary', 'test', 'val'):
        record = getattr(run, name) or {}
        for key, fits in (('best', _scored), ('last', _scored), ('params', _is_dict),
                          ('metrics', _is_dict), ('method', _is_dict), ('versions', _is_dict)):
            if record.get(key) is not None and not fits(record[key]):
                run.problems.append(f'{name}.json: {key} is not as expected')
                record[key] = None
    for split in ('test', 'val'):
        if split == 'val' and run.test and not (run.summary or run.evaluations):
            continue
        run.pictures = records.read(folder / f'pictures_{split}.json', dict, run.problems)
        if run.pictures:
            run.pictured = split
            break
    return run


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _scored(record: Any) -> bool:
    return _is_dict(record) and _is_dict(record.get('metrics')) and is_number(record.get('iter'))


def write_run(folder: Path, out: Path | None = None) -> Path:
    """Write the page of a run.

    Args:
        folder: Of the run.
        out: The page; None: in that folder.

    Returns:
        The page.
    """
    return page.write(describe(load(folder)), out or folder / page.NAME)


def describe(run: Run) -> dict[str, Any]:
    """The page of a run, as the template takes it."""
    problems, identity = list(run.problems), run.identity()

    def attempt(what: str, make: Any, *args: Any) -> Any:
        return parts.attempt(problems, what, make, *args)

    sections = [
        parts.section('Training', [attempt('curves', _curves, run, problems)]),
        parts.section('Pictures', attempt('pictures', pictures_of, run) or []),
        parts.section('Scores', [attempt('scores', _scores, run),
                                 attempt('classes', _classes, run)]),
        parts.section('Parameters', [attempt('parameters', _parameters, run.counts())]),
        parts.section('How to repeat it', [
            attempt('what ran', _about, run), attempt('config', _config, run)]),
    ]  # fmt: skip
    problems += attempt('scores', _absent, run) or []
    config, folder = identity.get('config'), run.folder.resolve().name
    experiment = str(identity.get('experiment') or '')
    title = Path(config).stem if isinstance(config, str) else (
        experiment.removesuffix(f'_{records.stamp(experiment)}') or folder)
    kind = 'Run' if run.summary or run.evaluations or run.params else 'Test'
    return {
        'kicker': kind if folder == title else f'{kind} · {folder}',
        'title': title,
        'subtitle': attempt('method', method_of, identity) or '',
        'tiles': attempt('figures', _tiles, run) or [],
        'sections': [each for each in sections if each],
        'problems': problems,
    }


def _absent(run: Run) -> list[str]:
    told = []
    if not run.summary and (run.evaluations is not None or run.params):
        told.append('There is no summary.json: the training has not ended, or was interrupted.')
    if not run.scores():
        told.append('No scores: nothing was validated or tested.')
    elif not run.pictures:
        told.append('No pictures: the run has left none (pictures_val.json, pictures_test.json).')
    return told


# --- parts -----------------------------------------------------------------------------------


def method_of(identity: Mapping[str, Any]) -> str:
    """What trains, in a line."""
    method = identity.get('method') or {}
    added = [node for key in ADDED for node in as_list(method.get(key))]
    patterns = method.get('trainable')
    if added:
        return ', '.join(map(records.as_call, added))
    if patterns is None:
        return ''
    known = {(): 'head only: the backbone is frozen', ('.*',): 'full fine-tuning'}
    return known.get(tuple(patterns)) or f'the backbone trains {", ".join(patterns)}'


def _tiles(run: Run) -> list[dict[str, str]]:
    tiles, score, metric = [], run.score(), run.metric()
    if score:
        others = [f'{where} {tasks.told(metric, metrics[metric])}'
                  for where, metrics in run.scores().items()
                  if where != score[1] and is_number(metrics.get(metric))]  # fmt: skip
        tiles.append({'label': f'{parts.label_of(metric)}, {score[1]}',
                      'value': tasks.told(metric, score[0]),
                      'note': ' · '.join(others)})  # fmt: skip
    counts = run.counts()
    if counts:
        tiles.append({
            'label': 'trainable parameters', 'value': parts.short(counts['trainable']),
            'note': f'{counts["trainable"]:,} of {counts["total"]:,}, '
            f'{params.format_percent(counts["percent"])}'})
    summary = run.summary or {}
    time = parts.duration(summary.get('wall_time_seconds'))
    if time:
        begun = summary.get('started_at_iter')
        tiles.append({'label': 'time', 'value': time, 'note': f'since iteration {begun:,}' if begun
                      else f'{summary["iter"]:,} iterations'})  # fmt: skip
    memory = summary.get('peak_memory') or {}
    if parts.size(memory.get('bytes')):
        tiles.append({'label': 'peak memory', 'value': parts.size(memory['bytes']),
                      'note': memory.get('kind', '')})  # fmt: skip
    return tiles


def _curves(run: Run, problems: list[str]) -> dict[str, Any] | None:
    """Loss, learning rate and scores over the training."""
    if run.summary is None and run.evaluations is None and run.params is None:
        return None
    lines = records.scalars(run.folder, records.stamp((run.summary or {}).get('experiment')))
    found = [_chart('Loss', lines, _keys(lines, 'loss'), '.4g'),
             _chart('Learning rate', lines, _keys(lines, 'lr'), '.3g')]
    if not any(found):
        problems.append('No curves of the training: its log is not in the folder of the run.')
    scores = [{'step': e['iter'], **e['metrics']} for e in run.evaluations or () if e['metrics']]
    title = f'Validation, {parts.label_of(run.metric())}'
    judged = run.score()
    form = f'.{tasks.decimals(run.metric() or "", judged[0] if judged else 0.0)}f'
    found = [chart for chart in (*found, _chart(title, scores, [run.metric()], form)) if chart]
    return {'kind': 'charts', 'charts': found} if found else None


def _keys(lines: list[dict], kind: str) -> list[str]:
    """The keys of a log that are losses or rates, the sum or the first group in front."""
    keys = dict.fromkeys(key for line in lines for key, value in line.items() if is_number(value))
    if kind == 'lr':
        return [key for key in keys if key == 'lr' or key.endswith('.lr')][:charts.COLOURS]
    parts_ = [key for key in keys if 'loss' in key and key != 'loss']
    return [key for key in ('loss', *(parts_ if parts_[1:] else ())) if key in keys][:5]


def _chart(title: str, lines: list[dict], keys: list[str], form: str) -> dict[str, Any] | None:
    series = []
    for key in keys:
        points = [(line['step'], line[key]) for line in lines if is_number(line.get(key))]
        if points:
            series.append(charts.Line(parts.label_of(key), points))
    if not series:
        return None
    first = series[0].points
    low, high = min(y for _, y in first), max(y for _, y in first)
    told = f'{series[0].name}: last {first[-1][1]:{form}}, lowest {low:{form}}, ' \
        f'highest {high:{form}}'
    chart = charts.lines(series, title, 'iteration')
    return {'title': title, **chart, 'note': '; '.join(filter(None, (told, chart['note'])))}


def pictures_of(run: Run) -> list[dict[str, Any] | None]:
    """The pictures of a run, of each task for itself."""
    if not run.pictures:
        return []
    where = 'test split' if run.pictured == 'test' else 'validation split'
    if run.pictured == 'val' and run.pictures.get('iter'):
        where += f', after {_when(run.pictures)}'
    return parts.galleries({'prediction': run.pictures}, where)


def _scores(run: Run) -> dict[str, Any] | None:
    scores = run.scores()
    names = dict.fromkeys(name for metrics in scores.values() for name, value in metrics.items()
                          if is_number(value))  # fmt: skip
    names = sorted(names, key=lambda name: name != run.metric())
    rows = [[parts.cell(name, head=True),
             *(parts.number(metrics.get(name)) for metrics in scores.values())] for name in names]
    return parts.table('By evaluation', ['metric', *scores], rows, sort=False) if rows else None


def _classes(run: Run) -> dict[str, Any] | None:
    found = run.per_class()
    if not found:
        return None
    rows, where = found
    keys = list(dict.fromkeys(key for row in rows for key in row if key != 'class'))
    cells = [[parts.cell(row['class'], head=True),
              *(parts.number(row.get(key), bar=True) for key in keys)] for row in rows]
    empty = sum(all(row.get(key) is None for key in keys) for row in rows)
    note = f'{empty} classes do not occur.' if empty > 1 else (
        '1 class does not occur.' if empty else '')
    return parts.table(f'Classes: {where}', ['class', *keys], cells, note)


def _parameters(counts: dict | None) -> dict[str, Any] | None:
    if not counts:
        return None
    rows = [*counts['parts'].items(), ('all', counts)]
    cells = []
    for name, own in rows:
        share = 100 * own['trainable'] / own['total'] if own['total'] else 0.0
        cells.append([
            parts.cell(name, head=True), parts.number(own['trainable'], ','),
            parts.number(own['total'], ','),
            parts.cell(params.format_percent(share), share, share)])
    size = counts.get('tuned_megabytes')
    note = f'What was tuned takes {size:.2f} MB on disk.' if is_number(size) else ''
    return parts.table('Parameters by part', ['part', 'trainable', 'total', 'share that trains'],
                       cells, note, sort=False)  # fmt: skip


def _about(run: Run) -> dict[str, Any]:
    identity = run.identity()
    method = identity.get('method') or {}
    patterns = method.get('trainable')
    trains = None if patterns is None else ', '.join(patterns) or 'nothing but the head'
    data = identity.get('data') or {}
    skipped = (run.summary or {}).get('skipped_steps')
    command = identity.get('command')
    tested = (run.test or {}).get('command') if run.summary else None
    return parts.facts([
        ('command', command), ('command of the test', tested), ('config', identity.get('config')),
        ('task', identity.get('task')), ('backbone', identity.get('backbone')),
        ('model', identity.get('model')), ('method', method_of(identity)),
        ('trains in the backbone', trains),
        *((f'data, {split}', text) for split, text in data.items()),
        ('weights', identity.get('weights')),
        ('checkpoint', (run.test or run.val or {}).get('checkpoint')),
        ('seed', identity.get('seed')), ('processes', identity.get('world_size')),
        ('device', identity.get('device')), ('ended', identity.get('ended')),
        ('versions', versions_of(identity)),
        ('skipped steps', None if skipped is None else
         f'{skipped}, their loss was not finite' if skipped else '0'),
    ])  # fmt: skip


def versions_of(identity: Mapping[str, Any]) -> str | None:
    """The versions that a run was made with, in a line."""
    versions = identity.get('versions')
    return ', '.join(f'{name} {text}' for name, text in versions.items()) if versions else None


def _config(run: Run) -> dict[str, Any] | None:
    text = records.config_text(run.folder, run.identity().get('config'))
    return parts.code('Config, as it ran', text) if text else None


def _when(record: Mapping[str, Any]) -> str:
    if record.get('epoch'):
        return f'epoch {record["epoch"]:,}'
    return f'iteration {record["iter"]:,}'
