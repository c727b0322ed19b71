"""Write report.html of a run or a comparison, or of several runs side by side."""

from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Write it."""
    parser = errors.ArgumentParser(description=__doc__)
    parser.add_argument('folders', nargs='+', metavar='FOLDER',
                        help='of a run, or of a comparison; several runs: one page of all of them')
    parser.add_argument('--out', type=Path, metavar='FILE',
                        help='the page (default: report.html in the folder; of several runs in '
                        'the current one)')
    outputs.add_force_option(parser)
    args = parser.parse_args(argv)
    from vpt_dense import report
    from vpt_dense.comparison import page

    folders = list(dict.fromkeys(map(Path, args.folders)))
    for folder in folders:
        if not folder.is_dir():
            raise errors.UserError(f'{folder} is no folder')
        if page.is_comparison(folder) and len(folders) > 1:
            raise errors.UserError(f'{folder} is a comparison: give it alone, or name its runs')
        if not page.is_comparison(folder) and not report.is_run(folder):
            raise errors.UserError(
                f'{folder} is the folder of no run and of no comparison: it has none of '
                'summary.json, evaluations.json, params.json, test.json, val.json, table.json')
    out = args.out or (Path(report.NAME) if len(folders) > 1 else None)
    if out:
        outputs.check_free([out], args.force)
    if len(folders) > 1:
        print(page.write_runs(folders, out))
    elif page.is_comparison(folders[0]):
        print(page.write_comparison(folders[0], out))
    else:
        print(report.write_run(folders[0], out))
