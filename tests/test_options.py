"""``--cfg-options``: a value is what is written, read as the config means it, in every tool."""

import re

import pytest
import torch
from mmengine import Config
from tool_helpers import run_tool, tiny_folder, write_leaf

from vpt_dense import options, tree
from vpt_dense.errors import ArgumentParser, UserError, main

HELD = dict(
    work_dir='work',
    load_from=None,
    resume=False,
    dataset=dict(type='SegFolder', data_root='data', data_prefix=dict(img_path='a')),
    optim_wrapper=dict(clip_grad=None, optimizer=dict(lr=0.1), loss_scale='dynamic'),
    model=dict(
        backbone=dict(
            arch='b',
            init_cfg=None,
            img_size=(224, 224),
            out_indices=[5, 11],
            trainable=[r'^prompt\.'],
            prompt=dict(type='T', num_tokens='classes'),
        ),
        decode_head=[dict(channels=8, kernel_size=(3, 3)), None],
    ),
)


@pytest.mark.parametrize(
    'option, value',
    [
        # text stays text
        ('work_dir=2024', '2024'),
        ('work_dir=runs/1e-3', 'runs/1e-3'),
        ('work_dir=[a]', '[a]'),
        ('work_dir=/data/my run, 100% {{new}}', '/data/my run, 100% {{new}}'),
        ("work_dir='my run'", 'my run'),
        ('work_dir=True', 'True'),
        ('load_from=/big disk/a,b.pth', '/big disk/a,b.pth'),  # None in the config
        ('load_from=None', None),
        ('load_from=a=b.pth', 'a=b.pth'),
        ('dataset.data_root=/data/a,b', '/data/a,b'),
        ('dataset.data_root=007', '007'),
        ('dataset.ann_file=2024', '2024'),  # not in the config
        ('dataset.data_prefix.img_path=2024', '2024'),
        ("dataset.data_prefix={'img_path': 2024}", dict(img_path='2024')),
        ('train_dataloader.dataset.data_root=1', '1'),
        ('model.backbone.init_cfg.checkpoint=1', '1'),
        ('model.backbone.arch=1', '1'),
        ('model.backbone.arch=None', None),
        # lists stay lists, of the same kind
        ('dataset.classes=[1,2,sky blue]', ['1', '2', 'sky blue']),
        ('dataset.classes=1,2', ['1', '2']),
        ('dataset.classes=road', ['road']),
        ('model.backbone.trainable=bias', ['bias']),
        ('model.backbone.trainable=[bias$,\\.1\\.]', ['bias$', '\\.1\\.']),
        ('model.backbone.trainable=["(a|b),c", \'[d]\']', ['(a|b),c', '[d]']),
        ("model.backbone.trainable=[r'^prompt\\.']", ['^prompt\\.']),
        ('model.backbone.trainable=^(a|b)[0-9]{1,2}$', ['^(a|b)[0-9]{1,2}$']),
        ('model.backbone.trainable=[]', []),
        ('model.backbone.out_indices=[3,7]', [3, 7]),
        ('model.backbone.out_indices=3, 7', [3, 7]),
        ('model.backbone.img_size=(64, 32)', (64, 32)),
        ('model.backbone.img_size=64', 64),
        ('model.backbone.new=a,b', ['a', 'b']),
        ('model.backbone.new=[(1,2),[a b, "3"]]', [(1, 2), ['a b', '3']]),
        # numbers, switches, words
        ('optim_wrapper.optimizer.lr=1e-3', 1e-3),
        ('optim_wrapper.optimizer.lr=-5', -5),
        ('optim_wrapper.loss_scale=512.', 512.0),
        ('model.backbone.prompt.num_tokens=50', 50),
        ('model.backbone.prompt.num_tokens=classes', 'classes'),
        ('resume=true', True),
        ('resume=None', None),
        ('model.backbone.new=none', 'none'),  # as in reduction='none'
        # dicts: as in Python, JSON or YAML
        ('model.backbone.prompt={"num_tokens": 5, "x": [1, {"y": null}], "z": true}',
         dict(type='T', num_tokens=5, x=[1, dict(y=None)], z=True)),
        ("model.backbone.prompt={'type': 'U', num_tokens: 1e2}", dict(type='U', num_tokens=100.0)),
        ('model.backbone.prompt={_delete_: True, type: U}', dict(type='U')),
        ('model.backbone.prompt={}', dict(type='T', num_tokens='classes')),
        ("model.backbone.arch={'embed_dims':32}", dict(embed_dims=32)),
        ('model.backbone.init_cfg={type: Pretrained, checkpoint: https://a.b/c}',
         dict(type='Pretrained', checkpoint='https://a.b/c')),
        # below None, and inside lists and tuples
        ('optim_wrapper.clip_grad.max_norm=1.0', 1.0),
        ('optim_wrapper.clip_grad={max_norm: 1.0}', dict(max_norm=1.0)),
        ('model.decode_head.1.channels=4', 4),
        ('model.decode_head.0.kernel_size.1=5', 5),
        ('model.backbone.out_indices.0=2', 2),
    ],
)  # fmt: skip
def test_a_value_is_read_as_the_config_means_it(option, value):
    cfg = Config(HELD)
    given = options.read(cfg, [option])
    options.place(cfg, given)
    (key,) = given
    found = tree.get(cfg, key)
    assert found == value and type(found) in (type(value), type(Config(dict(a={})).a))


