"""The pages of results are made of records; a row can be checked."""

import importlib.util
import json
import statistics
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from utils import ROOT

from vpt_dense.errors import UserError

pytest.importorskip('scipy')  # Student's quantiles
RECORDS = ROOT / 'docs/results'


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results():
    return script('results')


def record(study, **scores):
    rows = [dict(method=method, scores=own, seeds=[0, 1, 2], trainable=10, backbone_trainable=5,
                 percent=1.0, disk_megabytes=0.5, train_ms=None, test_ms=None, peak_megabytes=7.0)
            for method, own in scores.items()]
    return dict(
        study=study, metric='mIoU', trials=10, rows=rows, searched=dict(deep=['lr=0.01']))


def test_the_pages_are_those_of_the_records(results, monkeypatch):
    """Every table is written by the tool; every record has one."""
    before = {name: (ROOT / name).read_text(encoding='utf-8') for name in results.PAGES}
    written = {}
    monkeypatch.setattr(
        results.safe_files, 'write_text',
        lambda path, text: written.setdefault(path.relative_to(ROOT).as_posix(), text))
    drawn = []
    monkeypatch.setattr(results, 'draw', lambda record: drawn.append(record['study']))
    results.page()
    assert written == before
    assert {file.stem for file in RECORDS.glob('*.svg')} == set(drawn)
    for name in drawn:
        assert f'(results/{name}.svg)' in before['docs/results.md']


def test_what_has_not_run_is_said(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'RECORDS', tmp_path)
    (tmp_path / 'camvid-16.json').write_text('{}')
    lines = results.open_table().splitlines()[2:]
    assert [line.split('`')[1] for line in lines] == [
        name for name in results.STUDIES if name != 'camvid-16']
    assert ('| `camvid-tenth` | `results/camvid_dinov2-s` `subset.share=0.1` | head, deep, lora, '
            'full |') in lines


def test_an_interval_is_students(results):
    own, other = {0: 11.0, 1: 22.0, 2: 33.0}, {0: 10.0, 1: 20.0, 2: 30.0}
    # Differences 1, 2, 3: their standard deviation is 1, Student's quantile with two degrees 4.303.
    mean, half = results.interval(own, other)
    assert mean == 2 and half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)
    assert results.interval({0: 1.0}, other) is None


def test_a_page(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'RECORDS', tmp_path)
    monkeypatch.setattr(results, 'ROOT', tmp_path)
    monkeypatch.setattr(results, 'PAGES', ('page.md',))
    page = tmp_path / 'page.md'
    (tmp_path / 'camvid-16.json').write_text(
        json.dumps(record('camvid-16', head=[10, 20, 30], deep=[11, 22, 33], rein=[1, 2, 3])))
    begin, short = (f'<!-- camvid-16{end}: python tools/results.py page -->'
                    for end in ('', ' in short'))
    page.write_text(f'before\n{begin}\nold\n<!-- end -->\nbehind <!-- end -->\n'
                    f'{short}\nold\n<!-- end -->')
    results.page()
    text = page.read_text()
    assert text.startswith(f'before\n{begin}\n| method') and 'old' not in text
    long, short = text.split('behind <!-- end -->')
    assert '| deep | 22.0 ± 11.0 | +2.0 ± 2.5 | 5 | 1.00 | 0.50 | - | 7 | lr=0.01 |' in long
    assert long.index('| deep') < long.index('| head') < long.index('| rein')
    assert long.endswith('\n\nNot run yet: lora, full.\n<!-- end -->\n')
    assert '| deep | 22.0 ± 11.0 | 5 | 1.00 | 0.50 |' in short and 'rein' not in short
    results.page()
    assert page.read_text() == text
    page.write_text('nothing')
    with pytest.raises(UserError, match='no page has a line <!-- camvid-16: '):
        results.page()


def test_further_metrics_have_columns(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'ROOT', tmp_path)
    for seed, score in enumerate((10, 20, 30)):
        run = tmp_path / f'work_dirs/results/nuclei-instances/deep_seed{seed}/run.json'
        run.parent.mkdir(parents=True)
        run.write_text(json.dumps(dict(metrics={
            'coco/bbox_mAP': 1, 'coco/segm_mAP': score, 'coco/segm_mAP_50': 2 * score})))
    also = results.further('nuclei-instances', 'deep', [2, 0, 1])
    assert also == {'mask AP': [30, 10, 20], 'at 0.5': [60, 20, 40]}
    made = dict(record('nuclei-instances', deep=[11, 22, 33]), metric='coco/bbox_mAP', trials=0)
    made['rows'][0]['also'] = also
    lines = results.table(made).splitlines()
    assert lines[0].startswith(
        '| method | box AP (test) | against head-only, 95 % | mask AP | at 0.5 | trained')
    assert lines[2].startswith('| deep | 22.0 ± 11.0 | - | 20.0 ± 10.0 | 40.0 ± 20.0 | 5 |')


