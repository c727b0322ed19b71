"""Groups of processes: how they end, and that they start again; Slurm's nodes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import warm
from resume_runs import AUGMENTED, IMAGES, ITERATIONS, differences, final
from test_preemption import evaluations
from tool_helpers import write_leaf
from utils import ROOT, make_ade_folder

from vpt_dense.report import samples

#: Ends as its arguments say: one for each start, `RANK:CODE`; negative: by that signal.
ENDS = """
import os, sys, time
told = ' '.join(os.environ[n] for n in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'NODE', 'MASTER_ADDR'))
os.write(1, f'{told}\\n'.encode())  # at once: lines of two processes may mix
plan = [a for a in sys.argv[1:] if a[0].isdigit()]
start = int(os.environ['TORCHELASTIC_RESTART_COUNT'])
if start < len(plan):
    rank, code = plan[start].split(':')
    if os.environ['RANK'] != rank:
        time.sleep(600)
    os.kill(os.getpid(), -int(code)) if int(code) < 0 else os._exit(int(code))
"""


def environment(**variables: object) -> dict[str, str]:
    return {**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT), 'NODE': 'one',
            'CUDA_VISIBLE_DEVICES': '', 'OMP_NUM_THREADS': '1',
            **{name: str(value) for name, value in variables.items()}}  # fmt: skip


@pytest.fixture
def ends(tmp_path):
    (tmp_path / 'ends.py').write_text(ENDS)
    return str(tmp_path / 'ends.py')


@pytest.fixture(scope='module')
def launch(tmp_path_factory):
    """Begins with what the agent needs."""
    begin = 'from vpt_dense import agent, launch; agent.GRACE = 1\n'
    with warm(begin, tmp_path_factory.mktemp('warm'), env=environment(MAX_RESTARTS=2)) as run:
        yield run


@pytest.mark.parametrize(('plan', 'code', 'starts'), [
    (['1:2'], 2, 1),  # a user's error
    (['1:75'], 75, 1),  # a preemption
    (['0:-9', '1:1'], 0, 3),
    pytest.param(['1:1', '1:3', '0:-6'], 1, 3, marks=pytest.mark.slow),
])  # fmt: skip
def test_what_is_started_again(ends, launch, plan, code, starts):
    done = launch('from vpt_dense import launch; launch.main()', 2, ends, *plan)
    assert done.returncode == code, done.stderr
    assert len(done.stdout.splitlines()) == 2 * starts
    lines = done.stderr.splitlines()
    assert [line.partition(' (')[2][-13:] for line in lines[: starts - 1]] == [
        f'({n} of 2 times)' [-13:] for n in range(1, starts)], lines  # fmt: skip
    assert lines[starts - 1 :] == (
        ['error: a process was killed (SIGABRT)'] if plan[-1] == '0:-6' else [])


def test_ctrl_c_reaches_the_processes(tmp_path):
    """They are of other sessions than the terminal's."""
    script = tmp_path / 'waits.py'
    script.write_text(
        'import os, sys, time\nos.write(1, b"here\\n")\n'
        'try: time.sleep(600)\nexcept KeyboardInterrupt: os.write(1, b"told\\n"); sys.exit(130)\n')
    process = subprocess.Popen([sys.executable, '-m', 'vpt_dense.launch', '2', script],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               # Also where the tests run in a shell's background.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                               env=environment(MAX_RESTARTS=2))  # fmt: skip
    assert [process.stdout.readline() for _ in range(2)] == ['here\n'] * 2
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, 'told\n' * 2, '')


@pytest.mark.slow
@pytest.mark.parametrize(('variables', 'said'), [
    (dict(MAX_RESTARTS='some'), 'MAX_RESTARTS=some: it must be a number'),
    (dict(NNODES='2', MAX_RESTARTS='1'), 'MAX_RESTARTS on several machines needs RUN_ID too'),
])  # fmt: skip
def test_settings_that_are_none(variables, said):
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), 'x.py', '2'], capture_output=True, text=True,
        env=environment(**variables))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and said in line


# --- a training that is killed ---------------------------------------------------------------

