"""Keys of the optimizer that are set once: ``lr``, ``head_lr``, ``weight_decay``."""

import math
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense.argument_checks import check_number, is_number
from vpt_dense.errors import UserError
from vpt_dense.tree import as_list, get, kind_of

KEYS = ('lr', 'head_lr', 'weight_decay')

_OPTIMIZER = 'optim_wrapper.optimizer'
_FACTORS = 'optim_wrapper.paramwise_cfg.custom_keys'
#: Parts beside the backbone, as names of parameters have them.
_HEADS = ('head', 'neck')


def check(key: str, value: Any) -> float:
    """Check the value of a key.

    Raises:
        UserError: If it is no rate or decay.
    """
    number = check_number(value, key, positive=key != 'weight_decay')
    if number < 0:
        raise UserError(f'{key} must not be negative, found {value}')
    return number


def is_of_head(name: str) -> bool:
    """Whether a key of ``paramwise_cfg.custom_keys`` is of heads or the neck."""
    return any(part in name for part in _HEADS)


def place(cfg: Config, given: Mapping[str, Any], origins: Mapping[str, Any]) -> None:
    """Put the keys of :data:`KEYS` into the optimizer's settings, in place.

    - ``lr`` becomes the optimizer's rate. What trains beside it keeps its ratio to it
      (``lr_mult``), and the ends of schedules do (``eta_min``).
    - ``head_lr`` becomes the rate of heads and neck, through ``lr_mult``; what trains in the
      backbone keeps its own.
    - ``weight_decay`` becomes the optimizer's.

    Args:
        cfg: The config, with the optimizer of its method.
        given: The keys that are said; numbers that were checked.
        origins: Where each was said, see :mod:`vpt_dense.run_settings`.

    Raises:
        UserError: If the config has no optimizer of one rate and is no recipe, or says the same
            beside a key.
    """
    said = [key for key in KEYS if key in given]
    if not said or ('optim' in cfg and 'optim_wrapper' not in cfg):
        return  # the latter: a recipe without a method, whose data are looked at
    optimizer = get(cfg, _OPTIMIZER)
    if not isinstance(optimizer, dict) or not is_number(optimizer.get('lr')):
        raise UserError(
            f'{said[0]}: the config has no {_OPTIMIZER} with a rate (lr) that it could set')
    for key in ('lr', 'weight_decay'):
        if key in given:
            _set(cfg, key, given[key], origins[key])
    if 'head_lr' in given:
        _set_heads(cfg, given['head_lr'], origins['head_lr'])


def _below(cfg: Config, key: str) -> list[Any]:
    """What the recipe and the method have for a key: a leaf puts one of these into the config."""
    groups = [*(cfg.get('optim') or {}).values(), cfg.get('method_optim')]
    return [get(group, f'optimizer.{key}') for group in groups]


def _set(cfg: Config, key: str, value: float, origin: Any) -> None:
    optimizer, place = get(cfg, _OPTIMIZER), f'{_OPTIMIZER}.{key}'
    old = optimizer.get(key)
    if old != value and origin.says(cfg, place, *_below(cfg, key)):
        raise UserError(f'{key} is {value}, but {place} is {old}, said beside it: say one of them')
    optimizer[key] = value
    if key == 'lr' and not origin.says(cfg, 'param_scheduler'):
        for part in _schedules(cfg):
            if is_number(part.get('eta_min')):
                part['eta_min'] = part['eta_min'] * value / old


def _schedules(cfg: Config) -> list[dict]:
    """All schedules, of one optimizer or of several."""
    found = cfg.get('param_scheduler') or []
    if isinstance(found, dict) and 'type' not in found:
        return [part for group in found.values() for part in as_list(group)]
    return [part for part in as_list(found) if isinstance(part, dict)]


def _set_heads(cfg: Config, value: float, origin: Any) -> None:
    wrapper = cfg.optim_wrapper
    constructor = wrapper.get('constructor')
    if constructor is not None and kind_of(dict(type=constructor)) != (
            'DefaultOptimWrapperConstructor'):
        raise UserError(
            f'head_lr does nothing with optim_wrapper.constructor {constructor!r}, which sets the '
            'rate of each layer; leave one of them out')
    factor = value / wrapper.optimizer.lr
    paramwise = wrapper.get('paramwise_cfg') or {}
    keys = {key for key in paramwise.get('custom_keys') or {}
            if is_of_head(key)}
    keys |= {part for part in _HEADS if part == 'head' or get(cfg, f'model.{part}')}
    for key in sorted(keys):
        place = f'{_FACTORS}.{key}.lr_mult'
        old = get(cfg, place)
        below = [get(group, f'paramwise_cfg.custom_keys.{key}.lr_mult')
                 for group in (*(cfg.get('optim') or {}).values(), cfg.get('method_optim'))]
        if old is not None and not math.isclose(old, factor) and origin.says(cfg, place, *below):
            raise UserError(
                f'head_lr is {value}, but {place} is {old}, said beside it: say one of them')
    wrapper.paramwise_cfg = ConfigDict(paramwise)
    custom = ConfigDict(paramwise.get('custom_keys') or {})
    for key in keys:
        custom[key] = ConfigDict(custom.get(key) or {}, lr_mult=factor)
    wrapper.paramwise_cfg.custom_keys = custom
