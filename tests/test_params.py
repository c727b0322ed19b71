"""Counting parameters: by part, exact for the shipped configs, and on disk."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from utils import load

from vpt_dense import building, params

ROOT = Path(__file__).resolve().parent.parent


class Toy(nn.Module):
    """A model with every part, small enough to count by hand."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.embed = nn.Linear(3, 4)  # 3 * 4 + 4 = 16, frozen
        self.backbone.norm = nn.BatchNorm2d(4)  # 2 * 4 = 8, frozen
        self.backbone.prompt = nn.Module()
        self.backbone.prompt.tokens = nn.Parameter(torch.zeros(5, 4))  # 20
        self.backbone.requires_grad_(False)
        self.backbone.prompt.requires_grad_(True)
        self.neck = nn.Linear(4, 4, bias=False)  # 16
        self.decode_head = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm2d(2))  # 10 + 4
        self.auxiliary_head = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])  # 2 * 10
        self.head = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))  # 0 + 15


COUNTS = {
    'backbone': (0, 24),
    'prompt': (20, 20),
    'neck': (16, 16),
    'decode head': (14, 14),
    'classification head': (15, 15),
    'auxiliary heads': (20, 20),
}


def test_counts_by_part_in_order():
    """Every part is found, in the order of a signal's way, prompts apart from the backbone."""
    assert list(params.count(Toy()).items()) == list(COUNTS.items())


def test_absent_parts_are_left_out_and_unknown_ones_kept():
    """A part without parameters has no row; a parameter outside of all parts is not lost."""
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    model.projector = nn.Linear(2, 1)
    assert params.count(model) == {'backbone': (6, 6), 'projector': (3, 3)}


def test_deployed_leaves_out_auxiliary_heads():
    """Inference needs everything but the auxiliary heads."""
    counts = params.count(Toy())
    assert params.add_up(counts) == (85, 109)
    assert params.deployed(counts) == (65, 89)


def test_shared_tensor_counts_once():
    """Tied weights are one tensor."""
    model = nn.Module()
    model.neck = nn.Linear(3, 3, bias=False)
    model.head = nn.Module()
    model.head.weight = model.neck.weight
    assert params.add_up(params.count(model)) == (9, 9)


def test_tuned_bytes_include_statistics_of_what_trains():
    """Trainable tensors plus batch-norm statistics of trained parts; none of frozen ones."""
    expected = {part: 4 * trainable for part, (trainable, _) in COUNTS.items() if trainable}
    # Mean and variance of 2 channels in float32 and an int64 counter; the classification head's
    # norm has 4 channels and no parameters of its own; the backbone's is frozen.
    expected['decode head'] += 2 * 2 * 4 + 8
    expected['classification head'] += 2 * 4 * 4 + 8
    assert params.tuned_bytes(Toy()) == expected
    megabytes, deployed = params.tuned_megabytes(Toy())
    assert megabytes * 1e6 == pytest.approx(sum(expected.values()))
    assert deployed * 1e6 == pytest.approx(sum(expected.values()) - 20 * 4)


def test_tuned_bytes_leave_out_what_is_not_saved():
    """Buffers outside of the state dict take no room on disk; halves take half."""
    model = nn.Module()
    model.head = nn.Linear(4, 4, bias=False).half()
    model.head.register_buffer('scratch', torch.zeros(100), persistent=False)
    assert params.tuned_bytes(model) == {'classification head': 16 * 2}


def test_tuned_bytes_is_what_a_file_takes():
    """Everything trains: the size is that of the tensors of the state dict."""
    model = Toy().requires_grad_(True)
    expected = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert sum(params.tuned_bytes(model).values()) == expected


def test_wrappers_do_not_hide_the_parts():
    """Parts are found inside a distributed and a test-time-augmentation wrapper."""
    from mmengine.model import MMDistributedDataParallel
    from mmseg.models import SegTTAModel

    toy = Toy()
    toy.test_step = None  # asked for by the wrapper, not called
    assert params.count(SegTTAModel(module=toy)) == COUNTS
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(toy)
        assert params.count(wrapped) == COUNTS
        assert params.tuned_bytes(wrapped) == params.tuned_bytes(toy)
    finally:
        torch.distributed.destroy_process_group()


