"""Loading configs: what is said once reaches every place that needs it; the machine is heeded."""

import copy
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest
import torch
from mmengine import Config
from mmengine.registry import MODELS
from tool_helpers import write_leaf
from torch._utils import ExceptionWrapper
from utils import CONFIGS, LEAVES

from vpt_dense import building, config, params, preflight, tree
from vpt_dense.checkpoints import hub
from vpt_dense.engine.runner import NamingPipeline
from vpt_dense.errors import UserError, explain, main
from vpt_dense.weights import checkpoints, reading


@pytest.mark.parametrize('path', LEAVES)
def test_every_shipped_config_loads_and_builds(path):
    cfg = config.load(str(CONFIGS / path))
    assert {'model', 'train_dataloader', 'optim_wrapper', 'default_scope'} <= set(cfg)
    counts = params.count(building.build_model(cfg, 'meta'))
    assert 0 < params.add_up(counts)[0] <= params.add_up(counts)[1]


def segmentation(**dataset) -> Config:
    head = dict(num_classes=150, norm_cfg=dict(type='SyncBN'))
    inner = dict(type='X', data_prefix='a', metainfo=dict(seen=1))
    loader = dict(num_workers=0, persistent_workers=True, prefetch_factor=2, dataset=inner)
    wrapped = dict(loader, dataset=dict(type='RepeatDataset', times=2, dataset=inner))
    joined = dict(loader, dataset=dict(type='ConcatDataset', datasets=[inner, inner]))
    return Config(
        dict(
            model=dict(decode_head=head, auxiliary_head=[head, head]),
            train_dataloader=wrapped,
            val_dataloader=joined,
            test_dataloader=loader,
            dataset=dataset,
        )
    )


def test_classes_are_set_once():
    cfg = segmentation(data_root='d', classes=['a', 'b'], palette=[[0, 0, 0], [1, 1, 1]], extra=3)
    config.resolve(cfg)
    leaves = [leaf for name in config.DATALOADERS for leaf in tree.leaf_datasets(cfg[name])]
    assert len(leaves) == 4
    for leaf in leaves:
        assert (leaf.data_root, leaf.extra, leaf.data_prefix) == ('d', 3, 'a')
        assert leaf.metainfo == dict(seen=1, classes=['a', 'b'], palette=[[0, 0, 0], [1, 1, 1]])
        assert 'classes' not in leaf
    assert [head.num_classes for head in config.heads(cfg.model)] == [2, 2, 2]


def test_without_classes_the_heads_stay():
    cfg = segmentation(data_root='d')
    config.resolve(cfg)
    assert [head.num_classes for head in config.heads(cfg.model)] == [150] * 3


def test_a_dict_in_common_is_merged():
    cfg = segmentation(metainfo=dict(classes=['a', 'b', 'c']))
    config.resolve(cfg)
    assert cfg.test_dataloader.dataset.metainfo == dict(seen=1, classes=['a', 'b', 'c'])
    assert cfg.model.decode_head.num_classes == 3


