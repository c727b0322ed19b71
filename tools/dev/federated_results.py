"""Runs what docs/federated.md compares: federated, local and central training, three seeds each.

``python tools/dev/federated_results.py run camvid --data data/camvid --base WEIGHTS --out DIR``,
with Flower, or ``digits`` with data/digits-8x8;
``python tools/dev/federated_results.py page`` writes the tables of docs/federated.md.

Of a seed: the images are dealt to clients (digits: Dirichlet, by that seed; CamVid: by sequence);
FedAvg and others train in rounds by ``flwr run``; ``local`` trains each client alone for as long;
``central`` trains once on all images for as long. All are tested on the test images; in
``personal``, digits too, on what the clients hold out, and the mean over clients counts. What is
finished is not repeated.
"""

import json
import re
import shlex
import statistics
from dataclasses import replace
from pathlib import Path

from vpt_dense import safe_files, tables
from vpt_dense.errors import ArgumentParser, UserError, main
from vpt_dense.federated.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/federated.md'
MARK = re.compile(
    r'(<!-- (\w+): python tools/dev/federated_results.py page -->\n).*?(?=<!-- end -->)', re.DOTALL)
#: Row of a table -> strategy, its options, what stays with a client, a method of its own.
COMMON = {
    'FedAvg': dict(strategy='FedAvg'),
    'FedProx, mu 0.1': dict(strategy='FedProx', said='proximal_mu=0.1'),
    'FedAdam, eta 0.01': dict(strategy='FedAdam', said='eta=0.01'),
}
PERSONAL = {
    'FedAvg': dict(strategy='FedAvg'),
    'FedAvg, own heads': dict(strategy='FedAvg', personal='^head'),
    'pFedPG-like': dict(strategy='PFedPGLike'),
    'pFedPG-like, own heads': dict(strategy='PFedPGLike', personal='^head'),
    'SGPT-like': dict(strategy='SGPTLike',
                      method=str(ROOT / 'configs/federated/methods/sgpt_like.py')),
}
#: Name of a record -> the config, how images are dealt, what of them clients hold out to test on,
#: rounds, iterations, further overrides, rows.
SETS = {
    'digits': dict(
        config='vpt_dense::flowers_dinov2-s', by='dirichlet', how=dict(clients=5, alpha=0.3),
        rounds=10, iterations=100, rows=COMMON,
        options=['preprocessing=resize', 'img_size=56', 'warmup=10', 'lr=0.003']),
    'personal': dict(
        config='vpt_dense::flowers_dinov2-s', by='dirichlet', how=dict(clients=5, alpha=0.3),
        holdout=0.3, rounds=5, iterations=100, rows=PERSONAL,
        options=['preprocessing=resize', 'img_size=56', 'warmup=10', 'lr=0.003']),
    'camvid': dict(
        config=str(ROOT / 'configs/results/camvid_dinov2-s.py'), by='name', how={}, rounds=4,
        iterations=40, rows=COMMON, options=['img_size=(112,154)', 'warmup=4']),
}


