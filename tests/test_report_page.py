"""report.html: every figure of the records is in it, and nothing of them is markup."""

import base64
import io
import json
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_folders import (
    CLASSES,
    HOSTILE,
    PALETTE,
    Sample,
    labels,
    make_comparison,
    make_run,
    segmented,
    write,
)

from vpt_dense import report
from vpt_dense.comparison import page as comparison_page
from vpt_dense.errors import UserError
from vpt_dense.report import charts, parts, records, samples

VOID = {'meta', 'link', 'img', 'input', 'br'}
METHODS = {'head': 0, 'deep': 55_296, 'lora': 147_456}


class Page(HTMLParser):
    """A page as a browser takes it: elements with attributes and text, cells of tables."""

    def __init__(self, path):
        super().__init__()
        self.source = Path(path).read_text(encoding='utf-8')
        self.elements, self._open = [], []
        self.feed(self.source)
        self.close()
        assert self._open == [], 'elements that are not closed'

    def handle_starttag(self, tag, attrs):
        element = dict(tag=tag, text='', inside=[e['tag'] for e in self._open], **dict(attrs))
        assert len(dict(attrs)) == len(attrs), f'an attribute twice: {attrs}'
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()['tag'] == tag

    def handle_data(self, data):
        for element in self._open:
            element['text'] += data

    def all(self, tag, **attributes):
        attributes = {key.rstrip('_'): value for key, value in attributes.items()}
        return [e for e in self.elements if e['tag'] == tag and all(
            e.get(key) == value for key, value in attributes.items())]

    def table(self, caption):
        """Headings, and the cells of every row, of the table with a caption."""
        (begin,) = (i for i, e in enumerate(self.elements)
                    if e['tag'] == 'caption' and e['text'].strip() == caption)
        rows = []
        for element in self.elements[begin:]:
            if element['tag'] == 'caption' and element is not self.elements[begin]:
                break
            if element['tag'] == 'tr':
                rows.append([])
            elif element['tag'] in ('td', 'th') and 'table' in element['inside']:
                rows[-1].append(element)
        headings, *rows = rows
        return [re.sub(r'\s+', ' ', cell['text']).strip() for cell in headings], rows

    def values(self, caption):
        """First cell of a row -> heading -> number of the cell."""
        headings, rows = self.table(caption)
        return {
            row[0]['text'].strip(): {
                heading: float(cell['data-value']) for heading, cell in
                zip(headings[1:], row[1:], strict=True) if 'data-value' in cell}
            for row in rows}

    def facts(self):
        texts = [e['text'] for e in self.elements if e['tag'] in ('dt', 'dd')]
        return dict(zip(texts[::2], map(str.strip, texts[1::2]), strict=True))

    def sections(self):
        return [e['text'] for e in self.all('h2')]


def read(path):
    return json.loads(Path(path).read_text())


# --- a run -----------------------------------------------------------------------------------


def test_every_figure_of_a_run(tmp_path):
    """Scores, classes, parameters, cost, pictures, config: those of the records."""
    run = make_run(tmp_path / 'run', score=51.25)
    page = Page(report.write_run(run))
    summary, test = read(run / 'summary.json'), read(run / 'test.json')
    assert page.values('By evaluation') == {
        name: {'test': test['metrics'][name], 'best validation': summary['best']['metrics'][name],
               'last validation': summary['last']['metrics'][name]} for name in ('aAcc', 'mIoU')}
    known = {row['class']: {key: row[key] for key in ('IoU', 'Acc') if row[key] is not None}
             for row in test['per_class']}
    assert page.values('Classes: test') == known and 'Acc' not in known['tree']
    bars = [re.search(r'[\d.]+', e['style'])[0] for e in page.all('i') if 'style' in e]
    assert [f'{row["IoU"]:g}' for row in test['per_class']] == [
        f'{float(bar):g}' for bar in bars if float(bar) in {r['IoU'] for r in test['per_class']}]
    counts = summary['params']
    parts_ = page.values('Parameters by part')
    assert {name: (row['trainable'], row['total']) for name, row in parts_.items()} == {
        name: (n['trainable'], n['total'])
        for name, n in [*counts['parts'].items(), ('all', counts)]}
    facts = page.facts()
    assert facts['mIoU, test'].startswith('51.25')
    assert facts['trainable parameters'] == '7,6117,611 of 86,007,611, 0.0088 %'
    assert facts['time'].startswith('12 min 34 s') and facts['peak memory'].startswith('1.93 GB')
    assert facts['skipped steps'] == '2, their loss was not finite' and facts['seed'] == '0'
    assert facts['command'] == summary['command'] and facts['versions'] == (
        'python 3.11.7, torch 2.14.1')
    assert facts['method'] == 'vpt_dense.TokenPrompt(num_tokens=6)'
    assert facts['trains in the backbone'] == '^prompt'
    assert [e['text'] for e in page.all('pre')] == [(run / 'deep.py').read_text()]
    drawn = {e['text'] for e in page.all('title') if 'circle' in e['inside']}
    assert {f'mIoU: {e["metrics"]["mIoU"]:g} at {e["iter"]}'
            for e in read(run / 'evaluations.json')} <= drawn
    assert {f'loss: {3 / i + 0.5:g} at {i}' for i in range(2, 41, 2)} <= drawn
    assert page.sections() == [
        'Training', 'Pictures', 'Scores', 'Parameters', 'How to repeat it']


