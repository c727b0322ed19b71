"""The text of a config, formatted once.

A run asks for it five times (its log, its files, each checkpoint), and mmengine formats it anew
each time, which takes up to a second.
"""

import copy

from mmengine.config import Config

_format = Config.pretty_text.fget
_formatted: dict[str, str] = {}  # by the text before it is formatted: never out of date
_KEPT = 8


def _pretty_text(self: Config) -> str:
    """See :attr:`mmengine.config.Config.pretty_text`."""
    plain = copy.copy(self)
    object.__setattr__(plain, '_format_python_code', False)
    text = _format(plain)
    if not self._format_python_code:
        return text
    if text not in _formatted:
        if len(_formatted) >= _KEPT:
            _formatted.pop(next(iter(_formatted)), None)
        _formatted[text] = _format(self)
    return _formatted[text]


Config.pretty_text = property(_pretty_text)
