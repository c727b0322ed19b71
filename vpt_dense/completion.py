"""Completion in a shell after ``vpt-dense``, by argcomplete's protocol; configs and methods too."""

import argparse
import os
import sys
from collections.abc import Mapping
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter

from vpt_dense import errors, installed, shipped

_FILES = FilesCompleter(('py', 'yaml', 'yml', 'json'))
_PACKAGES = ('vpt_dense', 'mmseg', 'mmpretrain')
#: Arguments that take a checkpoint: `zoo::NAME` too.
_CHECKPOINTS = ('what', 'checkpoint', 'delta', 'deltas', 'file', 'first', 'second')


def begin(commands: Mapping[str, tuple[str, str]]) -> str:
    """Answer the shell, if it asks for a command; does not come back then.

    Args:
        commands: Name -> (module, what it does).

    Returns:
        The command whose parser is to answer, which it will when it parses.
    """
    typed = os.environ['COMP_LINE'][: int(os.environ['COMP_POINT'])]
    words = typed.split()
    if len(words) + typed[-1:].isspace() <= 2:
        parser = argparse.ArgumentParser()
        parser.add_argument('--version', action='store_true')
        parsers = parser.add_subparsers()
        for name, (_, text) in commands.items():
            parsers.add_parser(name, help=text)
        argcomplete.autocomplete(parser)
    if words[1] not in commands:
        sys.exit(1)
    os.environ['_ARGCOMPLETE'] = '2'  # the second word is what the parser is called
    errors.ArgumentParser.complete = _answer
    return words[1]


def _answer(parser: argparse.ArgumentParser) -> None:
    errors.ArgumentParser.complete = None  # argcomplete lets it parse what is there
    _name(parser)
    argcomplete.autocomplete(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    """Say what completes an argument, by its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _name(inner)
        elif action.dest in ('config', 'configs', 'pattern'):
            action.completer = _complete_config
        elif action.dest == 'suite':
            action.completer = _FILES
        elif action.dest in _CHECKPOINTS:
            action.completer = _complete_checkpoint
        elif action.dest in ('method', 'methods') and action.choices is None:
            action.completer = _complete_method


def _complete_config(prefix: str, **context: Any) -> list[str]:
    package, colons, _ = prefix.partition('::')
    if colons:
        return [f'{package}::{name}' for name in installed.configs(package)]
    return [*_FILES(prefix), *(f'{name}::' for name in _PACKAGES)]


def _complete_checkpoint(prefix: str, **context: Any) -> list[str]:
    if prefix.startswith(shipped.ZOO):
        return [shipped.ZOO + name for name in shipped.zoo()]
    return [*FilesCompleter()(prefix), shipped.ZOO]


def _complete_method(prefix: str, **context: Any) -> list[str]:
    return installed.methods()
