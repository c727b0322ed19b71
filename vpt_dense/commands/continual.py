"""Classes that come in steps: trains a method step after step, and tests what is left of each.

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
    add('config', help='config file of a classifier, or a recipe with --method')
    add('--steps', type=int, required=True, help='that the classes come in')
    add('--strategies', nargs='+', default=['sequential'],
        choices=['sequential', 'frozen', 'joint', 'nsp2'],
        help='sequential: goes on training; frozen: from the second step on the head alone; joint: '
        'on the images of all steps so far; nsp2: prompts change where earlier images do not look '
        '(default: sequential)')
    add('--seeds', type=int, nargs='+', default=[0], help='of the trainings (default: 0)')
    add('--order', type=int, default=0, help='seed of the order of the classes (default: 0)')
    add('--eta', type=float, help='of nsp2: 1 projects strictly, 0 not at all (default: 0.97)')
    add('--temperature', type=float, help='what scores are divided by in the loss (default: 1)')
    add('--work-dir', type=Path,
        help='default: work_dirs/continual/ and the name of the config, and of the method')
    add('--amp', choices=['auto', 'on', 'off'], default='auto',
        help='mixed precision (auto: on a CPU that computes in bfloat16 natively)')
    parser.add_config_options('override settings of all trainings')
    args = parser.parse_args(argv)
    compare.check_numbers(args.seeds, None)
    if args.order < 0:
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
    settings = [f'continual.steps={args.steps}', f'continual.seed={args.order}']
    if args.temperature is not None:
        settings.append(f'continual.temperature={args.temperature}')
    comparison = runs.Comparison(
        path, folder, amp, threads, [*(args.cfg_options or []), *settings])
    stream = streams.Stream(comparison, args.method or '', args.steps, args.eta)
    for seed in args.seeds:
        for strategy in args.strategies:
            matrix = stream.run(strategy, seed)
            print(f'{strategy}, seed {seed}: {json.dumps([round(a, 1) for a in matrix[-1]])}')
    written = stream.write(args.strategies, args.seeds)
    print(written[0].read_text(encoding='utf-8'))
    print(*written, sep='\n')
