"""mmengine's checkpoint loaders, made safe: importing this module is enough.

mmengine falls back to unpickling anything when a safe load is refused, and loads what it downloads
without a safe attempt. ``init_cfg`` of any module, ``load_from`` and the inferencers of mmseg and
mmpretrain all come here; afterwards they read files through :mod:`vpt_dense.files`.
"""

import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.runner import checkpoint as _mmengine

from vpt_dense import files


def _load_file(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """In place of mmengine's ``_safe_torch_load``: a path, or a stream with a whole file."""
    if not hasattr(file, 'read'):
        return files.read(os.fspath(file), map_location)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, 'downloaded.pth')
        copy.write_bytes(file.read())
        return files.read(copy, map_location)


def load_url(
    url: str,
    model_dir: str | None = None,
    map_location: Any = None,
    progress: bool = True,
    **_: Any,
) -> Any:
    """Download a file into torch's cache, unless it is there, and read it safely.

    Args:
        url: http(s) address; a hash in the name (``-<sha256>.pth``) is not compared.
        model_dir: The cache, default ``$TORCH_HOME/hub/checkpoints``.
        map_location: As in ``torch.load``.
        progress: Show a bar while downloading.

    Raises:
        UserError: If the file is damaged or would run code.
    """
    folder = Path(model_dir or Path(torch.hub.get_dir(), 'checkpoints'))
    file = folder / Path(urlparse(url).path).name
    if not file.is_file():
        with files.atomic(file) as unfinished:
            torch.hub.download_url_to_file(url, str(unfinished), progress=progress)
    return files.read(file, map_location)


@_mmengine.CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """What mmengine calls for every local file."""
    return files.read(filename, map_location)


_mmengine._safe_torch_load = _load_file  # files of the object stores
_mmengine.load_url = load_url  # http(s), and the model zoos that lead there