def test_the_page_of_a_run_is_small_and_takes_no_time(tmp_path):
    run = make_run(tmp_path / 'run', classes=[f'class {i}' for i in range(150)])
    report.write_run(run)  # imports jinja2
    start = time.process_time()
    path = report.write_run(run)
    assert time.process_time() - start < 1
    assert path.stat().st_size < 500_000
    assert [file.name for file in run.iterdir() if file.name.startswith('.')] == []


def test_pictures_of_a_run_are_its_records(tmp_path):
    """Image, truth and prediction of each; the divider and the choices have names."""
    run = make_run(tmp_path / 'run')
    page = Page(report.write_run(run))
    images = read(run / 'pictures_test.json')['images']
    assert len(images) == samples.COUNT
    sources = [e['src'] for e in page.all('img')]
    assert sources == [each[key] for each in images for key in ('image', 'truth', 'prediction')]
    assert all(e['alt'] for e in page.all('img'))
    scores = [e['text'] for e in page.all('span', class_='score')]
    assert scores == [f'IoU {each["IoU"]:.1f}' for each in images]
    assert [e['aria-label'] for e in page.all('input', class_='wipe')] == [
        f'Divider between left and right over {each["name"]}' for each in images]
    options = [(e['text'], 'selected' in e) for e in page.all('option')]
    assert options == [('image', False), ('truth', True), ('prediction', False),
                       ('image', False), ('truth', False), ('prediction', True)]


def test_pictures_of_a_classification(tmp_path):
    run = make_run(tmp_path / 'run', task='classification')
    page = Page(report.write_run(run))
    images = read(run / 'pictures_test.json')['images']
    verdicts = [e['text'].split() for e in page.all('span') if 'verdict' in e.get('class', '')]
    assert [(words[0] == '✓', words[1]) for words in verdicts] == [
        (each['right'], each['prediction'][0]) for each in images]
    assert page.facts()['accuracy, test'].startswith('50.00')
    assert 'Classes: test' not in [e['text'] for e in page.all('caption')]


@pytest.mark.parametrize('gone', [
    'summary.json', 'test.json', 'evaluations.json', 'params.json', 'deep.py', 'pictures_test.json',
    '20260102_030405'])
@pytest.mark.parametrize('broken', [False, True])
def test_a_record_that_is_missing_or_broken_leaves_the_rest(tmp_path, gone, broken):
    run = make_run(tmp_path / 'run')
    whole = Page(report.write_run(run)).sections()
    if (run / gone).is_dir():
        shutil.rmtree(run / gone)
    elif broken:
        (run / gone).write_text('{"half')
    else:
        (run / gone).unlink()
    page = Page(report.write_run(run))
    told = page.all('section', **{'aria-labelledby': 'not-shown'})
    assert [name for name in page.sections() if name != 'Not shown'] == whole
    if broken and gone.endswith('.json'):
        assert f'{gone} cannot be read' in told[0]['text']
    elif gone == 'summary.json':
        assert 'has not ended' in told[0]['text']
    elif gone == '20260102_030405':
        assert 'No curves' in told[0]['text']


