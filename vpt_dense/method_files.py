"""Method files (``configs/_base_/methods``) and what ``--method NAME`` does with one.

A recipe is a task on a backbone: model, data, schedule, and in ``optim`` an optimizer for each
group of methods. A method file says what a method sets on the backbone, in ``method``, and of which
group it is. Together they are a config; a leaf says so in a file, ``--method`` on the command
line::

    _base_ = ['./setr_vit-l_ade20k.py', '../_base_/methods/deep.py']
    model = dict(backbone=_base_.method)
    optim_wrapper = _base_.optim[_base_.optim_group]

:func:`finish` gives such a leaf what these lines leave out.
"""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense import config_files, installed, rates, shipped, tasks
from vpt_dense.errors import UserError, suggest
from vpt_dense.tree import get

#: Where the method files are.
FOLDER = shipped.folder('configs') / '_base_/methods'
#: Those for classes that are known by their names: they set parts of the head too.
OF_TEXTS = FOLDER / 'text'
#: Those for models of several tasks.
OF_TASKS = FOLDER / 'tasks'

#: Variables of method files ...
_OF_METHODS = ('method', 'method_head', 'optim_group', 'method_optim')
#: ... and of recipes, which nothing reads but leaves and :func:`apply`.
_OF_RECIPES = ('optim', 'also_trainable')
VARIABLES = frozenset(_OF_METHODS + _OF_RECIPES)

#: What only a method sets on a backbone.
_PARTS = ('prompt', 'image_prompt', 'adapters', 'trainable')


names = installed.methods


def find(name: str, task: tasks.Task | None = None) -> Path:
    """The file of a method.

    Args:
        name: ``deep``, or the path of a method file of your own.
        task: That of the recipe; some have a file ``NAME_SHORT.py`` for it (``NAME_cls.py``).

    Raises:
        UserError: If there is none.
    """
    if name.endswith('.py'):
        if not Path(name).is_file():
            raise UserError(f'--method {name}: no such file')
        return Path(name)
    of_texts = sorted(file.stem for file in OF_TEXTS.glob('*.py'))
    if name.removeprefix('text/') in of_texts:
        return OF_TEXTS / f'{name.removeprefix("text/")}.py'
    of_tasks = sorted(file.stem for file in OF_TASKS.glob('*.py'))
    if name.removeprefix('tasks/') in of_tasks:
        return OF_TASKS / f'{name.removeprefix("tasks/")}.py'
    if name not in names():
        raise UserError(
            f'--method {name} is not known{suggest(name, [*names(), *of_texts, *of_tasks])}; the '
            f'methods are {", ".join(names())}, on CLIP {", ".join(of_texts)} too, for several '
            f'tasks {", ".join(of_tasks)}, or a method file of your own (*.py)')
    special = FOLDER / f'{name}_{task.short}.py' if task and task.short else FOLDER
    return special if special.is_file() else FOLDER / f'{name}.py'


def check(cfg: Config, path: str) -> None:
    """Refuse a recipe that no method was put on.

    Raises:
        UserError: If so.
    """
    if 'optim' in cfg and 'optim_group' not in cfg:
        raise UserError(
            f'config {path} is a recipe: add --method NAME ({", ".join(names())}), or make a '
            'config of it and a method file (docs/methods.md)')


