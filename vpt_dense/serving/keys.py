"""Keys of clients: a file holds their SHA-256, so that who reads it has none."""

import hashlib
import hmac
import json
import os
import re
import secrets
from pathlib import Path

from vpt_dense.errors import UserError
from vpt_dense.serving.settings import Refused

ROLES = ('reader', 'admin')
_HOW = {'WWW-Authenticate': 'Bearer'}


def new_key() -> tuple[str, str]:
    """A key at random (256 bits), and its SHA-256 as the file of keys has it."""
    key = secrets.token_urlsafe(32)
    return key, digest(key.encode())


def digest(key: bytes) -> str:
    """SHA-256 of a key, in hexadecimal digits."""
    return hashlib.sha256(key).hexdigest()


class Keys:
    """The file of keys: ``{"SHA-256 of a key": "reader" or "admin"}``.

    Args:
        path: Of the file; None: there are no keys.

    Raises:
        UserError: If it is no such file.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._roles: dict[str, str] = {}
        self._seen: tuple | None = None
        if path is not None:
            self.read_again()

    def read_again(self) -> bool:
        """Read the file if it has changed; a file that is wrong leaves the keys as they were.

        Returns:
            Whether it was read.

        Raises:
            UserError: If it is wrong; said once for a file.
        """
        if self.path is None:
            return False
        try:
            state = self.path.stat()
            seen = (state.st_mtime_ns, state.st_size, state.st_ino)
            if seen == self._seen:
                return False
            self._seen = seen
            content = json.loads(self.path.read_bytes())
        except OSError as error:
            if self._seen == (error.errno,):
                return False
            self._seen = (error.errno,)
            raise UserError(f'--keys {self.path}: {os.strerror(error.errno).lower()}') from error
        except ValueError as error:
            raise UserError(f'--keys {self.path} is no JSON ({error})') from error
        if not isinstance(content, dict) or not content:
            raise UserError(f'--keys {self.path} must hold {{"SHA-256 of a key": "reader"}}; see '
                            'vpt-dense serve --new-key reader')  # fmt: skip
        for key, role in content.items():
            if not re.fullmatch('[0-9a-f]{64}', key):
                raise UserError(f'--keys {self.path}: {key[:8]!r}... is no SHA-256 (64 digits of '
                                '0-9a-f); never put a key itself there')  # fmt: skip
            if role not in ROLES:
                raise UserError(f'--keys {self.path}: a role is reader or admin, found {role!r}')
        self._roles = content
        return True

    def check(self, header: str | None, role: str) -> None:
        """Check what a client may do.

        Args:
            header: ``Authorization`` of its request.
            role: What is needed: ``reader`` or ``admin``.

        Raises:
            Refused: If it may not.
        """
        if self.path is None:
            if role == 'admin':
                raise Refused(403, 'tasks can be changed only by holders of a key: start the '
                              'server with --keys FILE (vpt-dense serve --new-key admin)')
            return
        kind, _, key = (header or '').partition(' ')
        if kind.lower() != 'bearer' or not key.strip():
            raise Refused(401, 'a key is needed: Authorization: Bearer KEY', _HOW)
        asked, found = digest(key.strip().encode('utf-8', 'surrogateescape')), None
        for known, its in self._roles.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, asked):
                found = its
        if found is None:
            raise Refused(401, 'the key is not known here', _HOW)
        if role == 'admin' and found != 'admin':
            raise Refused(403, 'this key may predict; changing tasks needs one of the role admin')
