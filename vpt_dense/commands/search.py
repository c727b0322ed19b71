"""Searches the settings of a method: ``vpt-dense search CONFIG --method deep --trials 20``.

Each trial is a training of its own in a folder of its own, judged by its last validation; the test
split is not read. A search goes on where it was interrupted. Several processes, on machines that
share a folder too, may search in one folder at the same time.
"""

import shlex
from pathlib import Path

from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser, UserError


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Without --space: lr, head_lr (two decades around the config's own, which are the "
        'first trial) and weight_decay. Results in the work dir: best.py (a config), trials.csv, '
        'trials.svg.')
    add = parser.add_argument
    add('config', help='config file, or a recipe with --method')
    add('--trials', type=int, default=20, help='in all (default: %(default)s)')
    compare.add_space_options(parser)
    add('--work-dir', type=Path,
        help='default: work_dirs/search/ and the name of the config, and of the method')
    add('--jobs', type=int, help='trials at a time (default: as compare)')
    add('--amp', choices=['auto', 'on', 'off'], default='auto',
        help='mixed precision (auto: on a CPU that computes in bfloat16 natively)')
    add('--seed', type=int, default=0, help="of the sampler; trainings have the config's")
    parser.add_config_options('override settings of all trials')
    args = parser.parse_args(argv)
    compare.set_search_defaults(args)
    compare.check_numbers([args.seed], args.jobs)
    if args.trials < 1:
        raise UserError(f'--trials must be at least 1, found {args.trials}')
    return args


def main(argv=None):
    """Command line."""
    args = parse_args(argv)
    from vpt_dense import installed, logging
    from vpt_dense.comparison import runs
    from vpt_dense.comparison.search import Search, options_of, read_space

    logging.filter_warnings()
    compare.stop_politely()
    path = str(installed.config(args.config)) if '::' in args.config else args.config
    name = '_'.join(filter(None, (Path(path).stem, args.method and Path(args.method).stem)))
    folder = (args.work_dir or Path('work_dirs/search', name)).absolute()
    jobs, threads, amp = compare.share(args.trials, args.jobs, args.amp)
    comparison = runs.Comparison(path, folder, amp, threads, args.cfg_options or [])
    search = Search(comparison, args.method or '', folder, args.trials, read_space(args.space),
                    args.pruner, args.seed, args.sampler)
    print(f'{search.trials} trials, {jobs} at a time with {threads} thread(s) each; in {folder}')
    for key, distribution in search.space.items():
        print(f'  {key}: {distribution}')
    study = search.run(jobs)
    written = search.write(study)
    best = search.best(study)
    print(f'best: {search.metric} {search.told(best.value)}, trial {best.number}', *written,
          sep='\n')
    print(shlex.join(['vpt-dense', 'train', args.config,
                      *(['--method', args.method] if args.method else []),
                      '--cfg-options', *(args.cfg_options or []), *options_of(best)]))
