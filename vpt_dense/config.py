"""Reads a config, checks it for typos and puts shared settings where they are needed."""

import copy
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.utils import import_modules_from_strings

from vpt_dense import (
    config_files,
    data_config,
    ignore_index,
    installed,
    method_files,
    options,
    preprocessing,
    pretraining,
    run_settings,
    tasks,
    test_sets,
)
from vpt_dense.argument_checks import is_list
from vpt_dense.continual import class_split, stream
from vpt_dense.detection import settings as detection
from vpt_dense.ensemble import settings
from vpt_dense.errors import UserError, suggest
from vpt_dense.tree import DATALOADERS, get, heads, kind_of, leaf_datasets, placed_heads, walk

#: Top-level keys that the runner or a tool reads. Anything else is a variable of the config files.
KEYS = frozenset(
    # mmengine.Runner's arguments
    'model work_dir train_dataloader val_dataloader test_dataloader train_cfg val_cfg test_cfg '
    'auto_scale_lr optim_wrapper param_scheduler val_evaluator test_evaluator default_hooks '
    'custom_hooks data_preprocessor load_from resume launcher env_cfg log_processor log_level '
    'visualizer default_scope randomness experiment_name '
    # read by the runner from the whole config
    'model_wrapper_cfg find_unused_parameters sync_bn activation_checkpointing compile '
    'efficient_conv_bn_eval custom_imports '
    # read by this package and its tools
    'dataset ensemble new_heads pretrained tta tta_model tta_pipeline method_hooks '
    'feature_cache subset continual class_split test_sets'.split()
) | frozenset((*run_settings.KEYS, *preprocessing.KEYS))

#: A variable of config files that is kept in the finished config: mmseg's inference reads it.
_READ_ELSEWHERE = 'test_pipeline'


def load(
    path: str,
    cfg_options: Mapping[str, Any] | Iterable[str] | None = None,
    method: str | None = None,
    trains: bool = True,
) -> Config:
    """Read a config file for a run.

    Args:
        path: The config file; or one that a package brings along, ``vpt_dense::setr_vit-l_ade20k``.
        cfg_options: Dotted key -> value; or ``KEY=VALUE`` arguments, see
            :mod:`vpt_dense.options`.
        method: What to put on a recipe, see :mod:`vpt_dense.method_files`.
        trains: Whether a recipe without a method is refused.

    Returns:
        The config, checked and resolved (see :func:`resolve`), without the files' variables.

    Raises:
        UserError: If the file is absent or broken, or a key in it or in ``cfg_options`` is not
            one that anything reads; or if there is a recipe without a method, or the contrary.
    """
    path = str(installed.config(path)) if '::' in str(path) else path
    cfg = config_files.parse(path)
    _check_keys(cfg, path)
    if method is not None:
        method_files.apply(cfg, method, path)
    else:
        method_files.finish(cfg)
    if trains:
        method_files.check(cfg, path)
    if 'pretrained' in cfg:
        place_pretrained(cfg, _model_of_bases(Path(path)))
    if cfg_options:
        cfg_options = override(cfg, cfg_options)
    wanted = {
        key: value for key, value in (cfg_options or {}).items() if key.endswith('num_classes')
    }
    resolve(cfg, cfg_options or {})
    for key, value in wanted.items():
        if get(cfg, key) != value:
            raise UserError(
                f'--cfg-options {key}={value} disagrees with the {get(cfg, key)} classes of '
                'dataset.classes; set the classes, the heads follow'
            )
    for key in [key for key in cfg if key not in KEYS and key != _READ_ELSEWHERE]:
        cfg.pop(key)  # variables, used up
    return cfg