@pytest.mark.parametrize('content', [
    [], [3, {'iter': 4}], {}, {'metrics': 3}, {'best': 'x', 'last': 5, 'params': 'y'},
    {'params': {'parts': 4}}, {'metric': 'mIoU', 'best': {'metrics': None}},
    {'method': 'x', 'versions': [1]}, {'per_class': [3], 'metrics': {'mIoU': 1}}, 'text', 5, None])
@pytest.mark.parametrize('name', ['summary', 'test', 'evaluations', 'params', 'pictures_test'])
def test_records_of_any_kind_end_in_a_page(tmp_path, name, content):
    run = make_run(tmp_path / 'run')
    write(run / f'{name}.json', json.dumps(content))
    page = Page(report.write_run(run))
    assert page.all('h1') and 'How to repeat it' in page.sections()
    other = make_run(tmp_path / 'other')
    try:
        comparison_page.write_runs([run, other], tmp_path / 'both.html')
    except UserError as error:
        assert 'nothing to compare' in str(error)


def test_an_old_run_has_no_pictures_and_no_command(tmp_path):
    """Records as they were before there were pages."""
    run = make_run(tmp_path / 'run')
    for file in run.glob('pictures_*'):
        file.unlink()
    for name in ('summary', 'test'):
        content = read(run / f'{name}.json')
        for key in ('command', 'ended', 'task', 'model', 'backbone', 'data', 'weights', 'device'):
            del content[key]
        write(run / f'{name}.json', content)
    page = Page(report.write_run(run))
    assert page.sections() == ['Training', 'Scores', 'Parameters', 'How to repeat it', 'Not shown']
    assert 'No pictures' in page.all('section')[-1]['text']
    assert 'command' not in page.facts() and page.facts()['seed'] == '0'


def test_a_resumed_run_has_the_curves_of_all_its_starts(tmp_path):
    """Steps that were made twice count as the later start made them; another run's do not."""
    def log(name, steps, loss):
        lines = [{'loss': loss, 'step': i} for i in steps] + [{'mIoU': loss, 'step': steps[-1]}]
        write(tmp_path / name / 'vis_data/scalars.json', '\n'.join(map(json.dumps, lines)))

    log('20260101_000000', range(5, 105, 5), 9.0)  # of a run that was begun anew
    log('20260102_000000', range(5, 35, 5), 1.0)
    write(tmp_path / '20260102_500000/vis_data/scalars.json', '{"mIoU": 3, "step": 0}')
    log('20260102_600000', range(25, 35, 5), 7.0)  # of a start that was repeated
    log('20260103_000000', range(25, 45, 5), 2.0)
    write(tmp_path / '20260104_000000/vis_data/scalars.json', '{"mIoU": 3, "step": 0}')
    found = records.scalars(tmp_path)
    assert [(line['step'], line['loss']) for line in found] == [
        *((i, 1.0) for i in range(5, 25, 5)), *((i, 2.0) for i in range(25, 45, 5))]
    assert records.scalars(tmp_path, '20260101_000000')[0]['loss'] == 9.0


# --- nothing of the records is markup --------------------------------------------------------


def assert_harmless(page):
    """No element or attribute that the template does not have."""
    (script,) = page.all('script')
    known = Path(report.__file__).with_name('page.js').read_text()
    assert script['text'] == known and '</' not in known
    assert {e['tag'] for e in page.elements} <= {
        'html', 'head', 'meta', 'title', 'link', 'style', 'body', 'a', 'header', 'div', 'p', 'h1',
        'dl', 'dt', 'dd', 'small', 'nav', 'main', 'section', 'h2', 'figure', 'figcaption', 'svg',
        'path', 'text', 'circle', 'polyline', 'ul', 'li', 'i', 'label', 'select', 'option', 'input',
        'img', 'span', 'table', 'caption', 'thead', 'tr', 'th', 'button', 'tbody', 'td', 'details',
        'summary', 'pre', 'footer', 'script', 'b'}
    for element in page.elements:
        assert not [key for key in element if key.startswith('on')], element
        for key in ('src', 'href'):
            assert element.get(key, '#').startswith(('#', 'data:image/', 'data:,')), element
        if 'style' in element:
            assert re.fullmatch(r'width:[\d.]+%|background:#[0-9a-f]{6}|'
                                r'aspect-ratio:\d+/\d+;max-width:\d+px', element['style'])
    (policy,) = page.all('meta', **{'http-equiv': 'Content-Security-Policy'})
    assert policy['content'].startswith("default-src 'none'; img-src data:;")


