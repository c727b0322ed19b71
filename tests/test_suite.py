"""Benchmark suites: the plan, the table, and where cells run."""

import contextlib
import csv
import json
import math
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fake_tool
import pytest
from test_tools import image_leaf  # noqa: F401  (a fixture)
from tool_helpers import run_tool, tiny_folder, write_leaf
from utils import CONFIGS, ROOT

from vpt_dense import tasks
from vpt_dense.comparison import executors, report, runs, suite_plan, suite_table
from vpt_dense.comparison import suite as suites
from vpt_dense.datasets import list_files
from vpt_dense.errors import UserError

RECIPE = 'configs/vpt/linear_vit-s_dinov2_segfolder.py'
FAKE = str(Path(fake_tool.__file__).resolve())


def write(folder, text, name='mine.py'):
    path = folder / name
    path.write_text(text)
    return str(path)


def plan(folder, **keys):
    """A suite of two tasks and two methods, with other keys."""
    values = dict(tasks=dict(a={}, b=dict(options=['dataset.data_root=data/b'])), recipe=RECIPE,
                  methods=['head', 'lora']) | keys
    return write(folder, '\n'.join(f'{key} = {value!r}' for key, value in values.items()
                                   if value is not ...))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    monkeypatch.chdir(ROOT)


# --- the file ------------------------------------------------------------------------------------


def test_a_task_says_what_differs(tmp_path):
    suite = suites.read(plan(
        tmp_path, options=['iters=4'], trials=3, space=['lr=1,2'], retrain=['iters=9'],
        sampler='grid', seeds=[3, 1], methods=['full', 'deep'], tasks=dict(
            a=dict(group='G'), b=dict(group='H', trials=0, options=['batch_size=2']),
            c=dict(group='G', space=['lr=1,3'], retrain=[]))))
    assert suite.folder == ROOT / 'work_dirs/suites/mine'
    assert (suite.seeds, suite.reference, suite.pruner, suite.amp) == ([3, 1], 'full', 'none',
                                                                       'auto')
    a, b, c = suite.tasks.values()
    assert (a.options, a.trials, a.space, a.retrain) == (('iters=4',), 3, ('lr=1,2',),
                                                         ('iters=9',))
    assert (b.options, b.trials, b.space, b.retrain) == (('iters=4', 'batch_size=2'), 0, (), ())
    assert (c.space, c.retrain, c.group) == (('lr=1,3',), (), 'G')
    assert list(map(str, suite.cells())) == ['a/full', 'a/deep', 'b/full', 'b/deep', 'c/full',
                                             'c/deep']
    assert suite.find('b/deep') == ('b', 'deep')
    with pytest.raises(UserError, match="--cell b/depe: .* no such cell; did you mean 'b/deep'"):
        suite.find('b/depe')


@pytest.mark.slow
def test_the_file_of_the_page(tmp_path):
    text, = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/suites.md').read_text(), re.DOTALL)
    suite = suites.read(write(tmp_path, text), tmp_path / 'out')
    suite.check()
    assert suite.trials(suite.cells()[0]) == 40 and len(suite.cells()) == 6
    told = (ROOT / 'docs/suites.md').read_text()
    assert [key for key in suites._KEYS if f'| `{key}` |' not in told] == []


