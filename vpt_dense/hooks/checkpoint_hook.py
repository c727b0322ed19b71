"""Saving checkpoints so that a run may be killed at any moment."""

import hashlib
import pickle
from collections import deque
from pathlib import Path

import numpy as np
from mmengine.dist import is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.runner import Runner

from vpt_dense import outputs, safe_files
from vpt_dense.errors import UserError, suggest
from vpt_dense.registry import HOOKS
from vpt_dense.weights import checkpoints


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """mmengine's hook with the same arguments; what is on the disk always holds a whole checkpoint.

    - An old checkpoint, or an old best one, is removed when the new one stands and
      ``last_checkpoint`` names it. What is to go is written into the new one: if the run is killed
      in between, the resumed run removes it.
    - After a resume it knows what is kept, from whichever file the run goes on and wherever its
      folder was moved to.
    - The best checkpoint holds the state of the schedules too, so that one can go on from it.
    - What killed processes left unfinished is removed when training starts. Checkpoints of an
      earlier run that this one, not going on there, would write over go into a folder
      ``before_TIME``.

    :class:`vpt_dense.engine.runner.Runner` takes it wherever a config says ``CheckpointHook``.
    """

    _rates_are_lost = False

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """See whether one goes on from a best checkpoint, which has no state of the optimizer."""
        self._rates_are_lost = runner._resume and 'optimizer' not in checkpoint

    def before_train(self, runner: Runner) -> None:
        """Learn what earlier processes of the run left, and clean up after them."""
        if self._rates_are_lost:
            _restore_rates(runner.param_schedulers or [])
        hub = runner.message_hub
        kept = hub.get_info('keep_ckpt_ids', [])
        hub.update_info('keep_ckpt_ids', [])  # mmengine's part removes nothing
        super().before_train(runner)
        folder = Path(self.out_dir)
        if is_main_process():
            for place in {folder, Path(runner.work_dir)}:
                safe_files.sweep(place)
        # Another run's checkpoint says nothing about what is in this folder.
        start = runner._load_from if runner._resume else None
        resumed = bool(start) and Path(start).resolve().parent == folder.resolve()
        if not resumed and is_main_process() and isinstance(self.file_backend, LocalBackend):
            now = runner.epoch if self.by_epoch else runner.iter
            earlier = [
                file for found in checkpoints.list_in({folder}) for file, step in found.items()
                if step > now
            ]  # what this run could write over
            pointer = Path(runner.work_dir, 'last_checkpoint')
            outputs.put_aside([*earlier, pointer], folder, runner)
        self._outdated: list[str] = hub.get_info('outdated_ckpts', []) if resumed else []
        self.keep_ckpt_ids: deque[int] = deque(
            step for step in kept if resumed and (folder / self.filename_tmpl.format(step)).exists()
        )
        last = hub.get_info('last_ckpt')
        self.last_ckpt = self._join(Path(last).name) if resumed and last else None
        for key in self.key_indicators if self.save_best else ():
            best = self._get_best(key)
            self._set_best(runner, key, Path(best).name if resumed and best else None)
        self._limit(runner)
        used = {self.filename_tmpl.format(step) for step in self.keep_ckpt_ids}
        used |= {Path(start).name} if resumed else set()
        self._outdated = [name for name in self._outdated if name not in used]
        self._remove_outdated()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            self._limit(runner)
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self._join(name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.message_hub.update_info('outdated_ckpts', list(self._outdated))
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            safe_files.write_text(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if not self.save_best:
            return
        step = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        if 'auto' in self.key_indicators:
            numbers = [key for key, value in metrics.items() if np.ndim(value) == 0]
            if not numbers:
                raise UserError(
                    "save_best='auto' of the CheckpointHook: the validation gives no number, but "
                    f'{", ".join(metrics) or "nothing"}'
                )
            self._init_rule(self.rules, numbers[:1])
        better = []
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            if key not in metrics:
                raise UserError(
                    f"save_best of the CheckpointHook: the validation gives no '{key}', but "
                    f'{", ".join(metrics)}{suggest(key, metrics)}'
                )
            record = self._record('best_score', key)
            score = runner.message_hub.get_info(record, self.init_value_map[rule])
            if metrics[key] is None or not self.is_better_than[key](metrics[key], score):
                continue
            runner.message_hub.update_info(record, metrics[key])
            name, old = self._best_name(key, step), self._get_best(key)
            if old and Path(old).name != name:
                self._outdated.append(Path(old).name)
            self._set_best(runner, key, name)
            better.append((key, name))
        runner.message_hub.update_info('outdated_ckpts', list(self._outdated))
        for key, name in better:
            runner.save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=False,
                meta=meta,
                by_epoch=False,
                backend_args=self.backend_args,
            )
            runner.logger.info(f'best {key} so far: {metrics[key]:0.4f}, saved to {name}')
        if better and self.last_ckpt is not None:
            # Once more: the last checkpoint shall know the best one and its score.
            self._save_checkpoint_with_step(runner, step, meta)
        else:
            self._remove_outdated()

    @master_only
    def _publish_model(self, runner: Runner, ckpt_path: str | None) -> None:
        if ckpt_path is None:
            return
        content = safe_files.read(ckpt_path)
        content = {key: value for key, value in content.items() if key in self.published_keys}
        digest = hashlib.sha256(pickle.dumps(content)).hexdigest()
        path = Path(ckpt_path)
        published = path.with_name(f'{path.stem}-{digest[:8]}.pth')
        safe_files.write(safe_files.plain(content), published)
        runner.logger.info(f'{path} is published as {published}')

    def _limit(self, runner: Runner) -> None:
        """Let the number of kept checkpoints be as configured; the oldest become outdated."""
        if self.max_keep_ckpts > 0:
            while len(self.keep_ckpt_ids) > self.max_keep_ckpts:
                self._outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _remove_outdated(self) -> None:
        for name in self._outdated if is_main_process() else ():
            path = self._join(name)
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
        self._outdated = []

    def _join(self, name: str) -> str:
        return self.file_backend.join_path(self.out_dir, name)

    # --- the best ones, where mmengine keeps them ---

    def _best_name(self, key: str, step: int) -> str:
        return f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')

    def _record(self, what: str, key: str) -> str:
        """The key of the message hub."""
        return what if len(self.key_indicators) == 1 else f'{what}_{key}'

    def _get_best(self, key: str) -> str | None:
        if len(self.key_indicators) == 1:
            return self.best_ckpt_path
        return self.best_ckpt_path_dict.get(key)

    def _set_best(self, runner: Runner, key: str, name: str | None) -> None:
        path = None if name is None else self._join(name)
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path
        if path is not None:
            runner.message_hub.update_info(self._record('best_ckpt', key), path)


def _restore_rates(schedulers: list | dict) -> None:
    """Give the optimizers the learning rates that the schedules have arrived at."""
    for scheduler in schedulers:
        if isinstance(schedulers, dict):  # of several optimizers
            _restore_rates(schedulers[scheduler])
            continue
        values = scheduler.get_last_value()
        for group, value in zip(scheduler.optimizer.param_groups, values, strict=True):
            group[scheduler.param_name] = value
