"""Configs of every style: JSON and YAML on Python bases, `_base_` of any kind, classes as types."""

import json
import re

import pytest
import yaml
from mmengine import Config
from tool_helpers import run_tool, tiny_folder, write_leaf

from vpt_dense import config, config_files
from vpt_dense.errors import UserError

LEAF = dict(
    _base_='leaf.py',
    model=dict(backbone=dict(prompt=dict(num_tokens=3))),
    train_dataloader=dict(dataset=dict(pipeline=[
        dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=[32, 32]), dict(type='PackSegInputs')])),
    optim_wrapper=dict(optimizer=dict(_delete_=True, type='SGD', lr=0.5)),
)  # fmt: skip


def write(path, content):
    path.write_text(json.dumps(content) if path.suffix == '.json' else yaml.safe_dump(content))
    return path


def test_what_a_file_says_is_kept_no_longer_than_it_says_it(tmp_path, monkeypatch):
    base, top = tmp_path / 'base.py', tmp_path / 'top.py'
    top.write_text("_base_ = './base.py'\n")
    environment = "a = int('{{$NUMBER:3}}')", 'import os\na = os.environ["NUMBER"]'
    for text in ('a = 1', 'a = 2', *environment):
        base.write_text(text)
        for number in '56':
            monkeypatch.setenv('NUMBER', number)
            said = config_files.content(top)['a']
            assert said == config_files.parse(str(top)).a, text
            assert str(said) == (number if 'NUMBER' in text else text[-1])
    assert config_files.names(base) == ({'a'}, {'os'}) and config_files.bases(top) == [base]
    top.write_text('a = 7')
    assert config_files.content(top) == dict(a=7) and config_files.bases(top) == []


@pytest.mark.parametrize('suffix', ['.json', '.yaml', '.yml'])
def test_json_and_yaml_on_a_python_base(capfd, tmp_path, suffix):
    write_leaf(tmp_path, tiny_folder(tmp_path / 'data'))
    path = write(tmp_path / f'top{suffix}', LEAF)
    cfg = config.load(str(path), ['dataset.data_root=' + str(tmp_path / 'data')])
    assert cfg.model.backbone.prompt.num_tokens == 3
    assert cfg.optim_wrapper.optimizer == dict(type='SGD', lr=0.5)
    assert cfg.train_dataloader.dataset.pipeline[2].crop_size == (32, 32)
    assert config.load(str(tmp_path / 'leaf.py')).model.backbone.prompt.num_tokens == 2
    outcome = run_tool(capfd, 'train', path)
    assert outcome.code == 0, outcome.err
    dumped = tmp_path / 'work' / 'top.py'  # tuples stay tuples
    assert Config.fromfile(dumped).train_dataloader.dataset.pipeline[2].crop_size == (32, 32)
    outcome = run_tool(capfd, 'test', dumped, tmp_path / 'work' / 'iter_2.pth')
    assert outcome.code == 0, outcome.err


def test_python_on_json_on_python(tmp_path):
    write_leaf(tmp_path, tmp_path)
    (tmp_path / 'middle.json').write_text(
        '{"_base_": ["leaf.py"], "work_dir": "{{ fileDirname }}/w", "depth": 2, '
        '"custom": {"a": {{_base_.work_dir}}}}')
    top = tmp_path / 'top.py'
    top.write_text("_base_ = './middle.json'\n"
                   "model = dict(backbone=dict(prompt=dict(num_tokens=_base_.depth)))\n"
                   "experiment_name = _base_.custom.a\n")
    cfg = config.load(str(top))
    assert cfg.model.backbone.prompt.num_tokens == 2
    assert (cfg.work_dir, cfg.experiment_name) == (f'{tmp_path}/w', f'{tmp_path}/work')
    assert 'depth' not in cfg


def test_yaml_says_something_once(tmp_path):
    write_leaf(tmp_path, tmp_path)
    path = tmp_path / 'top.yaml'
    path.write_text(
        '_base_: leaf.py\nsize: &size [64, 64]\nmodel:\n  backbone: {img_size: *size}\n')
    assert config.load(str(path)).model.backbone.img_size == [64, 64]