def test_yaml_and_variables(tmp_path):
    text = f'tasks: {{a: {{}}}}\nrecipe: {RECIPE}\nmethods: [deep]\namp: on\n'
    suite = suites.read(write(tmp_path, text, 'x.yaml'), tmp_path / 'out')
    assert (suite.amp, suite.reference, suite.folder) == ('on', None, tmp_path / 'out')
    text = f"_all = ['a', 'b']\ntasks = {{n: dict(recipe={RECIPE!r}) for n in _all}}\n"
    assert list(suites.read(write(tmp_path, text + "methods = ['deep']")).tasks) == ['a', 'b']


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(task={}), "task: there is no such key; did you mean 'tasks'"),
    (dict(tasks=...), 'tasks must be a dict of tasks, NAME=dict'),
    (dict(tasks={}), 'tasks must be a dict of tasks'),
    (dict(tasks=['a']), 'tasks must be a dict of tasks'),
    (dict(tasks=dict(a=3)), 'tasks.a must be a dict, found 3'),
    (dict(tasks={'a/b': {}}), "tasks: 'a/b' is no name of a folder"),
    (dict(tasks=dict(a=dict(seeds=[1]))), 'tasks.a.seeds: there is no such key'),
    (dict(recipe=...), 'tasks.a has no recipe; say one, there or for all tasks'),
    (dict(recipe='gone.py'), 'tasks.a.recipe: there is no file gone.py'),
    (dict(recipe=3), 'recipe must be a text, found 3'),
    (dict(tasks=dict(a=dict(recipe='vpt_dense::gone'))), 'vpt_dense::gone: vpt_dense has no'),
    (dict(methods=...), 'methods must be a list'), (dict(methods=[]), 'methods must be a list'),
    (dict(methods='deep'), "methods must be a list .* found 'deep'"),
    (dict(methods=['deep', 'deep']), 'methods must be a list of different'),
    (dict(methods=['deeep']), "tasks.a: methods: deeep is not known; did you mean 'deep'"),
    (dict(seeds=[0, 0]), r'seeds must be a list of different .* found \[0, 0\]'),
    (dict(seeds=[-1]), 'seeds must be'), (dict(seeds=3), 'seeds must be'),
    (dict(seeds=[True]), 'seeds must be'), (dict(seeds=[]), 'seeds must be'),
    (dict(options=['iters']), "options must be a list of 'KEY=VALUE'"),
    (dict(tasks=dict(a=dict(options='iters=3'))), "tasks.a.options must be a list of 'KEY=VALUE'"),
    (dict(trials=-1), 'trials must be a whole number, 0 or more, found -1'),
    (dict(trials='3'), 'trials must be a whole number'),
    (dict(trials=2, space=['lr=1']), 'tasks.a: space: lr=1: at least two values'),
    (dict(trials=2, sampler='gird'), "sampler must be one of tpe, grid, random, found 'gird'"),
    (dict(trials=2, pruner=3), 'pruner must be one of'), (dict(amp='maybe'), 'amp must be one of'),
    (dict(space=['lr=1,2']), 'space does nothing without trials: set trials, or leave it out'),
    (dict(retrain=['iters=3']), 'retrain does nothing without trials'),
    (dict(sampler='grid'), 'sampler does nothing without trials'),
    (dict(trials=1, tasks=dict(a=dict(trials=0, retrain=['iters=3']), b={})),
     'tasks.a.retrain does nothing without trials'),
    (dict(trials=1, space=['lr=1,2'], tasks=dict(a=dict(space=['lr=1,3']), b=dict(trials=0))),
     'space does nothing, as each task has its own'),
    (dict(trials=2, tasks=dict(a=dict(trials=3), b=dict(trials=1))),
     'trials does nothing, as each task has its own'),
    (dict(tasks=dict(a=dict(recipe=RECIPE))), 'recipe does nothing, as each task has its own'),
    (dict(trials=1, tasks=dict(a=dict(space=['lr=1,3'])), method_space={
        'head': ['lr=1,2'], 'lora': ['lr=1,2']}),
     'tasks.a.space does nothing, as method_space has all methods'),
    (dict(tasks=dict(a=dict(group='G'), b={})), 'tasks.b has no group, others do'),
    (dict(tasks=dict(a=dict(group=3))), 'tasks.a.group must be a text'),
    (dict(reference='ful'), "reference 'ful' is none of the methods head, lora"),
])
def test_a_bad_suite_is_refused_in_one_line(tmp_path, keys, message):
    with pytest.raises(UserError, match=message) as error:
        suites.read(plan(tmp_path, **keys))
    assert str(error.value).startswith(f'suite {tmp_path}/mine.py: ')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(('keys', 'message'), [
    (dict(tasks=dict(a={}, b=dict(options=['itres=3']))), "b/head: .*no top-level key 'itres'"),
    (dict(trials=2, space=['lrr=1:2']), "a/head: .*no top-level key 'lrr'"),
    (dict(trials=2, retrain=['itres=3']), "a/head: .*no top-level key 'itres'"),
    (dict(trials=2, retrain=['head_lr=3']), 'a/head: retrain sets head_lr, which is searched'),
    (dict(trials=2, retrain=['optim_wrapper.optimizer.lr=3'], methods=['lora'], space=['lr=1:2']),
     'a/lora: lr is 1, but optim_wrapper.optimizer.lr is 3'),
    (dict(trials=2, options=['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']),
     'a/head: a search needs val_dataloader'),
    (dict(trials=2, options=['lr=3'], space=['lr=1:2']), 'a/head: .*sets it too'),
    (dict(trials=2, sampler='grid'), 'a/head: .*it needs --space'),
    (dict(trials=2, sampler='grid', space=['lr=1:2']), 'a/head: .*is a range'),
])
def test_everything_is_checked_before_anything_runs(tmp_path, capfd, keys, message):
    path = plan(tmp_path, **keys)
    outcome = run_tool(capfd, 'benchmark_suite', path, '--work-dir', tmp_path / 'out')
    assert outcome.code == 2 and re.search(message, outcome.err) and outcome.err.count('\n') == 1
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--shard', '0/2'], '--shard 0/2: I/N was expected'), (['--shard', '3/2'], '--shard 3/2'),
    (['--shard', 'x'], '--shard x'), (['--cell', 'a'], '--cell a: .* no such cell'),
    (['--slurm', 'time=3'], '--slurm does nothing with --executor local'),
    (['--ray-address', 'auto'], '--ray-address does nothing with --executor local'),
    (['--executor', 'ray', '--jobs', 2], '--jobs does nothing with --executor ray'),
    (['--no-measure'], '--no-measure does nothing without --dry-run'),
    (['--table', '--shard', '1/2'], '--shard does nothing with --table'),
    (['--cell', 'a/head', '--jobs', 2], '--jobs does nothing with --cell'),
    (['--jobs', 0], "'0' is no number of at least 1"),
])
def test_what_a_command_cannot_say(tmp_path, capfd, arguments, message):
    outcome = run_tool(capfd, 'benchmark_suite', plan(tmp_path), *arguments)
    assert outcome.code == 2 and re.search(message, outcome.err) and outcome.err.count('\n') == 1


def test_shares_are_all_cells_once(tmp_path):
    cells = suites.read(plan(tmp_path, methods=['full', 'head', 'deep'],
                             tasks=dict.fromkeys('abcde', {}))).cells()
    assert len(cells) == 15 and suites.shard(cells, None) == cells
    for number in (1, 2, 4, 7, 15, 20):
        shares = [suites.shard(cells, f'{i}/{number}') for i in range(1, number + 1)]
        assert sorted(cell for share in shares for cell in share) == sorted(cells)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- the table -----------------------------------------------------------------------------------


def cell(task, group, method, mean, missing=(), tuned=0, metric='accuracy/top1', **keys):
    return dict(task=task, group=group, method=method, mean=mean, std=None, scores=[mean],
                seeds=[0], missing=list(missing), failures={}, metric=metric, found=None,
                trainable=tuned + 5, backbone_trainable=tuned, backbone_total=1000) | keys


#: Two groups, of three tasks and of one: their means are not the mean of all tasks.
SCORES = dict(a=(70.0, 72.0), b=(60.0, 59.0), c=(50.0, 55.0), d=(40.0, 46.0))


def records(**changes):
    found = []
    for task, (full, deep) in SCORES.items():
        group = 'H' if task == 'd' else 'G'
        found += [cell(task, group, 'full', full, tuned=1000),
                  cell(task, group, 'deep', deep, tuned=45, **changes.get(task, {}))]
    return found


