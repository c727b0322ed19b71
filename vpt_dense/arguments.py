"""Checks of arguments that several classes of configs share."""


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
