"""The classes of each step of a stream, and what a config of one step becomes."""

from collections.abc import Mapping, Sequence

import numpy as np
from mmengine.config import Config, ConfigDict

from vpt_dense import tasks
from vpt_dense.argument_checks import check_choice, check_number, is_int, is_list
from vpt_dense.errors import UserError
from vpt_dense.tree import DATALOADERS, get, kind_of

#: What a step trains on, and what it leaves as it is.
STRATEGIES = ('sequential', 'frozen', 'joint', 'nsp2')
_KEYS = ('steps', 'step', 'seed', 'strategy', 'null_space', 'eta', 'invariance', 'temperature')
#: What only ``nsp2`` has.
_OF_NSP2 = ('null_space', 'eta', 'invariance')


def classes_of_steps(
    steps: int | Sequence[Sequence[int]], classes: int, seed: int | None
) -> list[list[int]]:
    """The labels of each step.

    Args:
        steps: How many steps, of as many classes each as can be (the first ones have one more where
            they do not divide); or the labels themselves.
        classes: How many there are.
        seed: Of the order in which they come; None: that of the labels.

    Raises:
        UserError: If there are more steps than classes, or labels are in no step or in two.
    """
    if is_int(steps):
        if not 1 <= steps <= classes:
            raise UserError(
                f'continual.steps is {steps}, but there are {classes} classes: every step needs '
                'one at least')
        order = np.arange(classes) if seed is None else np.random.default_rng(seed).permutation(
            classes)
        return [part.tolist() for part in np.array_split(order, steps)]
    if not (is_list(steps) and steps and all(
            is_list(step) and step and all(is_int(label, 0) for label in step) for step in steps)):
        raise UserError(
            f'continual.steps must be a number, or a list of labels for each step, found {steps!r}')
    labels = sorted(label for step in steps for label in step)
    if labels != list(range(classes)):
        raise UserError(
            f'continual.steps: each of the labels 0 to {classes - 1} must be in one step, found '
            f'{labels}')
    return [list(step) for step in steps]


def place(cfg: Config, classes: Sequence[str] | None) -> None:
    """Make a config one step of a stream of classes, in place, where it has ``continual``.

    ``continual = dict(steps=5, step=0)``: the classes come in ``steps`` (:func:`classes_of_steps`,
    with ``seed``, 0 if it is left out), and the run is of step ``step``, from 0. It trains on the
    images of the step's classes, and validates and tests on those of all classes so far. The head
    becomes :class:`vpt_dense.continual.head.StepHead`. ``strategy``:

    - ``sequential``: what the method says, whatever comes of earlier steps.
    - ``frozen``: from step 1 on the head alone.
    - ``joint``: on the images of all classes so far, the upper bound.
    - ``nsp2``: :class:`vpt_dense.continual.null_space.NullSpaceHook`, with ``null_space`` (the file
      that the step before has left), ``eta``, ``invariance``; ``temperature`` is of the loss.

    Args:
        cfg: A config whose data sets are merged.
        classes: Their names; None: not known yet, as the data are not there.

    Raises:
        UserError: If a value is none of its kind, a step has one class, or the config is not of
            classification.
    """
    given = cfg.pop('continual', None)
    if given is None:
        return
    if not isinstance(given, Mapping) or set(given) - set(_KEYS) or 'steps' not in given:
        raise UserError(f'continual: a dict of {", ".join(_KEYS)} was expected, found {given!r}')
    task = tasks.of(cfg.get('model') or {})
    if task is None or task.name != 'classification':
        raise UserError('continual: it is for classification')
    if classes is None:
        raise UserError('continual: the classes are not known; set dataset.classes, or put the '
                        'data where the config says')
    strategy = check_choice(given.get('strategy', 'sequential'), 'continual.strategy', STRATEGIES)
    beside = [key for key in _OF_NSP2 if key in given and strategy != 'nsp2']
    if beside:
        raise UserError(f'continual.{beside[0]} is of strategy nsp2, found {strategy}')
    seed, step = given.get('seed', 0), given.get('step', 0)
    if seed is not None and not is_int(seed, 0):
        raise UserError(f'continual.seed must be a whole number or None, found {seed!r}')
    steps = classes_of_steps(given['steps'], len(classes), seed)
    if not is_int(step, 0) or step >= len(steps):
        raise UserError(f'continual.step must be one of 0 to {len(steps) - 1}, found {step!r}')
    lonely = [i for i, labels in enumerate(steps) if len(labels) == 1]
    if lonely and (strategy != 'joint' or lonely[0] == 0):
        raise UserError(
            f'continual.steps: step {lonely[0]} has one class alone, among which nothing is to be '
            'learnt: its loss would be 0; take fewer steps')
    temperature = check_number(
        given.get('temperature', 1.0), 'continual.temperature', positive=True)
    seen = [label for each in steps[: step + 1] for label in each]
    for name in DATALOADERS:
        if get(cfg, f'{name}.dataset'):
            own = steps[step] if name == DATALOADERS[0] and strategy != 'joint' else seen
            _wrap(cfg[name], own)
    head = cfg.model.head
    if not str(head.get('type')).endswith(('LinearClsHead', 'StepHead')):
        raise UserError(f'continual: the head must be a LinearClsHead, found {head.get("type")}')
    head.update(type='vpt_dense.StepHead', steps=steps, step=step, joint=strategy == 'joint',
                temperature=temperature)  # fmt: skip
    if strategy == 'frozen' and step > 0:
        cfg.model.backbone.trainable = []
    if strategy == 'nsp2':
        settings = {key: given[key] for key in _OF_NSP2 if key in given}
        if step > 0 and not settings.get('null_space'):
            raise UserError(
                'continual.null_space: from step 1 on nsp2 needs the file that the step before has '
                'left, WORK_DIR/null_space.safetensors')
        kind = 'vpt_dense.NullSpaceHook'
        others = [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') != kind]
        cfg.custom_hooks = [*others, ConfigDict(settings, type=kind)]


def _wrap(loader: dict, labels: Sequence[int]) -> None:
    """Take the images of some classes, in place of those that a finished config takes."""
    inner = loader['dataset']
    if kind_of(inner) == 'ClassSubset':
        inner = inner['dataset']
    loader['dataset'] = ConfigDict(
        type='vpt_dense.ClassSubset', dataset=inner, labels=sorted(labels))
