"""Signals: a run saves, leaves with code 75, and goes on as though nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from resume_runs import AUGMENTED, IMAGES, ITERATIONS, differences, final
from tool_helpers import run_tool, write_leaf
from utils import ROOT, make_ade_folder

from vpt_dense import preemption

#: Slow enough that a signal meets the iteration that it is sent in.
SLOW = """
custom_hooks = [
    dict(type='vpt_dense.ReportHook'), dict(type='vpt_dense.PreemptionHook'),
    dict(type='slow_hook.SlowHook')]
custom_imports = dict(imports=['slow_hook'])
"""
SLOW_HOOK = """
import os
import time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module('slow_hook.SlowHook')
class SlowHook(Hook):
    def note(self, name):
        with open(os.environ['NOTES'], 'a') as file:
            file.write(name + '\\n')
        time.sleep(float(os.environ.get('SECONDS_EACH', 0)))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.note(f'iteration {runner.iter + 1}')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.note('validation')
"""
WORKERS = """
train_dataloader['num_workers'] = 1
train_dataloader['persistent_workers'] = True
"""
BY_EPOCH = """
train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler'),
    dataset=dict(pipeline=_train))
default_hooks = dict(
    checkpoint=dict(by_epoch=True, interval=1, max_keep_ckpts=2), logger=dict(interval=1))
log_processor = dict(by_epoch=True)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_ade_folder(tmp_path_factory.mktemp('data'), num_images=IMAGES, size=(48, 64))


