"""What stands before the application: limits of bodies in bytes and time, counts, log, errors."""

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vpt_dense.serving.batching import Batcher
from vpt_dense.serving.logs import log
from vpt_dense.serving.settings import Refused

Message = MutableMapping[str, Any]
#: Paths by which Prometheus counts; others are one.
_ROUTES = re.compile(
    r'/(healthz|readyz|metrics|docs|openapi\.json|page\.css|page\.js|v1/predict|v1/tasks)?')
#: Asked for all the time by machines that look whether the server lives: not in the log.
_QUIET = ('/healthz', '/readyz', '/metrics')
#: Seconds that are spent on reading what is left of a refused body, so that its client, which may
#: still be sending, reads the answer.
_LINGER = 1.0


class Guard:
    """An ASGI application around another.

    Args:
        app: The other.
        batcher: Knows settings and metrics.

    Attributes:
        stopping: Whether new requests are refused, since the server will end.
        open: Requests that are being answered, but those that look whether the server lives.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], batcher: Batcher) -> None:
        self.app, self.settings, self.metrics = app, batcher.settings, batcher.metrics
        self.stopping, self.open = False, 0
        self.counts = dict(accepted=0, answered=0)
        self._bodies = 0

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """Answer a request."""
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        request = _Request(self, scope, receive, send)
        if scope['path'] in _QUIET:
            await request.answer()
            return
        if self.stopping:
            await request.refuse(Refused(503, 'the server stops', {'Retry-After': '5'}))
            request.end()
            return
        self.open += 1
        self.counts['accepted'] += 1
        self.metrics.open.set(self.open)
        try:
            await request.answer()
        finally:
            self.open -= 1
            self.counts['answered'] += 1
            self.metrics.open.set(self.open)


class _Request:
    """A request, from its first byte to its answer."""

    def __init__(self, guard: Guard, scope: Message, receive: Callable, send: Callable) -> None:
        self.guard, self.scope, self._receive, self._send = guard, scope, receive, send
        self.settings = guard.settings
        self.begun = time.monotonic()
        self.deadline = scope['deadline'] = self.begun + self.settings.timeout
        self.received, self.whole, self.status = 0, False, 0

    async def answer(self) -> None:
        """Let the application answer."""
        try:
            length = dict(self.scope['headers']).get(b'content-length', b'0')
            if int(length) > self.settings.max_bytes:
                raise self._too_large()
            await self.guard.app(self.scope, self.receive, self.send)
        except Refused as error:
            await self.refuse(error)
        except Exception as error:
            log('failed', 'error', path=self.scope['path'], error=repr(error))
            if not self.status:
                await self.refuse(Refused(500, 'the server has failed; its log says why'))
        finally:
            self.end()

    async def receive(self) -> Message:
        """A part of the body, within the limits.

        Raises:
            Refused: If they are reached.
        """
        if self.whole:  # waits until the client leaves
            return await self._receive()
        left = self.deadline - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0.001))
        except asyncio.TimeoutError:
            raise Refused(408, f'the body did not come within {self.settings.timeout:g} seconds'
                          ) from None  # fmt: skip
        self.received += len(message.get('body', b''))
        self.whole = message['type'] != 'http.request' or not message.get('more_body', False)
        if self.received > self.settings.max_bytes:
            raise self._too_large()
        return message

    def _too_large(self) -> Refused:
        return Refused(413, f'the body is larger than {self.settings.max_bytes:,} bytes')

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if message['type'] == 'http.response.start':
            self.status = message['status']
            if not self.whole and self.status >= 400:
                message['headers'] = [*message['headers'], (b'connection', b'close')]
                await self._skip_rest()
        # A client that does not read its answer is left.
        await asyncio.wait_for(self._send(message), self.settings.timeout)

    async def _skip_rest(self) -> None:
        """Read what is left of the body, for a while."""
        if self.status == 408:
            return

        async def skip() -> None:
            skipped = 0
            while not self.whole and skipped < 4 * self.settings.max_bytes:
                message = await self._receive()
                skipped += len(message.get('body', b''))
                self.whole = message['type'] != 'http.request' or not message.get('more_body')

        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(skip(), _LINGER)

    async def refuse(self, error: Refused) -> None:
        """Send an error."""
        if self.status:
            return
        body = json.dumps(dict(error=error.text)).encode()
        headers = {'content-type': 'application/json', 'content-length': str(len(body)),
                   **{key.lower(): value for key, value in error.headers.items()}}
        await self.send({'type': 'http.response.start', 'status': error.status, 'headers': [
            (key.encode(), value.encode()) for key, value in headers.items()]})
        await self.send({'type': 'http.response.body', 'body': body})

    def end(self) -> None:
        """Count it."""
        seconds, path = time.monotonic() - self.begun, self.scope['path']
        route = path if _ROUTES.fullmatch(path) else 'other'
        route = '/v1/tasks/{name}' if path.startswith('/v1/tasks/') else route
        self.guard.metrics.requests.labels(route, str(self.status)).inc()
        self.guard.metrics.seconds.labels(route).observe(seconds)
        if path not in _QUIET:
            client = self.scope.get('client') or ('', 0)
            log('request', method=self.scope['method'], path=path[:200], status=self.status,
                ms=round(1000 * seconds, 1), bytes=self.received, client=client[0])
