"""What tools and runs write: nothing that is there already goes without being asked."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from vpt_dense.errors import UserError


def add_force_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a tool overwrite."""
    parser.add_argument('--force', action='store_true', help='overwrite what is there already')


def check_free(
    outs: Iterable[str | Path], force: bool, sources: Iterable[str | Path] = ()
) -> None:
    """Refuse to write over what is there, before anything is computed.

    Args:
        outs: Files that will be written, or folders that will get files.
        force: Whether the user lets them be overwritten.
        sources: Files that are read; they are never overwritten.

    Raises:
        UserError: If a file is there, or a folder that is not empty; or one is a source.
    """
    read = {Path(source).expanduser().resolve() for source in sources}
    for out in map(Path, outs):
        if out.resolve() in read:
            raise UserError(f'{out} is what is read; name another file to write')
        there = any(out.iterdir()) if out.is_dir() else out.exists()
        if there and not force:
            raise UserError(
                f'{out} is {"not empty" if out.is_dir() else "there already"}; name another, or '
                'overwrite it with --force'
            )


def new_file(path: str) -> Path:
    """As ``type`` of an argument: the name of a file that is not there yet."""
    if Path(path).exists():
        raise argparse.ArgumentTypeError(f'{path} is there already; name another, or remove it')
    return Path(path)
