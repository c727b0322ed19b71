"""What is shown while a run goes on: in place on a terminal, in whole lines elsewhere."""

import io
import re
import sys

import pytest
from test_checkpoints import _quick, build  # noqa: F401  a fixture
from test_classification import VPT, flowers, tiny_folder  # noqa: F401  a fixture
from tool_helpers import forget_runs
from utils import in_scope

from vpt_dense import config, errors, live


class Stream(io.StringIO):
    """Both streams of a process, on a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal

    def getvalue(self) -> str:
        """What was written, without the colours of levels: termcolor asks for them only once."""
        return re.sub(r'\x1b\[\d*m', '', super().getvalue())


def screen(written: str) -> list[str]:
    """The lines that are seen at the end on a wide terminal."""
    lines = []
    for line in written.split('\n'):
        seen = ''
        for part in line.split('\r'):
            seen = part.removesuffix('\x1b[K') + ('' if '\x1b[K' in part else seen[len(part):])
            seen = seen.replace('\x1b[K', '')
        lines.append(seen)
    return lines


@pytest.fixture
def streams(monkeypatch):
    """Makes both streams one of the kind, and lets every state be shown."""

    def make(terminal: bool) -> Stream:
        stream = Stream(terminal)
        monkeypatch.setattr(sys, 'stdout', stream)
        monkeypatch.setattr(sys, 'stderr', stream)
        monkeypatch.setattr(live, 'LIVE', 0)
        monkeypatch.setattr(live, 'PLAIN', (0, 0))
        monkeypatch.setenv('COLUMNS', '100')
        monkeypatch.setenv('TERM', 'xterm')
        monkeypatch.delenv('RANK', raising=False)
        return stream

    return make


def test_a_terminal(streams, tmp_path):
    """Each state stands alone in its line, and nothing of it is left behind other lines."""
    stream = streams(True)
    runner = build(tmp_path, 3)
    runner.train()
    written = stream.getvalue()
    states = re.findall(r'\r(Iter\((?:train|val)\) [^\r\n\x1b]*)\x1b\[K', written)
    assert states[0] == 'Iter(train) [1/3]'  # before anything is known
    assert re.fullmatch(
        r'Iter\(train\) \[1/3\]  loss \d\.\d{4}  \d\.\d\d s an iteration', states[1]
    )
    assert 'Iter(val) [0/1]' in states and 'Iter(val) [1/1]' in states
    seen = screen(written)
    assert not [line for line in seen if line.startswith('Iter(')]
    assert [line for line in seen if 'mmengine - INFO' in line and line[2] == '/']
    assert all(len(state) < 100 for state in states)


def test_lines_are_cut_to_the_terminal(streams):
    stream = streams(True)
    live.show(lambda: 'x' * 300, print)
    assert stream.getvalue() == '\r' + 'x' * 99 + '\x1b[K'
    live.clear()
    assert screen(stream.getvalue()) == ['']


@pytest.mark.parametrize('by_epoch, line', [(False, 'Iter(train) [2/3]'),
                                            (True, 'Epoch(train) [2][1/1]')])  # fmt: skip
def test_a_pipe(streams, tmp_path, by_epoch, line):
    stream = streams(False)
    build(tmp_path, 3, by_epoch=by_epoch).train()
    written = stream.getvalue()
    assert '\r' not in written and '\x1b' not in written
    assert re.search(f'INFO - {re.escape(line)}  loss', written)
    assert 'INFO - Iter(val) [1/1]\n' in written
    log = max(tmp_path.glob('2*/*.log')).read_text()
    assert line in log and '\r' not in log


def test_a_pipe_is_not_filled(streams, tmp_path, monkeypatch):
    """Not with a line an iteration: when nothing was told for a while."""
    stream = streams(False)
    monkeypatch.setattr(live, 'PLAIN', (1000, 1000))
    build(tmp_path, 3).train()
    assert not re.search(r'INFO - Iter\(train\) \[\d/3\]  loss', stream.getvalue())


def test_other_processes_are_silent(streams, monkeypatch):
    stream = streams(True)
    monkeypatch.setenv('RANK', '1')
    live.show(lambda: 'text', print)
    assert stream.getvalue() == ''


def test_an_error_stands_in_a_line_of_its_own(streams):
    stream = streams(True)
    live.show(lambda: 'Iter(train) [1/9]', print)

    def fail():
        raise errors.UserError('no')

    with pytest.raises(SystemExit):
        errors.main(fail)
    assert screen(stream.getvalue()) == ['error: no', '']


def test_statistics_are_shown(streams, tmp_path, flowers):  # noqa: F811
    """PromptStartHook looks at all training images before the first iteration."""
    from vpt_dense.engine.runner import Runner

    stream = streams(True)
    forget_runs()
    in_scope('mmpretrain')
    cfg = config.load(
        str(VPT / 'vit-b_imagefolder.py'), tiny_folder(tmp_path, flowers), 'prototypes')
    runner = Runner.from_cfg(cfg)
    runner.train()
    states = re.findall(r'\r(prompts start [^\r\n\x1b]*)\x1b\[K', stream.getvalue())
    assert states == [f'prompts start from training images: batches: {i} of 3' for i in range(4)]
    assert 'Iter(val) [3/3]' in stream.getvalue()
