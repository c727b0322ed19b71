"""What comes along with the package, beside its modules: configs, samples, tuned models.

A wheel holds it in ``.mim``, as those of the OpenMMLab packages do; a checkout has it beside the
package. What was trained here is a delta in ``configs/*/deltas``: ``zoo::NAME`` is its path,
wherever a checkpoint is named.
"""

import os
from pathlib import Path

from vpt_dense.errors import UserError, suggest

_PACKAGE = Path(__file__).resolve().parent

#: How the name of a model of the zoo begins where a path could stand.
ZOO = 'zoo::'


def is_checkout() -> bool:
    """Whether this is a clone, not an installed package."""
    return not (_PACKAGE / '.mim').is_dir()


def folder(name: str) -> Path:
    """``configs``, ``pretrain``, ``samples`` or ``tools`` of this package."""
    inside = _PACKAGE / '.mim' / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def zoo() -> dict[str, Path]:
    """Name -> delta of every model of the zoo."""
    return {file.stem: file for file in sorted(folder('configs').glob('*/deltas/*.safetensors'))}


def place(path: str | os.PathLike) -> Path:
    """The file that a path means: ``~`` is the home, ``zoo::NAME`` a model of the zoo.

    Raises:
        UserError: If the zoo has no such model.
    """
    text = os.fspath(path)
    if not text.startswith(ZOO):
        return Path(text).expanduser()
    name, known = text.removeprefix(ZOO), zoo()
    if name not in known:
        raise UserError(f'{text}: the zoo has no such model{suggest(name, known)}; see '
                        'vpt-dense zoo')
    return known[name]
