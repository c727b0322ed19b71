"""The search for the settings of a method."""

import csv
import dataclasses
import json
import math
import multiprocessing
import os
import signal
import time

import pytest
from tool_helpers import run_tool, tiny_folder, write_leaf

from vpt_dense import config
from vpt_dense.comparison import runs, search
from vpt_dense.errors import UserError

RECIPE = 'configs/vpt/linear_vit-s_dinov2_segfolder.py'
LEAF = 'configs/vpt/linear_vit-s_dinov2_head_segfolder.py'


class Known(runs.Comparison):
    """Its trainings are a formula, whose best place is known: lr 1e-2, head_lr 3e-3."""

    def __post_init__(self):
        super().__post_init__()
        self.tried, self.wrong, self.undefined, self.after, self.pause = [], (), (), None, 0

    def train(self, method, work_dir, options=(), done=None, stop=None, seed=None):
        settings = {key: float(value) for key, value in (o.split('=') for o in options)}
        work_dir.mkdir(parents=True)
        self.tried.append(settings)
        if len(self.tried) in self.wrong:
            raise UserError('the loss is nan')
        if self.after is not None and len(self.tried) > self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)
        score = 80 - sum((math.log10(settings[key]) - math.log10(best)) ** 2
                         for key, best in (('lr', 1e-2), ('head_lr', 3e-3)) if key in settings)
        for number in (1, 2):
            records = [dict(iter=i, metrics=dict(mIoU=score - 2 + i)) for i in range(1, number + 1)]
            (work_dir / 'evaluations.json').write_text(json.dumps(records))
            if done:
                done(number)
            if stop is not None and stop.is_set():
                raise UserError('interrupted')
        if len(self.tried) in self.undefined:
            score = math.nan
        return dict(last=dict(metrics=dict(mIoU=score)))


def make(folder, trials, texts=(), method='lora', options=(), path=RECIPE, **further):
    comparison = Known(path, folder, options=list(options))
    return search.Search(
        comparison, method, folder, trials, search.read_space(texts), **further)


def test_it_finds_the_best_settings_and_writes_them(tmp_path):
    found = make(tmp_path, 12)
    said = []
    study = found.run(say=said.append)
    tried = found.comparison.tried
    assert len(tried) == 12 == len(search.done(study)) and len(said) == 12
    # The recipe's own are the first.
    assert tried[0] == dict(lr=3e-3, head_lr=1e-2, weight_decay=1e-4)
    for settings in tried:
        assert 3e-4 <= settings['lr'] <= 3e-2 and 1e-5 <= settings['weight_decay'] <= 1e-1
    assert len({tuple(settings.values()) for settings in tried}) == 12
    best = search.best_of(study)
    assert best.value == max(trial.value for trial in study.trials) > 78.5
    files = found.write(study)
    assert [file.name for file in files] == ['best.py', 'trials.csv', 'trials.svg']
    cfg = config.load(str(files[0]))
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(best.params['lr'], rel=1e-3)
    head = cfg.optim_wrapper.paramwise_cfg.custom_keys.head.lr_mult
    assert head * cfg.optim_wrapper.optimizer.lr == pytest.approx(best.params['head_lr'], rel=1e-3)
    assert cfg.model.backbone.adapters[0].type == 'vpt_dense.LoRA'
    rows = list(csv.DictReader(files[1].read_text().splitlines()))
    assert [float(row['mIoU']) for row in rows] == [trial.value for trial in study.trials]
    assert max(rows, key=lambda row: float(row['mIoU']))['trial'] == str(best.number)
    assert files[2].read_text().count('<use ') >= 3 * 12


@pytest.mark.slow
def test_another_call_goes_on_and_repeats_nothing(tmp_path):
    make(tmp_path, 3).run()
    again = make(tmp_path, 3)
    again.run()
    assert again.comparison.tried == []
    more = make(tmp_path, 5)
    assert len(more.run().trials) >= 5
    assert len(more.comparison.tried) == 2


def test_the_best_is_of_as_many_trials_as_are_asked_for(tmp_path):
    """A search that had more trials before is no better for them."""
    def grid(trials):
        return make(tmp_path, trials, GRID, sampler='grid', check=False)

    study = grid(6).run()
    values = [trial.value for trial in study.trials]
    number = values.index(max(values))
    assert number > 0 and grid(6).best(study).number == number
    few = grid(number)
    assert few.best(study).value == max(values[:number])
    assert few.finished() == search.options_of(few.best(study))


