"""The HTTP interface, on FastAPI."""

import asyncio
import contextlib
import html
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from vpt_dense.errors import UserError
from vpt_dense.serving import answers
from vpt_dense.serving.batching import Batcher, Sent
from vpt_dense.serving.guard import Guard
from vpt_dense.serving.images import check_header
from vpt_dense.serving.keys import Keys
from vpt_dense.serving.logs import log
from vpt_dense.serving.settings import Refused, Settings, check_name
from vpt_dense.serving.tasks import Folder
from vpt_dense.version import __version__

_ERRORS: dict[int | str, dict[str, Any]] = {
    '4XX': dict(description='{"error": "one line"}'), 503: dict(description='it stops')}
_CHANGES: dict[int | str, dict[str, Any]] = {
    **_ERRORS, 409: dict(description='its tasks are fixed: --backend onnx or onnx-int8')}
_FIXED = (' Its tasks are fixed, and one graph: `PUT` and `DELETE` are answered with 409, and '
          'images that are not of its size with 400.')
_BODY = dict(requestBody=dict(required=True, content={'multipart/form-data': dict(schema=dict(
    type='object', required=['images'], properties=dict(images=dict(
        type='array', items=dict(type='string', format='binary')))))}))
_FILE = dict(requestBody=dict(required=True, content={'application/octet-stream': dict(schema=dict(
    type='string', format='binary'))}))


#: The page for people: path -> file, type.
_PAGE = {
    '/': ('index.html', 'text/html; charset=utf-8'),
    '/page.css': ('page.css', 'text/css; charset=utf-8'),
    '/page.js': ('page.js', 'text/javascript; charset=utf-8')}
#: No other site may show it in a frame; what is newer is fetched.
_PAGE_HEADERS = {
    'Content-Security-Policy': "frame-ancestors 'none'", 'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-cache'}


class _Form(MultiPartParser):
    """Notes whether a body came to its end: Starlette drops a last part that did not."""

    ended = False

    def on_end(self) -> None:
        self.ended = True


