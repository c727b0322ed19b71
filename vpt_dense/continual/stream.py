"""The classes, or domains, of each step of a stream, and what a config of one step becomes."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict

from vpt_dense import shipped, tasks
from vpt_dense.argument_checks import check_choice, check_flag, check_number, is_int, is_list
from vpt_dense.errors import UserError, suggest
from vpt_dense.tree import DATALOADERS, get, kind_of, leaf_datasets, placed_heads, walk

#: What a step trains on, and what it leaves as it is.
STRATEGIES = ('sequential', 'frozen', 'alone', 'joint', 'nsp2', 'eclipse_like')
_KEYS = ('steps', 'domains', 'step', 'seed', 'strategy', 'test_on', 'background', 'disjoint',
         'null_space', 'eta', 'invariance', 'temperature')
#: What only ``nsp2`` has.
_OF_NSP2 = ('null_space', 'eta', 'invariance')
#: Prompts with a part for each step.
_STEPPED = ('DualPrompt', 'CODAPrompt')
#: What loads the masks of a segmentation.
_LOADS = ('LoadAnnotations', 'LoadMask')
_FIRST_EACH = re.compile(r'(\d+)-(\d+)')


def ready() -> dict[str, Path]:
    """Name -> file of the streams that come along (configs/streams)."""
    return {path.stem: path for path in sorted(shipped.folder('configs').glob('streams/*.json'))}


def classes_of_steps(
    steps: int | str | Sequence[Sequence[int | str]],
    names: Sequence[str],
    seed: int | None,
    background: int | None = None,
) -> list[list[int]]:
    """The labels of each step.

    Args:
        steps: How many steps, of as many classes each as can be (the first ones have one more where
            they do not divide). Or ``'15-1'``: 15 classes, then one a step. Or the labels or names
            themselves; or a JSON file of them, alone or as ``steps`` of a dict; or the name of a
            stream that comes along.
        names: Of all classes.
        seed: Of the order in which they come; None: that of the labels.
        background: A label that is of no step.

    Raises:
        UserError: If there are more steps than classes, or classes are in no step or in two.
    """
    labels = [label for label in range(len(names)) if label != background]
    number = len(labels)
    parts: Any = steps
    if is_int(steps) or isinstance(steps, str) and _FIRST_EACH.fullmatch(steps):
        if is_int(steps):
            sizes = [len(part) for part in np.array_split(labels, max(steps, 1))]
            fits = 1 <= steps <= number
        else:
            first, each = map(int, _FIRST_EACH.fullmatch(steps).groups())
            fits = 0 < first <= number and each > 0 and (number - first) % each == 0
            sizes = [first, *[each] * ((number - first) // each)] if fits else []
        if not fits:
            raise UserError(
                f'continual.steps is {steps}, but there are {number} classes: every step needs '
                'one at least, and none may be left over')
        order = labels if seed is None else [
            labels[i] for i in np.random.default_rng(seed).permutation(number)]
        ends = np.cumsum(sizes).tolist()
        return [order[end - size : end] for size, end in zip(sizes, ends, strict=True)]
    if isinstance(steps, str):
        parts = _read(steps, len(names))
    if not (is_list(parts) and parts and all(is_list(part) and part for part in parts)):
        raise UserError(
            "continual.steps must be a number, 'FIRST-EACH', a file, or a list of classes for each "
            f'step, found {steps!r}')
    by_name = {name: label for label, name in enumerate(names)}
    found = [[by_name.get(entry, entry) if isinstance(entry, str) else entry for entry in part]
             for part in parts]
    every = [entry for part in found for entry in part]
    if not all(map(is_int, every)) or sorted(every) != labels:
        strange = next((entry for entry in every if entry not in labels), None)
        lacking = next((names[label] for label in labels if label not in every), None)
        what = (f'{strange!r} is none of them' if strange is not None
                else f'{lacking} is in none' if lacking is not None else 'one is in two')
        raise UserError(
            f'continual.steps: each of the {number} classes must be in one step, but {what}')
    return found


def _read(path: str, classes: int) -> Any:
    """The steps that a file says."""
    known = ready()
    place = known.get(path) or Path(path).expanduser()
    try:
        said = json.loads(place.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(
            f'continual.steps: {path} is neither a number, nor FIRST-EACH, nor a stream that comes '
            f'along ({", ".join(known)}), nor a JSON file of steps{suggest(path, known)} ({error})'
        ) from error
    if not isinstance(said, Mapping):
        return said
    if said.get('classes', classes) != classes:
        raise UserError(
            f'continual.steps: {path} is of {said["classes"]} classes, the data have {classes}')
    return said.get('steps')


def place_first_root(cfg: Config) -> None:
    """Let the first domain be ``dataset.data_root``, in place: its classes are those of all."""
    given = cfg.get('continual')
    domains = given.get('domains') if isinstance(given, Mapping) else None
    if is_list(domains) and domains:
        first = domains[0].get('data_root') if isinstance(domains[0], Mapping) else domains[0]
        if isinstance(first, str):
            cfg.dataset = ConfigDict(cfg.get('dataset') or {}, data_root=first)


def names_of(cfg: Config) -> list[str] | None:
    """The names of the classes of a config's training data, as it or the data set's class says."""
    from mmengine.registry import DATASETS  # which the task's own fill

    task = tasks.of(cfg.get('model') or {})
    (first, *_) = leaf_datasets(cfg.get('train_dataloader')) or [{}]
    found = (first.get('metainfo') or {}).get('classes')
    if found is None and task is not None and first.get('type'):
        tasks.import_packages(task.scope)
        with DATASETS.switch_scope_and_registry(task.scope) as registry:
            kind = registry.get(first['type']) if isinstance(first['type'], str) else first['type']
        found = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return None if found is None else list(found)


def place(cfg: Config, classes: Sequence[str] | None) -> None:
    """Make a config one step of a stream, in place, where it has ``continual``.

    ``continual = dict(steps=5, step=0)``: the classes come in ``steps`` (:func:`classes_of_steps`,
    with ``seed`` of the order, 0 if it is left out of a number of steps), and the run is of step
    ``step``, from 0. It trains on the images of the step's classes, and validates and tests on all
    classes so far. A head of classification becomes :class:`vpt_dense.continual.head.StepHead`; a
    segmentor :class:`vpt_dense.continual.segmentor.StepEncoderDecoder`, with the class
    ``background``, if there is one; ``disjoint=True`` leaves out images that hold a class of a
    later step.
    ``domains=[DATA_ROOT, dict(...), ...]`` instead: each step has the same classes in other data,
    for which ``dataset`` says so. ``strategy``:

    - ``sequential``: what the method says, whatever comes of earlier steps.
    - ``frozen``: from step 1 on the head alone; of a segmentor the step's own layer.
    - ``alone``: what the method says, from the start.
    - ``joint``: on the images of all steps so far, the upper bound.
    - ``nsp2``: :class:`vpt_dense.continual.null_space.NullSpaceHook`, with ``null_space`` (the file
      that the step before has left), ``eta``, ``invariance``; ``temperature`` is of the loss.
    - ``eclipse_like``: of a segmentor, prompts and a last layer for each step; all else is frozen
      from step 1 on.

    ``test_on``: ``'step'`` tells the step's own classes apart, on their data; of domains, the
    number of the one that is tested.

    Args:
        cfg: A config whose data sets are merged.
        classes: Their names; None: not known yet, as the data are not there.

    Raises:
        UserError: If a value is none of its kind, or the config is of another task.
    """
    given = cfg.pop('continual', None)
    if given is None:
        return
    by_domain = isinstance(given, Mapping) and 'domains' in given
    if (not isinstance(given, Mapping) or set(given) - set(_KEYS)
            or ('steps' in given) == by_domain):
        raise UserError(
            f'continual: a dict of {", ".join(_KEYS)} with either steps or domains was expected, '
            f'found {given!r}')
    task = tasks.of(cfg.get('model') or {})
    if task is None or task.name not in ('classification', 'segmentation'):
        raise UserError('continual: it is for classification and segmentation')
    strategy = check_choice(given.get('strategy', 'sequential'), 'continual.strategy', STRATEGIES)
    if strategy == 'nsp2' and task.dense:
        raise UserError('continual.strategy: nsp2 is for classification')
    if strategy == 'eclipse_like' and (not task.dense or by_domain):
        raise UserError('continual.strategy: eclipse_like is for steps of a segmentation')
    for key, fits in (
            *((key, strategy == 'nsp2') for key in _OF_NSP2),
            ('background', task.dense and not by_domain),
            ('disjoint', task.dense and not by_domain), ('seed', not by_domain),
            ('temperature', not task.dense and not by_domain)):
        if key in given and not fits:
            raise UserError(
                f'continual.{key} does nothing in {task.name} by '
                f'{"domains" if by_domain else "steps"} with strategy {strategy}')
    step = given.get('step', 0)
    number = _place_domains(cfg, given, strategy) if by_domain else (
        _place_classes(cfg, given, strategy, classes, task))
    later = step > 0
    anew = strategy in ('alone', 'joint')
    _place_prompt(cfg, number, step, strategy, anew)
    if strategy == 'frozen' and later:
        cfg.model.backbone.trainable = []
        neck = {} if task.dense and not by_domain else cfg.model.get('neck') or {}
        if neck and kind_of(neck) != 'GlobalAveragePooling':
            raise UserError(
                'continual.strategy: frozen trains the head alone from step 1 on, and model.neck, '
                f'a {kind_of(neck)}, would train too; leave it out')
    if strategy == 'nsp2':
        settings = {key: given[key] for key in _OF_NSP2 if key in given}
        if later and not settings.get('null_space'):
            raise UserError(
                'continual.null_space: from step 1 on nsp2 needs the file that the step before has '
                'left, WORK_DIR/null_space.safetensors')
        kind = 'vpt_dense.NullSpaceHook'
        others = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') != kind]
        cfg.custom_hooks = [*others, ConfigDict(settings, type=kind)]


def _check_step(step: Any, number: int) -> None:
    if not is_int(step, 0) or step >= number:
        raise UserError(f'continual.step must be one of 0 to {number - 1}, found {step!r}')


def _place_domains(cfg: Config, given: Mapping[str, Any], strategy: str) -> int:
    """Give each split the data of its domains.

    Returns:
        The number of domains.
    """
    domains, step = given['domains'], given.get('step', 0)
    if not is_list(domains) or len(domains) < 2 or not all(
            isinstance(each, (str, Mapping)) and each for each in domains):
        raise UserError(
            'continual.domains must be a list of two data roots at least, or of what dataset says '
            f'of each, found {domains!r}')
    for key in ('classes', 'palette', 'metainfo', 'ignore_index'):
        if any(key in each for each in domains if isinstance(each, Mapping)):
            raise UserError(
                f'continual.domains: {key} is the same in all domains; say dataset.{key}')
    _check_step(step, len(domains))
    tested = given.get('test_on', step)
    if not is_int(tested, 0) or tested >= len(domains):
        raise UserError(
            f'continual.test_on must be one of 0 to {len(domains) - 1}, found {tested!r}')
    own = [ConfigDict(dict(data_root=each) if isinstance(each, str) else each)
           for each in domains]
    for name in DATALOADERS:
        loader = cfg.get(name)
        if not get(cfg, f'{name}.dataset'):
            continue
        if len(leaf_datasets(loader)) != 1 or kind_of(loader.dataset) == 'ConcatDataset':
            raise UserError(f'continual.domains: {name}.dataset must be one data set')
        first = name == DATALOADERS[0]
        chosen = own[: step + 1] if first and strategy == 'joint' else [
            own[step if first else tested]]
        parts = []
        for domain in chosen:
            part = ConfigDict(loader.dataset.copy())
            part = _over(part, domain)
            parts.append(part)
        loader['dataset'] = parts[0] if len(parts) == 1 else ConfigDict(
            type='ConcatDataset', datasets=parts)
    for key in {key for domain in own for key in domain}:
        (cfg.get('dataset') or {}).pop(key, None)  # which would be of no split any more
    return len(domains)


def _over(dataset: ConfigDict, domain: Mapping[str, Any]) -> ConfigDict:
    """What a domain says of a data set, put over it or over the one that it is around."""
    if isinstance(dataset.get('dataset'), Mapping):
        return ConfigDict(dataset, dataset=_over(ConfigDict(dataset['dataset']), domain))
    both = {key: {**dataset[key], **said} for key, said in domain.items()  # as data_prefix
            if isinstance(said, Mapping) and isinstance(dataset.get(key), Mapping)}
    return ConfigDict(dataset, **{**domain, **both})


def _place_classes(
    cfg: Config, given: Mapping[str, Any], strategy: str, classes: Sequence[str] | None,
    task: tasks.Task,
) -> int:  # fmt: skip
    """Give each split the images of its classes, and the model its last layers.

    Returns:
        The number of steps.
    """
    classes = names_of(cfg) if classes is None else classes
    if classes is None:
        raise UserError('continual: the classes are not known; set dataset.classes, or put the '
                        'data where the config says')
    background = given.get('background')
    if background is not None:
        if background not in classes:
            raise UserError(f'continual.background: {background!r} is none of the classes')
        background = list(classes).index(background)
    in_order = isinstance(given['steps'], str) and _FIRST_EACH.fullmatch(given['steps'])
    seed = given.get('seed', None if in_order else 0)
    if seed is not None and not is_int(seed, 0):
        raise UserError(f'continual.seed must be a whole number or None, found {seed!r}')
    steps = classes_of_steps(given['steps'], classes, seed, background)
    if given.get('seed') is not None and not (in_order or is_int(given['steps'])):
        raise UserError(
            f'continual.seed does nothing with steps={given["steps"]!r}, which say what comes '
            'when; leave it out')
    _refuse_class_weights(cfg.model)
    step = given.get('step', 0)
    _check_step(step, len(steps))
    test_on = check_choice(given.get('test_on', 'seen'), 'continual.test_on', ('seen', 'step'))
    seen = [label for each in steps[: step + 1] for label in each]
    tested = steps[step] if test_on == 'step' else seen
    trained = seen if strategy == 'joint' else steps[step]
    disjoint = check_flag(given.get('disjoint', False), 'continual.disjoint')
    later = [label for each in steps[step + 1 :] for label in each] if disjoint else []
    train, *tests = (name for name in DATALOADERS if get(cfg, f'{name}.dataset'))
    _wrap(cfg[train], trained, later)
    if task.dense:
        _place_segmentor(cfg, steps, step, strategy, background, test_on)
        ignored = cfg.model.decode_head.get('ignore_index', 255)
        other, kept = (ignored, []) if background is None else (background, [background, ignored])
        for name in tests:
            for dataset in leaf_datasets(cfg[name]):
                pipeline = dataset.get('pipeline') or ()
                dataset['pipeline'] = _keep(pipeline, [*tested, *kept], other)
                if not any(kind_of(each) == 'KeepLabels' for each in dataset['pipeline']):
                    raise UserError(
                        'continual: a pipeline of validation and test must load masks '
                        f'(LoadAnnotations), found {", ".join(map(kind_of, pipeline))}')
        if cfg.get('tta_pipeline'):
            cfg.tta_pipeline = _keep(cfg.tta_pipeline, [*tested, *kept], other)
        return len(steps)
    for name in tests:
        _wrap(cfg[name], tested)
    lonely = [i for i, labels in enumerate(steps) if len(labels) == 1]
    if lonely and (strategy != 'joint' or lonely[0] == 0):
        raise UserError(
            f'continual.steps: step {lonely[0]} has one class alone, among which nothing is to be '
            'learnt: its loss would be 0; take fewer steps')
    temperature = check_number(
        given.get('temperature', 1.0), 'continual.temperature', positive=True)
    head = cfg.model.head
    if kind_of(head) not in ('LinearClsHead', 'StepHead'):
        raise UserError(f'continual: the head must be a LinearClsHead, found {head.get("type")}')
    head.pop('init_cfg', None)  # of a layer for all classes: the steps' layers start at zero
    head.update(type='vpt_dense.StepHead', steps=steps, step=step, joint=strategy == 'joint',
                own_alone=test_on == 'step', temperature=temperature)  # fmt: skip
    return len(steps)


def _refuse_class_weights(model: ConfigDict) -> None:
    """A loss of a step has other classes than the data, in another order."""
    for place, head in placed_heads(model):
        for key in ('loss', 'loss_decode'):
            for where, loss in walk(head.get(key), f'{place}.{key}'):
                if loss.get('class_weight') is not None:
                    raise UserError(
                        f'{where}.class_weight is for all classes, and each step of continual has '
                        'its own; leave it out')


def _place_segmentor(
    cfg: Config, steps: list[list[int]], step: int, strategy: str, background: int | None,
    test_on: str,
) -> None:  # fmt: skip
    """Give a segmentor a last layer for each step; all seen classes are one where they train."""
    model = cfg.model
    if kind_of(model) not in ('EncoderDecoder', 'StepEncoderDecoder'):
        raise UserError(
            f'continual: the model must be an EncoderDecoder, found {model.get("type")}')
    if strategy == 'joint':
        if test_on == 'step':
            raise UserError(
                "continual.test_on: 'step' tells the classes of one step apart, and joint has one "
                'last layer for those of all')
        steps = [[label for each in steps[: step + 1] for label in each], *steps[step + 1 :]]
        step = 0
    model.update(type='vpt_dense.StepEncoderDecoder', continual=ConfigDict(
        steps=steps, step=step, background=background,
        among=[step] if test_on == 'step' else list(range(step + 1)),
        frozen_head=step > 0 and strategy in ('frozen', 'eclipse_like')))


def _place_prompt(cfg: Config, number: int, step: int, strategy: str, anew: bool) -> None:
    """Tell prompts with a part for each step which is theirs."""
    backbone = cfg.model.backbone
    prompt = backbone.get('prompt')
    inner = get(prompt, 'prompt') if kind_of(prompt or {}) == 'PromptEnsemble' else prompt
    if (cfg.get('ensemble') or inner is not prompt) and (
            strategy == 'eclipse_like' or kind_of(inner or {}) in _STEPPED):
        raise UserError(
            'ensemble: there is none of prompts with a part for each step of continual; train the '
            'members one by one')
    if strategy == 'eclipse_like':
        if not isinstance(prompt, Mapping):
            raise UserError(
                'continual.strategy: eclipse_like gives each step prompts of its own, but the '
                'backbone has none; take a method with prompts (--method deep)')
        if kind_of(prompt) != 'StepPrompts':
            prompt = dict(type='vpt_dense.StepPrompts', prompt=prompt)
        backbone.prompt = ConfigDict(prompt, steps=number, step=step)
        if step > 0:
            backbone.trainable = [r'^prompt\.']
    elif isinstance(prompt, Mapping) and kind_of(prompt) in _STEPPED:
        # Frozen, images go on seeing the prompts of the first step alone.
        number, step = (1, 0) if anew else (number, 0 if strategy == 'frozen' else step)
        backbone.prompt = ConfigDict(prompt, steps=number, step=step)


def _wrap(loader: dict, labels: Sequence[int], without: Sequence[int] = ()) -> None:
    """Take the images of some classes, in place of those that a finished config takes."""
    inner = loader['dataset']
    if kind_of(inner) == 'ClassSubset':
        inner = inner['dataset']
    loader['dataset'] = ConfigDict(
        type='vpt_dense.ClassSubset', dataset=inner, labels=sorted(labels),
        **(dict(without=sorted(without)) if without else {}))


def _keep(pipeline: Sequence[dict], labels: Sequence[int], other: int) -> list[dict]:
    """Keep some labels behind what loads masks, in place of those that a finished config keeps."""
    keep, found = ConfigDict(type='vpt_dense.KeepLabels', labels=sorted(labels), other=other), []
    for step in pipeline:
        if kind_of(step) == 'TestTimeAug':  # of lists, each of alternatives
            groups = [group for group in step['transforms'] if not _is_one(group, 'KeepLabels')]
            step = ConfigDict(step, transforms=[
                each for group in groups
                for each in ([group, [keep]] if _is_one(group, *_LOADS) else [group])])
        if kind_of(step) != 'KeepLabels':
            found.append(step)
        if kind_of(step) in _LOADS:
            found.append(keep)
    return found


def _is_one(group: Sequence[dict], *kinds: str) -> bool:
    return any(kind_of(each) in kinds for each in group)
