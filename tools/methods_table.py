"""All methods as a table in Markdown: name, where it acts, what it fits, how much it trains.

``python tools/methods_table.py``
``python tools/methods_table.py --update docs/methods.md``

The rows are the files of configs/_base_/methods. The formula stands there behind ``# Trainable:``,
and where a method is for one task alone, ``# Task:``; all other columns come from building them.
"""

import re
from pathlib import Path

from vpt_dense import errors, method_files, safe_files, tasks
from vpt_dense.tuning import ADDED

ROOT = Path(__file__).resolve().parent.parent
HEADER = [
    'method', 'where it acts', 'backbones', 'tasks', 'merges', 'trainable parameters',
    'ViT-B/16, 224 px', 'ViT-L/16, 512 px',
]
BEGIN = '<!-- made by: python tools/methods_table.py --update docs/methods.md -->'
END = '<!-- end of the table -->'
#: The columns that count: models and their tasks.
MODELS = {'vit-b_cls.py': 'classification', 'setr-pup_vit-l.py': 'segmentation'}
#: Small backbones of each family, to see which patterns of names fit them.
FAMILIES = {
    'ViT': dict(
        type='vpt_dense.VisionTransformer',
        arch=dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64),
    ),
    'Swin': dict(
        type='vpt_dense.SwinTransformer',
        arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8]),
    ),
    'ResNet': dict(type='vpt_dense.ResNet', depth=50),
    'ConvNeXt': dict(type='vpt_dense.ConvNeXt', arch='tiny'),
}


def build(backbone, tuning, preprocessor=None):
    """A backbone with a method, without memory."""
    from mmengine.config import Config

    from vpt_dense import building, config

    cfg = Config(dict(model=dict(backbone=backbone)))
    cfg.merge_from_dict(dict(model=dict(backbone=tuning)))
    cfg.model.data_preprocessor = preprocessor
    config.resolve(cfg)
    return building.build_model(Config(dict(model=cfg.model.backbone)), 'meta')


def names():
    """The methods by name; those of one task at the end."""
    return sorted(method_files.names(), key=lambda name: (said(name, 'Task') is not None, name))


def said(name, key):
    """What a method file says behind ``# KEY:``, in that line and the indented ones below it."""
    text = method_files.find(name).read_text(encoding='utf-8')
    found = re.search(rf'^# {key}: (.+(?:\n#   .+)*)$', text, re.M)
    return found and found[1].replace('\n#  ', '')


def formula(name):
    """How many parameters a method trains, in the names of docs/methods.md and of its arguments."""
    found = said(name, 'Trainable')
    if found is None:
        raise errors.UserError(f'{method_files.find(name)}: no line # Trainable: FORMULA')
    return found


def row(name):
    """A row of the table, as text."""
    from mmengine.config import Config

    counts, backbone = [], None
    for model_file, task in MODELS.items():
        if (said(name, 'Task') or task) != task:
            counts.append('-')
            continue
        found = Config.fromfile(method_files.find(name, tasks.TASKS[task])).to_dict()
        tuning = found['method']
        model = Config.fromfile(ROOT / 'configs/_base_/models' / model_file).to_dict()['model']
        try:
            backbone = build(model['backbone'], tuning, model['data_preprocessor'])
        except ValueError:  # the method is of another backbone
            counts.append('-')
            continue
        counts.append(f'{sum(p.numel() for p in backbone.parameters() if p.requires_grad):,}')
    where, parts = [], []
    for key, kind in (('prompt', 'token prompt'), ('image_prompt', 'image prompt'),
                      ('adapters', 'adapter')):
        added = tuning.get(key) or []
        for part in added if isinstance(added, list) else [added]:
            where.append(f'{kind} `{part["type"].removeprefix("vpt_dense.")}`')
            parts.append(part['type'])
    added = [part for part in tuning.get('trainable') or ()
             if not any(word in part for word in ('prompt', 'adapters'))]
    if added or not where:
        patterns = ', '.join(f'`{part}`' for part in added).replace('|', '\\|')  # | ends a cell
        where.append(f'selection {patterns}' if added else 'nothing: the head alone')
    hooks = [hook['type'] for hook in found.get('method_hooks', ())]
    return [
        f'`{name}`', '; '.join(where), ', '.join(fitting(tuning, parts, hooks)),
        said(name, 'Task') or 'both', merges(parts, backbone),
        f'`{formula(name)}`', *counts,
    ]


def fitting(tuning, parts, hooks):
    """The families of backbones that a method fits."""
    from mmengine.registry import HOOKS
    from mmengine.registry import MODELS as REGISTRY

    classes = [*map(REGISTRY.get, parts), *map(HOOKS.get, hooks)]
    found = []
    for label, backbone in FAMILIES.items():
        offers = REGISTRY.get(backbone['type']).offers
        if any(part.needs - offers for part in classes):
            continue
        # A pattern may match nothing there, an argument be unknown. Sizes, which may not fit these
        # small backbones, are left to the classes' word.
        if not parts or set(tuning) - {*ADDED, 'trainable'}:
            try:
                build(backbone, tuning)
            except (ValueError, TypeError):
                continue
        found.append(label)
    return found


def merges(parts, backbone):
    """Whether ``tools/delta.py fold`` leaves nothing of a method but weights."""
    if not parts:
        return '-'
    adapters = [] if backbone is None else list(backbone.adapters)
    if not adapters or not all(adapter.mergeable for adapter in adapters):
        return 'no'
    return 'yes' if len(adapters) == len(parts) else 'adapters'


def table():
    """The table in Markdown."""
    from vpt_dense import logging, tables

    logging.filter_warnings()
    return tables.markdown(HEADER, [row(name) for name in names()], text_columns=6)


def run():
    """Command line."""
    parser = errors.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--update', type=Path, metavar='FILE',
                        help=f"put it between the lines '{BEGIN}' and '{END}' of a file")
    args = parser.parse_args()
    if args.update is None:
        print(table())
        return
    text = args.update.read_text(encoding='utf-8')
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise errors.UserError(f"{args.update}: no lines '{BEGIN}' and '{END}' for the table")
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    safe_files.write_text(args.update, f'{before}{BEGIN}\n{table()}\n{END}{after}')
    print(args.update)


if __name__ == '__main__':
    errors.main(run)
