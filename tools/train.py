"""Train a model: ``python tools/train.py CONFIG``; several processes: ``tools/dist_train.sh``."""

import argparse
import os

from vpt_dense import errors


def parse_args() -> argparse.Namespace:
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(description='Train a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints '
                        '(default: work_dir of the config, or work_dirs/<config name>)')  # fmt: skip
    parser.add_argument('--resume', nargs='?', const='auto', metavar='PATH',
                        help='go on from a checkpoint, or from the last one of a folder '
                        '(default: of the work dir)')  # fmt: skip
    parser.add_argument('--amp', action='store_true',
                        help='mixed precision: float16 on a GPU, bfloat16 on a CPU')  # fmt: skip
    parser.add_argument('--seed', type=int, help='random seed (default: that of the config)')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
                        help='override settings, e.g. model.backbone.prompt.num_tokens=50')  # fmt: skip
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
    if args.amp:
        cfg.optim_wrapper.type = 'vpt_dense.AmpOptimWrapper'
    if args.seed is not None:
        cfg.randomness = dict(seed=args.seed)
    if args.resume:
        cfg.resume, cfg.load_from = True, tooling.find_checkpoint(args.resume, cfg.work_dir)
        tooling.say(f'resuming from {cfg.load_from}')
    tooling.start(cfg, 'train', cfg.load_from).train()


if __name__ == '__main__':
    errors.main(main)