def test_numbers_of_the_table_by_hand():
    table = suite_table.summarise(records(), ['full', 'deep'], 'full')
    assert table['groups'] == dict(G=dict(full=60.0, deep=62.0), H=dict(full=40.0, deep=46.0))
    summary = table['summary']
    assert summary['group_mean'] == dict(full=50.0, deep=54.0)
    assert summary['mean'] == dict(full=55.0, deep=58.0)
    assert summary['won'] == dict(full=None, deep=3)
    # 4 backbones and 4 heads of 5; one backbone of 1000, and 4 x (45 + 5).
    assert summary['parameters'] == dict(full=4.02, deep=1.2)
    # Differences 2, -1, 5, 6: mean 3, standard deviation sqrt(30 / 3) = 3.1623, of the mean
    # 1.5811; t of 3 degrees at 97.5 % is 3.18245.
    mean, low, high = summary['difference']['deep']
    assert mean == 3.0 and low == pytest.approx(3 - 3.18245 * 1.58114, abs=1e-4)
    assert high == pytest.approx(3 + 3.18245 * 1.58114, abs=1e-4)
    # Ranks 2, 1, 3, 4, the negative one is 1: of 16 signs two have a sum of at most 1; twice that.
    assert summary['wilcoxon']['deep'] == pytest.approx(0.25)
    assert table['missing'] == table['notes'] == []


def test_a_missing_run_is_named_and_in_no_mean():
    changed = dict(d=dict(missing=['seed 2'], failures={'seed 2': 'nan'}))
    table = suite_table.summarise(records(**changed), ['full', 'deep'], 'full')
    assert table['groups'] == dict(G=dict(full=60.0, deep=62.0), H=dict(full=40.0, deep=None))
    for key in ('group_mean', 'mean', 'won', 'parameters', 'difference', 'wilcoxon'):
        assert table['summary'][key]['deep'] is None, key
    assert table['summary']['mean']['full'] == 55.0
    assert table['missing'] == ['d/deep: seed 2 (nan)']
    table = suite_table.summarise(
        [dict(each, missing=['seed 0'] if each['method'] == 'full' else []) for each in records()],
        ['full', 'deep'], 'full')
    assert table['summary']['won']['deep'] is None and table['summary']['mean']['deep'] == 58.0


def test_what_cannot_be_compared():
    mixed = [dict(each, metric='mIoU') if each['task'] == 'a' else each for each in records()]
    table = suite_table.summarise(mixed, ['full', 'deep'], 'full')
    assert table['summary']['mean'] == dict(full=None, deep=None)
    assert table['summary']['won']['deep'] == 3  # within a task
    assert table['notes'] == ['No means over tasks, as their metrics differ: mIoU, accuracy/top1.']
    two = [dict(each, backbone_total=500) if each['task'] == 'a' else each for each in records()]
    table = suite_table.summarise(two, ['deep'], None)
    assert table['summary']['parameters']['deep'] is None
    assert table['notes'] == [
        'No total of parameters over tasks whose backbones have different sizes.']
    one = suite_table.summarise(records()[:2], ['full', 'deep'], 'full')['summary']
    assert one['difference']['deep'] is None and one['wilcoxon']['deep'] is None
    same = [dict(each, mean=50.0) for each in records()]
    equal = suite_table.summarise(same, ['full', 'deep'], 'full')['summary']
    assert equal['difference']['deep'] == [0, 0, 0] and equal['wilcoxon']['deep'] == 1
    assert equal['won']['deep'] == 0


def test_a_score_that_is_no_number_is_shown_and_wins_nothing():
    counts = ('trainable', 'backbone_trainable', 'total', 'percent', 'tuned_megabytes')
    results = [dict(method='deep', seed=seed, metrics={'mIoU': value}, disk_megabytes=1.0,
                    train_seconds=None, **dict.fromkeys(counts, 1))
               for seed, value in enumerate((50.0, math.nan))]
    row, = report.summarise(results, 'mIoU', ['deep'])
    assert report.format_score(row) == 'nan ± nan'
    bad = [dict(each, mean=math.nan) if each['task'] == 'b' and each['method'] == 'deep' else each
           for each in records()]
    summary = suite_table.summarise(bad, ['full', 'deep'], 'full')['summary']
    assert summary['won']['deep'] is None and math.isnan(summary['mean']['deep'])
    assert all(map(math.isnan, summary['difference']['deep']))
    assert math.isnan(summary['wilcoxon']['deep']) and summary['mean']['full'] == 55.0


def test_where_less_is_better(tmp_path, monkeypatch):
    monkeypatch.setitem(tasks.TASKS, 'depth', tasks.Task(
        'depth', 'depth_head', 'depth head', 'rmse', less_is_better=True))
    cells = [dict(each, metric='rmse') for each in records()]
    table = suite_table.summarise(cells, ['full', 'deep'], 'full')
    assert table['summary']['won']['deep'] == 1 and table['summary']['difference']['deep'][0] == 3.0
    suite = suites.read(plan(tmp_path, tasks={task: {} for task in SCORES},
                             methods=['full', 'deep']), tmp_path / 'out')
    markdown, *_ = suite_table.write(dict(cells=cells, **table), suite, 'x')
    assert 'standard deviation. Less is better.' in markdown.read_text()


def test_the_files_of_a_table(tmp_path):
    tasks = {task: dict(group='H' if task == 'd' else 'G') for task in SCORES}
    suite = suites.read(plan(tmp_path, tasks=tasks, methods=['full', 'deep']), tmp_path / 'out')
    cells = records(d=dict(missing=['seed 1'], std=1.5))
    table = dict(cells=cells, **suite_table.summarise(cells, suite.methods, 'full'))
    markdown, comma, data = suite_table.write(table, suite, 'vpt-dense suite mine.py')
    text = markdown.read_text()
    assert '| a | G | 70.00 | 72.00 |' in text and '| d | H | 40.00 | 46.00 ± 1.50 † |' in text
    assert '| mean of G (3) | G | 60.00 | 62.00 |' in text and '(1) | H | 40.00 | - |' in text
    assert '| mean of group means |  | 50.00 | - |' in text
    assert '| mean of all tasks (4) |  | 55.00 | - |' in text
    assert '| total parameters |  | 4.02x | - |' in text and '- d/deep: seed 1' in text
    lines = list(csv.DictReader(comma.read_text().splitlines()))
    found = {(line['of'], line['name'], line['method']): line['value'] for line in lines}
    assert found['task', 'b', 'deep'] == '59.0' and found['group', 'G', 'full'] == '60.0'
    assert found['suite', 'mean', 'full'] == '55.0' and found['suite', 'mean', 'deep'] == ''
    content = json.loads(data.read_text())
    assert content['summary']['parameters'] == dict(full=4.02, deep=None)
    assert content['missing'] == ['d/deep: seed 1'] and len(content['cells']) == 8


