"""Runs what docs/results.md compares, and writes its tables and pictures from the records.

``python tools/results.py run camvid``
``python tools/results.py page``
``python tools/results.py check demo --method deep``

A study is a call of ``tools/compare.py``, which repeats nothing that is finished. Its record goes
into docs/results/STUDY.json; the tables of docs/results.md and of the README are made of records.
``check`` trains one row once more, and compares. docs/results.md says where the data come from.
"""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vpt_dense import safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / 'docs/results'
PAGES = ('docs/results.md', 'docs/detection.md', 'README.md')
#: Of records of tools/dev/federated_results.py, which writes its own page.
ELSEWHERE = 'federated-'
#: Around a table: what it is of, and whether it is the short one.
MARK = re.compile(
    r'(<!-- ([\w-]+)( in short)?: python tools/results.py page -->\n).*?(?=<!-- end -->)',
    re.DOTALL)
#: Kept of each row of a comparison.
COSTS = ('train_ms', 'test_ms', 'peak_megabytes')
KEYS = ('method', 'scores', 'seeds', 'trainable', 'backbone_trainable', 'percent', 'disk_megabytes',
        *COSTS)
#: Kept of how time and memory were measured.
MEASURED = ('image', 'batch_size', 'device', 'threads', 'peak_kind')
#: Of metrics, where the table has shorter ones.
TITLES = {'coco/bbox_mAP': 'box AP'}
SEEDS = ('0', '1', '2')
STEPS = 10  # that are timed
#: Points that ``check`` lets pass whatever the seeds' spread.
POINTS = 1.0


class Study(NamedTuple):
    """A comparison.

    Attributes:
        recipe: In configs.
        methods: In the order of the table.
        options: Overrides.
        trials: Of the search, for each method; 0: the recipe's own settings.
        seeds: Of the trainings.
        also: {title of a column: metric that stands in it}, beside the task's own.
    """

    recipe: str
    methods: tuple[str, ...]
    options: tuple[str, ...] = ()
    trials: int = 10
    seeds: tuple[str, ...] = SEEDS
    also: dict[str, str] = {}

    def command(self, folder: Path, methods: Iterable[str], *arguments: str) -> list[str]:
        """A call of tools/compare.py; further arguments stand before further overrides."""
        command = [
            sys.executable, 'tools/compare.py', f'configs/{self.recipe}.py', '--methods', *methods,
            '--work-dir', str(folder), *arguments, *self.options]
        return command[:-1] if command[-1] == '--cfg-options' else command  # none came behind it


_DEEP_50 = 'configs/results/methods/deep-50.py'
_SEGMENTATION = (
    'head', 'deep', 'lora', 'full', 'bias', 'partial-1', 'layernorm', 'shallow', 'deep-bias',
    'adapter', 'adaptformer', 'ssf', 'rein', 'deep-lora', _DEEP_50)
_FURTHER = ('head', 'deep', 'da-vpt', 'vipamin', 'vfpt', 'lora', 'dora', 'mona', 'convpass')
_OTHERS = (
    'head', 'deep', 'configs/results/methods/pae-short.py', 'e2vpt', 'lora', 'rslora', 'pissa',
    'soma', 'fact-tt', 'fact-tk', 'vera', 'glora', 'bi-lora', 'da-vpt-plus', 'peft',
    'vit-split')
