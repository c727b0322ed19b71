"""The benchmarks run and measure what they say; their times are nobody's promise."""

import argparse
import importlib
import json
import statistics
import subprocess
import sys

import pytest
import torch
from test_reference import TOLERANCE, ours, prompt_tensors, read, under
from tool_helpers import forget_runs
from utils import ROOT, images, randomise, tiny_vit

from vpt_dense.errors import main

pytestmark = pytest.mark.long

FOLDER = ROOT / 'tools/benchmark'
ARCH = dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=192)
TINY = ['--arch', 'deit-tiny', '--layers', '4', '--rounds', '2']
BACKBONE = [*TINY, '--img-size', '32', '--batch', '1', '--tokens', '100']
SETR = [*TINY, '--img-size', '64', '--tokens', '20']
HEADS = ['--img-size', '64', '--channels', '16', '--rounds', '2']


@pytest.fixture
def module(monkeypatch):
    """Imports a module of the benchmarks' folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def command(module, monkeypatch, capsys):
    """Runs a benchmark in this process; returns its exit code, output and errors."""
    def run(script, *arguments):
        monkeypatch.setattr(sys, 'argv', [f'{script}.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main(module(script).run)
        return left.value.code, *capsys.readouterr()
    return run


@pytest.fixture
def measure(command, tmp_path):
    """Runs a benchmark; returns its figures and what it printed."""
    def run(script, *arguments):
        file = tmp_path / 'figures.json'
        code, out, err = command(script, *arguments, '--json', file)
        assert (code, err) == (0, '')
        found = json.loads(file.read_text())
        assert found['torch'] == torch.__version__ and f'torch {torch.__version__}' in out
        assert found['figures']['script'] == script
        for row in found['figures']['rows']:
            if script != 'operations':  # which measures no time
                assert len(row['seconds']) == found['options']['rounds']
                assert min(row['seconds']) > 0
        return found['figures']['rows'], out
    return run


def table_row(out, *cells):
    """The cells of the table's only line that begins with these, which are left out."""
    lines = [[cell.strip() for cell in line.split('│')[1:-1]] for line in out.splitlines()]
    (found,) = [line for line in lines if line and line[: len(cells)] == list(cells)]
    return found[len(cells):]


@pytest.mark.parametrize(('case', 'deep'), [
    ('vit_noprompt', None), ('vit_shallow_p5', False), ('vit_deep_p5', True),
    ('abl_pool_img_pool', True),
])
def test_reference_agrees_with_the_original(module, case, deep):
    tensors, metadata = read(case)
    weights, grads = under(tensors, 'weight/'), under(tensors, 'grad/')
    prefix = 'transformer.' if any(n.startswith('transformer.') for n in weights) else ''
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=deep)
    backbone = tiny_vit(prompt=None if deep is None else prompt, trainable=['.*']).double()
    backbone.load_state_dict(
        ours(weights, prefix) | prompt_tensors(weights, prefix, shared=False), strict=True)
    reference = module('reference')
    plain = reference.Reference(backbone)
    image = tensors['input'].requires_grad_()
    blocks = plain.blocks(image)
    for i, tokens in enumerate(blocks):
        torch.testing.assert_close(tokens, tensors[f'block/{i}'], **TOLERANCE)
    if case == 'abl_pool_img_pool':
        output = plain(image)[0].mean((2, 3))
    else:
        output = reference.normalise(blocks[-1], backbone.ln1)
    torch.testing.assert_close(output, tensors['output'], **TOLERANCE)
    (output * tensors['probe']).sum().backward()
    torch.testing.assert_close(image.grad, grads['input'], **TOLERANCE)
    expected = prompt_tensors(grads, prefix, shared=False)
    assert bool(expected) == (deep is not None)
    for name, grad in expected.items():
        torch.testing.assert_close(backbone.get_parameter(name).grad, grad, **TOLERANCE)


