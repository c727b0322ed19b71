"""Epochs of head-only training with and without a feature cache, data loading included.

``python tools/benchmark/feature_cache.py --images 64``

DINOv2-S/14 with random weights and a linear head, 224 px; JPEG images of about 683x512 that are
made for it. The first epoch computes the features and keeps them, the others find them.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
from pathlib import Path

import common
import cv2
import loader

from vpt_dense import config, logging
from vpt_dense.errors import main

RECIPE = 'vpt_dense::linear_vit-s_dinov2_segfolder'
EPOCHS = 4


def epochs(args: argparse.Namespace, folder: Path, name: str, cached: bool) -> list[float]:
    """Seconds of the iterations of each epoch, loading included."""
    from vpt_dense.engine.runner import Runner

    options = {
        'dataset.data_root': str(folder), 'dataset.classes': [str(i) for i in range(args.classes)],
        'img_size': args.img_size, 'epochs': EPOCHS, 'batch_size': args.batch, 'warmup': 0,
        'model.backbone.init_cfg': None, 'work_dir': str(folder / name),
        'train_dataloader.num_workers': args.workers, 'default_hooks.logger.interval': 1,
        'log_processor.window_size': 1,  # each iteration's own time
        'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
        'test_dataloader': None, 'test_cfg': None, 'test_evaluator': None,
        'default_hooks.checkpoint.save_best': None,
        'train_dataloader.dataset.pipeline': [
            dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='Resize', scale=(args.img_size, args.img_size)),
            dict(type='PackSegInputs')],
        **({'feature_cache.folder': str(folder / 'features')} if cached else {}),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        cfg = config.load(RECIPE, options, 'head')
        logging.quiet()
        Runner.from_cfg(cfg).train()
    (file,) = (folder / name).glob('*/vis_data/scalars.json')
    records = map(json.loads, file.read_text().splitlines())
    times = [record['time'] for record in records if 'time' in record]
    count = len(times) // EPOCHS
    return [sum(times[i * count : (i + 1) * count]) for i in range(EPOCHS)]


def run() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument('--images', type=int, default=48)
    parser.add_argument('--img-size', type=int, default=224, help='in pixels')
    parser.add_argument('--classes', type=int, default=11, help='at most 151')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--workers', type=int, default=2)
    args = parser.parse_args()
    common.check(args)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        loader.make_folder(folder, args.images)
        for file in (folder / 'annotations/training').iterdir():
            mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(file), mask % args.classes)
        figures = {name: epochs(args, folder, name, name == 'with') for name in ('without', 'with')}
    rows = [['without', 'each', common.ratio(figures['without'], figures['without'])]]
    rows += [['with', 'first', common.ratio(figures['with'][:1] * 2, figures['without'])],
             ['with', 'later', common.ratio(figures['with'][1:], figures['without'])]]
    later = statistics.median(figures['with'][1:]) / figures['with'][0]
    common.show(f'{args.images} images of {args.img_size} px', ['cache', 'epoch', 'time / without'],
                rows, f'later epochs take {later:.2f} of the first one')
    common.write(args.json, args, figures)


if __name__ == '__main__':
    main(run)
