"""Tunes anew from what was labelled, in a process of its own, and gives the server the delta."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense.client import Client, Task
from vpt_dense.errors import UserError
from vpt_dense.labelling import forms
from vpt_dense.labelling.studio import Studio

#: Of so many labelled images one is for validation.
_FOLD = 5
_SUFFIXES = {'PNG': '.png', 'JPEG': '.jpg', 'BMP': '.bmp', 'TIFF': '.tif', 'WEBP': '.webp'}


def write_set(
    folder: Path, studio: Studio, tasks: Sequence[dict[str, Any]], control: forms.Control,
    task: Task,
) -> dict[str, int]:
    """Write labelled images as a data set: ``images/training``, ``annotations/training``, ...

    Every fifth image, in the order of the tasks, is for validation.

    Args:
        folder: Of the data set, which is made.
        studio: Has the images.
        tasks: Of Label Studio, with their annotations.
        control: Of the labelling config.
        task: What is tuned.

    Returns:
        The images of each split.

    Raises:
        UserError: If an image or a mask cannot be had, or there are fewer than two.
    """
    import PIL.Image

    if control.tag != 'BrushLabels':
        raise UserError(f'training is for segmentation, task {task.name} is of {task.kind}')
    chosen = [(each, forms.choose(each)) for each in sorted(tasks, key=lambda each: each['id'])]
    chosen = [(each, annotation) for each, annotation in chosen if annotation is not None]
    if len(chosen) < 2:
        raise UserError(f'{len(chosen)} labelled images are too few: label at least two')
    counts = dict(training=0, validation=0)
    last = len(chosen) - 1
    for position, (each, annotation) in enumerate(chosen):
        is_held = position % _FOLD == _FOLD - 1 or (last < _FOLD - 1 and position == last)
        split = 'validation' if is_held else 'training'
        try:
            content = studio.image(each, control.field)
            with PIL.Image.open(io.BytesIO(content)) as image:
                suffix = _SUFFIXES.get(image.format)
                turned = image.getexif().get(0x0112, 1) > 4  # lies on its side
                size = image.size if turned else image.size[::-1]
            if suffix is None:
                raise UserError(f'{image.format} is none of {", ".join(_SUFFIXES)}')
            mask = forms.mask(annotation, control, task.classes, size, task.ids)
        except (UserError, OSError) as error:
            raise UserError(f'task {each["id"]}: {error}') from error
        name = f'task_{each["id"]}'
        for kind in ('images', 'annotations'):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        (folder / 'images' / split / f'{name}{suffix}').write_bytes(content)
        PIL.Image.fromarray(np.ascontiguousarray(mask)).save(
            folder / 'annotations' / split / f'{name}.png')
        counts[split] += 1
    return counts


class Trainer:
    """Trains in the background, one run at a time.

    Args:
        server: A client of ``vpt-dense serve``, whose key has the role admin.
        studio: Label Studio.
        config: Of the training: a recipe of the served backbone, for a folder of images and masks.
        folder: Gets a folder for each run.
        method: As in ``vpt-dense train --method``.
        cfg_options: As there.
        say: Gets a line whenever something happens.

    Attributes:
        state: ``status`` (idle, training, failed or done), ``run``, its folder, and ``message``.
    """

    def __init__(
        self, server: Client, studio: Studio, config: str, folder: Path,
        method: str | None = None, cfg_options: Sequence[str] = (),
        say: Callable[[str], object] = print,
    ) -> None:
        self.server, self.studio, self.config, self.folder = server, studio, config, folder
        self.method, self.cfg_options, self.say = method, list(cfg_options), say
        self.state: dict[str, Any] = dict(status='idle', run=None, message='')
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen | None = None

    def is_busy(self) -> bool:
        """Whether a training runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, project: int, task: Task) -> None:
        """Start a training.

        Args:
            project: Of Label Studio: its number.
            task: What is tuned.

        Raises:
            UserError: If one runs already.
        """
        with self._lock:
            if self.is_busy():
                raise UserError(f'a training runs already: {self.state["run"]}')
            stem = time.strftime('%Y%m%d_%H%M%S')
            run = self.folder / stem
            for number in range(2, 1000):
                if not run.exists():
                    break
                run = self.folder / f'{stem}_{number}'
            run.mkdir(parents=True)
            self.state = dict(status='training', run=str(run), message='')
            self._thread = threading.Thread(target=self._go, args=(project, task, run))
            self._thread.start()

    def wait(self) -> None:
        """Wait for the end of a training."""
        if self._thread is not None:
            self._thread.join()

    def stop(self) -> None:
        """End a training that runs."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
        self.wait()

    def _go(self, project: int, task: Task, run: Path) -> None:
        try:
            message = self._train(project, task, run)
            self.state = dict(status='done', run=str(run), message=message)
        except Exception as error:  # of a thread: told, and the next training may start
            text = ' '.join(str(error).split()) or repr(error)
            self.state = dict(status='failed', run=str(run), message=text)
        self.say(f'training {self.state["status"]}: {self.state["message"]} ({run})')

    def _train(self, project: int, task: Task, run: Path) -> str:
        config, tasks = self.studio.project(project)
        control = forms.read_config(config, task)
        counts = write_set(run / 'data', self.studio, tasks, control, task)
        self.say(f'training on {counts["training"]} images, {counts["validation"]} for validation')
        work = run / 'work'
        method = ['--method', self.method] if self.method else []
        self._call(run, 'train', self.config, *method, '--work-dir', str(work), '--cfg-options',
                   *self.cfg_options, f'dataset.data_root={run / "data"}',
                   f'dataset.classes={list(task.classes)}')
        last = (work / 'last_checkpoint').read_text(encoding='utf-8').strip()
        delta = run / f'{task.name}.safetensors'
        self._call(run, 'delta', 'extract', last, str(delta))
        self.server.add_task(task.name, delta)
        return f'{sum(counts.values())} labelled images, {delta.stat().st_size:,} bytes served'

    def _call(self, run: Path, *command: str) -> None:
        log = run / 'log.txt'
        with log.open('ab') as stream:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'vpt_dense', *command], stdin=subprocess.DEVNULL,
                stdout=stream, stderr=subprocess.STDOUT, env=dict(os.environ))
            code = self._process.wait()
        if code:
            lines = log.read_text(errors='replace').strip().splitlines()
            said = next((line for line in reversed(lines) if line.startswith('error: ')), '')
            raise UserError(
                f'vpt-dense {command[0]} ended with {code}: {said.removeprefix("error: ") or log}')
