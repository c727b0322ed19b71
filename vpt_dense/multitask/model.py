"""Many tasks on one frozen backbone."""

import os
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vpt_dense.errors import UserError, suggest
from vpt_dense.multitask import loading
from vpt_dense.multitask.loading import About, Task
from vpt_dense.multitask.lockstep import Meeting

#: Of a task in a mixed batch on a CPU, from which its products gain nothing from those of others:
#: the rows of 128 patches of 16x16. A product takes the same time a row with and without more rows,
#: for 384, 768 and 1,024 channels from 100 to 200 rows on.
ENOUGH_PIXELS = 128 * 16**2


@dataclass(frozen=True)
class Planned:
    """How a task takes part in a mixed batch.

    Attributes:
        images: How many images of the batch are its.
        first_block: The first block that it may change; those before are computed once for all
            tasks that get the image.
        blocks: Number of blocks; 0: a convolutional network.
        own_layers: Names of linear layers and convolutions whose weights are its own: these it
            computes apart from the others, in all other layers it takes part in one pass.
    """

    images: int
    first_block: int
    blocks: int
    own_layers: tuple[str, ...]


class MultiTask:
    """One frozen backbone in memory that serves many tasks.

    A mixed batch passes the frozen weights once: where a model comes to a weight that is shared, it
    waits for the others, and the product is computed for the tokens of all. What was tuned (prompts
    of any length, low-rank updates, adapters, scales, biases, norms, heads) acts on the images of
    its task alone. Results are those of each task alone, up to rounding.

    Args:
        source: What the frozen weights come from: the backbone, a model of timm, transformers or
            torchvision, or a model with a tuned backbone; or the path of a delta, whose backbone is
            loaded.
        tasks: Name -> delta, see :meth:`add`.
        base: The pretrained weights of ``source``, if it is a delta and they are not where it says.
        device: ``cpu``, ``cuda``, ...
        cache: How much memory the tensors of tasks may take, ``'512MB'`` or a number of bytes.
            Tasks that were not asked for the longest make room, and are read again from their files
            when they are asked for. None: all stay.

    Raises:
        UserError: If the weights cannot be had, or see :meth:`add`.

    Example:
        >>> import torch, vpt_dense
        >>> options = dict(pretrained=False, model_options=dict(depth=2))
        >>> backbone = vpt_dense.create_backbone('deit_tiny_patch16_224', 'head', **options)
        >>> model = vpt_dense.MultiTask(backbone, {'plain': backbone})
        >>> model(torch.zeros(2, 3, 224, 224), tasks=['plain', 'plain'])[0].shape
        torch.Size([192])
    """

    def __init__(
        self, source: Any, tasks: Mapping[str, Any] | None = None, *,
        base: str | os.PathLike | None = None, device: str | torch.device = 'cpu',
        cache: int | str | None = None,
    ) -> None:
        self._limit = None if cache is None else parse_bytes(cache)
        self.frozen = loading.frozen_of(source, None if base is None else os.fspath(base), device)
        self._loader = loading.Loader(self.frozen)
        self._tasks: dict[str, _Entry] = {}
        self._lock = threading.RLock()
        self._hits = self._misses = self._asked = 0
        for name, delta in (tasks or {}).items():
            self.add(name, delta)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        with self._lock:
            return tuple(self._tasks)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.frozen.device

    def add(self, name: str, delta: Any, pinned: bool = False) -> None:
        """Add a task, or replace the one of this name; passes that run go on with the old one.

        Args:
            name: Of the task.
            delta: Path of a delta, of a config's run or of :func:`vpt_dense.save_delta`; or a tuned
                model, whose frozen tensors become the shared ones.
            pinned: Whether it stays in memory, whatever ``cache`` is; tuned models always do.

        Raises:
            UserError: If it was tuned on other frozen weights (the SHA-256 of both is told), or
                all of its backbone was; nothing is changed then.
        """
        task = self._loader.load(delta, name)
        is_file = isinstance(delta, (str, os.PathLike))
        path = os.fspath(delta) if is_file else ''
        path = os.path.abspath(path) if os.path.exists(path) else path  # not 'zoo::...'
        entry = _Entry(path, pinned or not is_file)
        with self._lock:
            self._asked += 1
            entry.used = self._asked
            others = sum(each.task.nbytes for key, each in self._tasks.items()
                         if each.pinned and each.task is not None and key != name)
            if self._limit is not None and entry.pinned and others + task.nbytes > self._limit:
                raise UserError(
                    f'task {name} stays in memory with {task.nbytes:,} bytes, and others with '
                    f'{others:,}, more than cache={self._limit:,}; give it more, or pin less')
            old = self._tasks.pop(name, None)
            self._tasks[name] = entry
            self._keep(entry, task)
        if old is not None:
            old.forget()

    def remove(self, name: str) -> None:
        """Remove a task; passes that run go on with it.

        Raises:
            UserError: If there is none of this name.
        """
        with self._lock:
            self._entry(name)
            self._tasks.pop(name).forget()

    def about(self, name: str) -> About | None:
        """What a task predicts: its kind, its classes; None: it is a model that does not say so.

        Raises:
            UserError: If there is none of this name.
        """
        with self._lock:
            return self._entry(name).about

    def _entry(self, name: str) -> '_Entry':
        entry = self._tasks.get(name)
        if entry is None:
            known = self.tasks
            raise UserError(f'there is no task {name!r}{suggest(str(name), known)}; there are '
                            f'{", ".join(known) or "none"}')  # fmt: skip
        return entry

    def _find(self, name: str) -> Task:
        """A task, read from its file if it is not in memory."""
        with self._lock:
            entry = self._entry(name)
            self._asked += 1
            entry.used = self._asked
            if entry.task is not None:
                self._hits += 1
                return entry.task
        task = self._loader.load(entry.path, name)
        with self._lock:
            self._misses += 1
            self._keep(entry, task)
        return task

    def _keep(self, entry: '_Entry', task: Task) -> None:
        """Keep a task, and let those go that were not asked for the longest."""
        entry.task, entry.about = task, task.about
        if self._limit is None:
            return
        resident = [each for each in self._tasks.values() if each.task is not None]
        total = sum(each.task.nbytes for each in resident)
        for each in sorted(resident, key=lambda each: each.used):
            if total <= self._limit:
                break
            if not each.pinned:
                total -= each.task.nbytes
                each.forget()

    def cache_info(self) -> dict[str, int]:
        """What the cache has done.

        Returns:
            ``hits``, ``misses`` (files that were read again), ``tasks`` in memory, their ``bytes``,
            and the ``limit`` (-1: there is none).
        """
        with self._lock:
            resident = [each.task for each in self._tasks.values() if each.task is not None]
        return dict(
            hits=self._hits, misses=self._misses, tasks=len(resident),
            bytes=sum(task.nbytes for task in resident),
            limit=-1 if self._limit is None else self._limit)

    # --- a mixed batch

    def __call__(
        self, images: Tensor | Sequence[Tensor], tasks: Sequence[str | Sequence[str]]
    ) -> list[Any]:
        """Compute the scores of a mixed batch in one pass over the frozen weights.

        Args:
            images: (B, C, H, W), or a list of (C, H, W) of any sizes, normalised as each task's
                model needs it.
            tasks: Of each image the name of its task; or a list of names, for an image that goes to
                several tasks.

        Returns:
            For each image what the model of its task puts out for it: scores (K,) of a classifier,
            (K, H, W) of a segmentor, features of a backbone; for a list of names a dict, name ->
            that.

        Raises:
            UserError: If there is no such task, or there are not as many names as images.
        """
        listed = list(images)
        jobs = self._jobs(listed, tasks, lambda image: tuple(image.shape))
        found = self._run([
            partial(self._scores, task, loading.as_batch([listed[i] for i in chosen]))
            if len(chosen) < len(listed) or not isinstance(images, Tensor)
            else partial(self._scores, task, images)
            for _, task, chosen in jobs],
            all(sum(listed[i][0].numel() for i in chosen) >= ENOUGH_PIXELS for *_, chosen in jobs))
        return self._in_order(tasks, jobs, found)

    @staticmethod
    def _scores(task: Task, images: Tensor) -> list[Any]:
        with task.model() as model:
            return loading.split(task.scores(model, images), len(images))

    @staticmethod
    def _results(task: Task, images: list, probabilities: bool | str) -> list[Any]:
        with task.model() as model:
            return task.predict(model, images, probabilities)

    def predict(
        self, images: Iterable[Any], tasks: Sequence[str | Sequence[str]],
        probabilities: bool | str = False,
    ) -> list[Any]:
        """Predict images as :func:`vpt_dense.load` of each task's delta does, in one pass.

        Args:
            images: Paths, PIL images, arrays or tensors, as its ``predict`` takes them. Each task
                reads, resizes and normalises its images as its own config says.
            tasks: As when it is called.
            probabilities: As there; for tasks of configs alone.

        Returns:
            As when it is called, with what ``predict`` of the task gives for an image.

        Raises:
            UserError: As when it is called, or if an image cannot be read, or a task is a model
                that cannot predict.
        """
        listed = list(images)
        jobs = self._jobs(listed, tasks, lambda image: ())
        for name, task, _ in jobs:
            if task.predict is None:
                kind = type(task.structure.any()).__name__
                raise UserError(f'task {name}: a {kind} has no predict, call the MultiTask with '
                                'normalised images')  # fmt: skip
        found = self._run([
            partial(self._results, task, [listed[i] for i in chosen], probabilities)
            for _, task, chosen in jobs],
            # In lockstep what tasks of an image share is kept for one of its windows alone.
            sum(len(chosen) for *_, chosen in jobs) == len(listed))
        return self._in_order(tasks, jobs, found)

    def _jobs(
        self, images: Sequence[Any], tasks: Sequence[Any], kind: Any
    ) -> list[tuple[str, Task, tuple[int, ...]]]:
        """(Name, task, which images): images that go to the same tasks stay together."""
        if isinstance(tasks, str) or len(tasks) != len(images):
            raise UserError(
                f'MultiTask: tasks must be a list of {len(images)} names, one for each image, '
                f'found {tasks!r}')
        groups: dict[tuple, list[int]] = {}
        for i, each in enumerate(tasks):
            names = (each,) if isinstance(each, str) else tuple(each)
            if not names or len(set(names)) != len(names):
                raise UserError(f'MultiTask: tasks[{i}] must be a name or different names, found '
                                f'{each!r}')  # fmt: skip
            groups.setdefault((kind(images[i]), frozenset(names)), []).append(i)
        found, known = {}, {}
        for (_, names), chosen in groups.items():
            for name in sorted(names):
                known[name] = known.get(name) or self._find(name)
                found[name, tuple(chosen)] = known[name]
        # In the order in which tasks came, so that a batch is computed in the same way again.
        return [(name, task, chosen) for (name, chosen), task in found.items()]

    def _run(self, functions: list[Any], large: bool) -> list[Any]:
        """Run the jobs.

        Args:
            functions: They.
            large: Whether on a CPU each may be computed by itself.
        """
        if len(functions) < 2:  # it meets nobody
            with torch.no_grad():
                return [function() for function in functions]
        # Half precision on a CPU casts each weight where it is used, once for all in lockstep.
        in_turn = (
            large and self.device.type == 'cpu' and not torch.is_autocast_enabled('cpu'))
        return Meeting(self.frozen.places, functions, in_turn, self.frozen.is_half).run()

    @staticmethod
    def _in_order(tasks: Sequence[Any], jobs: list, found: list[list[Any]]) -> list[Any]:
        of: dict[tuple[str, int], Any] = {}
        for (name, _, chosen), results in zip(jobs, found, strict=True):
            of.update({(name, i): result for i, result in zip(chosen, results, strict=True)})
        return [
            of[each, i] if isinstance(each, str) else {name: of[name, i] for name in each}
            for i, each in enumerate(tasks)]

    # --- what is there

    def plan(self, tasks: Sequence[str | Sequence[str]]) -> dict[str, Planned]:
        """How a mixed batch would be computed.

        Args:
            tasks: As when it is called.

        Returns:
            Name of each task -> its part.
        """
        jobs = self._jobs([None] * len(tasks), tasks, lambda image: ())
        found: dict[str, Planned] = {}
        for name, task, chosen in jobs:
            before = found[name].images if name in found else 0
            own = task.structure
            found[name] = Planned(
                before + len(chosen), own.depth, len(own.backbone.block_list()), own.own_layers)
        return found

    def export(
        self, out: str | os.PathLike, size: int | Sequence[int],
        tasks: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Write tasks as one file of ONNX or torch.export, with the task as an input.

        The frozen weights are in it once. It takes ``images``, (B, C, H, W) float32, normalised as
        when the MultiTask is called, and ``task``, int64 without axes: the number of the task in
        the list, which all images of a batch share. It gives ``scores``, (B, K) or (B, K, H, W),
        where K is the largest number of classes; those that a task does not have are -inf. Each
        task is compared with the model before the file is kept.

        Args:
            out: The file, ``.onnx`` or ``.pt2``.
            size: Of the images, in pixels, or (height, width).
            tasks: Their names, in the order of their numbers; None: all.

        Returns:
            The card that is in the file as JSON (``vpt_dense`` in the metadata): ``tasks``, names
            in order, ``channels``, the classes of each, ``input``.

        Raises:
            UserError: If there is no such task, tasks give scores of different kinds (a number for
                each class, and maps of them), or a model has no such graph.
        """
        from vpt_dense.multitask import exporting

        pair = (size, size) if isinstance(size, int) else tuple(size)
        if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
            raise UserError(f'export: size must be pixels, or (height, width), found {size!r}')
        names = self.tasks if tasks is None else tuple(tasks)
        if isinstance(tasks, str) or len(set(names)) != len(names):
            raise UserError(f'export: tasks must be different names, found {tasks!r}')
        found = {name: self._find(name) for name in names}
        return exporting.export(self.frozen, found, out, pair, self.frozen.channels)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in memory: the frozen ones once, and what each task adds."""
        return self.frozen.nbytes + self.cache_info()['bytes']

    def __repr__(self) -> str:
        tasks = ', '.join(self.tasks) or 'no tasks'
        return (f'{type(self).__name__}({self.frozen.told}, {self.nbytes / 1e6:,.1f} MB, '
                f'{self.device}: {tasks})')  # fmt: skip


@dataclass
class _Entry:
    """A task that may be in memory.

    Attributes:
        path: Of its file; empty: it is a model.
        pinned: Whether it stays in memory.
        used: When it was asked for last, a number that grows.
        task: It, while it is there.
        about: What it predicts.
    """

    path: str
    pinned: bool
    used: int = 0
    task: Task | None = None
    about: About | None = None

    def forget(self) -> None:
        """Let it go; a pass that runs keeps it until it ends."""
        task, self.task = self.task, None
        if task is not None:
            task.structure.forget(task)


def parse_bytes(cache: int | str) -> int:
    """A number of bytes from ``512_000_000`` or ``'512MB'``.

    Raises:
        UserError: If it is none.
    """
    units = dict(B=1, KB=10**3, MB=10**6, GB=10**9)
    found = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMG]?B)', cache) if isinstance(cache, str) else None
    if found:
        return int(float(found[1]) * units[found[2]])
    if isinstance(cache, int) and not isinstance(cache, bool) and cache >= 0:
        return cache
    raise UserError(f"cache must be a number of bytes, or a text like '512MB', found {cache!r}")
