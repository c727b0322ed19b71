"""Runs a benchmark suite: tasks x methods x seeds x trials, as a file says; one table at the end.

``vpt-dense suite SUITE.py --dry-run`` prints the plan, ``vpt-dense suite SUITE.py`` carries it out.

What is finished is not repeated, what was interrupted goes on, and several processes, on machines
that share a folder too, may run the same suite: each takes what no other is at.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from vpt_dense.commands import compare
from vpt_dense.errors import ArgumentParser, UserError, count

EXECUTORS = ('local', 'slurm', 'ray')


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='docs/suites.md has what a file of a suite says. Exit code: 0; 1 if something '
        'failed, after all the rest was run; 2 if the suite or the command is wrong.')
    add = parser.add_argument
    add('suite', help='file of the suite: Python, YAML or JSON')
    add('--work-dir', type=Path, help="default: work_dirs/suites/ and the file's name")
    add('--executor', choices=EXECUTORS, default='local',
        help='where cells (a task with a method) run: as processes here, as jobs of Slurm, on a '
        'Ray cluster (default: %(default)s)')
    add('--jobs', type=count, metavar='N',
        help='cells at a time (default: one for each GPU; without one as compare; of Slurm: as it '
        'likes)')
    add('--slurm', nargs='+', action='extend', metavar='KEY=VALUE',
        help='of --executor slurm: partition=gpu time=240 gpus_per_node=1 cpus_per_task=8 ...')
    add('--ray-address', metavar='ADDRESS',
        help='of --executor ray: the head of a cluster, or auto (default: this machine alone)')
    add('--shard', metavar='I/N', help='run the I-th of N shares of the cells')
    phase = parser.add_mutually_exclusive_group()
    phase.add_argument('--dry-run', action='store_true',
                       help='run nothing: print the plan, with the time that it would take')
    phase.add_argument('--table', action='store_true',
                       help='run nothing: write the table of what there is')
    phase.add_argument('--cell', metavar='TASK/METHOD', help='run one cell, in this process')
    add('--no-measure', action='store_true', help='of --dry-run: numbers of runs alone')
    args = parser.parse_args(argv)
    for option, value, executors in (
            ('--slurm', args.slurm, ['slurm']), ('--ray-address', args.ray_address, ['ray']),
            ('--jobs', args.jobs, ['local', 'slurm'])):
        if value and args.executor not in executors:
            raise UserError(f'{option} does nothing with --executor {args.executor}')
    if args.no_measure and not args.dry_run:
        raise UserError('--no-measure does nothing without --dry-run')
    alone = '--dry-run' if args.dry_run else '--table' if args.table else '--cell'
    if args.dry_run or args.table or args.cell:
        for option, value in (('--jobs', args.jobs), ('--shard', args.shard),
                              ('--executor', args.executor != 'local')):
            if value:
                raise UserError(f'{option} does nothing with {alone}')
    return args


def main(argv=None):
    """Command line."""
    args = parse_args(argv)
    from vpt_dense import logging
    from vpt_dense.comparison import suite as suites

    logging.filter_warnings()
    compare.stop_politely()
    suite = suites.read(args.suite, args.work_dir)
    if args.cell:
        return run_cell(suite, suite.find(args.cell))
    cells = suites.shard(suite.cells(), args.shard)
    suite.check()
    if args.dry_run:
        return print_plan(suite, not args.no_measure)
    failures = {} if args.table else run(suite, cells, args)
    write(suite)
    if failures:
        names = [name for name in map(str, cells) if name in failures]  # as they are planned
        lines = [f'{name}: {failures[name]}' for name in names]
        print(f'{len(failures)} of {len(cells)} cells failed:', *lines, sep='\n', file=sys.stderr)
        sys.exit(1)


def run_cell(suite, cell):
    """Runs one cell in this process.

    Raises:
        UserError: If something of it fails, with the first error.
    """
    if hasattr(signal, 'SIGUSR2'):  # Slurm's, before it takes the node away: submitit asks for it
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGUSR2, signal.default_int_handler)
    _, threads, _ = compare.share(1, 1, 'off')
    failures = suite.run(cell, threads, lambda text: print(text, flush=True))
    if failures:
        name, error = next(iter(failures.items()))
        print(f'error: {len(failures)} of {cell} failed; {name}: {error}', file=sys.stderr)
        sys.exit(1)


def run(suite, cells, args) -> dict:
    """Runs what is not finished, with an executor.

    Returns:
        What failed -> its error.
    """
    from vpt_dense.comparison import executors, runs

    settings = executors.read_slurm(args.slurm or []) if args.executor == 'slurm' else None
    todo = [cell for cell in cells if suite.state(cell)['missing']]
    print(f'{len(cells)} cells, {len(cells) - len(todo)} of them finished; logs in '
          f'{suite.folder}/*/cells/*/output.log')
    path = args.suite if '::' in args.suite else os.path.abspath(args.suite)
    jobs = [executors.Job(str(cell), (
        *runs.TOOL, 'suite', path, '--cell', str(cell), '--work-dir', str(suite.folder)),
        suite.place(cell)) for cell in todo]

    def say(text):
        print(text, flush=True)

    if not jobs:
        return {}
    if args.executor == 'slurm':
        return executors.slurm(jobs, settings, suite.folder, args.jobs, say)
    if args.executor == 'ray':
        return executors.ray(jobs, args.ray_address, say)
    import torch

    gpus = torch.cuda.device_count()
    slots, threads, _ = compare.share(len(jobs), args.jobs or gpus or None, 'off')
    return executors.local(jobs, slots, threads, gpus, say)


def write(suite):
    """Writes and prints the table."""
    from vpt_dense import tables
    from vpt_dense.comparison import suite_table
    from vpt_dense.report.records import command_line

    states = {cell: suite.state(cell) for cell in suite.cells()}
    table = suite_table.gather(suite, states)
    written = suite_table.write(table, suite, command_line())
    header, rows, _ = suite_table.lay_out(table, suite)
    tables.show(header, rows, str(suite.folder))
    for line in (*table['notes'], *(f'missing: {line}' for line in table['missing'])):
        print(line)
    print(*written, *suite_table.write_pages(suite, states, command_line()), sep='\n')


def print_plan(suite, measure):
    """Prints what there is to run, and what it would take."""
    from vpt_dense import tables
    from vpt_dense.comparison import suite_plan

    amp = suite.precision()
    if amp is None:  # nothing has run yet
        _, _, amp = compare.share(1, 1, suite.amp)
    records, notes = suite_plan.plan(suite, measure, amp)
    header = ['cell', 'trials', 'seeds', 'runs', 'length', 'images', 'hours']

    def number(value, form):
        return '-' if value is None else format(value, form)

    rows = [[str(each['cell']), *(str(each[key]) for key in header[1:5]),
             number(each['images'], ','), number(each['hours'], '.2f')] for each in records]
    tables.show(header if measure else header[:-1],
                rows if measure else [row[:-1] for row in rows], suite.path)
    print(f'{len(suite.tasks)} tasks x {len(suite.methods)} methods: '
          f'{sum(each["runs"] for each in records)} runs')
    hours = [each['hours'] for each in records]
    if measure and None not in hours:
        device = records[0]['device']
        what = 'CPU-hours' if device == 'cpu' else 'GPU-hours'
        print(f'{sum(hours):.2f} {what} of training steps ({device}); validation, tests and '
              'starts come on top')
    print(*notes, sep='\n', end='\n' if notes else '')