@pytest.mark.parametrize('style', ['expression', 'variables', 'import'])
def test_python_bases_of_any_kind(monkeypatch, tmp_path, style):
    """`_base_` as an expression, with mmengine's variables, below an import."""
    write_leaf(tmp_path, tmp_path)
    monkeypatch.setenv('OUR_LEAF', 'leaf')
    top = tmp_path / 'top.py'
    top.write_text({
        'expression': "_base_ = [f'./{name}.py' for name in ('leaf',)]\n",
        'variables': "_base_ = ['{{ fileDirname }}/{{$OUR_LEAF:none}}.py']\n",
        'import': "import numpy as np\n_base_ = ['./leaf.py']\n",
    }[style] + "model = dict(backbone=dict(prompt=dict(num_tokens=7)))\n")  # fmt: skip
    cfg = config.load(str(top))
    assert cfg.model.backbone.prompt.num_tokens == 7
    assert cfg.model.backbone.arch.embed_dims == 32


def test_bases_of_a_package(tmp_path):
    """Variables of a base of mmpretrain are not taken for typing errors."""
    path = tmp_path / 'top.py'
    path.write_text("_base_ = ['mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py']\n"
                    "_base_.train_dataloader.batch_size = 3\n")  # fmt: skip
    cfg = config.load(str(path))
    assert cfg.val_dataloader.batch_size == 64 and 'bgr_mean' not in cfg
    path.write_text("_base_ = 'mmseg::_base_/schedules/schedule_20k.py'\n")
    cfg = config.load(str(path))  # its distribution goes by another name
    assert cfg.train_cfg.max_iters == 20_000 and cfg.optim_wrapper._scope_ == 'mmseg'
    path.write_text("_base_ = 'vpt_dense::setr_vit-l_deep_ade20k'\n")
    ours = config.load('vpt_dense::vpt/setr_vit-l_deep_ade20k.py')
    assert config.load(str(path)).to_dict() == ours.to_dict()
    assert config.load('vpt_dense::setr_vit-l_ade20k', method='deep').to_dict() == ours.to_dict()


@pytest.mark.parametrize(('name', 'told'), [
    ('mmsegg::setr/a.py', "there is no package 'mmsegg'"),
    ('mmengine::a.py', 'mmengine was installed without its configs'),
    ('vpt_dense::setr_vit-l_dep_ade20k', "has no such config; did you mean 'setr_vit-l_deep_ade20"),
    ('mmseg::setr/setr_vit-l_naive.py', 'mmseg has no such config'),
])
def test_bases_that_packages_have_not(tmp_path, name, told):
    path = tmp_path / 'top.py'
    path.write_text(f'_base_ = {name!r}')
    for each in (name, str(path)):
        with pytest.raises(UserError, match=told):
            config.load(each)


#: A whole run in mmengine's style of imports.
LAZY = '''
from mmengine.config import read_base
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import SegDataPreProcessor
from torch.optim import SGD

from vpt_dense.backbones import VisionTransformer
from vpt_dense.datasets.seg_folder import SegFolder
from vpt_dense.heads import SETRUPHead
from vpt_dense.prompts import TokenPrompt
from vpt_dense.segmentors import EncoderDecoder

with read_base():
    from .data import *

default_scope = 'mmseg'
prompt = dict(type=TokenPrompt, num_tokens=2, deep=True)
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=size, seg_pad_val=255),
    backbone=dict(
        type=VisionTransformer, img_size=size, patch_size=8, out_indices=[1],
        out_type='featmap', prompt=prompt, trainable=['^prompt'],
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)),
    decode_head=dict(
        type=SETRUPHead, in_channels=32, channels=8, num_convs=1, up_scale=2, num_classes=9,
        in_index=0, norm_cfg=dict(type='BN')),
    test_cfg=dict(mode='whole'))
train_dataloader.update(dict(batch_size=1))
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
train_cfg = dict(type=IterBasedTrainLoop, max_iters=2, val_interval=2)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
val_evaluator = test_evaluator = dict(type=IoUMetric)
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=1))
'''
LAZY_DATA = '''
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs, RandomCrop

from vpt_dense.datasets.seg_folder import SegFolder

size = (32, 32)
dataset = dict(data_root='{}', classes=['a', 'b', 'c'])
train_pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations),
    dict(type=RandomCrop, crop_size=size), dict(type=PackSegInputs)]
test_pipeline = [
    dict(type=LoadImageFromFile), dict(type=LoadAnnotations), dict(type=PackSegInputs)]
_prefix = dict(img_path='images/{{}}', seg_map_path='annotations/{{}}')
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(type=SegFolder, pipeline=train_pipeline, data_prefix=dict(
        img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=SegFolder, pipeline=test_pipeline, data_prefix=dict(
        img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
'''