def test_hostile_text_of_a_run_stays_text(tmp_path):
    classes = list(HOSTILE)
    run = make_run(
        tmp_path / 'a"><script>', classes=classes, names=HOSTILE, config=HOSTILE[0],
        text='\n'.join(HOSTILE), command=HOSTILE[1], versions={HOSTILE[3]: HOSTILE[4]})
    page = Page(report.write_run(run))
    assert_harmless(page)
    assert list(page.values('Classes: test')) == classes
    assert page.facts()['command'] == HOSTILE[1]
    assert [e['text'] for e in page.all('pre')] == ['\n'.join(HOSTILE)]
    assert {e['alt'] for e in page.all('img')} > {f'{HOSTILE[0]} 0'}


def test_hostile_text_of_a_comparison_stays_text(tmp_path):
    folder = make_comparison(
        tmp_path / 'x', dict(zip(HOSTILE, (0, 10, 20, 30, 40), strict=True)), classes=HOSTILE,
        names=HOSTILE, failures={HOSTILE[0]: HOSTILE[1]},
        searched={name: [f'{name}={name}'] for name in HOSTILE})
    page = Page(comparison_page.write_comparison(folder))
    assert_harmless(page)
    assert list(page.values('Methods')) == list(HOSTILE)
    assert list(page.values('IoU by class')) == list(HOSTILE)
    names = [e['text'] for e in page.all('text', class_='name')]
    # For wide screens, and cut for narrow ones.
    assert sorted(names) == sorted([*HOSTILE, *(
        name if len(name) < 19 else f'{name[:17]}…' for name in HOSTILE)])


def test_names_that_are_no_text_can_be_written(tmp_path):
    """A file's name that is no UTF-8 comes as a lone surrogate."""
    run = make_run(tmp_path / 'run', names=('a\udcff.png',))
    assert 'a?.png 0' in {e['alt'] for e in Page(report.write_run(run)).all('img')}


# --- a comparison ----------------------------------------------------------------------------


def test_every_figure_of_a_comparison(tmp_path):
    folder = make_comparison(
        tmp_path / 'my comparison', METHODS, failures={'rein, seed 0': 'out of memory'}, trials=9,
        searched={name: ['lr=0.01', 'model.x=wide'] for name in METHODS})
    page = Page(comparison_page.write_comparison(folder))
    table = read(folder / 'table.json')
    rows = {row['method']: row for row in table['rows']}
    headings, _ = page.table('Methods')
    shown = page.values('Methods')
    assert list(shown) == list(METHODS)
    for name, row in rows.items():
        found = shown[name]
        assert found['mIoU (test)'] == row['mean']
        assert [found[f'seed {seed}'] for seed in row['seeds']] == row['scores']
        for key, heading in (
            ('trainable', 'trainable'), ('backbone_trainable', 'of these in the backbone'),
            ('percent', '% of the model'), ('disk_megabytes', 'on disk, MB'),
            ('train_ms', 'training, ms/image'), ('test_ms', 'testing, ms/image'),
            ('peak_megabytes', 'peak memory, MB'), ('train_seconds', 'trained for, s')):
            assert found[heading] == row[key], heading
        if name == 'head':
            assert 'against head' not in found
        else:
            assert found['against head'] == row['mean'] - rows['head']['mean']
    assert len(headings) == 5 + 8
    assert 'my comparison' in page.all('h1')[0]['text']
    texts = {cell['text'].strip() for row in page.table('Methods')[1] for cell in row}
    assert f'{rows["lora"]["mean"]:.2f} ± {rows["lora"]["std"]:.2f}' in texts
    assert f'+{rows["lora"]["mean"] - rows["head"]["mean"]:.2f}' in texts
    by_class = page.values('IoU by class')
    for i, method in enumerate(METHODS):
        tests = [read(folder / f'{i}_seed{seed}/test.json')['per_class'] for seed in (0, 1)]
        for j, label in enumerate(CLASSES):
            assert by_class[label][method] == np.mean([test[j]['IoU'] for test in tests])
    first = page.table('IoU by class')[1][0]
    difference = by_class['road']['deep'] - by_class['road']['head']
    assert first[2]['text'].split()[1] == f'{difference:+.2f}'.replace('-', '−')
    assert page.values('What the search found') == {name: {'lr': 0.01} for name in METHODS}
    assert [e['text'] for e in page.all('summary')] == [f'Config of {name}' for name in METHODS]
    assert page.facts()['command'] == table['command'] and page.facts()['cost'] == table['cost']
    assert page.facts()['best mIoU'].startswith('44.8 ± 0.4')
    assert 'rein, seed 0: out of memory' in page.source
    drawn = {e['text'] for e in page.all('title') if 'circle' in e['inside']}
    assert {f'{name}: {row["mean"]:.2f}, {row["backbone_trainable"]:,} parameters'
            for name, row in rows.items()} <= drawn
    assert page.sections() == ['Scores', 'Failures', 'Pictures', 'Classes', 'Training', 'Search',
                               'How to repeat it']


