"""``--cfg-options KEY=VALUE``: read as the config means it, and put where it belongs.

A value is a number, ``True``, ``False``, ``None``, a word, or, in brackets, a list ``[a,b]``, a
tuple ``(a,b)`` or a dict ``{a: 1}``; ``a,b`` is a list too. What the config holds at the place
decides what is ambiguous: text stays text, whatever is written (``2024``, ``/data/a,b``), and so do
the items of a list of texts. In quotes everything is text.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict

from vpt_dense.errors import UserError
from vpt_dense.tree import get

#: Settings that are text (``classes``: a list of texts) where the config does not hold them yet.
_TEXTS = frozenset(
    'work_dir load_from experiment_name log_level default_scope launcher type data_root ann_file '
    'img_path seg_map_path depth_map_path normal_map_path img_suffix seg_map_suffix map_suffix '
    'checkpoint prefix save_dir out_dir null_space'
    .split()
)
#: Settings that hold a word in place of a number: 'classes', 'dynamic'.
_NUMBERS = frozenset(('num_tokens', 'loss_scale'))

_CONSTANTS = {
    'None': None, 'null': None, 'True': True, 'true': True, 'False': False, 'false': False,
}  # fmt: skip
_CLOSING = {'[': ']', '(': ')', '{': '}'}
_QUOTED = re.compile(r"""\s*r?(?:'([^']*)'|"([^"]*)")\s*""")


class _Bare(str):
    """Text without quotes: what it means depends on the place."""


def read(cfg: Config, options: Iterable[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` arguments.

    Args:
        cfg: The config that they override.
        options: The arguments.

    Returns:
        Dotted key -> value.

    Raises:
        UserError: If an argument cannot be read, or is a word where the config has a switch.
    """
    values = {}
    for option in options:
        key, equals, text = (part.strip() for part in option.partition('='))
        held = get(cfg, key)
        try:
            if not (key and equals):
                raise ValueError('there is no =' if key else 'there is no key')
            values[key] = _convert(_split(text, held, key.rpartition('.')[2]), held, key)
        except ValueError as error:
            raise UserError(
                f'--cfg-options {option}: KEY=VALUE was expected, a list as KEY=[a,b], a dict as '
                f'KEY={{a: 1}}, text with brackets in quotes ({error})'
            ) from error
    return values


def place(cfg: Config, options: Mapping[str, Any]) -> None:
    """Put values where dotted keys say, in place.

    A dict goes over a dict key by key (``_delete_=True`` in it: instead of it) and replaces
    anything else. None above a key becomes a dict. Objects that two keys share are not changed for
    the other one.
    """
    for key, value in options.items():
        first, *rest = key.split('.')
        cfg[first] = _placed(cfg.get(first), rest, value)


def _placed(node: Any, path: Sequence[str], value: Any) -> Any:
    """A copy of ``node`` with the value at the path."""
    if path and isinstance(node, (list, tuple)):
        items = list(node)
        items[int(path[0])] = _placed(items[int(path[0])], path[1:], value)
        return type(node)(items)
    if path:
        node = ConfigDict() if node is None else node.copy()
        node[path[0]] = _placed(node.get(path[0]), path[1:], value)
        return node
    if not isinstance(value, dict):
        return value
    merged = node if isinstance(node, dict) and not value.get('_delete_') else ConfigDict()
    for key, inner in value.items():
        if key != '_delete_':
            merged = _placed(merged, [key], inner)
    return merged


# --- reading ---------------------------------------------------------------------------------


def _is_text(held: Any, name: str) -> bool:
    return name in _TEXTS or (isinstance(held, str) and name not in _NUMBERS)


def _is_texts(held: Any, name: str) -> bool:
    listed = isinstance(held, (list, tuple)) and len(held) > 0
    return name == 'classes' or (listed and all(isinstance(item, str) for item in held))


def _split(text: str, held: Any, name: str) -> Any:
    """Read a value's brackets and quotes; what they leave open is :class:`_Bare`."""
    if _QUOTED.fullmatch(text) or (name in _TEXTS and not isinstance(held, dict)):
        return _quoted(text)
    if text[:1] in _CLOSING:
        value, end = _item(text, 0, '')
        if end == len(text):
            return value
    if _is_text(held, name):
        return _Bare(text)
    if not text:
        raise ValueError('there is no value')
    items, end = _item(f'[{text}]', 0, '')
    if end < len(text) + 2:
        raise ValueError('a bracket too many')
    return items if len(items) > 1 or _is_texts(held, name) or text.endswith(',') else items[0]


def _quoted(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    return (quoted[1] or quoted[2] or '') if quoted else _Bare(text)


def _item(text: str, start: int, ends: str) -> tuple[Any, int]:
    """Read one value that begins at ``start``; return it and where it ended, at one of ``ends``.

    Raises:
        ValueError: If brackets do not match.
    """
    start += len(text[start:]) - len(text[start:].lstrip())
    opening = text[start : start + 1]
    if opening in _CLOSING:
        value, end = _group(text, start)
        end += len(text[end:]) - len(text[end:].lstrip())
        if not ends or text[end : end + 1] in ends:
            return value, end
    quoted = _QUOTED.match(text, start)
    if quoted and text[quoted.end() : quoted.end() + 1] in tuple(ends):
        return quoted[1] or quoted[2] or '', quoted.end()
    open_brackets, end = [], start
    while end < len(text) and (open_brackets or text[end] not in ends):
        if text[end] in _CLOSING:
            open_brackets.append(_CLOSING[text[end]])
        elif open_brackets and text[end] == open_brackets[-1]:
            open_brackets.pop()
        end += 2 if text[end] == '\\' else 1
    if end >= len(text):
        raise ValueError(f'{text} lacks a closing bracket')
    return _Bare(text[start:end].strip()), end


def _group(text: str, start: int) -> tuple[Any, int]:
    """Read a list, tuple or dict that opens at ``start``; return it and what comes behind it."""
    opening, closing = text[start], _CLOSING[text[start]]
    items, keys, end = [], [], start + 1
    while text[end:].strip()[:1] != closing:
        if opening == '{':
            key, end = _item(text, end, ':')
            keys.append(str(key))
            end += 1
        item, end = _item(text, end, f',{closing}')
        items.append(item)
        end += text[end] == ','
    end = text.index(closing, end) + 1
    if opening == '{':
        return dict(zip(keys, items, strict=True)), end
    return (tuple(items) if opening == '(' else items), end


def _convert(value: Any, held: Any, key: str) -> Any:
    """Give text without quotes the type that belongs at the key."""
    name = key.rpartition('.')[2]
    if isinstance(value, dict):
        inner = held if isinstance(held, dict) else {}
        return {k: _convert(v, inner.get(k), f'{key}.{k}') for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if _is_texts(held, name):
            return type(value)(str(v) if isinstance(v, str) else _convert(v, None, key)
                               for v in value)
        return type(value)(_convert(v, None, '') for v in value)
    if not isinstance(value, _Bare):
        return value
    if name in _TEXTS or (_is_text(held, name) and value not in ('True', 'False')):
        return None if value == 'None' else str(value)
    if value in _CONSTANTS:
        return _CONSTANTS[value]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    if value.startswith('dict('):
        raise ValueError("a dict is written {'type': 'X'}")
    if isinstance(held, bool):
        raise UserError(
            f'--cfg-options {key}={value}: the config has {held} there, and {value!r} is neither '
            'True nor False (in quotes it is taken as a word)'
        )
    return str(value)
