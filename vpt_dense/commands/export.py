"""Export a model: ``python tools/export.py CONFIG CHECKPOINT --out model.onnx``.

The file computes what the model computes (that is checked before it is kept) on batches of any size
of images in RGB, float32, from 0 to 255; mean and standard deviation are inside. It says of itself
what its classes are and how images are prepared. tools/predict.py runs .onnx files. See
docs/export.md.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs, tasks

_CONFIGS = ('.py', '.json', '.yaml', '.yml')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('what', nargs='+', metavar='[CONFIG] CHECKPOINT',
        help='the config may be left out: checkpoints and deltas hold theirs')
    add('--out', required=True, metavar='FILE', help='the file to write, .onnx or .pt2')
    add('--format', metavar='onnx|pt2',
        help='ONNX, or a graph of torch.export (default: by the name of the file)')
    add('--size', nargs=2, type=errors.count, metavar=('HEIGHT', 'WIDTH'),
        help='of the images in pixels (default: of the windows of the test, else of the backbone)')
    add('--dynamic', action='store_true', help='images of any size')
    add('--resize', action='store_true',
        help='scores at the size of the input (segmentation; default: that of the head)')
    add('--argmax', action='store_true', help='labels in place of scores')
    add('--quantize', metavar='int8', help='also in int8 (ONNX): --out is that file then')
    add('--calibrate', type=errors.count, metavar='N',
        help='images that int8 is calibrated with (default: 64)')
    add('--calibration-images', metavar='DIR', help='where they are (default: those of training)')
    add('--measure', type=errors.count, metavar='N',
        help='validation images that int8 is measured with (default: all)')
    add('--base', metavar='PATH', help='pretrained weights that a delta builds on (default: as '
        'its config says)')
    outputs.add_force_option(parser)
    parser.add_config_options('override settings, e.g. model.test_cfg.mode=whole')
    args = parser.parse_intermixed_args(argv)
    args.config = args.what.pop(0) if args.what[0].lower().endswith(_CONFIGS) else None
    if len(args.what) != 1:
        raise errors.UserError(
            f'name {"one checkpoint" if args.what else "a checkpoint"}: export.py [CONFIG] '
            'CHECKPOINT --out FILE')
    (args.checkpoint,) = args.what
    kinds = ('onnx', 'pt2')
    args.format = args.format or Path(args.out).suffix[1:].lower()
    if args.format not in kinds:
        raise errors.UserError(
            f'--format {args.format or "(none)"} is not known; the formats are {", ".join(kinds)}')
    if Path(args.out).suffix.lower() != f'.{args.format}':
        raise errors.UserError(
            f'--out {args.out}: give a file of format {args.format} the ending .{args.format}')
    if args.size and args.dynamic:
        raise errors.UserError('--size is one size of images, --dynamic any: leave one of them out')
    if args.quantize not in (None, 'int8'):
        raise errors.UserError(f'--quantize {args.quantize} is not known; there is int8')
    if args.quantize and args.format != 'onnx':
        raise errors.UserError('--quantize int8 is for --format onnx')
    if args.quantize and args.argmax:
        raise errors.UserError(
            '--quantize measures by scores: leave --argmax out')
    for option in ('calibrate', 'calibration_images', 'measure'):
        if not args.quantize and getattr(args, option):
            raise errors.UserError(f'--{option.replace("_", "-")} is for --quantize int8')
    args.calibrate = args.calibrate or 64
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Export, and quantize if that is asked for."""
    args = parse_args(argv)
    read = [path for path in (args.checkpoint, args.config, args.base) if path]
    outputs.check_free([args.out], args.force, read)
    from vpt_dense.deploy import card as cards

    if args.format == 'onnx':
        cards.needed('onnx', 'onnxscript', 'onnxruntime')
    print(f'loading {args.checkpoint} ...', flush=True)
    from vpt_dense.deploy import exporting

    predictor = exporting.load(
        args.checkpoint, args.config, args.base, args.cfg_options, args.method)

    if args.quantize and tasks.TASKS[predictor.task].regions:
        raise errors.UserError('--quantize int8 is for classification and segmentation')

    def export(out: str | Path) -> None:
        exporting.export(
            predictor, out, args.format, args.size, args.dynamic, args.resize, args.argmax)

    if args.quantize and not predictor.classes:
        raise errors.UserError(f'--quantize measures by labels, this model is of {predictor.task}')
    if args.quantize is None:
        export(args.out)
    else:
        quantize(args, predictor, export)
    print(f'{args.out}: {Path(args.out).stat().st_size / 1e6:,.2f} MB')


def quantize(args: argparse.Namespace, predictor, export) -> None:
    """Export to a file that does not stay, quantize that, and measure both."""
    from vpt_dense import safe_files
    from vpt_dense.deploy import onnx_model, quantizing

    folder = Path(args.out).parent
    with safe_files.told(args.out):
        folder.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=folder, prefix='.exporting-')
    with place:
        plain = Path(place.name, 'float32.onnx')
        export(plain)
        source = onnx_model.load(plain)
        print(f'calibrating with {args.calibrate} images of '
              f'{args.calibration_images or "the training"} ...', flush=True)
        quantizing.quantize(plain, args.out, quantizing.calibration_images(
            source, predictor.cfg, args.calibrate, args.calibration_images))
        rows = [('float32', source, plain), ('int8', onnx_model.load(args.out), args.out)]
        for name, exported, path in rows:
            metrics, number = quantizing.measure(exported, predictor.cfg, args.measure)
            told = ', '.join(f'{key} {value:.2f}' for key, value in metrics.items())
            print(f'{name}: {told} ({number:,} validation images, '
                  f'{Path(path).stat().st_size / 1e6:,.2f} MB)', flush=True)