def test_pictures_of_a_comparison(tmp_path):
    """All methods over the same images; head-only against the best at first."""
    folder = make_comparison(tmp_path, METHODS)
    page = Page(comparison_page.write_comparison(folder))
    images = [read(folder / f'{i}_seed0/pictures_test.json')['images'] for i in range(3)]
    layers = [e['src'] for e in page.all('img') if 'data-layer' in e]
    assert layers == [url for j in range(samples.COUNT) for url in (
        images[0][j]['truth'], *(images[i][j]['prediction'] for i in range(3)))]
    chosen = [e['text'] for e in page.all('option') if 'selected' in e]
    assert chosen == ['head', 'lora']


@pytest.mark.slow
def test_of_many_methods_the_page_stays_small(tmp_path):
    """Images are left out where there is no room for all; methods are not."""
    methods = {f'method {i}': 1000 * i for i in range(20)}
    folder = make_comparison(tmp_path, methods, seeds=(0,))
    found = samples.Samples()
    found.start(4)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (1, 320, 320)))
    meta = {'classes': CLASSES, 'palette': PALETTE}
    for _ in range(4):
        found.take([torch.zeros(3, 320, 320)], [segmented(noise, noise)], {},
                   lambda sample, place: str(place),
                   lambda sample: samples.segmentation(sample, meta, 255))
    for i in range(20):
        record = read(folder / f'{i}_seed0/pictures_test.json')
        write(folder / f'{i}_seed0/pictures_test.json', {**record, 'images': found.found})
    path = comparison_page.write_comparison(folder)
    shown = len(Page(path).all('input', class_='wipe'))
    assert 0 < shown < 4 and path.stat().st_size < 1_500_000


def test_a_comparison_whose_runs_are_gone_has_its_table(tmp_path):
    folder = make_comparison(tmp_path, METHODS)
    for run in folder.glob('*_seed*'):
        shutil.rmtree(run)
    page = Page(comparison_page.write_comparison(folder))
    assert page.sections() == ['Scores', 'How to repeat it', 'Not shown']
    assert 'head, deep, lora' in page.all('section')[-1]['text']


def test_a_run_of_other_settings_is_not_taken_for_a_row(tmp_path):
    folder = make_comparison(tmp_path, {'deep': 50}, seeds=(0,))
    other = read(folder / '0_seed0/run.json')
    other['metrics']['mIoU'] += 1
    write(make_run(folder / 'deep_seed0_0123abcd', text='other') / 'run.json', other)
    page = Page(comparison_page.write_comparison(folder))
    assert [e['text'] for e in page.all('pre')] == [(folder / '0_seed0/deep.py').read_text()]