@pytest.mark.parametrize('prompt', [
    dict(layer_range=(1, None)), dict(shared=True), dict(project_dims=8),
    dict(layer_range=(0, 2), keep_outputs=False),
])
def test_reference_refuses_other_prompts(module, prompt):
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True, **prompt)
    with pytest.raises(ValueError, match='the reference has no such prompt'):
        module('reference').Reference(tiny_vit(prompt=prompt))


@pytest.fixture
def builder(module):
    """Builds backbones of 4 blocks on the same weights, none of which is zero."""
    built = module('models').Backbones(ARCH, 32)
    weights = torch.nn.ParameterDict(
        {name.replace('.', '/'): tensor for name, tensor in built.weights.items()})
    randomise(weights)
    built.weights = {name.replace('/', '.'): tensor.data for name, tensor in weights.items()}
    return built


def test_ways_compute_the_same(builder, module):
    batch = images(2, 3, 32, 32, dtype=torch.float64)
    results = {}
    for way in ('reference', 'mmseg', 'tokens', 'ours', 'lean', 'with_cp', 'compiled'):
        model = builder.build(way, 5).double()
        assert model.training
        (features,) = model(batch)
        features.square().sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        (prompts,) = trained  # and nothing else
        assert prompts.shape == (4, 5, 48)
        results[way] = features.detach(), prompts.grad
    for way, found in results.items():
        torch.testing.assert_close(found, results['reference'], msg=way, **TOLERANCE)
    reference = builder.build('reference', 5).double()
    cls = module('reference').normalise(reference.blocks(batch)[-1], reference.backbone.ln1)[:, 0]
    torch.testing.assert_close(builder.build('cls', 5).double()(batch)[0], cls, **TOLERANCE)


def test_what_trains_and_what_is_shared(builder):
    batch = images(1, 3, 32, 32)
    ours = builder.build('ours', 5)
    for way, expected in {'p0': {'pos_embed'}, 'head-only': set(), 'full': None,
                          'last-half': {'prompt.tokens'}, 'last-block': {'prompt.tokens'}}.items():
        model = builder.build(way, 5)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == (set(dict(model.named_parameters())) if expected is None else expected)
        (features,) = model(batch)
        assert features.requires_grad == bool(trained)
        for name, parameter in model.named_parameters():
            if not name.startswith('prompt.'):
                mine = ours.get_parameter(name)
                assert torch.equal(parameter, mine)
                assert (parameter.data_ptr() == mine.data_ptr()) == (name not in trained)
        if way == 'p0':  # so all blocks keep a graph
            features.sum().backward()
            assert model.pos_embed.grad.abs().min() > 0
        if way.startswith('last'):
            assert len(model.prompt.tokens) == {'last-half': 2, 'last-block': 1}[way]
    half = builder.build('frozen', 5)
    assert half.layers[0].attn.qkv.weight.dtype == torch.bfloat16
    assert half.prompt.tokens.dtype == half.pos_embed.dtype == torch.float32


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_train_step(measure, module, dtype):
    models = module('models')
    # A compiler warns as it likes on the way.
    ways = [way for way in models.WAYS if way not in ('p0', 'compiled')]
    rows, out = measure('train_step', *BACKBONE, '50', '--ways', *ways, '--dtype', dtype,
                        '--against', 'p0', 'reference')
    assert dtype in out and 'deit-tiny, 4 blocks' in out
    without = {'p0', 'head-only', 'full'}
    expected = {(way, n) for way in ('p0', *ways) for n in ([0] if way in without else [50, 100])}
    assert {(row['way'], row['tokens']) for row in rows} == expected
    middle = {(row['way'], row['tokens']): statistics.median(row['seconds']) for row in rows}
    of_p0, of_reference, seconds = table_row(out, '32', '1', '50', 'ours')
    assert float(of_p0.split()[0]) == pytest.approx(
        middle['ours', 50] / middle['p0', 0], abs=0.006)
    assert float(of_reference.split()[0]) == pytest.approx(
        middle['ours', 50] / middle['reference', 50], abs=0.006)
    assert float(seconds.split()[0]) == pytest.approx(middle['ours', 50], abs=0.0006)
    assert table_row(out, '32', '1', '-', 'full')[1] == '-'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_memory(measure, dtype):
    ways = ['reference', 'mmseg', 'tokens', 'ours', 'lean', 'with_cp', 'frozen', 'last-half',
            'last-block', 'head-only', 'full']
    rows, out = measure('memory', *BACKBONE, '--ways', *ways, '--dtype', dtype)
    kept = {row['way']: row['kept_bytes'] for row in rows}
    order = ['with_cp', 'lean', 'ours', 'reference']
    assert [kept[way] for way in order] == sorted({kept[way] for way in order})
    assert kept['ours'] < min(kept['tokens'], kept['mmseg'])
    assert 0 == kept['head-only'] < kept['last-block'] < kept['last-half'] < kept['ours']
    assert kept['p0'] < kept['full']
    assert kept['frozen'] < kept['ours']  # half the bytes, and no cast copies of weights
    shown, ratio = table_row(out, '32', '1', '100', 'lean')[:2]
    assert float(ratio) == pytest.approx(kept['lean'] / kept['reference'], abs=0.0006)
    assert float(shown.split()[0]) == pytest.approx(kept['lean'] / 1e6, abs=0.06)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_forward(measure, module, dtype):
    ways = [way for way in module('models').TEST if way != 'p0']
    rows, out = measure('forward', *BACKBONE, '--ways', *ways, '--dtype', dtype)
    assert {row['way'] for row in rows} == {'p0', *ways}
    assert table_row(out, '32', '1', '-', 'p0')[0].startswith('1.00')