# --- cells ---------------------------------------------------------------------------------------


@pytest.fixture
def faked(monkeypatch):
    """Trainings and tests are the fake's, in this process; their commands are kept."""
    calls = []

    def call(command, log, *args, **kwargs):
        _, _, *rest = map(str, command)
        calls.append(rest)
        fake_tool.main(rest)

    monkeypatch.setattr(runs, 'call', call)
    return calls


def trained(calls):
    return [command for command in calls if command[0] == 'train']


@pytest.mark.slow
def test_a_cell_searches_then_runs_all_seeds_with_the_best(tmp_path, faked):
    path = plan(tmp_path, trials=4, space=['lr=1e-3,1e-2', 'weight_decay=0,1e-4'], sampler='grid',
                retrain=['iters=9'], seeds=[0, 1], amp='off')
    suite = suites.read(path, tmp_path / 'out')
    work, = [each for each in suite.cells() if str(each) == 'b/lora']
    assert suite.state(work)['missing'] == ['search', 'seed 0', 'seed 1']
    assert suite.run(work, 1) == {}
    *trials, one, two = trained(faked)
    assert len(trials) == 4 and not any('iters=9' in command for command in trials)
    best = max(trials, key=lambda command: fake_tool.score('lora', None, options_of(command)))
    found = [option for option in options_of(best) if option.startswith(('lr', 'weight'))]
    for seed, command in enumerate((one, two)):
        assert options_of(command) == ['dataset.data_root=data/b', 'iters=9', *found]
        assert command[command.index('--seed') + 1] == str(seed)
    state = suites.read(path, tmp_path / 'out').state(work)
    assert state['found'] == found and state['missing'] == [] and state['failures'] == {}
    assert [result['seed'] for result in state['results']] == [0, 1]
    faked.clear()
    assert suites.read(path, tmp_path / 'out').run(work, 1) == {} and faked == []
    # Another seed is another run, and nothing else is repeated.
    more = suites.read(path.replace('mine', 'mine'), tmp_path / 'out')
    more.seeds.append(2)
    assert more.state(work)['missing'] == ['seed 2']
    assert more.run(work, 1) == {} and len(trained(faked)) == 1


def options_of(command):
    return command[command.index('--cfg-options') + 1:]


@pytest.mark.slow
def test_what_fails_is_told_and_tried_again(tmp_path, faked):
    path = plan(tmp_path, options=['iters=13'], amp='off')
    suite = suites.read(path, tmp_path / 'out')
    assert suite.run(suite.cells()[0], 1) == {'seed 0': 'the loss is nan'}
    state = suite.state(suite.cells()[0])
    assert state['missing'] == ['seed 0'] and state['failures'] == {'seed 0': 'the loss is nan'}
    searched = suites.read(plan(tmp_path, options=['iters=13'], amp='off', trials=2),
                           tmp_path / 'other')
    assert searched.run(searched.cells()[0], 1) == {'search': 'the loss is nan'}
    assert searched.state(searched.cells()[0])['missing'] == ['search', 'seed 0']


def test_one_precision_for_all(tmp_path, monkeypatch):
    suite = suites.read(plan(tmp_path), tmp_path / 'out')
    (tmp_path / 'out').mkdir()
    assert suite.precision() is None
    monkeypatch.setattr(runs, 'has_fast_bfloat16', lambda: True)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert suite.precision(decide=True) is True
    monkeypatch.setattr(runs, 'has_fast_bfloat16', lambda: False)
    assert suites.read(plan(tmp_path), tmp_path / 'out').precision(decide=True) is True
    assert [file.name for file in (tmp_path / 'out').iterdir()] == ['precision.json']
    assert suites.read(plan(tmp_path, amp='off'), tmp_path / 'out').precision() is False
    (tmp_path / 'out/precision.json').write_text('{')
    with pytest.raises(UserError, match='precision.json is damaged; remove it'):
        suite.precision()


