"""The HTTP interface of an ML backend, as Label Studio asks for it."""

import base64
import json
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vpt_dense.client import Client, Task
from vpt_dense.errors import UserError
from vpt_dense.labelling import forms
from vpt_dense.labelling.studio import Studio
from vpt_dense.labelling.training import Trainer

#: Seconds for which the list of tasks is not asked for again.
_FRESH = 2.0


def say(text: str) -> None:
    """A line of the log."""
    print(f'{time.strftime("%H:%M:%S")} {text}', file=sys.stderr, flush=True)


class Backend:
    """Answers Label Studio.

    Args:
        server: A client of ``vpt-dense serve``.
        task: The name of the task.
        studio: Label Studio, which has the images.
        trainer: Tunes anew from what was labelled; None: nobody asked for it.
        every: So many images, labelled anew or again, start a training; 0: none does.
        classes: Of a task that the server does not have yet.
    """

    def __init__(
        self, server: Client, task: str, studio: Studio, trainer: Trainer | None = None,
        every: int = 0, classes: Sequence[str] = (),
    ) -> None:
        self.server, self.name, self.studio = server, task, studio
        self.trainer, self.every, self.classes = trainer, every, tuple(classes)
        self._known: tuple[float, Task] | None = None
        self._changed: set[Any] = set()

    def task(self) -> Task:
        """The task as the server has it; one of no file if it has it not yet.

        Raises:
            UserError: If it cannot be reached, or has it not and the classes are not known.
        """
        if self._known is None or time.monotonic() - self._known[0] > _FRESH:
            tasks = {task.name: task for task in self.server.tasks()}
            if self.name not in tasks and self.classes:
                return Task(self.name, 'segmentation', self.classes)
            if self.name not in tasks:
                raise UserError(
                    f'{self.server.url} has no task {self.name}; it has '
                    f'{", ".join(tasks) or "none"}; of one that is yet to be made give --classes')
            if self.classes not in ((), tasks[self.name].classes):
                raise UserError(
                    f'--classes {" ".join(self.classes)}: task {self.name} of {self.server.url} '
                    f'has {", ".join(tasks[self.name].classes)}')
            self._known = time.monotonic(), tasks[self.name]
        return self._known[1]

    def setup(self, request: dict[str, Any]) -> dict[str, Any]:
        """``/setup``: whether a labelling config fits, and which version predicts."""
        task = self.task()
        if request.get('schema'):
            forms.read_config(request['schema'], task)
        return dict(model_version=forms.version(task))

    def health(self) -> dict[str, Any]:
        """``/health``."""
        told = dict(status='UP', model_class='vpt_dense')
        if self.trainer:
            told['training'] = dict(self.trainer.state)
        return told

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """``/predict``: of each task a prediction; of one whose image cannot be had none.

        Raises:
            UserError: If the labelling config does not fit, or the server cannot be reached.
        """
        task = self.task()
        control = forms.read_config(request.get('label_config') or '', task)
        found: list = []
        if not task.sha256:  # it is yet to be made
            return dict(results=[[] for _ in request.get('tasks') or []])
        for each in request.get('tasks') or []:
            try:
                image = self.studio.image(each, control.field)
            except UserError as error:
                say(f'task {each.get("id")}: {error}')
                found.append([])
                continue
            try:
                result = self.server.predict(image, self.name)
            except UserError as error:
                if getattr(error, 'status', None) not in (400, 413, 415, 422):
                    raise
                say(f'task {each.get("id")}: {error}')
                found.append([])
                continue
            found.append(forms.prediction(result, control, task))
        return dict(results=found)

    def webhook(self, request: dict[str, Any]) -> dict[str, Any]:
        """``/webhook``: starts a training when a person asks for one, or enough was labelled.

        Raises:
            UserError: If training was asked for and cannot start.
        """
        action, project = request.get('action'), (request.get('project') or {}).get('id')
        if action == 'START_TRAINING':
            return self.train(project)
        if action in ('ANNOTATION_CREATED', 'ANNOTATION_UPDATED') and self.every:
            self._changed.add((request.get('task') or {}).get('id'))
            if len(self._changed) >= self.every and not self.trainer.is_busy():
                return self.train(project)
        return {}

    def train(self, project: Any) -> dict[str, Any]:
        """Start a training on the annotations of a project.

        Raises:
            UserError: If it cannot be, or one runs already.
        """
        if self.trainer is None:
            raise UserError('training was not set up: start the backend with --train CONFIG')
        if not isinstance(project, int) and not str(project).isdigit():
            raise UserError(f'the project {project!r} is no number')
        task = self.task()
        self.trainer.start(int(project), task)
        self._changed.clear()
        self._known = None
        return dict(status='ok', job=self.trainer.state['run'])


def build(backend: Backend, password: str | None = None) -> Any:
    """The application, for uvicorn.

    Args:
        backend: What it answers.
        password: Of HTTP's basic authentication, with any user; None: everybody may ask.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def refuse(status: int, text: str, **headers: str) -> JSONResponse:
        say(f'{status}: {text}')
        return JSONResponse(dict(error=text), status, headers)

    def route(path: str, answer: Callable, method: str, status: int = 200) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            if password and not _is_right(request.headers.get('authorization', ''), password):
                return refuse(401, 'the password is wrong', **{'WWW-Authenticate': 'Basic'})
            arguments = []
            if method == 'POST':
                try:
                    content = json.loads(await request.body() or b'{}')
                except ValueError:
                    return refuse(400, 'the body is no JSON')
                if not isinstance(content, dict):
                    return refuse(400, 'the body is no object of JSON')
                arguments = [content]
            try:
                return JSONResponse(await run_in_threadpool(answer, *arguments), status)
            except UserError as error:
                return refuse(400, ' '.join(str(error).split()))

        return Route(path, endpoint, methods=[method])

    def old_train(request: dict[str, Any]) -> dict[str, Any]:
        return backend.train(str(request.get('project', '')).partition('.')[0])  # 7.1700000000

    return Starlette(routes=[
        route('/', backend.health, 'GET'), route('/health', backend.health, 'GET'),
        route('/setup', backend.setup, 'POST'), route('/predict', backend.predict, 'POST'),
        route('/webhook', backend.webhook, 'POST', 201), route('/train', old_train, 'POST', 201)])


def _is_right(header: str, password: str) -> bool:
    kind, _, code = header.partition(' ')
    try:
        given = base64.b64decode(code, validate=True).partition(b':')[2]
    except ValueError:
        return False
    return kind.lower() == 'basic' and secrets.compare_digest(given, password.encode())


def read_word(path: str | Path, option: str) -> str:
    """A key or a password: the only word of a file.

    Raises:
        UserError: If there is none, or several.
    """
    words = Path(path).read_text(encoding='utf-8', errors='replace').split()
    if len(words) != 1:
        raise UserError(f'{option} {path} must hold one word, found {len(words)}')
    return words[0]