def override(cfg: Config, cfg_options: Mapping[str, Any] | Iterable[str]) -> Mapping[str, Any]:
    """Set what ``--cfg-options`` says, in place.

    Args:
        cfg: A config, not resolved since.
        cfg_options: As in :func:`load`.

    Returns:
        Dotted key -> value.

    Raises:
        UserError: If a key is not one that anything reads.
    """
    if not isinstance(cfg_options, Mapping):
        cfg_options = options.read(cfg, cfg_options)
    before = copy.deepcopy(cfg._cfg_dict)  # what another option sets is no name of the config
    for key in cfg_options:
        _check_option(cfg, key, before)
        options.place(cfg, {key: cfg_options[key]})
    if any(key.startswith('custom_imports') for key in cfg_options):  # it was read too early
        _import(cfg)
    return cfg_options


def drop_variables(cfg: Config) -> None:
    """Remove what only the files of a config read, in place; keys of a script's own stay.

    A run writes its config, and :func:`load` refuses top-level keys that nothing reads.
    """
    file = Path(cfg.filename) if cfg.filename else None
    if file is None or not file.is_file():
        return
    read = set().union(*(config_files.names(each)[1] for each in config_files.walk(file)))
    read |= method_files.VARIABLES
    for key in [key for key in cfg if key in read - KEYS - {_READ_ELSEWHERE}]:
        cfg.pop(key)


def _import(cfg: Config) -> None:
    try:
        import_modules_from_strings(**cfg.custom_imports)
    except (ImportError, TypeError) as error:
        raise UserError(f'custom_imports: {error}') from error


# --- typos -----------------------------------------------------------------------------------


def _check_keys(cfg: Config, path: str) -> None:
    """Refuse a top-level key that nothing reads: the runner would ignore it without a word."""
    unknown = [key for key in cfg if key not in KEYS]
    files = [(file, *config_files.names(file)) for file in config_files.walk(Path(path))]
    read_anywhere = set().union(*(read for _, _, read in files))
    # A config that a run has written is without bases and holds no other variable.
    read_anywhere.add(_READ_ELSEWHERE)
    unread = [key for key in unknown if key not in read_anywhere | method_files.VARIABLES]
    leaf, assigned, read = files[0]
    for key in assigned - read - KEYS - {'_base_'}:
        if key in read_anywhere and any(key in names for _, names, _ in files[1:]):
            raise UserError(
                f"config {leaf}: '{key}' is a variable of a base config that was used up "
                'there: setting it here changes nothing; set the keys that it went into '
                f'({_uses(cfg, key)}){run_settings.hint(key)}'
            )
    if unread:
        key = unread[0]
        hint = run_settings.hint(key) or suggest(key, KEYS)
        raise UserError(f"config {path}: nothing reads the top-level key '{key}'{hint}")


def _check_option(cfg: Config, key: str, before: Any) -> None:
    """Refuse a ``--cfg-options`` path that leads to nothing or to a used-up variable.

    Args:
        cfg: With the options before this one.
        key: The path.
        before: The config without any option: its names are the ones that may be meant.
    """
    parts = key.split('.')
    first = parts[0]
    if first not in KEYS:
        if first in cfg:
            raise UserError(
                f"--cfg-options {key}: '{first}' is a variable of the config files, used up when "
                f'they were read; override the keys that it went into ({_uses(cfg, first)})'
                f'{run_settings.hint(first)}'
            )
        hint = run_settings.hint(first) or suggest(first, KEYS)
        raise UserError(f"--cfg-options {key}: there is no top-level key '{first}'{hint}")
    node = cfg._cfg_dict
    for depth, part in enumerate(parts):
        place = '.'.join(parts[:depth]) or 'the config'
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f'--cfg-options {key}: {place} is a list of {len(node)}, {part} is no index'
                )
            node = node[int(part)]
            inside = isinstance(before, (list, tuple)) and int(part) < len(before)
            before = before[int(part)] if inside else None
            continue
        if node is None:
            return  # becomes a dict
        if not isinstance(node, dict):
            raise UserError(f'--cfg-options {key}: {place} is {node!r}, it has no {part}')
        if part not in node:
            names = before if isinstance(before, dict) else ()
            siblings = [name for name in names if name != 'type']
            if depth and _is_misspelt(part, siblings):
                raise UserError(
                    f"--cfg-options {key}: {place} has no '{part}'{suggest(part, siblings)}"
                )
            return  # a new argument; if the class does not know it, building it says so
        node = node[part]
        before = before.get(part) if isinstance(before, dict) else None