_FEW_IMAGES = ('head', 'deep', 'lora', 'full')
_CLASSIFICATION = ('linear', 'deep', 'lora', 'full', 'bias', 'shallow', 'adapter', 'ssf')
_BOXES = {'AP at 0.5': 'coco/bbox_mAP_50'}
_MASKS = {'mask AP': 'coco/segm_mAP', 'at 0.5': 'coco/segm_mAP_50'}
_CAMVID, _FLOWERS = 'results/camvid_dinov2-s', 'results/flowers_dinov2-s'
_SETR, _TEXTILES = 'results/camvid-setr_dinov2-s', 'results/textiles_dinov2-s'
STUDIES = {
    'demo': Study('demo/linear_nuclei', ('head', 'deep', 'lora'), trials=0),
    'camvid': Study(_CAMVID, _SEGMENTATION),
    'camvid-setr': Study(_SETR, _SEGMENTATION),
    'camvid-16': Study(_CAMVID, _FEW_IMAGES, ('subset.images=16',)),
    'camvid-tenth': Study(_CAMVID, _FEW_IMAGES, ('subset.share=0.1',)),
    'camvid-double': Study(
        'results/camvid-double_dinov2-s', ('lora', 'deep-lora', 'ssf'), trials=0,
        seeds=SEEDS[:1]),
    'camvid-more': Study(_CAMVID, _FURTHER, trials=0, seeds=SEEDS[:1]),
    'camvid-short': Study(_CAMVID, _OTHERS, ('iters=100',), trials=0, seeds=SEEDS[:1]),
    'camvid-pmd': Study(
        'results/camvid-pmd_dinov2-s', ('head', 'deep', 'lora'), trials=0, seeds=SEEDS[:1]),
    'camvid-half': Study(_CAMVID, _FEW_IMAGES, ('subset.share=0.5',)),
    'nuclei': Study('results/nuclei_dinov2-s', ('head', 'deep', 'lora', 'bias', 'full')),
    'membrane': Study('results/membrane_dinov2-s', ('head', 'deep', 'lora', 'bias', 'full')),
    'brain': Study('results/brain_dinov2-s', ('head', 'deep', 'lora', 'full')),
    'nuclei-instances': Study(
        'results/nuclei-instances_dinov2-s', _FEW_IMAGES, trials=0, also=_MASKS),
    'streets-instances': Study(
        'results/streets-instances_dinov2-s', _FEW_IMAGES, trials=0, also=_MASKS),
    'cells-boxes': Study('results/cells-boxes_dinov2-s', _FEW_IMAGES, trials=0, also=_BOXES),
    'flowers-1': Study(_FLOWERS, _CLASSIFICATION, ('subset.per_class=1',)),
    'flowers-4': Study(_FLOWERS, _CLASSIFICATION, ('subset.per_class=4',)),
    'flowers-16': Study(_FLOWERS, _CLASSIFICATION, ('subset.per_class=16',)),
    'flowers': Study(_FLOWERS, _CLASSIFICATION),
    'textiles-4': Study(_TEXTILES, _CLASSIFICATION, ('subset.per_class=4',)),
    'textiles-16': Study(_TEXTILES, _CLASSIFICATION, ('subset.per_class=16',)),
    'textiles': Study(_TEXTILES, _CLASSIFICATION),
}


class Stream(NamedTuple):
    """Classes that come in steps, with several methods.

    Attributes:
        recipe: In configs.
        arguments: Of ``vpt-dense continual``.
        methods: Each with its strategies.
        options: Overrides.
        seeds: Of the trainings.
    """

    recipe: str
    arguments: tuple[str, ...]
    methods: dict[str, tuple[str, ...]]
    options: tuple[str, ...] = ()
    seeds: tuple[str, ...] = SEEDS


STREAMS = {
    'stream-digits': Stream(
        _FLOWERS, ('--steps', '3'),
        {'deep': ('sequential', 'nsp2', 'joint'), 'l2p': ('sequential',),
         'dualprompt': ('sequential',), 'coda-prompt': ('sequential',)},
        ('dataset.data_root=data/digits-8x8', 'img_size=56', 'preprocessing=resize56', 'lr=0.003',
         'head_lr=0.01'),
        SEEDS[:1]),
    'stream-camvid': Stream(
        _CAMVID, ('--steps', '5-3'),
        {'deep': ('sequential', 'eclipse_like', 'joint')},
        ('img_size=112,154', 'iters=100', 'train_cfg.val_interval=100',
         'default_hooks.checkpoint.interval=100'), SEEDS[:1]),
}
#: Suites of configs/suites, each with a record and a table of its own.
SUITES = ('small-sets_dinov2-s',)
#: Of the short table: columns, and methods of those that have run.
SHORT = ('method', 'mIoU (test)', 'trained in the backbone', '% of all', 'MB')
SHORT_ROWS = ('head', 'bias', 'layernorm', 'deep', 'lora', 'full')
#: Methods that train nothing in the backbone, against which others are held.
BASELINES = ('head', 'linear')
#: Rows from which a study has a picture, score over parameters.
DRAWN = 6
#: Study and row that stand beside what tools/benchmark/peer.py found.
PEER_OF = ('camvid', 'lora')
#: In place of a study's name, between the marks: the table of what has not run.
OPEN = 'not-run'


