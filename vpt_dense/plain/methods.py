"""Methods by name: what the method files (``configs/_base_/methods``) say, with options."""

import copy
import functools
import inspect
import re
import runpy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

import vpt_dense.adapters
import vpt_dense.image_prompts
import vpt_dense.prompts  # noqa: F401  with these two: methods become known by their names
from vpt_dense import installed, parts, shipped
from vpt_dense.errors import UserError, suggest
from vpt_dense.tuning import ADDED, is_added, match_parameters

if TYPE_CHECKING:
    from vpt_dense.backbones.in_place import InPlaceBackbone

#: What a method may set on a backbone; a method file may have more, for a classifier of a config.
KEYS = ('prompt', 'image_prompt', 'adapters', 'trainable')
#: Arguments that the backbone fills in.
_SERVED = ('self', 'site', 'backbone', 'img_size', 'in_channels', 'init_cfg')


def resolve(method: str | Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a method.

    Args:
        method: Its name, ``'deep'``; or settings of one's own, a dict with some of ``prompt``,
            ``image_prompt``, ``adapters`` and ``trainable``.
        options: Go over what the method file says: arguments of its class (``num_tokens=50``,
            ``rank=4``), and ``trainable``.

    Returns:
        Some of :data:`KEYS`.

    Raises:
        UserError: If there is no such method or option; the nearest name is told.
    """
    if isinstance(method, Mapping):
        name, found = 'of your own', dict(method)
        strange = [key for key in found if key not in KEYS]
        if strange:
            raise UserError(
                f'method: there is no {strange[0]!r}{suggest(str(strange[0]), KEYS)} '
                f'(known: {", ".join(KEYS)})')
    else:
        name = method
        file = _files().get(name)
        if file is None or not _is_plain(name, file):
            known = names()
            raise UserError(
                f'method {name!r} is not known{suggest(str(name), known)}; the methods are '
                f'{", ".join(known)}')
        found = copy.deepcopy(_read(file)['method'])
    found = {
        key: [dict(each) for each in value] if key == 'adapters'
        else dict(value) if isinstance(value, Mapping) else value
        for key, value in found.items() if value is not None
    }
    for part in _parts(found):
        kind = part.get('type')
        if isinstance(kind, str) and kind in parts.PARTS:
            part['type'] = parts.SCOPE + kind
    for option, value in options.items():
        if option == 'trainable':
            found[option] = value
            continue
        takers = [part for part in _parts(found) if option in arguments(part['type'])]
        if not takers:
            every = sorted({each for part in _parts(found) for each in arguments(part['type'])})
            raise UserError(
                f'method {name}: there is no option {option!r}{suggest(option, every)} '
                f'(known: {", ".join([*every, "trainable"])})')
        if len(takers) > 1:
            kinds = ' and '.join(str(part['type']).rpartition('.')[2] for part in takers)
            raise UserError(
                f'method {name}: {kinds} both have an option {option!r}; write the method as a '
                'dict with prompt=... and adapters=[...]')
        takers[0][option] = value
    return found


def names(backbone: 'InPlaceBackbone | None' = None) -> list[str]:
    """The methods that :func:`resolve` knows.

    Args:
        backbone: A tuned one; None: all methods are named. Else those that fit it.
    """
    found = {name: file for name, file in _files().items() if _is_plain(name, file)}
    if backbone is None:
        return list(found)
    own = [each for each, _ in backbone.named_parameters() if not is_added(each)]
    return [name for name, file in found.items() if _fits(_read(file)['method'], backbone, own)]


def _fits(settings: Mapping[str, Any], backbone: 'InPlaceBackbone', own: list[str]) -> bool:
    """Whether a backbone, with parameters of its own, offers what a method needs and trains."""
    needs = [parts.find(part['type']).needs for part in _parts(settings)]
    patterns = [
        pattern for pattern in settings.get('trainable') or ()
        if not any(re.search(pattern, f'{key}.') for key in ADDED)]
    try:
        for pattern in patterns:
            match_parameters(backbone, own, pattern)
    except ValueError:
        return False
    return all(need <= backbone.offers for need in needs)


def arguments(kind: Any) -> dict[str, inspect.Parameter]:
    """The options of a method's class, with their types and defaults.

    Args:
        kind: The class or its name, ``'vpt_dense.LoRA'``.

    Raises:
        UserError: If there is none of this name.
    """
    part = parts.find(kind)
    if part is None:
        known = [parts.SCOPE + name for name in parts.PARTS]
        raise UserError(f'method: there is no type {kind!r}{suggest(str(kind), known)}')
    found: dict[str, inspect.Parameter] = {}
    for each in part.__mro__:
        if not issubclass(each, nn.Module) or '__init__' not in vars(each):
            continue
        own = inspect.signature(each.__init__).parameters
        found = {**own, **found}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in own.values()):
            break
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    hidden = (*_SERVED, *getattr(part, 'settled', ()))
    return {n: p for n, p in found.items() if n not in hidden and p.kind not in kinds}


def _parts(settings: Mapping[str, Any]) -> list[dict]:
    single = [settings[key] for key in ('prompt', 'image_prompt') if settings.get(key)]
    return [*single, *(settings.get('adapters') or [])]


def _files() -> dict[str, str]:
    """Name -> method file."""
    folder = shipped.folder('configs') / '_base_/methods'
    return {name: str(folder / f'{name}.py') for name in installed.methods()}


@functools.cache
def _read(file: str) -> dict[str, Any]:
    """The variables of a method file, only to be read; it is this package's, so it may be run."""
    found = runpy.run_path(file)
    base = found.get('_base_')
    if base is not None:
        found = {**_read(str((shipped.folder('configs') / '_base_/methods' / base).resolve())),
                 **found}  # fmt: skip
    return found


def _is_plain(name: str, file: str) -> bool:
    """Whether a method is one of a vision transformer alone.

    It needs no hooks of a run, no outputs that a config chooses, and no images of another size;
    names of methods for one convolutional network end in its name.
    """
    if '_' in name:
        return False
    found = _read(file)
    front = found['method'].get('image_prompt')
    keeps = front is None or parts.find(front['type']).keeps_size
    chosen = any('outputs' in parts.find(part['type']).needs for part in _parts(found['method']))
    own = set(found['method']) <= set(KEYS) and not chosen
    return 'method_hooks' not in found and own and keeps
