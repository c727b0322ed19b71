"""Chooses the demo's learning rates on the validation split: the same number of trials a method.

``python tools/search_demo.py``

The test split is not touched. Results: work_dirs/search/table.md. Finished trials are kept.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vpt_dense import safe_files
from vpt_dense.commands import compare, demo
from vpt_dense.comparison import runs
from vpt_dense.errors import ArgumentParser, UserError, main

HEAD_LR = 'optim_wrapper.optimizer.lr'
BACKBONE_LR = 'optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult'
# The heads' learning rate for head-only tuning; else the backbone's, as a multiple of the heads'
# 4e-3 (for VPT-deep with biases that of the biases; its prompts keep theirs).
GRID = {
    'head': [{HEAD_LR: lr} for lr in (2e-3, 4e-3, 1e-2)],
    'full': [{BACKBONE_LR: factor} for factor in (0.025, 0.075, 0.25)],
    'bias': [{BACKBONE_LR: factor} for factor in (0.25, 0.75, 2.5)],
    'shallow': [{BACKBONE_LR: factor} for factor in (0.75, 2.5, 7.5)],
    'deep': [{BACKBONE_LR: factor} for factor in (0.75, 2.5, 7.5)],
    'deep-bias': [{BACKBONE_LR: factor} for factor in (0.25, 0.75, 2.5)],
}


def trial(method, options, folder, amp, progress) -> dict:
    """Trains one method with some settings and evaluates it on the validation split.

    Returns:
        method, options and mIoU in per cent.
    """
    name = '_'.join([method, *(f'{value:g}' for value in options.values())])
    pairs = [f'{key}={value}' for key, value in options.items()]
    mark = runs.Comparison(compare.DEMO, folder, amp, options=pairs).fingerprint(method, 0)
    work_dir = runs.own_place(folder / name, f'/{runs.RESULT}', mark)
    done = work_dir / 'summary.json'
    if done.exists() and not (work_dir / runs.RESULT).exists():
        raise UserError(f'{work_dir} holds a run that was started otherwise; move it away or take '
                        'another --work-dir')
    task = progress.add_task(name, total=None)
    if not done.exists():
        safe_files.write_text(work_dir / runs.RESULT, json.dumps(mark) + '\n')
        runs.call([*runs.TOOL, 'train', demo.config_of(method), '--work-dir', work_dir,
                   *(['--amp'] if amp else []),
                   '--cfg-options', *pairs],
                  work_dir / 'output.log', 1,
                  lambda number: progress.update(task, completed=number))
    miou = json.loads(done.read_text())['last']['metrics']['mIoU']
    progress.update(task, description=f'{name}: {miou:.1f}')
    return dict(method=method, options=options, mIoU=miou)


def run():
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs/search'))
    parser.add_argument('--methods', nargs='+', choices=GRID, default=list(GRID))
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    args = parser.parse_args()
    os.chdir(compare.ROOT)
    amp = runs.has_fast_bfloat16()
    jobs = [(method, options) for method in args.methods for options in GRID[method]]
    with runs.progress_bars() as progress, ThreadPoolExecutor(args.jobs) as pool:
        futures = [pool.submit(trial, *job, args.work_dir, amp, progress) for job in jobs]
        results = [future.result() for future in futures]
    lines = ['| method | setting | mIoU (validation) |', '| --- | --- | --- |']
    lines += [
        f'| {demo.METHODS[r["method"]]} | '
        + ', '.join(f'{key.rsplit(".", 1)[-1]} {value:g}' for key, value in r['options'].items())
        + f' | {r["mIoU"]:.1f} |' for r in results
    ]
    safe_files.write_text(args.work_dir / 'table.md', '\n'.join(lines) + '\n')
    print('\n'.join(lines))


if __name__ == '__main__':
    main(run)
