"""The files of a config: the one that was named and all that it is based on, in three styles.

Python with ``_base_``, JSON and YAML, in any mixture; and Python with ``with read_base():``, the
style that mmengine calls lazy, where classes stand in place of their names.
"""

import ast
import contextlib
import functools
import importlib.util
import inspect
import logging
import re
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mmengine
from mmengine import registry as mmengine_registry
from mmengine.config import Config

from vpt_dense import installed
from vpt_dense.errors import UserError, is_programs, suggest

SUFFIXES = ('.py', '.json', '.yaml', '.yml')

#: Arguments of transforms that must be tuples, which JSON does not have and YAML hides.
_PAIRS = ('crop_size', 'scale', 'scale_factor', 'ratio_range')


def parse(path: str) -> Config:
    """Merge a config file and its bases.

    Args:
        path: The config file.

    Returns:
        All their keys, variables too, as plain data: a class is its name in a registry.

    Raises:
        UserError: If a file is absent, broken or its own base; the message names it.
    """
    files = walk(Path(path))
    try:
        # Left to itself mmengine takes an import above `_base_` for the other style, without bases.
        with _bases_of_packages():
            cfg = Config.fromfile(path, lazy_import=False if _has_base(files[0]) else None)
        scope = cfg.get('default_scope')
        pairs = any(file.suffix != '.py' for file in files)
        content = {
            key: _plain(value, scope, pairs)
            for key, value in cfg.items()
            if key not in cfg._imported_names
        }
        return Config(content, cfg_text=cfg.text, filename=path)
    except Exception as error:
        if is_programs(error) and not isinstance(error, (ImportError, NameError)):
            raise
        known = {str(file.resolve()) for file in files}
        places = [
            f'{frame.filename}, line {frame.lineno}: '
            for frame in traceback.extract_tb(error.__traceback__)
            if str(Path(frame.filename).resolve()) in known
        ]
        reason = str(error.args[0]) if error.args else type(error).__name__
        if places and not isinstance(error, (UserError, NameError)):
            reason = f'{type(error).__name__}: {reason}'
        reason = f'{places[-1] if places else ""}{" ".join(reason.split())}'
        raise UserError(f'config {path}: {reason}') from error


def content(path: Path) -> Mapping[str, Any]:
    """What :func:`parse` finds, only to be read: a config asks for it of its bases several times.

    It is kept while the files say the same, unless one of them imports something or holds
    ``{{ ... }}``: what they say may differ then.
    """
    texts = tuple((file.resolve(), _text(file)) for file in walk(path))
    fixed = all(_is_fixed(text, file.suffix) for file, text in texts)
    return _content(str(path), texts) if fixed else parse(str(path))._cfg_dict


@functools.lru_cache(maxsize=256)
def _content(path: str, texts: tuple[tuple[Path, str], ...]) -> Mapping[str, Any]:
    return parse(path)._cfg_dict


@functools.lru_cache(maxsize=256)
def _is_fixed(text: str, suffix: str) -> bool:
    """Whether a file says what it says whatever the environment and the modules it might import."""
    imports = (ast.Import, ast.ImportFrom)
    return '{{' not in text and not (
        suffix == '.py' and any(isinstance(node, imports) for node in ast.walk(_parsed(text))))


def walk(path: Path, asked_by: tuple[Path, ...] = ()) -> list[Path]:
    """A config file and, depth first, all its bases.

    Args:
        path: The file.
        asked_by: The files that led to it.

    Raises:
        UserError: If one is absent, broken or its own base.
    """
    if not path.is_file():
        folder = path.parent
        there = list(folder.iterdir()) if folder.is_dir() else []
        hint = suggest(path.name, [file.name for file in there if file.suffix in SUFFIXES])
        if asked_by:
            raise UserError(f'config {asked_by[-1]}: its base {path.resolve()} is no file{hint}')
        raise UserError(f'config {path}: no such file{hint}')
    if path.suffix not in SUFFIXES:
        raise UserError(f'config {path}: the name of a config ends in {", ".join(SUFFIXES)}')
    if asked_by and _has_base(path) and _is_lazy(asked_by[-1]):
        raise UserError(
            f'config {asked_by[-1]}: its base {path} has _base_, which a config that is read by '
            'read_base() cannot take; write _base_ in both'
        )
    same = [file.resolve() for file in asked_by]
    if path.resolve() in same:
        circle = [*asked_by[same.index(path.resolve()) :], path]
        raise UserError(f'config {asked_by[0]}: bases in a circle: {" -> ".join(map(str, circle))}')
    found = [path]
    for base in bases(path):
        found += [file for file in walk(base, (*asked_by, path)) if file not in found]
    return found