def test_operations(measure):
    """Few prompts add few operations, and views none."""
    rows, out = measure('operations', *SETR[:-1], '2', '--batch', '1',
                        '--ways', 'tokens', 'ours', 'lean')
    number = {row['way']: row['operations'] for row in rows}
    assert number['ours'] < 1.05 * number['p0'] < number['tokens'] < number['lean']
    assert table_row(out, '64', '1', '2', 'ours')[-1] == f'{number["ours"]:,}'


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_heads(measure, module, dtype):
    heads = list(module('heads').HEADS)
    rows, out = measure('heads', *HEADS, '--heads', *heads, '--batch', '2', '--dtype', dtype)
    kept = {(row['head'], row['way']): row['kept_bytes'] for row in rows}
    assert len(kept) == 2 * len(heads)
    for head in heads:
        assert 0 < kept[head, 'ours'] < kept[head, 'mmseg']
        ratio = kept[head, 'ours'] / kept[head, 'mmseg']
        assert float(table_row(out, head, '2', 'ours')[1]) == pytest.approx(ratio, abs=0.0006)


@pytest.fixture
def setr_args():
    return argparse.Namespace(arch='deit-tiny', layers=4, img_size=64, batch=2, tokens=5,
                              device='cpu', dtype='float32')


def test_setr_ways_compute_the_same(module, setr_args):
    setr_step = module('setr_step')
    built = setr_step.on_common_weights(['mmseg', 'ours', 'lean', 'mmseg-heads'], setr_args)
    batch, labels = setr_step.batch(setr_args)
    results = {}
    for way, model in built.items():
        model.double()
        loss = setr_step.losses(way, model, batch.double(), labels, setr_args)
        loss.backward()
        prompts = model.backbone.tokens if way == 'mmseg' else model.backbone.prompt.tokens
        assert prompts.shape == (4, 5, 192)
        assert [name for name, p in model.backbone.named_parameters() if p.requires_grad] == [
            'tokens' if way == 'mmseg' else 'prompt.tokens']
        results[way] = dict(loss=loss.detach(), prompts=prompts.grad, **{
            name: p.grad for name, p in model.named_parameters() if '_head.' in name})
    for way, found in results.items():
        torch.testing.assert_close(found, results['mmseg'], msg=way, rtol=1e-8, atol=1e-10)


