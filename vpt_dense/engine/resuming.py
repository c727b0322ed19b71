"""Resuming a run: compares its settings with those of now and applies those of now.

The config of the run that goes on holds, in everything that can change: the length, the batch, the
schedule, the settings of the optimizer. A checkpoint's optimizer and schedules would bring their
own. What cannot change is refused by name: which parameters train, and the kind of optimizer.
"""

import copy
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from vpt_dense import building, params
from vpt_dense.errors import UserError
from vpt_dense.weights import stored_config

#: The key of a checkpoint that says what the state of its optimizer is of.
OPTIMIZER_OF = 'optimizer_of'

#: What is compared: all that the result of a training hangs on.
_COMPARED = (
    'model', 'data_preprocessor', 'train_cfg', 'optim_wrapper', 'param_scheduler', 'auto_scale_lr',
    'train_dataloader', 'val_dataloader', 'val_evaluator', 'custom_hooks',
)  # fmt: skip
#: But for what the result does not hang on, and for what the checkpoint brings (weights).
_NOT_COMPARED = re.compile(
    r'(.*\.)?(init_cfg|num_workers|persistent_workers|pin_memory|prefetch_factor)'
    r'|model\.(.*\.)?test_cfg'
)
#: Names of one class on machines with and without a GPU.
_SAME = {'vpt_dense.CPUSyncBN': 'SyncBN', 'vpt_dense.AmpOptimWrapper': 'AmpOptimWrapper'}
#: Places that the rates follow from.
_SCHEDULE = re.compile(r'param_scheduler.*|auto_scale_lr.*|optim_wrapper\.(.*\.)?(lr|\w*lr_mult)')
#: What changes in a schedule while it runs.
_MOVING = frozenset(
    'last_step _global_step _last_value best num_bad_epochs cooldown_counter verbose'.split()
)
_AFRESH = 'begin anew from its weights with load_from in place of --resume'


# --- what a checkpoint tells -----------------------------------------------------------------


def describe_run(runner: Runner) -> dict[str, int | None]:
    """The sizes of its run that a checkpoint holds beside the config: ``meta.run_size``.

    Returns:
        ``processes``; ``images``, of the training data; ``epoch_length``, in iterations, None
        where the loop counts iterations.
    """
    by_epoch = isinstance(runner.train_loop, EpochBasedTrainLoop)
    return dict(
        processes=get_world_size(),
        images=len(runner.train_dataloader.dataset),
        epoch_length=len(runner.train_dataloader) if by_epoch else None,
    )


