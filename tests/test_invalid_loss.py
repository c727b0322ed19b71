"""A loss that is not finite: no weights are lost to it."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from processes import run_two
from resume_runs import IMAGES, differences, settings, train
from utils import make_ade_folder

from vpt_dense import safe_files
from vpt_dense.errors import UserError
from vpt_dense.hooks import InvalidLossHook


@HOOKS.register_module('PoisonForTests')
class Poison(Hook):
    """Makes the images of some iterations NaN, in one process; the loss becomes NaN by itself."""

    def __init__(self, iterations, rank=0) -> None:
        self.iterations, self.rank = iterations, rank

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Replace the images before the step."""
        if runner.iter + 1 in self.iterations and runner.rank == self.rank:
            images = data_batch['inputs']
            data_batch['inputs'] = [torch.full_like(image, torch.nan, dtype=torch.float32)
                                    for image in images]  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_ade_folder(tmp_path_factory.mktemp('data'), num_images=IMAGES, size=(48, 64))


def run(folder, data, poison: dict, guard: dict, **options) -> None:
    hooks = [dict(type='vpt_dense.ReportHook'), dict(type='vpt_dense.InvalidLossHook', **guard)]
    hooks.append(dict(type='PoisonForTests', **poison))
    train(settings(folder, data, custom_hooks=hooks, **options))


def saved(folder) -> list[str]:
    return sorted(path.name for path in folder.glob('*.pth'))


def weights(folder, iteration: int) -> dict:
    return safe_files.read(str(folder / f'iter_{iteration}.pth'))['state_dict']


def test_stops_at_the_first_before_anything_is_saved(tmp_path, data):
    """It is noticed at the next save, long before the interval, and named by its own iteration."""
    with pytest.raises(UserError, match=(
        r'^the loss is nan at iteration 5 \(learning rate 0\.001, images training/\d+\.jpg, '
        r'training/\d+\.jpg\); the last good checkpoint is .*iter_4\.pth; lower optim_wrapper')):
        run(tmp_path / 'a', data, dict(iterations=[5]), dict(interval=50),
            **{'default_hooks.checkpoint.interval': 2, 'train_cfg.val_interval': 100})  # fmt: skip
    assert saved(tmp_path / 'a') == ['iter_2.pth', 'iter_4.pth']
    for value in weights(tmp_path / 'a', 4).values():
        assert not value.is_floating_point() or value.isfinite().all()


def test_stops_before_a_validation(tmp_path, data):
    with pytest.raises(UserError, match='^the loss is nan at iteration 2 .*no checkpoint has been'):
        run(tmp_path / 'a', data, dict(iterations=[2]), dict(interval=50),
            **{'default_hooks.checkpoint.interval': 100})  # fmt: skip
    assert not (tmp_path / 'a/evaluations.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize('counts', [1, 2])
def test_a_skipped_step_changes_nothing(tmp_path, data, counts):
    work = tmp_path / 'a'
    run(work, data, dict(iterations=[4, 6]), dict(action='skip'), **{
        'optim_wrapper.accumulative_counts': counts,
        'default_hooks.checkpoint.max_keep_ckpts': -1})  # fmt: skip
    for iteration in range(2, 9):
        found = differences(weights(work, iteration - 1), weights(work, iteration))
        stepped = iteration % counts == 0 and iteration not in (4, 6)
        # Without a step, a good iteration of an accumulating run still counts in batch-norm.
        trained = [name for name in found if 'running' not in name and 'tracked' not in name]
        assert bool(trained) == stepped, iteration
        assert bool(found) == (iteration not in (4, 6)), iteration
    summary = json.loads((work / 'summary.json').read_text())
    assert summary['skipped_steps'] == 2


def test_skips_are_bounded(tmp_path, data):
    with pytest.raises(UserError, match=(
        '^the loss is nan at iteration 6 .*2 steps have been left out before, as many as '
        r'InvalidLossHook\.max_skips allows; the last good checkpoint is .*iter_5\.pth')):
        run(tmp_path / 'a', data, dict(iterations=[3, 4, 6, 7]), dict(action='skip', max_skips=2))
    assert 'iter_6.pth' not in saved(tmp_path / 'a')


@pytest.mark.parametrize(('arguments', 'told'), [
    (dict(action='go on'), r"action must be 'stop' or 'skip', found 'go on'"),
    (dict(interval=0), 'interval must be an integer of at least 1, found 0'),
    (dict(max_skips=-1), 'max_skips must be an integer of at least 0, found -1'),
])  # fmt: skip
def test_wrong_arguments(arguments, told):
    with pytest.raises(ValueError, match=told):
        InvalidLossHook(**arguments)


def in_process(rank: int, folder, data, found: list) -> None:
    poison = dict(iterations=[4], rank=1)
    often = {'default_hooks.checkpoint.max_keep_ckpts': -1}
    run(folder / 'skip', data, poison, dict(action='skip'), **often)
    never = {'default_hooks.checkpoint.interval': 100, 'train_cfg.val_interval': 100}
    try:
        run(folder / 'stop', data, poison, dict(interval=5), **never)
    except UserError as error:
        found.append(str(error))


@pytest.mark.slow
def test_two_processes_agree(tmp_path, data):
    """Only the second process meets the bad batch."""
    found = run_two(in_process, tmp_path, data)
    assert len(found) == 2
    assert found[0] == found[1] and found[0].startswith('the loss is nan at iteration 4 (')
    work = tmp_path / 'skip'
    same = [differences(weights(work, i - 1), weights(work, i)) == [] for i in range(2, 9)]
    assert same == [False, False, True, False, False, False, False]
    assert json.loads((work / 'summary.json').read_text())['skipped_steps'] == 1
