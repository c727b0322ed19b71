"""Methods x seeds on one config: score, parameters, disk, time and memory in one table.

``python tools/compare.py``
``python tools/compare.py 'configs/demo/setr_{method}_digits.py' --methods head deep --seeds 0 1 2``
``python tools/compare.py configs/vpt/setr_vit-l_ade20k.py --methods head deep lora --search 20``

Trains and tests through tools/train.py and tools/test.py, then measures each method in a process
of its own, then writes table.md, table.csv, table.json, scatter.svg and report.html. What is
finished is not repeated; what was interrupted goes on.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

from vpt_dense import shipped
from vpt_dense.errors import ArgumentParser, UserError

ROOT = shipped.folder('configs').parent
DIGITS = 'configs/demo/setr_{method}_digits.py'
DATA = 'data/digits'


def parse_args(argv=None):
    """Reads the command line."""
    from vpt_dense import logging

    logging.filter_warnings()
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='Memory is that of the whole process on a CPU, of tensors on a GPU. Time on a '
        'busy machine is worth little: --no-measure first, --measure-only later.',
    )
    add = parser.add_argument
    add('pattern', nargs='?', default=DIGITS, metavar='RECIPE|PATTERN',
        help="path of a recipe; or of configs, with '{method}' in the name (default: digits, "
        f'{DIGITS})')
    add('--methods', '--method', nargs='+', metavar='NAME',
        help='which (default: all that there are configs of); with a recipe method files of your '
        'own too')
    add('--seeds', nargs='+', type=int, default=[0])
    add('--work-dir', type=Path, help='default: work_dirs/compare/ and the name of the pattern')
    add('--metric', help="of the test (default: the task's, mIoU or accuracy/top1)")
    add('--jobs', type=int,
        help='runs at a time (default: one per CPU, at most 4; with a GPU one); they share the '
        'CPUs, unless OMP_NUM_THREADS says how many threads each has')
    add('--amp', choices=['auto', 'on', 'off'], default='auto',
        help='mixed precision (auto: on a CPU that computes in bfloat16 natively)')
    add('--steps', type=int, help='steps that are timed (default: 10)')
    add('--search', type=int, metavar='TRIALS',
        help='first search the settings of every method with so many trials (vpt-dense search)')
    add_space_options(parser)
    phase = parser.add_mutually_exclusive_group()
    phase.add_argument('--no-measure', action='store_true', help='leave out time and memory')
    phase.add_argument('--measure-only', action='store_true',
                       help='train nothing: measure, and make the table of the runs that there are')
    parser.add_config_options('override settings of all configs', method=False)
    args = parser.parse_args(argv)
    check_numbers(args.seeds, args.jobs)
    if args.search is not None and args.search < 1:
        raise UserError(f'--search must be at least 1, found {args.search}')
    for key in ('space', 'sampler', 'pruner'):
        if getattr(args, key) is not None and not args.search:
            raise UserError(f'--{key} does nothing without --search TRIALS')
    set_search_defaults(args)
    if args.steps is not None and args.no_measure:
        raise UserError('--steps does nothing with --no-measure')
    args.steps = 10 if args.steps is None else args.steps
    if args.steps < 1:
        raise UserError(f'--steps must be at least 1, found {args.steps}')
    return args


def add_space_options(parser):
    """Adds what is searched, and how."""
    parser.add_argument(
        '--space', nargs='+', action='extend', metavar='KEY=RANGE',
        help='what else is searched, or other ranges: lr=1e-4:1e-1 '
        'model.backbone.prompt.num_tokens=5,10,50')
    parser.add_argument(
        '--pruner', choices=['none', 'median', 'hyperband'],
        help='what stops a trial early, by its validations on the way (default: median)')
    parser.add_argument(
        '--sampler', choices=['tpe', 'grid', 'random'],
        help="what chooses the trials' settings: TPE, which learns from those before, every "
        'combination of what --space lists, or chance (default: tpe)')


def set_search_defaults(args):
    """Sets what the command line does not say of the search; before this it is None."""
    args.space = args.space or []
    args.pruner = args.pruner or 'median'
    args.sampler = args.sampler or 'tpe'


def check_numbers(seeds, jobs):
    """Refuses seeds and numbers of processes that make no sense."""
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f'--seeds must be different and not negative, found {seeds}')
    if jobs is not None and jobs < 1:
        raise UserError(f'--jobs must be at least 1, found {jobs}')


def stop_politely():
    """Lets SIGTERM, and a terminal that closes, do what Ctrl-C does.

    Running trainings save a checkpoint and end; else they would go on beside the next call's.

    Raises:
        UserError: torchrun or srun started several of this command, which would do all of it each.
    """
    number = os.environ.get('WORLD_SIZE') or os.environ.get('SLURM_STEP_NUM_TASKS') or '1'
    if number != '1':
        raise UserError(
            f'{number} processes of this command run at once (WORLD_SIZE or srun); start it once: '
            'it starts the processes of its trainings itself')
    for name in ('SIGTERM', 'SIGHUP'):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, signal.default_int_handler)


def make_digits():
    """Makes the small demo's data unless they are there."""
    subprocess.run([sys.executable, '-m', 'vpt_dense', 'make-dataset', 'digits', DATA], check=True)


