"""What tools and runs write: nothing that is there already is overwritten or deleted unasked."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mmengine import Config
from test_checkpoints import train
from test_deltas import classifier, save_base
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, ROOT

from vpt_dense import building, outputs, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.weights import stored_config


def save(cfg: Config, path: Path) -> None:
    """Write a checkpoint of a config, as a run does before its first iteration."""
    model = building.build_model(cfg)
    model.init_weights()
    safe_files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """c.pth, a checkpoint with a prompt, its delta d.safetensors, config.py; the current folder."""
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / 'base.pth')
    save(classifier(tmp_path), tmp_path / 'c.pth')
    deltas.write(deltas.extract('c.pth'), 'd.safetensors')
    shutil.copy(CONFIGS / '_base_/methods/deep.py', 'config.py')
    return tmp_path


#: Arguments -> what stands there before, and must stand there after.
WRITING = {
    ('delta', 'extract', 'c.pth', 'mine.safetensors'): 'mine.safetensors',
    ('delta', 'extract', 'd.safetensors', 'd.safetensors'): 'd.safetensors',
    ('delta', 'merge', 'd.safetensors', 'mine.pth'): 'mine.pth',
    ('delta', 'merge', 'c.pth', 'c.pth', '--force'): 'c.pth',
    ('delta', 'fold', 'c.pth', 'c.pth'): 'c.pth',
    ('delta', 'fold', 'c.pth', './c.pth', '--force'): 'c.pth',
    ('delta', 'fold', 'c.pth', 'mine.pth'): 'mine.py',
    ('delta', 'fold', 'c.pth', 'config.pth', '--config', 'config.py', '--force'): 'config.py',
    ('delta', 'pull', 'me/vit', 'mine.safetensors'): 'mine.safetensors',
    ('ensemble', 'mine.safetensors', 'd.safetensors'): 'mine.py',
    ('ensemble', 'd.safetensors', 'd.safetensors', '--force'): 'd.safetensors',
    ('print_config', 'config.py', '--save-path', 'mine.py'): 'mine.py',
    ('print_config', 'config.py', '--save-path', 'config.py', '--force'): 'config.py',
    ('browse_dataset', 'config.py', '--out-dir', '.'): 'c.pth',
    ('test', 'config.py', 'c.pth', '--show-dir', '.'): 'c.pth',
    ('test', 'config.py', 'c.pth', '--out', '.'): 'c.pth',
    ('test', 'config.py', 'c.pth', '--out', 'mine.json'): 'mine.json',
    ('make_dataset', 'digits', '.'): 'c.pth',
    ('make_dataset', 'digits', '.', '--force'): 'c.pth',  # it is no data set
    ('pretrain_demo', '--out', 'mine.safetensors'): 'mine.safetensors',
    ('benchmark/plot', 'mine.json', '--out', 'mine.svg'): 'mine.svg',
    ('benchmark/metric', '--json', 'mine.json'): 'mine.json',
}


@pytest.mark.parametrize('arguments', WRITING, ids=' '.join)
def test_tools_refuse_to_write_over_what_is_there(capfd, folder, arguments, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/benchmark')
    there = folder / WRITING[arguments]
    if not there.exists():
        there.write_text('mine')
    before = {path: path.read_bytes() for path in folder.iterdir()}
    done = run_tool(capfd, *arguments)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done
    if '--force' in arguments:
        assert re.search('is what is read; name another|not empty and is not a', done.err)
    else:
        assert re.search('there already|is what is read|is not empty', done.err)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_force_overwrites(capfd, folder):
    for arguments in (('delta', 'extract', 'c.pth', 'd.safetensors'),
                      ('delta', 'fold', 'd.safetensors', 'f.pth')):
        for _ in range(2):
            done = run_tool(capfd, *arguments, '--force')
            assert (done.code, done.err) == (0, ''), done


def test_a_folded_config_knows_nothing_of_the_training(capfd, tmp_path, monkeypatch):
    """Testing it went into the training's folder and replaced what lay there."""
    save_base(tmp_path / 'base.pth')
    cfg = classifier(tmp_path)
    cfg.update(work_dir=str(tmp_path / 'training'), load_from='other.pth', resume=True,
               experiment_name='training_2026')
    cfg.test_dataloader.dataset.update(
        data_root=str(tmp_path / 'data'), data_prefix=dict(img_path='images/validation'))
    cfg.visualizer = dict(type='Visualizer', save_dir=str(tmp_path / 'elsewhere'))
    save(cfg, tmp_path / 'c.pth')
    (tmp_path / 'cwd').mkdir()
    monkeypatch.chdir(tmp_path / 'cwd')
    done = run_tool(capfd, 'delta', 'fold', '../c.pth', 'f.pth', '--base', '../base.pth')
    assert (done.code, done.err) == (0, ''), done
    inside = stored_config.parse(safe_files.read('f.pth')['meta']['cfg'], 'f')
    for found in (Config.fromfile('f.py'), inside):
        assert not {'work_dir', 'load_from', 'resume', 'experiment_name'} & found.keys()
        assert str(tmp_path) not in found.pretty_text
        # From here the data are still found.
        assert found.test_dataloader.dataset.data_root == '../data'
        assert found.test_dataloader.dataset.data_prefix.img_path == 'images/validation'


