"""Resuming with another config: what is told, what holds, what is refused."""

import shutil

import pytest
import torch
from resume_runs import IMAGES, differences, final, settings, train
from tool_helpers import run_tool, write_leaf
from utils import make_ade_folder

from vpt_dense import safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.engine import resuming
from vpt_dense.errors import UserError

STOP = 4
LORA = [dict(type='vpt_dense.LoRA', rank=2, alpha=4)]
#: A run by iterations or by epochs; with adapters.
RUNS = {
    'iter': ('iter', {}),
    'epoch': ('epoch', {}),
    'lora': ('iter', {
        'model.backbone.prompt': None, 'model.backbone.adapters': LORA,
        'model.backbone.trainable': [r'^adapters\.'],
    }),
    'bias': ('iter', {'model.backbone.trainable': [r'^prompt\.', r'layers\.0\.ln1\.bias$']}),
}  # fmt: skip


def last_log(folder):
    """What the last run in a folder has logged; two that start in one second share a file."""
    return max(folder.glob('2*/*.log')).read_text().rpartition('System environment:')[2]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_ade_folder(tmp_path_factory.mktemp('data'), num_images=IMAGES, size=(48, 64))


@pytest.fixture(scope='module')
def stopped(tmp_path_factory, data):
    """Folders of runs that were stopped after four of eight iterations, made when asked for."""
    made = {}

    def make(name: str):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            loop, options = RUNS[name]
            train(settings(made[name], data, loop, **options), STOP)
        return made[name]

    return make


def resume(
    stopped, tmp_path, data, run: str, last: int | None = 5, change=None, **options
) -> list[str]:
    """Go on in a copy until iteration ``last``; return the lines about what has changed."""
    folder = tmp_path / 'again'
    shutil.copytree(stopped(run), folder)
    if change:
        content = safe_files.read(str(folder / f'iter_{STOP}.pth'))
        change(content)
        safe_files.write(content, folder / f'iter_{STOP}.pth')
    loop, same = RUNS[run]
    cfg = settings(folder, data, loop, **{**same, **options})
    train(cfg, last, resume=str(folder / f'iter_{STOP}.pth'))
    log = last_log(folder)
    return [line.partition('resuming: ')[2] for line in log.splitlines() if 'resuming: ' in line]


def forget_names(content: dict) -> None:
    """Make of a checkpoint one that was written before there were names in it."""
    del content['optimizer_of'], content['meta']['run_size']


def groups(folder, iteration: int = 5) -> list[dict]:
    state = safe_files.read(str(folder / f'iter_{iteration}.pth'))
    return [dict(group, schedules=state['param_schedulers']) for group in
            state['optimizer']['param_groups']]  # fmt: skip


@pytest.mark.parametrize('run', ['iter', 'epoch', pytest.param('lora', marks=pytest.mark.slow)])
def test_nothing_is_told_where_nothing_has_changed(stopped, tmp_path, data, run):
    assert resume(stopped, tmp_path, data, run) == []