def test_the_plan_has_the_precision_of_the_runs(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(runs, 'has_fast_bfloat16', lambda: False)
    asked = []
    monkeypatch.setattr(
        suite_plan, 'plan', lambda suite, measure, amp: (asked.append(amp) or [], []))
    monkeypatch.setattr(suites.Suite, 'check', lambda suite: None)
    for _ in range(2):
        outcome = run_tool(capfd, 'benchmark_suite', plan(tmp_path), '--dry-run', '--no-measure',
                           '--work-dir', tmp_path)
        assert outcome.code == 0, outcome.err
        (tmp_path / 'precision.json').write_text('{"amp": true}')
    assert asked == [False, True]


def test_the_plan(tmp_path, capfd, image_leaf):  # noqa: F811
    recipe = str(image_leaf.parent / '{method}.py')
    suite = suites.read(plan(tmp_path, tasks=dict(a={}), recipe=recipe, methods=['images'],
                             trials=3, seeds=[0, 1], retrain=['epochs=5'], pruner='median'))
    record, = suite_plan.plan(suite, False, False)[0]
    # 6 images, 2 epochs in each of 3 trials, 5 in each of 2 runs.
    assert (record['runs'], record['images'], record['hours']) == (5, 3 * 12 + 2 * 30, None)
    assert record['length'] == '5 epochs'
    outcome = run_tool(capfd, 'benchmark_suite', plan(tmp_path, seeds=[0, 1, 2]), '--dry-run',
                       '--no-measure', '--work-dir', tmp_path / 'out')
    assert outcome.code == 0 and '2 tasks x 2 methods: 12 runs' in outcome.out
    assert not (tmp_path / 'out').exists()


def test_hours_of_the_plan(tmp_path, monkeypatch):
    asked = []

    def measure(comparison, methods, steps, threads):
        asked.append((comparison.folder.name, *methods))
        return {methods[0]: dict(train_ms=90.0, threads=4, device='cpu')}, {}

    monkeypatch.setattr(runs.Comparison, 'measure', measure)
    path = plan(tmp_path, seeds=[0, 1], options=['iters=100', 'batch_size=8'])
    planned, notes = suite_plan.plan(suites.read(path), True, False)
    assert asked == [('a', 'head'), ('a', 'lora')] and notes == []  # b's differs in its data alone
    assert [record['images'] for record in planned] == 4 * [2 * 800]
    assert [record['hours'] for record in planned] == 4 * [pytest.approx(1600 * .09 * 4 / 3600)]


# --- executors -----------------------------------------------------------------------------------


def environment(**variables):
    folder = os.pathsep.join([str(ROOT), str(ROOT / 'tests'), os.environ.get('PYTHONPATH', '')])
    return dict(os.environ, PYTHONPATH=folder, OMP_NUM_THREADS='1', **variables)


def command(path, folder, *arguments):
    return [sys.executable, FAKE, 'suite', path, '--work-dir', folder, *arguments]


def call(path, folder, *arguments, **variables):
    """The command, with trainings that are the fake's."""
    return subprocess.run(list(map(str, command(path, folder, *arguments))), cwd=ROOT, text=True,
                          capture_output=True, env=environment(**variables))


def check_books(path, folder):
    """Every record is there once, of a training that was never begun again after its end."""
    suite = suites.read(path, folder)
    for each in suite.cells():
        for seed in suite.seeds:
            place = folder / each.task / f'{each.method}_seed{seed}'
            record = json.loads((place / 'run.json').read_text())
            assert (record['method'], record['seed']) == (each.method, seed)
            assert record['metrics']['mIoU'] == fake_tool.score(
                each.method, seed, list(suite.tasks[each.task].options))
            assert set((place / 'begun').read_text().split()) == {'new'}
        assert suite.state(each)['missing'] == []
    assert len(list(folder.glob('*/*_seed*'))) == len(suite.cells()) * len(suite.seeds)


@pytest.mark.long
def test_local_processes_and_a_cell_that_fails(tmp_path):
    tasks = dict(a={}, b=dict(options=['dataset.data_root=data/b', 'iters=13']))
    path, out = plan(tmp_path, tasks=tasks, seeds=[0, 1]), tmp_path / 'out'
    done = call(path, out, '--jobs', 2)
    assert done.returncode == 1, done.stderr
    assert '4 cells, 0 of them finished' in done.stdout
    lines = done.stderr.strip().splitlines()
    assert lines[-3] == '2 of 4 cells failed:'
    assert lines[-2].startswith('b/head: ') and 'seed 0: ' in lines[-2]
    assert 'the loss is nan' in lines[-2]
    table = json.loads((out / 'table.json').read_text())
    assert [bool(each['missing']) for each in table['cells']] == [False, False, True, True]
    assert table['summary']['mean'] == dict(head=None, lora=None)
    assert (out / 'a/report.html').is_file() and not (out / 'b/table.json').exists()
    again = call(plan(tmp_path, seeds=[0, 1]), out, '--jobs', 2)
    assert again.returncode == 0, again.stderr
    assert '4 cells, 2 of them finished' in again.stdout
    table = json.loads((out / 'table.json').read_text())
    scores = [[fake_tool.score(method, seed, options) for seed in (0, 1)]
              for options in ([], ['dataset.data_root=data/b']) for method in ('head', 'lora')]
    assert [each['scores'] for each in table['cells']] == scores
    assert table['summary']['parameters'] == dict(head=1.02, lora=1.22)


@pytest.mark.long
def test_two_processes_share_the_cells(tmp_path):
    path, out = plan(tmp_path, seeds=[0, 1]), tmp_path / 'out'
    begun = [subprocess.Popen(list(map(str, command(path, out, '--jobs', 1))), cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, env=environment(FAKE_SECONDS='1'))
             for _ in range(2)]
    told = [process.communicate()[0] for process in begun]
    assert [process.returncode for process in begun] == [0, 0]
    check_books(path, out)
    assert 'left for later' in ''.join(told)
    shares = [set(re.findall(r'^(\w/\w+): begins', text, re.MULTILINE)) for text in told]
    assert shares[0] and shares[1] and len(shares[0] | shares[1]) == 4


@pytest.mark.long
def test_shards_make_one_table(tmp_path):
    path, out = plan(tmp_path), tmp_path / 'out'
    for share in ('1/2', '2/2'):
        done = call(path, out, '--shard', share, '--jobs', 2)
        assert done.returncode == 0, done.stderr
        assert '2 cells, 0 of them finished' in done.stdout
    check_books(path, out)


def test_each_slot_has_a_gpu(monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '4,6')
    assert [executors._gpu(slot, 2) for slot in range(3)] == ['4', '6', '4']
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    assert [executors._gpu(slot, 2) for slot in range(3)] == ['0', '1', '0']


# --- Slurm


def test_settings_of_slurm():
    pytest.importorskip('submitit')
    assert executors.read_slurm(['partition=gpu', 'time=240', 'gpus_per_node=1', 'cpus_per_task=8',
                                 'mem=32GB', 'slurm_qos=low']) == dict(
        slurm_partition='gpu', slurm_time=240, gpus_per_node=1, cpus_per_task=8, slurm_mem='32GB',
        slurm_qos='low')
    assert executors.read_slurm(['cluster=local']) == dict(cluster='local')
    # An account of digits, a number that submitit wants as one, a list, what is yes or no.
    assert executors.read_slurm([
        'time=1', 'account=007', 'name=7', 'mem_gb=1.5', 'setup=module load cuda',
        'use_srun=False']) == dict(
        slurm_time=1, slurm_account='007', name='7', mem_gb=1.5, slurm_setup=['module load cuda'],
        slurm_use_srun=False)
    with pytest.raises(UserError, match='--slurm time=4: time is said twice'):
        executors.read_slurm(['time=3', 'time=4'])
    with pytest.raises(UserError, match='--jobs and --slurm array_parallelism say the same'):
        executors.slurm([], dict(slurm_array_parallelism=2), Path('.'), 2, print)
    with pytest.raises(UserError, match='--slurm: say time=MINUTES'):
        executors.read_slurm(['partition=gpu'])
    with pytest.raises(UserError, match='--slurm gpu: KEY=VALUE was expected'):
        executors.read_slurm(['gpu'])


SBATCH = """#!/bin/bash
# Runs what Slurm would, each job of an array with its number: a copy, as submitit moves the script.
cp "$1" {folder}/script_$$.sh
[ -n "{refuse}" ] && {{ echo 'sbatch: error: invalid partition specified: {refuse}' >&2; exit 1; }}
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
echo 'Submitted batch job 77'
export SLURM_JOB_ID SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0
export SLURM_LOCALID=0 SLURM_JOB_NODELIST=here
for i in $(seq 0 ${{last:-0}}); do
    SLURM_JOB_ID=$((100 + i)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$i \\
        bash {folder}/script_$$.sh >/dev/null 2>&1 </dev/null &
done
"""
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do
    [[ $1 == --output || $1 == --error ]] && shift
    shift
done
exec "$@"
"""


def slurm_here(folder, refuse=''):
    """Slurm's commands in a folder, on PATH: they keep the script, and run it."""
    folder.mkdir()
    sacct = '#!/bin/bash\necho "JobID|State|NodeList"\n'
    # The same job again, with the numbers that it has.
    scontrol = (f'#!/bin/bash\necho "$@" >> {folder}/scontrol.log\n'
                f'bash {folder}/script_*.sh >/dev/null 2>&1 </dev/null &\n')
    for name, text in dict(sbatch=SBATCH.format(folder=folder, refuse=refuse), srun=SRUN,
                           sacct=sacct, scontrol=scontrol).items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755 | stat.S_IXUSR)
    return dict(PATH=f'{folder}{os.pathsep}{os.environ["PATH"]}')


