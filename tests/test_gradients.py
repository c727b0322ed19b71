"""What trains gets a gradient, recomputed or not, or is named."""

import logging
import types

import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from processes import run_two
from test_classification import VPT, make_image_folder, tiny_folder
from tool_helpers import run_tool, write_leaf
from tool_helpers import tiny_folder as tiny_masks
from torch import nn

from vpt_dense import config, recomputing, run_setup
from vpt_dense.engine.runner import Runner
from vpt_dense.hooks import GradientHook
from vpt_dense.weights import checkpoints


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    return tiny_masks(tmp_path_factory.mktemp('masks'))


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    return make_image_folder(tmp_path_factory.mktemp('flowers'))


def trained(folder, task, masks, flowers, capfd, **changes):
    """Weights after two iterations, and what was printed."""
    if task == 'segmentation':
        leaf = write_leaf(folder, masks, ''.join(f'\n{k} = {v!r}' for k, v in changes.items()))
        outcome = run_tool(capfd, 'train', leaf)
        assert outcome.code == 0, outcome.err
        return checkpoints.read(folder / 'work/iter_2.pth')['state_dict'], outcome.out
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), tiny_folder(folder, flowers))
    cfg.update(changes)
    runner = run_setup.start(cfg, 'train', None)
    runner.train()
    return runner.model.state_dict(), capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(('task', 'modules'), [
    ('segmentation', ['backbone']), ('segmentation', ['backbone.layers', 'decode_head']),
    ('classification', 'backbone'),
])
def test_recomputed_parts_train_as_others(tmp_path, task, modules, masks, flowers, capfd):
    plain, told = trained(tmp_path / 'a', task, masks, flowers, capfd)
    again, told_again = trained(
        tmp_path / 'b', task, masks, flowers, capfd, activation_checkpointing=modules)
    assert 'backbone.prompt.tokens' in plain and 'got no gradient' not in told + told_again
    assert plain.keys() == again.keys()
    torch.testing.assert_close(again, plain, rtol=1e-6, atol=1e-7)


@pytest.fixture(autouse=True)
def _folders(tmp_path):
    for name in 'ab':
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(('value', 'told'), [
    (['backbone.layer'], r"no module 'backbone.layer'; did you mean 'backbone.layers'"),
    ([3], r'must be a list of names of modules, found \[3\]'),
])
def test_what_is_no_module_is_refused(tmp_path, value, told, masks, capfd):
    leaf = write_leaf(tmp_path, masks, f'\nactivation_checkpointing = {value!r}')
    outcome = run_tool(capfd, 'train', leaf)
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert outcome.err.startswith('error: activation_checkpointing') and told.replace(
        '\\', '') in outcome.err


def test_fewer_tensors_are_kept():
    """Every part of a list is recomputed on its own."""
    kept = []
    for names in ([], ['0']):
        model = nn.Sequential(nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Tanh())]))
        recomputing.turn_on(model, names)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            model[0][0](torch.ones(1, 4)).sum()
        kept.append(len(saved))
    assert kept[1] < kept[0]


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_what_trains_without_a_gradient_is_named(tmp_path, task, masks, flowers, capfd):
    """All that lies behind the last block that is read."""
    if task == 'segmentation':
        leaf = write_leaf(tmp_path, masks, (
            "\nmodel['backbone'].update(out_indices=[0], trainable=['.*'], final_norm=True)"
            "\nmodel['decode_head'].update(in_index=0)"
            "\nmodel['auxiliary_head'] = []"))
        out = run_tool(capfd, 'train', leaf).out
    else:
        cfg = config.load(
            str(VPT / 'vit-b_full_imagefolder.py'),
            {**tiny_folder(tmp_path, flowers), 'model.backbone.out_indices': 0})
        run_setup.start(cfg, 'train', None).train()
        out = capfd.readouterr().out
    (line,) = [line for line in out.splitlines() if 'got no gradient' in line]
    layers = 2 if task == 'segmentation' else 4
    parts = ', '.join(f'backbone.layers.{i}.*' for i in range(1, layers))
    assert f': {parts}, backbone.ln1.*; nothing of them' in line
    assert 'layers.0' not in line and 'head' not in line


class Toy(BaseModel):
    """Parameters that reach the loss always, in odd iterations, in even ones, and never."""

    def __init__(self):
        super().__init__()
        self.always, self.odd, self.even, self.never = (
            nn.Parameter(torch.ones(1)) for _ in range(4))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.unread = nn.Linear(1, 1)

    def forward(self, inputs, mode='loss'):
        odd = inputs.flatten()[0] % 2
        return dict(loss=(self.always * self.frozen + (self.odd if odd else self.even)).sum())


NAMED = {1: 'even, never, unread.*', 2: 'never, unread.*', 3: 'never, unread.*'}


@pytest.mark.parametrize('counts', NAMED)
def test_a_step_of_several_iterations_counts_as_one(tmp_path, counts):
    runner = Runner(
        Toy(), str(tmp_path), dict(
            dataset=[torch.tensor([i]) for i in range(1, 7)], batch_size=1, num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=lambda batch: dict(inputs=torch.stack(batch))),
        train_cfg=dict(by_epoch=False, max_iters=6), experiment_name=f'counts-{counts}',
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=counts))
    found = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())
    runner.logger.addHandler(handler)
    runner.train()
    (line,) = [line for line in found if 'got no gradient' in line]
    assert f': {NAMED[counts]}; ' in line
    assert not any(p._backward_hooks for p in runner.model.parameters())


def look(rank, found):
    from vpt_dense.engine.distributed import set_up_cpu

    set_up_cpu('pytorch')
    model = MMDistributedDataParallel(Toy(), device_ids=None, find_unused_parameters=True)
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    lines = []
    logger = types.SimpleNamespace(warning=lines.append)
    runner = types.SimpleNamespace(model=model, optim_wrapper=wrapper, logger=logger)
    hook = GradientHook()
    hook.before_train(runner)
    for i in range(2):  # odd in one process, even in the other
        model.train_step(dict(inputs=torch.tensor([rank])), wrapper)
        hook.after_train_iter(runner, i)
    found.append(lines)


def test_what_one_of_several_processes_reads_is_read():
    for lines in run_two(look):
        (line,) = lines
        assert ': never, unread.*; ' in line