def test_a_table_as_the_demo_writes_it(tmp_path):
    """Rows have names, and there is no metric."""
    folder = make_comparison(tmp_path, METHODS)
    rows = [row | {'name': row['method'].upper()} for row in read(folder / 'table.json')['rows']]
    write(folder / 'table.json', {'command': 'x', 'rows': rows})
    page = Page(comparison_page.write_comparison(folder))
    assert list(page.values('Methods')) == ['HEAD', 'DEEP', 'LORA']
    assert page.table('Methods')[0][1] == 'mIoU (test)' and 'Pictures' in page.sections()


def test_a_page_that_fails_ends_no_comparison(tmp_path, capsys):
    write(tmp_path / 'table.json', '[')
    assert comparison_page.try_to_write(tmp_path) is None
    assert capsys.readouterr().err.startswith('report.html could not be written: ')


# --- the command -----------------------------------------------------------------------------


def command(capfd, monkeypatch, *arguments):
    """Run ``vpt-dense report``."""
    from vpt_dense.commands import report as tool

    capfd.readouterr()
    tool.main(list(map(str, arguments)))
    return capfd.readouterr().out.strip()


def test_the_command_writes_pages_of_old_runs(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / 'run')
    assert command(capfd, monkeypatch, run) == str(run / 'report.html')
    assert command(capfd, monkeypatch, run, '--out', 'a.html') == 'a.html'
    assert (tmp_path / 'a.html').read_bytes() == (run / 'report.html').read_bytes()
    with pytest.raises(UserError, match='a.html is there already'):
        command(capfd, monkeypatch, run, '--out', 'a.html')
    folder = make_comparison(tmp_path / 'all', METHODS, seeds=(0,))
    assert command(capfd, monkeypatch, folder) == str(folder / 'report.html')


def test_several_runs_stand_side_by_side(tmp_path, capfd, monkeypatch):
    """By the test; if one was not tested, by the best validation."""
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / name / 'run', 40.0 + i, i, 100 * i)
            for i, name in enumerate('abc')]
    assert command(capfd, monkeypatch, *runs) == 'report.html'
    page = Page('report.html')
    shown = page.values('Methods')
    assert {name: row['mIoU (test)'] for name, row in shown.items()} == {
        'a/run': 40.0, 'b/run': 41.0, 'c/run': 42.0}
    assert shown['c/run']['of these in the backbone'] == 200 and 'Pictures' in page.sections()
    (runs[1] / 'test.json').unlink()
    command(capfd, monkeypatch, *runs, '--force')
    shown = Page('report.html').values('Methods')
    assert [row['mIoU (best validation)'] for row in shown.values()] == [41.5, 42.5, 43.5]


def test_what_is_no_run_is_refused_in_a_line(tmp_path, capfd, monkeypatch):
    run = make_run(tmp_path / 'run')
    (tmp_path / 'empty').mkdir()
    broken = tmp_path / 'broken'
    write(broken / 'table.json', '{"rows": [{"method": 1}]}')
    folder = make_comparison(tmp_path / 'all', {'deep': 5}, seeds=(0,))
    scoreless = make_run(tmp_path / 'scoreless', tested=False)
    for name in ('evaluations.json', 'summary.json'):
        (scoreless / name).unlink()
    for arguments, message in (
        ([tmp_path / 'gone'], 'gone is no folder'), ([run / 'params.json'], 'is no folder'),
        ([tmp_path / 'empty'], 'empty is the folder of no run and of no comparison'),
        ([run, folder], 'all is a comparison: give it alone'),
        ([broken], 'broken holds no comparison: table.json has no rows with a method and a mean'),
        ([run, scoreless], 'nothing to compare: .*scoreless has no score'),
    ):
        with pytest.raises(UserError, match=message):
            command(capfd, monkeypatch, *arguments, '--out', tmp_path / 'x.html')
    assert not (tmp_path / 'x.html').exists()


def test_the_command_that_ran_is_told_as_one_types_it(monkeypatch):
    for argv, told in (
        (['vpt-dense train', 'a b.py', '--x=1'], "vpt-dense train 'a b.py' --x=1"),
        (['tools/train.py', 'a.py'], 'python tools/train.py a.py'), (['-c'], '')):
        monkeypatch.setattr('sys.argv', argv)
        assert records.command_line() == told