def test_setr_step_changes_what_trains(module, setr_args):
    setr_step = module('setr_step')
    for way in ('ours', 'full'):
        model = setr_step.on_common_weights([way], setr_args)[way]
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        setr_step.step(way, model, *setr_step.batch(setr_args), setr_args)()
        still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
        base = {name for name in before if name.startswith('backbone.')} - {
            'backbone.prompt.tokens'}
        assert still == (base if way == 'ours' else set())


def test_setr_step_time(measure, module):
    rows, out = measure('setr_step', *SETR, '--only', 'time')
    assert [row['way'] for row in rows] == list(module('setr_step').WAYS)
    assert 'peak' not in out and table_row(out, 'mmseg')[0].startswith('1.00')


@pytest.mark.parametrize('way', ['mmseg', 'lean'])
def test_setr_step_memory(command, tmp_path, way):
    file = tmp_path / 'figures.json'
    code, out, err = command('setr_step', *SETR, '--batch', 2, '--tokens', 400, '--only', 'memory',
                             '--ways', way, '--json', file)
    assert (code, err) == (0, '')
    rows = json.loads(file.read_text())['figures']['rows']
    peaks = {row['way']: row['peak_bytes'] for row in rows}
    assert peaks.keys() == {'mmseg', way}
    # At least the model, its gradients and what is kept of 4 blocks with 417 tokens.
    assert 100e6 < peaks['mmseg'] < 2e9
    assert way == 'mmseg' or 50e6 < peaks[way] < peaks['mmseg']
    assert float(table_row(out, way)[0]) == pytest.approx(
        peaks[way] / peaks['mmseg'], abs=0.0006)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_attention(measure, module, monkeypatch, dtype):
    monkeypatch.setattr(module('attention'), 'SHAPES', [(2, 3, 10, 12, 16)])
    rows, out = measure('attention', '--rounds', '2', '--dtype', dtype)
    assert len(rows) == 2 * 3 and dtype in out
    assert len(table_row(out, '2, 3, 10, 12, 16', 'both')) == 2


def test_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, FOLDER / 'train_step.py', *BACKBONE, '--ways', 'ours'],
        capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert table_row(done.stdout, '32', '1', '100', 'ours')


def test_multiply_adds(module):
    count = module('plot').multiply_adds
    # 5 tokens, 3 prompts, width 2, by hand: linear layers 12 * 5 * 4 = 240; attention without
    # prompts 2 * 5 * 5 * 2 = 100, with 2 * 5 * 8 * 2 = 160; keys and values 2 * 3 * 4 = 24.
    assert count(5, 0, 2, blocks=1, training=False) == 340
    assert count(5, 3, 2, blocks=3, training=False) == 3 * 400
    assert count(5, 0, 2, blocks=3) == 3 * (2 * 240 + 3.5 * 100)
    # The first block: no gradient to image tokens, 3 * 5 * 4 = 60; 4 * 5 * 3 * 2 = 120 in place of
    # 2.5 * 160 for attention.
    assert count(5, 3, 2, blocks=1) == 2 * 240 + 3.5 * 160 + 2 * 24 - 60 - 400 + 120
    assert count(5, 3, 2, blocks=3, batch=4) == (
        3 * (2 * 240 + 3.5 * 160 + 2 * 24 / 4) - 60 - 400 + 120)


def figures(script, rows, **options):
    return json.dumps(dict(
        options=dict(dict(arch='base', dtype='float32', device='cpu'), **options), torch='2',
        figures=dict(script=script, patch_size=16, embed_dims=768, num_layers=12, num_heads=12,
                     feedforward_channels=3072,
                     rows=[dict(zip(('way', 'img_size', 'batch', 'tokens', 'seconds'), row,
                                    strict=True)) for row in rows])))


