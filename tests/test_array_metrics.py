"""Outcomes of a validation that are arrays: told, stored, and no end of a run."""

import json

import numpy as np
import pytest
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from test_checkpoints import _quick, build  # noqa: F401  a fixture
from test_classification import VPT, flowers, tiny_folder  # noqa: F401  a fixture
from tool_helpers import forget_runs
from utils import in_scope

from vpt_dense import config, safe_files
from vpt_dense.errors import UserError

ARRAYS = [
    dict(type='ConfusionMatrix'),
    dict(type='SingleLabelMetric', average=None, items=['recall', 'support']),
]


@METRICS.register_module()
class Halves(BaseMetric):
    """A NumPy array, as a metric of a user may return it."""

    default_prefix = 'own'

    def process(self, data_batch, data_samples) -> None:
        self.results.extend(data_samples)

    def compute_metrics(self, results) -> dict:
        return {'halves': np.array([0.5, np.nan, 1.5], dtype=np.float32)}


def run(flowers, tmp_path, metrics, epochs=1, **options):  # noqa: F811
    from vpt_dense.engine.runner import Runner

    forget_runs()
    in_scope('mmpretrain')
    cfg = config.load(str(VPT / 'vit-b_deep_imagefolder.py'), tiny_folder(
        tmp_path, flowers, val_evaluator=metrics, test_evaluator=metrics,
        **{'train_cfg.max_epochs': epochs, **options}))  # fmt: skip
    cfg.visualizer.vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.mark.slow
def test_they_are_told_and_stored(flowers, tmp_path):  # noqa: F811
    metrics = [dict(type='Accuracy'), *ARRAYS, dict(type='mmengine.Halves')]
    runner = run(flowers, tmp_path, metrics)
    runner.test()
    results = [
        json.loads((tmp_path / 'evaluations.json').read_text())[0]['metrics'],
        json.loads((tmp_path / 'summary.json').read_text())['last']['metrics'],
        json.loads((tmp_path / 'test.json').read_text())['metrics'],
    ]
    for result in results:
        matrix = np.array(result['confusion_matrix/result'])
        assert matrix.sum(1).tolist() == [4, 4, 4]  # images of each class
        assert result['single-label/support_classwise'] == [4, 4, 4]
        recall = result['single-label/recall_classwise']
        assert recall == pytest.approx((100 * matrix.diagonal() / 4).tolist())
        assert result['accuracy/top1'] == pytest.approx(100 * matrix.trace() / 12)
        assert result['own/halves'] == [0.5, None, 1.5]
    assert json.loads((tmp_path / 'summary.json').read_text())['metric'] == 'accuracy/top1'
    log = max(tmp_path.glob('2*/*.log')).read_text()
    assert 'confusion_matrix/result: \ntensor([[' in log
    (scalars,) = tmp_path.glob('2*/vis_data/scalars.json')
    shown = {}
    for line in scalars.read_text().splitlines():
        shown.update(json.loads(line))
    for label, value in zip(('iris', 'rose', 'tulip'), recall, strict=True):
        assert shown[f'single-label/recall_classwise/{label}'] == value
    # The checkpoint of the next epoch holds them in the log history: it can be gone on from.
    forget_runs()
    again = run(flowers, tmp_path, metrics, 3, resume=True)
    assert again.epoch == 3 and safe_files.read(str(tmp_path / 'epoch_3.pth'))


def test_without_any_number(flowers, tmp_path):  # noqa: F811
    metrics = ARRAYS[:1]
    with pytest.raises(UserError, match="save_best='auto' .* gives no number, but confusion_matri"):
        run(flowers, tmp_path, metrics, **{'default_hooks.checkpoint.save_best': 'auto'})
    runner = run(flowers, tmp_path, metrics, **{'default_hooks.checkpoint.save_best': None})
    assert runner.epoch == 1
    (scalars,) = max(tmp_path.glob('2*')).glob('vis_data/scalars.json')
    assert {'step': 3} not in [json.loads(line) for line in scalars.read_text().splitlines()]
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['metric'] is None and 'confusion_matrix/result' in summary['last']['metrics']


def test_an_array_is_followed_by_nothing(flowers, tmp_path):  # noqa: F811
    hook = dict(type='EarlyStoppingHook', monitor='confusion_matrix/result', rule='greater')
    with pytest.raises(UserError, match=r'is an array of shape \(3, 3\), and only a number'):
        run(flowers, tmp_path, ARRAYS, custom_hooks=[hook],
            **{'default_hooks.checkpoint.save_best': None})  # fmt: skip


def test_the_best_is_by_the_first_number(tmp_path, monkeypatch):
    """An array in front of it does not count."""
    runner = build(tmp_path, 3, hook=dict(save_best='auto', rule='greater'))
    metric = runner._val_evaluator[0]
    compute = metric.compute_metrics
    monkeypatch.setattr(metric, 'compute_metrics', lambda results: {
        'first': np.ones((2, 2)), **compute(results)})  # fmt: skip
    runner.train()
    assert [file.name for file in tmp_path.glob('best_*')] == ['best_a_iter_2.pth']
