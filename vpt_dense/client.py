"""A client of ``vpt-dense serve``: ``Client('http://server:8000').predict('photo.jpg', 'roads')``.

It needs no framework: NumPy, Pillow and httpx (``pip install 'vpt-dense[client]'``).
"""

import base64
import email.utils
import io
import os
import random
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense.errors import UserError

#: Seconds that are waited before the first repetition; each further one waits twice as long.
FIRST_PAUSE = 0.5
#: The longest pause in seconds. A server that asks for a longer one has no time for this client.
LONGEST_PAUSE = 60.0
#: Answers of a server that did nothing with a request: it may be sent again.
BUSY = (429, 503)
#: Answers of what stands before servers, of one that was lost with a request; a server's own of
#: these say why in JSON, and would be the same again.
LOST = (500, 502)

#: The variable of the environment that holds a key, where no file is named.
KEY = 'VPT_DENSE_KEY'

#: A path, the bytes of a file, a PIL image, or an array (H, W, 3) or (H, W), uint8 (R first).
Image = Any


class ServerError(UserError):
    """A server cannot be reached, or refuses.

    Attributes:
        status: The HTTP status; None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Task:
    """A task that a server has.

    Attributes:
        name: What requests call it.
        kind: ``segmentation``, ``classification``, ``depth`` or ``normals``.
        classes: The names of its classes; none of depth and normals.
        palette: Of each class its colour, [R, G, B] from 0 to 255; None where there is none.
        ids: Segmentation: of each class the id that it has in the annotations.
        sha256: Of the file that it was read from.
        bytes: The size of that file.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] | None = None
    ids: tuple[int, ...] = ()
    sha256: str = ''
    bytes: int = 0


@dataclass(frozen=True)
class Result:
    """What a task finds in an image.

    Attributes:
        image: The name of the image.
        task: The name of the task.
        kind: As in :class:`Task`.
        labels: Segmentation: (H, W) uint8, or uint16 for more than 255 classes: of each pixel the
            position of its class; the greatest number of that type where there is no data.
        shares: Segmentation: class -> its part of the pixels, 0 to 1.
        scores: Classification: (class, probability), the most probable first.
        values: Depth: (H, W) float32 in metres. Normals: (H, W, 3) float32.
    """

    image: str
    task: str
    kind: str
    labels: np.ndarray | None = None
    shares: dict[str, float] = field(default_factory=dict)
    scores: tuple[tuple[str, float], ...] = ()
    values: np.ndarray | None = None


def read_result(record: dict[str, Any]) -> Result:
    """A result from the JSON of a server.

    Args:
        record: An entry of ``results``.

    Raises:
        ServerError: If something is absent, or does not have the size that it says.
    """
    try:
        kind = str(record['kind'])
        named = dict(image=str(record['image']), task=str(record['task']), kind=kind)
        if kind == 'classification':
            return Result(**named, scores=tuple(
                (str(row['class']), float(row['score'])) for row in record['scores']))
        size = int(record['height']), int(record['width'])
        if kind == 'segmentation':
            array = read_labels(base64.b64decode(record['labels_png'], validate=True))
            result = Result(**named, labels=array, shares={
                str(name): float(share) for name, share in record['shares'].items()})
        else:
            array = np.load(io.BytesIO(base64.b64decode(record['values_npy'], validate=True)),
                            allow_pickle=False)
            result = Result(**named, values=array)
    except (KeyError, TypeError, ValueError, AttributeError, EOFError) as error:
        raise ServerError(f'the answer is no result of vpt-dense serve ({error!r})') from error
    if array.shape[:2] != size:
        raise ServerError(
            f'the answer for {result.image} has a map of {array.shape[1]}x{array.shape[0]} for an '
            f'image of {size[1]}x{size[0]}')
    return result


