"""What computes in ``vpt-dense serve``: eager, ONNX Runtime, ONNX Runtime in int8, side by side.

``python tools/benchmark/serve_backends.py TASKS IMAGES MASKS`` (a folder of deltas of segmentors,
one of images, one of masks with the images' names) predicts the images with each backend, in a
process of its own, through what the server predicts with, HTTP left out: times an image, memory,
pixels that are eager's, mIoU. Seconds are those that the process has computed, as other programs
may be running. The graphs are made first, and are not in the times.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from vpt_dense import outputs, tables
from vpt_dense.errors import ArgumentParser, UserError, count, main
from vpt_dense.serving.settings import BACKENDS, Settings

BATCH = 8


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('tasks', type=Path, help='folder of deltas')
    add('images', type=Path, help='folder of images')
    add('masks', type=Path, help='folder of their masks, PNG, with values as in training')
    add('--number', type=count, default=24, help='of images, evenly chosen (default: 24)')
    add('--threads', type=count, default=1)
    add('--graphs', type=Path, metavar='FOLDER', help='where onnx.onnx and onnx-int8.onnx are, or '
        'are made to stay')
    add('--json', type=outputs.new_file, metavar='FILE', help='also write all figures here')
    add('--one', choices=BACKENDS, help=argparse.SUPPRESS)
    add('--graph', type=Path, help=argparse.SUPPRESS)
    add('--place', type=Path, help=argparse.SUPPRESS)
    add('--make', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.number < BATCH:
        raise UserError(f'--number must be at least {BATCH}, the images of a batch')
    return args


def files(args: argparse.Namespace) -> list[tuple[Path, Path]]:
    """Images and their masks.

    Raises:
        UserError: If there are fewer than asked for, or one has no mask.
    """
    for folder in (args.images, args.masks):
        if not folder.is_dir():
            raise UserError(f'{folder}: no such folder')
    images = sorted(path for path in args.images.iterdir() if not path.name.startswith('.'))
    if len(images) < args.number:
        raise UserError(f'{args.images} has {len(images)} images, --number {args.number}')
    chosen = [images[i * len(images) // args.number] for i in range(args.number)]
    pairs = [(path, args.masks / f'{path.stem}.png') for path in chosen]
    for _, mask in pairs:
        if not mask.is_file():
            raise UserError(f'{mask}: no such file')
    return pairs


def mean_iou(found: list[np.ndarray], masks: list[Path], classes: int) -> float:
    """Mean over the classes of intersection over union, in percent, counted over all images.

    Args:
        found: Of each image positions of classes (H, W).
        masks: Files of the truth; values that are no class count nowhere.
        classes: How many there are.
    """
    counts = np.zeros((classes, classes), np.int64)
    for labels, path in zip(found, masks, strict=True):
        truth = np.asarray(Image.open(path))
        known = truth < classes
        pairs = classes * truth[known].astype(np.int64) + labels[known]
        counts += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    return 100 * float((np.diag(counts)[union > 0] / union[union > 0]).mean())


def one(args: argparse.Namespace, place: Path) -> dict:
    """Measure one backend, in this process; labels go to ``place``."""
    from vpt_dense.serving import app

    torch.set_num_threads(args.threads)
    eager = args.one == 'eager'
    options = {} if eager else dict(
        backend=args.one, graph=args.graph, samples=place / 'samples')
    with tempfile.TemporaryDirectory(dir=place) as spool:
        model = app.open_folder(Settings(args.tasks, **options), Path(spool)).model
        return {} if args.make else measure(args, place, model)


def measure(args: argparse.Namespace, place: Path, model: Any) -> dict:
    """Predict with the tasks of a server."""
    from vpt_dense.serving import answers

    pairs = files(args)
    name = model.tasks[0]
    about = model.about(name)
    if about.kind != 'segmentation' or tuple(about.ids) != tuple(range(len(about.ids))):
        raise UserError(f'{name}: it must be a segmentor whose classes are 0, 1, ... in masks')

    def predict(paths: list[Path]) -> tuple[list, float]:
        begun = time.process_time()
        found = model.predict([str(path) for path in paths], [[name]] * len(paths))
        return found, time.process_time() - begun

    predict([pairs[0][0]])
    labels, alone, together = [], [], []
    for path, _ in pairs:
        ((found,), took) = predict([path])
        labels.append(answers.as_array(*found[name]))
        alone.append(took)
    for start in range(0, len(pairs) - BATCH + 1, BATCH):
        _, took = predict([path for path, _ in pairs[start:start + BATCH]])
        together.append(took / BATCH)
    common.forget_peak()
    np.savez(place / f'{args.one}.npz', *labels)
    return dict(
        backend=args.one, ms=1000 * float(np.median(alone)),
        ms_of_8=1000 * float(np.median(together)), mb=common.process_memory('VmRSS') / 1e6,
        file_mb=None if args.one == 'eager' else args.graph.stat().st_size / 1e6,
        miou=mean_iou(labels, [mask for _, mask in pairs], len(about.classes)))


def run() -> None:
    """Measure all backends, and print a table."""
    args = parse_args()
    if args.one:
        print(json.dumps(one(args, args.place)))
        return
    pairs = files(args)
    with tempfile.TemporaryDirectory(prefix='vpt-dense-backends-') as name:
        place, rows, labels = Path(name), [], {}
        (place / 'samples').mkdir()
        for image, _ in pairs[:4]:
            (place / 'samples' / image.name).symlink_to(image.absolute())
        for backend in BACKENDS:
            graph = (args.graphs or place) / f'{backend}.onnx'
            command = [sys.executable, __file__, *map(str, (args.tasks, args.images, args.masks)),
                       '--number', str(args.number), '--threads', str(args.threads), '--one',
                       backend, '--graph', str(graph), '--place', str(place)]  # fmt: skip
            # In another process, whose memory goes with it.
            if backend != 'eager' and not graph.exists():
                _last_line([*command, '--make'])
            rows.append(json.loads(_last_line(command)))
            with np.load(place / f'{backend}.npz') as held:
                labels[backend] = [held[key] for key in held.files]
            rows[-1]['same'] = 100 * float(np.mean([
                (a == b).mean() for a, b in zip(labels['eager'], labels[backend], strict=True)]))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    header = ['backend', 'ms, 1 image', 'ms an image, 8 at once', 'MB', 'file, MB',
              "% of pixels eager's", 'mIoU']
    print(tables.markdown(header, [[
        row['backend'], f'{row["ms"]:.0f}', f'{row["ms_of_8"]:.0f}', f'{row["mb"]:,.0f}',
        '' if row['file_mb'] is None else f'{row["file_mb"]:.1f}', f'{row["same"]:.2f}',
        f'{row["miou"]:.2f}'] for row in rows]))
    print(f'{args.number} images, {args.threads} threads of {os.cpu_count()} CPUs; torch '
          f'{torch.__version__}')
    if args.json:
        args.json.write_text(json.dumps(dict(rows=rows, torch=torch.__version__), indent=1))


def _last_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ['']
        raise UserError(f'a backend did not start: {lines[-1]}')
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ''


if __name__ == '__main__':
    main(run)
