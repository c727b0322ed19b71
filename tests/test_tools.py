"""tools/train.py, test.py, print_config.py and the launch scripts, on tiny models."""

import json
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, ROOT

IMAGE_FOLDER = """
_base_ = '{base}'
work_dir = '{work_dir}'
dataset = dict(data_root='{data_root}')
_arch = dict(
    _delete_=True, embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=32), dict(type='PackInputs')]
model = dict(
    backbone=dict(arch=_arch, img_size=32, patch_size=8, init_cfg=None, prompt=dict(num_tokens=2)),
    head=dict(in_channels=32))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_pipeline))
val_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_pipeline))
test_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=_pipeline))
train_cfg = dict(max_epochs=2)
"""


@pytest.fixture(scope='module')
def leaf(tmp_path_factory):
    """A tiny segmentation config with data."""
    folder = tmp_path_factory.mktemp('segmentation')
    return write_leaf(folder, tiny_folder(folder / 'data'))


@pytest.fixture(scope='module')
def image_leaf(tmp_path_factory):
    """A tiny classification config with data: three classes."""
    folder = tmp_path_factory.mktemp('classification')
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('iris', 'rose', 'tulip'):
            (folder / 'data' / split / name).mkdir(parents=True)
            for i in range(2):
                image = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
                cv2.imwrite(str(folder / 'data' / split / name / f'{i}.jpg'), image)
    path = folder / 'images.py'
    base = CONFIGS / 'vpt/vit-b_deep_imagefolder.py'
    path.write_text(
        IMAGE_FOLDER.format(base=base, work_dir=folder / 'work', data_root=folder / 'data')
    )
    return path


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def test_train_resume_test(capfd, leaf, tmp_path):
    work = tmp_path / 'work'
    done = run_tool(capfd, 'train', leaf, '--work-dir', work)
    assert (done.code, done.err) == (0, '')
    before, _, _ = done.out.partition('Iter(train)')
    assert len(before.splitlines()) <= 40
    assert 'loading' in before
    for needed in ('eta: ', 'loss: ', 'Iter(val) [2/2]', 'mIoU: '):
        assert needed in done.out
    log = next(work.glob('*/*.log')).read_text()
    assert 'System environment' in log and 'num_tokens=2' in log  # environment and whole config

    trained = weights(work / 'iter_2.pth')
    go_on = ['--resume', '--cfg-options', 'train_cfg.max_iters=3']
    done = run_tool(capfd, 'train', leaf, '--work-dir', work, *go_on)
    assert done.code == 0 and done.err == ''
    assert 'iter_2.pth' in done.out
    assert '(train) [3/3]' in done.out and '(train) [2/3]' not in done.out
    resumed = weights(work / 'iter_3.pth')
    assert any(not torch.equal(trained[name], resumed[name]) for name in trained)
    frozen = 'backbone.layers.0.attn.qkv.weight'
    assert torch.equal(trained[frozen], resumed[frozen])

    done = run_tool(capfd, 'train', leaf, '--work-dir', work, '--resume', work / 'iter_1.pth')
    assert done.code == 0 and '(train) [2/2]' in done.out
    assert '(train) [1/2]' not in done.out

    shown = tmp_path / 'shown'
    done = run_tool(capfd, 'test', leaf, work, '--work-dir', tmp_path / 'test', '--show-dir', shown)
    assert done.code == 0 and done.err == ''
    assert 'Iter(test) [2/2]' in done.out and 'mIoU: ' in done.out
    drawn = sorted(shown.rglob('*.png'))
    assert len(drawn) == 2
    # Truth and prediction side by side, seven times as large, with titles and a legend.
    height, width, _ = cv2.imread(str(drawn[0])).shape
    assert width == 2 * 224 + 4 and height > 224 + 2 * 13

    # The config that the run has written, whole and without variables, is one like any other.
    written = work / 'leaf.py'
    assert 'test_pipeline = ' in written.read_text() and 'method = ' not in written.read_text()
    again = run_tool(capfd, 'test', written, work, '--work-dir', tmp_path / 'again')
    assert (again.code, again.err) == (0, '')
    assert metrics(tmp_path / 'again')['mIoU'] == metrics(tmp_path / 'test')['mIoU']


def metrics(folder):
    lines = [json.loads(line) for file in folder.glob('*/*.json') for line in file.open()]
    return next(line for line in lines if 'mIoU' in line)


@pytest.mark.slow
def test_augmentation_by_option_and_by_config(capfd, tmp_path):
    three = "dataset.update(type='BaseSegDataset', classes=['a', 'b', 'c'])"
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'data', num_classes=2), three)
    work = tmp_path / 'work'
    assert run_tool(capfd, 'train', leaf, '--work-dir', work).code == 0
    with_tta = tmp_path / 'ms.py'
    with_tta.write_text(f"_base_ = '{leaf}'\ntta = True\n")
    found = []
    for name, config, options in (('no', leaf, []), ('yes', leaf, ['--tta']), ('ms', with_tta, [])):
        folder = tmp_path / name
        done = run_tool(capfd, 'test', config, work, '--work-dir', folder, *options)
        assert (done.code, done.err) == (0, '')
        found.append(metrics(folder)['aAcc'])
    assert found[1] == found[2] != found[0] > 0


