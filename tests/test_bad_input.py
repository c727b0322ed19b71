"""Bad input: one clear line on stderr, exit code 1, no traceback."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import ROOT


class Evil:
    """Pickles to a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope='module')
def good_data(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('good'))


@pytest.fixture
def data(tmp_path, good_data):
    """A copy of good data, to be broken."""
    return Path(shutil.copytree(good_data, tmp_path / 'data'))


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory, good_data):
    """A checkpoint of the tiny model."""
    from mmengine.registry import MODELS, init_default_scope

    from vpt_dense import config

    folder = tmp_path_factory.mktemp('checkpoint')
    cfg = config.load(str(write_leaf(folder, good_data)))
    init_default_scope('mmseg')
    path = folder / 'good.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict(), 'meta': {}}, path)
    return path


def assert_one_line(outcome, pattern):
    lines = outcome.err.strip().splitlines()
    assert outcome.code == 1, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith('error: ')
    assert re.search(pattern, lines[0]), lines[0]
    assert 'Traceback (most' not in outcome.out


# --- what a command line or a config can get wrong: (id, options, more config, pattern) -------

HEADS = """
model['decode_head']['num_classes'] = 151
model['auxiliary_head'][0]['num_classes'] = 151
"""
WEIGHTS = """
model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='{}')
"""
CONFIG_CASES = [
    ('data-folder-absent', ['dataset.data_root=/nowhere/ade'], '',
     r'no folder /nowhere/ade.*data_root'),
    ('trainable-without-match', ['model.backbone.trainable=[promt]'], '', r"trainable.*'promt'"),
    ('prompt-type', ['model.backbone.prompt.type=vpt_dense.TokenPromt'], '',
     r"unknown type 'vpt_dense.TokenPromt'.*did you mean 'vpt_dense.TokenPrompt'"),
    ('prompt-type-without-scope', ['model.backbone.prompt.type=TokenPrompt'], '',
     r"unknown type 'TokenPrompt'.*did you mean 'vpt_dense.TokenPrompt'"),
    ('num-tokens-0', ['model.backbone.prompt.num_tokens=0'], '', r'num_tokens.* 0.*leave.*prompt'),
    ('num-tokens-negative', ['model.backbone.prompt.num_tokens=-3'], '', r'num_tokens.*-3'),
    ('num-tokens-string', ['model.backbone.prompt.num_tokens=ten'], '', r"num_tokens.*'ten'"),
    ('out-indices', ['model.backbone.out_indices=[0,9]'], '', r'out_indices.*9'),
    ('img-size', ['model.backbone.img_size=(33,33)'], '',
     r'img_size.*33.*not a multiple of patch_size 8.*use 32 or 40'),
    ('lr-nan', ['optim_wrapper.optimizer.lr=nan'], '', r'optim_wrapper.optimizer.lr is nan'),
    ('lr-negative', ['optim_wrapper.optimizer.lr=-0.1'], '', r'optimizer.lr is -0.1'),
    ('lr-infinite', ['optim_wrapper.optimizer.lr=inf'], '', r'optimizer.lr is inf'),
    ('lr-word', ['optim_wrapper.optimizer.lr=high'], '', r"optimizer.lr is 'high'"),
    ('typo-top-level', [], 'optim_wraper = dict()',
     r"'optim_wraper'; did you mean 'optim_wrapper'\?"),
    ('unread-top-level', [], 'max_iters = 3', r"nothing reads the top-level key 'max_iters'"),
    ('used-up-variable', [], 'crop_size = (64, 64)', r"'crop_size' is a variable of a base config"),
    ('typo-option', ['model.backbone.prompt.num_token=3'], '',
     r"num_token'; did you mean 'num_tokens'"),
    ('typo-in-the-middle', ['model.backbon.with_cp=True'], '',
     r"'backbon'; did you mean 'backbone'"),
    ('typo-first', ['modle.backbone.with_cp=True'], '', r"'modle'; did you mean 'model'"),
    ('option-of-a-variable', ['tuning.prompt.num_tokens=3'], '',
     r"'tuning' is a variable.*model.backbone.prompt"),
    ('option-list-index', ['model.auxiliary_head.7.channels=3'], '', r'list of 1, 7 is no index'),
    ('option-below-a-number', ['model.backbone.patch_size.x=3'], '',
     r'patch_size is 8, it has no x'),
    ('unknown-argument', ['model.backbone.colour=3'], '', r"has no argument 'colour'"),
    ('heads-disagree', ['model.decode_head.num_classes=151'], '', r'heads.*disagree.*150, 151'),
    ('head-and-classes', [], HEADS, r'num_classes is 151 but the train data has 150 classes'),
    ('palette', [], "dataset['classes'] = ['a', 'b']; dataset['palette'] = [[0, 0, 0]]",
     r'palette has 1 colours for the 2'),
    ('classes-twice', [], "dataset['classes'] = ['a', 'a']", r"names 'a' twice"),
    ('syntax', [], 'model = dict(', r'config .*leaf.py'),
    ('weights-absent', [], WEIGHTS.format('pretrain/none.pth'),
     r'model.backbone.init_cfg.checkpoint: no file pretrain/none.pth'),
]  # fmt: skip


