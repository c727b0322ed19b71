"""Checks of arguments that several classes of configs share."""

import math
import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from vpt_dense.errors import UserError


def is_int(value: Any, least: float = -math.inf) -> bool:
    """Whether a value is an integer, and not below ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any, finite: bool = True) -> bool:
    """Whether a value is a number, if wanted a finite one; True and False are none."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and (not finite or math.isfinite(value))


def is_list(value: Any) -> bool:
    """Whether a value is a list or another sequence, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_count(value: int, key: str, least: int = 1) -> int:
    """Return a number of something, a rank or a width.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.
        least: The smallest that it may be.

    Raises:
        UserError: If it is no integer of at least that.
    """
    if not is_int(value, least):
        raise UserError(f'{key} must be an integer of at least {least}, found {value!r}')
    return value


def check_number(value: float, key: str, positive: bool = False) -> float:
    """Return a finite number.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.
        positive: Whether it must be above 0.

    Raises:
        UserError: If it is none.
    """
    if not is_number(value) or (positive and value <= 0):
        raise UserError(
            f'{key} must be a number{" above 0" if positive else ""}, found {value!r}')
    return value


def check_flag(value: bool, key: str) -> bool:
    """Return a switch: a word such as 'no' would count as True.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.

    Raises:
        UserError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise UserError(f'{key} must be True or False, found {value!r}')
    return value


def check_choice(value: Any, key: str, choices: Iterable) -> Any:
    """Return one of a few words.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.
        choices: What it may be, at least two.

    Raises:
        UserError: If it is something else.
    """
    choices = list(choices)
    if value not in choices:
        *others, last = map(repr, choices)
        raise UserError(f'{key} must be {", ".join(others)} or {last}, found {value!r}')
    return value


def check_patterns(patterns: Sequence[str], key: str, way_out: str = '') -> Sequence[str]:
    """Return a list of regular expressions.

    Args:
        patterns: What the config says.
        key: Name of the config key, for the message.
        way_out: What the message ends with if it is no list.

    Raises:
        UserError: If it is no list, or one is no regular expression.
    """
    if not is_list(patterns):
        raise UserError(
            f'{key} must be a list of regular expressions, found {patterns!r}{way_out}')
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UserError(
                f'{key}: {pattern!r} is not a valid regular expression ({error})') from error
    return patterns


def check_channels(
    values: Sequence[float], key: str, channels: int, positive: bool = False
) -> Sequence[float]:
    """Return numbers of the channels of an image.

    Args:
        values: What the config says.
        key: Name of the config key, for the message.
        channels: How many there are.
        positive: Whether all must be above 0.

    Raises:
        UserError: If they are not so many numbers.
    """
    if not is_list(values) or len(values) != channels:
        raise UserError(
            f'{key} must be {channels} numbers, one for each channel of the images, '
            f'found {values!r}'
        )
    return [check_number(value, key, positive) for value in values]


def to_pair(key: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Turn a size or a (height, width) into a pair of positive integers.

    Args:
        key: Name of the config key, for the message.
        size: What the config says.

    Raises:
        UserError: If it is neither.
    """
    pair = tuple(size) if is_list(size) else (size, size)
    if len(pair) != 2 or not all(is_int(n, 1) for n in pair):
        raise UserError(f'{key} must be a positive integer or a pair of them, found {size!r}')
    return pair


def check_stages(indices: Sequence[int], stages: int, from_end: bool = False) -> Sequence[int]:
    """Return ``out_indices`` of a backbone of several stages.

    Args:
        indices: What the config says.
        stages: How many there are.
        from_end: Whether negative numbers count from the end; else they name no stage.

    Raises:
        UserError: If it is no list, is empty, or names no stage.
    """
    least = -stages if from_end else 0
    if not (is_list(indices) and indices and all(is_int(i, least) and i < stages for i in indices)):
        raise UserError(
            f'out_indices must be a list of integers from {least} to {stages - 1}, '
            f'found {indices!r}'
        )
    return indices


def check_dropout(value: float, key: str) -> float:
    """Return a dropout probability.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.

    Raises:
        UserError: If it is no number in [0, 1).
    """
    if not is_number(value) or not 0 <= value < 1:
        raise UserError(f'{key} must be a number in [0, 1), found {value!r}')
    return value