@pytest.mark.long
def test_submitit_here(tmp_path):
    pytest.importorskip('submitit')
    path, out = plan(tmp_path), tmp_path / 'out'
    done = call(path, out, '--executor', 'slurm', '--slurm', 'cluster=local', 'timeout_min=9')
    assert done.returncode == 0, done.stderr + done.stdout
    assert '4 jobs of local: ' in done.stdout
    check_books(path, out)


@pytest.mark.slow
def test_slurm(tmp_path):
    pytest.importorskip('submitit')
    path, out, bin = plan(tmp_path), tmp_path / 'out', tmp_path / 'bin'
    done = call(path, out, '--executor', 'slurm', '--jobs', 2, '--slurm', 'partition=gpu',
                'time=240', 'gpus_per_node=1', 'cpus_per_task=2', **slurm_here(bin))
    assert done.returncode == 0, done.stderr + done.stdout
    assert '4 jobs of slurm: 77_0 to 77_3' in done.stdout
    check_books(path, out)
    script, = bin.glob('script_*')
    text = script.read_text()
    for line in ('--partition=gpu', '--time=240', '--gpus-per-node=1', '--cpus-per-task=2',
                 '--array=0-3%2', '--job-name=vpt_dense'):
        assert f'#SBATCH {line}\n' in text, text
    assert re.search(rf'^srun .*{re.escape(sys.executable)}.* -m submitit.core._submit '
                     rf'{re.escape(str(out))}/submitit', text, re.MULTILINE), text


@pytest.mark.long
def test_slurm_when_a_job_is_preempted(tmp_path):
    """Slurm signals all processes of a job; submitit puts it into the queue again."""
    pytest.importorskip('submitit')
    path = plan(tmp_path, tasks=dict(a={}), seeds=[0, 1])
    out, bin = tmp_path / 'out', tmp_path / 'bin'
    process = subprocess.Popen(
        list(map(str, command(path, out, '--executor', 'slurm', '--slurm', 'time=240'))), cwd=ROOT,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment(FAKE_SECONDS='5', **slurm_here(bin)))
    limit = time.monotonic() + 200
    while not (out / 'a/lora_seed0/begun').exists() and time.monotonic() < limit:
        time.sleep(0.1)
    wanted = b'submitit.core._submit', str(out).encode()
    jobs = [int(file.parent.name) for file in Path('/proc').glob('[0-9]*/cmdline')
            if all(text in read_bytes(file) for text in wanted)]
    job, = [job for job in jobs if any(
        b'a/lora' in read_bytes(Path(f'/proc/{child}/cmdline')) for child in children(job))]
    for each in (job, *children(job)):
        os.kill(each, signal.SIGUSR2)
    told, _ = process.communicate(timeout=400)
    assert process.returncode == 0, told
    check_books(path, out)
    assert (bin / 'scontrol.log').read_text().startswith('requeue 77_')
    assert (out / 'a/lora_seed0/begun').read_text() == 'new\nnew\n'


def read_bytes(file):
    try:
        return file.read_bytes()
    except OSError:
        return b''