def build(settings: Settings, spool: Path) -> Guard:
    """Build the application.

    Args:
        settings: Of the server.
        spool: A folder of the server's own.

    Raises:
        UserError: If tasks or keys cannot be read.
    """
    keys = Keys(settings.keys)
    folder = open_folder(settings, spool)
    batcher = Batcher(folder, settings)
    uploads = [0]

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        watcher = asyncio.create_task(_watch(folder, keys, settings.poll))
        yield
        watcher.cancel()
        await batcher.stop()

    app = FastAPI(
        title='vpt_dense', version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        redirect_slashes=False,
        description='One frozen backbone, many tasks. `Authorization: Bearer KEY` where the server '
        'was started with keys.' + _FIXED * (settings.backend != 'eager'))
    guard = Guard(app, batcher)
    _tell_errors(app)

    for path, (name, kind) in _PAGE.items():
        app.add_route(path, _file(name, kind))

    # --- does it live?

    @app.get('/healthz', summary='Whether the process lives')
    async def healthz() -> dict[str, str]:
        return dict(status='ok')

    @app.get('/readyz', summary='Whether it takes requests', responses=_ERRORS)
    async def readyz() -> dict[str, str]:
        if guard.stopping:
            raise Refused(503, 'the server stops')
        return dict(status='ready')

    @app.get('/metrics', summary='Counts, for Prometheus')
    async def metrics() -> Response:
        return Response(folder.metrics.text(), media_type='text/plain; version=0.0.4')

    @app.get('/docs', summary='This list', response_class=HTMLResponse)
    async def docs() -> str:
        return _page(app.openapi())

    # --- tasks

    @app.get('/v1/tasks', summary='The backbone and its tasks', responses=_ERRORS)
    async def tasks(request: Request) -> dict[str, Any]:
        keys.check(request.headers.get('authorization'), 'reader')
        _refuse_others(request)
        return await asyncio.to_thread(folder.describe)

    @app.put('/v1/tasks/{name}', summary='Add a task, or replace it: the body is its delta',
             responses=_CHANGES, openapi_extra=_FILE)  # fmt: skip
    async def put(request: Request, name: Annotated[str, PathParameter()]) -> JSONResponse:
        folder.check_changes()  # before keys are asked for, which would not help
        keys.check(request.headers.get('authorization'), 'admin')
        check_name(name)
        _refuse_others(request)
        with folder.upload() as path, _upload(uploads, settings):
            with path.open('wb') as stream:
                async for block in request.stream():
                    stream.write(block)
            new = await asyncio.to_thread(folder.put, name, path)
        told = await asyncio.to_thread(folder.describe)
        row = next(row for row in told['tasks'] if row['name'] == name)
        return JSONResponse(row, status_code=201 if new else 200)

    @app.delete('/v1/tasks/{name}', summary='Remove a task and its file', responses=_CHANGES)
    async def delete(request: Request, name: Annotated[str, PathParameter()]) -> dict[str, str]:
        folder.check_changes()  # before keys are asked for, which would not help
        keys.check(request.headers.get('authorization'), 'admin')
        check_name(name)
        _refuse_others(request)
        await asyncio.to_thread(folder.delete, name)
        return dict(deleted=name)

    # --- predictions

    @app.post('/v1/predict', summary='Predict images', responses=_ERRORS, openapi_extra=_BODY)
    async def predict(
        request: Request,
        task: Annotated[list[str], Query(description='Of all images; may come several times')],
        format: Annotated[Literal['json', 'png', 'npy'], Query()] = 'json',
    ) -> Response:
        keys.check(request.headers.get('authorization'), 'reader')
        _refuse_others(request, 'task', 'format')
        names = list(dict.fromkeys(task))
        for name in names:
            check_name(name)
            if name not in folder.model.tasks:
                raise folder.unknown(name)
        if format != 'json' and len(names) > 1:
            raise Refused(400, f'format={format} is for one image and one task')
        batcher.room_for(len(names))
        place = spool / uuid.uuid4().hex
        try:
            with _upload(uploads, settings):
                images = await _images(request, place, settings)
            if format != 'json' and len(images) > 1:
                raise Refused(400, f'format={format} is for one image and one task')
            found = await batcher.predict(
                images, names, max(request.scope['deadline'] - time.monotonic(), 0.001))
        finally:
            await asyncio.to_thread(shutil.rmtree, place, True)
        if format == 'json':
            results = await asyncio.to_thread(
                lambda: [answers.data(image.name, *rest) for image, *rest in found])
            return JSONResponse(dict(results=results))
        ((_, _, about, result),) = found
        write, kind = dict(
            png=(answers.png, 'image/png'), npy=(answers.npy, 'application/octet-stream'))[format]
        return Response(await asyncio.to_thread(write, about, result), media_type=kind)

    return guard


def open_folder(settings: Settings, spool: Path) -> Folder:
    """The tasks of a server, as its backend has them.

    Args:
        settings: Of the server.
        spool: A folder of its own.

    Raises:
        UserError: If tasks cannot be read, or there is no graph of them.
    """
    if settings.backend == 'eager':
        return Folder(settings, spool)
    from vpt_dense.serving.fixed import FixedFolder

    return FixedFolder(settings, spool)


