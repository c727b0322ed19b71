"""Federated training: deals the training images to clients and writes an app for Flower.

``vpt-dense federated RECIPE --method deep --by dirichlet --clients 10 --alpha 0.3``, then
``flwr run FOLDER --stream``.
"""

import argparse
import contextlib
import io
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import outputs
from vpt_dense.errors import ArgumentParser, UserError

#: What each way of dealing takes, and whether it must be said.
_OF_WAYS = {
    'dirichlet': dict(clients=True, alpha=True, least=False),
    'pathological': dict(clients=True, shards=True),
    'iid': dict(clients=True),
    'name': dict(pattern=False),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='FOLDER gets partition/ (a list of images for each client, partition.json) and '
        'pyproject.toml, whose comments tell all settings. The length of the config is that of all '
        'rounds together.')
    add = parser.add_argument
    add('config', help='config file, or a recipe with --method')
    add('--by', required=True, choices=list(_OF_WAYS),
        help='dirichlet: shares of each class; pathological: few classes a client; iid: at random; '
        "name: a client for each sequence, as the images' names tell")
    add('--clients', type=int, help='how many')
    add('--alpha', type=float, help='of dirichlet: the smaller, the fewer classes a client has')
    add('--least', type=int, help='of dirichlet: images that every client has (default: 1)')
    add('--shards', type=int, help='of pathological: of each client, each of about one class')
    add('--pattern', help="of name: a regular expression whose group is the client's name "
        '(default: what is before the first _)')
    add('--partition-seed', type=int, default=0, help='of the dealing (default: 0)')
    add('--holdout', type=float, default=0.0, help='share of its images that a client tests on')
    add('--rounds', type=int, default=10, help='default: 10')
    add('--seed', type=int, default=0, help='of the start and the trainings (default: 0)')
    add('--strategy', default='FedAvg', help="by Flower's name (default: FedAvg)")
    add('--strategy-options', default='', metavar="'KEY=NUMBER ...'",
        help="Flower's numbers of it, 'proximal_mu=0.1'")
    add('--work-dir', type=Path, metavar='FOLDER',
        help='default: work_dirs/federated/ and the name of the config, and of the method')
    add('--run', action='store_true', help='train at once, with clients on this machine')
    add('--jobs', type=int, default=1, help='clients that train at a time (default: 1)')
    add('--gpus', type=float, default=0.0, help='share of a GPU for each of these (default: 0)')
    outputs.add_force_option(parser)
    parser.add_config_options('override settings of all trainings')
    args = parser.parse_args(argv)
    if args.jobs < 1 or args.gpus < 0:
        raise UserError('--jobs must be at least 1, --gpus not negative')
    known = _OF_WAYS[args.by]
    for key in ('clients', 'alpha', 'least', 'shards', 'pattern'):
        if getattr(args, key) is not None and key not in known:
            raise UserError(f'--{key} does nothing with --by {args.by}')
        if known.get(key) and getattr(args, key) is None:
            raise UserError(f'--by {args.by} needs --{key}')
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the lists and the app."""
    args = parse_args(argv)
    from vpt_dense import logging
    from vpt_dense.datasets import few_images
    from vpt_dense.federated import local, partitions
    from vpt_dense.federated.settings import HISTORY, MODEL, Settings

    logging.filter_warnings()
    path = args.config
    path = path if '::' in path else str(Path(path).resolve())
    method = args.method or ''
    if method.endswith('.py'):
        method = str(Path(method).resolve())
    name = '_'.join(filter(None, (Path(path.rpartition('::')[2]).stem, Path(method).stem)))
    folder = (args.work_dir or Path('work_dirs/federated', name)).absolute()
    app, lists, run = folder / 'pyproject.toml', folder / 'partition', folder / 'run'
    outputs.check_free([app, lists, run], args.force)
    options = list(args.cfg_options or [])
    settings = Settings(
        config=path, method=method, options=shlex.join(options), partition=str(lists),
        rounds=args.rounds, seed=args.seed, out=str(run), strategy=args.strategy,
        strategy_options=args.strategy_options)
    settings.check()
    with contextlib.redirect_stdout(io.StringIO()):  # the packages print when they are imported
        cfg = settings.job.load()
        training = few_images.Training(cfg)
        local.use_list(cfg, lists)  # refuses what cannot take the list of a client
    how = {key: getattr(args, key) for key in _OF_WAYS[args.by] if getattr(args, key) is not None}
    parts = partitions.deal(training, args.by, args.partition_seed, **how)
    told = dict(by=args.by, **how, seed=args.partition_seed, holdout=args.holdout, config=path,
                options=options)
    clients = partitions.write(training, parts, lists, told, args.holdout, args.partition_seed)
    for old in (run / HISTORY, run / MODEL):  # of other images; with --force
        old.unlink(missing_ok=True)
    _tell(clients, training.classes)
    write_app(app, settings, len(clients))
    print(f'{app}: {len(clients)} clients, {args.rounds} rounds')
    if args.run:
        from vpt_dense.commands import compare
        from vpt_dense.federated import simulation

        compare.stop_politely()  # so that Flower's server ends too
        with simulation.link() as env:
            simulation.run(folder, len(clients), env, args.jobs, args.gpus)
        tell_outcome(run / HISTORY, args.rounds)
    else:
        print(f'flwr run {shlex.quote(str(folder))} --stream --federation-config '
              f'"num-supernodes={len(clients)}"')


def tell_outcome(history: Path, rounds: int) -> None:
    """Print who was left out of a run, and where it lies.

    Args:
        history: What the run has written.
        rounds: That were asked for.

    Raises:
        UserError: If fewer were finished, or nobody trained in any.
    """
    done = json.loads(history.read_text(encoding='utf-8'))['rounds'] if history.is_file() else []
    out = Counter(name for each in done for name in each['refused'])
    why = {name: reason for each in done for name, reason in each['refused'].items()}
    for name, count in sorted(out.items()):
        print(f'{name} was left out of {count} of {len(done)} rounds: {why[name]}')
    if len(done) < rounds or not any(each['trained'] for each in done):
        raise UserError(
            f'{history}: {len(done)} of {rounds} rounds were finished'
            f'{"" if len(done) < rounds else ", and no client trained"}; what Flower printed above '
            'says why')
    print(history)


def _tell(clients: Sequence[dict], classes: Sequence[str]) -> None:
    from vpt_dense import tables

    counts = 'per_class' in clients[0]
    shown = list(classes) if counts and len(classes) <= 12 else []
    rows = [[each['name'], f'{each["images"]:,}',
             *([str(sum(n > 0 for n in each['per_class']))] if counts else []),
             *(str(n) for n in (each['per_class'] if shown else ()))] for each in clients]
    tables.show(['client', 'images', *(['classes'] if counts else []), *shown], rows, '')


def write_app(file: Path, settings: object, clients: int) -> None:
    """Write the shipped ``pyproject.toml`` with the values of some settings.

    Args:
        file: Of the app.
        settings: :class:`vpt_dense.federated.settings.Settings`.
        clients: Of a simulation.
    """
    from vpt_dense import safe_files

    text = Path(__file__).parents[1].joinpath('federated', 'pyproject.toml').read_text('utf-8')
    for key, value in vars(settings).items():
        line = f'{key.replace("_", "-")} = {json.dumps(value, ensure_ascii=False)}'
        text, found = re.subn(
            rf'^{key.replace("_", "-")} = .*$', lambda _, line=line: line, text, flags=re.M)
        assert found == 1, key
    safe_files.write_text(file, text)