def test_same_seed_same_weights(capfd, leaf, tmp_path):
    found = []
    for name, seed in (('a', 5), ('b', 5), ('c', 6)):
        done = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / name, '--seed', seed)
        assert done.code == 0
        found.append(weights(tmp_path / name / 'iter_2.pth'))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_mixed_precision(capfd, leaf, tmp_path):
    done = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path, '--amp')
    assert (done.code, done.err) == (0, '')
    plain = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'plain')
    assert plain.code == 0
    one, other = weights(tmp_path / 'iter_2.pth'), weights(tmp_path / 'plain/iter_2.pth')
    name = 'decode_head.conv_seg.weight'
    assert one[name].dtype == torch.float32
    assert not torch.equal(one[name], other[name])
    torch.testing.assert_close(one[name], other[name], atol=0.01, rtol=0)


def test_classification(capfd, image_leaf, tmp_path):
    work, shown = tmp_path / 'work', tmp_path / 'shown'
    done = run_tool(capfd, 'train', image_leaf, '--work-dir', work)
    assert (done.code, done.err) == (0, '')
    assert len(done.out.partition('Epoch(train)')[0].splitlines()) <= 40
    assert weights(work / 'epoch_2.pth')['head.fc.weight'].shape == (3, 32)
    arguments = [work, '--work-dir', tmp_path / 'test', '--show-dir', shown]
    done = run_tool(capfd, 'test', image_leaf, *arguments)
    assert (done.code, done.err) == (0, '')
    assert 'accuracy/top1' in done.out
    assert len(list(shown.rglob('*.png'))) == 6


def test_print_config(capfd, leaf, tmp_path):
    done = run_tool(capfd, 'print_config', leaf, 'model.backbone.prompt',
                    '--cfg-options', 'model.backbone.prompt.num_tokens=7')  # fmt: skip
    assert done.code == 0
    assert 'num_tokens=7' in done.out and 'decode_head' not in done.out
    whole = run_tool(capfd, 'print_config', leaf, '--save-path', tmp_path / 'whole.py')
    assert 'decode_head' in whole.out and (tmp_path / 'whole.py').is_file()
    wrong = run_tool(capfd, 'print_config', leaf, 'model.backbon')
    assert wrong.code == 2 and "did you mean 'backbone'" in wrong.err


def shell(*command):
    # Without GPUs, as the tests want it, on machines that have some as well.
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHON': sys.executable, 'OMP_NUM_THREADS': '1',
           'CUDA_VISIBLE_DEVICES': ''}
    return subprocess.run(
        ['bash', *map(str, command)], capture_output=True, text=True, env=env, timeout=600
    )


@pytest.mark.slow
def test_a_distributed_run_skips_finalization(tmp_path):
    """Threads of its process group may abort there; exit handlers and what was printed stay."""
    script = tmp_path / 'ends.py'
    script.write_text(
        'import sys\n'
        'from vpt_dense import errors\n'
        'class AtTheVeryEnd:\n'
        '    def __del__(self):\n'
        '        print("finalized")\n'
        'def main():\n'
        '    import atexit, torch\n'
        '    global kept\n'
        '    kept = AtTheVeryEnd()\n'
        '    atexit.register(print, "exit handler")\n'
        '    if len(sys.argv) > 1:\n'
        '        torch.distributed.init_process_group("gloo")\n'
        '    print("ran")\n'
        'errors.main(main)\n')
    ends = {}
    for count in (1, 2):
        done = subprocess.run(
            [sys.executable, '-m', 'vpt_dense.launch', str(count), script],
            capture_output=True, text=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})
        assert (done.returncode, done.stderr) == (0, '')
        # Counted: lines of two processes may mix.
        ends[count] = [done.stdout.count(text) for text in ('ran', 'exit handler', 'finalized')]
    assert ends == {1: [1, 1, 1], 2: [2, 2, 0]}


@pytest.mark.slow
def test_an_error_in_two_processes_is_one_line(leaf, tmp_path):
    done = shell(ROOT / 'tools/dist_test.sh', leaf, tmp_path / 'none.pth', 2)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and 'no such file' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ('signal', 'told'), [('SIGKILL', 'memory runs out; lower'), ('SIGABRT', '(SIGABRT)')])
def test_a_killed_process_is_one_line(tmp_path, signal, told):
    script = tmp_path / 'dies.py'
    script.write_text(f'import os, signal\nos.kill(os.getpid(), signal.{signal})\n')
    done = subprocess.run(
        [sys.executable, '-m', 'vpt_dense.launch', '2', script],
        capture_output=True, text=True, env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f'error: a process was killed ({signal})') and told in line


@pytest.mark.parametrize('script', ['dist_train', 'dist_test', 'slurm_train', 'slurm_test'])
def test_scripts_say_how_to_use_them(script):
    done = shell(ROOT / f'tools/{script}.sh')
    assert done.returncode == 2 and done.stderr.startswith('usage: ')


@pytest.mark.parametrize('kind, more', [('train', []), ('test', ['some.pth'])])
def test_slurm_scripts_hand_everything_over(tmp_path, monkeypatch, kind, more):
    """With a stand-in for srun that prints what it is asked to run."""
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    monkeypatch.setenv('GPUS', '4')
    done = shell(ROOT / f'tools/slurm_{kind}.sh', 'part', 'job', 'c.py', *more, '--work-dir', 'a b')
    words = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    wanted = {'--gres=gpu:4', '--nodes=1', '--cpus-per-task=20', '--job-name=job', 'a b'}
    assert wanted <= set(words)
    assert words[words.index('c.py') + 1 :][: len(more)] == more