def _file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with a file of the page."""
    content = Path(__file__).with_name('page').joinpath(name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind, headers=_PAGE_HEADERS)

    return answer


@contextlib.contextmanager
def _upload(uploads: list[int], settings: Settings):
    """Count bodies that come in; more than may wait are not read."""
    if uploads[0] >= settings.queue:
        raise Refused(429, f'{uploads[0]} bodies come in already; try again later',
                      {'Retry-After': '1'})  # fmt: skip
    uploads[0] += 1
    try:
        yield
    finally:
        uploads[0] -= 1


async def _images(request: Request, place: Path, settings: Settings) -> list[Sent]:
    """The images of a request, as files that are called by numbers."""
    if request.headers.get('content-type', '').partition(';')[0].strip() != 'multipart/form-data':
        raise Refused(415, 'the body must be multipart/form-data, with files in the field images')
    form = _Form(request.headers, request.stream(), max_files=settings.queue, max_fields=0)
    try:
        fields = (await form.parse()).multi_items()
    except MultiPartException as error:
        raise Refused(400, f'the multipart body: {error.message}') from error
    try:
        if not form.ended:
            raise Refused(400, 'the multipart body: its end is missing')
        for name, _ in fields:
            if name != 'images':
                raise Refused(400, f'the multipart body has a field {name[:80]!r}; files go into '
                              'images')  # fmt: skip
        if not fields:
            raise Refused(400, 'the multipart body has no file in the field images')
        return await asyncio.to_thread(_write, [file for _, file in fields], place, settings)
    finally:
        for _, file in fields:
            await file.close()


def _write(files: list[Any], place: Path, settings: Settings) -> list[Sent]:
    place.mkdir()
    images = []
    for i, file in enumerate(files):
        name = (file.filename or f'images[{i}]')[:200]
        suffix, pixels = check_header(file.file, name, settings.max_pixels)
        file.file.seek(0)
        path = place / f'{i}{suffix}'
        with path.open('wb') as stream:
            shutil.copyfileobj(file.file, stream)
        images.append(Sent(name, path, pixels))
    return images


def _refuse_others(request: Request, *known: str) -> None:
    for key in request.query_params:
        if key not in known:
            raise Refused(400, f'there is no parameter {key[:80]!r} here; there are '
                          f'{", ".join(known) or "none"}')  # fmt: skip


async def _watch(folder: Folder, keys: Keys, seconds: float) -> None:
    told = ''
    while True:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(folder.look)
            if await asyncio.to_thread(keys.read_again):
                log('keys_read')
        except (UserError, OSError) as error:
            if str(error) != told:  # not every second
                log('cannot_look', 'error', error=str(error))
            told = str(error)


# --- errors and the page


def _tell_errors(app: FastAPI) -> None:
    def tell(status: int, text: str, headers: Any = None) -> JSONResponse:
        return JSONResponse(dict(error=' '.join(text.split())), status, headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return tell(error.status, error.text, error.headers)

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404:
            text = f'there is nothing at {request.url.path[:200]}; see /docs'
        elif error.status_code == 405:
            text = f'{request.method} cannot be done with {request.url.path[:200]}; see /docs'
        return tell(error.status_code, text, error.headers)

    @app.exception_handler(RequestValidationError)
    async def of_parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return tell(400, f'parameter {first["loc"][-1]}: {first["msg"].lower()}')


def _page(schema: dict[str, Any]) -> str:
    """What can be asked for, as a page that loads nothing."""
    rows = []
    for path, methods in schema['paths'].items():
        for method, told in methods.items():
            parameters = ', '.join(each['name'] for each in told.get('parameters', ()))
            cells = (method.upper(), path, told.get('summary', ''), parameters)
            rows.append('<tr>' + ''.join(f'<td>{html.escape(each)}</td>' for each in cells))
    return ('<!doctype html><html lang="en"><meta charset="utf-8"><title>vpt_dense</title>'
            '<style>body{font:16px sans-serif;margin:2em}td,th{padding:.3em 1em .3em 0;'
            'text-align:left}</style><h1>vpt_dense ' + html.escape(__version__) + '</h1>'
            f'<p>{html.escape(schema["info"]["description"])} '
            '<a href="openapi.json">openapi.json</a> has the details.</p>'
            '<table><tr><th>method<th>path<th>what<th>parameters' + ''.join(rows) + '</table>')
