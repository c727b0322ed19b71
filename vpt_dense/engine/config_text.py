"""The text of a config, every statement of it formatted once.

A run asks for it five times (its log, its files, each checkpoint), and mmengine formats it anew
each time, which takes up to a second. Configs of one process have most statements in common.
"""

import copy
from typing import Any

from mmengine.config import Config, ConfigDict

_format = Config.pretty_text.fget
_formatted: dict[str, str] = {}  # by the text before it is formatted: never out of date
_KEPT = 128


def _pretty_text(self: Config) -> str:
    """See :attr:`mmengine.config.Config.pretty_text`."""
    keys = sorted(self.to_dict(), key=str)
    if not self._format_python_code or not all(str(key).isidentifier() for key in keys):
        return _format(self)  # other keys make it one dict
    return ''.join(_statement(self, key, self._cfg_dict[key]) for key in keys)


def _statement(cfg: Config, key: str, value: Any) -> str:
    part = copy.copy(cfg)
    object.__setattr__(part, '_cfg_dict', ConfigDict({key: value}))
    object.__setattr__(part, '_format_python_code', False)
    text = _format(part)
    if text not in _formatted:
        if len(_formatted) >= _KEPT:
            _formatted.pop(next(iter(_formatted)), None)
        object.__setattr__(part, '_format_python_code', True)
        _formatted[text] = _format(part)
    return _formatted[text]


Config.pretty_text = property(_pretty_text)
