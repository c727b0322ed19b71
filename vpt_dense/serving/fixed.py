"""Tasks that are fixed when the server starts: one graph of all of them, in ONNX Runtime."""

import gc
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vpt_dense.deploy import card as cards
from vpt_dense.errors import UserError, explain
from vpt_dense.multitask import exporting
from vpt_dense.multitask.loading import About, Task
from vpt_dense.multitask.model import MultiTask
from vpt_dense.serving import answers
from vpt_dense.serving.logs import log
from vpt_dense.serving.settings import Refused, Settings
from vpt_dense.serving.tasks import Folder, same_file, state_of

#: Images by which a graph is compared with the models, at most.
_COMPARED = 16
#: Of these the share of pixels, or of images, whose class has to be that of the models.
_LEAST = {'onnx': 0.99, 'onnx-int8': 0.8}


class FixedFolder(Folder):
    """The tasks of a folder as they are when the server starts.

    Args:
        settings: Of the server.
        spool: A folder of the server's own.

    Raises:
        UserError: If there is no graph of the tasks, it is one of others, or it computes something
            else; or see :class:`vpt_dense.serving.tasks.Folder`.
    """

    def __init__(self, settings: Settings, spool: Path) -> None:
        self._fixed = False
        super().__init__(settings, spool)
        self._told = f'the tasks of this server are fixed (--backend {settings.backend})'
        self.model = _build(self.model, settings, spool)
        gc.collect()  # the models, whose weights are in the graph now
        self._fixed = True

    def look(self, settled: bool = False) -> None:
        """Look at the folder; what changes there is told, and not loaded."""
        if not self._fixed:
            super().look(settled)
            return
        with self._lock:
            listed = self._listed()
            for name in sorted({*self._seen, *listed}):
                path = listed.get(name)
                state = () if path is None else state_of(path) or ()
                if state == self._seen.get(name):
                    continue
                self._seen[name] = state
                file = self._files.get(name)
                if file is not None and path is not None and same_file(path, file):
                    self.broken.pop(name, None)
                    continue
                if file is None and path is None:
                    self.broken.pop(name, None)
                    del self._seen[name]
                    continue
                self.broken[name] = f'{self._told}: start it again to have the folder as it is'
                self.metrics.loads.labels('refused').inc()
                kept = 'the task stays what it was' if file else 'there is no such task'
                log('task_refused', 'error', task=name, error=self.broken[name], result=kept)
            self._count()

    def check_changes(self) -> None:
        """Nothing can be changed.

        Raises:
            Refused: Always.
        """
        raise Refused(409, f'{self._told}: change its folder and start it again, or one with '
                      '--backend eager')  # fmt: skip


class GraphTasks:
    """As much of a :class:`vpt_dense.MultiTask` as answers need, computed by a graph.

    Args:
        tasks: Name -> what it predicts, what predicts it.
        nbytes: Of the tasks' own tensors.
    """

    def __init__(
        self, tasks: Mapping[str, tuple[About, Callable[[list, bool], list]]], nbytes: int
    ) -> None:
        self._tasks, self._bytes = dict(tasks), nbytes

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self._tasks)

    def about(self, name: str) -> About:
        """What a task predicts."""
        return self._tasks[name][0]

    def cache_info(self) -> dict[str, int]:
        """As that of a MultiTask: all tasks are there."""
        return dict(hits=0, misses=0, tasks=len(self._tasks), bytes=self._bytes, limit=-1)

    def predict(
        self, images: Sequence[str], tasks: Sequence[Sequence[str]]
    ) -> list[dict[str, tuple[About, Any]]]:
        """Predict images, one task after the other, each for all of its images.

        Args:
            images: Paths.
            tasks: Of each image the names of its tasks.

        Returns:
            Of each image name -> (what the task is, result).
        """
        found: list[dict[str, tuple[About, Any]]] = [{} for _ in images]
        for name in dict.fromkeys(name for names in tasks for name in names):
            chosen = [i for i, names in enumerate(tasks) if name in names]
            about, predict = self._tasks[name]
            with torch.no_grad():
                results = predict([images[i] for i in chosen], False)
            for i, result in zip(chosen, results, strict=True):
                found[i][name] = about, result
        return found


