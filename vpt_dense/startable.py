"""Modules that a config may start."""

from torch import nn


class Startable(nn.Module):
    """A module that may start by a config's ``init_cfg``, as mmengine's ``BaseModule`` does.

    Args:
        init_cfg: As in :class:`mmengine.model.BaseModule`.
    """

    def __init__(self, init_cfg: dict | None = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Start as ``init_cfg`` says; mmengine calls this."""
        if self.init_cfg:
            from mmengine.model import initialize

            initialize(self, self.init_cfg)
