"""The methods by the names of their classes; nothing of mmengine is needed."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Name of a class -> the class: prompts, prompts in image space, adapters.
PARTS: dict[str, 'type[nn.Module]'] = {}
#: What stands before these names.
SCOPE = 'vpt_dense.'


def register(part: 'type[nn.Module]') -> 'type[nn.Module]':
    """Make a method known by the name of its class: ``dict(type='vpt_dense.NAME')``."""
    PARTS[part.__name__] = part
    return part


def find(kind: Any) -> Any:
    """The class that a config's ``type`` names: a class, or ``vpt_dense.NAME``.

    Returns:
        It; None: there is none of this name. Where configs are in use, classes in mmengine's
        registry ``MODELS`` are found too.
    """
    if not isinstance(kind, str):
        return kind
    part = PARTS.get(kind.removeprefix(SCOPE)) if kind.startswith(SCOPE) else None
    registry = sys.modules.get('vpt_dense.registry')
    return registry.MODELS.get(kind) if part is None and registry is not None else part


def build(config: dict[str, Any], **served: Any) -> 'nn.Module':
    """Build a method.

    Args:
        config: ``type``, and arguments of that class.
        **served: Arguments that the backbone fills in.

    Raises:
        KeyError: If no method is called so.
    """
    arguments = dict(config)
    kind = arguments.pop('type')
    part = PARTS.get(kind.removeprefix(SCOPE)) if isinstance(kind, str) else kind
    registry = sys.modules.get('vpt_dense.registry')
    if registry is not None and isinstance(kind, str) and not (part and kind.startswith(SCOPE)):
        return registry.MODELS.build(config, default_args=served)  # of another scope, or unknown
    if part is None:
        raise KeyError(f'{kind} is no method (known: {", ".join(sorted(PARTS))})')
    return part(**served, **arguments)