#: Options, and the beginnings of the lines that tell of them.
CHANGES = {
    'longer': (
        {'train_cfg.max_iters': 16, 'param_scheduler.0.end': 16},
        ['train_cfg.max_iters: 8 in the run of the checkpoint, 16 now; the new value holds',
         'param_scheduler.0.end: 160000 in the run of the checkpoint, 16 now; the schedule of',
         'lr goes on by the schedule of this config, at iteration 4: 0.00'],
    ),
    'rate': (
        {'optim_wrapper.optimizer.lr': 0.5},
        ['optim_wrapper.optimizer.lr: 0.001 in the run of the checkpoint, 0.5 now; the schedule',
         'lr goes on by the schedule of this config, at iteration 4: 0.5, 5'],
    ),
    'decay': (
        {'optim_wrapper.optimizer.weight_decay': 0.25, 'optim_wrapper.optimizer.momentum': 0.8},
        ['optim_wrapper.optimizer.momentum: 0.9 in the run of the checkpoint, 0.8 now; the new',
         'optim_wrapper.optimizer.weight_decay: 0.0 in the run of the checkpoint, 0.25 now; the'],
    ),
    'one group': (
        {'optim_wrapper.paramwise_cfg': None},
        ['optim_wrapper.paramwise_cfg: 1 settings in the run of the checkpoint, nothing now; the',
         'lr goes on by the schedule of this config, at iteration 4: 0.001'],
    ),
    'batch': (
        {'train_dataloader.batch_size': 1, 'optim_wrapper.accumulative_counts': 3},
        ['images of an optimizer step: 2 in the run of the checkpoint, 3 now; iterations are',
         'optim_wrapper.accumulative_counts: nothing in the run of the checkpoint, 3 now; the new',
         'train_dataloader.batch_size: 2 in the run of the checkpoint, 1 now; the new value'],
    ),
    'dropout': (
        {'model.backbone.prompt.dropout': 0.5, 'model.decode_head.dropout_ratio': 0.3},
        ['model.backbone.prompt.dropout: 0.1 in the run of the checkpoint, 0.5 now; the new',
         'model.decode_head.dropout_ratio: 0 in the run of the checkpoint, 0.3 now; the new'],
    ),
    'not the result': (
        {'train_dataloader.num_workers': 1, 'default_hooks.logger.interval': 3}, [],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGES)
def test_what_this_config_says_holds(stopped, tmp_path, data, name):
    """The optimizer ends with the settings of a run that had this config from the start."""
    options, wanted = CHANGES[name]
    lines = resume(stopped, tmp_path, data, 'iter', **options)
    assert len(lines) == len(wanted)
    for line, beginning in zip(lines, wanted, strict=True):
        assert line.startswith(beginning)
    train(settings(tmp_path / 'whole', data, **options), 5)
    assert differences(groups(tmp_path / 'again'), groups(tmp_path / 'whole')) == []


def test_the_momentum_goes_on_where_groups_change(stopped, tmp_path, data, monkeypatch):
    """By names: with one group for all, another number belongs to each."""
    found = []

    def place(runner, checkpoint, original=resuming.place):
        state = runner.optim_wrapper.optimizer.state
        found.append({name: state[p]['momentum_buffer'].clone()
                      for name, p in runner.model.named_parameters() if p in state})  # fmt: skip
        original(runner, checkpoint)

    monkeypatch.setattr(resuming, 'place', place)
    resume(stopped, tmp_path, data, 'iter', **{'optim_wrapper.paramwise_cfg': None})
    first, last = (
        safe_files.read(str(tmp_path / 'again' / f'iter_{i}.pth')) for i in (STOP, STOP + 1))
    numbers, others = (content['optimizer_of']['']['names'] for content in (first, last))
    assert numbers != others  # parameters that are frozen are counted in one group only
    assert set(numbers.values()) == set(others.values()) == found[0].keys()
    for i, state in first['optimizer']['state'].items():
        assert torch.equal(found[0][numbers[i]], state['momentum_buffer'])


@pytest.mark.slow
def test_a_method_s_scale(stopped, tmp_path, data):
    lines = resume(stopped, tmp_path, data, 'lora', **{
        'model.backbone.adapters': [dict(LORA[0], alpha=32)]})  # fmt: skip
    assert lines == ['model.backbone.adapters.0.alpha: 4 in the run of the checkpoint, 32 now; '
                     'the new value holds']  # fmt: skip


def test_other_processes(stopped, tmp_path, data):
    lines = resume(stopped, tmp_path, data, 'iter',
                   change=lambda content: content['meta']['run_size'].update(processes=8))
    assert lines == [
        'processes: 8 in the run of the checkpoint, 1 now',
        'images of an optimizer step: 16 in the run of the checkpoint, 2 now; iterations are '
        'counted on',
    ]


def test_other_data(stopped, tmp_path, data):
    more = make_ade_folder(tmp_path / 'more', num_images=IMAGES + 2, size=(48, 64))
    lines = resume(stopped, tmp_path, data, 'iter', **{'dataset.data_root': str(more)})
    assert lines[0] == 'training images: 7 in the run of the checkpoint, 9 now'
    assert any(line.startswith('train_dataloader.dataset.data_root: ') for line in lines[1:])


# --- epochs ----------------------------------------------------------------------------------


def test_epochs_of_another_length(stopped, tmp_path, data):
    """One epoch was done; what comes is the second, whole, not none of it."""
    lines = resume(stopped, tmp_path, data, 'epoch', None, **{'train_dataloader.batch_size': 4})
    assert ('an epoch had 4 iterations and has 2 now: the run goes on with epoch 2; iterations are '
            'counted from 2') in lines  # fmt: skip
    log = last_log(tmp_path / 'again')
    assert 'Epoch(train) [2][1/2]' in log and 'Epoch(train) [2][2/2]' in log
    assert 'Epoch(train) [1][' not in log


@pytest.mark.slow
def test_in_the_middle_of_an_epoch(data, tmp_path):
    folder = tmp_path / 'run'
    train(settings(folder, data, 'epoch'), 5)
    other = {'train_dataloader.batch_size': 4}
    train(settings(folder, data, 'epoch', **other), resume=str(folder / 'iter_5.pth'))
    log = last_log(folder)
    assert 'goes on with epoch 2, which begins again; iterations are counted from 2' in log
    assert 'Epoch(train) [2][1/2]' in log and 'Epoch(train) [1][' not in log


def test_iterations_become_epochs(stopped, tmp_path, data):
    folder = tmp_path / 'again'
    shutil.copytree(stopped('iter'), folder)
    train(settings(folder, data, 'epoch'), resume=str(folder / 'iter_4.pth'))
    log = last_log(folder)
    assert 'train_cfg.type: ' in log and 'lr goes on by the schedule of this config' in log
    assert 'Epoch(train) [2][1/4]' in log and 'Epoch(train) [1][' not in log


def test_epochs_become_iterations(stopped, tmp_path, data):
    folder = tmp_path / 'again'
    shutil.copytree(stopped('epoch'), folder)
    train(settings(folder, data, 'iter'), 6, resume=str(folder / 'iter_4.pth'))
    log = last_log(folder)
    assert 'Iter(train) [5/8]' in log and 'Iter(train) [4/8]' not in log


# --- what is refused -------------------------------------------------------------------------

#: The run, options, what the error says.
REFUSED = {
    'biases': (
        'iter', {'model.backbone.trainable': [r'^prompt\.', r'attn\.qkv\.bias$']},
        r'did not train backbone.layers.0.attn.qkv.bias, backbone.layers.1.attn.qkv.bias, unlike '
        r'this one \(model.backbone.trainable was \[.*load_from',
    ),
    # Of the same shape, at the same numbers of the optimizer's state.
    'same shapes': (
        'bias', {'model.backbone.trainable': [r'^prompt\.', r'layers\.1\.ln1\.bias$']},
        r'trained backbone.layers.0.ln1.bias and did not train backbone.layers.1.ln1.bias, unlike',
    ),
    'optimizer': (
        'iter', {'optim_wrapper.optimizer': dict(type='AdamW', lr=0.001, _delete_=True)},
        r'optim_wrapper.optimizer.type is AdamW, but .* is of SGD',
    ),
    'shorter': (
        'iter', {'train_cfg.max_iters': 3},
        r'train_cfg.max_iters is 3, but the checkpoint has trained 4 already',
    ),
}  # fmt: skip


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize('name', REFUSED)
def test_refused(stopped, tmp_path, data, name, old):
    run, options, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        resume(stopped, tmp_path, data, run, change=forget_names if old else None, **options)


@pytest.mark.parametrize('run', ['iter', *(
    pytest.param(run, marks=pytest.mark.slow) for run in ('epoch', 'lora', 'bias'))])
def test_an_old_checkpoint_goes_on(stopped, tmp_path, data, run):
    """Without names, by its config; to the same bits."""
    assert resume(stopped, tmp_path, data, run, None, forget_names) == []
    loop, options = RUNS[run]
    train(settings(tmp_path / 'whole', data, loop, **options))
    assert differences(final(tmp_path / 'whole'), final(tmp_path / 'again')) == []


def test_an_old_checkpoint_that_cannot_tell(stopped, tmp_path, data):
    def forget(content):
        forget_names(content)
        del content['meta']['cfg']

    with pytest.raises(UserError, match='does not say which parameters .*load_from'):
        resume(stopped, tmp_path, data, 'iter', change=forget)


@pytest.mark.parametrize('kind', ['delta', 'merged'])
def test_a_file_without_a_run(capfd, stopped, tmp_path, data, kind):
    path = str(stopped('iter') / 'iter_4.pth')
    if kind == 'delta':
        content, file = deltas.read(path), tmp_path / 'tuned.safetensors'
        content['meta'] = dict(format=deltas.FORMAT, cfg=content['meta']['cfg'])
        deltas.write(content, str(file))
    else:
        content, file = deltas.merge(path), tmp_path / 'whole.pth'
        safe_files.write(content, file)
    leaf = write_leaf(tmp_path, data)
    outcome = run_tool(capfd, 'train', leaf, '--resume', file)
    assert outcome.code == 2
    line = outcome.err.strip().splitlines()[-1]
    assert f'{file} holds weights and no state of an optimizer' in line and 'load_from' in line


def test_a_checkpoint_without_optimizer(stopped, tmp_path, data):
    """As the best ones are: the schedule goes on, and it is said that momentum does not."""
    lines = resume(stopped, tmp_path, data, 'iter', change=lambda c: c.pop('optimizer'))
    assert lines == []
    log = last_log(tmp_path / 'again')
    assert 'holds no state of the optimizer (momentum and the like): that starts anew' in log
    assert torch.isclose(torch.tensor(groups(tmp_path / 'again')[0]['lr']), torch.tensor(1e-3),
                         rtol=1e-3)  # fmt: skip