def bases(path: Path) -> list[Path]:
    """The files that a config file names as its bases.

    Raises:
        UserError: If the file is broken or names a package that is not there.
    """
    try:
        if _is_lazy(path):
            modules = Config._get_base_modules(list(_tree(path).body))  # which changes the list
            return [_module_file(module, path) for module in modules]
        with _substituted(path) as copy:
            names = _base_names(_text(Path(copy)), copy)
        return [_base_file(name, path) for name in names]
    except UserError:
        raise
    except Exception as error:  # of Python, JSON, YAML and the evaluation of `_base_`
        reason = str(error).splitlines() or [type(error).__name__]
        raise UserError(f'config {path}: {reason[0]}') from error


@functools.lru_cache(maxsize=256)
def _base_names(text: str, path: str) -> list[str]:
    """What a file of that text has as ``_base_``."""
    return Config._get_base_files(path)


def names(path: Path) -> tuple[set[str], set[str]]:
    """Names that a config file assigns and names that it reads, ``_base_.x`` included."""
    text = _text(path)
    assigned, read = map(set, _names_in(statements(path)))
    read |= set(re.findall(r'\{\{\s*_base_\.(\w+)', text))
    if path.suffix != '.py':
        for key, anchor in re.findall(r'^(\w+) *: *&(\w+)', text, re.MULTILINE):
            if re.search(rf'\*{anchor}\b', text):  # YAML's way to say something once
                read.add(key)
    return assigned, read


@functools.lru_cache(maxsize=256)
def _names_in(tree: ast.Module) -> tuple[frozenset[str], frozenset[str]]:
    assigned, read = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (assigned if isinstance(node.ctx, ast.Store) else read).add(node.id)
        elif isinstance(node, ast.Attribute) and getattr(node.value, 'id', None) == '_base_':
            read.add(node.attr)
    return frozenset(assigned), frozenset(read)


def statements(path: Path) -> ast.Module:
    """The statements of a config file; the keys of JSON and YAML are assignments too."""
    if path.suffix == '.py':
        return _tree(path)
    with _substituted(path) as copy:
        content = mmengine.load(copy)
    return ast.parse('\n'.join(f'{k} = {v!r}' for k, v in content.items() if k.isidentifier()))


def says(tree: ast.AST, names: tuple[str, ...]) -> bool:
    """Whether a file writes ``NAME = dict(... KEY=...)`` down to the last of ``names``."""
    for statement in tree.body:
        if not isinstance(statement, ast.Assign):
            continue
        if getattr(statement.targets[0], 'id', None) != names[0]:
            continue
        node: ast.AST | None = statement.value
        for name in names[1:]:
            if isinstance(node, ast.Call):
                node = next((k.value for k in node.keywords if k.arg == name), None)
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                node = next((v for k, v in pairs if getattr(k, 'value', None) == name), None)
            elif isinstance(node, (ast.List, ast.Tuple)) and name.isdigit():
                node = node.elts[int(name)] if int(name) < len(node.elts) else None
            else:
                node = None
        if node is not None:
            return True
    return False