@pytest.mark.parametrize('cuda', [False, True])
def test_the_machine_is_heeded(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
    cfg = segmentation()
    cfg.optim_wrapper = dict(type='AmpOptimWrapper')
    cfg.train_dataloader.pin_memory = True
    for _ in range(2):  # again: a config that was dumped by a run is as good as the first
        config.resolve(cfg)
        norms = {head.norm_cfg.type for head in config.heads(cfg.model)}
        assert norms == {'SyncBN' if cuda else 'vpt_dense.CPUSyncBN'}
        assert cfg.optim_wrapper.type == ('' if cuda else 'vpt_dense.') + 'AmpOptimWrapper'
        assert cfg.train_dataloader.pin_memory == cuda
        assert cfg.test_dataloader.persistent_workers is False
        assert 'prefetch_factor' not in cfg.test_dataloader


def test_classes_of_an_image_folder_are_found(tmp_path):
    for split in ('train', 'val'):
        for name in ('tulip', 'rose', 'iris'):
            (tmp_path / split / name).mkdir(parents=True)
    cfg = config.load(
        str(CONFIGS / 'vpt/vit-b_deep_imagefolder.py'), {'dataset.data_root': str(tmp_path)}
    )
    assert cfg.model.head.num_classes == 3
    for name in config.DATALOADERS:
        assert cfg[name].dataset.metainfo.classes == ['iris', 'rose', 'tulip']


def test_an_option_that_contradicts_the_classes():
    leaf = str(CONFIGS / 'examples/new_segmentation_dataset.py')
    key = 'model.decode_head.num_classes'
    assert config.load(leaf, {key: 2}).model.decode_head.num_classes == 2
    with pytest.raises(UserError, match='num_classes=3 disagrees with the 2 classes'):
        config.load(leaf, {key: 3})


@pytest.mark.parametrize(
    'key, value',
    [
        ('model.backbone.with_cp', True),  # an argument that the config does not mention
        ('model.auxiliary_head.0.channels', 3),
        ('model.decode_head.loss_decode.class_weight', [1.0] * 150),  # beside loss_weight
        ('auto_scale_lr.enable', True),  # a key of the runner that the config does not have
        ('optim_wrapper.accumulative_counts', 2),
        ('dataset.reduce_zero_label', False),
    ],
)
def test_options_that_are_fine(tmp_path, key, value):
    cfg = config.load(str(write_leaf(tmp_path, tmp_path)), {key: value})
    assert tree.get(cfg, key) == value


def test_a_private_variable_and_one_that_a_leaf_reads_are_fine(tmp_path):
    extra = "\nwidth = 8\nmodel['decode_head']['channels'] = width\n"
    cfg = config.load(str(write_leaf(tmp_path, tmp_path, extra)))
    assert cfg.model.decode_head.channels == 8


@pytest.mark.parametrize('path', LEAVES)
def test_checks_before_a_run_let_every_config_pass(path):
    cfg = config.load(str(CONFIGS / path))
    preflight.check_parts(cfg, 'train')
    preflight.check_values(cfg)
    preflight.check_model(cfg.model)
    preflight.check_heads(cfg)
    preflight.check_class_weights(cfg)
    preflight.check_topk(cfg, 'train')
    preflight.check_crop(cfg)
    preflight.check_optimizer(cfg.optim_wrapper, cfg.default_scope)
    preflight.check_counting(cfg)


# --- errors and checkpoints ------------------------------------------------------------------


@pytest.mark.parametrize(
    'error, line',
    [
        (KeyError("a 'quoted' key"), "KeyError: a 'quoted' key"),
        (FileNotFoundError(2, 'No such file', 'x/y'), 'x/y: no such file'),
        (RuntimeError('first\nsecond'), 'RuntimeError: first'),
        (UserError('plain'), 'plain'),
        (CalledProcessError(3, ['python', Path('a.py')]), 'python a.py: exit code 3, see above'),
        (ValueError('class `EncoderDecoder` in mmseg/models/x.py: bad'),
         'ValueError: EncoderDecoder: bad'),
        (TypeError("A.__init__() got an unexpected keyword argument 'b'"),
         "A has no argument 'b'; look for a typo in the config"),
        (RuntimeError('CUDA out of memory. Tried to allocate 2 GiB'), 'out of memory: CUDA out of '
         'memory. Tried to allocate 2 GiB; lower train_dataloader.batch_size, or use --amp or '
         '--cfg-options model.backbone.memory=lean'),
    ],
)  # fmt: skip
def test_errors_are_reduced_to_a_line(error, line):
    assert explain(error) == line


@pytest.mark.parametrize(
    'error, code',
    [
        (UserError('x'), 2),
        (FileNotFoundError(2, 'No such file', 'x'), 2),
        (PermissionError(13, 'Permission denied', 'x'), 2),
        (KeyError('X is not in the mmseg::model registry.'), 2),
        (TypeError("A.__init__() got an unexpected keyword argument 'b'"), 2),
        (CalledProcessError(75, ['x']), 75),
        (CalledProcessError(-9, ['x']), 1),
        (RuntimeError('CUDA out of memory'), 1),
        (MemoryError(), 1),
        (TypeError('NoneType is not iterable'), 1),
        (ValueError('of the stack, while it runs'), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(75), 75),
    ],
    ids=repr,
)
def test_the_exit_code_says_whose_error_it_is(error, code, capsys):
    def tool():
        raise error

    with pytest.raises(SystemExit) as leave:
        main(tool)
    assert leave.value.code == code


@pytest.mark.parametrize('error, told', [(ImportError, False), (NameError, False), (OSError, True)])
def test_a_transform_that_is_broken_is_not_the_images_fault(error, told):
    def broken(data):
        raise error('x')

    steps = NamingPipeline([broken])
    with pytest.raises(UserError if told else error):
        steps(dict(img_path='a.png'))


def test_a_package_that_is_not_there_is_not_the_networks_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    with pytest.raises(ImportError):
        hub.pull('a/b', 'x.safetensors')
    with pytest.raises(ImportError):
        reading.read_state_dict('hf://a/b')


def test_what_a_constructor_refuses_is_the_configs_fault(mmseg_scope, capsys):
    with pytest.raises(SystemExit) as leave:
        main(lambda: MODELS.build(dict(type='SegDataPreProcessor', mean=[1, 2], std=[1, 2])))
    assert leave.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('error: SegDataPreProcessor refuses its arguments: `mean` should have 1')


def test_a_workers_error_is_reduced_to_its_message():
    try:
        raise UserError('x.png: bad')
    except UserError:
        wrapper = ExceptionWrapper(where='in DataLoader worker process 0')
    with pytest.raises(UserError) as caught:
        wrapper.reraise()
    assert explain(caught.value) == 'x.png: bad'


def test_safetensors_are_read_and_checked(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / 'w.safetensors'
    save_file({'a': torch.ones(4)}, path)
    assert checkpoints.read(str(path))['state_dict']['a'].tolist() == [1, 1, 1, 1]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match='truncated'):
        checkpoints.read(str(path))


def test_the_text_of_a_config_is_mmengines_and_never_old():
    from vpt_dense.engine import config_text

    cfg = config.load(CONFIGS / 'vpt/setr_vit-l_deep_ade20k.py')
    for rate in (0.5, 0.25):
        cfg.optim_wrapper.optimizer.lr = rate
        text = cfg.pretty_text
        assert f'lr={rate}' in text
        assert text == config_text._format(cfg) == cfg.pretty_text
    assert copy.deepcopy(cfg).pretty_text == text
    with pytest.raises(SyntaxError):  # no statement: what mmengine cannot write is not written
        Config({'no-name': 1, 'seed': 2}).pretty_text  # noqa: B018