def run(
    name: str, methods: list[str] | None, jobs: int | None, measured: bool = True,
) -> None:
    """Carry out a study, or what is left of it, and write its record.

    Args:
        name: Of the study.
        methods: These alone; the record keeps the rows of the others.
        jobs: Runs at a time.
        measured: Whether time and memory of all rows are measured on this machine.
    """
    study, known = STUDIES[name], named(name)
    for method in methods or ():
        if method not in known:
            raise UserError(f'--methods {method}: {name} has {", ".join(known)}')
    search = ['--search', str(study.trials), '--pruner', 'none'] if study.trials else []
    table = compare(study.command(
        Path('work_dirs/results', name), [known[method] for method in methods or known], *search,
        *(['--jobs', str(jobs)] if jobs else []), '--no-measure', '--seeds',
        *study.seeds, '--cfg-options'))
    record = dict(
        study=name, recipe=study.recipe, metric=table['metric'], trials=study.trials,
        searched=table['searched'], amp=table['amp'], threads=table['threads'],
        versions=table['versions'], measured={},
        rows=[{key: row[key] for key in KEYS} for row in table['rows']])
    if study.also:
        for row in record['rows']:
            row['also'] = further(name, row['method'], row['seeds'])
    if methods and (RECORDS / f'{name}.json').is_file():
        record = joined(read(name), record)
    if measured:
        measure(record)
    safe_files.write_text(RECORDS / f'{name}.json', json.dumps(record, indent=1) + '\n')


def further(name: str, method: str, seeds: list[int]) -> dict[str, list[float]]:
    """{title: a score for each seed} of the metrics that stand beside the task's own."""
    runs = [json.loads((ROOT / 'work_dirs/results' / name / f'{method}_seed{seed}/run.json')
                       .read_text(encoding='utf-8')) for seed in seeds]
    return {title: [run['metrics'][metric] for run in runs]
            for title, metric in STUDIES[name].also.items()}


def run_suite(name: str, jobs: int | None) -> None:
    """Carry out a suite, or what is left of it, and keep its table."""
    command = [sys.executable, '-m', 'vpt_dense', 'suite', f'configs/suites/{name}.py',
               '--work-dir', f'work_dirs/results/{name}', *(['--jobs', str(jobs)] if jobs else [])]
    if code := subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f'the suite has ended with {code}; the same command goes on')
    made = (ROOT / 'work_dirs/results' / name / 'table.json').read_text(encoding='utf-8')
    safe_files.write_text(RECORDS / f'{name}.json', made)


def run_stream(name: str) -> None:
    """Carry out a stream, or what is left of it, and keep its tables."""
    stream, found = STREAMS[name], {}
    for method, strategies in stream.methods.items():
        folder = f'work_dirs/results/{name}/{method}'
        command = [
            sys.executable, '-m', 'vpt_dense', 'continual', f'configs/{stream.recipe}.py',
            '--method', method, *stream.arguments, '--strategies', *strategies,
            '--seeds', *stream.seeds, '--work-dir', folder, '--cfg-options', *stream.options]
        if code := subprocess.run(command, cwd=ROOT).returncode:
            raise UserError(f'the stream has ended with {code}; the same command goes on')
        table = json.loads((ROOT / folder / 'table.json').read_text(encoding='utf-8'))
        found[method] = {key: value for key, value in table.items() if key != 'config'}
    safe_files.write_text(RECORDS / f'{name}.json', json.dumps(
        dict(stream=name, recipe=stream.recipe, methods=found), indent=1) + '\n')


