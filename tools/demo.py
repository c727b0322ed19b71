"""Prompt tuning against its alternatives on data and weights that come with the repository.

``python tools/demo.py``
``python tools/demo.py --all --seeds 0 1 2``

Trains through tools/train.py with the configs of configs/demo, tests on the test split through
tools/test.py, prints a table and draws predictions. Runs that are finished are not repeated.
"""

import hashlib
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parent.parent
METHODS = {
    'full': 'full fine-tuning',
    'head': 'head-only',
    'bias': 'bias',
    'shallow': 'VPT-shallow',
    'deep': 'VPT-deep',
    'deep-bias': 'VPT-deep + bias',
}
DATA = Path('data/digits')
WEIGHTS = Path('pretrain/vit-demo_formula.safetensors')
ITERATION = re.compile(r'Iter\(train\) \[\s*(\d+)/')


def config_of(method):
    """Path of a method's config, relative to the repository."""
    return Path('configs/demo', f'setr_{method}_digits.py')


def has_fast_bfloat16():
    """Whether this CPU multiplies in bfloat16 natively: training then takes half the time."""
    try:
        return bool(re.search(r'\b(avx512_bf16|amx_bf16)\b', Path('/proc/cpuinfo').read_text()))
    except OSError:
        return False


def fingerprint(method, seed, amp):
    """What a finished run must agree with to count as this run.

    Returns:
        str: sha256 over seed, precision, the resolved config, the weights and the data's meta.
    """
    from vpt_dense import config

    digest = hashlib.sha256(f'{seed} {amp}'.encode())
    digest.update(config.load(str(config_of(method))).pretty_text.encode())
    digest.update(WEIGHTS.read_bytes())
    digest.update((DATA / 'meta.json').read_bytes())
    return digest.hexdigest()


def call(command, log, threads, progress, task, expected=None):
    """Runs a tool with its output in a file and moves a bar by the iterations found there.

    Args:
        command (list): Arguments after the interpreter.
        log (Path): Appended to.
        threads (int): Threads of the tool.
        progress (rich.progress.Progress): Holds the bar.
        task (rich.progress.TaskID): The bar.
        expected (re.Pattern | None): Finds the number of iterations done, as its first group.

    Raises:
        UserError: If the tool fails, with its last line.
    """
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    begin = log.stat().st_size if log.exists() else 0
    with log.open('ab') as stream:
        process = subprocess.Popen([sys.executable, *map(str, command)], stdout=stream,
                                   stderr=subprocess.STDOUT, env=env)
    try:
        while process.poll() is None:
            time.sleep(0.5)
            text = log.read_bytes()[begin:].decode(errors='replace')
            if expected and (found := expected.findall(text)):
                progress.update(task, completed=int(found[-1]))
    finally:
        if process.poll() is None:  # interrupted
            process.terminate()
            process.wait()
    if process.returncode:
        lines = log.read_text(errors='replace').strip().splitlines() or ['no output']
        raise UserError(f'{command[0]} failed, see {log}: {lines[-1]}')


def run_one(method, seed, folder, threads, amp, progress):
    """Trains and tests one method with one seed, unless that is done already.

    Args:
        method (str): Key of `METHODS`.
        seed (int): Random seed of the run.
        folder (Path): Parent of the run's folder.
        threads (int): Threads to use.
        amp (bool): Mixed precision.
        progress (rich.progress.Progress): Gets a bar.

    Returns:
        dict: method, seed, mIoU (per cent, test split), counts, sizes and seconds.
    """
    work_dir = folder / f'{method}_seed{seed}'
    result_file, log = work_dir / 'demo.json', work_dir / 'output.log'
    mark = fingerprint(method, seed, amp)
    label = f'{METHODS[method]}, seed {seed}'
    try:
        result = json.loads(result_file.read_text())
        if result['fingerprint'] == mark:
            progress.add_task(f'{label}: done before', total=1, completed=1)
            return result
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        pass
    from vpt_dense import config

    iters = config.load(str(config_of(method))).train_cfg.max_iters
    task = progress.add_task(f'{label}: training', total=iters)
    work_dir.mkdir(parents=True, exist_ok=True)
    start = time.time()
    call(['tools/train.py', config_of(method), '--work-dir', work_dir, '--seed', seed,
          *(['--amp'] if amp else [])],
         log, threads, progress, task, ITERATION)
    seconds = time.time() - start
    progress.update(task, description=f'{label}: testing', completed=iters)
    call(['tools/test.py', config_of(method), work_dir, '--work-dir', work_dir],
         log, threads, progress, task)
    progress.update(task, description=f'{label}: done')
    test = json.loads((work_dir / 'test.json').read_text())
    summary = json.loads((work_dir / 'summary.json').read_text())
    params = test['params']
    result = dict(
        method=method, seed=seed, fingerprint=mark, mIoU=test['metrics']['mIoU'],
        val_mIoU=summary['last']['metrics']['mIoU'],
        trainable=params['trainable'], total=params['total'], percent=params['percent'],
        backbone_trainable=sum(
            part['trainable'] for name, part in params['parts'].items()
            if name in ('backbone', 'prompt')),
        tuned_megabytes=params['tuned_megabytes'], train_seconds=round(seconds, 1), amp=amp,
        threads=threads, versions=test['versions'],
    )
    part = result_file.with_suffix('.part')
    part.write_text(json.dumps(result, indent=1) + '\n')
    os.replace(part, result_file)
    return result


