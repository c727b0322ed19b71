"""Count the parameters of configs by part, or estimate memory; needs neither data nor weights."""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from vpt_dense import errors, imports, logging


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = errors.ArgumentParser(
        description=__doc__,
        epilog='The columns of the parts hold trainable parameters; "deployed" and "deployed MB" '
        'leave out the auxiliary heads, which are used in training only; MB (10^6 bytes) are what '
        'the tuned part takes on disk. With --memory: "kept" is what the forward pass keeps for '
        'backward, without the weights; "sum" adds the four columns before it; "peak" is the most '
        'that is held at one moment of a step, with the tensors that come and go. Python, its '
        'libraries and the gaps of the allocator come on top.',
    )
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='path of a config file')
    parser.add_config_options('override settings of all configs', method=False)
    parser.add_argument(
        '--method', nargs='+', metavar='NAME', default=[None],
        help='what trains, for configs that are recipes: a row for each method')
    parser.add_argument(
        '--memory',
        action='store_true',
        help='estimate what a training step takes on this machine (on its GPU if it has one): '
        'weights, gradients, optimizer state and what is kept for backward',
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='print everything, as JSON')
    form.add_argument('--markdown', action='store_true', help='print the table as Markdown')
    return parser.parse_args(argv)


def table(reports: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Lay out reports as a header and a row for each config, by its name without folder.

    A part has a column if it has parameters in any of the configs. Its cell holds the trainable
    ones, or a dash if the model has no such part.
    """
    from vpt_dense import params

    found = {part for report in reports.values() for part in report['parts']}
    known = params.order()
    parts = [part for part in known if part in found] + sorted(found - set(known))
    header = ['config', *parts, 'trainable', 'total', '%', 'deployed', 'tuned MB', 'deployed MB']
    rows = []
    for name, report in zip(short_names(reports), reports.values(), strict=True):
        cells = [report['parts'].get(part) for part in parts]
        rows.append(
            [
                name,
                *('-' if cell is None else f'{cell["trainable"]:,}' for cell in cells),
                f'{report["trainable"]:,}',
                f'{report["total"]:,}',
                params.format_percent(report['percent']).removesuffix(' %'),
                f'{report["deployed"]["total"]:,}',
                f'{report["tuned_megabytes"]:,.2f}',
                f'{report["deployed"]["tuned_megabytes"]:,.2f}',
            ]
        )
    return header, rows


def memory_table(reports: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """Lay out the memory of reports as a header and a row for each config."""
    parts = ['weights', 'gradients', 'optimizer', 'kept', 'sum', 'peak']
    header = ['config', 'batch', 'image', 'size from', *(f'{part} MB' for part in parts)]
    rows = []
    for name, report in zip(short_names(reports), reports.values(), strict=True):
        found = report['memory']
        image = 'x'.join(map(str, found['image']))
        sizes = [f'{found["megabytes"][part]:,.1f}' for part in parts]
        rows.append([name, str(found['batch_size']), image, found['size_from'], *sizes])
    return header, rows


def short_names(reports: Iterable[str]) -> list[str]:
    """The names of configs without folders, where these are enough to tell them apart."""
    names = [Path(name).name.replace('.py', '') for name in reports]
    return names if len(set(names)) == len(names) else list(reports)


def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    args = parse_args(argv)
    logging.filter_warnings()
    with imports.uncollected():
        from vpt_dense import building, config, params, preflight, tables

    if args.memory:
        from vpt_dense import memory

        logging.quiet()  # building an optimizer says a lot
    reports = {}
    for path, method in itertools.product(args.configs, args.method):
        with imports.uncollected():
            cfg = config.load(path, args.cfg_options, method)
        name = f'{path} {method}' if method else path
        try:
            with imports.uncollected():
                preflight.check_model(cfg.model)
                model = building.build_model(cfg, 'meta')
            reports[name] = params.report(model)
            if args.memory:
                reports[name]['memory'] = memory.estimate(cfg)
        except Exception as error:
            if not errors.is_plain(error):
                raise
            raise errors.UserError(f'config {name}: {errors.explain(error)}') from error
    if args.json:
        json.dump(reports, sys.stdout, indent=2)
        print()
        return
    cells = memory_table(reports) if args.memory else table(reports)
    if args.markdown:
        print(tables.markdown(*cells))
    elif args.memory:
        device = next(iter(reports.values()))['memory']['device']
        caption = 'kept: for backward; peak: with what comes and goes within the step'
        tables.show(*cells, f'Estimated memory of a training step ({device})', caption)
    else:
        caption = f'deployed: {params.DEPLOYED_NOTE}'
        tables.show(*cells, 'Trainable parameters by part', caption)