def go_to_digits():
    """Makes the small demo's data, says where its configs are and what options they need.

    A checkout has data, weights and runs in it; where the package is installed, data and runs are
    in the current folder.
    """
    options = []
    if shipped.is_checkout():
        os.chdir(ROOT)
    else:
        weights = shipped.folder('pretrain') / 'vit-demo_formula.safetensors'
        options = [f'model.backbone.init_cfg.checkpoint={weights}']
    make_digits()
    return str(DIGITS if shipped.is_checkout() else ROOT / DIGITS), options


def share(total, jobs, amp) -> tuple:
    """Divides the CPUs among runs, unless OMP_NUM_THREADS does, and chooses the precision.

    Returns:
        Runs at a time, threads for each, whether in mixed precision.
    """
    import torch

    from vpt_dense.comparison import runs

    gpu, cpus = torch.cuda.is_available(), runs.num_cpus()
    jobs = min(jobs or (1 if gpu else min(cpus, 4)), total)
    amp = amp == 'on' or (amp == 'auto' and not gpu and runs.has_fast_bfloat16())
    said = os.environ.get('OMP_NUM_THREADS', '').partition(',')[0].strip()
    threads = int(said) if said.isdecimal() and int(said) else max(1, cpus // jobs)
    return jobs, threads, amp


def precision(amp) -> str:
    """In words."""
    import torch

    return 'float32' if not amp else f'{"float" if torch.cuda.is_available() else "bfloat"}16'


def fail(failures, total):
    """Ends the tool if something has failed.

    Raises:
        UserError: Names what and why.
    """
    if failures:
        name, error = next(iter(failures.items()))
        raise UserError(f'{len(failures)} of {total} failed; {name}: {error}')


def main(argv=None):
    """Command line."""
    args = parse_args(argv)
    from vpt_dense.comparison import page, report
    from vpt_dense.comparison.runs import Comparison, find_methods, num_cpus
    from vpt_dense.report.records import command_line

    stop_politely()
    folder = args.work_dir or Path(
        'work_dirs/compare', Path(args.pattern).stem.replace('{method}', 'METHOD'))
    folder = folder.absolute()
    options = args.cfg_options or []
    if args.pattern == DIGITS:
        args.pattern, needed = go_to_digits()
        options = [*needed, *options]
    sources = find_methods(args.pattern, args.methods)
    methods = list(sources)
    total = len(methods) * len(args.seeds)
    jobs, threads, amp = share(max(total, args.search or 0), args.jobs, args.amp)
    print(f'{total} runs, {jobs} at a time with {threads} thread(s) each, {precision(amp)}; '
          f'logs in {folder}/*/output.log')
    comparison = Comparison(args.pattern, folder, amp, threads, options, sources=sources)
    if args.search:
        search_all(comparison, methods, args, jobs)
    if args.measure_only:
        results, failures = comparison.finished(methods, args.seeds), {}
    else:
        results, failures = comparison.run(methods, args.seeds, jobs)
    costs, note = {}, None
    if not args.no_measure:
        costs, broken = comparison.measure(methods, args.steps, num_cpus())
        failures.update(broken)
        note = describe(costs)
    failures = {
        f'{method}, {"cost" if seed is None else f"seed {seed}"}': error
        for (method, seed), error in failures.items()
    }
    if results:
        metric = report.find_metric(results, args.metric)
        rows = report.summarise(results, metric, methods, costs)
        notes = dict(command=command_line(), cost=note, amp=amp,
                     threads=threads, versions=results[0]['versions'], costs=costs,
                    trials=args.search, searched=comparison.found)
        written = report.write(rows, metric, folder, notes, failures)
        report.draw(rows, metric, folder / 'scatter.svg')
        print(written[0].read_text(encoding='utf-8'))
        print(*written, folder / 'scatter.svg', sep='\n')
        if found := page.try_to_write(folder):
            print(found)
    elif not failures:
        print(f'no run in {folder} is finished; measured: {folder / "cost"}')
    runs = 0 if args.measure_only else len(args.seeds)
    fail(failures, len(methods) * (runs + (not args.no_measure)))


def search_all(comparison, methods, args, jobs):
    """Searches the settings of every method with the same number of trials."""
    from vpt_dense.comparison.search import Search, options_of, read_space

    space = read_space(args.space)
    for method in methods:
        folder = comparison.folder / 'search' / method
        search = Search(comparison, method, folder, args.search, space, args.pruner,
                        sampler=args.sampler)
        if args.measure_only and search.finished() is None:
            raise UserError(
                f'--measure-only trains nothing, but the search of {method} is not finished: '
                'leave out one of --measure-only and --search')
        study = search.run(jobs)
        search.write(study)
        best = search.best(study)
        print(f'{method}: best of {search.trials} trials: {" ".join(options_of(best))}: '
              f'{search.metric} {search.told(best.value)} on validation')
        comparison.found[method] = options_of(best)
        args.search = search.trials  # of a grid perhaps fewer than were asked for


def describe(costs):
    """How time and memory were measured, in a sentence; None without measurements."""
    if not costs:
        return None
    cost = next(iter(costs.values()))
    where = cost['device'] if cost['device'] != 'cpu' else f'{cost["threads"]} CPU threads'
    size = 'x'.join(map(str, cost['image']))
    return (
        f'Time: median of {cost["steps"]} steps, images of {size}, batches of '
        f'{cost["batch_size"]} (testing: {cost["test_batch_size"]}), {where}'
        f'{", mixed precision in training" if cost["amp"] else ""}. Memory: {cost["peak_kind"]}, '
        'its peak in training.'
    )

