"""Makes mmengine write files of a run completely; if it cannot, one line says why."""

import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import mmengine
import numpy as np
from mmengine.config import Config
from mmengine.fileio.backends import LocalBackend as _LocalBackend
from mmengine.fileio.backends import register_backend
from mmengine.visualization import LocalVisBackend as _LocalVisBackend
from mmengine.visualization.vis_backend import force_init_env

from vpt_dense import safe_files
from vpt_dense.errors import FULL


class LocalBackend(_LocalBackend):
    """Writes of mmengine and mmcv (pictures, JSON): complete, also below a very long name."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes."""
        with safe_files.atomic(safe_files.shortened(filepath)) as unfinished:
            unfinished.write_bytes(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = 'utf-8') -> None:
        """Write text."""
        self.put(obj.encode(encoding), filepath)


register_backend('local', LocalBackend, force=True, prefixes='')


class LocalVisBackend(_LocalVisBackend):
    """mmengine's, which leaves half a config and no word of a picture where the disk is full."""

    @force_init_env
    def add_config(self, config: Config, **kwargs: Any) -> None:
        """Write the config."""
        safe_files.write_text(self._config_save_file, config.pretty_text)

    @force_init_env
    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Write a picture: RGB, uint8 (H, W, 3)."""
        _, content = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        LocalBackend().put(content.tobytes(), Path(self._img_save_dir, f'{name}_{step}.png'))

    def _dump(self, value_dict: dict, file_path: str, file_format: str) -> None:
        line = mmengine.dump(value_dict, file_format=file_format)
        before = os.path.getsize(file_path) if os.path.exists(file_path) else None
        try:
            with safe_files.told(file_path), open(file_path, 'a', encoding='utf-8') as stream:
                stream.write(f'{line}\n')
        except Exception:
            if before is not None:
                os.truncate(file_path, before)
            raise


def use_in(visualizer: dict) -> dict:
    """A visualizer's config with :class:`LocalVisBackend` in place of mmengine's."""
    backends = [
        dict(backend, type=LocalVisBackend, name=backend.get('name', 'LocalVisBackend'))
        if backend.get('type') in ('LocalVisBackend', 'mmengine.LocalVisBackend') else backend
        for backend in visualizer.get('vis_backends') or ()
    ]  # fmt: skip
    return {**visualizer, 'vis_backends': backends} if backends else visualizer


def watch(logger: logging.Logger) -> None:
    """Let a log file that cannot be written end the run: logging would print a trace a line."""
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handleError = partial(_stop, handler)


def _stop(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    error = sys.exc_info()[1]
    if isinstance(error, OSError) and error.errno in FULL:
        with safe_files.told(handler.baseFilename):
            raise error
    logging.FileHandler.handleError(handler, record)