@pytest.mark.parametrize('changed', [
    dict(texts=['lr=1e-4:1e-1']), *(pytest.param(each, marks=pytest.mark.slow) for each in (
        dict(method='deep'), dict(options=['iters=7']), dict(seed=1)))])
def test_another_search_in_its_folder_is_refused(tmp_path, changed):
    make(tmp_path, 1).run()
    with pytest.raises(UserError, match='holds a search of other settings'):
        make(tmp_path, 1, **changed).run()


@pytest.mark.slow
def test_head_only_has_one_rate(tmp_path):
    found = make(tmp_path, 1, method='head')
    assert set(found.space) == {'head_lr', 'weight_decay'}
    assert set(make(tmp_path, 1, method='', path=LEAF).space) == {'head_lr', 'weight_decay'}


def test_what_the_command_line_says_is_not_searched(tmp_path):
    found = make(tmp_path, 1, options=['weight_decay=0.02', 'lr=0.5'])
    assert set(found.space) == {'head_lr'}
    with pytest.raises(UserError, match='--space lr: --cfg-options sets it too'):
        make(tmp_path, 1, texts=['lr=1:2'], options=['lr=0.5'])


@pytest.mark.slow
def test_any_setting_of_the_config_can_be_searched(tmp_path):
    texts = ['model.backbone.adapters.0.rank=4,8,16', 'warmup=100:300', 'batch_size=2:64']
    found = make(tmp_path, 6, texts=texts)
    found.run()
    tried = found.comparison.tried
    assert {settings['model.backbone.adapters.0.rank'] for settings in tried} <= {4, 8, 16}
    assert all(100 <= settings['warmup'] <= 300 for settings in tried)
    assert found.space['batch_size'].log and not found.space['warmup'].log


@pytest.mark.parametrize(('text', 'message'), [
    ('lr', 'KEY=LOW:HIGH or KEY=A,B,C'), ('lr=', 'KEY=LOW:HIGH'), ('lr=1:1', 'LOW below HIGH'),
    ('lr=a:b', 'two numbers'), ('lr=3', 'at least two values'), ('lr=1,1', 'at least two values'),
    ('lr=0:1:log', 'begins above 0'), ('lr=1:2:cubic', 'at least two values'),
    ('lr=1,2,1.0', 'all different'),
])
def test_a_range_that_cannot_be_read(text, message):
    with pytest.raises(UserError, match=message):
        search.read_space([text])


def test_values_are_taken_as_they_are_written(tmp_path):
    found = make(tmp_path, 4, ['lr=0.00123456,0.0012', 'img_size=(56,70),(70,56)'], sampler='grid')
    assert found.space['img_size'].choices == ('(56,70)', '(70,56)')
    given = []

    def train(method, work_dir, options=(), *rest, **further):
        given.append(list(options))
        return dict(last=dict(metrics=dict(mIoU=1.0)))

    found.comparison.train = train
    found.run()
    assert sorted(given) == [[f'lr={lr}', f'img_size={size}'] for lr in ('0.0012', '0.00123456')
                             for size in ('(56,70)', '(70,56)')]


def test_settings_that_contradict_each_other_are_refused_before_a_trial(tmp_path):
    with pytest.raises(UserError, match=r'lr is .*, but optim_wrapper.optimizer.lr is'):
        make(tmp_path, 1, texts=['optim_wrapper.optimizer.lr=1e-3,1e-2'])


def test_a_search_needs_a_validation(tmp_path):
    options = ['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']
    with pytest.raises(UserError, match='a search needs val_dataloader'):
        make(tmp_path, 1, options=options)


def test_a_key_that_nothing_reads_is_refused_before_a_trial(tmp_path):
    with pytest.raises(UserError, match="there is no top-level key 'lrr'"):
        make(tmp_path, 1, texts=['lrr=1:2'])
    with pytest.raises(UserError, match='head_lr must be a number above 0'):
        make(tmp_path, 1, texts=['head_lr=-1:1'])
    assert not list(tmp_path.iterdir())


def test_the_best_where_less_is_better(tmp_path):
    found = make(tmp_path, 6, GRID, sampler='grid', check=False)
    found._task = dataclasses.replace(found._task, less_is_better=True)
    study = found.run()
    assert found.best(study).value == min(trial.value for trial in study.trials)
    assert found.finished() == search.options_of(found.best(study))