def test_what_slurm_refuses(tmp_path):
    pytest.importorskip('submitit')
    path, out = plan(tmp_path), tmp_path / 'out'
    job = executors.Job('a/head', ('x',), tmp_path)

    def refused(settings, **variables):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            with pytest.raises(UserError) as error:
                executors.slurm([job], settings, out, None, print)
        assert '\n' not in str(error.value)
        return str(error.value)

    settings = executors.read_slurm(['partition=gone', 'time=3'])
    told = refused(settings, **slurm_here(tmp_path / 'bin', refuse='gone'))
    assert told.startswith('Slurm takes no jobs: ') and 'invalid partition specified: gone' in told
    assert 'Could not detect "srun"' in refused(settings, PATH=str(tmp_path))
    there = dict(PATH=f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')
    assert "Unknown argument 'partitoin'" in refused(
        executors.read_slurm(['partitoin=gone', 'time=3']), **there)
    assert 'expected type' in refused(
        executors.read_slurm(['nodes=two', 'time=3']), **there)
    assert Path(path).exists() and not list(out.rglob('run.json'))


@pytest.mark.parametrize(('name', 'arguments'), [
    ('submitit', ['--executor', 'slurm', '--slurm', 'time=3']), ('ray', ['--executor', 'ray'])])
def test_an_extra_that_is_not_installed(tmp_path, capfd, monkeypatch, name, arguments):
    monkeypatch.setitem(sys.modules, name, None)
    outcome = run_tool(
        capfd, 'benchmark_suite', plan(tmp_path), '--work-dir', tmp_path / 'out', *arguments)
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    extra = arguments[1]
    assert f"--executor {extra} needs {name}: pip install 'vpt_dense[{extra}]'" in outcome.err


# --- what survives


def children(process):
    """Processes below one, by what Linux says of their parents."""
    parents = {}
    for file in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents[int(file.parent.name)] = int(file.read_text().rpartition(')')[2].split()[1])
        except (OSError, IndexError):
            continue
    found, new = set(), {process}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found


@pytest.mark.parametrize(('number_of_tasks', 'seeds', 'kills'), [
    pytest.param(1, 4, 2, marks=pytest.mark.slow), pytest.param(4, 13, 10, marks=pytest.mark.long)])
def test_kills_lose_and_double_nothing(tmp_path, number_of_tasks, seeds, kills):
    """Half of the kills leave the processes of the killed one behind, half hit a training too."""
    rng = random.Random(0)
    tasks = {f't{i}': dict(options=[f'dataset.data_root=data/{i}']) for i in range(number_of_tasks)}
    path, out = plan(tmp_path, tasks=tasks, methods=['full', 'head', 'lora', 'deep'],
                     seeds=list(range(seeds))), tmp_path / 'out'

    def number(name):
        return len(list(out.glob(f'*/*/{name}')))

    def until(what):
        limit = time.monotonic() + 300
        while not what():
            assert time.monotonic() < limit
            time.sleep(0.02)

    for kill in range(kills):
        process = subprocess.Popen(
            list(map(str, command(path, out, '--jobs', 2))), cwd=ROOT, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=environment(FAKE_SECONDS='0.5'))
        there = number('run.json')
        # Of few runs some must be left for the kill that follows, on a fast machine too.
        until(lambda there=there: number('run.json') > there + (2 if kills > 2 else 0))
        time.sleep(rng.uniform(0, 2 if kills > 2 else 1))
        if kill % 2:
            until(lambda process=process: any(
                b'\0train\0' in read_bytes(Path(f'/proc/{child}/cmdline'))
                for child in children(process.pid)))
            time.sleep(0.2)
        below = children(process.pid)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        for child in below if kill % 2 else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.wait()
    done = call(path, out, '--jobs', 2, FAKE_SECONDS='0.5')
    assert done.returncode == 0, done.stderr + done.stdout
    check_books(path, out)
    whole = 4 * number_of_tasks * seeds
    assert number('run.json') == whole
    begun = sum(len(file.read_text().split()) for file in out.glob('*/*/begun'))
    assert begun >= whole + (kills == 10)  # of so many one at least hits a training
    assert json.loads((out / 'table.json').read_text())['missing'] == []


@pytest.mark.slow
@pytest.mark.parametrize('orphans', [False, True])
def test_ray_when_a_worker_is_killed(tmp_path, orphans):
    """With the processes that it has begun, or without them."""
    pytest.importorskip('ray')
    path, out = plan(tmp_path, seeds=[0, 1, 2]), tmp_path / 'out'
    process = subprocess.Popen(
        list(map(str, command(path, out, '--executor', 'ray'))), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(FAKE_SECONDS='1'))
    limit = time.monotonic() + 200
    killed = None
    while killed is None and time.monotonic() < limit and process.poll() is None:
        time.sleep(0.1)
        for worker in children(process.pid):
            name = read_bytes(Path(f'/proc/{worker}/cmdline'))
            if name.startswith(b'ray::work') and list(out.glob('*/*/test.json')):
                for child in [worker, *(() if orphans else children(worker))]:
                    os.kill(child, signal.SIGKILL)
                killed = worker
                break
    told, errors = process.communicate(timeout=400)
    assert killed is not None, told + errors
    assert process.returncode == 0, told + errors
    check_books(path, out)


@pytest.mark.slow
@pytest.mark.parametrize('address', ['127.0.0.1:1', 'ray://127.0.0.1:1', 'auto', 'nonsense'])
def test_a_ray_head_that_is_not_there(tmp_path, capfd, monkeypatch, address):
    pytest.importorskip('ray')
    monkeypatch.delenv('RAY_ADDRESS', raising=False)
    outcome = run_tool(capfd, 'benchmark_suite', plan(tmp_path), '--work-dir', tmp_path / 'out',
                       '--executor', 'ray', '--ray-address', address)
    assert outcome.code == 2, outcome.err
    line, = outcome.err.splitlines()
    assert line.startswith(f'error: --ray-address {address}: ') and 'ray start --head' in line


# --- end to end ----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_real_suite(tmp_path, capfd):
    """Two data sets, two methods, trained; the table is of their tests."""
    for name, prompt in (('deep', 'num_tokens=2'), ('shallow', 'num_tokens=3, deep=False')):
        write_leaf(tmp_path, tmp_path / 'a', f"model['backbone']['prompt'] = dict({prompt})\n",
                   name=f'tiny_{name}')
    tasks = {}
    for name, count in (('a', 2), ('b', 3)):
        tiny_folder(tmp_path / name, num_images=count)
        tasks[name] = dict(options=[f'dataset.data_root={tmp_path / name}'])
    path = plan(tmp_path, tasks=tasks, recipe=str(tmp_path / 'tiny_{method}.py'),
                methods=['shallow', 'deep'], reference='shallow', amp='off')
    out = tmp_path / 'out'
    outcome = run_tool(capfd, 'benchmark_suite', path, '--work-dir', out, '--jobs', 2)
    assert outcome.code == 0, outcome.err + outcome.out
    table = json.loads((out / 'table.json').read_text())
    scores = {(each['task'], each['method']): each['mean'] for each in table['cells']}
    assert len(scores) == 4
    for (task, method), value in scores.items():
        told = json.loads((out / task / f'{method}_seed0/test.json').read_text())
        assert told['metrics']['mIoU'] == value and math.isfinite(value)
    for method in ('shallow', 'deep'):
        mean = (scores['a', method] + scores['b', method]) / 2
        assert table['summary']['mean'][method] == pytest.approx(mean)
    backbone = json.loads((out / 'a/deep_seed0/run.json').read_text())['backbone_total']
    heads = sum(json.loads((out / f'{task}/deep_seed0/run.json').read_text())['trainable'] - 128
                for task in 'ab')
    assert heads > 0 and table['summary']['parameters'] == dict(
        shallow=pytest.approx(1 + (2 * 96 + heads) / backbone),
        deep=pytest.approx(1 + (2 * 128 + heads) / backbone))
    assert (out / 'a/report.html').is_file() and (out / 'b/report.html').is_file()
    before = (out / 'table.json').read_text()
    outcome = run_tool(capfd, 'benchmark_suite', path, '--work-dir', out)
    assert outcome.code == 0 and '4 of them finished' in outcome.out
    assert json.loads((out / 'table.json').read_text())['cells'] == json.loads(before)['cells']
    outcome = run_tool(capfd, 'benchmark_suite', path, '--work-dir', out, '--table')
    assert outcome.code == 0 and 'missing' not in outcome.out
    outcome = run_tool(capfd, 'benchmark_suite', path, '--work-dir', out, '--dry-run')
    assert outcome.code == 0 and '2 tasks x 2 methods: 4 runs' in outcome.out
    assert re.search(r'\d\.\d\d [CG]PU-hours of training steps', outcome.out)
    assert len(list(out.glob('a/cost/*.json'))) == 2 and not (out / 'b/cost').exists()


# --- suites that come along ------------------------------------------------------------------


def test_the_papers_protocols_as_they_come_along():
    vtab, fgvc = (suites.read(f'vpt_dense::{name}') for name in ('vtab-1k', 'fgvc'))
    assert {name: task.group for name, task in vtab.tasks.items()} == {
        name: task.group for name, task in list_files.VTAB_TASKS.items()}
    assert set(fgvc.tasks) == set(list_files.FGVC_SETS)
    for suite in (vtab, fgvc):
        task = next(iter(suite.tasks))
        # 10 rates x 4 decays for SGD, 4 x 4 for AdamW: the paper's grids.
        trials = {method: suite.search(suites.Cell(task, method), False, check=False).trials
                  for method in suite.methods}
        assert trials == dict(full=16, bias=16, linear=40, shallow=40, deep=40)
        assert suite.seeds == [42, 44, 82, 100, 800]
    cfg = vtab.comparison('kitti', True, False).config('deep')
    assert cfg.train_dataloader.dataset.split == 'train800val200' and not cfg.val_dataloader
    assert cfg.test_dataloader.dataset.split == 'test' and cfg.model.head.num_classes == 4


def test_a_suite_that_comes_along_finds_itself_in_each_cell(tmp_path, capfd, monkeypatch):
    begun = []
    monkeypatch.setattr(suites.Suite, 'check', lambda suite: None)
    monkeypatch.setattr(suites.Suite, 'state', lambda suite, cell: dict(
        results=[], found=None, missing=['seed 0'], failures={}))
    monkeypatch.setattr(executors, 'local', lambda jobs, *rest: begun.extend(jobs) or {})
    outcome = run_tool(capfd, 'benchmark_suite', 'vpt_dense::fgvc', '--work-dir', tmp_path)
    assert outcome.code == 0 and len(begun) == 25, outcome.err
    *_, name, _, cell, _, folder = begun[0].command
    assert str(suites.read(name, Path(folder)).find(cell)) == 'CUB_200_2011/full'


def test_spaces_of_methods_alone(tmp_path):
    suite = suites.read(plan(
        tmp_path, trials=4, sampler='grid',
        method_space=dict(head=['lr=1,2'], lora=['lr=1,2', 'weight_decay=0,1,2'])), tmp_path / 'o')
    assert [suite.trials(each) for each in suite.cells()] == [2, 4, 2, 4]


@pytest.mark.parametrize(('found', 'message'), [
    ({'dep': ['lr=1,2']}, 'method_space.dep.*deep'), ({'deep': 'lr=1,2'}, 'KEY=VALUE'),
    ({'deep': ['lr=2:1']}, 'method_space.deep: lr=2:1.*LOW below HIGH'), (['lr=1'], 'a dict')])
def test_bad_spaces_of_methods(tmp_path, found, message):
    with pytest.raises(UserError, match=message):
        suite_of(tmp_path, methods=['deep'], trials=2, method_space=found)


def suite_of(folder, **said):
    file = folder / 'suite.json'
    file.write_text(json.dumps(dict(
        dict(tasks=dict(a={}), recipe=str(CONFIGS / 'vpt/vit-b_imagefolder.py')), **said)))
    return suites.read(str(file))


@pytest.mark.parametrize(('found', 'message'), [
    ({'hed': ['lr=1']}, 'method_options.hed.*head'), ({'head': 'lr=1'}, 'KEY=VALUE'),
    ({'head': ['lr']}, 'method_options.head.*KEY=VALUE'), (3, 'a dict')])
def test_bad_options_of_methods(tmp_path, found, message):
    with pytest.raises(UserError, match=message):
        suite_of(tmp_path, methods=['head'], method_options=found)


def test_options_of_one_method(tmp_path):
    """They come behind those of the task, before those of ``retrain``, and are not searched."""
    suite = suite_of(
        tmp_path, methods=['head', 'deep'], options=['lr=2e-3', 'batch_size=3'], trials=2,
        retrain=['batch_size=5'],
        method_options=dict(head=['feature_cache.folder=features', 'head_lr=7e-3', 'batch_size=4']))
    cell = {method: suites.Cell('a', method) for method in suite.methods}

    def load(method, final):
        return suite.comparison('a', final, False).config(method)

    assert [[hook.folder for hook in load(method, False).custom_hooks
             if hook.type == 'vpt_dense.FeatureCacheHook'] for method in suite.methods] == [
                 ['features'], []]
    assert [load(method, final).train_dataloader.batch_size
            for method in ('head', 'deep') for final in (False, True)] == [4, 5, 3, 5]
    assert set(suite.search(cell['deep'], False).space) == {'head_lr', 'weight_decay'}
    assert set(suite.search(cell['head'], False).space) == {'weight_decay'}
    suite.method_space = dict(head=['head_lr=1e-3,1e-2'])
    with pytest.raises(UserError, match=r'a/head: --space head_lr: --cfg-options sets it too'):
        suite.check()
