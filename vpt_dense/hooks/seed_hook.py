"""Seeds each training iteration by its number."""

from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import seeding
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class SeedHook(Hook):
    """Seeds python, numpy and torch before every training iteration, see ``seeding.py``.

    So neither a stop in between nor a validation changes what an iteration draws.
    :class:`vpt_dense.engine.runner.Runner` adds it to every training.
    """

    priority = 'HIGHEST'  # other hooks may draw before the iteration

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed the generators of this process."""
        seeding.seed_step(runner.common_seed, get_rank(), runner.iter)
