"""Print a config as a run uses it: bases merged, options applied, classes resolved."""

from vpt_dense import errors, outputs


def main() -> None:
    from vpt_dense import config

    parser = errors.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('key', nargs='?', help='print only this part, e.g. model.backbone')
    parser.add_config_options()
    parser.add_argument('--save-path', metavar='FILE', help='write it to a .py or .json file too')
    outputs.add_force_option(parser)
    args = parser.parse_args()

    if args.save_path:
        outputs.check_free([args.save_path], args.force, [args.config])
    cfg = config.load(args.config, args.cfg_options)
    if args.save_path:
        cfg.dump(args.save_path)
    if args.key:
        node, parts = cfg, args.key.split('.')
        for part in parts:
            try:
                node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                hint = errors.suggest(part, node) if isinstance(node, dict) else ''
                raise errors.UserError(f"the config has no {args.key}{hint}") from error
        cfg = config.Config({parts[-1]: node})
    print(cfg.pretty_text, end='')


if __name__ == '__main__':
    errors.main(main)
