"""Serves many tasks on one frozen backbone over HTTP: ``vpt-dense serve --tasks FOLDER``."""

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from vpt_dense.errors import ArgumentParser, UserError, count

#: What the extra brings along.
_NEEDED = ('fastapi', 'uvicorn', 'python_multipart', 'prometheus_client')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='FOLDER holds NAME.safetensors, deltas of one backbone; files that come, change or '
        'go there do so on the server. docs/serving.md has the interface.')
    add = parser.add_argument
    add('--tasks', type=Path, metavar='FOLDER', help='the deltas')
    add('--backbone', metavar='DELTA_OR_NAME',
        help='what the frozen weights come from (default: the first delta)')
    add('--base', metavar='PATH', help="the weights of a delta's backbone, if they are elsewhere "
        'than it says')
    add('--host', default='127.0.0.1', help='default: 127.0.0.1, this machine alone')
    add('--port', type=int, default=8000, help='default: 8000; 0: any')
    add('--keys', type=Path, metavar='FILE', help='who may do what (default: everybody may predict,'
        ' nobody may change tasks)')
    add('--new-key', choices=('reader', 'admin'), help='print a new key and its line for the file '
        'of keys, and end')
    add('--cache', metavar='SIZE', help='what the tasks may take in memory, 512MB (default: all '
        'stay)')
    add('--max-batch', type=count, default=16, metavar='N', help='pairs of image and task that are '
        'computed together (default: 16)')
    add('--wait-ms', type=float, default=5.0, metavar='MS', help='how long a request waits for '
        'others (default: 5)')
    add('--queue', type=count, default=64, metavar='N', help='pairs that may wait (default: 64)')
    add('--max-bytes', default='20MB', metavar='SIZE', help='of a body (default: 20MB)')
    add('--max-pixels', default='50M', metavar='N', help='of an image (default: 50M)')
    add('--timeout', type=float, default=60.0, metavar='SECONDS', help='of a request (default: 60)')
    add('--device', default='cpu', help='cpu, cuda, ... (default: cpu)')
    add('--backend', default='eager', metavar='NAME', help='eager (default); onnx, onnx-int8: one '
        'graph of all tasks, which are fixed then, in ONNX Runtime')
    add('--graph', type=Path, metavar='FILE', help='of that graph; made if it is not there (default'
        ': it is made and does not stay)')
    add('--size', type=count, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='of the images that the '
        'graph takes (default: of windows, else of the backbone)')
    add('--samples', type=Path, metavar='FOLDER', help='images by which the graph is compared with '
        'eager; onnx-int8 needs them')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve, or print a key."""
    args = parse_args(argv)
    if args.new_key:
        from vpt_dense.serving.keys import new_key

        key, digest = new_key()
        print(f'key (for its owner alone, it is not kept): {key}\n'
              f'line for --keys FILE: {{"{digest}": "{args.new_key}"}}')
        return
    if args.tasks is None:
        raise UserError('--tasks FOLDER is needed; see vpt-dense serve --help')
    lacking = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"serving needs {', '.join(lacking)}: pip install 'vpt-dense[serve]' "
                        '(docs/serving.md)')  # fmt: skip
    from vpt_dense.serving import settings

    options = vars(args)
    options.pop('new_key')
    chosen = settings.read(options)
    from vpt_dense import logging
    from vpt_dense.serving.server import serve

    logging.filter_warnings()  # the log is lines of JSON

    serve(chosen)

