"""A task is a record: a third one, tests/toy_task.py, in everything that its record promises."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import HOOKS, MODELS, VISUALIZERS
from PIL import Image
from tool_helpers import in_process, run_tool
from utils import CONFIGS, randomise

from vpt_dense import building, config, params, tasks
from vpt_dense.comparison import runs

RECIPE = """
_base_ = ['{configs}/_base_/default_runtime_cls.py', '{configs}/_base_/optim/classification.py']
custom_imports = dict(imports=['toy_task'])
work_dir = '{folder}/work'
dataset = dict(data_root='{folder}/data')
model = dict(
    type='Regressor',
    data_preprocessor=dict(
        type='ImgDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3, bgr_to_rgb=True),
    backbone=dict(
        type='vpt_dense.VisionTransformer', img_size=32, patch_size=8, out_type='cls_token',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        init_cfg=dict(type='Pretrained', checkpoint='{folder}/base.pth')),
    regression_head=dict(type='BrightnessHead', in_channels=32))
_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(32, 32)),
    dict(type='PackInputs', meta_keys=('img_path', 'ori_shape', 'number'))]
_loader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='Brightness', data_prefix=dict(img_path='train'), pipeline=_pipeline))
train_dataloader = dict(**_loader)
val_dataloader = dict(**_loader)
test_dataloader = dict(**_loader)
val_evaluator = dict(type='MeanError')
test_evaluator = val_evaluator
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
default_hooks = dict(logger=dict(type='LoggerHook', interval=1), timer=dict(type='IterTimerHook'),
                     checkpoint=dict(type='CheckpointHook', interval=1, save_best=None))