@contextlib.contextmanager
def _substituted(path: Path) -> Iterator[str]:
    """A copy of a file in which mmengine's ``{{ ... }}`` are replaced as it replaces them."""
    if path.suffix == '.py' and '{{' not in _text(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder, f'config{path.suffix}'))
        Config._substitute_predefined_vars(str(path.absolute()), copy)
        logging.disable(logging.INFO)  # it will be told when the config is parsed
        try:
            Config._substitute_env_variables(copy, copy)
        finally:
            logging.disable(logging.NOTSET)
        Config._pre_substitute_base_vars(copy, copy)
        if path.suffix != '.py' and not isinstance(mmengine.load(copy), dict):
            raise UserError(f'config {path}: it holds no keys and values')
        yield copy


def _text(path: Path) -> str:
    return path.read_text(encoding='utf-8')


def _tree(path: Path) -> ast.Module:
    """The statements of a Python file; only to be read, others get the same."""
    try:
        return _parsed(_text(path))
    except SyntaxError as error:
        raise UserError(f'config {path}: {error.msg} (line {error.lineno})') from error


#: A config asks for the statements of each of its files a dozen times.
_parsed = functools.lru_cache(maxsize=256)(ast.parse)


def _has_base(path: Path) -> bool:
    """Whether a Python file assigns ``_base_``."""
    return path.suffix == '.py' and any(
        getattr(target, 'id', None) == '_base_'
        for node in _tree(path).body
        for target in getattr(node, 'targets', ())
    )


def _is_lazy(path: Path) -> bool:
    """Whether a Python file gets its bases by ``with read_base():``."""
    return path.suffix == '.py' and any(isinstance(node, ast.With) for node in _tree(path).body)


def _base_file(name: str, path: Path) -> Path:
    if '::' not in name:
        return path.parent / name
    try:
        return installed.config(name)
    except UserError as error:
        raise UserError(f'config {path}: its base {str(error).removeprefix("config ")}') from error


@contextlib.contextmanager
def _bases_of_packages() -> Iterator[None]:
    """Let mmengine find ``PACKAGE::CONFIG`` where the package is: it looks by names of pip's."""
    usual = Config._get_cfg_path

    def find(name: str, path: str) -> tuple[str, str | None]:
        if '::' not in name:
            return usual(name, path)
        package = name.partition('::')[0]  # whose scope its types have; ours say it themselves
        return str(installed.config(name)), None if package == 'vpt_dense' else package

    Config._get_cfg_path = staticmethod(find)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(usual)


def _module_file(module: str, path: Path) -> Path:
    """The file that ``from MODULE import`` means below ``with read_base():``."""
    level = len(module) - len(module.lstrip('.'))
    parts = module[level:].split('.')
    if level:
        folder = path.parent.joinpath(*['..'] * (level - 1))
    else:
        spec = importlib.util.find_spec(parts.pop(0))
        if spec is None or not spec.origin:
            raise UserError(f'config {path}: there is no package for the base {module}')
        folder = Path(spec.origin).parent
    return folder.joinpath(*parts).with_suffix('.py')


def _plain(node: Any, scope: str | None, pairs: bool) -> Any:
    """A copy with names in place of classes and, if asked for, tuples in place of ``_PAIRS``."""
    if isinstance(node, dict):
        found = {key: _plain(value, scope, pairs) for key, value in node.items()}
        if pairs and 'type' in found:
            for key in _PAIRS:
                value = found.get(key)
                if isinstance(value, list) and all(isinstance(n, (int, float)) for n in value):
                    found[key] = tuple(value)
        return found
    if type(node) in (list, tuple):
        return type(node)(_plain(item, scope, pairs) for item in node)
    if inspect.isclass(node) or inspect.isfunction(node):
        return _registered_name(node, scope) or f'{node.__module__}.{node.__qualname__}'
    return node


def _registered_name(wanted: Any, default_scope: str | None) -> str | None:
    """The name that a config without classes would give to one."""
    roots = [
        item for item in vars(mmengine_registry).values()
        if isinstance(item, mmengine_registry.Registry)
    ]  # fmt: skip
    for registry in [child for root in roots for child in (root, *root.children.values())]:
        for name, known in registry.module_dict.items():
            if known is wanted:
                bare = registry.scope in ('mmengine', default_scope)
                return name if bare else f'{registry.scope}.{name}'
    return None