# --- samples ---------------------------------------------------------------------------------


def opened(url):
    head, data = url.split(',')
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f'data:image/{image.format.lower()};base64'
    return image


def test_label_maps_are_pictures_of_the_labels():
    """Colours are the classes'; ignored pixels, and labels that are no class, have none."""
    truth = labels(0)
    truth[0, :15] = 255
    prediction = labels(1)
    told = samples.segmentation(segmented(truth, prediction), {
        'classes': CLASSES, 'palette': PALETTE}, 255)
    for key, map_ in (('truth', truth), ('prediction', prediction)):
        pixels = np.asarray(opened(told[key]).convert('RGBA'))
        known = map_[0].numpy() < 4
        assert (pixels[..., 3] == 255 * known).all()
        assert (pixels[known][:, :3] == np.asarray(PALETTE)[map_[0].numpy()[known]]).all()
    assert not (truth[0].numpy() < 4)[:15].any()


def test_the_score_of_an_image_is_its_mean_iou():
    from torchmetrics.segmentation import MeanIoU

    truth, prediction = labels(0), labels(1)
    expected = MeanIoU(num_classes=4, include_background=True, input_format='index')(
        prediction, truth).item()
    found = samples.mean_iou(prediction[0].numpy(), truth[0].numpy(), 4, 255)
    assert found == pytest.approx(100 * expected, abs=0.006)
    # By hand: class 0 1 of 3, class 1 1 of 2, class 2 0 of 1; an ignored pixel.
    truth, prediction = np.array([[0, 0, 1, 9, 0]]), np.array([[0, 1, 1, 1, 2]])
    assert samples.mean_iou(prediction, truth, 4, 9) == round(100 * (1 / 3 + 1 / 2 + 0) / 3, 2)
    assert samples.mean_iou(prediction, np.full((1, 5), 9), 4, 9) is None


def test_large_images_are_shown_small_and_counted_whole():
    truth = torch.zeros(1, 1000, 2500, dtype=torch.int64)
    truth[0, :, 1250:] = 1
    prediction = torch.zeros_like(truth)
    meta = {'classes': ('a', 'b'), 'palette': PALETTE[:2]}
    told = samples.segmentation(segmented(truth, prediction), meta, 255)
    assert told['IoU'] == 25.0 and told['size'] == (1000, 2500)
    assert opened(told['truth']).size == (320, 128)
    colours = np.asarray(opened(told['truth']).convert('RGB'))
    assert (colours[:, :160] == PALETTE[0]).all() and (colours[:, 160:] == PALETTE[1]).all()
    image = torch.full((3, 500, 1250), 200, dtype=torch.uint8)
    assert opened(samples.jpeg(image, (1000, 2500), False)).size == (320, 128)


@pytest.mark.parametrize('processes', [1, 2, 3])
def test_processes_take_the_same_images_together(processes):
    """Whatever the number of processes: the same images, and with their own predictions."""
    found = []
    for rank in range(processes):
        own = samples.Samples(rank, processes)
        own.start(50)
        dealt = list(range(rank, 50, processes))
        for i in range(0, len(dealt), 4):  # batches of 4
            batch = dealt[i : i + 4]
            own.take([torch.full((3, 8, 8), j, dtype=torch.uint8) for j in batch],
                     [Sample(number=j, metainfo={}) for j in batch], {},
                     lambda sample, place: str(place), lambda sample: {'number': sample.number})
        found += own.found
    found.sort(key=lambda each: each['position'])
    assert [each['number'] for each in found] == samples.places(50)
    assert [each['position'] for each in found] == samples.places(50)
    assert samples.places(50)[0] == 0 and samples.places(50)[-1] == 49
    assert samples.places(3) == [0, 1, 2] and samples.places(0) == []


