"""What tools and runs write: nothing that is there already is overwritten or deleted unasked."""

import re
import shutil
from pathlib import Path

import pytest
from mmengine import Config
from test_deltas import classifier, save_base
from tool_helpers import run_tool
from utils import CONFIGS, ROOT

from vpt_dense import files
from vpt_dense.weights import deltas, stored_config


def save(cfg: Config, path: Path) -> None:
    """Write a checkpoint of a config, as a run does before its first iteration."""
    model = deltas.build(cfg)
    model.init_weights()
    files.write(dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text)), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """c.pth, a checkpoint with a prompt, its delta d.safetensors, config.py; the current folder."""
    monkeypatch.chdir(tmp_path)
    save_base(tmp_path / 'base.pth')
    save(classifier(tmp_path), tmp_path / 'c.pth')
    deltas.write(deltas.extract('c.pth'), 'd.safetensors')
    shutil.copy(CONFIGS / '_base_/tuning/deep.py', 'config.py')
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
    inside = stored_config.parse(files.read('f.pth')['meta']['cfg'], 'f')
    for found in (Config.fromfile('f.py'), inside):
        assert not {'work_dir', 'load_from', 'resume', 'experiment_name'} & found.keys()
        assert str(tmp_path) not in found.pretty_text
        # From here the data are still found.
        assert found.test_dataloader.dataset.data_root == '../data'
        assert found.test_dataloader.dataset.data_prefix.img_path == 'images/validation'
