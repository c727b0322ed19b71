"""What is there of an image that is predicted tile by tile: after a kill it goes on from there."""

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from vpt_dense import safe_files

#: Below the folder of the results.
FOLDER = '.partial'


class Partial:
    """Labels of an image in a file that is kept until the image is written.

    Args:
        folder: Where to; None: in the folder for temporary files, and nothing outlives the process.
        image: The path of the image.
        shape: (height, width) of the labels.
        dtype: Of the labels.
        about: What must be the same to go on: the model, its settings.

    Attributes:
        labels: (height, width) of ``dtype``, on the disk.
        rows: The first rows that are done.
        files: What is to be removed when the image is written.
    """

    def __init__(
        self, folder: Path | None, image: str, shape: tuple[int, int], dtype: np.dtype,
        about: dict[str, Any],
    ) -> None:  # fmt: skip
        self.rows, self.files = 0, ()
        if folder is None:
            self.labels = safe_files.on_disk(shape, dtype)
            return
        known = os.stat(image)
        self.about = json.loads(json.dumps(dict(
            about, image=os.path.abspath(image), bytes=known.st_size, changed=known.st_mtime_ns,
            shape=shape, dtype=np.dtype(dtype).name)))
        name = hashlib.sha256(os.fsencode(os.path.abspath(image))).hexdigest()[:16]
        labels, self.state = folder / f'{name}.labels', folder / f'{name}.json'
        self.files = labels, self.state
        with contextlib.suppress(OSError, ValueError, KeyError):
            said = json.loads(self.state.read_text(encoding='utf-8'))
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            if said['about'] == self.about and labels.stat().st_size == size:
                self.rows = int(said['rows'])
        folder.mkdir(parents=True, exist_ok=True)
        if not self.rows:
            self.state.unlink(missing_ok=True)
            with safe_files.told(labels), labels.open('wb') as stream:
                os.posix_fallocate(
                    stream.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.labels = np.memmap(labels, dtype, 'r+', shape=shape)

    def done(self, rows: int) -> None:
        """Say that the first ``rows`` rows are there; they are on the disk from here on."""
        safe_files.release(self.labels)
        if self.files:
            safe_files.write_text(
                self.state, json.dumps(dict(rows=rows, about=self.about), indent=1) + '\n')
        self.rows = rows
