"""What a server is told at its start."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpt_dense.errors import UserError

#: The names that tasks may have: names of files that mean nothing else to a shell or a path.
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
SUFFIX = '.safetensors'
#: What answers can be asked for as.
FORMATS = ('json', 'png', 'npy')
#: What computes: the models as they are, or one graph of all tasks in ONNX Runtime.
BACKENDS = ('eager', 'onnx', 'onnx-int8')
_PATH, _NUMBER = (str, Path), (int, float)
#: Option of the command -> the types that its value may have.
_OPTIONS: dict[str, Any] = dict(
    tasks=_PATH, backbone=str, base=str, host=str, port=int, keys=_PATH, cache=str, max_batch=int,
    wait_ms=_NUMBER, queue=int, max_bytes=str, max_pixels=str, timeout=_NUMBER, device=str,
    backend=str, graph=_PATH, size=(list, tuple), samples=_PATH)


@dataclass(frozen=True)
class Settings:
    """What a server is told at its start.

    Attributes:
        folder: Holds NAME.safetensors, the deltas of the tasks.
        backbone: What the frozen weights come from: a delta, or the name of a backbone, as
            :func:`vpt_dense.create_backbone` has it; None: the first delta of the folder.
        base: The pretrained weights of a delta, where they are not at the place that it names.
        host: Address to listen at.
        port: And its port; 0: one that is free.
        keys: File of keys; None: everybody may predict, nobody may change tasks.
        cache: Bytes that the tensors of tasks may take together; None: all stay.
        max_batch: Pairs (image, task) that are computed together, at most.
        wait: Seconds that a request waits for others, to be computed with them.
        queue: Pairs that may wait; and requests whose bodies may come in at the same time.
        max_bytes: Of the body of a request.
        max_pixels: Of an image.
        timeout: Seconds that a request may take, from its first byte to its answer.
        device: ``cpu``, ``cuda``, ...
        backend: One of :data:`vpt_dense.serving.settings.BACKENDS`.
        graph: The file of the graph, which is written if it is not there; None: it does not stay.
        size: (height, width) in pixels of the images that the graph takes; None: as the tasks say.
        samples: Folder of images by which the graph is compared with the models.
        poll: Seconds between two looks at the folder and at the file of keys.
    """

    folder: Path
    backbone: str | None = None
    base: str | None = None
    host: str = '127.0.0.1'
    port: int = 8000
    keys: Path | None = None
    cache: int | None = None
    max_batch: int = 16
    wait: float = 0.005
    queue: int = 64
    max_bytes: int = 20 * 10**6
    max_pixels: int = 50 * 10**6
    timeout: float = 60.0
    device: str = 'cpu'
    backend: str = 'eager'
    graph: Path | None = None
    size: tuple[int, int] | None = None
    samples: Path | None = None
    poll: float = 1.0

    def __post_init__(self) -> None:
        for name in ('max_batch', 'queue', 'max_bytes', 'max_pixels', 'timeout', 'poll'):
            if not 0 < getattr(self, name) < float('inf'):
                raise UserError(f'--{name.replace("_", "-")} must be above 0, found '
                                f'{getattr(self, name)}')  # fmt: skip
        if not 0 <= self.wait < self.timeout:
            raise UserError('--wait-ms must be 0 or more, and less than --timeout')
        if not 0 <= self.port < 65536:
            raise UserError(f'--port must be from 0 to 65535, found {self.port}')
        if self.max_batch > self.queue:
            raise UserError(f'--max-batch {self.max_batch} is more than --queue {self.queue}: no '
                            'batch would ever be full')  # fmt: skip
        self._check_backend()

    def _check_backend(self) -> None:
        if self.backend not in BACKENDS:
            raise UserError(f'--backend must be one of {", ".join(BACKENDS)}, found '
                            f'{self.backend!r}')  # fmt: skip
        if self.backend == 'eager':
            for name in ('graph', 'size', 'samples'):
                if getattr(self, name) is not None:
                    raise UserError(f'--{name} is for --backend onnx and onnx-int8')
            return
        if self.cache is not None:
            raise UserError(f'--cache is for --backend eager: with {self.backend} all tasks are in '
                            'the graph')  # fmt: skip
        if self.device != 'cpu':
            raise UserError(f'--backend {self.backend} computes on CPUs, found --device '
                            f'{self.device}; leave one of them out')  # fmt: skip
        if self.backend == 'onnx-int8' and self.samples is None:
            raise UserError('--backend onnx-int8 needs --samples FOLDER: images like those that '
                            'will come, to see what int8 costs')  # fmt: skip
        if self.graph is not None and self.graph.suffix != '.onnx':
            raise UserError(f'--graph {self.graph}: give it the ending .onnx')
        size = self.size
        if size is not None and not (len(size) == 2 and all(
                isinstance(side, int) and side > 0 for side in size)):  # fmt: skip
            raise UserError(f'--size must be a height and a width in pixels, found {size!r}')


class Refused(Exception):
    """What a client is told instead of an answer.

    Args:
        status: Of HTTP.
        text: One line.
        headers: Further ones of the answer.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, ' '.join(text.split()), headers or {}


