"""Bad input: one clear line on stderr, exit code 2, no traceback, no half-written file."""

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
from safetensors.torch import save_file
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
    assert outcome.code == 2, outcome
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith('error: ')
    assert re.search(pattern, lines[0]), lines[0]
    assert 'Traceback (most' not in outcome.out


@pytest.fixture(autouse=True)
def _nothing_half_written(tmp_path):
    yield
    assert not [path for path in tmp_path.rglob('*') if path.name.endswith(('unfinished', '.tmp'))]


# --- what a command line or a config can get wrong: (id, options, more config, pattern) -------

HEADS = """
model['decode_head']['num_classes'] = 151
model['auxiliary_head'][0]['num_classes'] = 151
"""
#: A method in place of the leaf's prompt.
METHOD = """
model['backbone'].pop('prompt', None)
model['backbone'].pop('trainable', None)
model['backbone'].update({})
"""
WEIGHTS = """
model['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='{}')
"""
SWIN = dict(
    _delete_=True, type='vpt_dense.SwinTransformer', img_size=32, window_size=4,
    arch=dict(embed_dims=32, depths=[1, 1], num_heads=[2, 2]), out_indices=(0, 1))
METHOD_CASES = [
    ('adapter-type', METHOD.format("adapters=[dict(type='vpt_dense.LoRa')]"),
     r"unknown type 'vpt_dense.LoRa'.*did you mean 'vpt_dense.LoRA'"),
    ('adapters-dict', METHOD.format("adapters=dict(type='vpt_dense.LoRA')"),
     r'adapters must be a list of dicts'),
    ('lora-rank', METHOD.format("adapters=[dict(type='vpt_dense.LoRA', rank=0)]"),
     r'adapters.rank must be an integer of at least 1, found 0'),
    ('lora-target', METHOD.format("adapters=[dict(type='vpt_dense.LoRA', targets=['query'])]"),
     r"adapters.targets: pattern 'query' matches no linear layer of .*layers.0.attn.qkv"),
    ('depth', METHOD.format("prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True, "
                            "layer_range=(1, 9))"),
     r'prompt.layer_range must be .*2 layers, found \(1, 9\)'),
    ('last-blocks', METHOD.format("trainable=['last:9']"), r'trainable.*last:9'),
    ('prompt-on-swin', f"model['backbone'] = {SWIN}\nmodel['backbone']['prompt'] = dict("
                       "type='vpt_dense.VAPTPrompt', num_tokens=3)",
     r'prompt: VAPTPrompt needs blocks that are all of one width, SwinTransformer has none'),
    ('adapter-on-resnet', "model['backbone'] = dict(_delete_=True, type='vpt_dense.ResNet', "
                          "depth=50, img_size=64, adapters=[dict(type='vpt_dense.LoRA')])",
     r'adapters: LoRA needs transformer blocks, ResNet has none'),
    ('bottleneck', METHOD.format("adapters=[dict(type='vpt_dense.AdaptFormer', hidden_dims=0)]"),
     r'adapters.*0'),
    ('border', METHOD.format("image_prompt=dict(type='vpt_dense.PadPrompt', width=3)"),
     r'image_prompt.width.*3'),
]
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
    ('option-of-a-variable', ['method.prompt.num_tokens=3'], '',
     r"'method' is a variable.*model.backbone.prompt"),
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
    ('lr-none', ['optim_wrapper.optimizer.lr=None'], '', r'optimizer.lr is None'),
    ('lr-true', ['optim_wrapper.optimizer.lr=True'], '', r'optimizer.lr is True.*finite number'),
    ('weight-decay-negative', ['optim_wrapper.optimizer.weight_decay=-1'], '',
     r'optimizer.weight_decay is -1; it must be a finite number'),
    ('optimizer-type', ['optim_wrapper.optimizer.type=SDG'], '',
     r"optim_wrapper.optimizer.type: unknown optimizer 'SDG'; did you mean 'SGD'"),
    ('optimizer-argument', ['optim_wrapper.optimizer.nestorov=True'], '',
     r"SGD has no argument 'nestorov'"),
    ('wrapper-type', ['optim_wrapper.type=OptimWraper'], '', r"did you mean 'OptimWrapper'"),
    ('scheduler-type', ['param_scheduler.0.type=PolyLRR'], '', r"did you mean 'PolyLR'"),
    ('scheduler-end', ['param_scheduler.0.end=-5'], '',
     r'PolyLR.* refuses its arguments: end should be larger than begin.*end=-5'),
    ('scheduler-by-epoch', ['param_scheduler.0.by_epoch=True'], '',
     r'param_scheduler.0.by_epoch is True but train_cfg counts iterations'),
    ('hook-type', ['default_hooks.logger.type=LogerHook'], '', r"did you mean 'LoggerHook'"),
    ('hook-argument', ['default_hooks.logger.colour=red'], '', r"has no argument 'colour'"),
    ('checkpoint-by-epoch', ['default_hooks.checkpoint.by_epoch=True'], '',
     r'default_hooks.checkpoint.by_epoch is True but'),
    ('checkpoint-interval', ['default_hooks.checkpoint.interval=0'], '',
     r'default_hooks.checkpoint.interval is 0; it must be'),
    ('checkpoint-keep', ['default_hooks.checkpoint.max_keep_ckpts=0'], '',
     r'max_keep_ckpts is 0; it must be'),
    ('logger-interval', ['default_hooks.logger.interval=0'], '', r'logger.interval is 0'),
    ('log-by-epoch', ['log_processor.by_epoch=True'], '', r'log_processor.by_epoch is True but'),
    ('val-interval-0', ['train_cfg.val_interval=0'], '', r'val_interval is 0; .* 1 or more'),
    ('val-interval-negative', ['train_cfg.val_interval=-2'], '', r'val_interval is -2'),
    ('max-iters-0', ['train_cfg.max_iters=0'], '', r'train_cfg.max_iters is 0; .* 1 or more'),
    ('max-iters-negative', ['train_cfg.max_iters=-1'], '', r'train_cfg.max_iters is -1'),
    ('max-iters-word', ['train_cfg.max_iters=many'], '', r"train_cfg.max_iters is 'many'"),
    ('epochs-of-an-iteration-loop', ['train_cfg.max_epochs=2'], '',
     r"IterBasedTrainLoop has no argument 'max_epochs'"),
    ('no-loop', ['train_cfg=None'], '', r'the config has no train_cfg, which training needs'),
    ('batch-size-0', ['train_dataloader.batch_size=0'], '', r'train_dataloader.batch_size is 0'),
    ('batch-size-word', ['train_dataloader.batch_size=two'], '', r"batch_size is 'two'"),
    ('workers-negative', ['train_dataloader.num_workers=-1'], '',
     r'train_dataloader.num_workers is -1; it must be an integer, 0 or more'),
    ('dataset-type-of-one-split', ['train_dataloader.dataset.type=SegFolder'], '',
     r"unknown type 'SegFolder'.*did you mean 'vpt_dense.SegFolder'"),
    ('transform-type', ['train_dataloader.dataset.pipeline.0.type=LoadImage'], '',
     r"did you mean 'LoadImageFromFile'"),
    ('crop-size-0', ['train_dataloader.dataset.pipeline.2.crop_size=(0,0)'], '',
     r'pipeline.2.crop_size is \(0, 0\); it must be positive'),
    ('class-weight', ['model.auxiliary_head.0.loss_decode.class_weight=[1.0,2.0]'], '',
     r'auxiliary_head.0.loss_decode.class_weight has 2 weights, but the head has 150 classes'),
    ('crop-above-size', ['train_dataloader.dataset.pipeline.2.crop_size=(32,40)'], '',
     r'pipeline.2.crop_size is \(32, 40\), above model.data_preprocessor.size \(32, 32\)'),
    ('image-suffix', ['dataset.img_suffix=.tif'], '', r'no image in .*training.*\.tif'),
    ('mask-suffix', ['dataset.seg_map_suffix=_labels.png'], '', r'looked for _labels.png'),
    ('dropout', ['model.backbone.drop_rate=1.5'], '', r'backbone.drop_rate is 1.5; .*from 0 to 1'),
    ('drop-path', ['model.backbone.drop_path_rate=-0.1'], '', r'drop_path_rate is -0.1'),
    ('prompt-dropout', ['model.backbone.prompt.dropout=1.5'], '', r'prompt.dropout.* 1.5'),
    ('prompt-list', ['model.backbone.prompt=[1]'], '',
     r"prompt needs a dict with a 'type', found \[1\]"),
    ('trainable-word', [], "model['backbone']['trainable'] = 'bias'",
     r"trainable must be a list.*'bias'"),
    ('out-indices-word', ['model.backbone.out_indices=last'], '',
     r"model.backbone.out_indices has 'last'; the backbone has 2 blocks"),
    ('in-index', ['model.decode_head.in_index=5'], '',
     r'in_index of the .*SETRUPHead is 5, but model.backbone.out_indices gives 2'),
    ('in-channels', ['model.decode_head.in_channels=33'], '',
     r'in_channels of the .*SETRUPHead is 33, but the backbone is 32 wide'),
    ('patch-size', ['model.backbone.patch_size=0'], '', r'patch_size=0 must be positive'),
    ('arch-name', ['model.backbone.arch=gigantic'], '',
     r'VisionTransformer refuses its arguments: Arch gigantic is not in'),
    ('arch-heads', ['model.backbone.arch.num_heads=5'], '', r'32 is not a multiple of num_heads 5'),
    ('backbone-type', ['model.backbone.type=VisionTransfomer'], '',
     r"unknown type 'VisionTransfomer'.*did you mean 'VisionTransformer'"),
    ('head-type', ['model.decode_head.type=SETRUPHed'], '', r"did you mean 'SETRUPHead'"),
    ('loss-weight', ['model.decode_head.loss_decode.loss_weight=nan'], '', r'loss_weight is nan'),
    ('test-mode', ['model.test_cfg.mode=slid'], '',
     r"mode must be 'slide' or 'whole', found 'slid'"),
    ('mean-of-2', ['model.data_preprocessor.mean=[1,2]'], '', r'`mean` should have 1 or 3 values'),
    ('std-0', ['model.data_preprocessor.std=[0,0,0]'], '', r'data_preprocessor.std is \[0, 0, 0\]'),
    ('scope', ['default_scope=mmsegg'], '', r"unknown type .*did you mean 'mmseg\."),
    ('seed-word', ['randomness.seed=lucky'], '', r"randomness.seed is 'lucky'"),
    ('log-level', ['log_level=LOUD'], '', r"log_level is 'LOUD'; it must be one of DEBUG"),
    ('metric-type', ['val_evaluator.type=IoUMetrik'], '', r"did you mean 'IoUMetric'"),
    ('metric-name', ['val_evaluator.iou_metrics=[mIuO]'], '', r'iou_metrics is .*mIuO'),
    ('custom-imports', ['custom_imports.imports=[no_such_module]'], '',
     r'custom_imports: .*no_such_module'),
    ('load-from-absent', ['load_from=nowhere.pth'], '', r'nowhere.pth: no such file'),
    ('load-from-number', [], 'load_from = 3', r'load_from is 3; it must be the path'),
    ('option-without-value', ['model.backbone.with_cp'], '',
     r'--cfg-options model.backbone.with_cp: KEY=VALUE was expected'),
    ('option-brackets', ['model.backbone.trainable=[(]'], '',
     r'--cfg-options .*KEY=VALUE was expected'),
    ('option-without-a-value', ['model.backbone.trainable='], '',
     r'--cfg-options model.backbone.trainable=: KEY=VALUE was expected.*there is no value'),
    ('option-of-a-switch', ['model.backbone.final_norm=ture'], '',
     r"--cfg-options model.backbone.final_norm=ture: the config has False there, and 'ture'"),
    ('option-as-a-call', ["optim_wrapper.clip_grad=dict(max_norm=1)"], '',
     r"--cfg-options optim_wrapper.clip_grad=dict.*KEY=VALUE.*a dict is written \{'type': 'X'\}"),
    ('option-below-none', ['model.backbone.prompt=None', 'model.backbone.prompt.num_tokens=3'], '',
     r"prompt needs a dict with a 'type'"),
    ('weights-absent', [], WEIGHTS.format('pretrain/none.pth'),
     r'model.backbone.init_cfg.checkpoint: no file pretrain/none.pth'),
]  # fmt: skip


