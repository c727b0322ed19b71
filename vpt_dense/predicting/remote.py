"""A task of a server as a predictor: what it finds is written as a model's predictions are."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense import client, visualization
from vpt_dense.errors import UserError
from vpt_dense.predicting import results

#: Images that are on their way at a time.
AT_ONCE = 4


class Answers:
    """What a server finds in images, of several tasks in one request an image.

    Args:
        server: A client of it.
        tasks: The names of the tasks.
        folder: Keeps maps that are asked for later.
    """

    def __init__(
        self, server: client.Client, tasks: Sequence[str], folder: str | Path
    ) -> None:
        self.server, self.tasks, self.folder = server, list(tasks), Path(folder)
        self._kept: dict[tuple[str, str], tuple[client.Result, Path | None]] = {}
        self._numbers = itertools.count()

    def get(self, path: str, name: str) -> client.Result:
        """What a task finds in an image; the others' part of the answer is kept.

        Raises:
            UserError: If there is no such file, or the server refuses.
        """
        if (path, name) in self._kept:
            result, file = self._kept.pop((path, name))
            if file is None:
                return result
            array = np.load(file)
            file.unlink()
            key = 'labels' if result.kind == 'segmentation' else 'values'
            return replace(result, **{key: array})
        asked = self.tasks[self.tasks.index(name):]  # those before have had their turn
        found, *others = self.server.predict(path, asked)
        for result in others:
            array = result.values if result.labels is None else result.labels
            file = None
            if array is not None:
                file = self.folder / f'{next(self._numbers)}.npy'
                np.save(file, array)
            self._kept[path, result.task] = replace(result, labels=None, values=None), file
        return found


class RemotePredictor:
    """A task of a server, see :class:`vpt_dense.predicting.results.Predictor`.

    Args:
        answers: What the server finds.
        task: The task.
    """

    def __init__(self, answers: Answers, task: client.Task) -> None:
        self._answers, self._task = answers, task
        self.task, self.classes = task.kind, task.classes
        self.ids = task.ids or tuple(range(len(task.classes)))
        #: As in the annotations: with ``reduce_zero_label`` 0, else the greatest number.
        self.ignored_id = next(i for i in (0, 255, 65535) if i not in self.ids)
        self.palette = [list(colour) for colour in
                        task.palette or visualization.make_palette(len(task.classes))]

    def describe(self) -> dict[str, Any]:
        """Where the predictions come from, for JSON."""
        return dict(checkpoint=f'{self._answers.server.url}: {self._task.name}',
                    sha256=self._task.sha256)

    def stream(
        self, images: Iterable[str], probabilities: bool | str = False,
        batch_size: int | None = None,
    ) -> Iterator[results.Result | Exception]:
        """Ask for one image after the other.

        Args:
            images: Paths.
            probabilities: Not to be had of a server.
            batch_size: Images that are on their way at a time; None: 4.

        Yields:
            In the order of the images the result; where the server refuses an image, the error.

        Raises:
            UserError: If the server cannot be reached, does not take the key, or has no such task.
        """
        if probabilities:
            raise UserError('--probabilities: a server does not give them')
        at_once = batch_size or AT_ONCE
        with ThreadPoolExecutor(at_once) as pool:
            waiting: list = []
            try:
                for path in images:
                    waiting.append(pool.submit(self._answers.get, path, self._task.name))
                    if len(waiting) > at_once:
                        yield self._result(waiting.pop(0))
                while waiting:
                    yield self._result(waiting.pop(0))
            finally:
                for each in waiting:
                    each.cancel()

    def _result(self, found: Any) -> results.Result | Exception:
        try:
            found = found.result()
        except client.ServerError as error:
            if error.status not in (400, 413, 415, 422):  # which are the image's fault
                raise
            return error
        except OSError as error:
            return error
        if found.kind == 'segmentation':
            return results.Segmentation(
                self._in_ids(found.labels), self.classes, self.ids, self.ignored_id)
        if found.kind == 'classification':
            scores = dict(found.scores)
            if set(scores) != set(self.classes):
                raise client.ServerError(
                    f'{self._answers.server.url}: task {self._task.name} has other classes than '
                    'when it was asked for them; start again')
            probabilities = np.array([scores[name] for name in self.classes], np.float32)
            return results.Classification(
                int(probabilities.argmax()), self.classes, probabilities)
        if found.kind == 'depth':
            # A server does not know the units of somebody's files: metres, as floating point.
            return results.DepthMap(found.values, 1.0, float(found.values.max(initial=0)))
        return results.NormalMap(found.values)

    def _in_ids(self, labels: np.ndarray) -> np.ndarray:
        """Positions of classes as ids of the annotations."""
        kind = np.uint8 if max(*self.ids, self.ignored_id) <= 255 else np.uint16
        table = np.full(int(np.iinfo(labels.dtype).max) + 1, self.ignored_id, kind)
        table[: len(self.ids)] = self.ids
        return table[labels]