# --- work folders ----------------------------------------------------------------------------

HOLD = """
import os, sys, time
from vpt_dense import outputs
lock = outputs.FolderLock(sys.argv[1])
if sys.argv[2:] and os.fork() == 0:  # as a loader worker, which lives on for seconds
    os.close(1)
    time.sleep(30)
    os._exit(0)
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Have another process lock a folder; call what is returned to kill it."""
    holders = []

    def start(folder: Path, *options: str) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        holder = subprocess.Popen(
            [sys.executable, '-c', HOLD, folder, *options], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(holder.pid, signal.SIGKILL)
        holder.communicate()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, hold):
    for options in ([], ['with a worker']):
        holder = hold(tmp_path, *options)
        assert holder.stdout.readline() == 'held\n'
        told = (f'work_dir {tmp_path} is in use by process {holder.pid} on {socket.gethostname()}, '
                'since .*; wait for it to end, or take another --work-dir')
        for _ in range(2):  # having looked does not free it
            with pytest.raises(UserError, match=told):
                outputs.FolderLock(tmp_path)
        holder.kill()
        holder.wait()
        lock = outputs.FolderLock(tmp_path)
        assert f'process {os.getpid()} on' in (tmp_path / outputs.LOCK).read_text()
        del lock


def test_a_process_holds_a_folder_until_all_in_it_let_go(tmp_path, hold):
    first, second = outputs.FolderLock(tmp_path), outputs.FolderLock(tmp_path / '.')
    del first
    _, err = hold(tmp_path).communicate()
    assert f'is in use by process {os.getpid()} on' in err
    del second
    assert hold(tmp_path).stdout.readline() == 'held\n'


def test_a_folder_in_use_is_waited_for(tmp_path, hold):
    holder, said, stop = hold(tmp_path), [], threading.Event()
    assert holder.stdout.readline() == 'held\n'
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(UserError, match='interrupted'):
        with outputs.waiting_lock(tmp_path, said.append, stop):
            pass
    threading.Timer(0.5, holder.kill).start()
    with outputs.waiting_lock(tmp_path, said.append):
        assert f'process {os.getpid()} on' in (tmp_path / outputs.LOCK).read_text()
    assert len(said) == 2 and f'is in use by process {holder.pid} on' in said[0]
    assert not (tmp_path / outputs.LOCK).exists()


def test_where_there_are_no_locks_that_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(outputs.fcntl, 'lockf', refuse)
    assert outputs.FolderLock(tmp_path)
    assert 'run.lock cannot be locked (No locks available)' in capsys.readouterr().err


@pytest.mark.slow
def test_nobody_enters_a_folder_in_which_a_run_is_live(capfd, tmp_path, hold):
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    work = tmp_path / 'work'
    assert run_tool(capfd, 'train', leaf).code == 0
    holder = hold(work)  # what has ended has let go
    assert holder.stdout.readline() == 'held\n'
    (work / 'leaf.py').write_text("the live run's")
    before = sorted(work.rglob('*'))
    for tool, more in (('train', []), ('train', ['--resume']), ('test', [work / 'iter_2.pth'])):
        done = run_tool(capfd, tool, leaf, *more)
        assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
        assert f'work_dir {work} is in use by process {holder.pid} on ' in done.err
    assert sorted(work.rglob('*')) == before
    assert (work / 'leaf.py').read_text() == "the live run's"
    other = ['--work-dir', tmp_path / 'other']
    assert run_tool(capfd, 'test', leaf, work / 'iter_2.pth', *other).code == 0


REPORT = dict(custom_hooks=[dict(type='vpt_dense.ReportHook')])


