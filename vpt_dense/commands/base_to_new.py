"""From base to new classes: trains on half of the classes, tests both halves, harmonic mean.

``vpt-dense base-to-new configs/clip/clip_vit-b_imagefolder.py --methods coop maple --shots 16``
"""

from pathlib import Path

from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser, UserError, count


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='A run is one of a method and a seed, with a folder of its own; what is finished is '
        'not repeated. In the end: table.md, table.json. See docs/clip.md.')
    add = parser.add_argument
    add('config', help='a recipe that knows classes by their names: configs/clip/*.py')
    add('--methods', nargs='+', required=True,
        help='zero-shot, coop, cocoop, vpt, maple, sep, deep, ...')
    add('--shots', type=count, help='images of each base class that train (default: all)')
    add('--seeds', type=int, nargs='+', default=[1, 2, 3],
        help='of the trainings and of the images that are drawn (default: 1 2 3)')
    add('--work-dir', type=Path,
        help='default: work_dirs/base_to_new/ and the name of the config')
    add('--amp', choices=['auto', 'on', 'off'], default='auto',
        help='mixed precision (auto: on a CPU that computes in bfloat16 natively)')
    parser.add_config_options('override settings of all trainings', method=False)
    args = parser.parse_args(argv)
    compare.check_numbers(args.seeds, None)
    args.methods = list(dict.fromkeys(args.methods))
    told = {'class_split': '', 'class_split.part': '', 'subset.per_class': '--shots',
            'subset.seed': '--seeds'}  # fmt: skip
    for option in args.cfg_options or ():
        key = option.partition('=')[0].strip()
        if key in told:
            raise UserError(
                f'--cfg-options {key}: trainings are of the base, tests of both parts, and images '
                f'are drawn by seed; {f"say {told[key]}" if told[key] else "leave it out"} '
                '(class_split.new names the new classes)')
    return args


def main(argv=None):
    """Command line."""
    args = parse_args(argv)
    from vpt_dense import installed, logging
    from vpt_dense.comparison import base_to_new, runs

    logging.filter_warnings()
    compare.stop_politely()
    path = str(installed.config(args.config)) if '::' in args.config else args.config
    folder = args.work_dir or Path('work_dirs/base_to_new', Path(path).stem)
    _, threads, amp = compare.share(1, 1, args.amp)
    named = runs.find_methods(path, [m for m in args.methods if m != base_to_new.ZERO_SHOT] or [
        'head'])
    methods = {m: m for m in args.methods if m == base_to_new.ZERO_SHOT} | (
        named if args.methods != [base_to_new.ZERO_SHOT] else {})
    comparison = runs.Comparison(
        path, folder.absolute(), amp, threads, list(args.cfg_options or []), sources=methods)
    protocol = base_to_new.BaseToNew(comparison, args.shots)
    for method in methods:
        for seed in args.seeds:
            found = protocol.run(method, seed)
            print(f'{method}, seed {seed}: ' + ', '.join(
                f'{key} {value:.1f}' for key, value in found.items()), flush=True)
    written = protocol.write(list(methods), args.seeds)
    print(written[0].read_text(encoding='utf-8'))
    print(*written, sep='\n')
