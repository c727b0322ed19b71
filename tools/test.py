"""Test a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``; see ``tools/dist_test.sh`` too."""

import argparse
import os

from vpt_dense import errors


def parse_args() -> argparse.Namespace:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description='Test a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or a folder whose last one is taken')
    parser.add_argument('--work-dir', help='folder for the results '
                        '(default: work_dir of the config, or work_dirs/<config name>)')  # fmt: skip
    parser.add_argument('--show-dir', help='draw the predictions into this folder')
    parser.add_argument('--tta', action='store_true',
                        help='test-time augmentation: tta_model and tta_pipeline of the config')  # fmt: skip
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings, e.g. test_dataloader.batch_size=1')  # fmt: skip
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
                        help='what started the processes')  # fmt: skip
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0,
                        help=argparse.SUPPRESS)  # fmt: skip
    parser.add_argument('--traceback', action='store_true', help='show the traceback of an error')
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main() -> None:
    args = parse_args()
    from vpt_dense import tooling

    tooling.say(f'loading {args.config} ...')
    cfg = tooling.load(args)
    cfg.resume, cfg.load_from = False, tooling.find_checkpoint(args.checkpoint, cfg.work_dir)
    if args.tta or cfg.get('tta'):
        tooling.use_tta(cfg)
    if args.show_dir:
        tooling.draw_predictions(cfg, args.show_dir)
    tooling.start(cfg, 'test', cfg.load_from).test()


if __name__ == '__main__':
    errors.main(main)
