"""Train a model: ``python tools/train.py CONFIG``; several processes: ``tools/dist_train.sh``."""

import argparse

from vpt_dense import errors


def main() -> None:
    from vpt_dense import tooling

    parser = argparse.ArgumentParser(description='Train a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='PATH',
        help='go on from a checkpoint, or from the last one of a folder (default: the work dir)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on a GPU, bfloat16 on a CPU',
    )
    parser.add_argument('--seed', type=int, help='random seed (default: that of the config)')
    tooling.add_common_options(parser)
    args = parser.parse_args()

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
