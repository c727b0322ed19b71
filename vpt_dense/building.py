"""The model of a config, built by the packages that the config means."""

import contextlib
import io
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.overrides import TorchFunctionMode

from vpt_dense import logging, tasks


def scope(cfg: Config) -> AbstractContextManager[None]:
    """Within it, names without a scope are looked for in a config's ``default_scope`` first.

    Args:
        cfg: A whole config.

    Raises:
        UserError: If its package is that of an extra which is not installed.
    """
    tasks.check_installed(cfg.get('default_scope', 'mmengine'))
    return DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine'))


def import_packages(cfg: Config) -> None:
    """Import the package of a config's ``default_scope`` as a whole: data sets and models.

    Args:
        cfg: A whole config.
    """
    tasks.import_packages(cfg.get('default_scope'))
    logging.filter_warnings()  # they set their own


def build_model(cfg: Config, device: str = 'cpu') -> nn.Module:
    """Build the model of a config; its ``init_weights()`` gives it its start.

    Args:
        cfg: A whole config; ``cfg.model`` and ``cfg.default_scope`` are used.
        device: Where its tensors are. 'meta': names and shapes without numbers, which take neither
            memory nor time at any size of model; it is good for counting.
    """
    # The registries import what they need, which may print, see tasks.import_packages.
    with contextlib.redirect_stdout(io.StringIO()), scope(cfg), on(device):
        return MODELS.build(cfg.model)


@contextlib.contextmanager
def on(device: str) -> Iterator[None]:
    """Within it tensors are made on a device; on 'meta' as fast as that can be.

    Args:
        device: See :func:`build_model`.
    """
    with torch.device(device), _Numbers():
        yield


class _Numbers(TorchFunctionMode):
    """Makes ``linspace`` on the CPU: upstream reads the rates of stochastic depth from it.

    Draws no random numbers on 'meta', which has no place for them: torch imports its compiler for
    that, and what makes others of them in place takes most of the time of timm's models.
    """

    skipped = frozenset({
        torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_, torch.Tensor.clamp_})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.skipped and args[0].is_meta:
            return args[0]
        where = dict(device='cpu') if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **where})