def test_a_config_of_classes(capfd, tmp_path):
    """Trained, and tested by what the run has written; names stand where classes stood."""
    data = tiny_folder(tmp_path / 'data', num_classes=2)
    (tmp_path / 'data.py').write_text(LAZY_DATA.replace('{{}}', '{}').replace(
        "_prefix = dict(img_path='images/{}', seg_map_path='annotations/{}')\n", '').format(data))
    top = tmp_path / 'top.py'
    top.write_text(LAZY)
    cfg = config.load(str(top))
    assert cfg.model.type == 'vpt_dense.EncoderDecoder'
    assert cfg.model.backbone.prompt.type == 'vpt_dense.TokenPrompt'
    steps = [step.type.rpartition('.')[2] for step in cfg.train_dataloader.dataset.pipeline]
    assert steps == ['LoadImageFromFile', 'LoadAnnotations', 'RandomCrop', 'PackSegInputs']
    assert (cfg.optim_wrapper.optimizer.type, cfg.train_cfg.type) == ('SGD', 'IterBasedTrainLoop')
    assert cfg.model.decode_head.num_classes == 3
    assert not {'size', 'prompt', 'train_pipeline', 'SGD'} & set(cfg)
    outcome = run_tool(capfd, 'train', top, '--work-dir', tmp_path / 'work')
    assert outcome.code == 0, outcome.err
    outcome = run_tool(capfd, 'test', tmp_path / 'work/top.py', tmp_path / 'work/iter_2.pth')
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    'files, told',
    [
        ({'top.py': "_base_ = ['./leaf.py', './lef.py']"},
         r"config \S*top.py: its base \S*/lef.py is no file; did you mean 'leaf.py'\?"),
        ({'top.py': "_base_ = './middle.py'", 'middle.py': "_base_ = '../none/x.py'"},
         r'config \S*middle.py: its base \S*/none/x.py is no file'),
        ({'top.json': '{"_base_": "none.py"}'}, r'config \S*top.json: its base \S*/none.py is no'),
        ({'top.py': "_base_ = './a.py'", 'a.py': "_base_ = './b.py'", 'b.py': "_base_ = 'a.py'"},
         r'config \S*top.py: bases in a circle: \S*a.py -> \S*b.py -> \S*a.py'),
        ({'top.py': "_base_ = './top.py'"}, r'circle: \S*top.py -> \S*top.py'),
        ({'top.yaml': '_base_: top.yaml'}, r'circle: \S*top.yaml -> \S*top.yaml'),
        ({'top.json': '{"_base_": "leaf.py", "modle": {}}'},
         r"nothing reads the top-level key 'modle'; did you mean 'model'"),
        ({'top.yaml': '_base_: leaf.py\nmethod: {prompt: 3}'}, r"'method' is a variable of a base"),
        ({'top.json': '{"_base_": "leaf.py",'}, r'config \S*top.json: Expecting property'),
        ({'top.yaml': 'a: [1\nb: 2'}, r'config \S*top.yaml: while parsing'),
        ({'top.yaml': '- a\n- b'}, r'config \S*top.yaml: it holds no keys and values'),
        ({'top.py': "_base_ = './a.py'", 'a.py': 'x = (\n'},
         r'config \S*a.py: .*never closed \(line 1\)'),
        ({'top.py': "_base_ = './a.py'", 'a.py': '\nx = missing'},
         r"config \S*top.py: \S*a.py, line 2: name 'missing' is not defined"),
        ({'top.py': "_base_ = './a.py'", 'a.py': "\nx = {}['y']"},
         r'config \S*top.py: \S*a.py, line 2: KeyError: y'),
        ({'top.py': "_base_ = './leaf.py'\nwork_dir = '{{$NOWHERE_SET:}}'"},
         r'`NOWHERE_SET` cannot be found in `os.environ`'),
        ({'top.py': "_base_ = 'mmpretrain::nothing/x.py'"}, r'its base mmpretrain::'),
        ({'top.py': 'from mmengine.config import read_base\nwith read_base():\n'
                    '    from .none import *\n'}, r'top.py: its base \S*/none.py is no file'),
        ({'top.py': 'from mmengine.config import read_base\nwith read_base():\n'
                    '    from .leaf import *\n'}, r'top.py: its base \S*leaf.py has _base_, which'),
        ({'top.py': 'from torch.optim import SDG\nmodel = dict(type=SDG)'}, r'top.py: .*SDG'),
        ({'top.txt': 'model = 3'}, r'top.txt: the name of a config ends in .py, .json'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(capfd, tmp_path, files, told):
    write_leaf(tmp_path, tmp_path)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    outcome = run_tool(capfd, 'print_config', tmp_path / next(iter(files)))
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2 and re.search(f'^error: .*{told}', line), line
