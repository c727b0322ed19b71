"""Runs what docs/results.md compares, and writes its tables from the records.

``python tools/results.py run camvid``
``python tools/results.py page``

A study is a call of ``tools/compare.py``, which repeats nothing that is finished. Its record goes
into docs/results/STUDY.json; the page is made of all records. docs/results.md says where the data
come from.
"""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from vpt_dense import safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / 'docs/results'
PAGE = ROOT / 'docs/results.md'
END = '<!-- end -->'
#: Kept of each row of a comparison.
KEYS = ('method', 'scores', 'seeds', 'trainable', 'backbone_trainable', 'percent', 'disk_megabytes',
        'train_ms', 'test_ms', 'peak_megabytes')
#: Kept of how time and memory were measured.
MEASURED = ('image', 'batch_size', 'device', 'threads', 'peak_kind')
SEEDS = ('0', '1', '2')
#: Weights of DINOv2-S in Hugging Face's layout, see docs/results.md.
WEIGHTS = 'data/dinov2_vits14.safetensors'


class Study(NamedTuple):
    """A comparison.

    Attributes:
        recipe: In configs/results.
        methods: In the order of the table.
        trials: Of the search, for each method.
        options: Overrides.
    """

    recipe: str
    methods: tuple[str, ...]
    trials: int = 10
    options: tuple[str, ...] = ()


_DEEP_50 = 'configs/results/methods/deep-50.py'
_SEGMENTATION = (
    'head', 'deep', 'lora', 'full', 'bias', 'partial-1', 'layernorm', 'shallow', 'deep-bias',
    'adapter', 'adaptformer', 'ssf', 'rein', 'deep-lora', _DEEP_50)
_FEW_IMAGES = ('head', 'deep', 'lora', 'full')
_CLASSIFICATION = ('linear', 'deep', 'lora', 'full', 'bias', 'shallow', 'adapter', 'ssf')
STUDIES = {
    'camvid': Study('camvid_dinov2-s', _SEGMENTATION),
    'camvid-16': Study('camvid_dinov2-s', _FEW_IMAGES, options=('subset.images=16',)),
    'camvid-tenth': Study('camvid_dinov2-s', _FEW_IMAGES, options=('subset.share=0.1',)),
    'camvid-half': Study('camvid_dinov2-s', _FEW_IMAGES, options=('subset.share=0.5',)),
    'flowers-1': Study('flowers_dinov2-s', _CLASSIFICATION, options=('subset.per_class=1',)),
    'flowers-4': Study('flowers_dinov2-s', _CLASSIFICATION, options=('subset.per_class=4',)),
    'flowers-16': Study('flowers_dinov2-s', _CLASSIFICATION, options=('subset.per_class=16',)),
    'flowers': Study('flowers_dinov2-s', _CLASSIFICATION),
}
#: Methods that train nothing in the backbone, against which others are held.
BASELINES = ('head', 'linear')


def run(name: str, methods: list[str] | None, jobs: int | None) -> None:
    """Carry out a study, or what is left of it, and write its record.

    Args:
        name: Of the study.
        methods: These alone.
        jobs: Runs at a time.
    """
    study = STUDIES[name]
    known = {_name(method): method for method in study.methods}
    for method in methods or ():
        if method not in known:
            raise UserError(f'--methods {method}: {name} has {", ".join(known)}')
    folder = Path('work_dirs/results', name)
    command = [
        'tools/compare.py', f'configs/results/{study.recipe}.py', '--methods',
        *(known[method] for method in methods or known),
        '--search', str(study.trials), '--pruner', 'none', '--seeds', *SEEDS,
        '--work-dir', str(folder), '--cfg-options',
        f'model.backbone.init_cfg.checkpoint={WEIGHTS}', *study.options]
    if jobs:
        command[1:1] = ['--jobs', str(jobs)]
    code = subprocess.run([sys.executable, *command], cwd=ROOT).returncode
    file = ROOT / folder / 'table.json'
    if code or not file.is_file():
        raise UserError(f'the comparison has ended with {code}; the same command goes on')
    table = json.loads(file.read_text(encoding='utf-8'))
    cost = next(iter(table['costs'].values()), {})
    record = dict(
        study=name, recipe=study.recipe, metric=table['metric'], trials=table['trials'],
        searched=table['searched'], amp=table['amp'], threads=table['threads'],
        versions=table['versions'],
        measured={key: cost[key] for key in MEASURED if key in cost},
        rows=[{key: row[key] for key in KEYS} for row in table['rows']])
    safe_files.write_text(RECORDS / f'{name}.json', json.dumps(record, indent=1) + '\n')


def _name(method: str) -> str:
    """What a comparison calls a method, or a method file."""
    return Path(method).stem if method.endswith('.py') else method


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


def table(record: dict) -> str:
    """The table of a record, best first."""
    scores = {row['method']: dict(zip(row['seeds'], row['scores'], strict=True))
              for row in record['rows']}
    baseline = next((scores[name] for name in BASELINES if name in scores), {})
    header = ['method', f'{record["metric"]} (test)', 'against head-only, 95 %',
              'trained in the backbone', '% of all', 'MB', 'training, ms/image', 'peak, MB',
              'settings that were found']
    lines = []
    for row in sorted(record['rows'], key=lambda row: -statistics.mean(row['scores'])):
        own = scores[row['method']]
        found = None if own is baseline else interval(own, baseline)
        spread = statistics.stdev(own.values()) if len(own) > 1 else 0.0
        lines.append([
            row['method'], f'{statistics.mean(own.values()):.1f} ± {spread:.1f}',
            '-' if found is None else f'{found[0]:+.1f} ± {found[1]:.1f}',
            f'{row["backbone_trainable"]:,}', f'{row["percent"]:.2f}',
            f'{row["disk_megabytes"]:.2f}',
            *('-' if row[key] is None else f'{row[key]:,.0f}' for key in (
                'train_ms', 'peak_megabytes')),
            ', '.join(record['searched'].get(row['method'], []))])
    missing = [name for name in map(_name, STUDIES[record['study']].methods) if name not in scores]
    note = f'\n\nNot run yet: {", ".join(missing)}.' if missing else ''
    return tables.markdown(header, lines) + note


def page() -> None:
    """Write every table of docs/results.md anew, between its marks."""
    text = PAGE.read_text(encoding='utf-8')
    for file in sorted(RECORDS.glob('*.json')):
        record = json.loads(file.read_text(encoding='utf-8'))
        begin = f'<!-- {file.stem}: python tools/results.py page -->'
        before, found, rest = text.partition(begin)
        if not found or END not in rest:
            raise UserError(f'{PAGE.name} has no line {begin}, or none {END} behind it')
        text = f'{before}{begin}\n{table(record)}\n{rest[rest.index(END):]}'
    safe_files.write_text(PAGE, text)


def command_line() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    new = commands.add_parser('run', help='carry out studies, and write their records')
    new.add_argument('studies', nargs='+', choices=STUDIES)
    new.add_argument('--methods', nargs='+', help='these alone (default: all of the study)')
    new.add_argument('--jobs', type=int, help='runs at a time')
    commands.add_parser('page', help='write the tables of docs/results.md')
    args = parser.parse_args()
    if args.command == 'page':
        page()
        return
    for name in args.studies:
        run(name, args.methods, args.jobs)


if __name__ == '__main__':
    main(command_line)