def test_report_is_plain_and_complete():
    """The report survives JSON and its figures agree with each other."""
    report = params.report(Toy())
    assert json.loads(json.dumps(report)) == report
    assert report['trainable'] == sum(p['trainable'] for p in report['parts'].values()) == 85
    assert report['total'] == 109
    assert report['percent'] == pytest.approx(100 * 85 / 109)
    assert report['deployed']['total'] == 89
    assert 'auxiliary heads' in report['deployed']['note']
    assert report['tuned_megabytes'] == params.tuned_megabytes(Toy())[0]
    assert report['deployed']['tuned_megabytes'] == params.tuned_megabytes(Toy())[1]


def test_table_shows_heads_apart_and_deployed_total():
    """Decode and auxiliary heads have rows of their own; the deployed total says what it omits."""
    lines = params.parts_table(Toy()).splitlines()
    cells = {line.split('  ')[0].strip(): line.split()[-3:] for line in lines[1:-1]}
    assert cells['decode head'] == ['14', '14', '100.0']
    assert cells['auxiliary heads'] == ['20', '20', '100.0']
    assert cells['all, in training'] == ['85', '109', '78.0']
    assert cells['deployed (no auxiliary heads)'] == ['65', '89', '73.0']
    assert '0.00 MB on disk' in lines[-1] and 'without the auxiliary heads' in lines[-1]


@pytest.mark.parametrize(
    'value, text',
    [(0.0, '0.0 %'), (100.0, '100.0 %'), (4.2167, '4.2 %'), (0.01234, '0.012 %')],
)
def test_percent_keeps_digits_that_count(value, text):
    """A thousandth of a percent does not become 0.0 %."""
    assert params.format_percent(value) == text


# SETR-PUP on ViT-L/16 at 512 x 512 with 150 classes, as in the paper's ADE20K experiments.
D, LAYERS, CLASSES = 1024, 24, 150
# patch convolution and its bias + cls + positions of cls and 32 x 32 patches
# + blocks (qkv 3d^2 + 3d, projection d^2 + d, MLP 8d^2 + 5d, two norms 4d); no final norm
BACKBONE = (16 * 16 * 3 * D + D) + D + (1 + 32 * 32) * D + LAYERS * (12 * D * D + 13 * D)
# norm of the features, 3x3 convolution to 256 channels with batch norm, further ones 256 to 256
CONV_IN, CONV, OUT = D * 256 * 9 + 2 * 256, 256 * 256 * 9 + 2 * 256, 256 * CLASSES + CLASSES
DECODE = 2 * D + CONV_IN + 3 * CONV + OUT  # four convolutions
AUXILIARY = 3 * (2 * D + CONV_IN + CONV + OUT)  # three heads of two convolutions
# biases of a block: qkv 3d, projection d, MLP 4d + d, two norms 2d; and the patch convolution's
BIAS = LAYERS * 11 * D + D
DEEP = LAYERS * 10 * D  # ten prompt tokens at every layer


def test_formulas_give_the_published_integers():
    """The formulas above are those behind the figures in the README."""
    assert BACKBONE == 304_147_456
    assert DECODE == 4_171_414
    assert AUXILIARY == 3 * 2_990_742
    assert BACKBONE + DECODE + AUXILIARY == 317_291_096
    assert DECODE + AUXILIARY == 13_143_640
    assert DECODE + AUXILIARY + DEEP == 13_389_400
    assert BIAS == 271_360


# method: (trainable in the backbone, prompt); deep-bias and shallow take their number of tokens
# from the config
SETR = {
    'full': lambda tokens: (BACKBONE, None),
    'head': lambda tokens: (0, None),
    'bias': lambda tokens: (BIAS, None),
    'shallow': lambda tokens: (0, tokens * D),
    'deep': lambda tokens: (0, DEEP),
    'deep-bias': lambda tokens: (BIAS, LAYERS * tokens * D),
}


@pytest.mark.parametrize('method', SETR)
def test_setr_configs_have_the_exact_counts(method):
    """The ADE20K configs, as they are, with nothing but the meta device."""
    cfg = Config.fromfile(ROOT / f'configs/vpt/setr_vit-l_{method}_ade20k.py')
    prompt_cfg = cfg.model.backbone.get('prompt', {})
    backbone, prompt = SETR[method](prompt_cfg.get('num_tokens'))
    if method == 'deep':
        assert prompt_cfg['num_tokens'] == 10
    model = building.build_model(cfg, 'meta')
    assert next(model.parameters()).device.type == 'meta'
    expected = {
        'backbone': (backbone, BACKBONE),
        'prompt': (prompt, prompt),
        'decode head': (DECODE, DECODE),
        'auxiliary heads': (AUXILIARY, AUXILIARY),
    }
    if prompt is None:
        del expected['prompt']
    assert params.count(model) == expected