def summarise(results):
    """Gathers the seeds of every method.

    Args:
        results (list[dict]): As `run_one` returns them.

    Returns:
        list[dict]: One row a method: mean, sample standard deviation (None for one seed), counts.
    """
    rows = []
    for method, name in METHODS.items():
        own = [result for result in results if result['method'] == method]
        if own:
            scores = [result['mIoU'] for result in own]
            rows.append(dict(
                method=method, name=name, mean=statistics.mean(scores),
                std=statistics.stdev(scores) if len(scores) > 1 else None, scores=scores,
                seeds=[result['seed'] for result in own],
                **{key: own[0][key] for key in ('trainable', 'backbone_trainable', 'total',
                                                'percent', 'tuned_megabytes')},
                train_seconds=statistics.mean(result['train_seconds'] for result in own),
            ))
    return rows


def cells(row):
    """The row of a method as text."""
    score = f'{row["mean"]:.1f}' + (f' ± {row["std"]:.1f}' if row['std'] is not None else '')
    return [row['name'], score, f'{row["trainable"]:,}', f'{row["backbone_trainable"]:,}',
            f'{row["percent"]:.1f} %', f'{row["tuned_megabytes"]:.2f} MB']


COLUMNS = ['method', 'mIoU (test)', 'trainable', 'of these in the backbone', '% of the model',
           'tuned part on disk']


def write_reports(rows, folder, command):
    """Writes the table as Markdown and everything behind it as JSON."""
    lines = ['| ' + ' | '.join(COLUMNS) + ' |', '|' + ' --- |' * len(COLUMNS)]
    lines += ['| ' + ' | '.join(cells(row)) + ' |' for row in rows]
    (folder / 'table.md').write_text('\n'.join(lines) + f'\n\n`{command}`\n')
    (folder / 'table.json').write_text(
        json.dumps(dict(command=command, rows=rows), indent=1) + '\n')


def load_model(method, work_dir):
    """Builds a trained model for inference.

    Args:
        method (str): Key of `METHODS`.
        work_dir (Path): Folder of its run.

    Returns:
        tuple: The model in eval mode and its config.
    """
    from vpt_dense import config, logging

    logging.filter_warnings()
    import mmseg.models  # noqa: F401  (fills the registries)
    from mmengine.registry import MODELS, DefaultScope

    from vpt_dense.engine import checkpoints

    logging.filter_warnings()  # the import has set its own

    cfg = config.load(str(config_of(method)))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    state = checkpoints.read(checkpoints.find_last(str(work_dir)))
    model.load_state_dict(state['state_dict'])
    return model.eval(), cfg