def test_a_picture_has_all_rows(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, 'RECORDS', tmp_path)
    results.draw(record('camvid', **{f'method-{i}': [i, i + 1, i + 2] for i in range(6)}))
    picture = (tmp_path / 'camvid.svg').read_text()
    assert all(f'method-{i}' in picture for i in range(6))


def test_the_peers_row_stands_beside_ours(results):
    ours = record('camvid', lora=[48.0, 50.0])
    ours['rows'][0].update(train_ms=50.0, trainable=1000)
    ours['measured'] = dict(batch_size=4)
    peer = dict(lines=60, results=[
        dict(mIoU=score, seconds=0.25, peak_megabytes=9.0, trainable=1000) for score in (47, 49)])
    lines = results.peer_table(peer, ours).splitlines()
    assert lines[2] == '| `--method lora` | 49.0 ± 1.4 | 50 | 7 | 1,000 | 0 |'
    assert lines[3] == '| transformers and HF PEFT | 48.0 ± 1.4 | 62 | 9 | 1,000 | 60 |'


def test_commands(results):
    command = results.STUDIES['camvid-16'].command('out', ['deep'], '--cfg-options', 'lr=0.1')
    at = command.index('--cfg-options')
    assert command[1:7] == [
        'tools/compare.py', 'configs/results/camvid_dinov2-s.py', '--methods', 'deep',
        '--work-dir', 'out'] and {'lr=0.1', 'subset.images=16'} <= set(command[at:])
    assert results.STUDIES['demo'].command('out', ['deep'], '--cfg-options')[-1] == 'out'
    for study in results.STUDIES.values():
        assert (ROOT / f'configs/{study.recipe}.py').is_file()


