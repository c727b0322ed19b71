"""The model zoo: what was trained here and comes along.

``python tools/zoo.py``
``python tools/zoo.py camvid_dinov2-s_lora``

Wherever a checkpoint is named, ``zoo::NAME`` is the delta of a model. See docs/zoo.md.
"""

from collections.abc import Sequence
from typing import Any

from vpt_dense import errors, shipped


def models() -> dict[str, dict[str, Any]]:
    """Name -> entry in a metafile (``configs/*/metafile.yml``) of every model with a delta."""
    from mmengine.fileio import load

    files = sorted(shipped.folder('configs').glob('*/metafile.yml'))
    entries = [entry for file in files
               for entry in load(file)['Models']]
    return {entry['Name']: entry for entry in entries if 'Weights' in entry}


def table() -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of models."""
    rows = []
    for name, entry in models().items():
        (result,), about = entry['Results'], entry['Metadata']
        ((metric, score),) = result['Metrics'].items()
        rows.append([
            name, result['Task'], about['Method'], result['Dataset'], about['Licence of the Data'],
            f'{metric} {score:.1f}', f'{about["Size"] / 1e6:.2f}'])
    return ['model', 'task', 'method', 'data', 'their licence', 'test', 'MB'], rows


def main(argv: Sequence[str] | None = None) -> None:
    """List the models, or show one."""
    parser = errors.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('name', nargs='?', help='show what is known of this model')
    args = parser.parse_args(argv)
    if args.name is None:
        from vpt_dense import tables

        tables.show(*table(), 'Models that come along: zoo::NAME', 'vpt-dense zoo NAME tells more')
        return
    from mmengine.fileio import dump

    file = shipped.place(shipped.ZOO + args.name.removeprefix(shipped.ZOO))
    entry = models()[file.stem]
    print(dump(entry, file_format='yaml', sort_keys=False, width=99), end='')
    print(f'File: {file}')
