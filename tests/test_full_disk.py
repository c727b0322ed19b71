"""A disk that fills, wherever: one line, exit code 2, nothing half-written; long names work."""

import json
import logging
import os
import sys
import threading

import cv2
import mmcv
import numpy as np
import pytest
from mmengine import Config
from mmengine.registry import VISUALIZERS
from tool_helpers import run_tool, tiny_folder, write_leaf

from vpt_dense import safe_files
from vpt_dense.comparison import report
from vpt_dense.engine import disk
from vpt_dense.errors import UserError, main

TENSORBOARD = "\nvisualizer = dict(vis_backends=[dict(type='TensorboardVisBackend')])\n"


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('data'))


def fill(folder, kilobytes):
    """Leave so much of a disk."""
    space = os.statvfs(folder)
    size = space.f_bavail * space.f_frsize - kilobytes * 1024
    with open(folder / 'filler', 'wb') as stream:
        stream.write(b'x' * max(size, 0))


def assert_nothing_is_half(folder):
    for path in folder.rglob('*'):
        assert '.unfinished' not in path.name
        if path.suffix == '.py':
            compile(path.read_text(), path, 'exec')
            assert path.stat().st_size
        elif path.parent.name == 'vis_data' and path.suffix == '.json':
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == '.json':
            json.loads(path.read_text())
        elif path.suffix == '.png':
            assert cv2.imread(str(path)) is not None


@pytest.mark.parametrize('extra', ['', TENSORBOARD], ids=['local', 'tensorboard'])
@pytest.mark.parametrize('kilobytes', [0, 8, 24, 44, 64, 84, 120])
def test_training(capfd, small_disk, tmp_path, data, kilobytes, extra):
    leaf = write_leaf(tmp_path, data, extra)
    fill(small_disk, kilobytes)
    outcome = run_tool(capfd, 'train', leaf, '--work-dir', small_disk / 'run')
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2 and line.startswith('error: '), outcome
    assert 'full' in line or 'No space left' in line, line
    assert_nothing_is_half(small_disk / 'run')


def seg_checkpoint(capfd, tmp_path, data):
    leaf = write_leaf(tmp_path, data)
    assert run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'work').code == 0
    return leaf, tmp_path / 'work/iter_2.pth'


@pytest.mark.slow
@pytest.mark.parametrize('kilobytes', [60, 80, 100])
def test_pictures(capfd, small_disk, tmp_path, kilobytes):
    data = tiny_folder(tmp_path / 'data')
    for kind in ('images', 'annotations'):  # of a size worth a disk
        for path in (data / kind / 'validation').glob('*'):
            picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(path), cv2.resize(picture, (160, 160), interpolation=0))
    leaf, checkpoint = seg_checkpoint(capfd, tmp_path, data)
    fill(small_disk, kilobytes)
    outcome = run_tool(capfd, 'test', leaf, checkpoint, '--show-dir', small_disk / 'shown',
                       '--work-dir', tmp_path / 'work')
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2 and 'cannot write' in line and 'full' in line, outcome
    assert_nothing_is_half(small_disk / 'shown')


def test_names_of_255_bytes(capfd, tmp_path):
    """Those of images, of configs, of what is written: as long as the file system allows."""
    data = tiny_folder(tmp_path / 'data')
    for kind in ('images', 'annotations'):
        for path in sorted((data / kind / 'validation').glob('*'), reverse=True):
            path.rename(path.with_name('ü' * 100 + 'y' * 48 + path.name))  # 255 bytes
    leaf = write_leaf(tmp_path, data, name='l' * 252)
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 0, outcome.err
    outcome = run_tool(
        capfd, 'test', leaf, tmp_path / 'work/iter_2.pth', '--show-dir', tmp_path / 'shown')
    assert outcome.code == 0, outcome.err
    pictures = list((tmp_path / 'shown').rglob('*.png'))
    assert len({path.name for path in pictures}) == 2
    assert all(cv2.imread(str(path)) is not None for path in pictures)
    outcome = run_tool(capfd, 'browse_dataset', leaf, '--split', 'val', '--out-dir',
                       tmp_path / 'browsed')
    assert outcome.code == 0 and len(list((tmp_path / 'browsed').iterdir())) == 2, outcome.err