def apply(cfg: Config, name: str, path: str) -> None:
    """Do what a leaf does, in place.

    Args:
        cfg: A recipe, or a config that is based on one and names no method.
        name: See :func:`find`.
        path: Of the recipe, for messages.

    Raises:
        UserError: If the config has a method, or sets what a method sets; there is no such method;
            or the recipe has no optimizer for its group.
    """
    if 'optim' not in cfg or 'optim_group' in cfg:
        raise UserError(
            f'--method {name}: config {path} is no recipe, it says what trains; take its recipe '
            '(configs/vpt/*.py without the name of a method), or change model.backbone')
    file = find(name, tasks.of(cfg.get('model') or {}))
    found = config_files.parse(str(file))
    lacking = [key for key in ('method', 'optim_group') if key not in found]
    strange = [key for key in found if key not in (*_OF_METHODS, 'method_hooks')]
    if lacking or strange:
        reason = f'it has no {lacking[0]}' if lacking else f'it sets {strange[0]}'
        raise UserError(f'--method {name}: {file} is no method file: {reason}')
    backbone = cfg.model.backbone
    for key in _PARTS:
        if key in backbone:
            raise UserError(
                f'--method {name}: config {path} sets model.backbone.{key}, which a method sets; '
                f'leave it out, and change the method by --cfg-options model.backbone.{key}...')
    cfg.model.backbone = _merged(
        backbone, found.method, dict(trainable=_trainable(found.method.trainable, cfg)))
    if 'method_head' in found:
        head = cfg.model.get('head') or {}
        if 'text' not in head:
            raise UserError(
                f'--method {name}: it is for classes that are known by their names, and the '
                f'model.head of {path} has no text; take a recipe of configs/clip')
        for key in _PARTS:
            if key in head.text:
                raise UserError(
                    f'--method {name}: config {path} sets model.head.text.{key}, which a method '
                    'sets; leave it out')
        cfg.model.head = _merged(head, found.method_head)
    optimizer = (cfg.optim or {}).get(found.optim_group)
    if optimizer is None:
        raise UserError(
            f'--method {name}: the recipe {path} has no optimizer for it; add '
            f'optim = dict({found.optim_group}=...), or take a config that has one')
    cfg.method_optim = _optimizer(optimizer, found.get('method_optim'))  # for vpt_dense.rates
    cfg.optim_wrapper = _merged(cfg.method_optim, cfg.get('optim_wrapper'))
    if 'method_hooks' in found:
        cfg.method_hooks = found.method_hooks
    cfg.optim_group = found.optim_group


def finish(cfg: Config) -> None:
    """Put into a leaf what its method file and its recipe have beside ``method``, in place.

    ``method_optim`` goes over the optimizer of the group where the leaf takes that, and
    ``also_trainable`` to the method's ``trainable``. What the leaf itself says stays.

    Args:
        cfg: A config that was read and not changed since.
    """
    if not {'optim', 'optim_group', 'method'} <= set(cfg):
        return
    found = get(cfg, 'method.trainable')
    if found is not None and get(cfg, 'model.backbone.trainable') == found:
        cfg.model.backbone.trainable = _trainable(found, cfg)
    changes, group = cfg.get('method_optim'), get(cfg, f'optim.{cfg.optim_group}')
    file = Path(cfg.filename) if cfg.filename else None
    files = config_files.walk(file) if file and file.is_file() else []
    takes = any('optim' in config_files.names(each)[1] for each in files)
    if changes and group and takes and isinstance(cfg.get('optim_wrapper'), dict):
        trees = [config_files.statements(each) for each in files]
        said = _differing(cfg.optim_wrapper, group, trees, ('optim_wrapper',))
        cfg.method_optim = _optimizer(group, changes)  # for vpt_dense.rates
        cfg.optim_wrapper = _merged(cfg.method_optim, said)


def _differing(new: Any, old: Any, trees: list[Any], place: tuple[str, ...]) -> dict[str, Any]:
    """What settings hold that is not the same elsewhere, or that a file writes itself."""
    found = {}
    for key, value in new.items():
        there, below = (*place, key), old.get(key)
        if isinstance(value, dict) and isinstance(below, dict):
            inner = _differing(value, below, trees, there)
            found.update({key: inner} if inner else {})
        elif value != below or any(config_files.says(tree, there) for tree in trees):
            found[key] = value
    return found


def _trainable(patterns: list[str], cfg: Config) -> list[str]:
    """What trains with a method on a recipe."""
    return patterns if '.*' in patterns else [*patterns, *cfg.get('also_trainable', [])]


def _optimizer(group: Any, changes: Any) -> ConfigDict:
    """The optimizer of a group with a method's changes; its rate is for what it adds.

    Heads that have a factor of their own in the group keep their rate.
    """
    group, rate = copy.deepcopy(ConfigDict(group)), get(changes, 'optimizer.lr')
    for name, settings in (get(group, 'paramwise_cfg.custom_keys') or {}).items():
        if rate and rates.is_of_head(name) and 'lr_mult' in settings:
            settings.lr_mult *= group.optimizer.lr / rate
    return _merged(group, changes)


def _merged(*layers: Any) -> ConfigDict:
    """Merge the settings of config files, one after the other."""
    whole = ConfigDict()
    for layer in layers:
        whole.merge(ConfigDict(layer or {}))
    return whole