@pytest.mark.parametrize(
    'options, extra, pattern',
    [case[1:] for case in CONFIG_CASES],
    ids=[case[0] for case in CONFIG_CASES],
)
def test_config(capfd, tmp_path, good_data, options, extra, pattern):
    leaf = write_leaf(tmp_path, good_data, extra)
    arguments = ['--cfg-options', *options] if options else []
    assert_one_line(run_tool(capfd, 'train', leaf, *arguments), pattern)
    assert not list(tmp_path.glob('work/*.pth'))


def test_a_loss_that_is_no_number_stops_the_run(capfd, tmp_path, good_data):
    leaf = write_leaf(tmp_path, good_data)
    outcome = run_tool(capfd, 'train', leaf, '--cfg-options', 'optim_wrapper.optimizer.lr=1e30')
    assert_one_line(outcome, r'the loss is (nan|inf) at iteration 2; lower optim_wrapper.optimizer')
    assert [path.name for path in tmp_path.glob('work/*.pth')] == ['iter_1.pth']


def test_config_absent(capfd, tmp_path, good_data):
    write_leaf(tmp_path, good_data)
    outcome = run_tool(capfd, 'train', tmp_path / 'leav.py')
    assert_one_line(outcome, r"leav.py: no such file; did you mean 'leaf.py'")


