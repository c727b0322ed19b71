"""Test a checkpoint: ``python tools/test.py CONFIG CHECKPOINT``; see ``tools/dist_test.sh`` too."""


from vpt_dense import errors, outputs


def main() -> None:
    from vpt_dense import tooling

    parser = errors.ArgumentParser(description='Test a model.')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file, or a folder whose last one is taken')
    parser.add_argument('--show-dir', help='draw the predictions into this folder')
    outputs.add_force_option(parser)
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline",
    )
    tooling.add_base_option(parser)
    tooling.add_common_options(parser)
    args = parser.parse_args()

    if args.show_dir:
        outputs.check_free([args.show_dir], args.force)
    tooling.say(f'loading {args.config} ...')
    cfg = tooling.load(args)
    cfg.resume, cfg.load_from = False, tooling.find_checkpoint(args.checkpoint, cfg.work_dir)
    if args.base:
        tooling.use_base(cfg, args.base)
    if args.tta or cfg.get('tta'):
        tooling.use_tta(cfg)
    if args.show_dir:
        tooling.draw_predictions(cfg, args.show_dir)
    tooling.start(cfg, 'test', cfg.load_from).test()


if __name__ == '__main__':
    errors.main(main)