def test_a_trial_that_fails_is_one_of_the_number(tmp_path):
    found = make(tmp_path, 4)
    found.comparison.wrong = (2,)
    study = found.run()
    assert len(found.comparison.tried) == 4 and len(search.done(study)) == 3
    text = search.as_csv(study, 'mIoU')
    assert text.splitlines()[2].startswith('1,failed,') and 'the loss is nan' in text


@pytest.mark.parametrize('how', ['wrong', 'undefined'])
def test_the_first_point_of_a_grid_may_fail(tmp_path, how):
    found = make(tmp_path, 6, GRID, sampler='grid')
    setattr(found.comparison, how, (1, 4))
    study = found.run()
    assert len(found.comparison.tried) == 6 and len(search.done(study)) == 4
    assert found.finished() == search.options_of(found.best(study))


def test_a_config_that_cannot_train_ends_the_search(tmp_path):
    found = make(tmp_path, 9)
    found.comparison.wrong = range(99)
    with pytest.raises(UserError, match='the loss is nan'):
        found.run()
    assert len(found.comparison.tried) == 1


def _search(folder, trials, after=None):
    found = make(folder, trials)
    found.comparison.after = after
    found.run()


def processes(*calls):
    """Processes that search, begun at once and ended."""
    fork = multiprocessing.get_context('fork')
    begun = [fork.Process(target=_search, args=arguments) for arguments in calls]
    for process in begun:
        process.start()
    for process in begun:
        process.join()
    return [process.exitcode for process in begun]


@pytest.mark.slow
def test_two_processes_share_a_study_and_its_number(tmp_path):
    assert processes((tmp_path, 6), (tmp_path, 6)) == [0, 0]
    study = make(tmp_path, 6).open()
    assert len(search.done(study)) == 6
    assert len(list(tmp_path.glob('trial_*/run'))) == 6


@pytest.mark.slow
def test_no_process_draws_what_another_has_drawn(tmp_path):
    for _ in range(2):
        assert processes((tmp_path, 9, 2)) == [-signal.SIGKILL]
    study = make(tmp_path, 9, check=False).run()
    drawn = [tuple(trial.params.values()) for trial in study.trials[1:]]
    assert len(drawn) == 10 == len(set(drawn))  # two were lost


@pytest.mark.slow
def test_a_process_waits_for_the_trials_of_others(tmp_path):
    """Else each would take the best of what it has seen."""
    slow, said = make(tmp_path, 3), []
    slow.comparison.pause = 2
    process = multiprocessing.get_context('fork').Process(target=slow.run)
    process.start()
    while not list(tmp_path.glob('trial_*/run')):
        time.sleep(0.05)
    quick = make(tmp_path, 3)
    study = quick.run(say=said.append)
    assert 'waiting for 1 trials of other processes' in said
    assert len(search.done(study)) == 3 and len(quick.comparison.tried) == 2
    process.join()
    assert process.exitcode == 0


@pytest.mark.slow
def test_a_killed_process_costs_one_trial(tmp_path):
    assert processes((tmp_path, 4, 2)) == [-signal.SIGKILL]
    found = make(tmp_path, 4)
    study = found.run()
    assert len(search.done(study)) == 4 and len(found.comparison.tried) == 2


def test_bad_trials_are_stopped_early(tmp_path):
    found = make(tmp_path, 16, pruner='median', texts=['lr=1e-9:1e-1'])
    study = found.run()
    states = [trial.state.name for trial in study.trials]
    assert states.count('PRUNED') >= 2 and len(found.comparison.tried) == 16
    pruned = [trial for trial in study.trials if trial.state.name == 'PRUNED']
    best = search.best_of(study)
    assert all(max(trial.intermediate_values.values()) < best.value for trial in pruned)


