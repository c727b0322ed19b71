"""Prompt tuning against its alternatives on data and weights that come with the repository.

``python tools/demo.py``
``python tools/demo.py --all --seeds 0 1 2``

Trains through tools/train.py with the configs of configs/demo, tests on the test split through
tools/test.py, prints a table and draws predictions. Runs that are finished are not repeated.
"""

import json
import time
from pathlib import Path

from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser

DATA = Path(compare.DATA)
METHODS = {
    'full': 'full fine-tuning',
    'head': 'head-only',
    'bias': 'bias',
    'shallow': 'VPT-shallow',
    'deep': 'VPT-deep',
    'deep-bias': 'VPT-deep + bias',
}
COLUMNS = ['method', 'mIoU (test)', 'trainable', 'of these in the backbone', '% of the model',
           'tuned part on disk']


def config_of(method):
    """Path of a method's config."""
    return compare.ROOT / compare.DEMO.format(method=method)


def cells(row):
    """The row of a method as text."""
    from vpt_dense.comparison.report import format_score

    return [METHODS[row['method']], format_score(row), f'{row["trainable"]:,}',
            f'{row["backbone_trainable"]:,}', f'{row["percent"]:.1f} %',
            f'{row["tuned_megabytes"]:.2f} MB']


def write_reports(rows, folder, command):
    """Writes the table as Markdown and everything behind it as JSON."""
    from vpt_dense import safe_files, tables

    table = tables.markdown(COLUMNS, [cells(row) for row in rows])
    safe_files.write_text(folder / 'table.md', f'{table}\n\n`{command}`\n')
    content = json.dumps(dict(command=command, rows=rows), indent=1)
    safe_files.write_text(folder / 'table.json', f'{content}\n')


def draw(work_dirs: dict[str, Path], out: Path, count: int = 6):
    """Draws images, ground truth and the predictions of some methods side by side.

    Args:
        work_dirs: Method (key of `METHODS`) -> folder of its run.
        out: PNG to write.
        count: Number of test images, spread over the split.
    """
    import matplotlib

    matplotlib.use('Agg')
    import cv2
    import matplotlib.pyplot as plt
    import numpy as np

    import vpt_dense

    paths = sorted((DATA / 'images/test').glob('*.png'))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]
    images = [cv2.imread(str(path)) for path in paths]
    truths = [cv2.imread(str(DATA / 'annotations/test' / path.name), cv2.IMREAD_UNCHANGED)
              for path in paths]
    columns = {'image': [image[..., ::-1] for image in images]}
    predictions = {}
    for method, work_dir in work_dirs.items():
        model = vpt_dense.load(work_dir, config_of(method))
        found = model.predict([str(path) for path in paths])
        predictions[METHODS[method]] = [result.labels for result in found]
    palette = np.array(model.palette, np.uint8)
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
    figure.legend(handles, model.classes[1:], ncols=10, loc='outside lower center')
    from vpt_dense import safe_files

    with safe_files.atomic(out) as unfinished:
        figure.savefig(unfinished, format='png', dpi=110)
    plt.close(figure)


def main(argv=None):
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--all', action='store_true', help='all six methods')
    parser.add_argument('--methods', nargs='+', choices=METHODS, help='these methods')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/demo')
    parser.add_argument('--jobs', type=int, help='runs at a time (default: one per CPU, at most 4)')
    parser.add_argument('--amp', choices=['auto', 'on', 'off'], default='auto',
                        help='bfloat16 (auto: where the CPU computes in it natively)')
    args = parser.parse_args(argv)
    if args.work_dir:
        args.work_dir = args.work_dir.absolute()
    pattern, options = compare.go_to_demo()
    args.work_dir = args.work_dir or Path('work_dirs/demo')
    compare.check_numbers(args.seeds, args.jobs)
    compare.stop_politely()
    methods = list(METHODS if args.all else dict.fromkeys(args.methods or ['head', 'deep']))
    start = time.time()
    from vpt_dense import logging
    from vpt_dense.comparison import report
    from vpt_dense.comparison.runs import Comparison

    logging.filter_warnings()
    jobs, threads, amp = compare.share(len(methods) * len(args.seeds), args.jobs, args.amp)
    comparison = Comparison(pattern, args.work_dir, amp, threads, options, METHODS)
    results, failures = comparison.run(methods, args.seeds, jobs)
    compare.fail({f'{m}, seed {s}': error for (m, s), error in failures.items()},
                 len(methods) * len(args.seeds))
    rows = [dict(row, name=METHODS[row['method']])
            for row in report.summarise(results, 'mIoU', [m for m in METHODS if m in methods])]
    from vpt_dense import tables

    tables.show(COLUMNS, [cells(row) for row in rows], 'Digits, test split')
    command = 'python tools/demo.py ' + ('--all' if args.all else '--methods ' + ' '.join(methods))
    command += ' --seeds ' + ' '.join(map(str, args.seeds))
    write_reports(rows, args.work_dir, command)
    print(f'table: {args.work_dir / "table.md"}, {args.work_dir / "table.json"}')
    shown = [method for method in ('head', 'deep') if method in methods] or methods[:1]
    picture = args.work_dir / 'predictions.png'
    draw({m: comparison.work_dir(m, args.seeds[0]) for m in shown}, picture)
    print(f'predictions: {picture}')
    print(f'{(time.time() - start) / 60:.1f} minutes')