@pytest.mark.slow
def test_a_finished_run_is_kept_when_another_trains_in_its_folder(tmp_path):
    train(tmp_path, 3, hook=dict(save_best='a', rule='greater'), **REPORT)
    own = {
        'params.json', 'evaluations.json', 'summary.json', 'report.html', 'last_checkpoint',
        'best_a_iter_2.pth',
        *(f'iter_{i}.pth' for i in (1, 2, 3)),
    }  # fmt: skip
    kept = {name: (tmp_path / name).read_bytes() for name in own}
    # One may start from what lies there, too.
    second = train(tmp_path, 2, load_from=str(tmp_path / 'iter_3.pth'), **REPORT)
    aside = tmp_path / f'before_{second.timestamp}'
    assert {file.name: file.read_bytes() for file in aside.iterdir()} == kept
    assert not {'iter_3.pth', 'best_a_iter_2.pth'} & {file.name for file in tmp_path.iterdir()}
    log = next(Path(second.log_dir).glob('*.log')).read_text()
    assert f'of an earlier run, now in {aside}: params.json, evaluations.json' in log
    # What goes on stays where it is, and what other runs have left as well.
    train(tmp_path, 3, resume=True, **REPORT)
    assert {file.name for file in tmp_path.glob('before_*')} == {aside.name}
    records = json.loads((tmp_path / 'evaluations.json').read_text())
    assert [record['iter'] for record in records] == [1, 2, 3]


@pytest.mark.slow
def test_results_of_several_tests_are_kept(capfd, tmp_path):
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    work = tmp_path / 'work'
    assert run_tool(capfd, 'train', leaf).code == 0
    params = (work / 'params.json').read_bytes()
    found = []
    for i in (1, 2):
        more = ['--cfg-options', 'model.backbone.prompt.dropout=0.3']
        done = run_tool(capfd, 'test', leaf, work / f'iter_{i}.pth', *more)
        assert (done.code, done.err) == (0, '')
        found.append((work / 'test.json').read_bytes())
    aside, = work.glob('before_*')
    assert sorted(file.name for file in aside.iterdir()) == ['pictures_test.json', 'test.json']
    assert (aside / 'test.json').read_bytes() == found[0] != found[1]
    assert (work / 'params.json').read_bytes() == params


@pytest.mark.slow
def test_the_config_in_a_work_folder_is_its_trainings(capfd, tmp_path):
    """A test in that folder, with augmentation, say, replaced it; and the config that was read."""
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    work, source = tmp_path / 'work', leaf.read_bytes()
    assert run_tool(capfd, 'train', leaf).code == 0
    written = (work / 'leaf.py').read_bytes()
    done = run_tool(capfd, 'test', leaf, work / 'iter_2.pth', '--cfg-options', 'tta=True')
    assert done.code == 0, done.err
    assert (work / 'leaf.py').read_bytes() == written
    tested, = (path for path in work.glob('*/leaf.py'))
    assert 'SegTTAModel' in tested.read_text()
    # Another training's is kept aside; that of a training which goes on is not.
    tested.unlink()
    more = ['--cfg-options', 'randomness.seed=1']
    for options in ([], ['--resume']):
        assert run_tool(capfd, 'train', leaf, *options, *more).code == 0
        aside, = work.glob('*/leaf.py')
        assert aside.parent.name.startswith('before_') and aside.read_bytes() == written
    # A config that lies in the work folder is not replaced by what it comes to.
    assert run_tool(capfd, 'test', leaf, work / 'iter_2.pth', '--work-dir', tmp_path).code == 0
    assert leaf.read_bytes() == source
    assert run_tool(capfd, 'train', leaf, '--work-dir', tmp_path).code == 0
    assert leaf.read_bytes() == source


@pytest.mark.slow
def test_evaluations_of_another_run_are_not_taken(tmp_path):
    """They lay beside the checkpoint, of the same iterations."""
    for name in ('one', 'two'):
        train(tmp_path / name, 2, hook=dict(save_best='a', rule='greater'), **REPORT)
    meta = {name: safe_files.read(tmp_path / name / 'iter_2.pth')['meta']
            for name in ('one', 'two')}
    records = {name: json.loads((tmp_path / name / 'evaluations.json').read_text())
               for name in ('one', 'two')}
    for name in meta:
        assert {record['run_id'] for record in records[name]} == {meta[name]['run_id']}
        summary = json.loads((tmp_path / name / 'summary.json').read_text())
        assert summary['run_id'] == meta[name]['run_id'] and summary['earlier_run_ids'] == []
    assert meta['one']['run_id'] != meta['two']['run_id']
    shutil.copy(tmp_path / 'one/evaluations.json', tmp_path / 'two')
    train(tmp_path / 'two', 3, resume=True, **REPORT)
    found = json.loads((tmp_path / 'two/evaluations.json').read_text())
    # Nothing of the other run; the validation of iteration 2 has been made up for, as it lacked.
    after = safe_files.read(tmp_path / 'two/iter_3.pth')['meta']
    assert [(r['iter'], r['run_id']) for r in found] == [
        (2, meta['two']['run_id']), (3, after['run_id'])]
    assert after['earlier_run_ids'] == [meta['two']['run_id']]
    train(tmp_path / 'two', 4, resume=True, **REPORT)
    found = json.loads((tmp_path / 'two/evaluations.json').read_text())
    assert [record['iter'] for record in found] == [2, 3, 4]
