"""Runs what docs/multi-task-training.md compares: three tasks of CamVid, alone and together.

``python tools/dev/multi_task_results.py run --out DIR [--seeds 0 1 2] [--rows NAME ...]``
``python tools/dev/multi_task_results.py page --out DIR`` writes docs/multi-task/camvid.json and the
table of the page.

Every run has a folder and is not repeated once it is finished. Runs are short (ITERS iterations of
2 images, every second validation image), in one process, one after the other.
"""

import json
import re
import statistics
import time
from pathlib import Path

from vpt_dense import safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / 'configs/results/camvid-tasks_dinov2-s.py'
PAGE, RECORD = ROOT / 'docs/multi-task-training.md', ROOT / 'docs/multi-task/camvid.json'
MARK = re.compile(
    r'(<!-- camvid: python tools/dev/multi_task_results.py page -->\n).*?(?=<!-- end -->)',
    re.DOTALL)
TASKS = ('seg', 'edges', 'distance')
#: What a task is judged by, what it is called, whether less is better.
SCORES = {'seg': ('mIoU', 'mIoU', False), 'edges': ('ods_f', 'edges, F', False),
          'distance': ('rmse', 'distance, rmse (px)', True)}
#: Row of the table -> its tasks, method, weights of losses.
ROWS = {
    **{f'{name} alone': ((name,), 'deep', 'fixed') for name in TASKS},
    'together': (TASKS, 'deep', 'fixed'),
    'together, uncertainty': (TASKS, 'deep', 'uncertainty'),
    'together, task prompts': (TASKS, 'task-prompts', 'fixed'),
}
ITERS = 60


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('run', 'page'))
    parser.add_argument('--out', type=Path, default=Path('work_dirs/multi-task'))
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--rows', nargs='+', default=list(ROWS)[:4])
    args = parser.parse_args(argv)
    for name in args.rows:
        if name not in ROWS:
            raise UserError(f'--rows {name}: the rows are {", ".join(ROWS)}')
    return args


def run(row: str, seed: int, folder: Path) -> None:
    """Trains and evaluates once."""
    from vpt_dense import config, logging, run_setup

    logging.filter_warnings()
    names, method, kind = ROWS[row]
    cfg = config.load(str(CONFIG), [
        f'iters={ITERS}', f'warmup={ITERS // 10}', f'train_cfg.val_interval={ITERS}',
        'batch_size=2', 'default_hooks.checkpoint.interval=100000',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        f'work_dir={folder}', f'randomness.seed={seed}'], method)
    model = cfg.model
    for name in set(TASKS) - set(names):
        model.task_heads.pop(name)
        model.weighting.weights.pop(name, None)
        cfg.val_evaluator.tasks.pop(name)
    model.weighting.kind = kind
    cfg.val_dataloader.dataset.indices = list(range(0, 101, 2))
    cfg.experiment_name = f'{folder.parent.name}-{seed}'
    begin = time.process_time()
    run_setup.start(cfg, 'train', None).train()
    summary = json.loads((folder / 'summary.json').read_text())
    safe_files.write_text(folder / 'score.json', json.dumps(dict(
        row=row, seed=seed, cpu_seconds=round(time.process_time() - begin, 1),
        scores=summary['last']['metrics'])))


def gather(out: Path) -> dict:
    """All scores: row -> seed -> metrics."""
    found = {}
    for file in sorted(out.glob('*/*/score.json')):
        each = json.loads(file.read_text())
        found.setdefault(each['row'], {})[str(each['seed'])] = each['scores']
    return {row: found[row] for row in ROWS if row in found}


def table(found: dict) -> str:
    """The table, in Markdown: mean and spread of the seeds, and delta_m of each seed's models."""
    from vpt_dense.evaluation import delta_m

    less = {name: SCORES[name][2] for name in TASKS}

    def scores(row, name):
        return {seed: each[f'{name}/{SCORES[name][0]}'] for seed, each in found[row].items()}

    alone = {name: scores(f'{name} alone', name) for name in TASKS}
    rows = []
    for row, (names, _, _) in ROWS.items():
        if row not in found:
            continue
        cells = [cell(scores(row, name).values()) if name in names else '' for name in TASKS]
        gains = [
            delta_m({name: scores(row, name)[seed] for name in TASKS},
                    {name: alone[name][seed] for name in TASKS}, less)
            for seed in found[row]] if len(names) == len(TASKS) else []
        rows.append([row, *cells, cell(gains) if gains else '', str(len(found[row]))])
    header = ['', *(SCORES[name][1] for name in TASKS), 'delta_m, %', 'seeds']
    return tables.markdown(header, rows)


def cell(values) -> str:
    """Mean and standard deviation."""
    values = list(values)
    spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.1f}{spread}'


def cli() -> None:
    """Command line."""
    args = parse_args()
    if args.what == 'run':
        for seed in args.seeds:
            for row in args.rows:
                folder = args.out / re.sub(r'\W+', '-', row) / str(seed)
                if not (folder / 'score.json').is_file():
                    run(row, seed, folder)
        return
    found = gather(args.out)
    RECORD.parent.mkdir(exist_ok=True)
    safe_files.write_text(RECORD, json.dumps(found, indent=1) + '\n')
    text = PAGE.read_text(encoding='utf-8')
    safe_files.write_text(PAGE, MARK.sub(lambda m: f'{m[1]}{table(found)}\n', text))


if __name__ == '__main__':
    main(cli)