@pytest.mark.parametrize(
    'options, extra, pattern',
    [case[1:] for case in CONFIG_CASES] + [([], *case[1:]) for case in METHOD_CASES],
    ids=[case[0] for case in CONFIG_CASES + METHOD_CASES],
)
def test_config(capfd, tmp_path, good_data, options, extra, pattern):
    leaf = write_leaf(tmp_path, good_data, extra)
    arguments = ['--cfg-options', *options] if options else []
    assert_one_line(run_tool(capfd, 'train', leaf, *arguments), pattern)
    written = [path.name for path in tmp_path.glob('work/**/*') if path.is_file()]
    kept = ('.log', '.json', '.py', 'run.lock')  # the lock goes when this process ends
    assert not [name for name in written if not name.endswith(kept)], written


def test_a_loss_that_is_no_number_stops_the_run(capfd, tmp_path, good_data):
    leaf = write_leaf(tmp_path, good_data)
    outcome = run_tool(capfd, 'train', leaf, '--cfg-options', 'optim_wrapper.optimizer.lr=1e30')
    assert_one_line(outcome, r'the loss is (nan|inf) at iteration 2 .*; lower optim_wrapper')
    assert [path.name for path in tmp_path.glob('work/*.pth')] == ['iter_1.pth']


def test_config_absent(capfd, tmp_path, good_data):
    write_leaf(tmp_path, good_data)
    outcome = run_tool(capfd, 'train', tmp_path / 'leav.py')
    assert_one_line(outcome, r"leav.py: no such file; did you mean 'leaf.py'")


