"""Classes or domains that come in steps: trains a method step after step, and tests them all.

``vpt-dense continual RECIPE --method deep --steps 5 --strategies sequential nsp2 joint``
"""

import json
from pathlib import Path

from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser, UserError


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='A run is one of a strategy and a seed; each of its steps has a folder, and what is '
        'finished is not repeated. In the end: stream.json (classes of the steps), table.json, '
        'table.md, matrix.svg.')
    add = parser.add_argument
    add('config', help='config file, or a recipe with --method')
    add('--steps', help="that the classes come in: a number; FIRST-EACH, as 15-1; a JSON file of "
        'classes; or a stream that comes along (cifar-100_10, ...)')
    add('--domains', nargs='+', help='data roots, one a step, of the same classes')
    add('--background', help='of a segmentation: the class that is of no step')
    add('--disjoint', action='store_true', default=None,
        help='of a segmentation: a step leaves out images that hold a class of a later one')
    add('--strategies', nargs='+', default=['sequential'],
        choices=['sequential', 'frozen', 'alone', 'joint', 'nsp2', 'eclipse_like'],
        help='sequential: goes on training; frozen: from the second step on the head alone; alone: '
        'each step from the start, and forward transfer is told; joint: on the images of all steps '
        'so far; nsp2: prompts change where earlier images do not look; eclipse_like: prompts for '
        'each step of a segmentation (default: sequential)')
    add('--seeds', type=int, nargs='+', default=[0], help='of the trainings (default: 0)')
    add('--order', type=int, help='seed of the order of the classes (default: 0; that of their '
        'labels with FIRST-EACH)')
    add('--eta', type=float, help='of nsp2: 1 projects strictly, 0 not at all (default: 0.97)')
    add('--temperature', type=float, help='what scores are divided by in the loss (default: 1)')
    add('--work-dir', type=Path,
        help='default: work_dirs/continual/ and the name of the config, and of the method')
    add('--amp', choices=['auto', 'on', 'off'], default='auto',
        help='mixed precision (auto: on a CPU that computes in bfloat16 natively)')
    parser.add_config_options('override settings of all trainings')
    args = parser.parse_args(argv)
    compare.check_numbers(args.seeds, None)
    if (args.steps is None) == (args.domains is None):
        raise UserError('either --steps or --domains says what comes')
    for option in ('order', 'background', 'disjoint', 'temperature'):
        if args.domains and getattr(args, option) is not None:
            raise UserError(f'--{option} does nothing with --domains')
    if args.order is not None and args.order < 0:
        raise UserError(f'--order must not be negative, found {args.order}')
    if args.eta is not None and 'nsp2' not in args.strategies:
        raise UserError('--eta does nothing without --strategies nsp2')
    return args


def main(argv=None):
    """Command line."""
    args = parse_args(argv)
    from vpt_dense import installed, logging
    from vpt_dense.comparison import runs, streams

    logging.filter_warnings()
    compare.stop_politely()
    path = str(installed.config(args.config)) if '::' in args.config else args.config
    name = '_'.join(filter(None, (Path(path).stem, args.method and Path(args.method).stem)))
    folder = (args.work_dir or Path('work_dirs/continual', name)).absolute()
    _, threads, amp = compare.share(1, 1, args.amp)
    values = dict(
        steps=int(args.steps) if args.steps and args.steps.isdecimal() else args.steps,
        domains=args.domains, seed=args.order, background=args.background,
        disjoint=args.disjoint,
        temperature=args.temperature)
    settings = [f'continual.{key}={value!r}' for key, value in values.items() if value is not None]
    comparison = runs.Comparison(
        path, folder, amp, threads, [*(args.cfg_options or []), *settings])
    stream = streams.Stream(comparison, args.method or '', args.domains or (), args.eta)
    stream.check(args.strategies, args.seeds)
    for seed in args.seeds:
        for strategy in args.strategies:
            found = stream.run(strategy, seed, 'alone' in args.strategies)
            last = found['matrix'][-1] if found['matrix'] else found['own']
            print(f'{strategy}, seed {seed}: {json.dumps([round(a, 1) for a in last])}')
    written = stream.write(args.strategies, args.seeds)
    print(written[0].read_text(encoding='utf-8'))
    print(*written, sep='\n')
