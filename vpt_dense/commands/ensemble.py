"""An ensemble of deltas: their prompts and heads on one backbone, tested in one pass.

``python tools/ensemble.py ensemble.safetensors seed0.safetensors seed1.safetensors ...``
``python tools/test.py ensemble.py ensemble.safetensors``
"""

from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs


def main(argv: Sequence[str] | None = None) -> None:
    """Write the ensemble and its config."""
    parser = errors.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument(
        'out', metavar='OUT.safetensors', help='the ensemble to write; OUT.py: its config')
    parser.add_argument('deltas', nargs='+', metavar='DELTA',
                        help='deltas (tools/delta.py extract) or checkpoints of runs')
    outputs.add_force_option(parser)
    args = parser.parse_args(argv)
    config = Path(args.out).with_suffix('.py')
    # It may be a member, if the first argument was forgotten, or somebody's config.
    outputs.check_free((args.out, config), args.force, args.deltas)
    from vpt_dense import logging, safe_files

    logging.filter_warnings()
    from vpt_dense.checkpoints import assembly, deltas

    ensemble = assembly.assemble(args.deltas)
    deltas.write(ensemble, args.out)
    safe_files.write_text(config, ensemble['meta']['cfg'])
    trainable = ensemble['meta']['counts']['trainable']
    print(f'{args.out}: {len(args.deltas)} members, {trainable:,} parameters beside the backbone, '
          f'{Path(args.out).stat().st_size / 1e6:,.2f} MB')
    print(f'config: {config}')