def _is_misspelt(name: str, known: list[str]) -> bool:
    """Whether a name looks like a known one; not where a word differs, as in class_weight."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    words = [text.split('_') for text in (name, *near)]
    return bool(near) and (len(words[0]) != len(words[1]) or all(
        difflib.SequenceMatcher(None, *pair).ratio() >= 0.7
        for pair in zip(*words, strict=True)
    ))


def _uses(cfg: Config, name: str) -> str:
    """Places that hold the value of a variable of the config files, for a message."""
    value = cfg.get(name)
    places = []

    def visit(node: Any, place: str) -> None:
        if place and type(node) is type(value) and node == value:
            places.append(place)
        elif isinstance(node, dict):
            for key, child in node.items():
                visit(child, f'{place}.{key}' if place else key)
        elif isinstance(node, (list, tuple)):
            for index, child in enumerate(node):
                visit(child, f'{place}.{index}')

    for key in KEYS & set(cfg):
        visit(cfg[key], key)
    if not places and isinstance(value, dict):  # merged into a larger dict, as `method` is
        for child in value:
            places += [
                place
                for place, _ in walk(cfg.get('model', {}), 'model')
                if place.endswith(f'.{child}')
            ]
    return ', '.join(sorted(places, key=len)[:3]) or 'see tools/print_config.py'


# --- what is said once -----------------------------------------------------------------------


def is_ours(cfg: Config) -> bool:
    """Whether a config names a class of this package or imports it."""
    names = [str(node.get('type')) for _, node in walk(cfg._cfg_dict, '')]
    names += [str(name) for name in (cfg.get('custom_imports') or {}).get('imports') or ()]
    return any(name.startswith('vpt_dense.') for name in names)


def resolve(cfg: Config, cfg_options: Mapping[str, Any] | None = None) -> None:
    """Put what a config says once into all the places that need it, in place.

    - ``pretrained``, a backbone of ``configs/_base_/backbones``, goes into ``model``, see
      :func:`place_pretrained`.
    - ``dataset``: what every split has in common goes into the data sets of every dataloader, which
      may say otherwise: see :func:`vpt_dense.data_config.place`.
    - ``preprocessing`` and ``normalize``: see :func:`vpt_dense.preprocessing.place`.
    - ``img_size``, ``epochs`` or ``iters``, ``warmup``, ``batch_size``: see
      :func:`vpt_dense.run_settings.place`.
    - ``test_pipeline``, which mmseg's inference reads, is that of ``test_dataloader``.
    - The number of classes of every head is that of the training data: of ``dataset.classes``, or
      of the class folders or lists found on disk for a ``vpt_dense.ImageFolder``, ``ImageList``,
      ``VTAB`` or ``FGVC``.
    - Strides and padding of a detector, and what its metric compares with: see
      :func:`vpt_dense.detection.settings.place`.
    - ``num_classes`` of a data preprocessor with Mixup or CutMix is that of the head.
    - ``ignore_index`` of the data: see :func:`vpt_dense.ignore_index.place`.
    - ``mean`` and ``std`` of the data preprocessor of a ``TimmVisionTransformer``, where they are
      left out or None, are those of its pretraining.
    - ``mean`` and ``std`` of a prompt made of pixels, where it leaves them None, are those of the
      data preprocessor.
    - ``num_tokens='classes'`` of a prompt becomes the number of classes of the head.
    - ``method_hooks``, hooks that belong to a file of ``configs/_base_/methods``, join
      ``custom_hooks``.
    - ``feature_cache`` becomes a :class:`vpt_dense.hooks.FeatureCacheHook`.
    - ``subset`` of the training data, see :class:`vpt_dense.datasets.subset.Subset`, goes around
      them.
    - Heads that know the classes by texts get their names, unless they say them themselves.
    - ``unseen`` classes of a head are those of ``vpt_dense.IoUMetric`` too.
    - ``class_split`` takes half of the classes, see
      :func:`vpt_dense.continual.class_split.place`.
    - ``continual`` makes it a step of a stream of classes, see
      :func:`vpt_dense.continual.stream.place`.
    - ``ensemble``: see :func:`vpt_dense.ensemble.settings.place`.
    - ``test_sets``: the test is of several sets, see :mod:`vpt_dense.test_sets`.
    - ``SyncBN`` needs CUDA: elsewhere it becomes ``vpt_dense.CPUSyncBN``, with the same weights.
    - ``AmpOptimWrapper`` likewise becomes ``vpt_dense.AmpOptimWrapper``.
    - ``persistent_workers`` and ``pin_memory`` follow ``num_workers`` and the machine.

    Args:
        cfg: The config, bases merged.
        cfg_options: What the command line has put into it, dotted key -> value.

    Raises:
        UserError: If classes and palette disagree, or the folders of classes do; if a setting
            contradicts another.
    """
    place_pretrained(cfg)
    stream.place_first_root(cfg)
    classes = data_config.place(cfg)
    test_sets.place_data(cfg)
    wanted = preprocessing.take(cfg, cfg_options)
    run_settings.place(cfg, cfg_options)
    preprocessing.place(cfg, wanted)
    data_config.place_test_pipeline(cfg)
    task = tasks.of(cfg.get('model') or {})
    if task is not None and not task.classes:
        classes = None
    if classes is not None:
        for head in heads(cfg.get('model')):
            head['num_classes'] = len(classes)
        preprocessor = cfg.get('model', {}).get('data_preprocessor') or {}
        for node in (preprocessor, cfg.get('data_preprocessor') or {}):
            if 'num_classes' in node:
                node['num_classes'] = len(classes)
    detection.place(cfg, classes)
    _place_class_names(cfg, classes)
    _place_unseen(cfg)
    _place_classes_of_mixing(cfg)
    ignore_index.place(cfg)
    _place_statistics(cfg)
    _place_pixel_statistics(cfg.get('model') or {})
    _place_number_of_classes(cfg.get('model') or {})
    hooks = [_hooks(cfg, key) for key in ('custom_hooks', 'method_hooks')]
    if cfg.pop('method_hooks', None):
        cfg.custom_hooks = [*hooks[0], *hooks[1]]
    _place_feature_cache(cfg)
    _place_subset(cfg)
    class_split.place(cfg, classes)
    stream.place(cfg, classes)
    settings.place(cfg)
    test_sets.place_metrics(cfg)
    _adapt_to_machine(cfg)


def _hooks(cfg: Config, key: str) -> list[Any]:
    """The hooks that a key has: settings, or hooks that a script has made."""
    found = cfg.get(key)
    if found is not None and not (
            isinstance(found, (list, tuple))
            and all(isinstance(hook, dict) or hasattr(hook, 'before_run') for hook in found)):
        raise UserError(f'{key}: a list of dict(type=...) was expected, found {found!r}')
    return list(found or [])


def _place_feature_cache(cfg: Config) -> None:
    """Let a hook keep features, in place of one that a finished config has."""
    given = cfg.pop('feature_cache', None)
    if given is None:
        return
    if not isinstance(given, dict) or set(given) - {'folder', 'draws'}:
        raise UserError(f'feature_cache: a dict of folder and draws was expected, found {given!r}')
    kind = 'vpt_dense.FeatureCacheHook'
    others = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') != kind]
    cfg.custom_hooks = [*others, ConfigDict(given, type=kind)]


def _place_subset(cfg: Config) -> None:
    """Take a part of the training data, in place of one that a finished config takes."""
    given = cfg.pop('subset', None)
    if given is None:
        return
    known = {'share', 'images', 'per_class', 'seed'}
    if not isinstance(given, dict) or set(given) - known:
        raise UserError(
            f'subset: a dict of share, images or per_class, and seed was expected, found {given!r}')
    if not get(cfg, 'train_dataloader.dataset'):
        raise UserError('subset: the config has no train_dataloader.dataset')
    loader = cfg.train_dataloader
    whole = loader.dataset.dataset if kind_of(loader.dataset) == 'Subset' else loader.dataset
    loader.dataset = ConfigDict(type='vpt_dense.Subset', dataset=whole, **given)


def _place_class_names(cfg: Config, classes: list[str] | None) -> None:
    """Tell heads that know classes by texts their names: those of the config or the data set."""
    parts = [(place, head) for place, head in placed_heads(cfg.get('model'))
             if isinstance(head.get('text'), dict)]
    if not parts:
        return
    classes = list((stream.names_of(cfg) if classes is None else classes) or ())
    for place, head in parts if classes else ():
        said = head.get('classes')
        if said is None:
            head['classes'] = classes
        elif said != classes and is_list(said) and sorted(map(str, said)) == sorted(classes):
            raise UserError(
                f'{place}.classes has the names of the data in another order, {said}, and theirs '
                f'is that of the labels, {classes}: leave it out, or set dataset.classes')


def _place_unseen(cfg: Config) -> None:
    """Let the metrics tell classes that a head does not see in training from the others."""
    unseen = [head['unseen'] for _, head in placed_heads(cfg.get('model')) if head.get('unseen')]
    for key in ('val_evaluator', 'test_evaluator') if unseen else ():
        for _, metric in walk(cfg.get(key), key):
            if (metric.get('type') == 'vpt_dense.IoUMetric'
                    and 'mIoU' in metric.get('iou_metrics', ['mIoU'])):
                metric.setdefault('unseen', unseen[0])


def _place_classes_of_mixing(cfg: Config) -> None:
    """Tell the data preprocessor of a classifier the number of classes that mixed labels need."""
    model = cfg.get('model') or {}
    parts = heads(model) if tasks.is_of_images(model) else []
    if not settings.mixing(cfg) or not parts or not parts[0].get('num_classes'):
        return
    if cfg.get('data_preprocessor') and not model.get('data_preprocessor'):
        node = cfg.data_preprocessor  # the runner gives it to the model
    else:
        node = model.setdefault('data_preprocessor', ConfigDict(type='ClsDataPreprocessor'))
    if node.get('num_classes') is None:
        node['num_classes'] = parts[0]['num_classes']


def _place_number_of_classes(model: dict) -> None:
    """Replace ``num_tokens='classes'`` of a prompt."""
    prompt = (model.get('backbone') or {}).get('prompt') or {}
    parts = heads(model)
    if isinstance(prompt, dict) and prompt.get('num_tokens') == 'classes' and parts:
        prompt['num_tokens'] = parts[0].get('num_classes', 'classes')


#: Data preprocessors, and what turns the B, G, R of image files into the R, G, B of statistics.
_TO_RGB = {
    'SegDataPreProcessor': 'bgr_to_rgb', 'ClsDataPreprocessor': 'to_rgb',
    'DetDataPreprocessor': 'bgr_to_rgb',
}


def _place_statistics(cfg: Config) -> None:
    """Normalise images as in the pretraining of a model of timm, where a config leaves it open."""
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if not isinstance(backbone, dict) or not pretraining.is_timms(backbone):
        return
    data = [dataset for name in DATALOADERS for dataset in leaf_datasets(cfg.get(name))]
    if any(kind_of(step) == 'LoadBands' for each in data for step in each.get('pipeline') or ()):
        return  # which normalises
    node = model.get('data_preprocessor') or cfg.get('data_preprocessor')
    if not node and tasks.is_of_images(model):
        node = model['data_preprocessor'] = ConfigDict(type='ClsDataPreprocessor')
    lacking = [key for key in ('mean', 'std') if node and node.get(key) is None]
    found = pretraining.of_config(backbone) if lacking else None
    if found is None or len(found.mean) != backbone.get('in_channels', 3):
        return
    for key in lacking:
        node[key] = list(getattr(found, key))
    if kind_of(node) in _TO_RGB:
        node.setdefault(_TO_RGB[kind_of(node)], True)


def _place_pixel_statistics(model: dict) -> None:
    """Tell prompts made of pixels how the images are normalised."""
    backbone, preprocessor = (model.get(key) or {} for key in ('backbone', 'data_preprocessor'))
    for key in ('prompt', 'image_prompt'):
        prompt = backbone.get(key)
        for name in ('mean', 'std'):
            if isinstance(prompt, dict) and name in prompt and prompt[name] is None:
                prompt[name] = preprocessor.get(name)


# --- a named backbone ------------------------------------------------------------------------

#: What ``pretrained`` may hold.
_PRETRAINED_KEYS = ('backbone', 'classifier', 'data_preprocessor')

#: Keys of heads and necks that follow a measure of the backbone, by its place in `architecture`.
_FOLLOWERS = {'in_channels': 0, 'embed_dim': 0, 'embed_dims': 0, 'num_heads': 2}


def place_pretrained(cfg: Config, untouched: dict | None = None) -> None:
    """Merge ``pretrained`` into ``model`` and remove it, in place.

    - ``pretrained.backbone`` and ``pretrained.data_preprocessor`` go over those of the model;
      ``pretrained.classifier`` over the backbone of an image classifier: its image size (in
      segmentation that is the crop's) and its pooling.
    - If it is a model of timm (``type='vpt_dense.TimmVisionTransformer'``) and the model's is not,
      what the latter is made of goes; mean and std are left to the pretraining.
    - ``in_channels``, ``embed_dim`` and ``embed_dims`` of heads and neck follow the width of the
      new architecture (``channels`` too where it was equal to ``in_channels``), ``num_heads`` its
      heads, ``out_indices`` counted from the front keep their place in its depth (10, 15, 20 of
      24 blocks become 5, 8, 10 of 12).

    Args:
        cfg: A config with a ``model``.
        untouched: ``model`` as the base configs have it. Where ``cfg.model`` differs, a config
            above them said so, and that stays. None: nothing of it stays.

    Raises:
        UserError: If ``pretrained`` is not what :data:`_PRETRAINED_KEYS` names, or there is no
            model for it.
    """
    named = cfg.pop('pretrained', None)
    if named is None:
        return
    if not isinstance(named, dict) or set(named) - set(_PRETRAINED_KEYS):
        found = sorted(set(named) - set(_PRETRAINED_KEYS)) if isinstance(named, dict) else named
        raise UserError(
            f'pretrained: a dict of {", ".join(_PRETRAINED_KEYS)} was expected, found {found!r}; '
            'configs/_base_/backbones has examples'
        )
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('backbone'), dict):
        raise UserError(
            'pretrained: the config has no model.backbone for it; list a file of '
            'configs/_base_/models in _base_ too'
        )
    before = copy.deepcopy(untouched or model)
    settings = {key: named[key] for key in ('backbone', 'data_preprocessor') if key in named}
    if tasks.is_of_images(model):
        settings = Config._merge_a_into_b({'backbone': named.get('classifier') or {}}, settings)
    if pretraining.is_timms(settings.get('backbone') or {}):
        _make_room(settings, model, untouched)
    _overlay(settings, model, untouched)
    old, new = (architecture(node.get('backbone') or {}) for node in (before, model))
    if old and new:
        # A head of queries has no num_classes, by which others are known.
        further = [key for key in ('neck', 'panoptic_head') if model.get(key) and before.get(key)]
        parts = [*zip(heads(model), heads(before), strict=False),
                 *((model[key], before[key]) for key in further)]
        if 'task_heads' in model and 'task_heads' not in before:  # the recipe says which there are
            parts = [(part, copy.deepcopy(part)) for part in (
                *heads(model), *([model['neck']] if model.get('neck') else []))]
        for part, original in parts:
            if original.get('channels') == original.get('in_channels'):
                followers = {**_FOLLOWERS, 'channels': 0}
            else:
                followers = _FOLLOWERS
            for key, measure in followers.items():
                if key in part and part[key] == original.get(key):
                    part[key] = _replace(part[key], old[measure], new[measure])
        indices = model['backbone'].get('out_indices')
        if isinstance(indices, (list, tuple)) and indices == before['backbone'].get('out_indices'):
            model['backbone']['out_indices'] = [
                i if i < 0 else int((i + 1) * new[1] / old[1] + 0.5) - 1 for i in indices
            ]


def _make_room(settings: dict, model: dict, untouched: dict | None) -> None:
    """Take out what a base says of a backbone of another class than that of ``settings``.

    What the class knows too stays, but for weights; mean and std are those of its pretraining.
    """
    backbone = model['backbone']
    if pretraining.is_timms(backbone):
        return
    before = backbone if untouched is None else untouched.get('backbone') or {}
    kept = set(pretraining.OWN_KEYS) - {'init_cfg'}
    for key in [key for key in before if key in backbone and key not in kept]:
        if backbone[key] == before[key]:
            del backbone[key]
        elif isinstance(backbone[key], dict):  # what is left is said above the base
            for name in [n for n in before[key] or {} if backbone[key].get(n) == before[key][n]]:
                del backbone[key][name]
    settings['data_preprocessor'] = {
        'mean': None, 'std': None, **(settings.get('data_preprocessor') or {})}


def _model_of_bases(path: Path) -> dict:
    """``model`` as the base config has it that ``pretrained`` goes over; empty: none has it."""
    parsed = [(file, config_files.content(file)) for file in config_files.bases(path)
              if any('model' in config_files.names(each)[0] for each in config_files.walk(file))]
    both = [file for file, cfg in parsed if 'pretrained' in cfg and 'model' in cfg]
    if both:  # a leaf of a leaf
        return _model_of_bases(both[0])
    return next((cfg['model'] for _, cfg in parsed if 'model' in cfg), {})


def _overlay(new: dict, old: dict, untouched: dict | None) -> None:
    """Merge ``new`` into ``old``, but for what differs there from ``untouched`` (None: nothing)."""
    for key, value in new.items():
        inner = untouched.get(key, {}) if isinstance(untouched, dict) else untouched
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _overlay(value, old[key], inner)
        elif untouched is None or key not in old or old[key] == inner:
            old[key] = copy.deepcopy(value)


def architecture(backbone: dict) -> tuple[int, int, int | None] | None:
    """Width, blocks and attention heads of a vision transformer's config, if it says them."""
    if pretraining.is_timms(backbone):
        return pretraining.architecture(backbone)
    arch = backbone.get('arch')
    if isinstance(arch, str):
        from vpt_dense.logging import filter_warnings

        filter_warnings()
        from mmengine.registry import MODELS
        from mmpretrain.models import VisionTransformer  # takes seconds

        kind = backbone.get('type')
        kind = MODELS.get(kind) if isinstance(kind, str) else kind
        arch = getattr(kind, 'arch_zoo', VisionTransformer.arch_zoo).get(arch.lower())
    if not isinstance(arch, dict) or not {'embed_dims', 'num_layers'} <= set(arch):
        return None
    return arch['embed_dims'], arch['num_layers'], arch.get('num_heads')


def _replace(value: Any, old: int, new: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(new if item == old else item for item in value)
    return new if value == old else value


def _adapt_to_machine(cfg: Config) -> None:
    import torch

    cuda = torch.cuda.is_available()
    swaps = (('SyncBN', 'vpt_dense.CPUSyncBN'), ('AmpOptimWrapper', 'vpt_dense.AmpOptimWrapper'))
    renamed = {new: old for old, new in swaps} if cuda else dict(swaps)
    for root in ('model', 'optim_wrapper'):
        for _, node in walk(cfg.get(root), root):
            kind = node.get('type')
            if isinstance(kind, str) and kind in renamed:
                node['type'] = renamed[kind]
    for name in DATALOADERS:
        dataloader = cfg.get(name)
        if not isinstance(dataloader, dict):
            continue
        if dataloader.get('num_workers', 0) == 0:  # torch refuses both without workers
            dataloader['persistent_workers'] = False
            dataloader.pop('prefetch_factor', None)
        if not cuda and dataloader.get('pin_memory'):
            dataloader['pin_memory'] = False