@pytest.mark.parametrize('away', [0.0, 50.0, float('nan')])
def test_check_compares_one_row(results, monkeypatch, capsys, tmp_path, away):
    monkeypatch.setattr(results, 'ROOT', tmp_path)  # its runs
    record = json.loads((RECORDS / 'camvid.json').read_text())
    row = next(row for row in record['rows'] if row['method'] == 'lora')
    score = row['scores'][0] + away

    def run(command, **kwargs):
        assert set(record['searched']['lora']) < set(command)
        assert kwargs['env']['OMP_NUM_THREADS'] == str(record['threads'])
        folder = tmp_path / command[command.index('--work-dir') + 1]
        folder.mkdir(parents=True)
        (folder / 'table.json').write_text(json.dumps({'rows': [{'scores': [score]}]}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, 'run', run)
    # Student's quantile with two degrees; the new score and the mean of three both spread.
    allowed = max(results.POINTS, 4.30265 * statistics.stdev(row['scores']) * (4 / 3)**0.5)
    text = (f'camvid, lora, seed {row["seeds"][0]}: {score:.2f}, on record '
            f'{row["scores"][0]:.2f}, and {statistics.mean(row["scores"]):.2f} over 3 seeds, from '
            f'which {allowed:.2f} are allowed')
    if away != 0:
        with pytest.raises(UserError) as info:
            results.check('camvid', 'lora')
        assert str(info.value) == text
    else:
        results.check('camvid', 'lora')
        assert capsys.readouterr().out.strip() == text
    with pytest.raises(UserError, match='--method nothing: the record of camvid has '):
        results.check('camvid', 'nothing')


def test_a_study_takes_further_methods_into_its_record(results):
    old, new = record('camvid', head=[1], deep=[2], rein=[9]), record('camvid', rein=[3], lora=[4])
    new['searched'] = dict(rein=['lr=1'], lora=['lr=2'])
    whole = results.joined(dict(old, measured=dict(threads=2)), dict(new, measured={}))
    assert {row['method']: row['scores'] for row in whole['rows']} == dict(
        head=[1], deep=[2], lora=[4], rein=[3])
    assert [row['method'] for row in whole['rows']] == ['head', 'deep', 'lora', 'rein']
    assert whole['searched'] == dict(deep=['lr=0.01'], rein=['lr=1'], lora=['lr=2'])
    assert whole['measured'] == dict(threads=2)
    with pytest.raises(UserError, match=r'camvid.json was made otherwise \(trials differ\)'):
        results.joined(old, dict(new, trials=3))


def test_time_and_memory_of_all_rows_are_of_one_machine(results, monkeypatch):
    from vpt_dense.comparison import runs

    whole = record('camvid-16', head=[1], deep=[2])
    whole.update(amp=True, threads=1)
    cost = dict(image=[8, 8], batch_size=1, device='cpu', threads=2, peak_kind='k', test_ms=1.0)
    failures = {}

    def measure(self, methods, steps, threads):
        assert 'subset.images=16' in self.options and self.amp
        return {name: dict(cost, train_ms=len(name), peak_megabytes=3.0) for name in methods}, (
            failures)

    monkeypatch.setattr(runs.Comparison, 'measure', measure)
    results.measure(whole)
    assert [row['train_ms'] for row in whole['rows']] == [4, 4]
    assert whole['rows'][0]['peak_megabytes'] == 3.0 and whole['measured']['threads'] == 2
    failures['deep', None] = 'no memory'
    with pytest.raises(UserError, match='deep, time and memory: no memory'):
        results.measure(whole)


def test_a_brain_is_cut_into_slices(tmp_path, monkeypatch, capsys):
    """Heights, tissues and the way up, on volumes of nilearn's shape."""
    shape = (5, 7, 189)
    image, grey, white = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    image[...] = np.arange(189) / 188
    image[2, 6] = 1  # the forehead
    grey[0], white[0] = 0.5, 0.4
    grey[1], white[1] = 0.5, 0.6
    grey[3] = white[3] = 0.4
    volumes = {name: lambda resolution, array=array: SimpleNamespace(get_fdata=lambda: array)
               for name, array in (('load_mni152_template', image),
                                   ('load_mni152_gm_template', grey),
                                   ('load_mni152_wm_template', white))}
    datasets = SimpleNamespace(**volumes)
    monkeypatch.setitem(sys.modules, 'nilearn', SimpleNamespace(datasets=datasets))
    monkeypatch.setattr(sys, 'argv', ['make_brain.py', str(tmp_path / 'brain')])
    make = script('dev/make_brain')
    make.run()
    assert '70 training, 19 validation, 20 test slices' in capsys.readouterr().out
    names = {split: sorted(file.stem for file in (tmp_path / 'brain/images' / split).iterdir())
             for split in make.SPLITS}
    assert (names['training'][0], names['training'][-1]) == ('020', '089')
    assert (names['validation'][0], names['test'][-1]) == ('095', '138')
    picture = cv2.imread(str(tmp_path / 'brain/images/test/130.png'), cv2.IMREAD_UNCHANGED)
    labels = cv2.imread(str(tmp_path / 'brain/annotations/test/130.png'), cv2.IMREAD_UNCHANGED)
    assert picture.shape == labels.shape == (7, 5)
    assert picture[0, 2] == 255 and picture[6, 0] == round(130 / 188 * 255)
    assert labels[3].tolist() == [1, 2, 0, 0, 0]
    with pytest.raises(UserError, match='is there already'):
        make.run()


def test_textiles_are_split_by_their_names(tmp_path, monkeypatch, capsys):
    source = tmp_path / 'source'
    for name in ('nominal', 'local', 'global'):
        (source / name).mkdir(parents=True)
        for number in range(1, 511):
            (source / name / f'textile_{number:04}.jpg').write_text(f'{name} {number}')
    package = SimpleNamespace(textile_simulated_root=lambda: source)
    monkeypatch.setitem(sys.modules, 'conformal_clip_data', package)
    monkeypatch.setattr(sys, 'argv', ['make_textiles.py', str(tmp_path / 'textiles')])
    make = script('dev/make_textiles')
    make.run()
    assert '100 train, 40 val, 360 test images a class' in capsys.readouterr().out
    last = {split: sorted((tmp_path / 'textiles' / split / 'local').iterdir())[-1].read_text()
            for split in make.SPLITS}
    assert last == dict(train='local 100', val='local 140', test='local 500')
    with pytest.raises(UserError, match='is there already'):
        make.run()