def read_labels(png: bytes) -> np.ndarray:
    """A label map from a PNG of one channel: (H, W) uint8 or uint16.

    Raises:
        ValueError: If it is none.
    """
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(png), formats=['PNG']) as image:
            mode, array = image.mode, np.asarray(image)
    except OSError as error:
        raise ValueError(f'no PNG: {error}') from error
    if mode == 'L':
        return array
    if mode in ('I;16', 'I'):  # which one depends on Pillow's version
        return array.astype(np.uint16)
    raise ValueError(f'a label map has one channel of 8 or 16 bits, this PNG is {mode}')


def encode(image: Image, position: int = 0) -> tuple[str, bytes]:
    """Name and bytes of an image, as they are sent.

    Args:
        image: See :data:`Image`. Files and bytes are sent as they are.
        position: The number in the name of what has none.

    Raises:
        UserError: If there is no such file, or it is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        if not path.is_file():
            raise UserError(f'{path}: no such file')
        return path.name, path.read_bytes()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f'image_{position}', bytes(image)
    import PIL.Image
    import PIL.ImageOps

    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(
                'an array is (H, W, 3) or (H, W) of uint8, R first; found '
                f'{image.shape} of {image.dtype}')
        image = PIL.Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, PIL.Image.Image):
        raise UserError(
            'an image is a path, bytes, a PIL image or an array, not a '
            f'{type(image).__name__}')
    image = PIL.ImageOps.exif_transpose(image)  # PNG would lose the tag
    if image.mode not in ('L', 'RGB'):
        raise UserError(
            f"a PIL image of mode {image.mode} is not of 8 bits and grey or R, G, B: "
            "image.convert('RGB')")
    stream = io.BytesIO()
    image.save(stream, 'PNG', compress_level=1)
    return f'image_{position}.png', stream.getvalue()


def read_key(file: str | None) -> str | None:
    """The key: the first line of a file, or that of the environment; None: there is none.

    Raises:
        UserError: If the file is empty, or no text.
    """
    if file is None:
        return os.environ.get(KEY)
    try:
        lines = Path(file).read_text(encoding='utf-8').split()
    except UnicodeDecodeError as error:
        raise UserError(f'--key-file {file} is no text') from error
    if len(lines) != 1:
        raise UserError(f'--key-file {file} must hold one key, found {len(lines)} words')
    return lines[0]


def httpx() -> Any:
    """The httpx that is installed: httpx2, its successor, for Python 3.11 and newer.

    Raises:
        UserError: If there is none.
    """
    try:
        import httpx2 as library
    except ImportError:
        try:
            import httpx as library
        except ImportError as error:
            raise UserError(
                "the client needs httpx, which is not installed: pip install 'vpt-dense[client]'"
            ) from error
    return library


@dataclass(frozen=True)
class _Request:
    """A request; ``again`` says after which failures it may be sent once more.

    ``again`` is ``'always'``, or ``'unsent'``: if it never reached the server, or that says that
    it did nothing.
    """

    method: str
    path: str
    again: str = 'always'
    params: Sequence[tuple[str, str]] = ()
    files: Sequence[tuple[str, tuple[str, bytes]]] = ()
    content: bytes | None = None


#: What :meth:`_Base._exchange` asks of the one who sends and waits: a request, or seconds.
_Steps = Generator['_Request | float', Any, Any]


class _Base:
    """What both clients do: what is sent, when again, and what an answer means.

    Args:
        url: The server's: ``http://host:8000``.
        key: That of a server that wants one.
        timeout: Seconds that an answer may take; to connect: 10.
        retries: How often a request is repeated where that is safe: when the server is busy (429,
            503), cannot be reached, or was lost behind a proxy (500, 502 that no server of ours
            explains). It waits as long as the server says, or 0.5 s, 1 s, 2 s, ...

    Raises:
        UserError: If the URL is none, or httpx is not installed.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 120.0, retries: int = 4,
    ) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ('http', 'https') or not parts.netloc:
            raise UserError(f'{url!r} is no URL of a server, such as http://127.0.0.1:8000')
        key = key and key.strip()
        if key and not (key.isascii() and key.isprintable()):
            raise UserError('the key has characters that no key has; is it the right file?')
        self.url, self.retries, self.timeout = url.rstrip('/'), retries, timeout
        self._httpx = httpx()
        self._settings = dict(
            base_url=f'{self.url}/', timeout=self._httpx.Timeout(timeout, connect=10.0),
            headers={'Authorization': f'Bearer {key}'} if key else {})

    def _exchange(self, request: _Request) -> _Steps:
        """Send until there is an answer; yields requests and pauses, returns the response."""
        for attempt in range(self.retries + 1):
            pause = FIRST_PAUSE * 2**attempt * random.uniform(0.8, 1.2)
            answer = yield request
            if isinstance(answer, Exception):
                never = isinstance(
                    answer, (self._httpx.ConnectError, self._httpx.ConnectTimeout))
                if isinstance(answer, self._httpx.TimeoutException):
                    seconds = 10 if never else self.timeout
                    reason = f'no answer in {seconds:g} s'
                    safe = never  # it may still be at work on it: more of the same would not help
                else:
                    reason = re.sub(r'^\[Errno -?\d+\] ', '', str(answer)).lower()
                    reason = reason or type(answer).__name__
                    safe = never or request.again == 'always'
                failure = ServerError(f'{self.url}: {" ".join(reason.split())}')
                failure.__cause__ = answer
            elif answer.status_code in BUSY:
                failure, safe = self._refusal(answer), True
                asked = _seconds(answer.headers.get('Retry-After', ''))
                if asked is not None:
                    pause, safe = max(asked, pause), asked <= LONGEST_PAUSE
            elif answer.status_code < 300:
                return answer
            else:
                failure = self._refusal(answer)
                safe = (answer.status_code in LOST and request.again == 'always'
                        and _reason(answer) is None)
            if not safe or attempt == self.retries:
                raise failure
            yield min(pause, LONGEST_PAUSE)
        raise AssertionError('unreachable')

    def _refusal(self, answer: Any) -> ServerError:
        """An answer that is none as an error of one line."""
        status = answer.status_code
        said = _reason(answer)
        if said is None:
            said = f'it answers {status} {answer.reason_phrase}'.rstrip()
            if not 429 <= status <= 504:
                said += '; is it vpt-dense serve?'
        hint = ' (give its key)' if status == 401 and 'Authorization' not in self._headers else ''
        return ServerError(f'{self.url}: {" ".join(said.split())}{hint}', status)

    @property
    def _headers(self) -> dict[str, str]:
        return self._settings['headers']

    def _json(self, request: _Request) -> _Steps:
        answer = yield from self._exchange(request)
        try:
            content = answer.json()
            if not isinstance(content, dict):
                raise ValueError('no object')
        except ValueError as error:
            raise ServerError(
                f'{self.url}: it does not answer in JSON; is it vpt-dense serve?') from error
        return content

    def _tasks(self) -> _Steps:
        content = yield from self._json(_Request('GET', 'v1/tasks'))
        try:
            return [Task(
                str(row['name']), str(row['kind']), tuple(map(str, row.get('classes') or ())),
                row.get('palette') and tuple(tuple(map(int, each)) for each in row['palette']),
                tuple(map(int, row.get('ids') or ())), str(row.get('sha256', '')),
                int(row.get('bytes') or 0)) for row in content['tasks']]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerError(
                f'{self.url}: its list of tasks cannot be read ({error!r}); is it vpt-dense serve?'
            ) from error

    def _predict(self, image: Image, tasks: str | Sequence[str], position: int = 0) -> _Steps:
        content = yield from self._json(self._asking(image, tasks, position))
        found = [read_result(record) for record in _rows(content, self.url)]
        wanted = _names(tasks)
        if [each.task for each in found] != wanted:
            by_task = {each.task: each for each in found}
            if set(by_task) != set(wanted):
                raise ServerError(
                    f'{self.url}: asked for {", ".join(wanted)}, it answers for '
                    f'{", ".join(by_task) or "none"}')
            found = [by_task[name] for name in wanted]
        return found[0] if isinstance(tasks, str) else found

    def _asking(self, image: Image, tasks: str | Sequence[str], position: int = 0) -> _Request:
        names = _names(tasks)
        if not names:
            raise UserError('name at least one task')
        return _Request(
            'POST', 'v1/predict', files=[('images', encode(image, position))],
            params=[*(('task', name) for name in names), ('format', 'json')])

    def _ready(self) -> _Steps:
        """Whether a server is; asked once."""
        answer = yield _Request('GET', 'readyz')
        return not isinstance(answer, Exception) and answer.status_code == 200

    def _add(self, name: str, file: str | os.PathLike | bytes) -> _Steps:
        content = file if isinstance(file, bytes) else encode(file)[1]
        yield from self._exchange(_Request('PUT', _place(name), content=content))

    def _remove(self, name: str) -> _Steps:
        yield from self._exchange(_Request('DELETE', _place(name), again='unsent'))

    def _build(self, client: Any, request: _Request) -> Any:
        """A request as httpx has it."""
        options: dict[str, Any] = {}
        if request.files:
            options['files'] = list(request.files)
        if request.content is not None:
            options.update(content=request.content,
                           headers={'Content-Type': 'application/octet-stream'})
        return client.build_request(
            request.method, request.path, params=list(request.params) or None, **options)


