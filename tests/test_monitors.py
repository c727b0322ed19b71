"""What a run waits for must exist: metrics that are followed, batches, an end of an epoch."""

import math
import re

import pytest
from resume_runs import differences
from test_checkpoints import SCORES, _quick, build  # noqa: F401  a fixture
from test_classification import VPT, flowers, tiny_folder  # noqa: F401  a fixture
from tool_helpers import forget_runs, run_tool, write_leaf
from tool_helpers import tiny_folder as segmentation_folder

from vpt_dense import config, safe_files
from vpt_dense.errors import UserError

PLATEAU = dict(type='ReduceOnPlateauLR', factor=0.5, patience=0, rule='greater', threshold=0.0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return segmentation_folder(tmp_path_factory.mktemp('data'))


#: More of the config -> the error.
REFUSED = {
    "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIou')]":
        r"EarlyStoppingHook\(monitor='mIou'\): the validation gives no 'mIou', but aAcc, mIoU, "
        r"mAcc; did you mean 'mIoU'\?",
    "custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1')]":
        r"gives no 'accuracy/top1', but aAcc, mIoU, mAcc",
    "default_hooks['checkpoint'].update(save_best='mDice')":
        r"save_best='mDice' of the CheckpointHook: the validation gives no 'mDice'",
    "param_scheduler = [dict(type='ReduceOnPlateauLR')]":
        r"ReduceOnPlateau\w+\(monitor='loss'\): the validation gives no 'loss'",
    "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mIoU')]\n"
    'val_cfg = val_dataloader = val_evaluator = None':
        r"EarlyStoppingHook\(monitor='mIoU'\): this run does not validate",
    "param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater', end=9)]":
        r'param_scheduler.0.by_epoch is True but train_cfg counts iterations',
    "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)\n"
    "log_processor = dict(by_epoch=True)\nparam_scheduler = None":
        r'an epoch of the InfiniteSampler never ends, but train_cfg counts epochs',
    "train_dataloader.update(batch_size=3, drop_last=True, sampler=dict("
    "type='DefaultSampler', shuffle=True))":
        r'train_dataloader.batch_size is 3, but a process has 2 images \(2 in all, 1 processes\)',
    "train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=1)\n"
    "log_processor = dict(by_epoch=True)\nparam_scheduler = None\n"
    "train_dataloader.update(batch_size=3, drop_last=True, sampler=dict("
    "type='DefaultSampler', shuffle=True))":
        r'train_dataloader.batch_size is 3, .*nothing would train',
}  # fmt: skip


@pytest.mark.parametrize('extra', REFUSED)
def test_refused_before_training(capfd, tmp_path, data, extra):
    done = run_tool(capfd, 'train', write_leaf(tmp_path, data, f'\n{extra}\n'))
    assert done.code == 2
    assert re.search(f'^error: .*{REFUSED[extra]}', done.err, re.M)
    assert 'Iter(train)' not in done.out and not list((tmp_path / 'work').glob('*.pth'))


def test_a_full_batch_of_an_endless_sampler_trains(capfd, tmp_path, data):
    extra = '\ntrain_dataloader.update(batch_size=3, drop_last=True)\n'
    done = run_tool(capfd, 'train', write_leaf(tmp_path, data, extra))
    assert done.code == 0 and 'Iter(train) [2/2]' in done.out


def train_classification(flowers, tmp_path, **options):  # noqa: F811
    from utils import in_scope

    from vpt_dense.engine.runner import Runner

    forget_runs()
    in_scope('mmpretrain')
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'),
                      tiny_folder(tmp_path, flowers, **options))  # fmt: skip
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize('metrics, wanted', [
    ([dict(type='Accuracy', topk=(1, 2))], 'but accuracy/top1, accuracy/top2; did you mean'),
    # Not known by its arguments: tried with an image.
    ([dict(type='Accuracy'), dict(type='SingleLabelMetric', items=['recall'])],
     'but accuracy/top1, single-label/recall; did you mean'),
])  # fmt: skip
def test_classification(flowers, tmp_path, metrics, wanted):  # noqa: F811
    hook = dict(type='EarlyStoppingHook', monitor='accuracy_top1')
    with pytest.raises(UserError, match=f"EarlyStoppingHook.*gives no 'accuracy_top1', {wanted}"):
        train_classification(flowers, tmp_path, val_evaluator=metrics, custom_hooks=[hook])
    assert not list(tmp_path.glob('*.pth'))


def test_a_metric_that_was_tried_is_followed(flowers, tmp_path):  # noqa: F811
    hook = dict(type='EarlyStoppingHook', monitor='single-label/recall', rule='greater', patience=1,
                min_delta=200)  # fmt: skip
    metrics = [dict(type='Accuracy'), dict(type='SingleLabelMetric', items=['recall'])]
    runner = train_classification(
        flowers, tmp_path, val_evaluator=metrics, custom_hooks=[hook], **{'train_cfg.max_epochs': 5}
    )
    assert runner.epoch == 2  # the first gives the best, the second none better by 200


# --- schedules that follow a metric ----------------------------------------------------------


def rates(folder, last: int, by_epoch: bool) -> list[float]:
    name = 'epoch_{}.pth' if by_epoch else 'iter_{}.pth'
    states = [safe_files.read(folder / name.format(i + 1)) for i in range(last)]
    return [state['optimizer']['param_groups'][0]['lr'] for state in states]