def test_a_folder_as_config(capfd, tmp_path):
    outcome = run_tool(capfd, 'train', tmp_path)
    assert_one_line(outcome, r'config .*: (no such file|.*folder)')


@pytest.mark.parametrize(
    'arguments, told',
    [
        (['--resum', 'x', '--colour', 'red'], 'unrecognized arguments: --colour red'),
        (['--amp', 'yes'], 'unrecognized arguments: yes'),
        (['--seed', 'lucky'], "argument --seed: invalid int value: 'lucky'"),
        (['--launcher', 'ssh'], "argument --launcher: invalid choice: 'ssh'"),
        (['--work-dir'], 'argument --work-dir: expected one argument'),
    ],
    ids=['option', 'amp', 'seed', 'launcher', 'work-dir'],
)
def test_command_line(capfd, tmp_path, good_data, arguments, told):
    outcome = run_tool(capfd, 'train', write_leaf(tmp_path, good_data), *arguments)
    assert_one_line(outcome, rf'{re.escape(told)}.*; see train.py --help')
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('count', ['two', '-1', '1.5'])
def test_number_of_processes_that_is_none(tmp_path, count):
    done = subprocess.run(
        ['bash', str(ROOT / 'tools/dist_train.sh'), 'x.py', count], capture_output=True, text=True,
        env={**os.environ, 'PYTHON': sys.executable, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith('error: ') and 'GPUS a number' in line and count in line


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


def mask_of_another_size(data):
    for path in data.glob('annotations/training/*'):
        cv2.imwrite(str(path), np.full((16, 16), 3, np.uint8))


def no_images(data):
    for path in data.glob('images/training/*'):
        path.unlink()


def no_folder(data):
    shutil.rmtree(data / 'annotations')


def empty_mask(data):
    for path in data.glob('annotations/training/*'):
        path.write_bytes(b'')


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
        pytest.param(label_200, r'annotations/training/00\d.png: label id 200', 1,
                     marks=pytest.mark.slow),  # its worker is waited for
        (colour_mask, r'annotations/training/00\d.png.*channels', 0),
        (truncated_mask, r'annotations/training/00\d.png.*truncated', 0),
        (mask_of_another_size, r'its mask .*training/00\d.png has 16 x 16; they must be of one', 0),
        (no_images, r'no image in .*images/training', 0),
        (no_folder, r'no folder .*annotations/training', 0),
        (empty_mask, r'annotations/training/00\d.png', 0),
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


def without_a_layer(path, good):
    content = torch.load(good)
    state = content['state_dict']
    content['state_dict'] = {k: v for k, v in state.items() if 'layers.1.attn' not in k}
    assert len(content['state_dict']) < len(state)
    torch.save(content, path)


def zeros(path, good):
    """As a power failure may leave it."""
    path.write_bytes(bytes(good.stat().st_size))


def folder(path, good):
    path.mkdir()


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
        (without_a_layer, r'bad.pth is not of this .* missing: backbone.layers.1.attn'),
        (zeros, r'bad.pth is (refused|damaged)'),
        (folder, r'bad.pth holds no checkpoint'),
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


def safetensors_header(path, good):
    save_file({'conv1.weight': torch.zeros(3)}, path)
    content = bytearray(path.read_bytes())
    content[:8] = (2**40).to_bytes(8, 'little')
    path.write_bytes(content)


def safetensors_cut(path, good):
    save_file({'conv1.weight': torch.zeros(300)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def npz_cut(path, good):
    np.savez(path, weight=np.zeros(300))
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    'spoil, name, pattern',
    [
        (web_page, 'weights.pth', r'weights.pth is a web page'),
        (truncated, 'weights.pth', r'weights.pth is truncated'),
        (flipped_bytes, 'weights.pth', r'weights.pth is damaged'),
        (empty, 'weights.pth', r'weights.pth is empty'),
        (git_lfs_pointer, 'weights.safetensors', r'weights.safetensors is a Git LFS pointer'),
        (web_page, 'weights.safetensors', r'weights.safetensors is a web page'),
        (unrelated, 'weights.pth', r'weights.pth holds no backbone.*conv1.weight'),
        (no_dictionary, 'weights.pth', r'weights.pth holds no state dict but list'),
        (safetensors_header, 'weights.safetensors', r'weights.safetensors is truncated or damaged'),
        (safetensors_cut, 'weights.safetensors', r'weights.safetensors is truncated or damaged'),
        (npz_cut, 'weights.npz', r'weights.npz is truncated or damaged'),
        (hostile, 'weights.pth', r'weights.pth is refused'),
    ],
    ids=lambda value: getattr(value, '__name__', ''),
)
def test_pretrained_weights(capfd, tmp_path, good_data, checkpoint, spoil, name, pattern):
    weights = tmp_path / name
    spoil(weights, checkpoint)
    leaf = write_leaf(tmp_path, good_data, WEIGHTS.format(weights))
    assert_one_line(run_tool(capfd, 'train', leaf), pattern)


# --- as a user sees it -----------------------------------------------------------------------


@pytest.mark.parametrize('asked', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_traceback_only_when_asked_for(tmp_path, asked):
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(tmp_path / 'absent.py')]
    done = subprocess.run(
        command + ['--traceback'] * asked,
        capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('error: config ')
    assert ('Traceback (most recent call last)' in done.stderr) == asked
    assert (len(done.stderr.splitlines()) == 1) == (not asked)


FAILS = """
import sys
sys.path.insert(0, {packages!r})
import foreign
from vpt_dense import errors, own

errors.main({name}.fail)
"""


@pytest.mark.parametrize('package, packages', [
    ('vpt_dense', 'vpt_dense/.venv/lib/site-packages'),  # the README's own clone
    ('my vpt_dense copy', 'my vpt_dense copy/.venv/vpt_dense'),
    ('Prüfung/vpt_dense ß', 'Prüfung/vpt_dense ß/.venv'),
    ('lib/site-packages', 'lib/site-packages'),  # vpt_dense is installed beside the others
    ('x', 'vpt_dense/vpt_dense/others'),
])
def test_the_users_error_is_the_one_that_the_package_raises(tmp_path, package, packages):
    """The exit code does not hang on what the folders of a checkout are called."""
    own, others = tmp_path / package / 'vpt_dense', tmp_path / packages
    own.mkdir(parents=True)
    others.mkdir(parents=True, exist_ok=True)
    for name in ('__init__', 'version', 'errors', 'live', 'imports', 'preemption'):
        shutil.copy(ROOT / f'vpt_dense/{name}.py', own)
    for file in (own / 'own.py', others / 'foreign.py'):
        file.write_text('def fail():\n    raise ValueError("no such width")\n')
    found = []
    for name in ('own', 'foreign'):
        done = subprocess.run(
            [sys.executable, '-c', FAILS.format(packages=str(others), name=name)],
            capture_output=True, text=True, encoding='utf-8', cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(tmp_path / package), 'PYTHONUTF8': '1'},
        )
        found.append((done.returncode, done.stderr))
    assert found == [
        (2, 'error: no such width\n'),
        (1, 'error: ValueError: no such width (traceback with --traceback)\n'),
    ]