def stream_table(record: dict) -> str:
    """The tables of a stream's methods in one."""
    from vpt_dense.comparison import streams

    laid = {method: streams.lay_out(content) for method, content in record['methods'].items()}
    header = max((header for header, _ in laid.values()), key=len)
    rows = []
    for method, (own, lines) in laid.items():
        for line in lines:
            named_ = dict(zip(own, line, strict=True))
            rows.append([method, *(named_.get(key, '-') for key in header)])
    return tables.markdown(['method', *header], rows, text_columns=2)


def measure(record: dict) -> None:
    """Put time and memory of all rows into a record, all from this machine.

    Raises:
        UserError: If that fails for one of them.
    """
    from vpt_dense.comparison import runs

    study = STUDIES[record['study']]
    sources = {row['method']: named(record['study'])[row['method']] for row in record['rows']}
    comparison = runs.Comparison(
        str(ROOT / f'configs/{study.recipe}.py'), ROOT / 'work_dirs/results' / record['study'],
        record['amp'], record['threads'], list(study.options), sources=sources)
    costs, failures = comparison.measure(list(sources), STEPS, runs.num_cpus())
    for (method, _), error in failures.items():
        raise UserError(f'{method}, time and memory: {error}')
    record['measured'] = {key: next(iter(costs.values()))[key] for key in MEASURED}
    for row in record['rows']:
        row.update({key: costs[row['method']][key] for key in COSTS})


def joined(old: dict, new: dict) -> dict:
    """A record with the rows of another, of methods that it does not have.

    Raises:
        UserError: If the two were made otherwise, so that their rows cannot stand in one table.
    """
    own = ('searched', 'rows', 'measured')
    differ = [key for key in new if key not in own and old.get(key) != new[key]]
    if differ:
        raise UserError(
            f'docs/results/{old["study"]}.json was made otherwise ({", ".join(differ)} differ), so '
            'new rows cannot stand beside its own: run all methods, or move it away')
    mine = {row['method'] for row in new['rows']}
    order = list(named(old['study']))
    rows = [*new['rows'], *(row for row in old['rows'] if row['method'] not in mine)]
    return {**old, 'searched': {**old['searched'], **new['searched']},
            'rows': sorted(rows, key=lambda row: order.index(row['method']))}


def compare(command: list[str], threads: int | None = None) -> dict:
    """Carry out a comparison, and read its table.

    Args:
        command: See :meth:`Study.command`.
        threads: Of each run (default: what the CPUs allow).

    Raises:
        UserError: If it fails.
    """
    env = {**os.environ, **({'OMP_NUM_THREADS': str(threads)} if threads else {})}
    code = subprocess.run(command, cwd=ROOT, env=env).returncode
    file = ROOT / command[command.index('--work-dir') + 1] / 'table.json'
    if code or not file.is_file():
        raise UserError(f'the comparison has ended with {code}; the same command goes on')
    return json.loads(file.read_text(encoding='utf-8'))


def read(name: str) -> dict:
    """The record of a study."""
    file = RECORDS / f'{name}.json'
    if not file.is_file():
        raise UserError(f'{name} has no record {file.relative_to(ROOT)}; `run {name}` makes one')
    return json.loads(file.read_text(encoding='utf-8'))


def named(name: str) -> dict[str, str]:
    """{what the table calls it: method or method file} of a study."""
    return {Path(method).stem if method.endswith('.py') else method: method
            for method in STUDIES[name].methods}