def plateau(folder, last: int = 8, by_epoch: bool = False, more=(), **options):
    schedules = [*more, dict(PLATEAU, monitor='a', **options.pop('schedule', {}))]
    runner = build(folder, last, by_epoch=by_epoch, **options)
    runner.param_schedulers = schedules
    runner.train()
    return runner


def test_plateaus_of_iterations_are_those_of_epochs(tmp_path):
    """An epoch of Points is one iteration: both loops see SCORES, 1 3 2 4 4 3 5 6."""
    for by_epoch in (False, True):
        plateau(tmp_path / str(by_epoch), by_epoch=by_epoch)
    assert SCORES['a'] == [1, 3, 2, 4, 4, 3, 5, 6]
    # Checkpoints are saved before the validation of their iteration; three scores are no better.
    wanted = [0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.0125, 0.0125]
    assert rates(tmp_path / 'False', 8, False) == pytest.approx(wanted)
    assert rates(tmp_path / 'True', 8, True) == pytest.approx(wanted)


def test_bounds_are_iterations(tmp_path):
    plateau(tmp_path, schedule=dict(begin=4, end=6, by_epoch=False))
    # Watched behind iterations 4 and 5 alone: 4, 4.
    assert rates(tmp_path, 8, False) == pytest.approx([0.1] * 5 + [0.05] * 3)


def test_a_plateau_behind_a_warm_up(tmp_path):
    warm = dict(type='LinearLR', start_factor=0.5, begin=0, end=2, by_epoch=False)
    plateau(tmp_path, 5, more=[warm], schedule=dict(begin=2, by_epoch=False))
    # 3 is the first that is watched, behind iteration 2; 2 and the second 4 are no better.
    assert rates(tmp_path, 5, False) == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize('options', [
    dict(by_epoch=False), dict(by_epoch=True), dict(by_epoch=True, convert_to_iter_based=True)])
@pytest.mark.parametrize('kind', ['LinearLR', 'ConstantLR'])
def test_a_warm_up_of_one_step_ends(tmp_path, kind, options):
    """With mmengine alone the rate stays at its start: 0.01, then a cosine of that."""
    start = dict(start_factor=0.1) if kind == 'LinearLR' else dict(factor=0.1)
    loop = dict(by_epoch=options['by_epoch'])
    runner = build(tmp_path, 5, **loop)
    runner.param_schedulers = [
        dict(type=kind, begin=0, end=1, **start, **options),
        dict(type='CosineAnnealingLR', begin=1, end=5, T_max=4, **options)]
    runner.train()
    cosine = [0.1 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    # Saved is the rate of the next step; behind the last one it stays.
    assert rates(tmp_path, 5, **loop) == pytest.approx([*cosine, cosine[-1]])


@pytest.mark.parametrize('records', [False, True])
def test_a_plateau_is_resumed(tmp_path, records):
    """From a checkpoint that was saved before the validation of its iteration, on record or not."""
    hooks = [dict(type='vpt_dense.ReportHook')] if records else []
    plateau(tmp_path / 'whole', custom_hooks=hooks)
    for last in (2, 3, 5, 6):
        plateau(tmp_path / 'cut', last, resume=last > 2, custom_hooks=hooks)
    assert (tmp_path / 'cut/evaluations.json').exists() == records
    plateau(tmp_path / 'cut', resume=True, custom_hooks=hooks)
    contents = [safe_files.read(tmp_path / name / 'iter_8.pth') for name in ('whole', 'cut')]
    for key in ('optimizer', 'param_schedulers', 'state_dict'):
        assert differences(*(content[key] for content in contents)) == []


def test_another_rate_for_a_plateau(tmp_path):
    plateau(tmp_path, 5)
    runner = build(tmp_path, 6, resume=True)
    runner.param_schedulers = [dict(PLATEAU, monitor='a')]
    runner.optim_wrapper['optimizer']['lr'] = 8.0
    runner.train()
    assert rates(tmp_path, 6, False)[-1] == 8.0  # iteration 5 is the first to be watched, anew


def test_early_stopping_goes_on_counting(tmp_path):
    """Scores 1 3 2 4 4 3: with a patience of 2 the run ends behind the sixth."""
    hooks = [dict(type='vpt_dense.ReportHook'),
             dict(type='EarlyStoppingHook', monitor='a', rule='greater', patience=2, min_delta=0.5)]
    assert build(tmp_path / 'whole', 8, custom_hooks=hooks).train() and (
        len(list((tmp_path / 'whole').glob('iter_*.pth'))) == 6)  # fmt: skip
    for last in (1, 3, 5, 8, 8):
        build(tmp_path / 'cut', last, resume=last > 1, custom_hooks=hooks).train()
    assert len(list((tmp_path / 'cut').glob('iter_*.pth'))) == 6


def test_a_segmentation_run_with_a_plateau(capfd, tmp_path, data):
    extra = ("\nparam_scheduler = [dict(type='ReduceOnPlateauLR', monitor='mIoU', rule='greater',"
             " patience=0, factor=0.5, threshold=1000.0)]\n"
             'train_cfg = dict(max_iters=4, val_interval=1)\n')  # fmt: skip
    done = run_tool(capfd, 'train', write_leaf(tmp_path, data, extra))
    assert done.code == 0, done.err
    state = safe_files.read(str(tmp_path / 'work/iter_4.pth'))['optimizer']
    assert {group['lr'] for group in state['param_groups']} == {0.001 / 4, 0.01 / 4}
