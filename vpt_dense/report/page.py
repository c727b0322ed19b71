"""Writes a page: one template, one file, which asks no network for anything."""

import base64
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpt_dense import safe_files
from vpt_dense.version import __version__

#: Of the file, in the folder of a run or a comparison.
NAME = 'report.html'
_FOLDER = Path(__file__).parent


def render(page: Mapping[str, Any]) -> str:
    """A page as HTML; every text in it is escaped.

    The page's own policy lets its one script run, which is known by its digest, and load pictures
    out of the file alone: text that were taken for markup could do nothing either.

    Args:
        page: See :func:`vpt_dense.report.run.describe`.
    """
    from markupsafe import Markup

    script = (_FOLDER / 'page.js').read_text(encoding='utf-8')
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template('page.html').render(
        page=page, version=__version__, digest=digest, script=Markup(script),
        style=Markup((_FOLDER / 'page.css').read_text(encoding='utf-8')))


@functools.cache
def _environment() -> Any:
    """Compiles the template once: a run writes its page at each validation."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined)


def write(page: Mapping[str, Any], out: Path) -> Path:
    """Write a page as a whole.

    Args:
        page: See :func:`render`.
        out: The file.

    Returns:
        The file.
    """
    # A surrogate, as names of files have it that are no UTF-8, is no text that can be written.
    text = render(page).encode('utf-8', 'replace').decode()
    safe_files.write_text(out, text)
    return out