def descendants(process: int) -> list[int]:
    """Its processes, and theirs, of whatever session."""
    listed = subprocess.run(['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [process]
    for parent in found:
        found += [child for child, its in pairs if its == parent]
    return found[1:]


class Run:
    """A run that is started as a user would."""

    def __init__(self, folder: Path, leaf: Path, *arguments: str, processes: int = 1,
                 seconds: float = 0) -> None:  # fmt: skip
        self.notes = folder / 'notes.txt'
        self.notes.write_text('')
        tool = [str(ROOT / 'tools/train.py'), str(leaf), *arguments]
        launch = ['-m', 'vpt_dense.launch', str(processes)] if processes > 1 else []
        self.process = subprocess.Popen(
            [sys.executable, *launch, *tool], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env={
                **os.environ, 'NOTES': str(self.notes), 'PYTHONPATH': str(folder),
                'SECONDS_EACH': str(seconds), 'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1'})

    def send(self, note: str, *signals: signal.Signals, to_all: bool = False) -> None:
        """Send signals as soon as the run has got that far; to its children too, as Slurm does."""
        deadline = time.monotonic() + 300
        while note not in self.notes.read_text().splitlines():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, 'the run does not get that far'
            time.sleep(0.02)
        for number in signals:
            for process in [self.process.pid, *(descendants(self.process.pid) if to_all else [])]:
                os.kill(process, number)

    def end(self) -> tuple[int, list[str], str]:
        """Exit code, lines on stderr, stdout."""
        out, err = self.process.communicate(timeout=300)
        return self.process.returncode, err.splitlines(), out


def leaf_in(folder: Path, data: Path, extra: str = '') -> Path:
    (folder / 'slow_hook.py').write_text(SLOW_HOOK)
    folder.joinpath('work').mkdir()
    # One checkpoint at the end: what is saved before is saved by the signal.
    few = "default_hooks['checkpoint']['interval'] = 100\n"
    return write_leaf(folder, data, AUGMENTED + few + SLOW + extra)


def evaluations(work: Path) -> list[dict]:
    """What a run wrote about its validations."""
    records = json.loads((work / 'evaluations.json').read_text())
    return [{key: record[key] for key in record if key != 'run_id'} for record in records]


@pytest.mark.parametrize(('processes', 'number', 'extra'), [
    pytest.param(1, signal.SIGTERM, WORKERS, marks=pytest.mark.slow),
    pytest.param(2, signal.SIGUSR1, BY_EPOCH, marks=pytest.mark.long),
    pytest.param(1, signal.SIGUSR1, BY_EPOCH, marks=pytest.mark.long),
    pytest.param(2, signal.SIGTERM, WORKERS, marks=pytest.mark.long),
])  # fmt: skip
def test_saves_and_goes_on_exactly(tmp_path, data, processes, number, extra):
    leaf = leaf_in(tmp_path, data, extra)
    work = tmp_path / 'work'
    run = Run(tmp_path, leaf, processes=processes, seconds=0.5)
    workers, by_epoch = extra == WORKERS, extra == BY_EPOCH
    # One is enough, more do no harm; a second SIGTERM would end loader workers.
    signals = [number] if workers else [number, number, signal.SIGTERM]
    run.send('iteration 2', *signals, to_all=workers)
    code, lines, out = run.end()
    assert code == preemption.EXIT_CODE == 75, out
    (line,) = lines
    assert line.startswith('preempted (SIG') and line.endswith('; go on with --resume')
    (saved,) = work.glob('*.pth')
    stopped = int(saved.stem.removeprefix('iter_'))
    assert stopped in (2, 3) and f'at iteration {stopped}: saved ' in line and saved.name in line
    assert (work / 'last_checkpoint').read_text() == str(saved)

    whole = tmp_path / 'whole'
    for arguments in (['--resume'], ['--work-dir', str(whole)]):
        code, lines, out = Run(tmp_path, leaf, *arguments, processes=processes).end()
        assert (code, lines) == (0, []), out
    last = 'epoch_2.pth' if by_epoch else f'iter_{ITERATIONS}.pth'
    assert differences(final(whole, last), final(work, last)) == []
    # The file that the signal wrote is pruned like any other.
    assert len(list(work.glob('iter_*.pth'))) <= (0 if by_epoch else 2)
    assert evaluations(whole) == evaluations(work)
    assert [record['iter'] for record in evaluations(work)] == (
        [4 // processes, 8 // processes] if by_epoch else [3, 6, 8])


@pytest.mark.long
def test_leaves_a_validation_and_makes_up_for_it(tmp_path, data):
    leaf = leaf_in(tmp_path, data, "default_hooks['checkpoint']['interval'] = 3\n")
    run = Run(tmp_path, leaf, seconds=0.5)
    run.send('validation', signal.SIGTERM)
    code, lines, out = run.end()
    assert code == 75
    (line,) = lines
    assert line.startswith('preempted (SIGTERM) at the validation of iteration 3: nothing new was')
    assert not (tmp_path / 'work/evaluations.json').exists()
    code, lines, out = Run(tmp_path, leaf, '--resume').end()
    assert (code, lines) == (0, []), out
    assert 'making up for the validation at iteration 3' in out
    assert [record['iter'] for record in evaluations(tmp_path / 'work')] == [3, 6, 8]


@pytest.mark.parametrize('processes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_leaves_before_training(tmp_path, data, processes):
    leaf = leaf_in(tmp_path, data)
    run = Run(tmp_path, leaf, processes=processes)
    for line in run.process.stdout:
        if line.startswith('loading'):
            break
    run.process.send_signal(signal.SIGTERM)
    code, lines, _ = run.end()
    assert (code, lines) == (75, ['preempted (SIGTERM) before training began: nothing was saved'])
    assert not list((tmp_path / 'work').glob('*.pth'))


# --- Slurm -----------------------------------------------------------------------------------

SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$(dirname "$0")/asked"
trap 'echo USR1 >> "$(dirname "$0")/signals"; exit 75' USR1
trap 'echo TERM >> "$(dirname "$0")/signals"; exit 75' TERM
touch "$(dirname "$0")/started"
[ -n "${SRUN_CODE:-}" ] && exit "$SRUN_CODE"
while true; do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder with stand-ins for srun and scontrol, first in the path; inside of job 42."""
    for name, text in {
        'srun': SRUN, 'scontrol': '#!/bin/sh\necho "$@" > "$(dirname "$0")/scontrol.txt"\n',
    }.items():  # fmt: skip
        tmp_path.joinpath(name).write_text(text)
        tmp_path.joinpath(name).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('SLURM_JOB_ID', '42')
    monkeypatch.delenv('SLURM_RESTART_COUNT', raising=False)
    return tmp_path


SCRIPT = ['bash', str(ROOT / 'tools/slurm_train.sh'), 'part', 'job', 'c.py', '--work-dir', 'w']


@pytest.mark.parametrize('name', ['TERM', 'USR1'])
def test_slurm_hands_signals_on_and_requeues(slurm, name):
    process = subprocess.Popen(SCRIPT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (slurm / 'started').exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.Signals[f'SIG{name}'])
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert (slurm / 'signals').read_text().split() == [name]
    assert (slurm / 'scontrol.txt').read_text().split() == ['requeue', '42']
    assert err == 'preempted: job 42 goes back into the queue\n'


@pytest.mark.parametrize('code', [0, 1, 75])
def test_slurm_requeues_only_what_was_preempted(slurm, monkeypatch, code):
    monkeypatch.setenv('SRUN_CODE', str(code))
    assert subprocess.run(SCRIPT, capture_output=True).returncode == code
    assert (slurm / 'scontrol.txt').exists() == (code == 75)
    monkeypatch.delenv('SLURM_JOB_ID')  # from a shell, without a job
    (slurm / 'scontrol.txt').unlink(missing_ok=True)
    assert subprocess.run(SCRIPT, capture_output=True).returncode == code
    assert not (slurm / 'scontrol.txt').exists()


@pytest.mark.parametrize('count', [None, '0', '2'])
def test_slurm_resumes_after_a_restart(slurm, monkeypatch, count):
    monkeypatch.setenv('SRUN_CODE', '0')
    if count:
        monkeypatch.setenv('SLURM_RESTART_COUNT', count)
    assert subprocess.run(SCRIPT, capture_output=True).returncode == 0
    asked = (slurm / 'asked').read_text().splitlines()
    end = ['--work-dir', 'w', '--resume', 'if-any'] if count == '2' else ['--work-dir', 'w']
    assert asked[-len(end) :] == end


@pytest.mark.slow
def test_resume_if_any(tmp_path, data, capfd):
    """From the start, from the checkpoint named before it, or from the last one."""
    short = 'train_cfg = dict(max_iters=2, val_interval=5)\n'
    leaf = write_leaf(tmp_path, data, AUGMENTED + short)
    one = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'one', '--resume', 'if-any')
    assert one.code == 0 and 'resuming from' not in one.out, one.err
    first = tmp_path / 'one/iter_1.pth'
    two = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'two', '--resume', first,
                   '--resume', 'if-any')  # fmt: skip
    assert two.code == 0 and f'resuming from {first}' in two.out, two.err
    again = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'two', '--resume', first,
                     '--resume', 'if-any')  # fmt: skip
    assert again.code == 0 and f'resuming from {tmp_path}/two/iter_2.pth' in again.out, again.err


def test_a_run_in_a_thread_leaves_the_signals_to_the_main_thread():
    """As where a program of one's own trains in a thread; Python refuses handlers there."""
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    try:
        preemption.listen()
        mine = [signal.getsignal(number) for number in preemption.SIGNALS]
        with ThreadPoolExecutor(1) as pool:
            pool.submit(preemption.stop_listening).result()
        assert [signal.getsignal(number) for number in preemption.SIGNALS] == mine
        preemption.stop_listening()
        for number in preemption.SIGNALS:
            assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        for number, handler in zip(preemption.SIGNALS, before, strict=True):
            signal.signal(number, handler)
