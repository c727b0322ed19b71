"""What a server is told at its start."""

import re
from dataclasses import dataclass
from pathlib import Path

from vpt_dense.errors import UserError

#: The names that tasks may have: names of files that mean nothing else to a shell or a path.
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
SUFFIX = '.safetensors'
#: What answers can be asked for as.
FORMATS = ('json', 'png', 'npy')


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


def parse_pixels(text: str) -> int:
    """A number of pixels from ``50M``, ``900K`` or ``1000``.

    Raises:
        UserError: If it is none.
    """
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([KMG]?)', text)
    if not found:
        raise UserError(f'--max-pixels must be a number such as 50M, found {text!r}')
    return int(float(found[1]) * {'': 1, 'K': 10**3, 'M': 10**6, 'G': 10**9}[found[2]])