@pytest.mark.long
def test_the_command_trains_and_its_config_trains_again(capfd, tmp_path):
    path = write_leaf(tmp_path, tiny_folder(tmp_path / 'data', num_images=3))
    arguments = [path, '--trials', 2, '--work-dir', tmp_path / 'found', '--amp', 'off',
                 '--cfg-options', 'iters=2']
    outcome = run_tool(capfd, 'search', *arguments)
    assert outcome.code == 0, outcome.err
    assert 'best: mIoU' in outcome.out
    outcome = run_tool(capfd, 'train', tmp_path / 'found/best.py', '--work-dir', tmp_path / 'again')
    assert outcome.code == 0, outcome.err
    best, again = (json.loads(file.read_text())['last']['metrics']['mIoU'] for file in (
        max((tmp_path / 'found').glob('trial_*/run/summary.json'), key=lambda file: json.loads(
            file.read_text())['last']['metrics']['mIoU']), tmp_path / 'again/summary.json'))
    assert again == pytest.approx(best, abs=0.01)


# --- samplers ------------------------------------------------------------------------------------

GRID = ['lr=1e-2,1e-3,1e-4', 'weight_decay=1e-2,0']


def tried(found):
    return [(settings['lr'], settings['weight_decay']) for settings in found.comparison.tried]


@pytest.mark.slow
def test_a_grid_is_every_combination_once(tmp_path):
    found = make(tmp_path, 20, GRID, sampler='grid')
    said = []
    study = found.run(say=said.append)
    assert said[0] == '6 trials instead of 20: the grid has no more'
    assert [line.split(':')[0] for line in said[1:]] == [f'lora {i}/6' for i in range(1, 7)]
    assert sorted(tried(found)) == sorted((lr, wd) for lr in (1e-2, 1e-3, 1e-4) for wd in (1e-2, 0))
    assert set(found.space) == {'lr', 'weight_decay'}  # head_lr keeps its ratio to lr
    assert search.best_of(study).params['lr'] == 1e-2
    again = make(tmp_path, 20, GRID, sampler='grid')
    again.run()
    assert again.comparison.tried == []


@pytest.mark.parametrize('sampler', ['random', pytest.param('grid', marks=pytest.mark.slow)])
def test_more_trials_go_on_with_what_is_left(tmp_path, sampler):
    made = [make(tmp_path / 'a', number, GRID, sampler=sampler) for number in (2, 5)]
    for found in made:
        found.run()
    at_once = make(tmp_path / 'b', 5, GRID, sampler=sampler)
    at_once.run()
    assert tried(made[0]) + tried(made[1]) == tried(at_once)


def test_random_settings_begin_with_the_configs_own(tmp_path):
    found = make(tmp_path, 6, sampler='random')
    study = found.run()
    assert found.comparison.tried[0] == dict(lr=3e-3, head_lr=1e-2, weight_decay=1e-4)
    assert len(search.done(study)) == 6 == len(set(tried(found)))


def _sample(folder, sampler, after=None):
    found = make(folder, 6, GRID, sampler=sampler)
    found.comparison.after = after
    found.run()


@pytest.mark.parametrize('sampler', ['random', pytest.param('grid', marks=pytest.mark.slow)])
def test_the_points_of_a_killed_process_are_not_lost(tmp_path, sampler):
    fork = multiprocessing.get_context('fork')
    for after in (2, 1):
        process = fork.Process(target=_sample, args=(tmp_path, sampler, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    others = [fork.Process(target=_sample, args=(tmp_path, sampler)) for _ in range(2)]
    for process in others:
        process.start()
    for process in others:
        process.join()
    study = make(tmp_path, 6, GRID, sampler=sampler).open()
    assert sorted(trial.user_attrs['point'] for trial in search.done(study)) == list(range(6))
    if sampler == 'grid':
        assert len({tuple(trial.params.values()) for trial in search.done(study)}) == 6


@pytest.mark.parametrize(('texts', 'message'), [
    (['lr=1e-4:1e-1'], '--sampler grid: --space lr=0.0001:0.1 is a range; list its values'),
    ([], '--sampler grid: it needs --space KEY=A,B,C'),
])
def test_a_grid_needs_lists(tmp_path, texts, message):
    with pytest.raises(UserError, match=message):
        make(tmp_path, 2, texts, sampler='grid')


@pytest.mark.slow
def test_another_sampler_is_another_search(tmp_path):
    make(tmp_path, 1, GRID).run()
    with pytest.raises(UserError, match='sampler'):
        make(tmp_path, 1, GRID, sampler='random').run()


def test_the_sampler_of_a_comparison_needs_a_search(capfd, tmp_path):
    outcome = run_tool(capfd, 'compare', RECIPE, '--methods', 'deep', '--sampler', 'grid')
    assert outcome.code == 2 and '--sampler does nothing without --search TRIALS' in outcome.err
