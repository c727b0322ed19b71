"""Shared parts of ``tools/train.py`` and ``tools/test.py``."""

import argparse
import functools
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config, ConfigDict

from vpt_dense import config, imports, live, logging, preflight, tasks, test_sets, tree, tta
from vpt_dense.datasets import layouts
from vpt_dense.errors import UserError

if TYPE_CHECKING:
    from vpt_dense.engine.runner import Runner



def say(message: str) -> None:
    """Print a line at once, in the first process only."""
    if live.is_first():
        print(message, flush=True)


@imports.uncollected()
def load(args: argparse.Namespace) -> Config:
    """Load ``args.config``; apply ``cfg_options``, ``launcher`` and ``work_dir``."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    logging.filter_warnings()
    cfg = config.load(args.config, args.cfg_options, args.method)
    cfg.launcher = args.launcher
    name = Path(args.config.rpartition('::')[2]).stem
    name += f'_{Path(args.method).stem}' if args.method else ''
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', name))
    return cfg


def find_checkpoint(path: str, work_dir: str) -> str:
    """The checkpoint file that ``path`` means.

    Args:
        path: A file, an address, a folder (its last checkpoint) or ``auto`` (of ``work_dir``).
        work_dir: The run's folder.
    """
    from vpt_dense.weights import checkpoints

    if path == 'auto' or Path(path).is_dir():
        return checkpoints.find_last(work_dir if path == 'auto' else path)
    checkpoints.verify(path)
    return path


def use_base(cfg: Config, path: str) -> None:
    """Take the pretrained weights of the backbone from ``path``.

    Raises:
        UserError: If the config has no ``model.backbone``.
    """
    from vpt_dense.checkpoints import deltas

    backbone = (cfg.get('model') or {}).get('backbone')
    if not backbone:
        raise UserError('--base: the config has no model.backbone that could take the weights')
    backbone.init_cfg = ConfigDict(deltas.rebased(backbone.get('init_cfg'), path))


def has_checkpoint(work_dir: str) -> bool:
    """Whether a run's folder has a checkpoint, whole or not."""
    return any(Path(work_dir).glob('*.pth'))


def own_checkpoint(work_dir: str) -> str | None:
    """The last checkpoint of this run, if torchrun may have started its processes again.

    Not one that lies in the folder since an earlier run. ``TORCHELASTIC_RESTART_COUNT`` does not
    tell: it counts what this machine has lost, and all machines must go on from the same file.
    """
    from vpt_dense.weights import checkpoints

    if not int(os.environ.get('TORCHELASTIC_MAX_RESTARTS', 0)):
        return None
    try:
        found = checkpoints.find_last(work_dir, warn=lambda line: None)
    except UserError:  # there is none
        return None
    meta = checkpoints.read(found).get('meta', {})
    return found if (meta.get('launch') or '') == checkpoints.launch() else None


def _model(cfg: Config) -> dict:
    """The model, also inside of test-time augmentation."""
    return cfg.model.get('module') or cfg.model


def use_tta(cfg: Config) -> None:
    """Test with augmentation: put ``tta_model`` around the model, ``tta_pipeline`` on the data.

    Where they may be left out: see :func:`vpt_dense.tta.parts`.
    """
    for where, dataset in tree.placed_datasets(cfg.test_dataloader, 'test_dataloader'):
        model, augmented = tta.parts(cfg, dataset.pipeline, f'{where}.pipeline', 'test')
        dataset.pipeline = test_sets.keep_tag(dataset.pipeline, augmented)
    cfg.model = ConfigDict(**model, module=cfg.model)


def draw_predictions(cfg: Config, folder: str) -> None:
    """Make the test draw every prediction into ``folder``."""
    task = tasks.need(_model(cfg), '--show-dir')
    hook = dict(task.has('drawing', '--show-dir'), out_dir=folder)
    cfg.default_hooks = {**cfg.get('default_hooks', {}), 'visualization': hook}
    said = cfg.get('visualizer') or {}
    kept = {key: said[key] for key in ('ignore_index',) if task.dense and key in said}
    cfg.visualizer = dict(task.has('visualizer', '--show-dir'), **kept)
    say(f'predictions are drawn into {folder}')


def store_predictions(cfg: Config, out: str) -> None:
    """Make the test write every prediction: label maps into a folder, or classes into a file.

    Raises:
        UserError: If ``out`` is the other.
    """
    task = tasks.need(_model(cfg), '--out')
    kind, suffixes = task.has('store', '--out'), task.store_suffixes
    of_files = {suffix for each in tasks.TASKS.values() for suffix in each.store_suffixes}
    named_as_file = Path(out).suffix in of_files or Path(out).is_file()
    if not suffixes and named_as_file:
        raise UserError(f'--out {out}: a {task.name} writes a file an image; name a folder')
    if suffixes and (Path(out).suffix not in suffixes or Path(out).is_dir()):
        *some, last = (f'*{suffix}' for suffix in suffixes)
        raise UserError(f'--out {out}: a {task.name} writes one file; name it '
                        f'{", ".join(some)}{" or " if some else ""}{last}')
    hook = dict(type=kind, **{'out_file' if suffixes else 'out_dir': out})
    if not suffixes:
        say(f'{"label maps" if task.classes else "maps"} are written into {out}')
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), hook]


