"""What a server tells: lines of JSON on standard error."""

import json
import logging
import sys
import time
from typing import Any


def log(event: str, level: str = 'info', **told: Any) -> None:
    """Write a line.

    Args:
        event: What happened, a word.
        level: ``info``, ``warning`` or ``error``.
        **told: What else is known of it, plain data.
    """
    now = time.time()
    stamp = time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now)) + f'.{int(now * 1000) % 1000:03d}Z'
    line = json.dumps(dict(time=stamp, level=level, event=event, **told), default=str)
    sys.stderr.write(f'{line}\n')  # in one piece: threads write here too
    sys.stderr.flush()


class Handler(logging.Handler):
    """Turns records of :mod:`logging`, of the HTTP server's, into such lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        told = dict(text=record.getMessage())
        if record.exc_info and record.exc_info[0]:
            told['error'] = repr(record.exc_info[1])
        log('server', record.levelname.lower(), **told)