def check(name: str, method: str | None) -> None:
    """Train and test one row of a record once more, with its first seed, and compare.

    The same machine and versions give the same score. Elsewhere sums are rounded otherwise, which
    a training makes as large as another seed does: so one more run must lie in the interval that
    95 % of further seeds lie in, by those on record (Student's t).

    Args:
        name: Of the study.
        method: Of the row (default: the first that trains something in the backbone).

    Raises:
        UserError: If the score is another.
    """
    record = read(name)
    rows = {row['method']: row for row in record['rows']}
    method = method or next(each for each in rows if each not in BASELINES)
    if method not in rows:
        raise UserError(f'--method {method}: the record of {name} has {", ".join(rows)}')
    folder = Path('work_dirs/results/check', name)
    shutil.rmtree(ROOT / folder, ignore_errors=True)  # a run that is there would not be repeated
    row = rows[method]
    found = record['searched'].get(method, [])
    score, = compare(STUDIES[name].command(
        folder, [named(name)[method]], '--no-measure', '--seeds', str(row['seeds'][0]),
        '--amp', 'on' if record['amp'] else 'off', '--cfg-options', *found),
        record['threads'])['rows'][0]['scores']
    mean, allowed = statistics.mean(row['scores']), max(POINTS, prediction(row['scores']))
    text = (f'{name}, {method}, seed {row["seeds"][0]}: {score:.2f}, on record '
            f'{row["scores"][0]:.2f}, and {mean:.2f} over {len(row["scores"])} seeds, from which '
            f'{allowed:.2f} are allowed')
    if not abs(score - mean) <= allowed:
        raise UserError(text)
    print(text)


def prediction(scores: list[float]) -> float:
    """Half the width of the interval about the mean that holds 95 % of further scores; 0 of one."""
    from scipy.stats import t

    n = len(scores)
    if n < 2:
        return 0.0
    return float(t.ppf(0.975, n - 1)) * statistics.stdev(scores) * math.sqrt(1 + 1 / n)


def interval(own: dict[int, float], other: dict[int, float]) -> tuple[float, float] | None:
    """Mean of the differences of equal seeds, and half the width of its 95 % interval (Student's).

    None: there are fewer than two.
    """
    from scipy.stats import t

    gains = [own[seed] - other[seed] for seed in own if seed in other]
    if len(gains) < 2:
        return None
    spread = statistics.stdev(gains) / math.sqrt(len(gains))
    return statistics.mean(gains), float(t.ppf(0.975, len(gains) - 1)) * spread


def table(record: dict, short: bool = False) -> str:
    """The table of a record, best first."""
    scores = {row['method']: dict(zip(row['seeds'], row['scores'], strict=True))
              for row in record['rows']}
    baseline = next((scores[name] for name in BASELINES if name in scores), {})
    metric, also = record['metric'], record['rows'][0].get('also', {})
    header = ['method', f'{TITLES.get(metric, metric)} (test)', 'against head-only, 95 %', *also,
              'trained in the backbone', '% of all', 'MB', 'training, ms/image', 'peak, MB',
              'settings that were found']
    lines = []
    for row in sorted(record['rows'], key=lambda row: -statistics.mean(row['scores'])):
        own = scores[row['method']]
        found = None if own is baseline else interval(own, baseline)
        lines.append([
            row['method'], _spread(own.values()),
            '-' if found is None else f'{found[0]:+.1f} ± {found[1]:.1f}',
            *(_spread(row['also'][title]) for title in also),
            f'{row["backbone_trainable"]:,}', f'{row["percent"]:.2f}',
            f'{row["disk_megabytes"]:.2f}',
            *('-' if row[key] is None else f'{row[key]:,.0f}' for key in (
                'train_ms', 'peak_megabytes')),
            ', '.join(record['searched'].get(row['method'], []))])
    if short:
        places = [header.index(each) for each in SHORT]
        return tables.markdown(list(SHORT), [
            [line[i] for i in places] for line in lines if line[0] in SHORT_ROWS])
    if not record['trials']:
        header.pop()
        lines = [line[:-1] for line in lines]
    missing = [method for method in named(record['study']) if method not in scores]
    note = f'\n\nNot run yet: {", ".join(missing)}.' if missing else ''
    return tables.markdown(header, lines) + note