#: Kills a process in its n-th start where the n-th word of KILLS says: PLACE:ITERATION:RANK.
KILLS = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def here(place, iteration):
    start = int(os.environ.get('TORCHELASTIC_RESTART_COUNT', 0))
    plan = os.environ.get('KILLS', '').split()
    if plan[start : start + 1] == [f'{place}:{iteration}:{os.environ["RANK"]}']:
        os.kill(os.getpid(), 9)


@HOOKS.register_module('kill_hook.KillHook')
class KillHook(Hook):
    priority = 'LOWEST'  # what is due has been saved

    def before_run(self, runner):
        here('begin', 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        here('before', runner.iter + 1)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        here('after', runner.iter + 1)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        here('validation', runner.iter)
"""
HOOKS = """
default_hooks['checkpoint']['interval'] = 2
custom_hooks = [dict(type='vpt_dense.ReportHook'), dict(type='vpt_dense.PreemptionHook'),
                dict(type='kill_hook.KillHook')]
custom_imports = dict(imports=['kill_hook'])
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Trains with two processes in a folder of some name, as a user does."""
    place = tmp_path_factory.mktemp('killed')
    (place / 'kill_hook.py').write_text(KILLS)
    data = make_ade_folder(place / 'data', num_images=IMAGES, size=(48, 64))
    leaf = write_leaf(place, data, AUGMENTED + HOOKS)

    def start(name: str, *arguments: str, **variables: object) -> tuple[Path, list[str], str]:
        work = place / name
        done = subprocess.run(
            ['bash', str(ROOT / 'tools/dist_train.sh'), leaf, '2', '--work-dir', work, *arguments],
            capture_output=True, text=True,
            env=environment(PYTHONPATH=f'{ROOT}:{place}', **variables))
        assert done.returncode == 0, done.stderr
        return work, done.stderr.splitlines(), done.stdout

    return start


@pytest.fixture(scope='module')
def whole(run):
    work, lines, out = run('whole')
    assert lines == [] and '2 processes' in out
    assert len(out.partition('Iter(train)')[0].splitlines()) <= 40
    return work


@pytest.mark.parametrize(('kills', 'resumed'), [
    pytest.param(['begin:0:1', 'after:4:0'], [{4}], marks=pytest.mark.long),
    # A validation that is the best so far saves too, that of iteration 3: process 0 does, which may
    # be at it when process 1 is killed.
    pytest.param(['before:1:1', 'after:2:1', 'before:4:1', 'validation:6:0'], [{2}, {2, 3}, {6}],
                 marks=pytest.mark.long),
    pytest.param(['before:4:1'], [{2, 3}], marks=pytest.mark.slow),
    pytest.param(['begin:0:0', 'before:1:1', 'before:2:0', 'after:2:1', 'before:4:1',
                  'validation:6:0', 'validation:6:1'], [{2}, {2, 3}, {6}, {6}],
                 marks=pytest.mark.long),
])  # fmt: skip
def test_a_killed_process_changes_nothing(run, whole, kills, resumed):
    """Of another run are the checkpoints that lie in its folder when it is killed first."""
    work = whole.with_name(f'killed_{len(kills)}_times')
    shutil.copytree(whole, work)
    (work / 'last_checkpoint').write_text(str(work / f'iter_{ITERATIONS}.pth'))
    work, lines, out = run(work.name, MAX_RESTARTS=len(kills), KILLS=' '.join(kills))
    told = [line for line in lines if line.startswith('warning: a process was killed (SIGKILL)')]
    assert len(told) == len(kills), lines
    found = [line for line in out.splitlines() if line.startswith('resuming from')]
    assert len(found) == len(resumed), found
    for line, numbers in zip(found, resumed, strict=True):
        assert Path(line).name in {f'iter_{n}.pth' for n in numbers}, found
    assert differences(final(whole), final(work)) == []
    assert evaluations(whole) == evaluations(work)


@pytest.mark.slow
def test_the_pictures_of_two_processes_are_gathered(whole):
    """As many, and in the order, in which one process has them."""
    images = json.loads((whole / 'pictures_val.json').read_text())['images']
    assert [each['position'] for each in images] == samples.places(IMAGES)
    names = [each['name'] for each in images]
    assert names == sorted(names) and len(set(names)) == len(names)
    assert (whole / 'report.html').is_file()


# --- Slurm -----------------------------------------------------------------------------------

#: Runs what it is asked to on each node, which are all this machine, and hands signals on.
SRUN = """#!/bin/bash
for word in "$@"; do
    case $word in --nodes=*) nodes=${word#*=} ;; esac
done
while [[ $1 != bash ]]; do shift; done
for ((node = 0; node < nodes; node++)); do
    SLURM_NODEID=$node NODE=$node SLURM_PROCID=$node SLURM_STEP_NODELIST=list "$@" &
done
trap 'kill -TERM $(jobs -p)' TERM
trap 'kill -USR1 $(jobs -p)' USR1
code=0
for job in $(jobs -p); do
    while kill -0 $job 2> /dev/null; do wait $job; ended=$?; done
    ((ended > code)) && code=$ended
done
exit $code
"""
SCONTROL = """#!/bin/bash
echo "$@" >> "$(dirname "$0")/scontrol.txt"
[[ $1 != show ]] || printf '%s\\n' localhost other
"""


@pytest.fixture
def slurm(tmp_path):
    """Environment of a job with stand-ins for srun and scontrol first in the path."""
    for name, text in {'srun': SRUN, 'scontrol': SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return environment(PATH=f'{tmp_path}:{os.environ["PATH"]}', GPUS=4, GPUS_PER_NODE=2,
                       SLURM_JOB_ID=os.getpid())  # fmt: skip


@pytest.mark.long
def test_nodes_meet_at_the_first(slurm, ends, tmp_path):
    tools = tmp_path / 'tools'
    tools.mkdir()
    for name in ('slurm_test.sh', 'slurm_common.sh'):
        (tools / name).symlink_to(ROOT / 'tools' / name)
    (tools / 'test.py').symlink_to(ends)
    script = ['bash', str(tools / 'slurm_test.sh'), 'part', 'job', 'c.py', 'c.pth']
    done = subprocess.run(script, capture_output=True, text=True, env=slurm)
    # The first node may be gone before another one has left the store: torch warns of that.
    said = '' if '[c10d]' in done.stderr else done.stderr
    assert (done.returncode, said) == (0, '')
    rows = [line.split() for line in done.stdout.splitlines()]
    assert sorted(row[0] for row in rows) == ['0', '1', '2', '3']
    assert {row[1] for row in rows} == {'4'} and len({row[4] for row in rows}) == 1
    assert sorted(row[2] + row[3] for row in rows) == ['00', '01', '10', '11']
    # An error of all nodes: its code.
    done = subprocess.run([*script, '0:2'], capture_output=True, text=True, env=slurm)
    assert done.returncode == 2
    slurm['GPUS'] = '3'
    done = subprocess.run(script, capture_output=True, text=True, env=slurm)
    assert done.returncode == 2 and 'GPUS=3 is not a multiple of GPUS_PER_NODE=2' in done.stderr


@pytest.mark.long
def test_a_preempted_job_goes_on(run, whole, slurm, tmp_path):
    """Two nodes of one process: saved on a signal, requeued, killed, and as an undisturbed run."""
    place, work = whole.parent, tmp_path / 'work'
    slurm.update(GPUS='2', GPUS_PER_NODE='1', PYTHONPATH=f'{ROOT}:{place}')
    script = ['bash', str(ROOT / 'tools/slurm_train.sh'), 'part', 'job', str(place / 'leaf.py'),
              '--work-dir', str(work)]  # fmt: skip
    process = subprocess.Popen(script, stderr=subprocess.PIPE, text=True, env=slurm)
    while not (work / 'iter_2.pth').exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR1)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    first, *_, last = err.splitlines()
    assert first.startswith('preempted (SIGUSR1) at ')
    assert last == f'preempted: job {os.getpid()} goes back into the queue'
    assert f'requeue {os.getpid()}' in (tmp_path / 'scontrol.txt').read_text().splitlines()
    # A process of one node: the other starts again too, which torchrun does not count there.
    slurm.update(SLURM_RESTART_COUNT='1', MAX_RESTARTS='1', KILLS='after:6:1')
    again = subprocess.run(script, capture_output=True, text=True, env=slurm)
    assert again.returncode == 0, again.stderr
    found = [line for line in again.stdout.splitlines() if line.startswith('resuming from')]
    assert len(found) == 2 and found[1].endswith('/iter_6.pth')
    assert 'warning: a process was killed (SIGKILL); starting all again' in again.stderr
    assert differences(final(whole), final(work)) == []