def parse_args(argv=None):
    """Reads the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest='action', required=True, metavar='ACTION')
    add = actions.add_parser('run', help='train').add_argument
    add('name', choices=list(SETS), help='of the record, docs/results/federated-NAME.json')
    add('--data', type=Path, required=True, help='folder of images')
    add('--base', required=True, help='weights of DINOv2 ViT-S/14')
    add('--out', type=Path, required=True, help='folder of the runs')
    add('--seeds', type=int, nargs='+', default=[0, 1, 2])
    add('--methods', nargs='+', default=['deep'])
    add('--rows', nargs='+', metavar='ROW',
        help='that are trained (default: all); what others have finished is in the table too')
    add('--jobs', type=int, default=2)
    actions.add_parser('page', help='write the tables')
    return parser.parse_args(argv)


def options_of(args):
    """Overrides of the config; no worker processes."""
    given = SETS[args.name]
    loaders = [f'{split}_dataloader.{key}' for split in ('train', 'val', 'test')
               for key in ('num_workers=0', 'persistent_workers=False')]
    return [f'dataset.data_root={args.data.resolve()}', *given['options'],
            f'iters={given["iterations"]}', 'train_cfg.val_interval=1000', *loaders,
            f'model.backbone.init_cfg.checkpoint={Path(args.base).resolve()}']


def main_of(argv=None):
    """Command line."""
    args = parse_args(argv)
    if args.action == 'page':
        return page()
    from vpt_dense import config, logging
    from vpt_dense.commands.compare import stop_politely
    from vpt_dense.commands.federated import write_app
    from vpt_dense.datasets import few_images
    from vpt_dense.federated import local, partitions, simulation

    logging.filter_warnings()
    stop_politely()  # so that Flower's server ends too
    options, given = options_of(args), SETS[args.name]
    recipe, rounds, holdout = given['config'], given['rounds'], given.get('holdout', 0.0)
    cfg = config.load(recipe, options, args.methods[0])
    training, metric = few_images.Training(cfg), local.headline(cfg)
    out = args.out.resolve()
    found, moved_bytes, spread = {}, {}, {}
    with simulation.link() as env:
        for method in args.methods:
            for seed in args.seeds:
                lists = out / f'seed{seed}'
                parts = partitions.deal(training, given['by'], seed, **given['how'])
                clients = partitions.write(training, parts, lists, dict(seed=seed), holdout, seed)
                tests = [lists / each['test'] for each in clients] if holdout else [None]
                spread[seed] = [each['images'] for each in clients]
                for row, said in given['rows'].items():
                    name = re.sub(r'\W+', '_', row.lower())
                    folder = out / f'{method}_{name}_seed{seed}'
                    history = folder / 'run/history.json'
                    if not history.exists() and row not in (args.rows or given['rows']):
                        continue
                    settings = Settings(
                        recipe, said.get('method', method), shlex.join(options), str(lists),
                        rounds=rounds, seed=seed, out=str(folder / 'run'),
                        strategy=said['strategy'], strategy_options=said.get('said', ''),
                        personal=said.get('personal', ''))
                    settings = replace(settings, test_every=rounds)
                    own = settings.tests_on_clients
                    if holdout and not own:  # of the server's model, on what clients hold out
                        settings = replace(settings, test_every=0)
                    write_app(folder / 'pyproject.toml', settings, len(parts))
                    if not history.exists():
                        simulation.run(
                            folder, len(parts), env, args.jobs, log=folder / 'flower.log')
                    told = json.loads(history.read_text())
                    last = told['rounds'][-1]
                    if last['round'] != rounds or any(each['refused'] for each in told['rounds']):
                        raise UserError(f'{history}: not all rounds and clients are there')
                    scores = list(last['scores'].values()) if own else (
                        [last['metrics'][metric]] if not holdout
                        else _scores(settings.job, folder / 'run/global.pth', tests))
                    label = Path(said.get('method', method)).stem
                    found.setdefault((label, row), {})[seed] = statistics.fmean(scores)
                    moved_bytes[f'{label} {row}'] = [told['bytes_moved'], told['bytes_model']]
                job = local.Job(recipe, method, options, 1, seed)
                place = out / f'{method}_local_seed{seed}'
                alone = [_alone(job, name, lists / f'{name}.txt', place, [test]) for name, test
                         in zip(parts, tests if holdout else tests * len(parts), strict=True)]
                found.setdefault((method, 'local'), {})[seed] = statistics.fmean(alone)
                if not holdout:  # all images would be those that clients test on, too
                    found.setdefault((method, 'central'), {})[seed] = _alone(
                        job, 'central', None, out / f'{method}_central_seed{seed}', tests)
                print(method, seed, {row: each[seed] for (_, row), each in found.items()
                                     if seed in each}, flush=True)
                record = dict(
                    name=args.name, classes=len(training.classes), images=len(training),
                    metric=metric, by=given['by'], clients=len(parts),
                    alpha=given['how'].get('alpha'), holdout=holdout, rounds=rounds,
                    iterations=given['iterations'], seeds=args.seeds, spread=spread,
                    bytes=moved_bytes,
                    rows=[dict(method=m, row=row, scores=[each.get(s) for s in args.seeds])
                          for (m, row), each in found.items()])
                safe_files.write_text(ROOT / f'docs/results/federated-{args.name}.json',
                                      json.dumps(record, indent=1) + '\n')


def _scores(job, file, tests):
    """The headline metric of a checkpoint on lists of training images; None: on the test images."""
    from vpt_dense.federated import local

    found = []
    for test in tests:
        cfg = job.load()
        if test is not None:
            local.test_on_list(cfg, test)
        found.append(local.test(cfg, file, file.parent / 'test')[local.headline(cfg)])
    return found


def _alone(job, name, images, folder, tests):
    """Train for the whole length without a federation; its mean score, see :func:`_scores`."""
    from vpt_dense.federated import local, moved

    place = folder / name / 'result.json'
    if place.exists():
        return json.loads(place.read_text())['score']
    whole = local.Global(job, [])
    trained = local.train(job, 1, moved.take(whole.model), name, folder / name, images)
    whole.write(trained.tensors, folder / name / 'last.pth', 1)
    score = statistics.fmean(_scores(job, folder / name / 'last.pth', tests))
    safe_files.write_text(place, json.dumps(dict(score=score)) + '\n')
    return score


def table(record):
    """A record as Markdown."""
    rows = []
    for each in record['rows']:
        scores = [score for score in each['scores'] if score is not None]
        spread = f' ± {statistics.stdev(scores):.1f}' if len(scores) > 1 else ''
        clients = record['clients']
        moved, model = record['bytes'].get(f'{each["method"]} {each["row"]}', (0, 0))
        told = '-' if not moved else (
            f'{2 * clients * moved / 1e6:,.1f} MB of {2 * clients * model / 1e6:,.0f} MB')
        few = len(scores) - len(each['scores'])
        note = f' ({len(scores)} seed{"s" if len(scores) > 1 else ""})' if few else ''
        mean = f'{statistics.fmean(scores):.1f}{spread}'
        rows.append([each['method'], f'{each["row"]}{note}', mean, told])
    metric = record['metric'].partition('/')[0]
    return tables.markdown(['method', 'training', metric, 'moved a round'], rows)


def page():
    """Write the tables between their marks."""
    def fill(match):
        record = json.loads((ROOT / f'docs/results/federated-{match[2]}.json').read_text())
        return f'{match[1]}{table(record)}\n'

    safe_files.write_text(PAGE, MARK.sub(fill, PAGE.read_text(encoding='utf-8')))


if __name__ == '__main__':
    main(main_of)