def written_by_metrics(cfg: Config) -> list[str]:
    """The files and folders that the metrics of a test write to."""
    return [node[key] for _, node in tree.walk(cfg.get('test_evaluator'), '')
            for key in ('output_dir', 'out_file_path') if node.get(key)]  # fmt: skip


#: Classification data sets that can be without labels.
_WITH_LABEL = ('ImageFolder', 'CustomDataset', 'ImageNet', 'ImageNet21k', 'TorchGeoClasses')


def leave_out_labels(cfg: Config, wanted: bool) -> bool:
    """Test images that have no labels, if that is wanted or if the config says so of them.

    Their metrics are left out, but for those that only write predictions.

    Args:
        cfg: The config, in place.
        wanted: Whether labels are left out that may be there.

    Returns:
        Whether labels are left out.

    Raises:
        UserError: If a data set always has labels, or some parts of the data have them.
    """
    parts = tree.placed_datasets(cfg.get('test_dataloader'), 'test_dataloader')
    task = tasks.of(_model(cfg))
    key = task.labels if task else ''
    if wanted:
        for where, part in parts:
            _take_labels(part, where, key)
    bare = [part for _, part in parts if not _has_labels(part, key)]
    if not bare:
        return False
    if len(bare) < len(parts):
        raise UserError(
            f'{len(bare)} of {len(parts)} parts of test_dataloader have no labels; test them on '
            'their own, or all without labels: --no-labels')
    for part in bare:
        part['pipeline'] = _without_masks(part.get('pipeline') or [])
    metrics = tree.as_list(cfg.get('test_evaluator'))
    cfg.test_evaluator = [metric for metric in metrics if metric.get('format_only')
                          or tree.kind_of(metric) == 'DumpResults']  # fmt: skip
    say('the test images have no labels: no metric is reported')
    return True


def _has_labels(part: dict, key: str) -> bool:
    """Whether a data set has labels; ``key``: where their folder is said, see ``Task.labels``."""
    prefix = part.get('data_prefix')
    if tree.kind_of(part) == 'PublicSet' and prefix is None:
        return layouts.has_masks(part)
    if tree.kind_of(part) == 'TorchGeo':
        return part.get('with_masks', True)
    if key:  # a data set that is told no folders has its own, masks too
        return not (isinstance(prefix, dict) and 'img_path' in prefix) or key in prefix
    return part.get('with_label', True)


def _take_labels(part: dict, where: str, key: str) -> None:
    kind = tree.kind_of(part)
    if kind == 'TorchGeo' or (kind == 'PublicSet' and part.get('data_prefix') is None):
        part['with_masks'] = False
    elif key:
        prefix = part.get('data_prefix')
        if not isinstance(prefix, dict):
            prefix = dict(img_path='images' if kind.endswith('Folder') else '')
        part['data_prefix'] = ConfigDict(
            {name: value for name, value in prefix.items() if name != key})
    elif kind in _WITH_LABEL:
        part['with_label'] = False
    else:
        raise UserError(
            f'--no-labels: {where} is a {kind}, which always has labels; it can be '
            f'one of {", ".join(_WITH_LABEL)}')


def _without_masks(pipeline: list) -> list:
    """A pipeline, or alternatives in it, without loading of masks; what that empties goes too."""
    kept = []
    for step in pipeline:
        if isinstance(step, (list, tuple)):
            step = _without_masks(step)
            if not step:
                continue
        elif tree.kind_of(step) in (
                'LoadAnnotations', 'LoadMask', 'LoadDepth', 'LoadNormals'):
            continue
        elif step.get('transforms'):
            step = ConfigDict(step, transforms=_without_masks(step['transforms']))
        kept.append(step)
    return kept


def start(cfg: Config, mode: str, checkpoint: str | None) -> 'Runner':
    """Check a run, build it and return its runner.

    Args:
        cfg: The finished config.
        mode: ``train`` or ``test``.
        checkpoint: File to resume, start from or test.
    """
    with imports.uncollected():
        preflight.check(cfg, mode, checkpoint)
        say(f'building the run in {cfg.work_dir} ...')
        from vpt_dense import building

        building.import_packages(cfg)
        from vpt_dense.engine.runner import Runner

    _freeze()
    return Runner.from_cfg(cfg)


@functools.cache
def _freeze() -> None:
    """Leave out of searches for garbage, once a process, what the imports have left.

    mmengine collects it for every data set and before every epoch. All that need not be looked
    through each time (half a second), nor copied by forked workers.
    """
    gc.freeze()
