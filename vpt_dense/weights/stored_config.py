"""The config inside a checkpoint, read as data, so that a file cannot run code here.

mmengine writes ``meta.cfg`` as Python source and executes it to read it back; a ``type`` may name
any function of any package. Here only literals and ``dict(...)`` are read, and only names of the
OpenMMLab registries are let through.
"""

import ast
import os
import re
from collections.abc import Callable, Container
from typing import Any

from mmengine.config import Config

from vpt_dense import tasks
from vpt_dense.errors import UserError

#: A registered name, with or without the scope that it is looked up in; and scopes beside those of
#: the tasks.
_TYPE = re.compile(r'((\w+)\.)?[A-Za-z_]\w*')
_SCOPES = ('vpt_dense', 'mmengine', 'mmcv')

#: What a config says of one run: a test by a config that keeps it writes into that run's folder.
_RUN = ('work_dir', 'load_from', 'resume', 'experiment_name')

#: Names of one thing: batch norm has the same weights wherever a run was, a class its first name.
_SAME = (
    {'SyncBN', 'vpt_dense.CPUSyncBN'},
    {'vpt_dense.VisionTransformer', 'vpt_dense.PromptedVisionTransformer'},
)


def parse(text: object, path: str, everything: bool = False) -> Config:
    """Read the config that a checkpoint holds.

    Args:
        text: ``meta.cfg``: what ``Config.pretty_text`` gave.
        path: The checkpoint, for messages.
        everything: Check the types of data, hooks and so on as well, not of ``model`` alone.

    Returns:
        The config; it has no file name.

    Raises:
        UserError: If there is none, or it is more than literals.
    """
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'checkpoint {path} holds no config; name its config file')
    try:
        content = {}
        for statement in ast.parse(text).body:
            if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
                raise ValueError(f'line {statement.lineno} assigns nothing')
            content[ast.unparse(statement.targets[0])] = _value(statement.value)
        _check_types(content if everything else content.get('model'))
        return Config(content)
    except (ValueError, SyntaxError, RecursionError, TypeError, KeyError) as error:
        raise UserError(
            f'checkpoint {path}: the config in it is not plain data ({error}); name its config file'
        ) from error


def _value(node: ast.expr) -> Any:
    """A literal, ``dict(...)`` of such, or a number that is not finite."""
    if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'dict':
        # dict({'a.b': 1}) is what mmengine writes where a key is no name.
        if not node.args:
            return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
        if len(node.args) == 1 and isinstance(node.args[0], ast.Dict) and not node.keywords:
            return _value(node.args[0])
    if isinstance(node, ast.Dict):
        return {
            _value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        items = [_value(item) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        line = getattr(node, 'lineno', 0)
        raise ValueError(f'line {line}: {ast.unparse(node)[:60]}') from error


def forget_run(cfg: Config, place: Callable[[str], str] = os.path.relpath) -> None:
    """Leave out of a config, in place, what is of one run or of one machine alone.

    Args:
        cfg: A whole config.
        place: What an absolute path becomes; by default the path from the current folder.
    """
    for key in _RUN:
        cfg.pop(key, None)

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            for key in node:
                node[key] = visit(node[key])
        elif isinstance(node, (list, tuple)):
            return type(node)(visit(item) for item in node)
        elif isinstance(node, str) and os.path.isabs(node):
            return place(node)
        return node

    visit(cfg._cfg_dict)


def difference(a: Any, b: Any, place: str, but: Container[str] = ()) -> str:
    """The first place, dotted, where two configs differ; empty: nowhere.

    Args:
        a: A part of a config.
        b: The same part of another.
        place: Where it stands there.
        but: Keys that do not matter, at any depth.
    """
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(key for key in b if key not in a)]:
            if key in but:
                continue
            if (key in a) != (key in b):
                return f'{place}.{key}'
            found = difference(a[key], b[key], f'{place}.{key}', but)
            if found:
                return found
        return ''
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return place
        pairs = enumerate(zip(a, b, strict=True))
        return next(filter(None, (difference(*pair, f'{place}.{i}', but) for i, pair in pairs)), '')
    same = a == b or any({str(a), str(b)} <= names for names in _SAME)
    return '' if same else f'{place} ({a!r} and {b!r})'


def _check_types(node: Any) -> None:
    """Refuse a ``type`` that is no registered name: mmengine would import and call it."""
    if isinstance(node, dict):
        kind = node.get('type', '')
        found = _TYPE.fullmatch(kind) if isinstance(kind, str) else None
        if kind != '' and not (found and found[2] in (None, *_SCOPES, *tasks.scopes())):
            raise ValueError(f'type={kind!r} is no name of a registry')
        for child in node.values():
            _check_types(child)
    elif isinstance(node, (list, tuple)):
        for child in node:
            _check_types(child)
