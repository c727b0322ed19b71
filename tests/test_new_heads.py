"""`load_from` for another task: prompts, adapters and the frozen base are taken, heads are new."""

import shutil

import pytest
import torch
from test_classification import make_image_folder
from test_classification import tiny_folder as classification
from test_deltas import leaf_of, save_base
from tool_helpers import forget_runs, run_tool, tiny_folder
from torch import nn
from utils import CONFIGS, in_scope

from vpt_dense import config, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.weights import checkpoints

#: Two classes in place of 150, and a head that is of another kind.
OTHER = {
    'classes': "\ndataset.update(classes=['wall', 'building'], palette=[[0, 0, 0], [9, 9, 9]])\n",
    'head': "\nmodel['decode_head'] = dict(type='FCNHead', _delete_=True, in_channels=32,"
            " in_index=1, channels=32, num_convs=0, concat_input=False, num_classes=150,"
            " norm_cfg=dict(type='BN'))\n"
            "model['auxiliary_head'] = None\n",
}  # fmt: skip


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A segmentation run of 150 classes: its checkpoint, the delta and the merged file of it."""
    folder = tmp_path_factory.mktemp('run')
    save_base(folder / 'base.pth')
    leaf = leaf_of(folder, 'deep', tiny_folder(folder / 'data'))
    build(leaf).train()
    checkpoint = str(folder / 'work/iter_2.pth')
    deltas.write(deltas.extract(checkpoint), str(folder / 'tuned.safetensors'))
    safe_files.write(deltas.merge(checkpoint), folder / 'whole.pth')
    return folder


def build(leaf, **options):
    from vpt_dense.engine.runner import Runner

    forget_runs()
    in_scope('mmseg')
    return Runner.from_cfg(config.load(str(leaf), options))


def other_leaf(made, tmp_path, kind: str):
    classes = 2 if kind == 'classes' else 150
    leaf = leaf_of(made, 'deep', tiny_folder(tmp_path / 'data', num_classes=classes))
    there = tmp_path / 'other.py'
    shutil.move(leaf, there)
    text = there.read_text().replace(str(made / 'work'), str(tmp_path / 'work'))
    there.write_text(text + OTHER[kind])
    return there


@pytest.mark.slow
@pytest.mark.parametrize('file', ['work/iter_2.pth', 'tuned.safetensors', 'whole.pth'])
@pytest.mark.parametrize('kind', OTHER)
def test_all_but_the_heads_is_taken(made, tmp_path, kind, file):
    """A rate of zero: what the run ends with is what it started with."""
    leaf = other_leaf(made, tmp_path, kind)
    runner = build(leaf, load_from=str(made / file), new_heads=True,
                   **{'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': None})  # fmt: skip
    runner.train()
    whole = safe_files.read(str(made / 'whole.pth'))['state_dict']
    own = runner.model.state_dict()
    taken = [name for name in own if name.startswith('backbone.')]
    assert 'backbone.prompt.tokens' in taken and 'backbone.layers.0.attn.qkv.weight' in taken
    assert all(torch.equal(own[name], whole[name]) for name in taken)
    name = 'decode_head.conv_seg.weight'
    assert own[name].shape[0] == (2 if kind == 'classes' else 150)
    assert 0 < own[name].std() < 0.03  # its own start (0.01), not that of a bare layer
    log = max((tmp_path / 'work').glob('2*/*.log')).read_text()
    assert '; new: decode_head' in log
    # The new model is tested whole, although its config asks for new heads.
    last = tmp_path / 'work/iter_2.pth'
    again = build(leaf, load_from=str(last), new_heads=True)
    again.test()
    assert torch.equal(again.model.state_dict()[name], own[name])


def test_without_the_key_the_error_names_it(made, tmp_path):
    leaf = other_leaf(made, tmp_path, 'classes')
    path = str(made / 'tuned.safetensors')
    message = r'decode_head.conv_seg.weight \(150, .* new_heads=True beside load_from$'
    with pytest.raises(UserError, match=message):
        build(leaf, load_from=path).train()
    with pytest.raises(UserError, match='use the config that it was trained with$'):
        build(leaf, load_from=path).test()
    message = 'beside load_from in place of --resume$'
    with pytest.raises(UserError, match=message):
        build(leaf, load_from=str(made / 'work/iter_2.pth'), resume=True).train()


def test_another_prompt_is_no_matter_of_heads(made, tmp_path):
    leaf = other_leaf(made, tmp_path, 'classes')
    options = {'model.backbone.prompt.num_tokens': 5, 'new_heads': True}
    with pytest.raises(UserError, match='prompt.tokens .*use the config that it was trained with$'):
        build(leaf, load_from=str(made / 'tuned.safetensors'), **options).train()


@pytest.mark.parametrize('file', ['work/iter_2.pth', 'tuned.safetensors'])
def test_pretrained_weights_are_another_thing(made, tmp_path, file):
    leaf = other_leaf(made, tmp_path, 'classes')
    start = {'model.backbone.init_cfg.checkpoint': str(made / file)}
    with pytest.raises(UserError, match='holds only what a run has tuned .* new_heads=True'):
        build(leaf, **start).train()


@pytest.mark.slow
def test_by_the_tool(capfd, made, tmp_path):
    leaf = other_leaf(made, tmp_path, 'classes')
    file = made / 'tuned.safetensors'
    done = run_tool(capfd, 'train', leaf, '--cfg-options', f'load_from={file}', 'new_heads=True')
    assert done.code == 0, done.err
    assert f'loaded {file}; new: decode_head, auxiliary_head' in done.out
    # The same command with --resume goes on with its heads.
    done = run_tool(capfd, 'train', leaf, '--resume', '--cfg-options', 'new_heads=True',
                    'train_cfg.max_iters=3')  # fmt: skip
    assert done.code == 0 and 'new: ' not in done.out
    for value, line in (('True', 'load_from names no checkpoint'), ('3', 'must be True or False')):
        done = run_tool(capfd, 'train', leaf, '--cfg-options', f'new_heads={value}')
        assert done.code == 2 and line in done.err


@pytest.mark.parametrize('width, new', [(4, ('head.',)), (5, ('neck.', 'head.'))])
def test_a_neck_is_taken_where_it_fits(width, new):
    def model(neck: int):
        parts = dict(backbone=nn.Linear(2, 3), neck=nn.Linear(3, neck), head=nn.Linear(neck, 7))
        return nn.ModuleDict(parts)

    checkpoint = dict(state_dict={f'module.{k}': v for k, v in model(4).state_dict().items()})
    target = model(width)
    assert checkpoints.leave_out_heads(target, checkpoint) == new
    kept = {'backbone'} | ({'neck'} if width == 4 else set())
    assert {name.split('.')[1] for name in checkpoint['state_dict']} == kept
    checkpoints.load_strict(target, checkpoint, 'x.pth', new)


@pytest.mark.slow
def test_classification(tmp_path):
    from vpt_dense.engine.runner import Runner

    def run(name, classes, **options):
        data = make_image_folder(tmp_path / name, classes=classes)
        forget_runs()
        in_scope('mmpretrain')
        cfg = config.load(str(CONFIGS / 'vpt/vit-b_deep_imagefolder.py'), classification(
            tmp_path / f'work_{name}', data, **options))  # fmt: skip
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model.state_dict()

    first = run('first', ('iris', 'rose', 'tulip'))
    path = str(tmp_path / 'work_first/epoch_1.pth')
    with pytest.raises(UserError, match='head.fc.weight .*new_heads=True'):
        run('second', ('iris', 'rose'), load_from=path)
    still = {'optim_wrapper.optimizer.lr': 0.0, 'param_scheduler': None}
    second = run('second', ('iris', 'rose'), load_from=path, new_heads=True, **still)
    assert second['head.fc.weight'].shape[0] == 2
    assert all(torch.equal(second[n], first[n]) for n in first if n.startswith('backbone.'))
