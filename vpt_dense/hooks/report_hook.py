"""Reports what runs, how much of it trains and its results, on the console and as JSON."""

import json
import math
import os
import platform
import sys
import time
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from vpt_dense import logging, outputs, params, pretraining, report, safe_files, tasks
from vpt_dense.datasets.names import image_names, leaves
from vpt_dense.errors import explain
from vpt_dense.hooks.invalid_loss_hook import SKIPPED
from vpt_dense.hooks.pictures import dataset_of
from vpt_dense.machine import resident_peak
from vpt_dense.registry import HOOKS
from vpt_dense.report.records import as_call, command_line
from vpt_dense.report.samples import Samples
from vpt_dense.tree import as_list
from vpt_dense.tuning import ADDED, method_of
from vpt_dense.version import __version__

#: What runs leave in a work folder; logs and pictures have folders of their own.
RECORDS = (
    'params.json', 'evaluations.json', 'summary.json', 'test.json', 'val.json',
    'pictures_val.json', 'pictures_test.json', report.NAME,
)
FRAMEWORKS = ('torch', 'numpy', 'mmengine', 'mmcv', 'timm')


@HOOKS.register_module()
class ReportHook(Hook):
    """Report parameters, evaluations and the outcome of a run, on the first process only.

    At the start: a summary of the run and a table of its parameters by part; then the console
    shows INFO again (:func:`vpt_dense.logging.loud`). Beside every evaluation: the metric with
    the number of trainable parameters. In ``work_dir``, each file replaced as a whole:

    - ``params.json``: :func:`vpt_dense.params.report` of a training; before anything trains.
    - ``evaluations.json``: every validation of the training: iteration (epoch), metrics and
      results by class. A resumed run continues the file from the iteration it resumes at.
    - ``summary.json``, when training ends: config, method, metric, best and last validation,
      parameters, wall time, peak memory, versions, seed.
    - ``test.json`` or ``val.json``, when only that is run: config, method, checkpoint, metrics,
      results by class, parameters, versions.
    - ``pictures_val.json`` and ``pictures_test.json``: a few images of the last evaluation with
      what was predicted (:mod:`vpt_dense.report.samples`).
    - ``report.html``, when a training or a test ends: a page of all of this, see
      :mod:`vpt_dense.report`. If it or the pictures cannot be made, a line in the log says so and
      the run goes on.

    What an earlier run has left there, and would be replaced, goes into a folder ``before_TIME``.
    Every start of a process has an id, ``run_id``: the evaluations that it makes and the
    checkpoints that it writes have it, so that nothing takes those of another run.

    The counts are also scalars of the visualizer (``params/prompt_trainable``, ...).
    """

    # Before LoggerHook, which resets the peak of the CUDA memory whenever it logs.
    priority = 'NORMAL'

    def __init__(self) -> None:
        """Start with nothing reported."""
        self.report: dict[str, Any] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.run_id = uuid.uuid4().hex
        self.earlier: list[str | None] = []  # of those that the run goes on from; None: unknown
        self.loaded: str | None = None  # of the checkpoint that was loaded
        self.start_time = 0.0
        self.start_iter = 0
        self.peak_cuda = 0  # bytes
        self._line = ''
        self._samples = Samples()

    @master_only
    def before_run(self, runner: Runner) -> None:
        """Print and write what runs and what trains.

        Training and then testing with one runner comes here twice; the second call says nothing.
        """
        if self.report:
            return
        self.start_time = time.time()
        self.report = params.report(runner.model)
        runner.visualizer.add_scalars(_scalars(self.report))
        logging.loud(runner.logger)
        runner.logger.info('%s\n\n%s\n', _describe(runner), params.parts_table(runner.model))

    @master_only
    def before_train(self, runner: Runner) -> None:
        """Write the counts; take over the evaluations before the iteration that it resumes at.

        What a user of the pretrained weights should know is said.
        """
        model = _model_config(runner)
        preprocessor = model.get('data_preprocessor') or runner.cfg.get('data_preprocessor')
        for line in pretraining.notes(model, preprocessor):
            runner.logger.info(line)
        if not outputs.goes_on(runner):
            folder = Path(runner.work_dir)
            outputs.put_aside([folder / name for name in RECORDS], folder, runner)
        _write_json(_in_work_dir(runner, 'params.json'), self.report)
        self.start_iter = runner.iter
        if self.start_iter:
            # Resumed, so the file lies beside the checkpoint, which may be another work_dir.
            folder = Path(runner._load_from).parent if runner._load_from else runner.work_dir
            path = Path(folder, 'evaluations.json')
            if path.is_file():
                records = json.loads(path.read_text(encoding='utf-8'))
                self.evaluations = [
                    r for r in records
                    if r['iter'] <= self.start_iter and r.get('run_id') in self.earlier
                ]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Learn whose checkpoint it is."""
        meta = checkpoint.get('meta') or {}
        self.loaded = meta.get('run_id')
        self.earlier = [*meta.get('earlier_run_ids', []), self.loaded] if runner._resume else []

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Say whose checkpoint it is."""
        *earlier, own = self._ids(checkpoint['meta']['iter'])
        checkpoint['meta'].update(run_id=own, earlier_run_ids=earlier)

    def _ids(self, iteration: int) -> list[str | None]:
        """Of all that have trained up to an iteration; the last one has made the weights."""
        resumed_here = self.earlier and iteration == self.start_iter
        return self.earlier if resumed_here else [*self.earlier, self.run_id]

    def _after_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_initialized():
            self.peak_cuda = max(self.peak_cuda, torch.cuda.max_memory_allocated())

    def before_val_epoch(self, runner: Runner) -> None:
        """Begin to gather pictures."""
        self._begin_pictures(runner, 'val')

    def before_test_epoch(self, runner: Runner) -> None:
        """Begin to gather pictures."""
        self._begin_pictures(runner, 'test')

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep the pictures of a batch."""
        super().after_val_iter(runner, batch_idx, data_batch, outputs)
        self._take_pictures(runner, data_batch, outputs)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Keep the pictures of a batch."""
        super().after_test_iter(runner, batch_idx, data_batch, outputs)
        self._take_pictures(runner, data_batch, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Write the results of a validation and prepare its line."""
        pictures = self._gathered()
        if not is_main_process():
            return
        if isinstance(runner._train_loop, BaseLoop):
            record = _position(runner) | {
                'run_id': self._ids(runner.iter)[-1],
                'metrics': metrics,
                'per_class': _classes(runner._val_loop),
            }
            self.evaluations.append(record)
            by_class = _by_class(metrics, runner._val_loop)
            if by_class:
                runner.visualizer.add_scalars(by_class, step=runner.iter)
        else:
            self._write_result(runner, 'val', metrics)
        self._write_pictures(runner, 'val', pictures)
        self._line = self._headline(runner, metrics)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Write the results of a test and prepare its line."""
        pictures = self._gathered()
        if is_main_process():
            self._write_result(runner, 'test', metrics)
            self._write_pictures(runner, 'test', pictures)
            self._line = self._headline(runner, metrics)

    # The line is printed here, after LoggerHook's own line about the same evaluation.
    @master_only
    def after_val(self, runner: Runner) -> None:
        """Print the metric beside the number of trainable parameters."""
        if isinstance(runner._train_loop, BaseLoop):
            # Not before: a resumed run validates again unless it is on record, and the best
            # checkpoint is saved in after_val_epoch.
            _write_json(_in_work_dir(runner, 'evaluations.json'), self.evaluations)
        else:
            self._write_page(runner)
        runner.logger.info(self._line)

    @master_only
    def after_test(self, runner: Runner) -> None:
        """Print the metric beside the number of trainable parameters."""
        self._write_page(runner)
        runner.logger.info(self._line)

    @master_only
    def after_train(self, runner: Runner) -> None:
        """Write ``summary.json``."""
        name, sign = None, 1
        best = last = None
        if self.evaluations:
            name, sign = _judged_by(runner, self.evaluations[-1]['metrics'])
            slim = [
                {key: value for key, value in record.items() if key not in ('per_class', 'run_id')}
                for record in self.evaluations
            ]
            last = slim[-1]
            scored = [r for r in slim if _is_number(r['metrics'].get(name))]
            best = max(scored, key=lambda r: sign * r['metrics'][name], default=None)
        summary = {
            **_identity(runner),
            'run_id': self.run_id,
            'earlier_run_ids': self.earlier,
            'metric': name,
            'best': best,
            'last': last,
            'params': self.report,
            **_position(runner),
            'started_at_iter': self.start_iter,
            # Of this process: a resumed run does not know how long the earlier ones took.
            'wall_time_seconds': time.time() - self.start_time,
            'peak_memory': self._peak_memory(),
            'skipped_steps': runner.message_hub.runtime_info.get(SKIPPED, 0),
        }
        _write_json(_in_work_dir(runner, 'summary.json'), summary)
        skipped = summary['skipped_steps']
        told = f'; {skipped} steps left out, their loss was not finite' if skipped else ''
        runner.logger.info('Summary written to %s%s', _in_work_dir(runner, 'summary.json'), told)
        self._write_page(runner)

    # --- pictures and the page: whatever is wrong with them, the run goes on --------------------

    def _begin_pictures(self, runner: Runner, split: str) -> None:
        self._samples = Samples(get_rank(), get_world_size())
        self._split = split
        task = tasks.of(_model_config(runner))
        if task and task.shown:
            self._samples.start(len(dataset_of(runner, split)))

    def _take_pictures(self, runner: Runner, data_batch: Any, outputs: Any) -> None:
        if not self._samples.wanted:
            return
        try:
            dataset = dataset_of(runner, self._split)
            tell = tasks.of(_model_config(runner)).function('shown', 'pictures of a report')
            ignored = next((leaf.ignore_index for leaf in leaves(dataset)
                            if hasattr(leaf, 'ignore_index')), 255)  # fmt: skip
            model = _model_config(runner)
            self._samples.take(
                data_batch['inputs'], outputs,
                model.get('data_preprocessor') or runner.cfg.get('data_preprocessor') or {},
                lambda sample, position: _name_of(dataset, sample, position),
                lambda sample: tell(sample, dataset.metainfo, ignored),
            )
        except Exception as error:
            self._samples.stop()
            runner.logger.warning(
                'the report shows no pictures of this evaluation: %s', explain(error))

    def _gathered(self) -> list[dict[str, Any]]:
        """The pictures of all processes, which all call this, in the order of the data set."""
        found = {each['position']: each for part in all_gather_object(self._samples.found)
                 for each in part}  # fmt: skip
        self._samples = Samples()
        return [found[position] for position in sorted(found)]

    def _write_pictures(
        self, runner: Runner, split: str, pictures: list[dict[str, Any]]
    ) -> None:
        path = Path(runner.work_dir, f'pictures_{split}.json')
        trains = split == 'val' and isinstance(runner._train_loop, BaseLoop)
        try:
            if not trains:
                outputs.put_aside([path], path.parent, runner)
            meta = dataset_of(runner, split).metainfo
            if pictures:
                _write_json(str(path), {
                    **_position(runner),
                    'run_id': self._ids(runner.iter)[-1] if trains else self.loaded,
                    'task': tasks.of(_model_config(runner)).name,
                    'classes': meta.get('classes'),
                    'palette': meta.get('palette'),
                    'images': pictures,
                })
        except Exception as error:
            runner.logger.warning('%s could not be written: %s', path, explain(error))

    def _write_page(self, runner: Runner) -> None:
        try:
            runner.logger.info('Report: %s', report.write_run(Path(runner.work_dir)))
        except Exception as error:
            runner.logger.warning('%s could not be written: %s', report.NAME, explain(error))

    def _write_result(self, runner: Runner, split: str, metrics: dict[str, Any] | None) -> None:
        result = {
            **_identity(runner),
            'checkpoint': runner._load_from,
            'run_id': self.loaded,
            'metrics': metrics,
            'per_class': _classes(runner._val_loop if split == 'val' else runner._test_loop),
            'params': self.report,
        }
        path = Path(runner.work_dir, f'{split}.json')
        outputs.put_aside([path], path.parent, runner)
        _write_json(str(path), result)

    def _headline(self, runner: Runner, metrics: dict[str, Any] | None) -> str:
        trainable = f'{self.report["trainable"]:,} trainable'
        share = params.format_percent(self.report['percent'])
        name, _ = _judged_by(runner, metrics or {})
        if name is None:
            return f'no metric · {trainable} ({share})'
        task = tasks.metrics().get(name)
        label = task and task.label or name
        return f'{label} {tasks.told(name, metrics[name])} · {trainable} ({share})'

    def _peak_memory(self) -> dict[str, Any]:
        """Return the peak of this process: tensors on the GPU, else its resident memory."""
        if torch.cuda.is_initialized():
            peak = max(self.peak_cuda, torch.cuda.max_memory_allocated())
            return {'bytes': peak, 'kind': 'CUDA tensors of process 0'}
        return {'bytes': resident_peak(), 'kind': 'resident memory of process 0'}


def _classes(loop: BaseLoop) -> list[dict[str, Any]] | None:
    """Return the results by class of the evaluation that just ended, if its metrics keep them.

    Several metrics of one evaluator add their columns to the same rows.
    """
    rows: dict[str, dict[str, Any]] = {}
    for metric in loop.evaluator.metrics:
        for row in getattr(metric, 'per_class', None) or []:
            rows.setdefault(row['class'], {}).update(row)
    return list(rows.values()) or None


def _by_class(metrics: dict[str, Any] | None, loop: BaseLoop) -> dict[str, float]:
    """Return the outcomes that are a number a class as scalars; backends take no arrays."""
    classes = (loop.evaluator.dataset_meta or {}).get('classes') or ()
    return {
        f'{name}/{label}': float(number)
        for name, value in (metrics or {}).items()
        if np.shape(value) == (len(classes),)
        for label, number in zip(classes, value, strict=True)
    }


def _name_of(dataset: Any, sample: Any, position: int) -> str:
    path = sample.metainfo.get('img_path')
    return image_names(dataset)(path).as_posix() if path else f'image {position}'


def _in_work_dir(runner: Runner, name: str) -> str:
    return os.path.join(runner.work_dir, name)


def _position(runner: Runner) -> dict[str, int]:
    """Return how far training is; the epoch only where the loop counts in epochs."""
    position = {'iter': runner.iter}
    if isinstance(runner._train_loop, EpochBasedTrainLoop):
        position['epoch'] = runner.epoch
    return position


def _judged_by(runner: Runner, metrics: dict[str, Any]) -> tuple[str | None, int]:
    """Return the name of the metric that counts, and 1 if more of it is better, else -1.

    It is the one that checkpoints are chosen by; else the usual one of the task; else the first.
    """
    numbers = [name for name, value in metrics.items() if _is_number(value)]
    for hook in runner.hooks:
        if isinstance(hook, CheckpointHook) and hook.save_best:
            for name, rule in zip(hook.key_indicators, hook.rules, strict=False):
                if name in numbers:
                    return name, -1 if rule == 'less' else 1
    for name, task in tasks.metrics().items():
        if name in numbers:
            return name, -1 if task.less_is_better else 1
    return next(iter(numbers), None), 1


def _is_number(value: Any) -> bool:
    """Say whether a metric is a finite number; numpy's floating scalars are not all floats."""
    try:
        return np.ndim(value) == 0 and math.isfinite(value)
    except TypeError:
        return False


def _identity(runner: Runner) -> dict[str, Any]:
    """Return what identifies a run: command, config, method, data, seed, versions."""
    task = tasks.of(_model_config(runner))
    return {
        'command': command_line(),
        'config': runner.cfg.filename,
        'experiment': runner.experiment_name,
        'ended': time.strftime('%Y-%m-%d %H:%M:%S'),
        'task': task and task.name,
        'model': _describe_model(params.unwrap(runner.model)),
        'backbone': _describe_backbone(runner),
        'method': _method(runner),
        'data': {split: _describe_data(dataset) for split, dataset in _datasets(runner)},
        'weights': _weights(runner),
        'device': _device(params.unwrap(runner.model)),
        'seed': runner.seed,
        'world_size': get_world_size(),
        'versions': versions(),
    }


def _model_config(runner: Runner) -> dict[str, Any]:
    """Return the config of the model, inside that of a test-time-augmentation wrapper."""
    config = runner.cfg.get('model', {})
    while 'module' in config:
        config = config['module']
    return config


def _method(runner: Runner) -> dict[str, Any]:
    """Return the prompt's arguments, as configured, and the patterns of what trains.

    The patterns are the backbone's own: it fills in what the config leaves out. Null for a
    backbone that knows neither.
    """
    config = _model_config(runner).get('backbone', {})
    backbone = getattr(params.unwrap(runner.model), 'backbone', None)
    return method_of(config, backbone)


def versions() -> dict[str, str]:
    """Return the versions of what this process has imported (timm: of what is installed)."""
    found = {'python': platform.python_version(), 'vpt_dense': __version__}
    for name in (*FRAMEWORKS, *tasks.scopes()):
        if hasattr(sys.modules.get(name), '__version__'):
            found[name] = str(sys.modules[name].__version__)
    if 'timm' not in found:
        try:
            found['timm'] = metadata.version('timm')
        except metadata.PackageNotFoundError:
            pass
    return found


def _describe(runner: Runner) -> str:
    """Return the summary of a run: a line each for what runs, on what data, from which weights."""
    model = params.unwrap(runner.model)
    method = _method(runner)
    added = [node for key in ADDED for node in as_list(method.get(key))]
    kind = ', '.join(map(as_call, added)) or 'no prompt'
    trainable = method['trainable']
    rows = [
        ('config', runner.cfg.filename or 'built in code'),
        ('model', _describe_model(model)),
        ('method', kind if trainable is None else f'{kind}; the backbone trains {list(trainable)}'),
    ]
    rows += [(split, _describe_data(dataset)) for split, dataset in _datasets(runner)]
    rows += [
        ('weights', _weights(runner)),
        ('device', _device(model)),
        ('work_dir', runner.work_dir),
    ]
    return '\n'.join(['What runs', *(f'  {name:<9} {text}' for name, text in rows)])


def _describe_model(model: torch.nn.Module) -> str:
    """Return the names of the classes that a model consists of; heads of a list are counted."""
    names = [type(model).__name__]
    for part in ('backbone', 'neck', *tasks.heads()):
        module = getattr(model, part, None)
        several = module if isinstance(module, torch.nn.ModuleList) else [module]
        kinds = [type(child).__name__ for child in several if child is not None]
        label = 'auxiliary ' if part == tasks.AUXILIARY else ''
        for kind in dict.fromkeys(kinds):
            times = f'{kinds.count(kind)} x ' if kinds.count(kind) > 1 else ''
            names.append(f'{times}{label}{kind}')
    return ', '.join(names)


def _describe_backbone(runner: Runner) -> str | None:
    backbone = getattr(params.unwrap(runner.model), 'backbone', None)
    if backbone is None:
        return None
    config = _model_config(runner).get('backbone', {})
    kinds = [config.get(key) for key in ('arch', 'model_name', 'depth')]
    named = [str(kind) for kind in kinds if isinstance(kind, (str, int))]  # else it is a dict
    return ' '.join([type(backbone).__name__, *named])


def _datasets(runner: Runner) -> list[tuple[str, Any]]:
    """Return the data sets of the loops that are built; asking for others would build them."""
    loops = {'train': runner._train_loop, 'val': runner._val_loop, 'test': runner._test_loop}
    return [
        (split, loop.dataloader.dataset)
        for split, loop in loops.items()
        if isinstance(loop, BaseLoop)
    ]


def _describe_data(dataset: Any) -> str:
    """Return where the images of a data set are and how many; of one in parts, each part's."""
    number = f'{len(dataset):,} images'
    parts = getattr(dataset, 'datasets', None)
    if parts is not None:  # ConcatDataset
        return f'{number}: {" + ".join(map(_describe_data, parts))}'
    inner = getattr(dataset, 'dataset', None)
    if inner is not None:  # RepeatDataset and its like hold the data set they draw from
        told = _describe_data(inner)
        return told if len(inner) == len(dataset) else f'{type(dataset).__name__}, {number}: {told}'
    where = [getattr(dataset, 'data_root', None), getattr(dataset, 'ann_file', None)]
    prefix = getattr(dataset, 'data_prefix', None) or {}
    # mmengine has joined root and prefix already; images are what one looks for.
    path = prefix.get('img_path') or next((place for place in where if place), None)
    listed = getattr(dataset, 'ann_file', None)
    told = [str(path)] if path else []
    if listed and listed != path:
        told.append(f'listed in {listed}')
    return ', '.join([type(dataset).__name__, *told, number])


def _weights(runner: Runner) -> str:
    """Return where the weights come from, in the order in which they are loaded."""
    config = _model_config(runner)
    found = []
    for name, owner in (('model', config), ('backbone', config.get('backbone', {}))):
        for entry in as_list(owner.get('init_cfg')):
            if entry and entry.get('checkpoint'):
                found.append(f'{entry["checkpoint"]} ({name})')
    if runner._resume:
        found.append(f'resumed from {runner._load_from or "the last checkpoint in work_dir"}')
    elif runner._load_from:
        found.append(runner._load_from)
    return ', '.join(found) or 'none: random initialisation'


def _device(model: torch.nn.Module) -> str:
    device = next(model.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type
    processes = get_world_size()
    return f'{name}, {processes} process{"es" if processes > 1 else ""}'


def _scalars(report: dict[str, Any]) -> dict[str, float]:
    """Return the counts of a report as scalars for TensorBoard, Weights & Biases and others."""
    scalars = {}
    for part, pair in report['parts'].items():
        key = f'params/{part.replace(" ", "_")}'
        scalars[f'{key}_trainable'] = pair['trainable']
        scalars[f'{key}_total'] = pair['total']
    for key in ('trainable', 'total', 'percent', 'tuned_megabytes'):
        scalars[f'params/{key}'] = report[key]
    return scalars


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.floating):
        return _plain(float(str(value)))  # a float32 of 44.06 as 44.06, not 44.060001373291016
    if hasattr(value, 'tolist'):  # other numpy scalars, arrays, tensors
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _write_json(path: str, content: Any) -> None:
    """Replace a JSON file as a whole: a run that is killed leaves the old one or the new one."""
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    safe_files.write_text(path, text + '\n')
