"""Predict images: ``python tools/predict.py CONFIG CHECKPOINT IMAGE ... --out DIR``.

CONFIG may be left out: checkpoints and deltas hold theirs. CHECKPOINT may be a .onnx file that
tools/export.py wrote. IMAGE is a file, a folder, a pattern in
quotes, a .txt file with a path a line, or - for such a list from standard input. Segmentation gives
``labels/*.png`` in the ids of the annotations, classification predictions.jsonl. A video, or a
folder of frames with --video FPS, gives ``videos/NAME.mp4``, the labels drawn over it. Exit code 2
if an image could not be predicted; the others are there. See docs/predicting.md.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs

_CONFIGS = ('.py', '.json', '.yaml', '.yml')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('what', nargs='+', metavar='[CONFIG] CHECKPOINT IMAGE ...', help='see above')
    add('--out', required=True, metavar='DIR', help='folder for what is written')
    add('--overlay', action='store_true',
        help='draw label maps or boxes over their images, with a legend')
    add('--video', type=_rate, metavar='FPS',
        help='make a video of the images, in the order of their names, with so many frames a '
        'second; of videos: another rate than theirs')
    add('--probabilities', choices=('npz', 'tiff'), help='write those of every pixel')
    add('--dtype', choices=('float16', 'float32'),
        help='of the probabilities (default: float16)')
    add('--classes', metavar='NAMES',
        help='other classes than those of training, for a model that knows them by their names '
        "(CLIP): 'road, car, sky', or a text file with a name a line")
    add('--top-k', type=errors.count, metavar='K',
        help='classes of an image whose scores are written (classification; default: 5)')
    add('--batch-size', type=errors.count, metavar='N',
        help="images of one size at a time (default: that of the config's test)")
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add('--tta', action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline")
    add('--base', metavar='PATH', help='pretrained weights that a delta builds on (default: as '
        'its config says)')
    already = parser.add_mutually_exclusive_group()
    already.add_argument('--skip-existing', action='store_true',
                         help='leave out images whose results are there')
    outputs.add_force_option(already)
    parser.add_config_options('override settings, e.g. model.test_cfg.windows_per_batch=8')
    args = parser.parse_intermixed_args(argv)
    args.config = args.what.pop(0) if args.what[0].lower().endswith(_CONFIGS) else None
    if len(args.what) < 2:
        lacking = 'images' if args.what else 'a checkpoint and images'
        raise errors.UserError(f'name {lacking}: predict.py [CONFIG] CHECKPOINT IMAGE ...')
    args.checkpoint, *args.images = args.what
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Predict and write."""
    args = parse_args(argv)
    import cv2

    from vpt_dense.predicting import inputs, video, writing

    # It tells of damaged files in lines of its own.
    quiet = getattr(cv2, 'setLogLevel', None) or cv2.utils.logging.setLogLevel  # before 5.0, since
    quiet(0)

    writing.check_out(args.out, args.skip_existing, args.force)
    if args.video or any(video.is_video(path) for path in args.images):
        predict_videos(args)
        return
    images = inputs.find(args.images, args.out)
    print(f'{len(images):,} images; loading {args.checkpoint} ...', flush=True)
    predictor = load(args)
    wanted = writing.Wanted(
        args.overlay, args.probabilities, args.dtype, args.top_k, args.batch_size,
        args.skip_existing, args.force)
    summary = writing.write(predictor, images, args.out, wanted)
    skipped, there = len(summary['skipped']), summary['existing']
    rate = summary['predicted'] / max(summary['seconds'], 0.1)
    print(f'{summary["predicted"]:,} images predicted in {args.out}'
          f'{f", {there:,} were there" if there else ""}, {rate:.1f} images/s')
    if skipped:
        raise errors.UserError(
            f'{skipped:,} of {len(images):,} images could not be predicted: '
            f'{summary["skipped"][0]["path"]}{", ..." if skipped > 1 else ""} (reasons above and '
            f'in {Path(args.out, writing.SUMMARY)}); the others are there')


def predict_videos(args: argparse.Namespace) -> None:
    """Write a video for each video, or one of all images."""
    from vpt_dense.predicting import inputs, video, writing

    if any(video.is_video(path) for path in args.images):
        sources = [each._replace(rate=args.video) for each in video.find(args.images)]
    else:
        frames = inputs.find(args.images, args.out)
        root = frames[0].root
        sources = [video.Source(root, Path(root).name or 'frames', frames, args.video)]
    print(f'{len(sources):,} videos; loading {args.checkpoint} ...', flush=True)
    wanted = writing.Wanted(
        args.overlay, args.probabilities, args.dtype, args.top_k, args.batch_size,
        args.skip_existing, args.force)
    for each in video.write(load(args), sources, args.out, wanted)['videos']:
        print(f'{Path(args.out, each["out"])}: {each["frames"]:,} frames of '
              f'{each["size"][0]}x{each["size"][1]}, {each["frames_per_second"]} frames/s '
              f'(reading and predicting alone: {each["predicted_per_second"]})')


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < 1000:
        raise argparse.ArgumentTypeError(f'frames a second, such as 25; found {text!r}')
    return rate


def load(args: argparse.Namespace):
    """The model, as a :class:`vpt_dense.predicting.results.Predictor`."""
    if args.checkpoint.lower().endswith('.onnx'):
        from vpt_dense.deploy import onnx_model

        said = dict(CONFIG=args.config, method=args.method, classes=args.classes, tta=args.tta,
                    base=args.base, cfg_options=args.cfg_options)
        for name, value in said.items():
            if value:
                name = name if name.isupper() else f'--{name.replace("_", "-")}'
                raise errors.UserError(
                    f'{args.checkpoint} holds all that it needs: {name} is for checkpoints')
        return onnx_model.load(args.checkpoint, args.device or 'cpu')
    if args.checkpoint.lower().endswith('.pt2'):
        raise errors.UserError(
            f'{args.checkpoint} is a graph for torch.export.load: predict with the checkpoint that '
            'it was made from, or export that to .onnx')
    import torch

    import vpt_dense

    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    return vpt_dense.load(args.checkpoint, args.config, device, base=args.base, tta=args.tta,
                          cfg_options=args.cfg_options, method=args.method,
                          **(dict(classes=read_classes(args.classes)) if args.classes else {}))


def read_classes(given: str) -> list[str]:
    """Names of classes: between commas, or in the lines of a text file.

    Raises:
        UserError: If there is none, or the file cannot be read.
    """
    if given.lower().endswith('.txt'):
        try:
            names = Path(given).read_text(encoding='utf-8-sig').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise errors.UserError(f'--classes {given}: {error}') from error
    else:
        names = given.split(',')
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise errors.UserError(f'--classes {given!r} names no class')
    return names