def test_colours_of_an_image_are_its_own():
    """The model knows the order of bands; more bands are not swapped."""
    image = torch.tensor([250, 120, 10], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    for preprocessor, expected in (({'bgr_to_rgb': True}, (10, 120, 250)),
                                   ({'to_rgb': True}, (10, 120, 250)), ({}, (250, 120, 10))):
        pixels = np.asarray(opened(samples.jpeg(
            image, (16, 16), samples.is_bgr(preprocessor, 3))))
        assert np.abs(pixels.astype(int) - expected).max() < 4
    assert not samples.is_bgr({'bgr_to_rgb': True}, 4)
    for brightest, shown in ((40, 255), (90, 255), (100, 100)):  # a dark one is brightened
        grey = torch.full((3, 16, 16), brightest, dtype=torch.uint8)
        assert abs(np.asarray(opened(samples.jpeg(grey, (16, 16), False))).mean() - shown) < 3


def test_what_an_evaluation_shows_of_a_classified_image():
    told = samples.classification(
        Sample(pred_label=torch.tensor([2]), gt_label=torch.tensor([1]),
               pred_score=torch.tensor([0.1, 0.2, 0.7])), {'classes': ('a', 'b', 'c')}, None)
    assert told == {'prediction': ['c'], 'truth': ['b'], 'score': 0.7, 'right': False}
    told = samples.classification(Sample(pred_label=torch.tensor([0, 2])), {}, None)
    assert told == {'prediction': ['0', '2'], 'truth': None, 'score': None, 'right': None}


# --- charts ----------------------------------------------------------------------------------


def test_lines_are_where_their_values_are():
    """The first and the last value of a falling line are the corners of what is drawn."""
    svg = charts.lines([charts.Line('loss', [(0, 5.0), (50, 2.0), (100, 1.0)])], 'Loss', 'step')
    points = re.search(r'points="([^"]*)"', svg['svg'])[1].split()
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(',')) for point in points)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert (y1 - y0) / (y2 - y1) == pytest.approx(3.0, abs=0.05)  # 5 to 2, 2 to 1


def test_long_logs_are_drawn_as_means():
    points = [(i, float(i % 2)) for i in range(3000)]
    drawn = charts.lines([charts.Line('loss', points)], 'Loss', 'step')
    path = re.search(r'points="([^"]*)"', drawn['svg'])[1].split()
    assert len(path) == charts.MOST_POINTS and drawn['note'] == 'each point is the mean of 10'
    assert len({point.split(',')[1] for point in path}) == 1  # all are 0.5


def test_the_axis_of_parameters_is_logarithmic_with_a_place_for_none():
    points = [charts.Point(str(x), x, 1.0) for x in (0, 100, 10_000, 1_000_000)]
    svg = charts.scatter(points, '', 'x', 'y', 900, 400)
    xs = [float(x) for x in re.findall(r'<circle[^>]*cx="([^"]*)"', svg)]
    assert xs[2] - xs[1] == pytest.approx(xs[3] - xs[2], abs=0.11) and 0 < xs[0] < xs[1]


def test_names_in_a_plot_cover_nothing():
    """Also where points are close to each other."""
    points = [charts.Point(f'method {i}', 1000 + i, 50 + 0.1 * i, 0.2) for i in range(8)]
    svg = charts.scatter(points, '', 'x', 'y', 900, 400)
    found = re.findall(r'<text class="name" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">', svg)
    boxes = []
    for x, y, anchor in found:
        width = len('method 0') * 6.6
        left = float(x) - {'start': 0, 'middle': width / 2, 'end': width}[anchor]
        boxes.append((left, float(y) - 10, left + width, float(y) + 2))
    assert len(boxes) == 8
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert (one[0] >= other[2] or other[0] >= one[2]
                    or one[1] >= other[3] or other[1] >= one[3])


@pytest.mark.parametrize('low, high, expected', [
    (0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 100, [0, 25, 50, 75, 100]), (41.2, 43.9, [42, 43]),
    (0.0004, 0.0021, [0.0005, 0.001, 0.0015, 0.002]), (3, 3, [3])])
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_numbers_as_one_says_them():
    assert [parts.duration(s) for s in (5.25, 65, 7260, None)] == [
        '5.2 s', '1 min 5 s', '2 h 1 min', None]
    assert [parts.size(b) for b in (999, 1_930_000_000, None)] == ['999 B', '1.93 GB', None]
    assert [parts.short(n) for n in (0, 9_999, 55_296, 86_007_611)] == [
        '0', '9,999', '55.3 k', '86 M']