def test_more_gpus_than_there_are(capfd, tmp_path, good_data, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    outcome = run_tool(capfd, 'train', write_leaf(tmp_path, good_data))
    assert_one_line(outcome, r'asked for 4 GPUs but this machine has 1')


def test_work_dir_not_writable(capfd, tmp_path, good_data):
    (tmp_path / 'file').touch()  # not by permissions: they do not bind root
    leaf = write_leaf(tmp_path, good_data)
    outcome = run_tool(capfd, 'train', leaf, '--work-dir', tmp_path / 'file' / 'run')
    assert_one_line(outcome, r'work_dir .*file/run is not writable')


@pytest.mark.parametrize('where', ['', 'empty', 'absent'])
def test_resume_without_a_checkpoint(capfd, tmp_path, good_data, where):
    (tmp_path / 'empty').mkdir()
    leaf = write_leaf(tmp_path, good_data)
    arguments = [tmp_path / where] if where else ['--work-dir', tmp_path / 'empty']
    outcome = run_tool(capfd, 'train', leaf, '--resume', *arguments)
    assert_one_line(outcome, r'(no checkpoint; leave --resume out|absent: no such file)')


def test_tta_without_a_pipeline(capfd, tmp_path, good_data, checkpoint):
    leaf = write_leaf(tmp_path, good_data, 'tta_pipeline = []')
    outcome = run_tool(capfd, 'test', leaf, checkpoint, '--tta')
    assert_one_line(outcome, r'the config has no tta_pipeline')


# --- what files can be like ------------------------------------------------------------------


def no_masks(data):
    for path in data.glob('annotations/training/*'):
        path.unlink()


def one_mask_less(data):
    (data / 'annotations/training/001.png').unlink()


def label_200(data):
    for path in data.glob('annotations/training/*'):
        cv2.imwrite(str(path), np.full((32, 32), 200, np.uint8))


def all_ignored(data):
    for path in data.glob('annotations/training/*'):
        cv2.imwrite(str(path), np.zeros((32, 32), np.uint8))


def garbage_image(data):
    for path in data.glob('images/training/*'):
        path.write_bytes(b'not an image')


def colour_mask(data):
    for path in data.glob('annotations/training/*'):
        cv2.imwrite(str(path), np.full((32, 32, 3), 7, np.uint8))


def truncated_mask(data):
    for path in data.glob('annotations/training/*'):
        path.write_bytes(path.read_bytes()[:-40])


def validation_label(data):
    path = data / 'annotations/validation/000.png'
    cv2.imwrite(str(path), np.full((32, 32), 151, np.uint8))


@pytest.mark.parametrize(
    'spoil, pattern, workers',
    [
        (no_masks, r'no mask in .*annotations/training for any of the 2 images', 0),
        (one_mask_less, r'1 of 2 images have no mask.*001.jpg', 0),
        (label_200, r'annotations/training/00\d.png: label id 200, .* 150 classes \(ids 1 to', 0),
        (all_ignored, r'every pixel is ignored', 0),
        (garbage_image, r'images/training/00\d.jpg', 0),
        (garbage_image, r'images/training/00\d.jpg', 1),
        (label_200, r'annotations/training/00\d.png: label id 200', 1),
        (colour_mask, r'annotations/training/00\d.png.*channels', 0),
        (truncated_mask, r'annotations/training/00\d.png.*truncated', 0),
        (validation_label, r'annotations/validation/000.png: label id 151', 0),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_data(capfd, tmp_path, data, spoil, pattern, workers):
    spoil(data)
    options = [f'{split}_dataloader.num_workers={workers}' for split in ('train', 'val')]
    leaf = write_leaf(tmp_path, data)
    assert_one_line(run_tool(capfd, 'train', leaf, '--cfg-options', *options), pattern)


def test_classes_of_another_number_than_the_checkpoint(capfd, tmp_path, good_data, checkpoint):
    leaf = write_leaf(tmp_path, good_data, "dataset['type'] = 'BaseSegDataset'\n"
                      "dataset['classes'] = ['a', 'b']")  # fmt: skip
    outcome = run_tool(capfd, 'test', leaf, checkpoint)
    assert_one_line(outcome, r'shape: decode_head.conv_seg.weight \(150, .*instead of \(2')


def truncated(path, good):
    path.write_bytes(good.read_bytes()[: good.stat().st_size // 2])


def empty(path, good):
    path.touch()


def web_page(path, good):
    path.write_text('<!DOCTYPE html><html>404</html>')


def git_lfs_pointer(path, good):
    path.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:0\n')


def flipped_bytes(path, good):
    content = bytearray(good.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)


def unrelated(path, good):
    torch.save({'state_dict': {'conv1.weight': torch.zeros(3)}}, path)


def no_dictionary(path, good):
    torch.save([1, 2], path)


def hostile(path, good):
    torch.save({'state_dict': Evil(path.with_name('executed'))}, path)


@pytest.mark.parametrize(
    'spoil, pattern',
    [
        (truncated, r'bad.pth is truncated or damaged'),
        (empty, r'bad.pth is empty'),
        (web_page, r'bad.pth is a web page'),
        (git_lfs_pointer, r'bad.pth is a Git LFS pointer'),
        (flipped_bytes, r'bad.pth is damaged \(checksum of '),
        (unrelated, r'bad.pth is not of this .*missing: .*1 unexpected: conv1.weight'),
        (no_dictionary, r'bad.pth holds no weights but a list'),
        (hostile, r'bad.pth is refused: .*would run code'),
        (None, r'checkpoint .*bad.pth: no such file'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_checkpoint(capfd, tmp_path, good_data, checkpoint, spoil, pattern):
    bad = tmp_path / 'bad.pth'
    if spoil:
        spoil(bad, checkpoint)
    outcome = run_tool(capfd, 'test', write_leaf(tmp_path, good_data), bad)
    assert_one_line(outcome, pattern)
    assert not (tmp_path / 'executed').exists()


WIDER = """
_arch['embed_dims'] = 64
for _head in [model['decode_head'], *model['auxiliary_head']]:
    _head['in_channels'] = 64
"""


@pytest.mark.parametrize(
    'extra, pattern',
    [
        (WIDER, r'of another shape: backbone.cls_token \(1, 1, 32\) instead of \(1, 1, 64\)'),
        ("_arch['num_layers'] = 3", r'\d+ missing: backbone.*layers.2'),
        ("model['backbone'].pop('prompt')\nmodel['backbone']['prompt'] = None\n"
         "model['backbone']['trainable'] = []", r'1 unexpected: backbone.prompt'),
    ],
    ids=['width', 'depth', 'no-prompt'],
)  # fmt: skip
def test_checkpoint_of_another_architecture(capfd, tmp_path, good_data, checkpoint, extra, pattern):
    leaf = write_leaf(tmp_path, good_data, extra)
    assert_one_line(run_tool(capfd, 'test', leaf, checkpoint), pattern)


@pytest.mark.parametrize(
    'spoil, pattern',
    [
        (web_page, r'weights.pth is a web page'),
        (truncated, r'weights.pth is truncated'),
        (unrelated, r'weights.pth holds no vision transformer.*conv1.weight'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_pretrained_weights(capfd, tmp_path, good_data, checkpoint, spoil, pattern):
    weights = tmp_path / 'weights.pth'
    spoil(weights, checkpoint)
    leaf = write_leaf(tmp_path, good_data, WEIGHTS.format(weights))
    assert_one_line(run_tool(capfd, 'train', leaf), pattern)


# --- as a user sees it -----------------------------------------------------------------------


@pytest.mark.parametrize('asked', [False, True])
def test_the_traceback_only_when_asked_for(tmp_path, asked):
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'absent.py')]
    done = subprocess.run(
        command + ['--traceback'] * asked,
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('error: config ')
    assert ('Traceback (most recent call last)' in done.stderr) == asked
    assert (len(done.stderr.splitlines()) == 1) == (not asked)