def describe_optimizer(model: nn.Module, optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict:
    """The parameters that the state of an optimizer belongs to.

    Args:
        model: The model, wrapped or not.
        optim_wrapper: As built for it.

    Returns:
        For each wrapper (of a single one the name is '') ``type``, the optimizer's class, and
        ``names``: of each parameter that trains, by its number in the optimizer's state.
    """
    known = {id(p): name for name, p in params.unwrap(model).named_parameters()}
    found = {}
    for key, wrapper in wrappers(optim_wrapper).items():
        parameters = [p for group in wrapper.optimizer.param_groups for p in group['params']]
        names = {
            i: known.get(id(p), f'parameter {i}')
            for i, p in enumerate(parameters) if p.requires_grad
        }  # fmt: skip
        found[key] = dict(type=type(wrapper.optimizer).__name__, names=names)
    return found


def wrappers(optim_wrapper: OptimWrapper | OptimWrapperDict) -> dict[str, OptimWrapper]:
    """The wrappers of single optimizers by their names; where there is one, it is ''."""
    several = isinstance(optim_wrapper, OptimWrapperDict)
    return dict(optim_wrapper.items()) if several else {'': optim_wrapper}


# --- going on --------------------------------------------------------------------------------


def adapt(runner: Runner, checkpoint: dict, path: str) -> None:
    """Compare a checkpoint's run with this one; fit its optimizer and schedules to this config.

    Every setting that differs is told in a line. To be called with a built optimizer, before the
    checkpoint is loaded.

    Args:
        runner: The run that goes on.
        checkpoint: Its ``optimizer`` and ``param_schedulers`` are changed in place: settings become
            those of this config. ``param_schedulers`` goes where it is not that of this config:
            :func:`place` then finds where this config's schedule has arrived.
        path: For messages.

    Raises:
        UserError: If the file holds no run, or the optimizer's state is not of what trains here.
    """
    if 'message_hub' not in checkpoint or 'meta' not in checkpoint:
        raise UserError(
            f'--resume: {path} holds weights and no state of an optimizer (a delta, a merged or a '
            f'folded file, or weights of another program): it cannot be gone on with; {_AFRESH}'
        )
    old = _config(checkpoint['meta'].get('cfg'), path)
    new = _config(runner._config_text, 'of this run')
    if old is None and new is not None:
        runner.logger.warning(f'{path} holds no config that this run could be compared with')
    _check_optimizer(runner, checkpoint, old, new, path)
    for line in _compare(runner, checkpoint['meta'], old, new):
        runner.logger.warning(f'resuming: {line}')
    now = describe_optimizer(runner.model, runner.optim_wrapper)
    then = checkpoint.pop(OPTIMIZER_OF, now)
    single = '' in now
    states = checkpoint.get('optimizer')
    states = {'': states} if single and states else states
    same = _same_schedules(runner.param_schedulers, checkpoint.get('param_schedulers')) and all(
        _same_starts(group, source)
        for key, wrapper in wrappers(runner.optim_wrapper).items() if states
        for group, source in _pairs(wrapper, states[key], then[key]['names'], now[key]['names'])
    )  # fmt: skip
    if not same:
        checkpoint.pop('param_schedulers', None)
    if 'optimizer' not in checkpoint:
        runner.logger.warning(
            f'{path} holds no state of the optimizer (momentum and the like): that starts anew'
        )
        return
    fitted = {
        key: _fit(wrapper, states[key], then[key]['names'], now[key]['names'], same)
        for key, wrapper in wrappers(runner.optim_wrapper).items()
    }
    checkpoint['optimizer'] = fitted[''] if single else fitted


def place(runner: Runner, checkpoint: dict) -> None:
    """Go on from the right iteration, with the rates that this config's schedule has there.

    Args:
        runner: After the checkpoint is loaded.
        checkpoint: As :func:`adapt` left it.

    Raises:
        UserError: If this run ends before that iteration.
    """
    loop, meta = runner.train_loop, checkpoint['meta']
    by_epoch = isinstance(loop, EpochBasedTrainLoop)
    run = meta.get('run_size', {})
    if by_epoch:
        length = len(loop.dataloader)
        then = run.get('epoch_length', length)
        if then is None or (not run and not loop.epoch and loop.iter > length):
            loop._epoch = loop.iter // length  # of a run that counted iterations
        elif then != length:
            loop._epoch, rest = divmod(loop.iter, then)
            loop._iter = loop.epoch * length
            again = ', which begins again' if rest else ''
            runner.logger.warning(
                f'resuming: an epoch had {then} iterations and has {length} now: the run goes on '
                f'with epoch {loop.epoch + 1}{again}; iterations are counted from {loop.iter}'
            )
        now, end, key = loop.epoch, loop.max_epochs, 'max_epochs'
    else:
        loop._epoch = 0  # of a run that counted epochs
        now, end, key = loop.iter, loop.max_iters, 'max_iters'
    if now > end:
        raise UserError(
            f'train_cfg.{key} is {end}, but the checkpoint has trained {now} already: nothing is '
            f'left to do; raise train_cfg.{key}, or leave --resume out'
        )
    if 'param_schedulers' not in checkpoint and runner.param_schedulers:
        _replay(runner, len(loop.dataloader) if by_epoch else 0)


def _replay(runner: Runner, epoch_length: int) -> None:
    """Step this config's schedules from their start to where the run is: each builds on its last.

    A schedule that follows a metric starts to watch it anew.
    """
    for schedulers in _lists(runner.param_schedulers):
        for scheduler in schedulers:
            scheduler.optimizer._global_step = 0  # it has stepped: no warning
        for step in range(1, runner.iter + 1):
            for scheduler in schedulers:
                if not scheduler.by_epoch or (epoch_length and step % epoch_length == 0):
                    scheduler.step()
        for scheduler in schedulers[-1:]:
            groups = scheduler.optimizer.param_groups
            rates = sorted({group[scheduler.param_name] for group in groups})
            runner.logger.warning(
                f'resuming: {scheduler.param_name} goes on by the schedule of this config, at '
                f'iteration {runner.iter}: {", ".join(f"{rate:.4g}" for rate in rates)}'
            )


def _lists(schedulers: list | dict | None) -> list[list]:
    if isinstance(schedulers, dict):
        return list(schedulers.values())
    return [schedulers] if schedulers else []


def _same_schedules(new: list | dict | None, old: list | dict | None) -> bool:
    """Whether a checkpoint's schedules are those of this config.

    One that follows a metric goes on to do so: its settings in ``old`` become those of this config.
    """
    new, old = ([part for parts in _lists(side) for part in parts] for side in (new, old))
    states = [[s.state_dict() for s in new], old]
    for theirs, state in zip(old, states[0], strict=False):
        if 'monitor' in state and all(state[k] == theirs.get(k) for k in ('monitor', 'rule')):
            theirs.update({key: value for key, value in state.items() if key not in _MOVING})
    fixed = [
        [{key: value for key, value in s.items() if key not in _MOVING} for s in side]
        for side in states
    ]
    return fixed[0] == fixed[1]


def _pairs(
    wrapper: OptimWrapper, state: dict, then: dict[int, str], now: dict[int, str]
) -> list[tuple[dict, dict]]:
    """The groups of a new optimizer, copied, each with that of a checkpoint: of the same parameter.

    Args:
        wrapper: This run's.
        state: The checkpoint's.
        then: Names of the parameters in ``state`` by their numbers.
        now: Names in ``wrapper`` by their numbers.
    """
    sources = {then[i]: group for group in state['param_groups'] for i in group['params']
               if i in then}  # fmt: skip
    pairs = []
    for group in wrapper.state_dict()['param_groups']:
        first = next((now[i] for i in group['params'] if i in now), None)
        pairs.append((dict(group), sources.get(first, {})))
    return pairs


def _same_starts(group: dict, source: dict) -> bool:
    """Whether a group starts from the rates that it did; one in which nothing trains does."""
    keys = [key for key in group if key.startswith('initial_')]
    return not source or all(group[key] == source.get(key) for key in keys)


def _fit(
    wrapper: OptimWrapper, state: dict, then: dict[int, str], now: dict[int, str], same: bool
) -> dict:
    """An optimizer's state of a checkpoint as one of this config.

    Args:
        wrapper: As in :func:`_pairs`.
        state: Likewise.
        then: Likewise.
        now: Likewise.
        same: Whether the schedules are the same; then the rates are those of the checkpoint.

    Returns:
        ``state`` with the numbers, the groups and the settings of ``wrapper``.
    """
    numbers = {name: i for i, name in now.items()}
    pairs = _pairs(wrapper, state, then, now)
    fitted = {**state, 'param_groups': [group for group, _ in pairs]}
    fitted['state'] = {numbers[then[i]]: s for i, s in state['state'].items() if i in then}
    base = copy.copy(wrapper.base_param_settings)  # the rate that is logged where there are many
    if base is not None:
        fitted['base_param_settings'] = base
        pairs.append((base, state.get('base_param_settings', {})))
    else:
        fitted.pop('base_param_settings', None)
    for group, source in pairs if same else ():
        scheduled = [key.removeprefix('initial_') for key in group if key.startswith('initial_')]
        group.update({key: source[key] for key in scheduled if key in source})
    return fitted


# --- what is refused -------------------------------------------------------------------------


def _check_optimizer(
    runner: Runner, checkpoint: dict, old: Config | None, new: Config | None, path: str
) -> None:
    """Compare what trains, and by which optimizer.

    Raises:
        UserError: If it is something else here; or an old checkpoint does not say.
    """
    if 'optimizer' not in checkpoint:
        return
    now = describe_optimizer(runner.model, runner.optim_wrapper)
    then = checkpoint.get(OPTIMIZER_OF)
    if then is None:
        then = _of_old_checkpoint(now, checkpoint, old, new, path)
    if then.keys() != now.keys():
        raise UserError(f'--resume: {path} is of a run with other optimizers; {_AFRESH}')
    for key in now:
        kinds = then[key]['type'], now[key]['type']
        if kinds[0] != kinds[1]:
            raise UserError(
                f'--resume: optim_wrapper.optimizer.type is {kinds[1]}, but the state of the '
                f'optimizer in {path} is of {kinds[0]}; set it back, or {_AFRESH}'
            )
        names = [set(side[key]['names'].values()) for side in (then, now)]
        parts = [
            f'{what} {_some(side)}'
            for what, side in (
                ('trained', names[0] - names[1]), ('did not train', names[1] - names[0])
            ) if side
        ]  # fmt: skip
        if parts:
            patterns = [
                (cfg.get('model', {}).get('backbone') or {}).get('trainable') if cfg else None
                for cfg in (old, new)
            ]
            told = ''
            if patterns[0] != patterns[1]:
                told = f' (model.backbone.trainable was {patterns[0]} and is {patterns[1]})'
            raise UserError(
                f'--resume: the run of {path} {" and ".join(parts)}, unlike this one{told}; the '
                f'state of its optimizer is of what it trained: set that back, or {_AFRESH}'
            )


def _some(names: set[str], limit: int = 3) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(sorted(names)[:limit]) + more


def _of_old_checkpoint(
    now: dict, checkpoint: dict, old: Config | None, new: Config | None, path: str
) -> dict:
    """The same for a checkpoint without names, from its config.

    Raises:
        UserError: If it cannot tell.
    """
    unknown = UserError(
        f'--resume: {path} does not say which parameters the state of its optimizer is of, and its '
        f'config does not tell either: the optimizer or the model is another one here; {_AFRESH}'
    )
    if old is None or new is None or '' not in now or 'model' not in old:
        raise unknown
    ways = [
        [(cfg.get('optim_wrapper') or {}).get(key) for key in ('constructor', 'paramwise_cfg')]
        for cfg in (old, new)
    ]
    if ways[0] != ways[1]:  # other groups: other numbers
        raise unknown
    if old.model == new.model:
        names = now['']['names']
    else:
        model = building.build_model(old, 'meta')
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
        count = sum(len(group['params']) for group in checkpoint['optimizer']['param_groups'])
        everything = [name for name, _ in model.named_parameters()]
        if ways[0][0] is not None or count not in (len(trained), len(everything)):
            raise unknown
        listed = everything if count == len(everything) else trained
        names = {i: name for i, name in enumerate(listed) if name in set(trained)}
    kind = (old.get('optim_wrapper') or {}).get('optimizer', {}).get('type', now['']['type'])
    then = {'': dict(type=str(kind).rpartition('.')[2], names=names)}
    checkpoint[OPTIMIZER_OF] = then
    return then


# --- what is told ----------------------------------------------------------------------------


def _config(text: object, path: str) -> Config | None:
    try:
        return stored_config.parse(text, path)
    except UserError:  # built in code, or more than plain data
        return None


def _compare(runner: Runner, meta: dict, old: Config | None, new: Config | None) -> Iterator[str]:
    """Settings that differ, a line each, and what is done."""
    run, now = meta.get('run_size', {}), describe_run(runner)
    for key, words in (('processes', 'processes'), ('images', 'training images')):
        if key in run and run[key] != now[key]:
            yield f'{words}: {run[key]:,} in the run of the checkpoint, {now[key]:,} now'
    if old is None or new is None:
        return
    batches = [_images_a_step(cfg, known.get('processes'))
               for cfg, known in ((old, run), (new, now))]  # fmt: skip
    if None not in batches and batches[0] != batches[1]:
        yield f'images of an optimizer step: {batches[0]} in the run of the checkpoint, ' \
              f'{batches[1]} now; iterations are counted on'
    for key in _COMPARED:
        for place, before, value in _differences(old.get(key), new.get(key), key):
            done = 'the schedule of this config goes on' if _SCHEDULE.fullmatch(place) else (
                'the new value holds')
            yield f'{place}: {_brief(before)} in the run of the checkpoint, {_brief(value)} now; ' \
                  f'{done}'


def _images_a_step(cfg: Config, processes: int | None) -> int | None:
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    if batch is None or processes is None:
        return None
    return batch * processes * (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)


def _differences(old: Any, new: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if _NOT_COMPARED.fullmatch(place):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f'{place}.{key}')
        return
    lists = [isinstance(side, (list, tuple)) for side in (old, new)]
    if all(lists):
        old, new = list(old), list(new)
        if len(old) == len(new) and any(isinstance(item, dict) for item in old):
            for i, pair in enumerate(zip(old, new, strict=True)):
                yield from _differences(*pair, f'{place}.{i}')
            return
    if isinstance(old, str) and isinstance(new, str):
        old, new = _SAME.get(old, old), _SAME.get(new, new)
    if old != new:
        yield place, old, new


def _brief(value: Any) -> str:
    """A value in a line; of objects their types."""
    if isinstance(value, dict):
        return str(value.get('type', f'{len(value)} settings'))
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f'[{", ".join(map(_brief, value))}]'
    text = 'nothing' if value is None else repr(value)
    return text if len(text) < 60 else f'{text[:57]}...'