class Graph:
    """A graph of tasks in ONNX Runtime.

    Args:
        path: Its file.

    Attributes:
        card: What it says of itself, see :meth:`vpt_dense.MultiTask.export`.
        size: (height, width) of the images that it takes, in pixels.

    Raises:
        UserError: If it is none.
    """

    def __init__(self, path: Path) -> None:
        (runtime,) = cards.needed('onnxruntime')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=['CPUExecutionProvider'])
            text = self._session.get_modelmeta().custom_metadata_map.get(cards.KEY)
            self.card = json.loads(text or '{}')
        except Exception as error:  # of classes that ONNX Runtime makes for itself
            raise UserError(f'--graph {path} cannot be read: {explain(error)[:200]}') from error
        if self.card.get('format') != exporting.FORMAT:
            raise UserError(f'--graph {path} is no graph of tasks, as MultiTask.export and this '
                            'server write it')  # fmt: skip
        self.size = tuple(self.card['input']['size'])

    def run(self, images: np.ndarray, task: np.ndarray) -> list[np.ndarray]:
        """Images (B, C, H, W), float32, and the number of a task to its scores."""
        return self._session.run(None, dict(images=images, task=task))

    def scores(self, number: int, images: Tensor) -> Tensor:
        """Scores of a task for normalised images (B, C, H, W), float32.

        Raises:
            UserError: If images have another size than the graph's.
        """
        if tuple(images.shape[2:]) != self.size:
            raise UserError(
                'this server takes images that its tasks read as {}x{} pixels (height x width), '
                'this one is {}x{}; one with --backend eager takes any'.format(
                    *self.size, *images.shape[2:]))
        (found,) = self.run(images.float().numpy(), np.array(number))
        return torch.from_numpy(found[:, :self.card['channels'][number]])


def _build(model: MultiTask, settings: Settings, spool: Path) -> GraphTasks:
    """Make the graph, or read it, and compare it with the models."""
    tasks = {name: model._find(name) for name in model.tasks}
    if not tasks:
        raise UserError(f'--backend {settings.backend}: there are no tasks in {settings.folder}')
    path, quantized = settings.graph, settings.backend == 'onnx-int8'
    made = path is None or not path.exists()
    path = spool / 'graph.onnx' if path is None else path
    samples = _samples(settings.samples)
    if made:
        wanted = _make(model, tasks, settings, path)
        graph = Graph(path)
        if settings.graph is None:
            path.unlink()
    else:
        graph = Graph(path)
        if bool(graph.card.get('quantized')) != quantized:
            held = graph.card.get('quantized') or 'float32'
            raise UserError(f'--graph {path} is of {held}, which is not --backend '
                            f'{settings.backend}')  # fmt: skip
        if settings.size is not None and settings.size != graph.size:
            raise UserError('--graph {} takes images of {}x{}, found --size {} {}'.format(
                path, *graph.size, *settings.size))
        names = graph.card['tasks']
        way_out = 'remove it, or name another, and it is made'
        if set(names) != set(tasks):
            raise UserError(f'--graph {path} is of the tasks {", ".join(names)}, in '
                            f'{settings.folder} are {", ".join(tasks)}; {way_out}')
        tasks = {name: tasks[name] for name in names}
        wanted = exporting.prepare(
            model.frozen, tasks, path, _size(tasks, graph.size), model.frozen.channels)
        if wanted.card['sha256'] != graph.card.get('sha256'):
            raise UserError(f'--graph {path} is of other weights than the tasks in '
                            f'{settings.folder}; {way_out}')
        if not quantized:
            try:
                exporting.check(wanted, graph.run)
            except UserError as error:
                raise UserError(f'--graph {path}: {error}') from error
    log('graph_made' if made else 'graph_read', backend=settings.backend, tasks=list(tasks),
        size=list(graph.size), **({} if settings.graph is None else dict(file=str(path))))
    numbers = {name: i for i, name in enumerate(wanted.card['tasks'])}
    by_graph = {name: (task.about, task.predicting_by(partial(graph.scores, numbers[name])))
                for name, task in tasks.items()}  # fmt: skip
    found = GraphTasks(by_graph, sum(task.nbytes for task in tasks.values()))
    if samples:
        _compare(model, found, samples, settings.backend)
    return found


