"""mmengine's checkpoint loaders, made safe: importing this module is enough.

mmengine falls back to unpickling anything when a safe load is refused, loads what it downloads
without a safe attempt, and executes the text of a config that it finds in a checkpoint. All of
``init_cfg`` of any module, ``load_from``, ``--resume`` and the inferencers of mmseg and mmpretrain
come here; afterwards they read files through :mod:`vpt_dense.safe_files`, and configs in them as
data.

Our tools import this module, and so does reading any config of ours (``custom_imports``) and
building a backbone of ours. What is left: an inferencer that is given a checkpoint and no config,
in a program that has imported nothing of vpt_dense, reads the file as mmengine does. Such programs
should ``import vpt_dense.weights.guard`` first.

The same places see to it that a config of ours means there what it means to our tools: mmengine's
``Runner.from_cfg`` resolves it (:func:`vpt_dense.config.resolve`); and heads that a checkpoint does
not fit are refused where mmengine would leave them at their random start with a warning.
"""

import copy
import functools
import os
import tempfile
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.runner import checkpoint as _mmengine
from torch import nn

from vpt_dense import safe_files, tasks
from vpt_dense.errors import UserError
from vpt_dense.weights import stored_config
from vpt_dense.weights.reading import download


def _load_file(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    """In place of mmengine's ``_safe_torch_load``: a path, or a stream with a whole file."""
    if not hasattr(file, 'read'):
        return safe_files.read(os.fspath(file), map_location)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, 'downloaded.pth')
        copy.write_bytes(file.read())
        return safe_files.read(copy, map_location)


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
    return safe_files.read(download(url, model_dir, progress), map_location)


@_mmengine.CheckpointLoader.register_scheme(prefixes='', force=True)
def load_from_local(filename: str, map_location: Any = None) -> Any:
    """The loader that mmengine calls for every local file."""
    return safe_files.read(filename, map_location)


def _fromstring(text: str, file_format: str) -> Config:
    """In place of ``Config.fromstring``: Python source is read as data.

    ``Runner.resume`` and inferencers without a config call it with a text out of a checkpoint; what
    it names as ``type`` will be built, so that may only be a name in a registry.
    """
    if file_format != '.py' or safe_files.allows_code():
        return _mmengine_fromstring(text, file_format)
    try:
        return stored_config.parse(text, 'that was loaded', everything=True)
    except UserError as error:
        raise UserError(
            f'{error}; or, if you trust whoever wrote it with all that you may do on this machine, '
            f'set {safe_files.ALLOW_PICKLE}=1'
        ) from error


def _load_state_dict(
    module: nn.Module, state_dict: dict, strict: bool = False, logger: Any = None
) -> None:
    """In place of mmengine's, which inferencers call without ``strict``.

    Raises:
        UserError: If a model with parts of ours would keep random heads.
    """
    if not strict and any(type(m).__module__.startswith('vpt_dense.') for m in module.modules()):
        own = module.state_dict()
        wrong = [
            f'{name} is {tuple(state_dict[name].shape)}, the model has {tuple(own[name].shape)}'
            for name in own if name in state_dict and not name.startswith('backbone.')
            and state_dict[name].shape != own[name].shape
        ]  # fmt: skip
        for head in (f'{name}.' for name in tasks.heads() if name != tasks.AUXILIARY):
            if any(name.startswith(head) for name in state_dict):
                wrong += [
                    f'it lacks {name}' for name in own
                    if name.startswith(head) and name not in state_dict
                    and not name.endswith('num_batches_tracked')
                ]  # fmt: skip
        if wrong:
            raise UserError(
                f'the checkpoint does not fit the model of the config: {wrong[0]} '
                f'({len(wrong)} tensors); name the config that the run has written into its '
                'work_dir: config files get their number of classes when our tools resolve them '
                '(in Python: vpt_dense.config.load(path))'
            )
    _mmengine_load_state_dict(module, state_dict, strict, logger)


def _init_runner(self: Runner, *args: Any, cfg: Any = None, **kwargs: Any) -> None:
    """In place of ``Runner.__init__``, which ``Runner.from_cfg`` calls with the parts of a config.

    ``from_cfg`` itself may have been looked up before the config was read, which imports this.
    """
    from vpt_dense import config, method_files

    if isinstance(cfg, Config) and config.is_ours(cfg):
        parts = [key for key, value in kwargs.items() if value is cfg.get(key)]
        cfg = copy.deepcopy(cfg)
        method_files.finish(cfg)
        config.resolve(cfg)
        config.drop_variables(cfg)
        kwargs.update((key, cfg.get(key)) for key in parts)
    _mmengine_init_runner(self, *args, cfg=cfg, **kwargs)


if Config.fromstring is not _fromstring:
    _mmengine_fromstring, Config.fromstring = Config.fromstring, staticmethod(_fromstring)
    _mmengine_load_state_dict = _mmengine.load_state_dict
    _mmengine_init_runner = Runner.__init__
_mmengine.load_state_dict = _load_state_dict
Runner.__init__ = functools.wraps(_mmengine_init_runner)(_init_runner)
_mmengine._safe_torch_load = _load_file  # files of the object stores
_mmengine.load_url = load_url  # http(s), and the model zoos that lead there
