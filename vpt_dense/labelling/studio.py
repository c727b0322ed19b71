"""Asks Label Studio for images and annotations."""

import json
import time
import urllib.parse
from collections.abc import Sequence
from typing import Any

from vpt_dense import client
from vpt_dense.errors import UserError

#: Bytes of an image that are read at most.
_MOST = 200 * 2**20


class Studio:
    """A Label Studio.

    Args:
        url: Its address.
        key: A user's token: a legacy one, or a personal access token; None: only what everybody
            may have.
        hosts: Other hosts from which images are fetched, without the key.
    """

    def __init__(self, url: str, key: str | None = None, hosts: Sequence[str] = ()) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.netloc:
            raise UserError(f'--label-studio {url!r} is no URL such as http://127.0.0.1:8080')
        self.url, self._key, self._hosts = url.rstrip('/') + '/', key, set(hosts)
        self._origin = parts.scheme, parts.netloc
        self._httpx = client.httpx()
        self._client = self._httpx.Client(timeout=self._httpx.Timeout(60.0, connect=10.0))
        self._access: tuple[float, str] = (0.0, '')

    def image(self, task: dict[str, Any], field: str) -> bytes:
        """The bytes of a task's image.

        Args:
            task: As Label Studio tells it.
            field: The key of its data.

        Raises:
            UserError: If it cannot be had.
        """
        place = (task.get('data') or {}).get(field)
        if not isinstance(place, str) or not place:
            raise UserError(f'its data have no {field!r}')
        url = urllib.parse.urljoin(self.url, place)
        parts = urllib.parse.urlsplit(url)
        ours = (parts.scheme, parts.netloc) == self._origin
        if not ours and (parts.scheme not in ('http', 'https') or parts.netloc not in self._hosts):
            way = (f'allow it with --images-from {parts.netloc}'
                   if parts.scheme in ('http', 'https') else
                   'upload images, or serve them as local files')
            raise UserError(f'{place[:100]} is not of Label Studio at {self.url}: {way}')
        return self._get(url, with_key=ours)

    def project(self, number: int) -> tuple[str, list[dict[str, Any]]]:
        """The labelling config of a project, and its tasks that have annotations.

        Raises:
            UserError: If they cannot be had.
        """
        place = urllib.parse.urljoin(self.url, f'api/projects/{number}')
        try:
            config = json.loads(self._get(place + '/'))['label_config']
            tasks = json.loads(self._get(place + '/export?exportType=JSON'))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f'{place}: no answer of Label Studio ({error!r})') from error
        return config, [task for task in tasks if task.get('annotations')]

    def _get(self, url: str, with_key: bool = True) -> bytes:
        headers = self._authorization() if with_key and self._key else {}
        try:
            with self._client.stream('GET', url, headers=headers) as answer:
                if answer.status_code != 200:
                    hint = ''
                    if answer.status_code in (401, 403):
                        hint = ' (its key: --studio-key-file)'
                    raise UserError(f'{url} answers {answer.status_code}{hint}')
                content = bytearray()
                for block in answer.iter_bytes():
                    content += block
                    if len(content) > _MOST:
                        raise UserError(f'{url} is larger than {_MOST:,} bytes')
        except self._httpx.HTTPError as error:
            raise UserError(f'{url}: {" ".join(str(error).split())}') from error
        return bytes(content)

    def _authorization(self) -> dict[str, str]:
        """The header of a legacy token, or of the short-lived one that a personal one gives."""
        if self._key.count('.') != 2:  # no JSON web token
            return {'Authorization': f'Token {self._key}'}
        made, access = self._access
        if time.monotonic() - made > 120 or not access:
            place = urllib.parse.urljoin(self.url, 'api/token/refresh')
            try:
                answer = self._client.post(place, json=dict(refresh=self._key))
                access = answer.json()['access']
            except (self._httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise UserError(f'{place} does not take the key') from error
            self._access = time.monotonic(), access
        return {'Authorization': f'Bearer {access}'}
