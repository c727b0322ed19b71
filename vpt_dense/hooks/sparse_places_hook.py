"""Which single weights train, out of a file."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from vpt_dense import safe_files
from vpt_dense.adapters import SparseUpdate
from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class SparsePlacesHook(Hook):
    """Gives a ``SparseUpdate`` its places before the first iteration.

    Nothing is done when a run is resumed or begins with ``load_from``: checkpoints hold the places.

    Args:
        file: As ``vpt-dense analyse sensitivity`` writes it (safetensors): of each layer its
            places, int64.
    """

    priority = 'HIGH'  # behind what starts the backbone

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def before_train(self, runner: Runner) -> None:
        """Overwrite the buffers ``places``.

        Raises:
            UserError: If the file is not there, or is of other layers or numbers of weights.
        """
        if runner.iter > 0 or runner._has_loaded:
            return
        where = f'SparsePlacesHook(file={str(self.file)!r})'
        found = safe_files.read(self.file)['state_dict']
        adapters = [a for a in unwrap(runner.model).backbone.adapters
                    if isinstance(a, SparseUpdate)]  # fmt: skip
        updates = {
            name: update for adapter in adapters
            for name, update in zip(adapter.names, adapter.updates, strict=True)}
        for name in sorted({*found, *updates}):
            have, want = found.get(name), updates.get(name)
            if have is None or want is None:
                raise UserError(
                    f'{where}: {name} is only in {"the model" if have is None else "the file"}; '
                    'take the method file that was written beside it')
            wrong = have.dtype != torch.int64 or have.shape != want.places.shape
            if wrong or have.min() < 0 or have.max() >= want.shape[0] * want.shape[1]:
                raise UserError(
                    f'{where}: {name} has {len(want.places):,} single weights in the model, other '
                    'ones in the file; take the method file that was written beside it')
        for name, update in updates.items():
            update.places.copy_(found[name])
