"""The benchmarks of metric and loader run and measure what they say."""

import json
import re

import numpy as np
import pytest
import torch
from tool_helpers import forget_runs, run_tool
from utils import CONFIGS, ROOT


@pytest.fixture
def run(capfd, monkeypatch):
    """Runs a benchmark as its command line would, in this process."""
    monkeypatch.syspath_prepend(ROOT / 'tools/benchmark')
    yield lambda script, *arguments: run_tool(capfd, f'benchmark/{script}', *arguments)
    forget_runs()


def test_metric(run, tmp_path):
    path = tmp_path / 'figures.json'
    done = run('metric', '--images', 3, '--size', 40, 50, '--classes', 9, '--rounds', 2,
               '--json', path)  # fmt: skip
    assert (done.code, done.err) == (0, '')
    rows = re.findall(r'│ +(mmseg|vpt_dense) +│ +([\d.]+) ±', done.out)
    assert [name for name, _ in rows] == ['mmseg', 'vpt_dense'] and float(rows[0][1]) == 1
    figures = json.loads(path.read_text())['figures']
    assert figures['numbers']['mmseg'] == figures['numbers']['vpt_dense']
    assert 0 < float(figures['numbers']['mmseg']['mIoU']) < 100
    assert [len(times) for times in figures['seconds'].values()] == [2, 2]


def test_metric_refuses_numbers_that_differ(run, monkeypatch):
    from vpt_dense.evaluation import IoUMetric

    monkeypatch.setattr(IoUMetric, 'evaluate', lambda self, size: {'mIoU': 1.0})
    done = run('metric', '--images', 2, '--size', 9, 9, '--rounds', 2)
    assert done.code == 2 and 'the numbers differ' in done.err


@pytest.mark.slow
@pytest.mark.parametrize('config', ['setr_vit-l_deep_ade20k', 'vit-b_deep_imagefolder'])
def test_loader(config, run, tmp_path):
    path = tmp_path / 'figures.json'
    done = run('loader', '--images', 2, '--rounds', 2, '--workers', 0, 1, '--cv2-threads', 0,
               '--prefetch', 1, '--json', path,
               '--config', CONFIGS / f'vpt/{config}.py')  # fmt: skip
    assert (done.code, done.err) == (0, '')
    figures = json.loads(path.read_text())['figures']
    steps = figures['steps']['ours']
    assert {'LoadImageFromFile'} < steps.keys()
    assert ('vpt_dense.LoadMask' in steps) is ('setr' in config)
    assert all(len(times) == 2 and min(times) > 0 for times in steps.values())
    shares = [int(share) for share in re.findall(r'│ +(\d+)% │', done.out)]
    assert shares[-1] == 100 and abs(sum(shares[:-1]) - 100) <= len(shares)
    assert figures['decoders']['cv2 (the default)'][1] == 0
    assert figures['decoders']['cv2 at half size'][1] > 0  # not the same pixels
    assert [loader['workers'] for loader in figures['loaders']] == [0, 1]
    assert all(len(loader['seconds']) == 2 for loader in figures['loaders'])


def test_loader_refuses_pipelines_that_differ(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/benchmark')
    import loader

    from vpt_dense.errors import UserError

    class Sample(dict):
        pass

    def pack(shift):
        def step(results):
            pixels = torch.from_numpy(np.random.randint(0, 9, (3, 4, 4)) + shift)
            return dict(inputs=pixels, data_samples=Sample())
        return [step]

    infos = [dict(img_path='a.jpg')]
    assert loader.time_steps({'stock': pack(0), 'ours': pack(0)}, infos, 2).keys() == {
        'stock', 'ours'}  # fmt: skip
    with pytest.raises(UserError, match='a.jpg: the pipelines give different samples'):
        loader.time_steps({'stock': pack(0), 'ours': pack(1)}, infos, 2)


@pytest.mark.parametrize(('script', 'arguments', 'told'), [
    ('metric', ['--images', '0'], '--images and --size must be at least 1'),
    ('metric', ['--classes', '256'], '--classes 2 to 255'),
    ('metric', ['--dtype', 'bfloat16'], '--dtype: pixels are counted'),
    ('loader', ['--images', '1'], '--images must be at least 2'),
    ('loader', ['--batch', '0'], '--batch must be at least 1'),
    ('loader', ['--data', 'nowhere', '--images', '2'], 'nowhere'),
])  # fmt: skip
def test_bad_options_are_one_line(script, arguments, told, run):
    done = run(script, *arguments)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert told in line