class Client(_Base):
    """Asks a server of ``vpt-dense serve``; several threads may use it at once.

    ``with Client('http://127.0.0.1:8000', key='...') as client: client.predict('a.jpg', 'roads')``

    Args:
        url: The server's: ``http://host:8000``.
        key: That of a server that wants one.
        timeout: Seconds that an answer may take; to connect: 10.
        retries: How often a request is repeated where that is safe: when the server is busy (429,
            503), cannot be reached, or was lost behind a proxy (500, 502 that no server of ours
            explains). It waits as long as the server says, or 0.5 s, 1 s, 2 s, ...

    Raises:
        UserError: If the URL is none, or httpx is not installed.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 120.0, retries: int = 4,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        self._client = self._httpx.Client(**self._settings)

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _run(self, steps: _Steps) -> Any:
        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = None
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                answer = self._client.send(self._build(self._client, step))
            except self._httpx.TransportError as error:
                answer = error

    def tasks(self) -> list[Task]:
        """The tasks that the server has.

        Raises:
            ServerError: If it cannot be reached, or refuses.
        """
        return self._run(self._tasks())

    def predict(
        self, images: Image | Sequence[Image], tasks: str | Sequence[str], at_once: int = 4
    ) -> Any:
        """Predict one image or a list of them.

        Args:
            images: One image or a list. An image is a path, the bytes of a file, a PIL image, or
                an array (H, W, 3) or (H, W), uint8, in the order R, G, B.
            tasks: The name of a task, or a list of names: what they share the server computes once.
            at_once: Images of a list that are on their way at a time.

        Returns:
            For one image and one name a :class:`Result`; for a list of names a list of results, in
            that order; for a list of images a list of these.

        Raises:
            ServerError: If the server cannot be reached, or refuses.
            UserError: If there is no such file.
        """
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, tasks, at_once))
        return self._run(self._predict(images, tasks))

    def stream(
        self, images: Iterable[Image], tasks: str | Sequence[str], at_once: int = 4
    ) -> Iterator[Any]:
        """Predict any number of images; arguments as in :meth:`predict`.

        Yields:
            In the order of the images the result, or the list of results.
        """
        with ThreadPoolExecutor(at_once) as pool:
            waiting: list = []
            try:
                for position, image in enumerate(images):
                    waiting.append(pool.submit(self._run, self._predict(image, tasks, position)))
                    if len(waiting) >= 2 * at_once:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for each in waiting:
                    each.cancel()

    def add_task(self, name: str, file: str | os.PathLike | bytes) -> None:
        """Give the server a task, or another file for one (its key needs the role admin).

        Args:
            name: What requests will call it.
            file: Path of a delta (safetensors), or its bytes.

        Raises:
            ServerError: If the server cannot be reached, or refuses.
        """
        self._run(self._add(name, file))

    def remove_task(self, name: str) -> None:
        """Take a task from the server (its key needs the role admin).

        Raises:
            ServerError: If the server cannot be reached, or refuses.
        """
        self._run(self._remove(name))

    def ready(self, wait: float = 0.0) -> bool:
        """Whether the server takes requests.

        Args:
            wait: Seconds for which it may become ready.
        """
        end = time.monotonic() + wait
        while not self._run(self._ready()):
            if time.monotonic() >= end:
                return False
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
        return True


class AsyncClient(_Base):
    """As :class:`Client`, for ``asyncio``: ``await client.predict('a.jpg', 'roads')``.

    Arguments and errors are the same.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout: float = 120.0, retries: int = 4,
    ) -> None:
        super().__init__(url, key, timeout, retries)
        self._client = self._httpx.AsyncClient(**self._settings)

    async def __aenter__(self) -> 'AsyncClient':
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _run(self, steps: _Steps) -> Any:
        import asyncio

        answer = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as end:
                return end.value
            answer = None
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                answer = await self._client.send(self._build(self._client, step))
            except self._httpx.TransportError as error:
                answer = error

    async def tasks(self) -> list[Task]:
        """See :meth:`Client.tasks`."""
        return await self._run(self._tasks())

    async def predict(
        self, images: Image | Sequence[Image], tasks: str | Sequence[str], at_once: int = 4
    ) -> Any:
        """See :meth:`Client.predict`."""
        if isinstance(images, (list, tuple)):
            return [found async for found in self.stream(images, tasks, at_once)]
        return await self._run(self._predict(images, tasks))

    async def stream(
        self, images: Iterable[Image], tasks: str | Sequence[str], at_once: int = 4
    ) -> AsyncIterator[Any]:
        """See :meth:`Client.stream`."""
        import asyncio

        waiting: list = []
        try:
            for position, image in enumerate(images):
                waiting.append(asyncio.ensure_future(
                    self._run(self._predict(image, tasks, position))))
                if len(waiting) >= at_once:
                    yield await waiting.pop(0)
            while waiting:
                yield await waiting.pop(0)
        finally:
            for each in waiting:
                each.cancel()

    async def add_task(self, name: str, file: str | os.PathLike | bytes) -> None:
        """See :meth:`Client.add_task`."""
        await self._run(self._add(name, file))

    async def remove_task(self, name: str) -> None:
        """See :meth:`Client.remove_task`."""
        await self._run(self._remove(name))

    async def ready(self, wait: float = 0.0) -> bool:
        """See :meth:`Client.ready`."""
        import asyncio

        end = time.monotonic() + wait
        while not await self._run(self._ready()):
            if time.monotonic() >= end:
                return False
            await asyncio.sleep(min(0.5, max(0.0, end - time.monotonic())))
        return True


def _names(tasks: str | Sequence[str]) -> list[str]:
    return [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))


def _rows(content: dict, url: str) -> list[dict]:
    rows = content.get('results')
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ServerError(f'{url}: the answer has no results; is it vpt-dense serve?')
    return rows


def _place(name: str) -> str:
    if not name:
        raise UserError('a task needs a name')
    return f'v1/tasks/{urllib.parse.quote(name, safe="")}'


def _reason(answer: Any) -> str | None:
    """What a server says of a refusal; None: it was no server of ours that answered."""
    try:
        return str(answer.json()['error'])
    except (ValueError, KeyError, TypeError):
        return None


def _seconds(text: str) -> float | None:
    """Seconds of a header ``Retry-After``, which may be a date; None if it says nothing."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
