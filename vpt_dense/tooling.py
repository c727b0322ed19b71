"""What ``tools/train.py`` and ``tools/test.py`` share."""

import argparse
import contextlib
import importlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config, ConfigDict

from vpt_dense import config, ignore_index, logging, preflight, tree
from vpt_dense.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from vpt_dense.engine.runner import Runner

#: Scopes whose packages are imported before the run is built.
_PACKAGES = ('mmseg', 'mmpretrain')


def add_common_options(parser: ArgumentParser) -> None:
    """Add the options that training and testing share."""
    add = parser.add_argument
    add(
        '--work-dir',
        help='folder for logs and results (default: work_dir of the config, or work_dirs/<config>)',
    )
    parser.add_config_options('override settings, e.g. model.backbone.prompt.num_tokens=50')
    add(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started the processes',
    )
    add('--local-rank', '--local_rank', type=int, default=0, help=argparse.SUPPRESS)


def say(message: str) -> None:
    """Print a line at once, in the first process only."""
    if os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0':
        print(message, flush=True)


def load(args: argparse.Namespace) -> Config:
    """Load ``args.config``; apply ``cfg_options``, ``launcher`` and ``work_dir``."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    logging.filter_warnings()
    cfg = config.load(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(args.config).stem))
    )
    return cfg


def find_checkpoint(path: str, work_dir: str) -> str:
    """The checkpoint file that ``path`` means.

    Args:
        path: A file, an address, a folder (its last checkpoint) or ``auto`` (of ``work_dir``).
        work_dir: The run's folder.
    """
    from vpt_dense.engine import checkpoints

    if path == 'auto' or Path(path).is_dir():
        return checkpoints.find_last(work_dir if path == 'auto' else path)
    checkpoints.verify(path)
    return path


def add_base_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says where the pretrained weights lie."""
    parser.add_argument(
        '--base',
        metavar='PATH',
        help='pretrained weights of the backbone, in place of model.backbone.init_cfg.checkpoint',
    )


def use_base(cfg: Config, path: str) -> None:
    """Take the pretrained weights of the backbone from ``path``.

    Raises:
        UserError: If the config has no ``model.backbone``.
    """
    from vpt_dense.weights import deltas

    backbone = (cfg.get('model') or {}).get('backbone')
    if not backbone:
        raise UserError('--base: the config has no model.backbone that could take the weights')
    backbone.init_cfg = ConfigDict(deltas.rebased(backbone.get('init_cfg'), path))


def has_checkpoint(work_dir: str) -> bool:
    """Whether a run's folder has a checkpoint, whole or not."""
    return any(Path(work_dir).glob('*.pth'))


def use_tta(cfg: Config) -> None:
    """Test with augmentation: put ``tta_model`` around the model, ``tta_pipeline`` on the data.

    Raises:
        UserError: If the config lacks either.
    """
    for key in ('tta_model', 'tta_pipeline'):
        if not cfg.get(key):
            raise UserError(f'--tta: the config has no {key}; add it, or test without --tta')
    for dataset in tree.leaf_datasets(cfg.test_dataloader):
        dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def draw_predictions(cfg: Config, folder: str) -> None:
    """Make the test draw every prediction into ``folder``."""
    model = cfg.model.get('module') or cfg.model
    if 'decode_head' in model:
        hook = dict(type='SegVisualizationHook', draw=True, interval=1)
        visualizer = dict(
            type='vpt_dense.SegLocalVisualizer',
            ignore_index=(cfg.get('visualizer') or {}).get('ignore_index', ignore_index.DEFAULT),
            alpha=0.6,
            vis_backends=[dict(type='LocalVisBackend')],
            save_dir=folder,
        )
    else:
        hook = dict(type='VisualizationHook', enable=True, interval=1, out_dir=folder)
        visualizer = dict(type='UniversalVisualizer')
    cfg.default_hooks = {**cfg.get('default_hooks', {}), 'visualization': hook}
    cfg.visualizer = visualizer
    say(f'predictions are drawn into {folder}')


def start(cfg: Config, mode: str, checkpoint: str | None) -> 'Runner':
    """Check a run, build it and return its runner.

    Args:
        cfg: The finished config.
        mode: ``train`` or ``test``.
        checkpoint: File to resume, start from or test.
    """
    preflight.check(cfg, mode, checkpoint)
    say(f'building the run in {cfg.work_dir} ...')
    # Both packages print about an optional service when they are imported.
    with contextlib.redirect_stdout(io.StringIO()):
        for part in ('datasets', 'models') if cfg.get('default_scope') in _PACKAGES else ():
            importlib.import_module(f'{cfg.default_scope}.{part}')
    logging.filter_warnings()
    from vpt_dense.engine.runner import Runner

    return Runner.from_cfg(cfg)
