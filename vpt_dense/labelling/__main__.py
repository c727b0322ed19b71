"""Gives a server's predictions to Label Studio: ``python -m vpt_dense.labelling URL TASK``.

With --train CONFIG its button "Start training" tunes from what was labelled, and the server gets
the new delta. See docs/labelling.md.
"""

import argparse
import importlib.util
import ipaddress
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vpt_dense import client, errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = errors.ArgumentParser(
        prog='python -m vpt_dense.labelling', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('url', metavar='URL', help='of vpt-dense serve: http://127.0.0.1:8000')
    add('task', metavar='TASK', help='whose predictions are given, and which is tuned')
    add('--label-studio', default='http://127.0.0.1:8080', metavar='URL',
        help='where the images are (default: http://127.0.0.1:8080)')
    add('--studio-key-file', metavar='FILE', help="holds a user's token of Label Studio (default: "
        'the variable LABEL_STUDIO_API_KEY)')
    add('--images-from', nargs='+', default=[], metavar='HOST',
        help='other hosts that images may be fetched from')
    add('--key-file', metavar='FILE', help=f'holds the key of the server, of the role admin if it '
        f'is to be given deltas (default: the variable {client.KEY})')
    add('--host', default='127.0.0.1', help='default: 127.0.0.1, this machine alone')
    add('--port', type=int, default=9090, help='default: 9090')
    add('--password-file', metavar='FILE', help='holds the password that Label Studio is told for '
        'basic authentication; needed for other hosts than this machine')
    add('--train', metavar='CONFIG', help='of the training, a recipe of the served backbone')
    add('--classes', nargs='+', default=[], metavar='NAME', help='of a task of segmentation '
        'that the server does not have yet: the first training makes it')
    add('--work-dir', type=Path, default=Path('work_dirs/labelling'), metavar='DIR',
        help='gets a folder for each training (default: work_dirs/labelling)')
    add('--train-after', type=errors.count, default=0, metavar='N',
        help='train without being asked when so many images were labelled')
    parser.add_config_options('override settings of --train')
    args = parser.parse_args(argv)
    for option in ('train_after', 'method', 'cfg_options', 'classes'):
        if getattr(args, option) and not args.train:
            raise errors.UserError(f'--{option.replace("_", "-")} is of --train CONFIG')
    if not args.password_file and not _is_here(args.host):
        raise errors.UserError(
            f'--host {args.host} lets others ask, and train: give --password-file FILE')
    return args


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def main(argv: Sequence[str] | None = None) -> None:
    """Serve until a signal comes."""
    args = parse_args(argv)
    lacking = [name for name in ('starlette', 'uvicorn') if importlib.util.find_spec(name) is None]
    if lacking:
        raise errors.UserError(
            f"labelling needs {', '.join(lacking)}: pip install 'vpt-dense[label-studio]' "
            '(docs/labelling.md)')
    import uvicorn

    from vpt_dense.labelling import backend, studio, training

    password = args.password_file and backend.read_word(args.password_file, '--password-file')
    key = os.environ.get('LABEL_STUDIO_API_KEY')
    if args.studio_key_file:
        key = backend.read_word(args.studio_key_file, '--studio-key-file')
    images = studio.Studio(args.label_studio, key, args.images_from)
    with client.Client(args.url, client.read_key(args.key_file)) as server:
        trainer = args.train and training.Trainer(
            server, images, args.train, args.work_dir, args.method, args.cfg_options or (),
            backend.say)
        answering = backend.Backend(server, args.task, images, trainer, args.train_after,
                                    args.classes)
        answering.task()  # is it there?
        backend.say(f'task {args.task} of {args.url} for Label Studio: add the model '
                    f'http://{args.host}:{args.port}')
        try:
            uvicorn.run(backend.build(answering, password), host=args.host, port=args.port,
                        log_level='warning')
        finally:
            if trainer:
                trainer.stop()


if __name__ == '__main__':
    sys.argv[0] = 'python -m vpt_dense.labelling'
    errors.main(main)