def test_vit_b_configs_have_the_exact_counts():
    """Classification on ViT-B/16 with 100 classes: the paper's counts without the head."""
    head = 768 * 100 + 100
    # (prompt, backbone) trainable; see the counts of ViT-B/16 in the original code
    cases = {
        'full': (0, 85_798_656),
        'linear': (0, 0),
        'bias': (0, 102_912),
        'partial-1': (0, 7_089_408),  # last block 12d^2 + 13d and the final norm 2d
    }
    for method, (prompt, backbone) in cases.items():
        cfg = load(f'vit-b_cifar100 {method}')
        counts = params.count(building.build_model(cfg, 'meta'))
        assert counts['backbone'][0] == backbone, method
        assert counts.get('prompt', (0, 0))[0] == prompt, method
        assert counts['classification head'] == (head, head), method


HEAD, DEEP_CONFIG = (f'configs/vpt/setr_vit-l_{m}_ade20k.py' for m in ('head', 'deep'))


@pytest.mark.slow
def test_tool_prints_json():
    """As a user calls it: one entry a config, nothing else on stdout or stderr."""
    done = subprocess.run(
        [sys.executable, 'tools/count_params.py', '--json', HEAD, DEEP_CONFIG],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (0, '')
    reports = json.loads(done.stdout)
    assert list(reports) == [HEAD, DEEP_CONFIG]
    assert reports[HEAD]['trainable'] == 13_143_640
    assert reports[DEEP_CONFIG]['trainable'] == 13_389_400
    assert reports[DEEP_CONFIG]['parts']['prompt'] == {'trainable': 245_760, 'total': 245_760}


@pytest.fixture
def tool(monkeypatch):
    """Call the tool in this process, with a command line."""
    monkeypatch.chdir(ROOT)
    from vpt_dense.commands import count_params

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['count_params.py', *arguments])
        count_params.errors.main(count_params.main)

    return call


@pytest.mark.parametrize('arguments', [['--markdown'], []])
def test_tool_prints_a_row_for_each_config(tool, arguments, capsys):
    """Table and Markdown hold whole numbers however narrow the screen of a pipe is."""
    with pytest.raises(SystemExit, match='0'):
        tool(*arguments, HEAD, DEEP_CONFIG)
    lines = capsys.readouterr().out.splitlines()
    (head,) = [line for line in lines if 'setr_vit-l_head_ade20k' in line]
    (deep,) = [line for line in lines if 'setr_vit-l_deep_ade20k' in line]
    assert '13,143,640' in head and '317,291,096' in head and ' - ' in head
    # MB of float32 with the statistics of ten batch norms (mean, variance, counter), of the decode
    # head's four when deployed: 13,143,640 * 4 + 10 * 2056 and 4,171,414 * 4 + 4 * 2056 bytes
    assert '52.60' in head and '16.69' in head
    assert '13,389,400' in deep and '245,760' in deep
    if arguments:
        assert lines[1].startswith('| --- | ---: |')
        assert len({line.count('|') for line in lines}) == 1


def test_tool_takes_overrides(tool, capsys):
    """Twice the prompt tokens, twice the prompt."""
    with pytest.raises(SystemExit, match='0'):
        tool('--json', DEEP_CONFIG, '--cfg-options', 'model.backbone.prompt.num_tokens=20')
    report = json.loads(capsys.readouterr().out)[DEEP_CONFIG]
    assert report['parts']['prompt']['total'] == 2 * DEEP


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['configs/vpt/setr_vit-l_dep_ade20k.py'], 'setr_vit-l_dep_ade20k.py'),
        # The second of two is wrong: it is named, and nothing is printed for the first.
        ([HEAD, 'nowhere.py'], 'nowhere.py'),
        ([DEEP_CONFIG, '--cfg-options', 'model.backbone.prompt.num_tokens=0'], DEEP_CONFIG),
    ],
)
def test_tool_says_in_a_line_what_is_wrong(tool, arguments, message, capsys):
    """One line that names the config, exit code 2."""
    with pytest.raises(SystemExit, match='2'):
        tool(*arguments)
    captured = capsys.readouterr()
    assert captured.out == ''
    assert captured.err.startswith('error: ') and message in captured.err
    assert len(captured.err.splitlines()) == 1
