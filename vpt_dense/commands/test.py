"""Test a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``; see ``tools/dist_test.sh`` too."""


from collections.abc import Sequence

from vpt_dense import errors, outputs
from vpt_dense.commands import run_options


def main(argv: Sequence[str] | None = None) -> None:
    """Test."""
    parser = errors.ArgumentParser(description='Test a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or a folder whose last one is taken')
    parser.add_argument(
        '--out',
        metavar='DIR|FILE',
        help='write the predictions: label maps in the ids of the annotations into this folder, or '
        'classes and scores into this file (*.json, *.jsonl, *.pkl)',
    )
    parser.add_argument('--show-dir', metavar='DIR', help='draw the predictions into this folder')
    parser.add_argument(
        '--no-labels',
        action='store_true',
        help='the images have no masks, or do not lie in folders of classes: no metric',
    )
    outputs.add_force_option(parser)
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline; a classifier "
        'without them averages each image with its mirror image',
    )
    run_options.add_base_option(parser)
    run_options.add_common_options(parser)
    args = parser.parse_args(argv)
    from vpt_dense import run_setup

    wanted = [place for place in (args.show_dir, args.out) if place]
    outputs.check_free(wanted, args.force)
    run_setup.say(f'loading {args.config} ...')
    cfg = run_setup.load(args)
    cfg.resume, cfg.load_from = False, run_setup.find_checkpoint(args.checkpoint, cfg.work_dir)
    if args.base:
        run_setup.use_base(cfg, args.base)
    if args.tta or cfg.get('tta'):
        run_setup.use_tta(cfg)
    unlabelled = run_setup.leave_out_labels(cfg, args.no_labels)
    wanted += run_setup.written_by_metrics(cfg)
    if unlabelled and not wanted:
        raise errors.UserError(
            'the test images have no labels, so nothing would come of a test; add --out or '
            '--show-dir'
        )
    outputs.check_free(run_setup.written_by_metrics(cfg), args.force)
    if args.show_dir:
        run_setup.draw_predictions(cfg, args.show_dir)
    if args.out:
        run_setup.store_predictions(cfg, args.out)
    run_setup.start(cfg, 'test', cfg.load_from).test()

