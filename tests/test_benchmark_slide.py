"""The benchmark of sliding windows runs and compares like with like."""

import functools
import importlib
import json
import sys

import pytest
import torch
from utils import ROOT

from vpt_dense.errors import main

TINY = ['--arch', 'deit-tiny', '--layers', '4', '--crop', '32', '--image', '32', '45', '--rounds',
        '2', '--windows-per-batch', '1', '4']


@pytest.fixture
def slide(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmark'))
    return importlib.import_module('slide')


@pytest.fixture
def command(slide, monkeypatch, capsys):
    """Runs the benchmark in this process; returns its exit code, output and errors."""
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['slide.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main(slide.run)
        return left.value.code, *capsys.readouterr()
    return run


@pytest.mark.parametrize(('head', 'dtype'), [
    ('pup', 'float32'), ('mla', 'float32'),
    pytest.param('pup', 'bfloat16', marks=pytest.mark.long),
    pytest.param('naive', 'float32', marks=pytest.mark.long)])
def test_measures_all_ways(command, tmp_path, head, dtype):
    file = tmp_path / 'figures.json'
    code, out, err = command(*TINY, '--head', head, '--dtype', dtype, '--json', file)
    assert (code, err) == (0, '')
    figures = json.loads(file.read_text())['figures']
    assert figures['script'] == 'slide'
    ways = ['mmseg', 'ours, 1 windows at a time', 'ours, 4 windows at a time']
    tests = ['slide', 'scales 0.5, 1 and flip']
    assert [(r['test'], r['way']) for r in figures['rows']] == [(t, w) for t in tests for w in ways]
    for row in figures['rows']:
        assert len(row['seconds']) == 2 and min(row['seconds']) > 0
    cells = [[cell.strip() for cell in line.split('│')[1:-1]] for line in out.splitlines()
             if line.startswith('│')]
    assert [cell[:2] for cell in cells] == [[t, w] for t in tests for w in ways]
    assert all(float(cell[2].split()[0]) > 0 for cell in cells)
    assert dtype in out and f'SETR-{head.upper()}' in out


def test_compares_the_same_modules_and_images(slide, monkeypatch):
    from mmseg.models import EncoderDecoder, SegTTAModel

    from vpt_dense import segmentors

    monkeypatch.setattr(sys, 'argv', ['slide.py', *TINY])
    seen = []
    for kind in (EncoderDecoder, segmentors.EncoderDecoder, SegTTAModel, segmentors.SegTTAModel):
        def watch(self, data, kind=kind, test_step=kind.test_step):
            result = test_step(self, data)
            if type(self) is kind:
                model = getattr(self, 'module', self)
                labels = torch.cat([sample.pred_sem_seg.data for sample in result])
                seen.append((kind, model.test_cfg.windows_per_batch, model.backbone, data, labels))
            return result

        monkeypatch.setattr(kind, 'test_step', watch)
    for call in slide.ways(slide.arguments()).values():
        seen_before = len(seen)
        call()
        del seen[seen_before:-1]  # the single steps that mmseg's augmented testing consists of
    for theirs, ours, rows in ((EncoderDecoder, segmentors.EncoderDecoder, seen[:3]),
                               (SegTTAModel, segmentors.SegTTAModel, seen[3:])):
        assert [row[:2] for row in rows] == [(theirs, 1), (ours, 1), (ours, 4)]
        (_, _, backbone, data, labels), *others = rows
        assert labels.shape == (1, 32, 45) and labels.unique().numel() > 1
        for _, _, other_backbone, other_data, other_labels in others:
            assert other_backbone is backbone and other_data is data
            assert (labels == other_labels).float().mean() > 0.99


def test_peak_is_that_of_the_call(slide):
    found = [slide.peak_bytes(functools.partial(torch.ones, megabytes * 2**18), 'cpu') / 2**20
             for megabytes in (64, 256)]
    assert found == pytest.approx([64, 256], abs=20)


@pytest.mark.parametrize(('arguments', 'told'), [
    (['--rounds', '1'], '--rounds must be at least 2'),
    (['--crop', '40'], '--crop must be a multiple of 16, found 40'),
    (['--stride', '1000'], '--stride must be 1 to 512, the crop, found 1000'),
    (['--windows-per-batch', '0'], '--windows-per-batch must be at least 1, found 0'),
    (['--layers', '0'], '--layers must be at least 1, found 0'),
    (['--image', '8', '64'], '--image times --scales must be at least a patch of 16 pixels'),
    (['--arch', 'giant-27'], "--arch giant-27: not one of ['b', "),
    (['--head', 'mla', '--layers', '2'], '--layers must be at least 4 for --head mla, found 2'),
])
def test_bad_options_are_one_line(command, arguments, told):
    code, _, err = command(*arguments)
    assert code == 2
    (line,) = err.splitlines()
    assert told in line