def _make(
    model: MultiTask, tasks: dict[str, Task], settings: Settings, path: Path
) -> exporting.Wanted:
    """Write the graph."""
    quantized = settings.backend == 'onnx-int8'
    plain = path.with_name(f'.{path.name}.float32.onnx') if quantized else path
    try:
        exporting.check_file(model.frozen, tasks, plain)
        wanted = exporting.prepare(
            model.frozen, tasks, plain, _size(tasks, settings.size), model.frozen.channels)
        exporting.write(wanted, plain)
    except UserError as error:
        text = str(error)
        for before in (f'export {plain}: ', f'{plain} is not written: '):
            text = text.removeprefix(before)
        raise UserError(f'--backend {settings.backend}: {text}') from error
    if quantized:
        from vpt_dense.deploy import quantizing

        try:
            quantizing.quantize_graph(plain, path)
        finally:
            plain.unlink()
    return wanted


def _size(tasks: Mapping[str, Task], asked: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) in pixels of what all tasks look at.

    These are their windows, else what is asked for, else the images that the backbone was built
    for.

    Raises:
        UserError: If they differ, or it is not known.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for name, task in tasks.items():
        with task.model() as model:
            backbone = task.structure.backbone_of(model)
            window = exporting.window_of(model)
            size = window or asked or getattr(
                getattr(backbone, 'patch_embed', None), 'img_size', None) or getattr(
                backbone, 'img_size', None)  # fmt: skip
        if size is None:
            raise UserError(f'the size of the images of task {name} is not known; give --size '
                            'HEIGHT WIDTH')  # fmt: skip
        sizes[name] = size = (size, size) if isinstance(size, int) else tuple(size)
        if asked and window not in (None, asked):
            raise UserError('task {} looks at windows of {}x{} pixels, not {}x{}'.format(
                name, *window, *asked))
        first = next(iter(sizes))
        if size != sizes[first]:
            raise UserError(
                'task {} looks at images of {}x{} pixels, {} of {}x{}: a graph has one size; start '
                'a server for each'.format(first, *sizes[first], name, *size))
    return sizes[first]


def _samples(folder: Path | None) -> list[str]:
    """Images of a folder, evenly."""
    if folder is None:
        return []
    from vpt_dense.predicting import inputs

    if not folder.is_dir():
        raise UserError(f'--samples {folder}: no such folder')
    paths = [os.fspath(image.path) for image in inputs.find([str(folder)])]
    if not paths:
        raise UserError(f'--samples {folder}: there is no image in it')
    number = min(len(paths), _COMPARED)
    return [paths[i * len(paths) // number] for i in range(number)]


def _compare(model: MultiTask, graph: GraphTasks, samples: list[str], backend: str) -> None:
    """Compare a graph with the models on images, and tell it.

    Raises:
        UserError: If it computes something else.
    """
    for name in graph.tasks:
        shares, gaps = [], []
        for path in samples:
            try:
                ((about, expected),) = model.predict([path], [name])
                ((_, found),) = graph.predict([path], [[name]])[0].values()
            except UserError as error:
                raise UserError(f'--samples: {error}') from error
            expected, found = answers.as_array(about, expected), answers.as_array(about, found)
            if about.kind == 'segmentation':
                shares.append(float((expected == found).mean()))
            else:
                shares.append(float(expected.argmax() == found.argmax()))
                gaps.append(float(np.abs(expected - found).max()))
        share = float(np.mean(shares))
        log('graph_compared', task=name, images=len(samples), same_class=round(share, 5),
            least=round(min(shares), 5), **({'gap': round(max(gaps), 5)} if gaps else {}))
        if share < _LEAST[backend]:
            raise UserError(
                f'--backend {backend}: task {name} gives the class that it gives eagerly for '
                f'{share:.1%} of {"pixels" if about.kind == "segmentation" else "images"} of '
                f'--samples, fewer than {_LEAST[backend]:.0%}; serve it with --backend '
                f'{"eager" if backend == "onnx" else "onnx"}')
