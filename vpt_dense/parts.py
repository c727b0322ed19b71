"""The methods by the names of their classes, and what they share; nothing but torch is needed."""

import sys
from typing import Any

from torch import nn

#: Name of a class -> the class: prompts, prompts in image space, adapters.
PARTS: dict[str, type[nn.Module]] = {}


def register(part: type[nn.Module]) -> type[nn.Module]:
    """Make a method known by the name of its class: ``dict(type='vpt_dense.NAME')``."""
    PARTS[part.__name__] = part
    return part


def find(kind: Any) -> Any:
    """The class that a config's ``type`` names: a class, or its name with or without scope.

    Returns:
        It; None: there is none of this name. Where configs are in use, classes in mmengine's
        registry ``MODELS`` are found too.
    """
    if not isinstance(kind, str):
        return kind
    part = PARTS.get(kind.removeprefix('vpt_dense.'))
    registry = sys.modules.get('vpt_dense.registry')
    return registry.MODELS.get(kind) if part is None and registry is not None else part


def build(config: dict[str, Any], **served: Any) -> nn.Module:
    """Build a method.

    Args:
        config: ``type``, and arguments of that class.
        **served: Arguments that the backbone fills in.

    Raises:
        KeyError: If no method is called so.
    """
    arguments = dict(config)
    kind = arguments.pop('type')
    part = find(kind)
    if part is None:
        raise KeyError(f'{kind} is no method (known: {", ".join(sorted(PARTS))})')
    return part(**served, **arguments)


class Startable(nn.Module):
    """A module that may start by a config's ``init_cfg``, as mmengine's ``BaseModule`` does.

    Args:
        init_cfg: As in :class:`mmengine.model.BaseModule`.
    """

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Start as ``init_cfg`` says; mmengine calls this."""
        if self.init_cfg:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)
