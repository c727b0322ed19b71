"""Look at what a model is trained on: images after the pipeline, with masks or labels drawn in.

They are shown in a window, or written to a folder if there is no screen or --out-dir is given.
"""

import argparse
import contextlib
import io
import os
import sys
from pathlib import Path

from vpt_dense import errors, logging, outputs


def parse_args() -> argparse.Namespace:
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
    return parser.parse_args()


def has_screen() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ('darwin', 'win32') or any(
        os.environ.get(name) for name in ('DISPLAY', 'WAYLAND_DISPLAY')
    )


def to_picture(inputs, cfg):
    """Turn a model input into a picture.

    Args:
        inputs: Tensor (C, H, W) of any depth, as the pipeline packs it.
        cfg: The config; its data preprocessor knows the order of the bands.

    Returns:
        RGB array (H, W, 3), uint8. Of more than three bands the first three are shown, of fewer
        the first; values beyond 8 bits are scaled to the image's own range.
    """
    import numpy as np

    picture = inputs.numpy().transpose(1, 2, 0)  # (H, W, C)
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if picture.shape[2] == 3 and (preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')):
        picture = picture[..., ::-1]
    picture = picture[..., :3] if picture.shape[2] >= 3 else picture[..., :1].repeat(3, axis=2)
    if picture.dtype != np.uint8:
        low, high = float(picture.min()), float(picture.max())
        if low < 0 or high > 255:
            picture = (picture - low) * (255 / max(high - low, 1e-6))
    return np.ascontiguousarray(picture.astype(np.uint8))


def draw(visualizer, picture, sample, name: str, out_file: str | None) -> None:
    """Draw the mask or the label into a picture, into a file or, without one, on the screen."""
    target = dict(show=True) if out_file is None else dict(out_file=out_file)
    if hasattr(visualizer, 'visualize_cls'):
        # Enlarged: the text would not fit into a small image.
        short = max(224, min(picture.shape[:2]))
        target |= dict(resize=short, name=name)
        visualizer.visualize_cls(picture, sample, draw_pred=False, **target)
    else:
        visualizer.add_datasample(name, picture, sample, draw_pred=False, **target)


def main() -> None:
    """Build the data set of a config and draw its first images."""
    args = parse_args()
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

    from vpt_dense import config

    cfg = config.load(args.config, args.cfg_options)
    loader = cfg.get(f'{args.split}_dataloader')
    if not loader:
        raise errors.UserError(f'{args.config} has no {args.split}_dataloader')
    with contextlib.redirect_stdout(io.StringIO()):  # the stack prints while it is imported
        init_default_scope(cfg.get('default_scope', 'mmengine'))
        dataset = DATASETS.build(loader.dataset)
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, name='browse', vis_backends=None))
    visualizer.dataset_meta = dataset.metainfo
    if hasattr(visualizer, 'alpha'):
        visualizer.alpha = 0.5  # of the mask: mmseg's 0.8 hides the image
    set_random_seed(cfg.get('randomness', {}).get('seed') or 0)

    if out_dir:
        out_dir.mkdir(parents=True, exist_ok=True)
    count = min(args.number, len(dataset))
    for i in track(range(count), description=args.split, console=Console(stderr=True)):
        packed = dataset[i]
        sample = packed['data_samples']
        stem = Path(sample.metainfo.get('img_path') or 'image').stem
        out_file = str(out_dir / f'{i:04}_{stem}.png') if out_dir else None
        draw(visualizer, to_picture(packed['inputs'], cfg), sample, stem, out_file)
    if out_dir:
        print(f'{count} of {len(dataset)} images written to {out_dir}')


if __name__ == '__main__':
    errors.main(main)