def draw(work_dirs, out, count=6):
    """Draws images, ground truth and the predictions of some methods side by side.

    Args:
        work_dirs (dict[str, Path]): Method (key of `METHODS`) -> folder of its run.
        out (Path): PNG to write.
        count (int): Number of test images, spread over the split.
    """
    import matplotlib

    matplotlib.use('Agg')
    import cv2
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    paths = sorted((DATA / 'images/test').glob('*.png'))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    images = [cv2.imread(str(path)) for path in paths]
    truths = [cv2.imread(str(DATA / 'annotations/test' / path.name), cv2.IMREAD_UNCHANGED)
              for path in paths]
    columns = {'image': [image[..., ::-1] for image in images]}
    predictions = {}
    for method, work_dir in work_dirs.items():
        model, cfg = load_model(method, work_dir)
        data = dict(inputs=[torch.from_numpy(image.transpose(2, 0, 1).copy())
                            for image in images])
        with torch.no_grad():
            inputs = model.data_preprocessor(data)['inputs']
            logits = model.encode_decode(
                inputs, [dict(img_shape=inputs.shape[2:])] * len(inputs))
        predictions[METHODS[method]] = logits.argmax(1).numpy()
    palette = np.array(cfg.dataset.metainfo.palette, np.uint8)
    columns['ground truth'] = [palette[truth] for truth in truths]
    columns.update({name: [palette[p] for p in maps] for name, maps in predictions.items()})
    figure, axes = plt.subplots(count, len(columns), figsize=(2 * len(columns), 2 * count),
                                layout='constrained')
    for column, (name, pictures) in enumerate(columns.items()):
        axes[0, column].set_title(name)
        for row, picture in enumerate(pictures):
            axes[row, column].imshow(picture, interpolation='nearest')
            axes[row, column].set_axis_off()
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour / 255) for colour in palette[1:]]
    figure.legend(handles, cfg.dataset.metainfo.classes[1:], ncols=10, loc='outside lower center')
    figure.savefig(out, dpi=110)
    plt.close(figure)


def run():
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--all', action='store_true', help='all six methods')
    parser.add_argument('--methods', nargs='+', choices=METHODS, help='these methods')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/demo'))
    parser.add_argument('--jobs', type=int, help='runs at a time (default: one per CPU, at most 4)')
    parser.add_argument('--amp', choices=['auto', 'on', 'off'], default='auto',
                        help='bfloat16 (auto: where the CPU computes in it natively)')
    parser.add_argument('--traceback', action='store_true', help='full traceback on errors')
    args = parser.parse_args()
    os.chdir(ROOT)
    if len(set(args.seeds)) < len(args.seeds) or min(args.seeds) < 0:
        raise UserError(f'--seeds must be different and not negative, found {args.seeds}')
    methods = list(METHODS) if args.all else args.methods or ['head', 'deep']
    start = time.time()
    subprocess.run([sys.executable, 'tools/make_dataset.py', 'digits', str(DATA)], check=True)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    todo = [(method, seed) for seed in args.seeds for method in methods]
    jobs = min(args.jobs or min(cpus, 4), len(todo))
    threads = max(1, cpus // jobs)
    amp = args.amp == 'on' or (args.amp == 'auto' and has_fast_bfloat16())
    print(f'{len(todo)} runs, {jobs} at a time with {threads} thread(s) each, '
          f'{"bfloat16 autocast" if amp else "float32"}; logs in {args.work_dir}/*/output.log')
    lock = threading.Lock()
    results = []
    console = Console()
    with Progress(TextColumn('{task.description:36}'), BarColumn(), TextColumn(
            '{task.completed}/{task.total}'), TimeElapsedColumn(), console=console) as progress:

        def work(job):
            result = run_one(*job, args.work_dir, threads, amp, progress)
            with lock:
                results.append(result)

        with ThreadPoolExecutor(jobs) as pool:
            futures = [pool.submit(work, job) for job in todo]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
    results.sort(key=lambda result: todo.index((result['method'], result['seed'])))
    rows = summarise(results)
    table = Table(title='Digits, test split')
    for index, column in enumerate(COLUMNS):
        table.add_column(column, justify='right' if index else 'left')
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    command = 'python tools/demo.py ' + ('--all' if args.all else '--methods ' + ' '.join(methods))
    command += ' --seeds ' + ' '.join(map(str, args.seeds))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    write_reports(rows, args.work_dir, command)
    print(f'table: {args.work_dir / "table.md"}, {args.work_dir / "table.json"}')
    shown = [method for method in ('head', 'deep') if method in methods] or methods[:1]
    picture = args.work_dir / 'predictions.png'
    draw({m: args.work_dir / f'{m}_seed{args.seeds[0]}' for m in shown}, picture)
    print(f'predictions: {picture}')
    print(f'{(time.time() - start) / 60:.1f} minutes')


if __name__ == '__main__':
    main(run)
