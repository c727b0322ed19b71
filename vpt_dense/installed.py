"""Configs that come with packages, ``mmseg::setr/...``, and the methods of this one."""

import importlib.util
from pathlib import Path

from vpt_dense import tasks
from vpt_dense.errors import UserError, suggest
from vpt_dense.shipped import folder


def methods() -> list[str]:
    """The names that ``--method`` knows."""
    files = (folder('configs') / '_base_/methods').glob('*.py')
    special = tuple(f'_{task.short}' for task in tasks.TASKS.values() if task.short)
    return sorted(file.stem for file in files if not file.stem.endswith(special))


def configs(package: str) -> list[str]:
    """Names that ``PACKAGE::NAME`` knows; those of a package without configs are none."""
    where = _configs(package)
    found = sorted(where.glob('*/*.py')) if where else []
    return [file.stem if package == 'vpt_dense' else f'{file.parent.name}/{file.stem}'
            for file in found if file.parent.name != '_base_']  # fmt: skip


def _configs(package: str) -> Path | None:
    """Where the configs of a package are; None: there is no such package."""
    if package == 'vpt_dense':
        return folder('configs')
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    return Path(spec.origin).parent / '.mim/configs' if spec and spec.origin else None


def config(name: str) -> Path:
    """The file that ``PACKAGE::CONFIG`` means.

    Args:
        name: The config's path below the package's configs; for ``vpt_dense`` the name alone is
            enough: ``vpt_dense::setr_vit-l_ade20k``.

    Raises:
        UserError: If the package is not installed, comes without configs or has no such one.
    """
    package, _, rest = name.partition('::')
    where = _configs(package)
    if where is None:
        raise UserError(f'config {name}: there is no package {package!r}')
    for file in (where / rest, where / f'{rest}.py'):
        if file.is_file():
            return file
    there = {path.stem: path for path in sorted(where.glob('*/*.py'))}
    stem = rest.removesuffix('.py')
    if package == 'vpt_dense' and stem in there:
        return there[stem]
    if not where.is_dir():
        raise UserError(f'config {name}: {package} was installed without its configs')
    raise UserError(
        f'config {name}: {package} has no such config{suggest(stem.rpartition("/")[2], there)}')
