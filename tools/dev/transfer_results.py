"""Writes what docs/transfer.md shows of a matrix of transfer that was run.

``vpt-dense analyse transfer configs/transfer/dense.py --out work_dirs/transfer``, then
``python tools/dev/transfer_results.py [--out work_dirs/transfer]``: docs/transfer/dense.json, its
heat maps, and the tables of the page.
"""

import json
import re
import shutil
import statistics
from pathlib import Path

from vpt_dense import safe_files, tables
from vpt_dense.analysis.transfer import ADD, AVERAGE, RANDOM, SIMILARITIES
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = Path(__file__).resolve().parents[2]
PAGE, FOLDER = ROOT / 'docs/transfer.md', ROOT / 'docs/transfer'
MARK = re.compile(r'(<!-- dense: python tools/dev/transfer_results.py -->\n).*?(?=<!-- end -->)',
                  re.DOTALL)
#: Heat maps that the page shows.
SHOWN = ('gains.svg', 'vectors.svg')


def table(found: dict) -> str:
    """Scores of the start at random, what the others gain, and whether similarity tells."""
    names = found['tasks']
    starts = [*names, ADD, AVERAGE]
    rows = []
    for target in names:
        begin = statistics.mean(row['score'] for row in found['rows']
                                if (row['target'], row['start']) == (target, RANDOM))
        whole = statistics.mean(found['sources'][target].values())
        gains = found['gains'][target]
        rows.append([target, f'{whole:.1f}', f'{begin:.1f}', *(
            f'{gains[start]:+.1f}' if start in gains else '' for start in starts)])
    rows.append(['mean', '', '', *(
        f'{statistics.mean(own[start] for own in found["gains"].values() if start in own):+.1f}'
        for start in starts)])
    header = ['target', 'all images', RANDOM, *starts]
    told = [[label, *('' if value is None else f'{value:.2f}' for value in (
        found['prediction'][kind][key] for key in ('spearman', 'p_value', 'within')))]
        for kind, label in SIMILARITIES.items()]
    return '\n\n'.join([
        tables.markdown(header, rows),
        *(f'![{name}](transfer/{name})' for name in SHOWN),
        tables.markdown(['similarity', 'rank correlation with gain', 'p', 'within targets'], told),
    ])


def cli() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('work_dirs/transfer'))
    out = parser.parse_args().out
    if not (out / 'transfer.json').is_file():
        raise UserError(f'no {out / "transfer.json"}: the matrix is not finished')
    found = json.loads((out / 'transfer.json').read_text(encoding='utf-8'))
    FOLDER.mkdir(exist_ok=True)
    for name in ('transfer.json', *SHOWN):
        shutil.copyfile(out / name, FOLDER / name.replace('transfer', 'dense'))
    text = PAGE.read_text(encoding='utf-8')
    safe_files.write_text(PAGE, MARK.sub(lambda m: f'{m[1]}{table(found)}\n', text))


if __name__ == '__main__':
    main(cli)
