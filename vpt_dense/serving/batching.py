"""Requests that come within some milliseconds are computed together, whatever their tasks are."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt_dense.errors import UserError, explain, is_plain
from vpt_dense.multitask.loading import About
from vpt_dense.serving.images import check_whole
from vpt_dense.serving.metrics import Metrics
from vpt_dense.serving.settings import Refused, Settings
from vpt_dense.serving.tasks import Folder


@dataclass(eq=False)
class Sent:
    """An image that a client has sent.

    Attributes:
        name: As its client calls it.
        path: Where it is.
        pixels: How many it has.
        fault: Why it is refused, once it was decoded; None: it was not, or it is sound.
        decoded: Whether it was.
    """

    name: str
    path: Path
    pixels: int
    fault: Exception | None = None
    decoded: bool = False


@dataclass(eq=False)
class _Pair:
    """An image for a task."""

    image: Sent
    task: str
    answer: asyncio.Future
    since: float


class Batcher:
    """Collects pairs of an image and a task, and computes them together in one thread.

    Args:
        folder: Holds the tasks.
        settings: Of the server.
    """

    def __init__(self, folder: Folder, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.metrics: Metrics = folder.metrics
        self._waiting: deque[_Pair] = deque()
        self._reserved = 0
        self._come = asyncio.Event()
        self._pool = ThreadPoolExecutor(1, 'compute')
        self._took = 0.0  # seconds of a batch, averaged
        self._worker: asyncio.Task | None = None

    def start(self) -> None:
        """Begin to compute."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """End, when what runs is done; nobody waits any more."""
        if self._worker is not None:
            self._worker.cancel()
        await asyncio.to_thread(self._pool.shutdown, True)

    def room_for(self, number: int) -> None:
        """Check whether a request can wait.

        Raises:
            Refused: If the queue is full, or always too short for it.
        """
        if number > self.settings.queue:
            raise Refused(413, f'{number} pairs of image and task in a request; '
                          f'{self.settings.queue} may wait here, send fewer')  # fmt: skip
        if len(self._waiting) + number > self.settings.queue:
            seconds = max(1, round(self._took * len(self._waiting) / self.settings.max_batch))
            raise Refused(429, f'{len(self._waiting)} pairs of image and task wait already, of at '
                          f'most {self.settings.queue}; try again later',
                          {'Retry-After': str(seconds)})  # fmt: skip

    async def predict(
        self, images: Sequence[Sent], tasks: Sequence[str], seconds: float
    ) -> list[tuple[Sent, str, About, Any]]:
        """Predict images.

        Args:
            images: They.
            tasks: Of all of them.
            seconds: How long it may take.

        Returns:
            Of each image and task, image after image: they, what the task is, its result.

        Raises:
            Refused: If the queue is full, it takes too long, or an image cannot be predicted.
        """
        self.room_for(len(images) * len(tasks))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        pairs = [_Pair(image, task, loop.create_future(), now)
                 for image in images for task in tasks]  # fmt: skip
        self._waiting.extend(pairs)
        self.metrics.queue.set(len(self._waiting))
        self._come.set()
        futures = [pair.answer for pair in pairs]
        try:
            found = await asyncio.wait_for(asyncio.gather(*futures), seconds)
        except asyncio.TimeoutError:
            raise Refused(504, f'not done within {self.settings.timeout:g} seconds',
                          {'Retry-After': '1'}) from None  # fmt: skip
        finally:
            for future in futures:  # of a pair that has not begun: it never will
                future.cancel()
        return [(pair.image, pair.task, *result) for pair, result in zip(pairs, found, strict=True)]

    async def _work(self) -> None:
        while True:
            await self._come.wait()
            if not self._waiting:
                self._come.clear()
                continue
            until = self._waiting[0].since + self.settings.wait
            while (len(self._waiting) < self.settings.max_batch
                   and (left := until - time.monotonic()) > 0):  # fmt: skip
                self._come.clear()
                try:
                    await asyncio.wait_for(self._come.wait(), left)
                except asyncio.TimeoutError:
                    break
            self._come.set()
            batch = self._next()
            if batch:
                begun = time.monotonic()
                found = await asyncio.get_running_loop().run_in_executor(
                    self._pool, self._compute, batch)
                took = time.monotonic() - begun
                self._took = 0.8 * self._took + 0.2 * took if self._took else took
                self.metrics.compute.observe(took)
                self.metrics.batch.observe(len(batch))
                self.metrics.batch_tasks.observe(len({pair.task for pair in batch}))
                for pair, result in zip(batch, found, strict=True):
                    if pair.answer.done():  # it took too long
                        continue
                    if isinstance(result, BaseException):
                        pair.answer.set_exception(result)
                    else:
                        self.metrics.predictions.labels(pair.task).inc()
                        pair.answer.set_result(result)

    def _next(self) -> list[_Pair]:
        """The pairs of the next batch: not more than that, nor than the pixels of one image."""
        batch, pixels = [], 0
        while self._waiting and len(batch) < self.settings.max_batch:
            pixels += self._waiting[0].image.pixels
            if batch and pixels > self.settings.max_pixels:
                break
            pair = self._waiting.popleft()
            if not pair.answer.done():
                batch.append(pair)
        self.metrics.queue.set(len(self._waiting))
        return batch

    # --- in the thread

    def _compute(self, batch: Sequence[_Pair]) -> list[Any]:
        """Of each pair (what its task is, its result), or the error that it meets."""
        found: dict[_Pair, Any] = {}
        for pair in batch:
            if not pair.image.decoded:
                pair.image.decoded = True
                try:
                    check_whole(pair.image.path, pair.image.name)
                except Exception as error:
                    pair.image.fault = error
            if pair.image.fault is not None:
                found[pair] = pair.image.fault
        sound = [pair for pair in batch if pair not in found]
        try:
            found.update(zip(sound, self._predict(sound), strict=True))
        except Exception as error:
            if len(sound) == 1:
                found[sound[0]] = self._told(sound[0], error)
            else:  # each alone, so that the others have their answers
                for pair in sound:
                    try:
                        (found[pair],) = self._predict([pair])
                    except Exception as error:
                        found[pair] = self._told(pair, error)
        return [found[pair] for pair in batch]

    def _predict(self, batch: Sequence[_Pair]) -> list[Any]:
        if not batch:
            return []
        images: dict[Sent, list[str]] = {}
        for pair in batch:
            tasks = images.setdefault(pair.image, [])
            if pair.task not in tasks:
                tasks.append(pair.task)
        results = self.folder.model.predict(
            [str(image.path) for image in images], list(images.values()))
        of = dict(zip(images, results, strict=True))
        return [of[pair.image][pair.task] for pair in batch]

    def _told(self, pair: _Pair, error: Exception) -> Exception:
        """What a client is told: of its image or its task; what nobody foresaw stays as it is."""
        if not is_plain(error):
            return error
        if pair.task not in self.folder.model.tasks:
            return self.folder.unknown(pair.task)
        text = explain(error).replace(str(pair.image.path), pair.image.name)
        text = self.folder.explain(UserError(text))
        return Refused(503 if 'out of memory' in text else 400, text)
