"""Chooses what trains by a list of name patterns, and sets the mode of the rest.

Full, head-only, bias and prompt tuning are lists of patterns on the parameter names of a backbone:
``['.*']``, ``[]``, ``['bias$']``, ``['^prompt']``, ``['^prompt', 'bias$']``. Two patterns count
blocks from the end, whatever the depth: ``['last:4']``, ``['partial:1']``.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from vpt_dense.argument_checks import check_patterns

#: The children of a backbone that tuning adds to it; all others are its base.
ADDED = ('prompt', 'image_prompt', 'adapters')

#: What a backbone may offer to methods, which say what they need.
OFFERS = {
    'images': 'images in front of its first layer',
    'tokens': 'transformer blocks',
    'one width': 'blocks that are all of one width',
    'open sizes': 'graphs that take images of any size',
    'grid': 'patches of images, on a grid',
    'texts': 'words in place of patches',
    'outputs': 'maps or vectors of its own to put out',
    'patches': 'a patch embedding that is one convolution',
    'parts': 'blocks with a norm, attention and an MLP one after the other',
    'keys and values': 'attention that takes keys and values from outside',
    'hidden prompts': 'attention that hides prompts from some tokens',
    'hidden tokens': 'attention that hides tokens from some tokens',
    'copies': 'blocks whose copies can be computed behind it',
    'query': 'a pass without prompts in front of its own',
}

#: 'last:K', the last K blocks; 'partial:K', these and the norms behind the blocks.
_FROM_THE_END = re.compile(r'(last|partial):(\d+)')


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
            empty list freezes everything. ``last:K`` is the last K of ``module.block_list()``,
            ``partial:K`` for these and the norms behind the blocks (``partial-k`` of Jia et al.,
            ECCV 2022, https://arxiv.org/abs/2203.12119).

    Returns:
        The names of the parameters that train.

    Raises:
        ValueError: If ``patterns`` is not a list of valid expressions, one matches no name, or
            there are not so many blocks.
    """
    check_patterns(
        patterns, 'trainable',
        "; for instance ['^prompt', 'bias$'], or [] to freeze the whole backbone")
    names = [name for name, _ in module.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        matches = match_parameters(module, names, pattern)
        chosen.update(matches)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


def match_parameters(module: nn.Module, names: Sequence[str], pattern: str) -> list[str]:
    """Names of a backbone's parameters that one of the patterns of ``trainable`` stands for.

    Raises:
        ValueError: If there are none, or not so many blocks.
    """
    special = _FROM_THE_END.fullmatch(pattern)
    if special:
        matches = _behind(module, names, special[1], int(special[2]))
    else:
        matches = [name for name in names if re.search(pattern, name)]
    if not matches:
        examples = ', '.join(dict.fromkeys(name.split('.')[0] for name in names))
        raise ValueError(
            f'trainable: pattern {pattern!r} matches none of the {len(names)} parameters of '
            f'{type(module).__name__} (their names start with: {examples})'
        )
    return matches


def _behind(module: nn.Module, names: Sequence[str], kind: str, number: int) -> list[str]:
    """The names of parameters that ``last:number`` or ``partial:number`` stands for."""
    blocks = module.block_list()
    if not 1 <= number <= len(blocks):
        raise ValueError(
            f'trainable: {kind}:{number} asks for {number} of the {len(blocks)} transformer blocks '
            f'of {type(module).__name__}' + ('; name its layers by patterns' if not blocks else '')
        )
    starts = tuple(f'{block.name}.' for block in blocks[-number:])
    return [
        name for name in names
        if name.startswith(starts) or (kind == 'partial' and re.match(module.output_norm, name))
    ]
