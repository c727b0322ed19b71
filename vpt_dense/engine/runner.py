"""mmengine's runner, with safe files and support for machines without a GPU."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import mmengine
import torch
from mmengine.dataset import Compose
from mmengine.dist import broadcast_object_list, get_rank, master_only
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import ConstantParamScheduler, LinearParamScheduler, OptimWrapper
from mmengine.registry import DATASETS, MODEL_WRAPPERS
from mmengine.runner import BaseLoop, LogProcessor, save_checkpoint
from mmengine.runner import Runner as _Runner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.utils import apply_to
from mmengine.visualization import Visualizer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from vpt_dense import (
    logging,
    outputs,
    params,
    preemption,
    recomputing,
    safe_files,
    seeding,
    visualization,
)
from vpt_dense.argument_checks import check_flag
from vpt_dense.checkpoints import deltas
from vpt_dense.datasets.names import image_names
from vpt_dense.engine import (
    config_text,  # noqa: F401 - Config.pretty_text
    disk,
    distributed,
    layer_decay,
    log_processor,
    loops,
    resuming,
)
from vpt_dense.errors import UserError, is_programs
from vpt_dense.hooks import accumulation_hook, plateau_hook
from vpt_dense.hooks.gradient_hook import GradientHook
from vpt_dense.hooks.missed_validation_hook import MissedValidationHook
from vpt_dense.hooks.monitor_hook import MonitorHook
from vpt_dense.hooks.progress_hook import ProgressHook
from vpt_dense.hooks.report_hook import versions
from vpt_dense.hooks.seed_hook import SeedHook
from vpt_dense.version import __version__
from vpt_dense.weights import checkpoints

# mmengine's runner calls it by this name.
mmengine.runner.runner.turn_on_activation_checkpointing = recomputing.turn_on

_WARMUPS = (ConstantParamScheduler, LinearParamScheduler)
#: What a sample says of the files that it is made of.
_FILES = ('img_path', 'seg_map_path', 'depth_map_path', 'normal_map_path')


class NamingPipeline(Compose):
    """A data pipeline whose errors name the file: the stack's often do not.

    It also sees what the stack does not: a mask of another size than its image.
    """

    def __call__(self, data: dict) -> dict | None:
        """Transform one sample.

        Raises:
            UserError: In place of whatever a transform raises.
        """
        try:
            for transform in self.transforms:
                loaded = 'gt_seg_map' in data
                data = transform(data)
                if data is None:
                    return None
                if not loaded and 'gt_seg_map' in data:
                    _compare_sizes(data)
            return data
        except UserError:
            raise
        except Exception as error:
            files = [data[key] for key in _FILES if data.get(key)]
            if not files or is_programs(error):
                raise
            reason = ' '.join(str(error).split()) or type(error).__name__
            reason = reason if len(reason) < 200 else f'{reason[:200]}...'
            raise UserError(f'cannot read or transform {" with ".join(files)}: {reason}') from error


def _compare_sizes(data: dict) -> None:
    """A mask that was just loaded must be as large as its image was when that was loaded."""
    image, mask = data.get('ori_shape'), data['gt_seg_map'].shape[:2]
    if image is not None and tuple(image) != tuple(mask):
        raise UserError(
            f'{data.get("img_path")} has {image[0]} x {image[1]} pixels (height x width), its mask '
            f'{data.get("seg_map_path")} has {mask[0]} x {mask[1]}; they must be of one size'
        )


class Runner(_Runner):
    """mmengine's ``Runner`` with these differences; it takes the same configs.

    - Without CUDA, several processes work (gloo, no device ids).
    - The console shows warnings only, until :func:`vpt_dense.logging.loud`.
    - Checkpoints are read without executing code (:mod:`vpt_dense.weights.checkpoints`).
    - A checkpoint that does not fit the model exactly is an error, not a warning.
    - Checkpoints are written completely or not at all (:mod:`vpt_dense.safe_files`), their log
      history is bounded, and a ``CheckpointHook`` is :class:`vpt_dense.hooks.CheckpointHook`.
    - Resuming without a checkpoint is an error, not a fresh start; in place of a damaged one the
      newest that is whole is taken, and said so.
    - Resuming is exact: a resumed run ends where the uninterrupted one does. What has changed in
      the config is told, holds, or is refused (:mod:`vpt_dense.engine.resuming`).
    - Checkpoints leave out the frozen tensors that come from pretrained weights, and find them
      again when they are loaded (:mod:`vpt_dense.checkpoints.deltas`).
    - ``activation_checkpointing`` works where no input of a module requires a gradient
      (:mod:`vpt_dense.recomputing`).
    - A ``work_dir`` in which another process runs is refused.
    - Errors in data pipelines name the file.
    - Hooks that draw predictions, and their visualizers, are ours (:mod:`vpt_dense.visualization`).
    - mmseg's and mmpretrain's learning rates by layers know prompts, adapters and our backbones
      (:mod:`vpt_dense.engine.layer_decay`).
    """

    _contents = ''  # what was said last about what checkpoints hold
    _trains = False

    def setup_env(self, env_cfg: dict) -> None:
        """Set up the processes; with gloo when there is no CUDA."""
        if self.distributed and not torch.cuda.is_available():
            distributed.set_up_cpu(self.launcher)
        super().setup_env(env_cfg)
        self._lock_work_dir()

    _lock: outputs.FolderLock | None = None  # of the first process
    _locked = False

    def _lock_work_dir(self) -> None:
        """See to it that no other process writes to ``work_dir``.

        Raises:
            UserError: In all processes, if another run does.
        """
        refused = [None]
        if get_rank() == 0:
            try:
                self._lock = outputs.FolderLock(self._work_dir)
            except UserError as error:
                refused = [str(error)]
        broadcast_object_list(refused)
        if refused[0]:
            raise UserError(refused[0])
        self._locked = True

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock for as long as something runs."""
        if not self._locked:  # this runner has trained, validated or tested before
            self._lock_work_dir()
        try:
            yield
        finally:
            self._lock, self._locked = None, False

    def val(self) -> dict:
        """Validate, alone in ``work_dir``."""
        with self._alone():
            self._write_config(training=False)
            return super().val()

    def test(self) -> dict:
        """Test, alone in ``work_dir``."""
        with self._alone():
            self._write_config(training=False)
            return super().test()

    def build_optim_wrapper(self, optim_wrapper: OptimWrapper | dict) -> OptimWrapper:
        """Build the optimizer; rates by layers know the backbone."""
        if isinstance(optim_wrapper, dict):
            optim_wrapper = layer_decay.known(optim_wrapper, params.unwrap(self.model))
        return super().build_optim_wrapper(optim_wrapper)

    def build_logger(self, *args, **kwargs):
        """Build the logger; its console stays quiet while the rest is built."""
        logger = super().build_logger(*args, **kwargs)
        logging.quiet(logger)
        disk.watch(logger)
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build the visualizer, ours; what it writes is whole, or a full disk is told."""
        if visualizer is None:
            visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
        if isinstance(visualizer, dict):
            visualizer = disk.use_in(visualization.ours(visualizer))
        return super().build_visualizer(visualizer)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for several processes; without device ids when there is no CUDA.

        Raises:
            UserError: If ``sync_bn`` asks for batch norm that needs CUDA.
        """
        if self.distributed and not is_model_wrapper(model) and not torch.cuda.is_available():
            if self.cfg.get('sync_bn'):
                raise UserError(
                    "sync_bn makes batch norm over processes that needs CUDA; say norm_cfg=dict("
                    "type='SyncBN') in the model, which becomes vpt_dense.CPUSyncBN here"
                )
            if model_wrapper_cfg is None:  # mmengine's settings
                model_wrapper_cfg = dict(
                    broadcast_buffers=False,
                    find_unused_parameters=self.cfg.get('find_unused_parameters', False),
                )
            kind = model_wrapper_cfg.get('type', 'MMDistributedDataParallel')
            found = MODEL_WRAPPERS.get(kind) if isinstance(kind, str) else kind
            if found is not None and issubclass(found, DistributedDataParallel):
                model_wrapper_cfg = {**model_wrapper_cfg, 'device_ids': None}
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
        positions: bool = False,
    ) -> DataLoader:
        """Build a dataloader whose data set names the file in its errors.

        Args:
            dataloader: Its config.
            seed: As in mmengine.
            diff_rank_seed: As in mmengine.
            positions: Whether samples follow from ``seed`` and their place in the run
                (:mod:`vpt_dense.seeding`), as those of training must.
        """
        if isinstance(dataloader, dict):
            dataset = dataloader['dataset']
            if isinstance(dataset, dict):
                dataset = DATASETS.build(dataset)
                if hasattr(dataset, 'full_init'):
                    dataset.full_init()
                name_files(dataset)
            dataloader = {**dataloader, 'dataset': dataset}
            if positions:
                dataloader['dataset'] = seeding.SeededDataset(dataset)
                sampler = dict(type=seeding.PositionSampler, sampler=dataloader['sampler'])
                dataloader['sampler'] = sampler
            loader = _Runner.build_dataloader(dataloader, seed, diff_rank_seed)
            loader.worker_init_fn = partial(preemption.start_worker, loader.worker_init_fn)
            return loader
        return dataloader

    @property
    def common_seed(self) -> int:
        """The run's seed, the same in all processes also where ``diff_rank_seed`` is set."""
        return self.seed - (self.rank if self._randomness_cfg.get('diff_rank_seed') else 0)

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop, its data and its loader; mmengine's two loops become ours."""
        if isinstance(loop, dict):
            loop = loops.exact(loop)
            if isinstance(self._train_dataloader, dict):
                self._train_dataloader = self.build_dataloader(
                    self._train_dataloader, self.common_seed, positions=True
                )
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the validation loop; metrics that write files know the folder of the images."""
        return _tell_names(super().build_val_loop(loop))

    def build_test_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the test loop; metrics that write files know the folder of the images."""
        return _tell_names(super().build_test_loop(loop))

    def build_param_scheduler(self, scheduler: object) -> list | dict:
        """Build schedules; those that follow a metric work in loops over iterations too.

        mmengine's warm-up is over in the last of its steps: one of a single step would begin, and
        leave the rate at its start for the whole training. It is over in the step behind it.
        """
        built = plateau_hook.build(self, scheduler, super().build_param_scheduler)
        for part in built.values() if isinstance(built, dict) else [built]:
            for each in part:
                if isinstance(each, _WARMUPS) and each.total_iters < 1:
                    each.total_iters, each.end = 1, each.begin + 2
        return built

    def scale_lr(self, optim_wrapper: OptimWrapper, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate by the images of an optimizer step / ``base_batch_size``.

        mmengine's rule counts batch and processes; with ``accumulative_counts`` a step takes the
        gradients of as many batches.
        """
        if not (auto_scale_lr and auto_scale_lr.get('enable')):
            return
        wrappers = resuming.wrappers(optim_wrapper).values()
        counts = {wrapper._accumulative_counts for wrapper in wrappers}
        if len(counts) > 1:
            raise UserError(
                'auto_scale_lr: the optimizers of optim_wrapper accumulate different numbers of '
                'batches (accumulative_counts); set enable=False and their rates by hand'
            )
        (count,) = counts
        base = auto_scale_lr['base_batch_size'] / count
        super().scale_lr(optim_wrapper, {**auto_scale_lr, 'base_batch_size': base})
        if count > 1:
            self.logger.info(f'{count} batches are accumulated, which the scaling takes in')

    def train(self) -> nn.Module:
        """Train, with hooks that are no choice.

        They see to it that a resumed run misses nothing, that nothing waits for a metric that is
        not there, and name what trains without a gradient.
        A hook with a method ``check_model(model)`` may refuse the model before data are read.
        """
        self._trains = True
        if self._starts_heads() and not self._load_from and not self._resume:
            raise UserError(
                f'{checkpoints.NEW_HEADS} is True, but load_from names no checkpoint that the rest '
                f'of the model could come from; set load_from, or leave {checkpoints.NEW_HEADS} out'
            )
        for hook in self.hooks:
            if hasattr(hook, 'check_model'):
                hook.check_model(params.unwrap(self.model))
        if not any(isinstance(hook, SeedHook) for hook in self.hooks):
            self.register_hook(SeedHook())
            self.register_hook(accumulation_hook.AccumulationHook())
            self.register_hook(MissedValidationHook())
            self.register_hook(GradientHook())
            self.register_hook(MonitorHook())
            self.register_hook(plateau_hook.PlateauHook())
        with self._alone():
            self._write_config(training=True)
            return super().train()

    def _starts_heads(self) -> bool:
        """Whether `load_from` gives this training all but its heads."""
        wanted = check_flag(self.cfg.get(checkpoints.NEW_HEADS, False), checkpoints.NEW_HEADS)
        return wanted and self._trains and not self._resume

    def resume(self, *args, **kwargs) -> None:
        """Go on from a checkpoint, with its seed; arguments as in mmengine.

        See :mod:`vpt_dense.engine.resuming` for settings that have changed.
        """
        self._resume = True
        super().resume(*args, **kwargs)
        resuming.place(self, self._resumed)
        del self._resumed
        sampler = getattr(self.train_dataloader.batch_sampler, 'sampler', None)
        if isinstance(sampler, seeding.PositionSampler):
            sampler.reseed(self.common_seed)

    def register_hooks(self, default_hooks: dict | None, custom_hooks: list | None = None) -> None:
        """Register the hooks of the config, and the one that shows how far the run is."""
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(ProgressHook())

    def build_log_processor(self, log_processor_cfg: dict) -> LogProcessor:
        """Build the log processor; of several processes it logs the means."""
        if isinstance(log_processor_cfg, LogProcessor):
            return log_processor_cfg
        return log_processor.build(log_processor_cfg)

    def register_hook(self, hook: Hook | dict, priority: str | int | None = None) -> None:
        """Register a hook; ours in place of mmengine's ``CheckpointHook`` and those that draw."""
        if isinstance(hook, dict):
            hook = visualization.ours(hook)
        names = (CheckpointHook, 'CheckpointHook', 'mmengine.CheckpointHook')
        if isinstance(hook, dict) and hook.get('type') in names:
            hook = {**hook, 'type': 'vpt_dense.CheckpointHook'}
        super().register_hook(hook, priority)

    def load_or_resume(self) -> None:
        """Load or resume as configured; afterwards the console shows progress."""
        if self._resume and not self._has_loaded:
            if self._load_from is None:
                self._load_from = checkpoints.find_last(self.work_dir, self.logger.warning)
            checkpoints.verify(self._load_from)
        super().load_or_resume()
        logging.loud(self.logger)

    def load_checkpoint(
        self, filename: str, map_location: str | Callable = 'cpu', **kwargs
    ) -> dict:
        """Load a checkpoint into the model; it must fit exactly, but for heads that start anew.

        Raises:
            UserError: If it does not, or if the file is damaged.
        """
        checkpoint = checkpoints.read(filename, map_location)
        if self._resume:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            resuming.adapt(self, checkpoint, filename)
            self._resumed = checkpoint
        elif not self._trains:
            other = deltas.other_setting(self.cfg, checkpoint, filename)
            if other:
                self.logger.warning(
                    f'{filename} was trained with another {other}; tested with that of this config')
        model = params.unwrap(self.model)
        deltas.complete(model, checkpoint, filename)
        new = checkpoints.leave_out_heads(model, checkpoint) if self._starts_heads() else ()
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        way = 'use the config that it was trained with'
        if self._trains:
            instead = 'in place of --resume' if self._resume else ''
            way += (f', or start the heads anew and take all else of it: {checkpoints.NEW_HEADS}='
                    f'True beside load_from {instead}').rstrip()  # fmt: skip
        checkpoints.load_strict(model, checkpoint, filename, new, way)
        self._has_loaded = True
        parts = ', '.join(name.rstrip('.') for name in new)
        self.logger.info(f'loaded {filename}{parts and f"; new: {parts}"}')
        return checkpoint

    def dump_config(self) -> None:
        """Nothing: it is written when it is known what runs."""

    @master_only
    def _write_config(self, training: bool) -> None:
        """Write the config into ``work_dir``, as Python whatever it came as: JSON has no tuples.

        It takes the place neither of a training's, if this is a test, nor of the file that was
        read: then it goes beside the log. Another training's is put aside.
        """
        source = Path(self.cfg.filename) if self.cfg.filename else None
        path = Path(self.work_dir, f'{source.stem if source else self.timestamp}.py')
        text = self.cfg.pretty_text
        if path.is_file() and path.read_text(encoding='utf-8') != text:
            if not training or path.resolve() == (source and source.resolve()):
                path = Path(self.log_dir, path.name)
            elif not outputs.goes_on(self):
                outputs.put_aside([path], path.parent, self)
        safe_files.write_text(path, text)

    @functools.cached_property
    def _config_text(self) -> str:
        return self.cfg.pretty_text  # formatting takes up to a second

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Write a checkpoint; arguments and contents are mmengine's.

        All processes call this, the main one writes.

        When this returns, the file is whole and on the disk; until then there is no file of that
        name, or the old one.

        Raises:
            UserError: If it cannot be written; nothing of it is left.
        """
        begun = accumulation_hook.gather(self) if save_optimizer else {}
        if self.rank != 0:
            return
        ended = bool(by_epoch)  # hooks that save at the end of an epoch run before it is counted
        model = params.unwrap(self.model)
        meta = {
            'epoch': self.epoch + ended,
            'iter': self.iter + (not ended),
            **(meta or {}),
            'cfg': self._config_text,
            'seed': self.seed,
            'experiment_name': self.experiment_name,
            'run_size': resuming.describe_run(self),
            'time': time.strftime('%Y%m%d_%H%M%S'),
            'mmengine_version': mmengine.__version__,
            'vpt_dense_version': __version__,
            'versions': versions(),
        }
        if checkpoints.launch():
            meta['launch'] = checkpoints.launch()
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            meta['dataset_meta'] = self.train_dataloader.dataset.metainfo
        history = checkpoints.bound_history(self.message_hub.state_dict())
        checkpoint = dict(
            meta=meta, state_dict=weights_to_cpu(model.state_dict()), message_hub=_to_cpu(history)
        )
        if save_optimizer:
            checkpoint['optimizer'] = _to_cpu(self.optim_wrapper.state_dict())
            checkpoint[resuming.OPTIMIZER_OF] = resuming.describe_optimizer(
                model, self.optim_wrapper
            )
            checkpoint.update(begun)
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint['param_schedulers'] = _states(self.param_schedulers)
        self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
        contents = deltas.reduce(model, checkpoint)
        if contents != self._contents:
            self._contents = contents
            self.logger.info(contents)
        if isinstance(get_file_backend(out_dir, backend_args=backend_args), LocalBackend):
            safe_files.write(safe_files.plain(checkpoint), Path(out_dir, filename))
        else:  # an object store, whose uploads are whole or absent
            path = mmengine.fileio.join_path(out_dir, filename, backend_args=backend_args)
            save_checkpoint(safe_files.plain(checkpoint), path, file_client_args, backend_args)


def _tell_names(loop: BaseLoop) -> BaseLoop:
    for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
        if hasattr(metric, 'image_name'):
            metric.image_name = image_names(loop.dataloader.dataset)
    return loop


def _to_cpu(state: dict) -> dict:
    return apply_to(state, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())


def _states(schedulers: list | dict) -> list | dict:
    if isinstance(schedulers, dict):  # of several optimizers
        return {name: _states(part) for name, part in schedulers.items()}
    return [scheduler.state_dict() for scheduler in schedulers]


def name_files(dataset: object) -> None:
    """Replace the pipelines of a data set, inside wrappers too, by naming ones."""
    for inner in [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', [])]:
        if inner is not None:
            name_files(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if type(pipeline) is Compose:
        dataset.pipeline = NamingPipeline(pipeline.transforms)