def test_placing_keeps_the_neighbours():
    shared = [dict(type='A', x=1), dict(type='B')]
    cfg = Config(dict(one=dict(pipeline=shared, seen=None), two=dict(pipeline=shared)))
    cfg.two.pipeline = cfg.one.pipeline
    options.place(cfg, {'one.pipeline.0.x': 2, 'one.seen.by.me': 3})
    assert cfg.one.to_dict() == dict(
        pipeline=[dict(type='A', x=2), dict(type='B')], seen=dict(by=dict(me=3)))
    assert cfg.two.pipeline[0].x == 1
    options.place(cfg, {'one': dict(seen=dict(by=dict(_delete_=True, you=4)), pipeline=None)})
    assert cfg.one.to_dict() == dict(pipeline=None, seen=dict(by=dict(you=4)))


@pytest.mark.parametrize(
    'option, told',
    [
        ('resume', 'there is no ='),
        ('=3', 'there is no key'),
        ('model.backbone.out_indices=[0,9', 'lacks a closing bracket'),
        ('model.backbone.out_indices=0,9]', 'a bracket too many'),
        ('model.backbone.prompt={num_tokens}', 'lacks a closing bracket'),
        ('optim_wrapper.optimizer.lr=', 'there is no value'),
        ('resume=no', "neither True nor False"),
    ],
)
def test_what_cannot_be_read_is_told(option, told):
    with pytest.raises(UserError, match=f'^--cfg-options {re.escape(option)}: .*{told}'):
        options.read(Config(HELD), [option])


def test_a_training_with_options(capfd, tmp_path):
    """``%`` and spaces in the work dir, ``clip_grad`` where the config has None."""
    leaf = write_leaf(tmp_path, tiny_folder(tmp_path / 'my data, 100%'))
    work = tmp_path / '50%s, my run'
    outcome = run_tool(
        capfd, 'train', leaf, '--cfg-options', f'work_dir={work}',
        'optim_wrapper.clip_grad.max_norm=1e-12', 'optim_wrapper.optimizer.weight_decay=0',
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    first, second = (
        torch.load(work / f'iter_{i}.pth', weights_only=False)['state_dict'] for i in (1, 2)
    )
    moved = max((first[k] - second[k]).abs().max() for k in first if k.startswith('decode_head')
                and 'running' not in k and 'tracked' not in k)
    assert moved < 1e-9  # without clipping 0.005


@pytest.mark.parametrize(
    'tool, arguments',
    [
        ('train', []),
        ('test', ['iter_1.pth']),
        ('print_config', []),
        ('count_params', []),
        ('check_dataset', []),
        ('browse_dataset', []),
        ('compare', ['--methods', 'x']),
    ],
)
@pytest.mark.parametrize(
    'option, told',
    [
        ('model.backbone.out_indices=[0,9', 'KEY=VALUE was expected.*lacks a closing bracket'),
        ('model.backbone.prompt.num_token=3', "did you mean 'num_tokens'"),
        ('model', 'KEY=VALUE was expected.*there is no ='),
    ],
)
def test_every_tool_reads_options_alike(capfd, tmp_path, tool, arguments, option, told):
    (tmp_path / 'data').mkdir()
    leaf = write_leaf(tmp_path, tmp_path / 'data', name='leaf_x')
    source = str(leaf).replace('_x.py', '_{method}.py') if tool == 'compare' else leaf
    outcome = run_tool(capfd, tool, source, *arguments, '--cfg-options', option)
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2
    assert re.match(f'error: .*--cfg-options {re.escape(option)}: .*{told}', line) or (
        f'--cfg-options {option.partition("=")[0]}' in line and re.search(told, line)), line


# --- --traceback -----------------------------------------------------------------------------

@pytest.mark.parametrize(
    'arguments, asked',
    [
        (['x', '--traceback'], True),
        (['--traceback', 'x'], True),
        (['x', '--trace'], True),
        (['x', '--name=--traceback'], False),
        (['x'], False),
        (['--', '--traceback'], False),
        (['x', 'sub', '--traceback'], True),
        (['--traceback', 'x', 'sub'], True),
    ],
)
def test_the_parser_says_whether_a_traceback_is_wanted(monkeypatch, capsys, arguments, asked):
    def tool():
        parser = ArgumentParser()
        parser.add_argument('x')
        parser.add_argument('--name')
        if 'sub' in arguments:
            parser.add_subparsers(dest='command').add_parser('sub')
        assert not hasattr(parser.parse_args(arguments), 'traceback')
        raise UserError('no')

    monkeypatch.setattr('sys.argv', ['tool', *arguments])
    with pytest.raises(SystemExit):
        main(tool)
    *trace, last = capsys.readouterr().err.splitlines()
    assert last == 'error: no' and bool(trace) == asked


def test_before_the_command_line_is_read(monkeypatch, capsys):
    monkeypatch.setattr('sys.argv', ['tool', '--traceback'])
    with pytest.raises(SystemExit):
        main(lambda: [][0])
    assert 'Traceback' in capsys.readouterr().err
