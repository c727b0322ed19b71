"""What trains: a list of name patterns, and the mode of what does not.

Full, head-only, bias and prompt tuning are lists of patterns on the parameter names of a backbone:
``['.*']``, ``[]``, ``['bias$']``, ``['^prompt']``, ``['^prompt', 'bias$']``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

#: The children of a backbone that tuning adds to it; all others are its base.
ADDED = ('prompt', 'image_prompt', 'adapters')


def is_added(name: str) -> bool:
    """Whether a parameter or module of a backbone, by its name, is what tuning added."""
    return name.split('.', 1)[0] in ADDED


def method_of(config: Mapping[str, Any], backbone: nn.Module | None) -> dict[str, Any]:
    """Return what identifies the tuning of a backbone, as plain data.

    Args:
        config: The backbone's config.
        backbone: The backbone; it fills in the patterns that the config leaves out.

    Returns:
        :data:`ADDED` that the config has, as configured (``prompt`` always, perhaps None), and
        ``trainable``, the patterns; None for a backbone that knows none.
    """
    added = {key: config[key] for key in ADDED if config.get(key)}
    return {'prompt': None, **added, 'trainable': getattr(backbone, 'trainable', None)}


def select_trainable(module: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Let exactly those parameters require a gradient whose name matches a pattern.

    Args:
        module: The backbone. Freeze it when it is built, before a distributed wrapper looks at it.
        patterns: Regular expressions, searched in the names of ``module.named_parameters()``. An
            empty list freezes everything.

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: If ``patterns`` is not a list of valid expressions or one matches no name.
    """
    if isinstance(patterns, str) or not isinstance(patterns, Sequence):
        raise ValueError(
            f'trainable must be a list of regular expressions, found {patterns!r}; '
            "for instance ['^prompt', 'bias$'], or [] to freeze the whole backbone"
        )
    names = [name for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        try:
            matches = [name for name in names if re.search(pattern, name)]
        except (re.error, TypeError) as error:
            raise ValueError(
                f'trainable: {pattern!r} is not a valid regular expression ({error})'
            ) from error
        if not matches:
            examples = ', '.join(dict.fromkeys(name.split('.')[0] for name in names))
            raise ValueError(
                f'trainable: pattern {pattern!r} matches none of the {len(names)} parameters of '
                f'{type(module).__name__} (their names start with: {examples})'
            )
        chosen.update(matches)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]
