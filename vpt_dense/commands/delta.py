"""Deltas, checkpoints of only what was tuned: made, completed, shown, compared, folded, shared.

``python tools/delta.py extract work_dirs/RUN/iter_160000.pth tuned.safetensors``
``python tools/delta.py merge tuned.safetensors whole.pth``
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import errors, outputs


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(description=__doc__.partition('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def target(new: argparse.ArgumentParser, name: str, text: str) -> None:
        new.add_argument('out', metavar=name, help=text)
        outputs.add_force_option(new)

    def sources(new: argparse.ArgumentParser) -> None:
        new.add_argument('--config', help='config of the training (default: the one in the file)')
        new.add_argument('--method', metavar='NAME', help='its method, if it is a recipe')
        new.add_argument(
            '--base',
            metavar='PATH',
            help='pretrained weights of the backbone (default: as the config says)',
        )

    extract = command('extract', 'checkpoint -> delta')
    extract.add_argument('checkpoint', help='whole checkpoint, or one of a run')
    target(extract, 'OUT.safetensors', 'the delta to write')
    sources(extract)
    merge = command('merge', 'delta + pretrained weights -> whole checkpoint')
    merge.add_argument('delta', help='delta, or checkpoint of a run')
    target(merge, 'OUT.pth', 'the checkpoint to write')
    sources(merge)
    fold = command(
        'fold', 'delta -> checkpoint for deployment: adapters in the weights, prompts as keys and '
        'values',
    )
    fold.add_argument('delta', help='delta or checkpoint')
    target(fold, 'OUT.pth', 'the checkpoint to write; OUT.py: its config')
    sources(fold)
    info = command('info', 'what is in a file')
    info.add_argument('file', help='delta or checkpoint')
    info.add_argument('--tensors', action='store_true', help='list the tensors too')
    diff = command('diff', 'what differs between two files; exit code 0: nothing, 1: something')
    diff.add_argument('first', help='delta or checkpoint')
    diff.add_argument('second', help='delta or checkpoint')
    diff.add_argument('--weights-only', action='store_true',
                      help='neither metadata nor the state of the optimizer')
    push = command('push', 'upload a delta to the Hugging Face hub')
    push.add_argument('delta', help='delta')
    push.add_argument('repo_id', metavar='OWNER/NAME', help='repository; made if absent')
    push.add_argument('--force', action='store_true', help='write the model card anew')
    push.add_argument('--private', action='store_true', help='make a new repository private')
    pull = command('pull', 'download a delta from the Hugging Face hub')
    pull.add_argument('repo_id', metavar='OWNER/NAME', help='repository')
    target(pull, 'OUT.safetensors', 'the delta to write')
    pull.add_argument('--revision', help='branch, tag or commit (default: main)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command."""
    args = parse_args(argv)
    check_out(args)
    from vpt_dense import logging, safe_files

    logging.filter_warnings()
    from vpt_dense.checkpoints import deltas, hub

    if args.command == 'extract':
        deltas.write(deltas.extract(args.checkpoint, args.config, args.base, args.method), args.out)
        report(args.out)
    elif args.command == 'merge':
        merged = deltas.merge(args.delta, args.base, args.config, args.method)
        safe_files.write(safe_files.plain(merged), args.out)
        report(args.out)
    elif args.command == 'fold':
        checkpoint, text = deltas.fold(args.delta, args.base, args.config, args.method)
        safe_files.write(safe_files.plain(checkpoint), args.out)
        safe_files.write_text(Path(args.out).with_suffix('.py'), text)
        report(args.out)
        print(f'config: {Path(args.out).with_suffix(".py")}')
    elif args.command == 'info':
        show(args.file, args.tensors)
    elif args.command == 'diff':
        lines = deltas.differences(args.first, args.second, args.weights_only)
        print('\n'.join(lines) or 'no differences')
        sys.exit(1 if lines else 0)
    elif args.command == 'push':
        print(hub.push(args.delta, args.repo_id, args.private, args.force))
    elif args.command == 'pull':
        hub.pull(args.repo_id, args.out, args.revision)
        report(args.out)


def check_out(args: argparse.Namespace) -> None:
    """Refuse a name that belongs to another kind of file, or to a file that is there.

    Raises:
        UserError: If it is one.
    """
    if 'out' not in args:
        return
    out, whole = Path(args.out), args.command in ('merge', 'fold')
    if whole and out.suffix != '.pth':
        raise errors.UserError(f'{out}: a whole checkpoint is a .pth file, give it that ending')
    if not whole and out.suffix != '.safetensors':
        raise errors.UserError(f'{out}: deltas are .safetensors files, give it that ending')
    written = [out, *([out.with_suffix('.py')] if args.command == 'fold' else [])]
    given = vars(args)
    read = [given[name] for name in ('checkpoint', 'delta', 'config', 'base') if given.get(name)]
    outputs.check_free(written, args.force, read)


def report(path: str) -> None:
    """Say what was written."""
    print(f'{path}: {Path(path).stat().st_size / 1e6:,.2f} MB')


def show(path: str, tensors: bool) -> None:
    """Print what is in a file."""
    from vpt_dense import tables
    from vpt_dense.checkpoints import deltas

    rows = deltas.describe(path)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        print(f'{label:<{width}}  {text}')
    if tensors:
        state = deltas.read(path)['state_dict']
        print()
        print(tables.text(
            ('tensor', 'shape', 'type', 'numbers'),
            [
                (name, 'x'.join(map(str, tensor.shape)) or 'scalar',
                 str(tensor.dtype).removeprefix('torch.'), f'{tensor.numel():,}')
                for name, tensor in state.items()
            ],
        ))

