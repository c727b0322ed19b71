"""Look at what a model is trained on: images after the pipeline, with masks or labels drawn in.

They are shown in a window, or written to a folder if there is no screen or --out-dir is given.
"""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, logging, outputs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='path of a config file')
    parser.add_argument(
        '--out-dir', help='write them here (default: work_dirs/browse/CONFIG_SPLIT)'
    )
    outputs.add_force_option(parser)
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='train')
    parser.add_argument('--number', type=int, default=20, help='how many images (default: 20)')
    parser.add_config_options()
    return parser.parse_args(argv)


def has_screen() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ('darwin', 'win32') or any(
        os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY')
    )


def to_picture(inputs, cfg):
    """Turn a model input, a tensor (C, H, W) as the pipeline packs it, into a picture.

    Returns:
        RGB array (H, W, 3), uint8. The config's data preprocessor knows the order of the bands.
    """
    from vpt_dense import visualization

    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    swap = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
    return visualization.to_picture(
        inputs.numpy().transpose(1, 2, 0), bool(swap) and inputs.shape[0] == 3)


def draw(visualizer, picture, sample, name: str, out_file: str | None) -> None:
    """Draw the mask or the label into a picture, into a file or, without one, on the screen."""
    import cv2

    target = dict(show=True) if out_file is None else dict(out_file=out_file)
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(picture, sample, draw_pred=False, name=name, **target)
        return
    if 'gt_sem_seg' in sample:
        # In tests the image is resized and the mask is not: predictions are compared at its size.
        height, width = sample.gt_sem_seg.shape
        if picture.shape[:2] != (height, width):
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    visualizer.add_datasample(name, picture, sample, draw_pred=False, **target)


def main(argv: Sequence[str] | None = None) -> None:
    """Build the data set of a config and draw its first images."""
    args = parse_args(argv)
    if args.number < 1:
        raise errors.UserError(f'--number must be at least 1, not {args.number}')
    out_dir = None
    if args.out_dir or not has_screen():
        name = f'{Path(args.config).stem}_{args.split}'
        out_dir = Path(args.out_dir or Path('work_dirs/browse') / name)
        outputs.check_free([out_dir], args.force)
    logging.filter_warnings()

    from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
    from mmengine.runner import set_random_seed
    from rich.console import Console
    from rich.progress import track

    from vpt_dense import config, tasks, visualization
    from vpt_dense.datasets.names import image_names
    from vpt_dense.engine import runner
    from vpt_dense.hooks import data_check_hook
    from vpt_dense.safe_files import shortened

    cfg = config.load(args.config, args.cfg_options, args.method, trains=False)
    loader = cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise errors.UserError(f'{args.config} has no {args.split}_dataloader')
    with contextlib.redirect_stdout(io.StringIO()):  # the stack prints while it is imported
        tasks.check_installed(cfg.get('default_scope', 'mmengine'))
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        dataset = DATASETS.build(loader.dataset)
        if hasattr(dataset, 'full_init'):
            dataset.full_init()
        data_check_hook.check_images(dataset, args.split, args.number)
        runner.name_files(dataset)
        visualizer = visualization.ours(cfg.visualizer)
        visualizer = VISUALIZERS.build(dict(visualizer, name='browse', vis_backends=None))
    visualizer.dataset_meta = dataset.metainfo
    set_random_seed(cfg.get('randomness', {}).get('seed') or 0)

    name_of = image_names(dataset)
    count = min(args.number, len(dataset))
    for i in track(range(count), description=args.split, console=Console(stderr=True)):
        packed = dataset[i]
        sample = packed['data_samples']
        path = sample.metainfo.get('img_path')
        name = name_of(path).with_suffix('.png') if path else Path('image.png')
        name = name.with_name(f'{i:04}_{name.name}')
        out_file = str(shortened(out_dir / name)) if out_dir else None
        draw(visualizer, to_picture(packed['inputs'], cfg), sample, str(name), out_file)
    if out_dir:
        print(f'{count} of {len(dataset)} images written to {out_dir}')

