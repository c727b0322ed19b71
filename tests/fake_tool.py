"""In place of ``-m vpt_dense`` for tests of what keeps the books: it trains nothing.

``python tests/fake_tool.py suite ...`` is the real command, whose trainings and tests are this
file's. A training takes ``FAKE_SECONDS``, locks its folder as the runner does, and notes in
``begun`` whether it had ended before. ``iters=13`` fails.
"""

import json
import os
import sys
import time
import zlib
from pathlib import Path

from vpt_dense import outputs
from vpt_dense.errors import UserError

#: Parameters of methods: backbone, what tunes it.
BACKBONE = 1000
TUNED = {'head': 0, 'lora': 100, 'deep': 200, 'full': BACKBONE}


def score(method: str, seed: str | None, options: list[str]) -> float:
    """A number between 0 and 100 that settings alone decide."""
    return zlib.crc32(f'{method} {seed} {sorted(options)}'.encode()) % 1000 / 10


def value_of(argv: list[str], name: str) -> str | None:
    return argv[argv.index(name) + 1] if name in argv else None


def write(file: Path, content: dict) -> None:
    """At once, as :mod:`vpt_dense.safe_files` does, whose import takes longer than all of this."""
    unfinished = file.with_suffix(f'.{os.getpid()}')
    unfinished.write_text(json.dumps(content))
    os.replace(unfinished, file)


def train(argv: list[str]) -> None:
    work_dir, method = Path(value_of(argv, '--work-dir')), value_of(argv, '--method')
    options = argv[argv.index('--cfg-options') + 1:] if '--cfg-options' in argv else []
    lock = outputs.FolderLock(work_dir)
    summary = work_dir / 'summary.json'
    with (work_dir / 'begun').open('a') as stream:
        stream.write('again\n' if summary.exists() else 'new\n')
    if 'iters=13' in options:
        raise UserError('the loss is nan')
    time.sleep(float(os.environ.get('FAKE_SECONDS', 0)))
    metrics = dict(mIoU=score(method, value_of(argv, '--seed'), options))
    content = dict(last=dict(metrics=metrics), started_at_iter=0, wall_time_seconds=1.0)
    write(summary, content)
    del lock


def test(argv: list[str]) -> None:
    work_dir, method = Path(value_of(argv, '--work-dir')), value_of(argv, '--method')
    metrics = json.loads((work_dir / 'summary.json').read_text())['last']['metrics']
    tuned = TUNED[method]
    parts = dict(
        backbone=dict(trainable=BACKBONE if method == 'full' else 0, total=BACKBONE),
        prompt=dict(trainable=0 if method == 'full' else tuned, total=tuned),
        head=dict(trainable=10, total=10))
    params = dict(parts=parts, trainable=tuned + 10, total=BACKBONE + tuned + 10, percent=1.0,
                  tuned_megabytes=0.1)
    content = dict(metrics=metrics, params=params, checkpoint='iter_1.pth', versions={})
    write(work_dir / 'test.json', content)


def delta(argv: list[str]) -> None:
    Path(argv[2]).write_bytes(b'delta')


def main(argv: list[str]) -> None:
    command, *rest = argv
    dict(train=train, test=test, delta=delta)[command](rest)


if __name__ == '__main__':
    if sys.argv[1] == 'suite':
        from vpt_dense import cli
        from vpt_dense.comparison import runs

        runs.TOOL = (os.path.abspath(__file__),)
        cli.run()
    else:
        from vpt_dense import errors

        errors.main(lambda: main(sys.argv[1:]))
