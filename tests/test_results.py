"""The page of results is made of records."""

import importlib.util
import json

import pytest
from utils import ROOT

from vpt_dense.errors import UserError


@pytest.fixture
def results(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('results', ROOT / 'tools/results.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'RECORDS', tmp_path)
    monkeypatch.setattr(module, 'PAGE', tmp_path / 'page.md')
    return module


def record(**scores):
    rows = [dict(method=method, scores=own, seeds=[0, 1, 2], trainable=10, backbone_trainable=5,
                 percent=1.0, disk_megabytes=0.5, train_ms=None, test_ms=None, peak_megabytes=7.0)
            for method, own in scores.items()]
    return dict(metric='mIoU', rows=rows, searched=dict(deep=['lr=0.01']))


def test_intervals_are_those_of_paired_differences(results):
    pytest.importorskip('scipy')
    own, other = {0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0}
    # Differences 1, 2, 3: their standard deviation is 1, Student's quantile with two degrees 4.303.
    mean, half = results.interval(own, other)
    assert mean == 2 and half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert results.interval({0: 1.0}, other) is None


def test_the_page(results, tmp_path):
    pytest.importorskip('scipy')
    (tmp_path / 'a.json').write_text(json.dumps(record(head=[10, 20, 30], deep=[11, 22, 33])))
    begin = '<!-- a: python tools/results.py page -->'
    results.PAGE.write_text(f'before\n{begin}\nold\n<!-- end -->\nbehind <!-- end -->\n')
    results.page()
    text = results.PAGE.read_text()
    assert text.startswith(f'before\n{begin}\n| method') and 'old' not in text
    assert text.endswith('<!-- end -->\nbehind <!-- end -->\n')
    assert '| deep | 22.0 ± 11.0 | +2.0 ± 2.5 | 5 | 1.00 | 0.50 | - | 7 | lr=0.01 |' in text
    assert text.index('| deep') < text.index('| head')
    results.page()
    assert results.PAGE.read_text() == text
    results.PAGE.write_text('nothing')
    with pytest.raises(UserError, match='page.md has no line'):
        results.page()


def test_the_committed_page_is_that_of_the_records(results, monkeypatch):
    pytest.importorskip('scipy')
    monkeypatch.setattr(results, 'RECORDS', ROOT / 'docs/results')
    before = (ROOT / 'docs/results.md').read_text()
    results.PAGE.write_text(before)
    results.page()
    assert results.PAGE.read_text() == before
