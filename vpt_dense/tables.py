"""Tables: on a screen, in a log, in Markdown. The first column is text, the others are numbers."""

import io
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table


def show(
    header: Sequence[str], rows: Sequence[Sequence[str]], title: str, caption: str | None = None
) -> None:
    """Print a table; headings break where a screen is narrow, cells do not.

    Args:
        header: Names of the columns.
        rows: Texts, one for each column.
        title: Stands above it.
        caption: Stands below it.
    """
    table = _table(header, rows, title=escape(title), caption=caption and escape(caption))
    console = Console()
    if not console.is_terminal:  # rich takes 80 columns for a file and would break the cells
        wide = console.options.update(max_width=1000)
        console = Console(width=Measurement.get(console, wide, table).maximum)
    console.print(table)


def text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in plain text, however wide it is."""
    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    console.print(_table(header, rows, box=None, pad_edge=False, padding=(0, 2, 0, 0)))
    return '\n'.join(line.rstrip() for line in console.file.getvalue().splitlines())


def markdown(
    header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1
) -> str:
    """Lay out a table in Markdown.

    Args:
        header: Names of the columns.
        rows: Texts, one for each column.
        text_columns: How many of the first columns are text.
    """
    rule = ['---'] * text_columns + ['---:'] * (len(header) - text_columns)
    return '\n'.join(f'| {" | ".join(line)} |' for line in [header, rule, *rows])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], **looks) -> Table:
    table = Table(**looks)
    for index, (name, *cells) in enumerate(zip(header, *rows, strict=True)):
        width = max(map(cell_len, [*cells, *name.split()]), default=0)
        table.add_column(escape(name), justify='right' if index else 'left', min_width=width)
    for row in rows:
        table.add_row(*map(escape, row))
    return table