def test_plot(command, module, tmp_path):
    prompts, sizes = tmp_path / 'prompts.json', tmp_path / 'sizes.json'
    prompts.write_text(figures('train_step', [
        ('p0', 224, 8, 0, [1, 2, 3]), ('ours', 224, 8, 10, [2, 3, 4]),
        ('ours', 224, 8, 50, [2, 5, 6]), ('reference', 224, 8, 50, [8, 9, 9])]))
    sizes.write_text(figures('forward', [
        (way, size, 1, tokens, [size, size + 1])
        for size in (224, 512) for way, tokens in (('p0', 0), ('ours', 50))]))
    plot = module('plot')
    rows = [dict(row, run=0) for row in plot.read(prompts)['rows']]
    place, values = plot.series(rows, 'tokens')
    assert (place, values) == (dict(image_tokens=197, batch=8), [10, 50])
    assert plot.ratios(rows, place, 'tokens', values, 'ours') == [(10, 1.5, 0.25), (50, 2.5, 0.5)]
    assert plot.series(rows, 'batch') == ({}, [])
    out = tmp_path / 'cost.svg'
    code, printed, err = command('plot', prompts, sizes, '--out', out)
    assert (code, printed, err) == (0, f'{out}\n', '')
    drawn = out.read_text()
    for text in ('prompts p in each block', 'image tokens N', 'training step / without prompts',
                 'forward pass / without prompts', 'arithmetic bound', 'vpt_dense',
                 'reference algorithm', 'p = 50, batch 1', 'ViT base, 12 blocks, float32, cpu'):
        assert f'<!-- {text} -->' in drawn
    assert 'images in a batch' not in drawn and 'tokens&#39;' not in drawn
    command('plot', prompts, sizes, '--out', tmp_path / 'again.svg')
    assert (tmp_path / 'again.svg').read_text() == drawn


@pytest.mark.parametrize(('content', 'told'), [
    ('not json', 'not a file of a benchmark (--json)'),
    ('{"figures": 3}', 'not a file of a benchmark (--json)'),
    (figures('memory', []), 'of memory.py; take one of train_step, forward'),
    (figures('train_step', []), 'no two runs differ in prompts, in pixels or in batch alone'),
    (figures('train_step', [], device='cuda'), 'cannot be drawn with'),
    (None, 'no such file'),
])
def test_plot_refuses(command, tmp_path, content, told):
    good, file = tmp_path / 'good.json', tmp_path / 'file.json'
    good.write_text(figures('train_step', []))
    if content is not None:
        file.write_text(content)
    code, _, err = command('plot', good, file, '--out', tmp_path / 'x.svg')
    (line,) = err.splitlines()
    assert code == 2 and told in line


@pytest.mark.parametrize(('arguments', 'told'), [
    ('train_step --rounds 1', '--rounds must be at least 2, found 1'),
    ('train_step --arch giant-27', "--arch giant-27: not one of ['b', "),
    ('train_step --batch 4 0', '--batch must be at least 1, found 0'),
    ('memory --tokens 0', '--tokens must be at least 1, found 0'),
    ('forward --layers 13', '--layers 13: base has 12'),
    ('forward --layers 1', '--layers must be at least 2, found 1'),
    ('forward --img-size 30 --layers 2', 'img_size (30, 30) is not a multiple of patch_size'),
    ('forward --device abacus', '--device abacus: '),
    ('heads --batch 0', '--batch and --channels must be at least 1'),
    ('heads --img-size 40', '--img-size must be a multiple of 16, found 40'),
    ('setr_step --layers 3', '--layers must be 4 to 24, found 3'),
    ('setr_step --img-size 40', '--img-size must be a multiple of 16, found 40'),
    ('setr_step --tokens 0', '--batch and --tokens must be at least 1'),
    ('attention --rounds 0', '--rounds must be at least 2, found 0'),
    ('precision --batch 0', '--batch must be at least 1, found 0'),
    (f'precision --config {ROOT}/configs/demo/setr_head_digits.py', 'its backbone has no prompt'),
    ('plot x.json --out cost.gif', '--out cost.gif: must end in .svg, .png or .pdf'),
])
def test_bad_options_are_one_line(command, arguments, told):
    code, _, err = command(*arguments.split())
    (line,) = err.splitlines()
    assert code == 2 and line.startswith('error: ') and told in line


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_precision(command, tmp_path, monkeypatch, dtype):
    """Half precision costs what it costs with the weights held in it too, and their half."""
    monkeypatch.chdir(ROOT)  # the config's weights are there
    forget_runs()  # a logger of another test writes to that test's output
    file = tmp_path / 'figures.json'
    code, out, err = command('precision', '--batch', 1, '--dtype', dtype, '--json', file)
    assert (code, err) == (0, '') and dtype in out
    rows = {row['way']: row for row in json.loads(file.read_text())['figures']['rows']}
    exact, tokens, autocast, held = rows.values()
    assert exact['relative_error'] < 1e-5 and tokens['relative_error'] < 1e-5
    half = 2 ** -8 if dtype == 'bfloat16' else 2 ** -11
    for row in (autocast, held):
        assert half / 20 < row['relative_error'] < 5 * half and row['cosine'] > 0.99
    assert exact['bytes'] == autocast['bytes'] and 0.4 < held['bytes'] / exact['bytes'] < 0.6


