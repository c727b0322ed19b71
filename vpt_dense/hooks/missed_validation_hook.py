"""Makes up for a validation that was due when a run was stopped."""

import json
from pathlib import Path

from mmengine.dist import broadcast_object_list
from mmengine.hooks import EarlyStoppingHook, Hook
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from vpt_dense.hooks.plateau_hook import FOLLOWED_AT, follow_metrics
from vpt_dense.registry import HOOKS


@HOOKS.register_module()
class MissedValidationHook(Hook):
    """Validates after a resume if that was due at the checkpoint's iteration and did not happen.

    Checkpoints are saved before the validation of the same iteration; a run that is stopped in
    between would go on without it, and miss its best checkpoint perhaps. What follows a metric
    (early stopping, ``ReduceOnPlateau``) gets the results that it had seen.
    ``evaluations.json`` beside the checkpoint tells whether it happened.
    :class:`vpt_dense.engine.runner.Runner` adds this hook to every training.
    """

    priority = 'LOWEST'  # the other hooks must be ready to train: best checkpoint, reports

    _run_ids: tuple[str | None, ...] = (None,)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Learn whose checkpoint it is: evaluations of others do not count."""
        meta = checkpoint.get('meta') or {}
        self._run_ids = (*meta.get('earlier_run_ids', ()), meta.get('run_id'))

    def before_train(self, runner: Runner) -> None:
        """Validate if need be; else tell the recorded results to what follows a metric."""
        if not runner._resume or runner.val_loop is None:
            return
        path = Path(runner._load_from).parent / 'evaluations.json'
        told = [[]]
        if runner.rank == 0 and path.is_file():
            told = [json.loads(path.read_text(encoding='utf-8'))]
        broadcast_object_list(told)
        records = [
            record for record in told[0]
            if record['iter'] <= runner.iter and record.get('run_id') in self._run_ids
        ]  # fmt: skip
        for hook in runner.hooks:
            if isinstance(hook, EarlyStoppingHook):
                _count(hook, records, runner)
        if not _is_due(runner):
            return
        done = [record for record in records if record['iter'] == runner.iter]
        if not done:
            runner.logger.info('making up for the validation at iteration %d', runner.iter)
            runner.val_loop.run()
        elif runner.message_hub.get_info(FOLLOWED_AT) != runner.iter:
            # The checkpoint was saved before that validation.
            for scheduler in follow_metrics(runner.param_schedulers):
                scheduler.step(done[-1]['metrics'])


def _count(hook: EarlyStoppingHook, records: list[dict], runner: Runner) -> None:
    """Bring early stopping, which is no part of a checkpoint, to where it was."""
    stop = False
    for record in records:
        score = record['metrics'].get(hook.monitor)
        if score is not None:
            stop, _ = hook._check_stop_condition(score)
    if stop:
        runner.train_loop.stop_training = True
        runner.logger.info('early stopping has ended this run, at iteration %d', runner.iter)


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