def peer_table(found: dict, record: dict) -> str:
    """LoRA by vpt_dense beside the same by transformers and HF PEFT."""
    row = next(row for row in record['rows'] if row['method'] == PEER_OF[1])
    images = record['measured']['batch_size']
    theirs = found['results']
    return tables.markdown(
        ['LoRA of rank 8 on queries, keys and values', f'{record["metric"]} (test)',
         'training, ms/image', 'peak, MB', 'trained', 'lines of code'],
        [['`--method lora`', _spread(row['scores']), f'{row["train_ms"]:,.0f}',
          f'{row["peak_megabytes"]:,.0f}', f'{row["trainable"]:,}', '0'],
         ['transformers and HF PEFT', _spread([each['mIoU'] for each in theirs]),
          f'{statistics.median(each["seconds"] for each in theirs) / images * 1000:,.0f}',
          f'{theirs[0]["peak_megabytes"]:,.0f}', f'{theirs[0]["trainable"]:,}',
          str(found['lines'])]])


def _spread(scores: Iterable[float]) -> str:
    scores = list(scores)
    if len(scores) == 1:
        return f'{scores[0]:.1f}'
    return f'{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}'


def draw(record: dict) -> None:
    """Draw scores over parameters, into the folder of records."""
    from vpt_dense.comparison import report

    rows = [dict(row, mean=statistics.mean(row['scores']), marked=False,
                 std=statistics.stdev(row['scores']) if len(row['scores']) > 1 else None)
            for row in record['rows']]
    report.draw(rows, record['metric'], RECORDS / f'{record["study"]}.svg')


def page() -> None:
    """Write the tables of all pages anew, each between its marks, and the pictures.

    Raises:
        UserError: If a record has no place on them.
    """
    lost = {file.stem for file in RECORDS.glob('*.json') if not file.stem.startswith(ELSEWHERE)}
    for name in PAGES:
        text = (ROOT / name).read_text(encoding='utf-8')
        lost -= {found[2] for found in MARK.finditer(text)}
        safe_files.write_text(ROOT / name, MARK.sub(
            lambda found: f'{found[1]}{_content(found[2], bool(found[3]))}\n', text))
    if lost:
        raise UserError(f'no page has a line <!-- {min(lost)}: python tools/results.py page -->, '
                        'and <!-- end --> behind it')


def open_table() -> str:
    """The studies that have no record."""
    rows = [[f'`{name}`', ' '.join(f'`{each}`' for each in (study.recipe, *study.options)),
             ', '.join(named(name))]
            for name, study in STUDIES.items() if not (RECORDS / f'{name}.json').is_file()]
    return tables.markdown(['study', 'recipe', 'methods'], rows, text_columns=3)


def _content(name: str, short: bool) -> str:
    """What stands between the marks of a record; draws its picture."""
    if name == OPEN:
        return open_table()
    record = read(name)
    if 'stream' in record:
        return stream_table(record)
    if 'cells' in record:
        from vpt_dense.comparison import suite, suite_table

        plan = suite.read(str(ROOT / f'configs/suites/{name}.py'))
        return tables.markdown(*suite_table.lay_out(record, plan))
    if 'results' in record:
        return peer_table(record, read(PEER_OF[0]))
    if len(record['rows']) >= DRAWN and not short:
        draw(record)
    return table(record, short)


def command_line() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    new = commands.add_parser('run', help='carry out studies, and write their records')
    new.add_argument('studies', nargs='+', choices=[*STUDIES, *SUITES, *STREAMS])
    new.add_argument('--methods', nargs='+', help='these alone; the record keeps its other rows')
    new.add_argument('--jobs', type=int, help='runs at a time')
    new.add_argument('--no-measure', action='store_true',
                     help='leave out time and memory, which are worth little on a busy machine')
    commands.add_parser(
        'page', help='write the tables and pictures of docs/results.md and of the README')
    again = commands.add_parser('check', help='carry out one row of a record again, and compare')
    again.add_argument('study', choices=STUDIES)
    again.add_argument('--method', help='of the row')
    args = parser.parse_args()
    if args.command == 'page':
        page()
    elif args.command == 'check':
        check(args.study, args.method)
    else:
        for name in args.studies:
            if name in SUITES:
                run_suite(name, args.jobs)
            elif name in STREAMS:
                run_stream(name)
            else:
                run(name, args.methods, args.jobs, not args.no_measure)


if __name__ == '__main__':
    main(command_line)