@pytest.mark.parametrize('name', ['a' * 255, 'ü' * 127, 'a' * 251 + '.pth'])
def test_a_long_name_is_written(tmp_path, name):
    safe_files.write_text(tmp_path / name, 'x')
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(ZeroDivisionError), safe_files.atomic(tmp_path / name) as unfinished:
        assert unfinished.name.endswith('.unfinished')
        safe_files.sweep(tmp_path)  # leaves those of a process that runs
        raise ZeroDivisionError
    assert (tmp_path / name).read_text() == 'x'


def test_pictures_of_mmcv_and_of_a_visualizer(small_disk):
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    fill(small_disk, 40)
    with pytest.raises(UserError, match='cannot write .*a.png: the disk is full'):
        mmcv.imwrite(picture, str(small_disk / 'a.png'))
    visualizer = VISUALIZERS.build(disk.use_in(dict(
        type='Visualizer', name='full', save_dir=str(small_disk),
        vis_backends=[dict(type='LocalVisBackend')])))  # fmt: skip
    with pytest.raises(UserError, match='cannot write .*b_0.png: the disk is full'):
        visualizer.add_image('b', picture)
    with pytest.raises(UserError, match='cannot write .*config.py: the disk is full'):
        visualizer.add_config(Config({'a': 'x' * 60_000}))
    visualizer.add_scalar('loss', 1.0)
    with pytest.raises(UserError, match='cannot write .*scalars.json: the disk is full'):
        for step in range(10_000):
            visualizer.add_scalars({f'loss{i}': 0.1 for i in range(50)}, step)
    assert step
    assert_nothing_is_half(small_disk)
    assert not list(small_disk.rglob('config.py'))


def test_tables_and_plots(small_disk):
    rows = [dict(method='m', backbone_trainable=3, mean=1.0, std=0.1, marked=False)]
    fill(small_disk, 8)
    with pytest.raises(UserError, match='cannot write .*plot.svg: the disk is full'):
        report.draw(rows, 'mIoU', small_disk / 'plot.svg')
    assert [path.name for path in small_disk.iterdir()] == ['filler']


def test_a_log_that_cannot_be_written_ends_the_run(small_disk, capsys):
    logger = logging.Logger('full')
    handler = logging.FileHandler(small_disk / 'x.log')
    logger.addHandler(handler)
    disk.watch(logger)
    fill(small_disk, 8)
    with pytest.raises(UserError, match='cannot write .*x.log: the disk is full'):
        for _ in range(100):
            logger.info('x' * 1000)
    logger.info('%d', 'a mistake of the call is logging\'s own matter')
    assert 'Traceback' in capsys.readouterr().err
    (small_disk / 'filler').unlink()
    handler.close()


def test_output_that_cannot_be_written(capfd, monkeypatch):
    """``tool > file`` on a full disk."""
    with open('/dev/full', 'w') as full:
        monkeypatch.setattr(sys, 'stdout', full)
        with pytest.raises(SystemExit) as leave:
            main(lambda: print('x'))
    assert leave.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith('error: a file cannot be written: the disk is full')


def test_a_thread_that_meets_a_full_disk_is_quiet(capfd):
    """The thread of TensorBoard's writer; its error comes again in the main thread."""
    def write(error):
        raise error

    def tool():
        for error in (OSError(28, 'No space left on device'), OSError(5, 'Input/output error')):
            thread = threading.Thread(target=write, args=(error,))
            thread.start()
            thread.join()

    hook = threading.excepthook
    with pytest.raises(SystemExit):
        main(tool)
    threading.excepthook = hook
    err = capfd.readouterr().err
    assert 'Input/output error' in err and 'No space' not in err