"""


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    """A recipe of the toy task; the task is known as long as this module runs."""
    folder = tmp_path_factory.mktemp('toy')
    (folder / 'data/train').mkdir(parents=True)
    rng, numbers = np.random.default_rng(0), {}
    for name in 'abcdefgh':
        number = rng.random()
        pixels = (255 * number + rng.integers(-9, 9, (40, 40, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'data/train/{name}.png')
        numbers[f'{name}.png'] = number
    (folder / 'data/train/numbers.json').write_text(json.dumps(numbers))
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    base = randomise(MODELS.build(dict(
        type='vpt_dense.VisionTransformer', img_size=32, patch_size=8, arch=arch)))
    torch.save(base.state_dict(), folder / 'base.pth')
    path = folder / 'toy.py'
    path.write_text(RECIPE.format(configs=CONFIGS, folder=folder))
    before = dict(tasks.TASKS)
    built = building.build_model(config.load(str(path), None, 'deep'), 'meta')
    model = built.to_empty(device='cpu')
    torch.save(dict(state_dict=randomise(model).state_dict(), meta={}), folder / 'a.pth')
    yield path
    tasks.TASKS.clear()
    tasks.TASKS.update(before)


def test_a_third_task(recipe, capfd):
    """It trains, is judged by its metric, counted, checked, measured and predicted."""
    folder = recipe.parent
    trained = run_tool(capfd, 'train', recipe, '--method', 'deep')
    assert trained.code == 0, trained.err
    work = folder / 'work'
    summary = json.loads((work / 'summary.json').read_text())
    records = json.loads((work / 'evaluations.json').read_text())
    scores = [record['metrics']['mae'] for record in records]
    assert summary['metric'] == 'mae' and len(scores) == 3 and len(set(scores)) > 1
    assert summary['best']['metrics']['mae'] == min(scores)
    parts = summary['params']['parts']
    assert parts['regression head'] == dict(trainable=33, total=33)
    assert parts['prompt']['trainable'] == 2 * 10 * 32
    share = params.format_percent(summary['params']['percent'])
    assert f'mean error {scores[-1]:.2f} · {2 * 10 * 32 + 33:,} trainable ({share})' in trained.out
    assert re.search(r'model +Regressor, VisionTransformer, BrightnessHead', trained.out)

    tested = run_tool(capfd, 'test', recipe, work / 'epoch_3.pth', '--method', 'deep')
    assert tested.code == 0, tested.err
    measured = json.loads((work / 'test.json').read_text())['metrics']['mae']
    assert measured == pytest.approx(scores[-1])

    for option in ([], ['--memory']):
        counted = run_tool(capfd, 'count_params', recipe, '--method', 'deep', '--json', *option)
        (found,) = json.loads(counted.out).values()
        assert found['parts'] == parts
    assert found['memory']['megabytes']['weights'] == pytest.approx(4e-6 * found['total'], rel=0.01)

    checked = run_tool(capfd, 'check_dataset', recipe, '--json')
    report = json.loads(checked.out)
    assert (report['task'], report['ok'], report['splits']['train']['images']) == (
        'regression', True, 8)

    images = sorted(map(str, (folder / 'data/train').glob('*.png')))
    for again in ([], ['--skip-existing']):
        predicted = run_tool(
            capfd, 'predict', recipe, work / 'epoch_3.pth', *images, '--method', 'deep', '--out',
            folder / 'out', *again)
        assert predicted.code == 0, predicted.err
    lines = [json.loads(line) for line in (folder / 'out/predictions.jsonl').open()]
    numbers = json.loads((folder / 'data/train/numbers.json').read_text())
    assert [line['path'] for line in lines] == images
    errors = [abs(line['number'] - numbers[Path(line['path']).name]) for line in lines]
    assert np.mean(errors) == pytest.approx(scores[-1])
    told = json.loads((folder / 'out/summary.json').read_text())
    assert (told['task'], told['predicted'], told['existing']) == ('regression', 0, 8)


def test_methods_are_compared_by_its_metric(recipe, capfd, monkeypatch):
    monkeypatch.setattr(runs, 'call', in_process(capfd, calls := []))
    out = recipe.parent / 'compared'
    compared = run_tool(
        capfd, 'compare', recipe, '--methods', 'deep', 'lora', '--work-dir', out, '--jobs', 1,
        '--amp', 'off', '--steps', 1, '--cfg-options', 'train_cfg.max_epochs=1')
    assert compared.code == 0, compared.err
    assert calls.count('cost') == 2
    table = json.loads((out / 'table.json').read_text())
    assert table['metric'] == 'mae' and [row['method'] for row in table['rows']] == ['deep', 'lora']
    assert all(row['mean'] > 0 and row['train_ms'] > 0 for row in table['rows'])


@pytest.mark.parametrize(('tool', 'option', 'message'), [
    ('test', ['--tta'], '--tta: the config has no tta_model'),
    ('test', ['--out', 'x'], '--out: not for the task regression, whose record has no store'),
    ('test', ['--show-dir', 'x'], '--show-dir: not for the task regression, whose record has no'),
    ('test', ['--no-labels'], '--no-labels: test_dataloader.dataset is a Brightness, which always'),
    ('predict', ['--overlay', '--out', 'x'], '--overlay is for segmentation, this model is of reg'),
    ('export', ['--out', 'x.pt2'], 'an exported model: not for the task regression'),
    ('train', ['--cfg-options', 'ensemble.seeds=[0,1]'], 'there is none of model.regression_head'),
])
def test_what_its_record_does_not_promise_is_refused(
    recipe, capfd, tmp_path, monkeypatch, tool, option, message
):
    checkpoint, image = recipe.parent / 'a.pth', recipe.parent / 'data/train/a.png'
    monkeypatch.chdir(tmp_path)
    arguments = dict(train=[], test=[checkpoint], predict=[checkpoint, image], export=[checkpoint])
    refused = run_tool(capfd, tool, recipe, *arguments[tool], '--method', 'deep', *option)
    assert refused.code == 2, refused.err
    assert message in refused.err and refused.err.count('\n') == 1


def test_a_number_that_cannot_be_is_named(recipe, capfd):
    listing = recipe.parent / 'data/train/numbers.json'
    before = listing.read_text()
    try:
        listing.write_text(json.dumps({**json.loads(before), 'c.png': float('nan')}))
        checked = run_tool(capfd, 'check_dataset', recipe)
        assert checked.code == 1 and 'numbers that are none' in checked.out
        trained = run_tool(capfd, 'train', recipe, '--method', 'deep')
        assert trained.code == 2 and 'c.png: its number is nan' in trained.err
    finally:
        listing.write_text(before)


def test_two_tasks_of_one_head_are_refused():
    own = tasks.TASKS['segmentation']
    tasks.add(own)
    with pytest.raises(ValueError, match='there is a task segmentation with model.decode_head'):
        tasks.add(tasks.Task('other', 'decode_head', 'head', 'x'))


def test_every_name_of_the_records_exists():
    """Functions and classes are named, and found when they are needed: here all of them."""
    for task in map(tasks.TASKS.get, ('segmentation', 'classification')):
        for key in ('sample', 'check_sample', 'check_data', 'predict', 'writer'):
            assert callable(task.function(key, 'a test'))
        found = {HOOKS.get(task.store), HOOKS.get(task.drawing['type']), MODELS.get(task.ensemble),
                 VISUALIZERS.get(task.visualizer['type'])}
        assert len(found) == 4 and None not in found


@pytest.mark.parametrize(('metric', 'value', 'text'), [
    ('rmse', 0.41267, '0.413'), ('night/abs_rel', 0.0819, '0.082'), ('rmse', 12.3456, '12.35'),
    ('mean_angle', 9.8765, '9.877'), ('mean_angle', 22.456, '22.46'), ('mIoU', 5.4321, '5.43'),
    ('accuracy/top1', 88.888, '88.89'), ('d1', 0.9137, '0.914')])
def test_a_value_of_a_metric_as_text(metric, value, text):
    assert tasks.told(metric, value) == text


def test_small_errors_have_three_decimals_in_tables_of_comparisons():
    from vpt_dense.comparison import report

    row = dict(method='deep', mean=0.4127, std=0.0023, marked=False, sets={'night': 0.5556},
               seeds=[0], trainable=1, backbone_trainable=1, disk_megabytes=None, train_ms=None,
               test_ms=None, peak_megabytes=None)
    assert report.cells(row, 'rmse')[1:3] == ['0.413 ± 0.002', '0.556']
    assert report.cells(row, 'mIoU')[1:3] == ['0.41 ± 0.00', '0.56']
