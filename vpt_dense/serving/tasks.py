"""The folder of deltas: what is in it can be asked for, and what changes there is loaded again."""

import contextlib
import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vpt_dense import safe_files
from vpt_dense.errors import UserError, explain
from vpt_dense.multitask.loading import About, Loader, Task
from vpt_dense.multitask.model import MultiTask
from vpt_dense.serving.logs import log
from vpt_dense.serving.metrics import Metrics
from vpt_dense.serving.settings import NAME, SUFFIX, Refused, Settings

#: Kinds of tasks whose results have a form here (:mod:`vpt_dense.serving.answers`).
KINDS = ('segmentation', 'classification', 'depth', 'normals')


class Served(MultiTask):
    """Many tasks on a backbone; results come with what the task was that gave them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loader = _Checking(self.frozen)

    @staticmethod
    def _results(task: Task, images: list, probabilities: bool | str) -> list[tuple[About, Any]]:
        results = MultiTask._results(task, images, probabilities)
        return [(task.about, result) for result in results]


class _Checking(Loader):
    """Loads what can be served."""

    def load(self, source: Any, name: str) -> Task:
        task = super().load(source, name)
        if task.predict is None or task.about is None:
            raise UserError(f'task {name}: its model has no head that predicts')
        if task.about.kind not in KINDS:
            raise UserError(f'task {name} is one of {task.about.kind}; served are '
                            f'{", ".join(KINDS)}')  # fmt: skip
        for key, tensor in task.tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise UserError(f'task {name}: {key} has values that are not finite')
        return task


@dataclass(frozen=True)
class _File:
    """A file that was accepted: the copy of it that tasks are read from, however it changes."""

    copy: Path
    sha256: str
    bytes: int


class Folder:
    """The tasks of a folder.

    Args:
        settings: Of the server.
        spool: A folder of the server's own, for the copies that tasks are read from.

    Attributes:
        model: Holds the tasks that can be asked for.
        told: What the backbone is.
        backend: What computes, see :data:`vpt_dense.serving.settings.BACKENDS`.
        broken: Name of a file without suffix -> why it is not loaded. A task of this name is the
            one that was there before.

    Raises:
        UserError: If the folder is not there, or the frozen weights cannot be had.
    """

    def __init__(self, settings: Settings, spool: Path) -> None:
        self.path, self._spool = settings.folder, spool
        if not self.path.is_dir():
            raise UserError(f'--tasks {self.path}: no such folder')
        self.broken: dict[str, str] = {}
        self._files: dict[str, _File] = {}
        self._seen: dict[str, tuple] = {}
        self._unfinished: dict[str, tuple] = {}
        self._counter = 0
        self._lock = threading.RLock()
        self.model: Any = self._build(settings)
        self.told, self.backend = self.model.frozen.told, settings.backend
        self.metrics = Metrics(lambda: self.model.cache_info())
        self.look(settled=True)

    def _build(self, settings: Settings) -> Served:
        options = dict(base=settings.base, device=settings.device, cache=settings.cache)
        source = settings.backbone
        if source is not None:
            if not (os.path.exists(source) or source.startswith('zoo::')
                    or source.endswith((SUFFIX, '.pth'))):  # fmt: skip
                from vpt_dense.plain import models

                if settings.base is not None:
                    raise UserError('--base is for the weights of a delta; --backbone NAME has its '
                                    'own')
                source = models.create_backbone(source, 'head')
            return Served(source, **options)
        fault = ''
        for name, path in self._listed().items():
            if not NAME.fullmatch(name):
                continue
            try:
                return Served(self._copy(name, path).copy, **options)
            except UserError as error:
                fault = fault or f' ({path.name}: {error})'
        raise UserError(f'--tasks {self.path} holds no delta that says what its frozen weights '
                        f'are{fault}; name them with --backbone')

    def _listed(self) -> dict[str, Path]:
        return {path.name.removesuffix(SUFFIX): path for path in sorted(self.path.iterdir())
                if path.suffix == SUFFIX and not path.name.startswith('.')}

    # --- reading

    def look(self, settled: bool = False) -> None:
        """Look at the folder: load what is new or has changed, remove what has gone.

        Args:
            settled: Whether files count as whole; else one that has changed is loaded when the next
                look finds it unchanged, as it may still be written.
        """
        with self._lock:
            listed = self._listed()
            for name in [*self._files]:
                if name not in listed:
                    self._forget(name)
                    log('task_removed', task=name)
            for name in {*self.broken, *self._seen} - set(listed):
                self.broken.pop(name, None)
                self._seen.pop(name, None)
            for name, path in listed.items():
                state = state_of(path)
                if state is None or state == self._seen.get(name):
                    continue
                if not settled and state != self._unfinished.get(name):
                    self._unfinished[name] = state
                    continue
                self._unfinished.pop(name, None)
                self._seen[name] = state
                self._load(name, path)
            self._count()

    def _load(self, name: str, path: Path) -> None:
        try:
            if not NAME.fullmatch(name):
                raise UserError('no name for a task (letters, digits, . _ -, at most 64)')
            if name in self._files and self._files[name].sha256 == _sha256(path):
                self.broken.pop(name, None)
                return
            self._accept(name, self._copy(name, path))
        except Exception as error:
            reason = self.explain(error)
            self.broken[name] = reason
            self.metrics.loads.labels('refused').inc()
            kept = 'the task stays what it was' if name in self._files else 'there is no such task'
            log('task_refused', 'error', task=name, error=reason, result=kept)
            return
        log('task_loaded', task=name, sha256=self._files[name].sha256)

    def _copy(self, name: str, path: Path) -> _File:
        """Copy a file; what is checked is then what is loaded, now and later.

        Raises:
            UserError: If it is no whole safetensors file.
        """
        self._counter += 1
        copy = self._spool / f'{self._counter}.{name}{SUFFIX}'
        shutil.copyfile(path, copy)
        try:
            return check_file(copy)
        except BaseException:
            copy.unlink()
            raise

    def _accept(self, name: str, file: _File) -> None:
        """Load a copy as a task, all or nothing."""
        try:
            self.model.add(name, file.copy)
        except BaseException:
            file.copy.unlink()
            raise
        old = self._files.pop(name, None)
        self._files[name] = file
        self.broken.pop(name, None)
        self.metrics.loads.labels('loaded').inc()
        if old is not None:
            old.copy.unlink()

    def _forget(self, name: str) -> None:
        self.model.remove(name)
        self._files.pop(name).copy.unlink()
        self.broken.pop(name, None)
        self._seen.pop(name, None)

    def _count(self) -> None:
        self.metrics.tasks.set(len(self._files))
        self.metrics.broken.set(len(self.broken))

    def explain(self, error: Exception) -> str:
        """An error in one line, with names of files as clients know them."""
        text = re.sub(rf'{re.escape(str(self._spool))}{os.sep}(\d+\.)?', '', explain(error))
        return ' '.join(text.replace(f'{self.path}{os.sep}', '').split())

    # --- changing

    def check_changes(self) -> None:
        """Check whether tasks can be changed by requests at all: here they can."""

    @contextlib.contextmanager
    def upload(self) -> Iterator[Path]:
        """A file of the spool to write to, which goes afterwards."""
        with self._lock:
            self._counter += 1
            path = self._spool / f'upload-{self._counter}'
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, name: str, path: Path) -> bool:
        """Put a file into the folder, as a task that can be asked for when this returns.

        Args:
            name: Of the task.
            path: The file.

        Returns:
            Whether there was none of this name.

        Raises:
            Refused: If it is no delta for this backbone, or cannot be written; the folder and the
                task of this name are what they were.
        """
        target = self.path / f'{name}{SUFFIX}'
        with self._lock:
            old = self._files.get(name)
            kept = self._spool / f'kept{SUFFIX}'
            if old is not None:
                os.link(old.copy, kept)
            try:
                with safe_files.atomic(target) as unfinished:
                    shutil.copyfile(path, unfinished)
                    self._check_and_accept(name, path)
            except Exception as error:
                if self._files.get(name) is not old:  # loaded, and then it could not be put there
                    if old is None:
                        self._forget(name)
                    else:
                        self._accept(name, self._copy(name, kept))
                if isinstance(error, UserError):  # the disk is full, or not to be written to
                    raise Refused(507, self.explain(error)) from error
                raise
            finally:
                kept.unlink(missing_ok=True)
            self._seen[name] = state_of(target) or ()
            self._count()
            log('task_put', task=name, sha256=self._files[name].sha256)
            return old is None

    def _check_and_accept(self, name: str, path: Path) -> None:
        try:
            self._accept(name, self._copy(name, path))
        except (MemoryError, OSError):
            raise
        except Exception as error:  # whatever a file that is none makes its readers raise
            raise Refused(400, self.explain(error)) from error

    def delete(self, name: str) -> None:
        """Remove a task and its file.

        Raises:
            Refused: If there is none of this name.
        """
        with self._lock:
            if name not in self._files:
                raise self.unknown(name)
            (self.path / f'{name}{SUFFIX}').unlink(missing_ok=True)
            self._forget(name)
            self._count()
            log('task_deleted', task=name)

    # --- telling

    def unknown(self, name: str) -> Refused:
        """What to say of a task that is not there."""
        known = ', '.join(self.model.tasks[:20]) or 'none'
        return Refused(404, f'there is no task {name!r}; there are {known}')

    def describe(self) -> dict[str, Any]:
        """The backbone and the tasks, as data for JSON."""
        rows = []
        with self._lock:
            for name, file in sorted(self._files.items()):
                about = self.model.about(name)
                rows.append(dict(
                    name=name, kind=about.kind, classes=list(about.classes),
                    palette=palette_of(about), ids=list(about.ids), sha256=file.sha256,
                    bytes=file.bytes))
        return dict(backbone=self.told, backend=self.backend, tasks=rows)


def palette_of(about: About) -> list[list[int]] | None:
    """Colours of the classes of label maps; None: there are none."""
    if about.kind != 'segmentation':
        return None
    if about.palette is not None:
        return about.palette
    from vpt_dense import visualization

    return [list(map(int, colour)) for colour in visualization.make_palette(len(about.classes))]


def check_file(path: Path) -> _File:
    """Check that a file is whole, and safetensors whatever its name: nothing else is read.

    Raises:
        UserError: If not.
    """
    safe_files.check(path)
    if safe_files.kind(path) != 'safetensors':
        raise UserError(f'{path.name} is no safetensors file')
    return _File(path, _sha256(path), path.stat().st_size)


def _sha256(path: Path) -> str:
    with path.open('rb') as stream:
        sha256 = hashlib.sha256()
        while block := stream.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()


def same_file(path: Path, file: _File) -> bool:
    """Whether a file holds what was accepted."""
    try:
        return _sha256(path) == file.sha256
    except OSError:
        return False


def state_of(path: Path) -> tuple | None:
    """What changes with a file; None: it is not there."""
    try:
        told = path.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_size, told.st_ino
