"""Checks of arguments that several classes of configs share."""

import math
from collections.abc import Sequence


def check_count(value: int, key: str) -> int:
    """Return a number of something, a rank or a width.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.

    Raises:
        ValueError: If it is no integer of at least 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{key} must be an integer of at least 1, found {value!r}')
    return value


def check_number(value: float, key: str, positive: bool = False) -> float:
    """Return a finite number.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.
        positive: Whether it must be above 0.

    Raises:
        ValueError: If it is none.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or (positive and value <= 0):
        raise ValueError(
            f'{key} must be a number{" above 0" if positive else ""}, found {value!r}')
    return value


def check_flag(value: bool, key: str) -> bool:
    """Return a switch: a word such as 'no' would count as True.

    Args:
        value: What the config says.
        key: Name of the config key, for the message.

    Raises:
        ValueError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{key} must be True or False, found {value!r}')
    return value


def to_pair(key: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Turn a size or a (height, width) into a pair of positive integers.

    Args:
        key: Name of the config key, for the message.
        size: What the config says.

    Raises:
        ValueError: If it is neither.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or any(type(n) is not int or n < 1 for n in pair):
        raise ValueError(f'{key} must be a positive integer or a pair of them, found {size!r}')
    return pair


def check_stages(indices: Sequence[int], stages: int, from_end: bool = False) -> Sequence[int]:
    """Return ``out_indices`` of a backbone of several stages.

    Args:
        indices: What the config says.
        stages: How many there are.
        from_end: Whether negative numbers count from the end; else they name no stage.

    Raises:
        ValueError: If it is no list, is empty, or names no stage.
    """
    least = -stages if from_end else 0
    is_list = isinstance(indices, Sequence) and not isinstance(indices, str)
    if not (is_list and indices and all(type(i) is int and least <= i < stages for i in indices)):
        raise ValueError(
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
        ValueError: If it is no number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f'{key} must be a number in [0, 1), found {value!r}')
    return value
