"""The process: listens, and ends when it is told to, without losing what it has accepted."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vpt_dense.errors import UserError
from vpt_dense.serving import app as apps
from vpt_dense.serving.guard import Guard
from vpt_dense.serving.logs import Handler, log
from vpt_dense.serving.settings import Settings

#: Seconds within which the head of a request must have come, after its first byte or, of the first
#: one, the connection.
HEAD_SECONDS = 10.0
HEAD_BYTES = 2**15
#: Connections at the same time beside those that --queue lets in.
_MORE_CONNECTIONS = 256


class _Protocol(H11Protocol):
    """uvicorn's, with a limit to the time of a head and errors as JSON."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self.config.most_connections:
            self._answer(503, 'too many connections')

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._head is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
            self._answer(408, f'the head of the request did not come within {HEAD_SECONDS:g} '
                         'seconds')  # fmt: skip

    def send_400_response(self, msg: str) -> None:
        self._stop_waiting()
        self._answer(400, f'{msg.rstrip(".")} (a head has at most {HEAD_BYTES:,} bytes)')

    def _answer(self, status: int, text: str) -> None:
        body = b'{"error": "%s"}' % text.encode()
        with contextlib.suppress(h11.LocalProtocolError):  # an answer is under way
            for event in (
                h11.Response(status_code=status, headers=[
                    (b'content-type', b'application/json'), (b'connection', b'close'),
                    (b'content-length', str(len(body)).encode())]),
                h11.Data(data=body), h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b'')
        self.transport.close()


class _Server(uvicorn.Server):
    """Leaves signals to :func:`serve`; uvicorn's own end would be that of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> None:
    """Serve until a signal comes.

    Args:
        settings: What to serve.

    Raises:
        UserError: If it cannot be.
    """
    for name in ('uvicorn', 'uvicorn.error'):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], False
        logger.setLevel(logging.WARNING)
    logging.getLogger('uvicorn').addHandler(Handler())
    logging.getLogger('uvicorn.error').propagate = True
    listener = _listen(settings)
    # GDAL, which reads some kinds of images, shall not follow what a file says of others.
    os.environ.setdefault('GDAL_SKIP', 'VRT,WMS,WMTS,WCS,HTTP,GTI,STACTA,STACIT')
    with listener, tempfile.TemporaryDirectory(prefix='vpt-dense-serve-') as spool:
        guard = apps.build(settings, Path(spool))
        config = uvicorn.Config(
            guard, http=_Protocol, ws='none', loop='asyncio', lifespan='on', log_config=None,
            access_log=False, server_header=False, timeout_keep_alive=15, backlog=1024,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=HEAD_BYTES)
        config.most_connections = settings.queue + _MORE_CONNECTIONS
        asyncio.run(_run(_Server(config), guard, listener, settings))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ':' in settings.host else socket.AF_INET
    # By the protocol asyncio tells that connections are TCP's, and sends small packets at once. The
    # body of an answer waited 40 ms otherwise, for the client's acknowledgement of its head.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise UserError(f'--host {settings.host} --port {settings.port}: '
                        f'{(error.strerror or str(error)).lower()}') from error
    return listener


async def _run(
    server: _Server, guard: Guard, listener: socket.socket, settings: Settings
) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def stop(number: int) -> None:
        if told.is_set():  # asked twice: at once
            log('stopped', 'warning', signal=signal.Signals(number).name, **guard.counts)
            os._exit(1)
        told.set()
        guard.stopping = True
        log('stopping', signal=signal.Signals(number).name, open=guard.open)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    listener.listen(1024)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    host, port = listener.getsockname()[:2]
    log('ready', url=f'http://{f"[{host}]" if ":" in host else host}:{port}')
    ended = asyncio.create_task(told.wait())
    await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
    deadline = loop.time() + settings.timeout
    quiet = 0
    while quiet < 5 and loop.time() < deadline and not serving.done():
        # What was on its way when the signal came is accepted and answered: 503 is an answer.
        quiet = 0 if guard.open else quiet + 1
        await asyncio.sleep(0.05)
    server.should_exit = True
    await serving
    ended.cancel()
    log('stopped', **guard.counts)
