"""Train a model: ``python tools/train.py CONFIG``; several processes: ``tools/dist_train.sh``."""


from collections.abc import Sequence

from vpt_dense import errors, preemption
from vpt_dense.commands import run_options


def main(argv: Sequence[str] | None = None) -> None:
    """Train."""
    preemption.listen()
    parser = errors.ArgumentParser(description='Train a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        action='append',
        metavar='PATH',
        help='go on from a checkpoint, or from the last one of a folder (default: the work dir); '
        'if-any: from the last one of the work dir, or from the start if it has none',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 on a GPU, bfloat16 on a CPU',
    )
    parser.add_argument('--seed', type=int, help='random seed (default: that of the config)')
    run_options.add_base_option(parser)
    run_options.add_common_options(parser)
    args = parser.parse_args(argv)
    from vpt_dense import run_setup

    run_setup.say(f'loading {args.config} ...')
    cfg = run_setup.load(args)
    if args.base:
        run_setup.use_base(cfg, args.base)
    if args.amp:
        cfg.optim_wrapper.type = 'vpt_dense.AmpOptimWrapper'
    if args.seed is not None:
        cfg.randomness = dict(seed=args.seed)
    own = run_setup.own_checkpoint(cfg.work_dir)
    # The last one counts, unless it finds nothing.
    for path in [own] if own else reversed(args.resume or []):
        if path != 'if-any' or run_setup.has_checkpoint(cfg.work_dir):
            path = 'auto' if path == 'if-any' else path
            cfg.resume, cfg.load_from = True, run_setup.find_checkpoint(path, cfg.work_dir)
            run_setup.say(f'resuming from {cfg.load_from}')
            break
    run_setup.start(cfg, 'train', cfg.get('load_from')).train()

