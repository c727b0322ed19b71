"""A validation that a run was stopped before."""

import json
from pathlib import Path

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validates after a resume if that was due at the checkpoint's iteration and did not happen.

    Checkpoints are saved before the validation of the same iteration; a run that is stopped in
    between would go on without it, and miss its best checkpoint perhaps.
    ``evaluations.json`` beside the checkpoint tells whether it happened.
    :class:`vpt_dense.engine.runner.Runner` adds this hook to every training.
    """

    priority = 'LOWEST'  # the other hooks must be ready to train: best checkpoint, reports

    _run_id: str | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Learn whose checkpoint it is: evaluations of others do not count."""
        self._run_id = (checkpoint.get('meta') or {}).get('run_id')

    def before_train(self, runner: Runner) -> None:
        """Validate if need be."""
        if not runner._resume or runner.val_loop is None or not _is_due(runner):
            return
        path = Path(runner._load_from).parent / 'evaluations.json'
        done = [False]
        if runner.rank == 0 and path.is_file():
            records = json.loads(path.read_text(encoding='utf-8'))
            done = [any(
                record['iter'] == runner.iter and record.get('run_id') == self._run_id
                for record in records
            )]
        broadcast_object_list(done)
        if not done[0]:
            runner.logger.info('making up for the validation at iteration %d', runner.iter)
            runner.val_loop.run()


def _is_due(runner: Runner) -> bool:
    """Whether the training loop validates where it is now."""
    loop = runner.train_loop
    if isinstance(loop, EpochBasedTrainLoop):
        if loop.iter != loop.epoch * len(loop.dataloader):  # in the middle of an epoch
            return False
        now, end = loop.epoch, loop.max_epochs
    elif isinstance(loop, IterBasedTrainLoop):
        now, end = loop.iter, loop.max_iters
    else:
        return False
    loop._decide_current_val_interval()
    return bool(now) and now >= loop.val_begin and (now % loop.val_interval == 0 or now == end)