@pytest.mark.parametrize('more', [[], ['--seg']], ids=['cls', 'seg'])
def test_ensemble_is_measured_beside_separate_passes(measure, more):
    options = ['--arch', 'deit-tiny', '--layers', '2', '--img-size', '32', '--rounds', '2']
    rows, out = measure('ensemble', *options, '--batch', '2', '--members', '3', *more)
    assert [row['way'] for row in rows] == ['one member', '3 passes', 'one pass']
    assert all(row['difference'] < 1e-5 for row in rows)
    assert float(table_row(out, '3', '2', '3 passes')[0].split()[0]) == 1


def test_cells_share_gpus_and_the_file_server(module):
    scale = module('scale')
    cells = [scale.Cell(10, 10, 1, 2), scale.Cell(10, 10, 1, 2), scale.Cell(4, 0, 1, 2)]
    assert scale.simulate(cells, 1, 1e9) == (24, 1, 0)
    assert scale.simulate(cells, 2, 1e9) == (14, 24 / 28, 0)  # the third goes behind a first one
    # Two ask for 2 bytes a second and get 1: 20 seconds for both, then 4 alone.
    assert scale.simulate(cells, 2, 1) == pytest.approx((24, 24 / 48, 20 / 24))


def test_a_study_on_paper(command):
    code, out, err = command('scale', '--gpus', '1', '--trials', '0', '--seeds', '1', '--epochs',
                             '1', '--train-ms', '1', '--test-ms', '0', '--start', '0')
    assert (code, err) == (0, '')
    # 19 tasks of 1,000 images and five of their own training images, 1 ms each.
    images = 19 * 1000 + 5394 + 21536 + 1020 + 10800 + 7329
    assert f'{images / 3.6e6:,.1f} │' in out and '24 parts of 24 runs' in out, out
    # A checkpoint of VPT-deep, p = 10: prompts 12 x 10 x 768; 768 + 1 a class in the head.
    classes = sum((102, 100, 47, 102, 37, 10, 397, 2, 10, 45, 5, 8, 6, 6, 4, 16, 16, 18, 9, 200,
                   555, 102, 120, 196))
    delta = 4 * (24 * 92_160 + 769 * classes)
    assert f'{delta / 1e9:,.2f} GB of what was' in out, out


def test_decoders_in_forward_and_training(measure):
    """ViT-Split's own parameters are counted; cached features save the encoder."""
    of = ['--img-size', '56', '--rounds', '2', '--decoders', 'linear', 'vit-split']
    rows, _ = measure('decoders', *of)
    assert [row['decoder'] for row in rows] == ['encoder', 'linear', 'vit-split']
    assert f'{rows[2]["parameters"] / 1e6:.1f}' == '10.2'
    rows, _ = measure('decoders', *of, '--train', '--batch', '2')
    assert [row['decoder'] for row in rows] == [
        'linear', 'linear, cached', 'vit-split', 'vit-split, cached']