def check_name(name: str) -> None:
    """Check the name of a task.

    Raises:
        Refused: If a task cannot have it.
    """
    if not NAME.fullmatch(name):
        raise Refused(400, f'a task cannot be called {name[:80]!r}: names have letters, digits, . '
                      '_ and -, at most 64, and begin with a letter or a digit')  # fmt: skip


def read(options: Mapping[str, Any]) -> Settings:
    """Settings from the options of ``vpt-dense serve``.

    Args:
        options: Their names with ``_`` for ``-``, ``dict(tasks='deltas', cache='1GB')``; those that
            are None are not given.

    Raises:
        UserError: If there is no such option, or its value is wrong.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in _OPTIONS:
            raise UserError(f'there is no option {name!r}; there are {", ".join(_OPTIONS)}')
        kind = _OPTIONS[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            wanted = {int: 'a whole number', _NUMBER: 'a number', (list, tuple): 'two whole '
                      'numbers'}.get(kind, 'a text')  # fmt: skip
            raise UserError(f'--{name.replace("_", "-")} must be {wanted}, found {value!r}')
    if 'tasks' not in given:
        raise UserError('--tasks FOLDER is needed; see vpt-dense serve --help')
    given['folder'] = Path(given.pop('tasks'))
    for name in ('keys', 'graph', 'samples'):
        if name in given:
            given[name] = Path(given[name])
    if 'size' in given:
        given['size'] = tuple(given['size'])
    for name in ('cache', 'max_bytes'):
        if name in given:
            given[name] = _bytes(f'--{name.replace("_", "-")}', given[name])
    if 'max_pixels' in given:
        given['max_pixels'] = parse_pixels(given['max_pixels'])
    if 'wait_ms' in given:
        given['wait'] = given.pop('wait_ms') / 1000
    for name in ('max_batch', 'queue'):
        if given.get(name, 1) < 1:
            raise UserError(f'--{name.replace("_", "-")} must be 1 or more, found {given[name]}')
    return Settings(**given)


def _bytes(option: str, text: str) -> int:
    from vpt_dense.multitask.model import parse_bytes

    try:
        return parse_bytes(text)
    except UserError as error:
        raise UserError(f"{option} must be a size like '20MB', found {text!r}") from error


def parse_pixels(text: str) -> int:
    """A number of pixels from ``50M``, ``900K`` or ``1000``.

    Raises:
        UserError: If it is none.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([KMG]?)', text)
    if not found:
        raise UserError(f'--max-pixels must be a number such as 50M, found {text!r}')
    return int(float(found[1]) * {'': 1, 'K': 10**3, 'M': 10**6, 'G': 10**9}[found[2]])
