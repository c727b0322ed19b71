"""Print a config as a run uses it: bases merged, options applied, classes resolved."""

from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Print, and write if that is asked for."""
    parser = errors.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('key', nargs='?', help='print only this part, e.g. model.backbone')
    parser.add_config_options()
    parser.add_argument('--save-path', metavar='FILE', help='write it to a .py or .json file too')
    outputs.add_force_option(parser)
    args = parser.parse_args(argv)
    import mmengine

    from vpt_dense import config, config_files, safe_files

    if args.save_path:
        if Path(args.save_path).suffix not in config_files.SUFFIXES:
            raise errors.UserError(
                f'--save-path {args.save_path}: must end in {", ".join(config_files.SUFFIXES)}')
        outputs.check_free([args.save_path], args.force, [args.config])
    cfg = config.load(args.config, args.cfg_options, args.method)
    if args.save_path:
        path = Path(args.save_path)
        safe_files.write_text(
            path,
            cfg.pretty_text if path.suffix == '.py'
            else mmengine.dump(cfg.to_dict(), file_format=path.suffix[1:]),
        )  # fmt: skip
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

