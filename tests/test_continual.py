"""Streams of classes: steps, their head and data, scores, the null space."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine import DATASETS, MODELS
from mmengine.optim import OptimWrapper
from mmpretrain.structures import DataSample
from tool_helpers import in_process, run_tool
from utils import CONFIGS, ROOT, images, in_scope, randomise, tiny_vit

from vpt_dense import config, preflight, registry  # noqa: F401  registers
from vpt_dense.comparison import runs, streams
from vpt_dense.continual import null_space, scores, stream
from vpt_dense.errors import UserError
from vpt_dense.hooks import PromptLossHook

RECIPE = str(CONFIGS / 'vpt/vit-b_imagefolder.py')
CLASSES = ['a', 'b', 'c', 'd', 'e']
TINY = ["model.backbone.arch={'embed_dims': 32, 'num_layers': 2, 'num_heads': 2, "
        "'feedforward_channels': 32}", 'model.head.in_channels=32', 'model.backbone.init_cfg=None',
        'img_size=32', 'model.backbone.patch_size=16', 'batch_size=4', 'epochs=1', 'warmup=0',
        'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
        'test_dataloader.num_workers=0', 'lr=0.1']  # fmt: skip


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    draw = np.random.default_rng(0)
    for split, number in (('train', 4), ('val', 2)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                picture = draw.integers(0, 60, (36, 36, 3), dtype=np.uint8)
                picture[..., label % 3] += np.uint8(60 * (1 + label // 3))
                cv2.imwrite(str(root / split / name / f'{i}.png'), picture)
    return root


# --- the steps -------------------------------------------------------------------------------


def test_classes_come_in_steps():
    of = stream.classes_of_steps
    assert of(2, CLASSES, None) == [[0, 1, 2], [3, 4]]
    drawn = of(3, 'abcdefg', 1)
    assert [len(step) for step in drawn] == [3, 2, 2]
    assert sorted(label for step in drawn for label in step) == list(range(7))
    assert drawn == of(3, 'abcdefg', 1) != of(3, 'abcdefg', 2)
    assert of([[2], [0, 1]], 'abc', 5) == of([['c'], ['a', 1]], 'abc', 5) == [[2], [0, 1]]
    # 15-1 and 19-1 of PASCAL VOC, whose first of 21 classes is the background; 100-50 of ADE20K.
    for steps, sizes in (('15-1', [15, 1, 1, 1, 1, 1]), ('19-1', [19, 1])):
        parts = of(steps, [str(label) for label in range(21)], None, 0)
        assert [len(part) for part in parts] == sizes
        assert [label for part in parts for label in part] == list(range(1, 21))
    assert list(map(len, of('100-50', ['a'] * 150, None))) == [100, 50]


def test_steps_of_a_file(tmp_path):
    path = tmp_path / 'steps.json'
    for text in ('[["c"], ["a", "b"]]', '{"steps": [[2], [0, 1]], "classes": 3, "seed": 7}'):
        path.write_text(text)
        assert stream.classes_of_steps(str(path), 'abc', 0) == [[2], [0, 1]]
    with pytest.raises(UserError, match='is of 3 classes, the data have 4'):
        stream.classes_of_steps(str(path), 'abcd', 0)
    with pytest.raises(UserError, match='neither a number, nor FIRST-EACH'):
        stream.classes_of_steps(str(tmp_path / 'other.json'), 'abc', 0)


def test_streams_that_come_along():
    sizes = {'cifar-100_10': (100, [10] * 10), 'imagenet-r_10': (200, [20] * 10),
             'imagenet-r_20': (200, [10] * 20), 'cub-200_10': (200, [20] * 10)}
    assert sizes.keys() == stream.ready().keys()
    for name, (classes, lengths) in sizes.items():
        said = json.loads(stream.ready()[name].read_text())
        parts = stream.classes_of_steps(name, ['x'] * classes, 0)
        assert list(map(len, parts)) == lengths and said['classes'] == classes
        order = np.random.RandomState(said['seed']).permutation(classes).tolist()
        assert [label for part in parts for label in part] == order


@pytest.mark.parametrize(('given', 'message'), [
    (dict(steps=6), 'steps is 6, but there are 5 classes'), (dict(steps=0), 'at least'),
    (dict(steps=[[0, 1], [1, 2, 3, 4]]), 'must be in one step, but one is in two'),
    (dict(steps=[[0, 1], [2, 3]]), 'but e is in none'), (dict(steps='5'), 'a number'),
    (dict(steps=[[0, 1], [2, 3, 'x']]), "but 'x' is none of them"),
    (dict(steps='3-3'), 'left over'),
    (dict(steps=2, domains=['a', 'b']), 'either steps or domains'),
    (dict(domains=['a']), 'two data roots'),
    (dict(domains=['a', 'b'], seed=1), 'seed does nothing'),
    (dict(domains=['a', 'b'], test_on=2), 'test_on must be one of 0 to 1'),
    (dict(domains=['a', 'b'], temperature=2), 'temperature does nothing'),
    (dict(steps=2, test_on=1), 'continual.test_on'), (dict(steps=2, background='a'), 'background'),
    (dict(steps=2, strategy='eclipse_like'), 'eclipse_like is for steps of a segmentation'),
    (dict(step=1), 'a dict of'), (dict(steps=2, step=2), 'one of 0 to 1'), (5, 'a dict of'),
    (dict(steps=2, strategy='replay'), 'continual.strategy'), (dict(steps=2, x=1), 'a dict of'),
    (dict(steps=2, disjoint=True), 'disjoint does nothing'),
    (dict(steps=2, eta=0.9), 'eta does nothing'), (dict(steps=2, seed='a'), 'seed'),
    (dict(steps=2, step=1, strategy='nsp2'), 'needs the file'),
    (dict(steps=4), 'step 1 has one class alone'),
    (dict(steps=[[0], [1, 2, 3, 4]], strategy='joint'), 'step 0 has one class alone'),
    (dict(steps=2, temperature=0), 'temperature'),
    (dict(steps=[[0, 1], [2, 3, 4]], seed=1), 'seed does nothing with steps='),
    (dict(steps='cifar-100_10', seed=1), 'is of 100 classes'),
    (dict(steps=[[[0]], [1, 2, 3, 4]]), 'is none of them'),
    (dict(domains=['a', dict(data_root='b', ignore_index=3)]), 'ignore_index is the same in all'),
])
def test_what_cannot_be_is_refused(data, given, message):
    with pytest.raises(UserError, match=message):
        config.load(RECIPE, {'dataset.data_root': str(data), 'continual': given}, 'deep')


@pytest.mark.parametrize(('method', 'options', 'given', 'message'), [
    ('deep', {'model.head.type': 'MultiLabelLinearClsHead'}, {}, 'must be a LinearClsHead'),
    ('deep', {'model.head.loss.class_weight': [1, 2, 3, 4, 5]}, dict(strategy='joint'),
     r'model\.head\.loss\.class_weight is for all classes'),
    ('coda-prompt', {'ensemble': dict(seeds=[0, 1])}, {}, 'ensemble: there is none of prompts'),
    ('deep', {'model.neck': dict(type='LinearNeck', in_channels=768, out_channels=768)},
     dict(strategy='frozen', step=1), 'a LinearNeck, would train too'),
])
def test_what_steps_have_no_place_for_is_refused(data, method, options, given, message):
    with pytest.raises(UserError, match=message):
        config.load(RECIPE, {'dataset.data_root': str(data), **options,
                             'continual': dict(steps=2, **given)}, method)


def test_a_step_of_a_config(data, tmp_path):
    options = {'dataset.data_root': str(data), 'continual': dict(
        steps=[[4, 0], [1, 2, 3]], step=1, temperature=25)}
    cfg = config.load(RECIPE, options, 'deep')
    assert 'continual' not in cfg
    assert [cfg[f'{name}_dataloader'].dataset.labels for name in ('train', 'val', 'test')] == [
        [1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]
    assert (cfg.model.head.type, cfg.model.head.num_classes) == ('vpt_dense.StepHead', 5)
    finished = tmp_path / 'finished.py'
    cfg.dump(str(finished))
    assert config.load(str(finished)).model == cfg.model
    options['continual']['strategy'] = 'joint'
    assert config.load(RECIPE, options, 'deep').train_dataloader.dataset.labels == [
        0, 1, 2, 3, 4]
    options['continual']['strategy'] = 'frozen'
    assert config.load(RECIPE, options, 'deep').model.backbone.trainable == []
    with pytest.raises(UserError, match='classes are not known'):
        config.load(RECIPE, {'continual': dict(steps=2)}, 'deep')


def test_images_of_some_classes(data):
    in_scope('mmpretrain')
    inner = dict(type='vpt_dense.ImageFolder', data_root=str(data), pipeline=[])
    found = DATASETS.build(dict(type='vpt_dense.ClassSubset', dataset=inner, labels=[1, 3]))
    assert found.get_gt_labels().tolist() == [1] * 4 + [3] * 4
    assert list(found.metainfo['classes']) == CLASSES
    with pytest.raises(UserError, match='no image of c'):
        DATASETS.build(dict(type='vpt_dense.ClassSubset', labels=[2], dataset=dict(
            type='vpt_dense.ClassSubset', dataset=inner, labels=[1])))


@pytest.mark.parametrize('joint', [False, True])
def test_the_head_of_a_step(joint):
    in_scope('mmpretrain')
    steps = [[4, 0], [1], [2, 3]]
    head = randomise(MODELS.build(dict(
        type='vpt_dense.StepHead', num_classes=5, in_channels=8, steps=steps, step=1, joint=joint,
        temperature=4.0, loss=dict(type='CrossEntropyLoss'))))
    trained = {name.split('.')[1] for name, p in head.named_parameters() if p.requires_grad}
    start = MODELS.build(dict(type='vpt_dense.StepHead', num_classes=5, in_channels=8, steps=steps))
    start.init_weights()
    assert not any(parameter.any() for parameter in start.parameters())
    assert trained == ({'0', '1'} if joint else {'1'})
    features = images(3, 8)
    out = head((features,))
    for step, labels in enumerate(steps):
        wanted = head.steps[step](features)
        for column, label in enumerate(labels):
            expected = wanted[:, column] if step < 2 else torch.full((3,), -torch.inf)
            torch.testing.assert_close(out[:, label], expected)
    labels = [4, 1, 0] if joint else [1, 1, 1]
    loss = head.loss((features,), [DataSample().set_gt_label(label) for label in labels])['loss']
    columns = [4, 0, 1] if joint else [1]
    wanted = torch.nn.functional.cross_entropy(
        torch.stack([out[:, label] for label in columns], 1) / 4,
        torch.tensor([columns.index(label) for label in labels]))
    torch.testing.assert_close(loss, wanted)


def test_the_head_of_a_step_knows_mixed_images_and_accuracy():
    in_scope('mmpretrain')
    head = randomise(MODELS.build(dict(
        type='vpt_dense.StepHead', num_classes=5, in_channels=8, steps=[[4, 0], [3, 1, 2]], step=1,
        cal_acc=True, topk=(1,), loss=dict(type='CrossEntropyLoss', use_soft=True))))
    head.steps[1].bias.data += 10  # upstream counts scores above 0 alone
    features, head.cal_acc = images(3, 8), False
    mixed = torch.tensor([[0, 0.25, 0, 0.75, 0], [0, 0, 1, 0, 0], [0, 0.5, 0.5, 0, 0]])
    samples = [DataSample().set_gt_label(3).set_gt_score(row) for row in mixed]
    scores = head.steps[1](features)
    wanted = torch.nn.functional.cross_entropy(scores, mixed[:, [3, 1, 2]])
    torch.testing.assert_close(head.loss((features,), samples)['loss'], wanted)
    head.loss_module, head.cal_acc = MODELS.build(dict(type='CrossEntropyLoss')), True
    labels = [[3, 1, 2][i] for i in scores.argmax(1).tolist()]
    found = head.loss((features,), [DataSample().set_gt_label(label) for label in labels])
    assert float(found['accuracy_top-1'][0]) == 100


def test_scores_of_a_stream():
    matrix = [[90.0], [80.0, 70.0], [85.0, 40.0, 60.0]]
    assert scores.average_accuracy(matrix) == pytest.approx(185 / 3)
    assert scores.forgetting(matrix) == pytest.approx(((90 - 85) + (70 - 40)) / 2)
    assert scores.forgetting([[50.0]]) is None
    assert scores.forward_transfer([90.0, 70.0, 50.0], [80.0, 60.0, 55.0]) == pytest.approx(2.5)
    assert scores.forward_transfer([90.0], [80.0]) is None


# --- the null space --------------------------------------------------------------------------


def test_the_projection():
    vectors, _ = torch.linalg.qr(images(6, 6, dtype=torch.float64))
    values = torch.tensor([9.0, 5.0, 4.0, 1e-3, 1e-4, 0.0], dtype=torch.float64)
    covariance = vectors @ values.diag() @ vectors.T
    # Second differences about values 2 to 5: 3, -3, 4, 8e-4. The fourth value counts, the rest not.
    strict = null_space.projection(covariance, 1.0)
    null = vectors[:, 4:]
    torch.testing.assert_close(strict, null @ null.T / 2**0.5)
    assert torch.linalg.matrix_norm(strict) == pytest.approx(1)
    torch.testing.assert_close(strict, strict.T)
    torch.testing.assert_close(
        null_space.projection(covariance, 0.0), torch.eye(6, dtype=torch.float64))
    mixed = null_space.projection(covariance, 0.25)
    torch.testing.assert_close(mixed, 0.25 * strict + 0.75 * torch.eye(6, dtype=torch.float64))


def vit():
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=30, deep=True)
    return randomise(tiny_vit(prompt=prompt, out_type='raw', img_size=16)).double().eval()


def outside(*rows):
    """An orthonormal basis of what is orthogonal to all rows, as columns."""
    matrix = torch.cat([row.reshape(-1, row.shape[-1]) for row in rows])
    _, values, vectors = torch.linalg.svd(matrix)
    rank = int((values > 1e-9 * values[0]).sum())
    return vectors[rank:].T


def test_a_change_in_the_null_space_changes_no_output():
    """One image of 2 x 2 patches: 5 tokens x 4 heads are 20 queries of width 64."""
    model, x = vit(), images(1, 3, 16, 16, dtype=torch.float64)
    entering = []
    handles = [block.register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
               for block in model.layers]
    with torch.no_grad():
        before = model(x)[0]
        for handle in handles:
            handle.remove()
        start = model.prompt.tokens.clone()
        changes = {'null': [], 'any': []}
        for layer, block in enumerate(model.layers):
            width, number = null_space.covariances(block, entering[layer], start[layer])
            assert [int(torch.linalg.matrix_rank(each)) for each in (width, number)] == [20, 20]
            centred = start[layer] - start[layer].mean(-1, keepdim=True)
            free = outside(width, torch.ones(1, 64, dtype=torch.float64), centred)
            rows = outside(number)
            assert (free.shape, rows.shape) == ((64, 13), (30, 10))
            drawn = images(30, 64, seed=layer, dtype=torch.float64)
            for kind, change in (('null', rows @ rows.T @ drawn @ free @ free.T), ('any', drawn)):
                changes[kind].append(change / change.norm())
        moved = {}
        for kind, change in changes.items():
            model.prompt.tokens.copy_(start + 1e-6 * torch.stack(change))
            moved[kind] = float((model(x)[0] - before).abs().max())
    assert moved['null'] < 1e-10 < 1e-8 < moved['any'], moved


def test_invariance_weighs_as_much_as_the_loss():
    """The last passes of a training may be fewer than the others that make one step."""
    hook, token = null_space.NullSpaceHook(), torch.nn.Parameter(torch.ones(1))
    hook._wrapper = wrapper = OptimWrapper(
        torch.optim.SGD([token], 0.1), accumulative_counts=2)
    wrapper.initialize_count_status(torch.nn.Identity(), 0, 3)
    found = []
    for _ in range(3):
        found.append(hook._scale())
        wrapper.update_params(token.sum())
    assert found == [0.5, 0.5, 1]


# --- runs ------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch, capfd):
    """Tools run in this process; their names."""
    found = []
    monkeypatch.setattr('vpt_dense.comparison.runs.call', in_process(capfd, found))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return found


def run(capfd, out, data, *arguments, options=()):
    return run_tool(capfd, 'continual', RECIPE, '--method', 'deep', '--steps', '2', '--work-dir',
                    str(out), '--amp', 'off', *arguments, '--cfg-options',
                    f'dataset.data_root={data}', *TINY, *options)


@pytest.mark.slow
def test_a_stream(capfd, tmp_path, data, calls):
    out = tmp_path / 'a stream, [here]'
    outcome = run(capfd, out, data, '--strategies', 'sequential', 'nsp2', 'frozen', 'joint')
    assert outcome.code == 0, outcome.err
    assert calls == ['train', 'test'] * 8
    table = json.loads((out / 'table.json').read_text())
    assert sorted(map(len, table['steps'])) == [2, 3]
    names = json.loads((out / 'stream.json').read_text())
    assert names == [[CLASSES[label] for label in step] for step in table['steps']]
    for matrices in table['matrices'].values():
        assert [list(map(len, matrix)) for matrix in matrices] == [[1, 2]]
        assert all(0 <= each <= 100 for matrix in matrices for row in matrix for each in row)
    assert (out / 'matrix.svg').is_file() and 'forgetting' in (out / 'table.md').read_text()

    def state(strategy, step):
        (file,) = (out / f'{strategy}_seed0/step_{step}').glob('epoch_1.pth')
        return torch.load(file, weights_only=False)['state_dict']

    for strategy in ('sequential', 'nsp2', 'frozen'):
        first, second = state(strategy, 0), state(strategy, 1)
        assert torch.equal(first['head.steps.0.weight'], second['head.steps.0.weight'])
        assert not torch.equal(first['head.steps.1.weight'], second['head.steps.1.weight'])
        same = torch.equal(first['backbone.prompt.tokens'], second['backbone.prompt.tokens'])
        assert same == (strategy == 'frozen')
    sequential, nsp2 = (state(strategy, 1)['backbone.prompt.tokens']
                        for strategy in ('sequential', 'nsp2'))
    assert torch.equal(*(state(strategy, 0)['backbone.prompt.tokens']
                         for strategy in ('sequential', 'nsp2')))
    assert not torch.equal(sequential, nsp2)

    # Finished steps stay; a lost one is made again, to the same numbers.
    calls.clear()
    for path in (out / 'nsp2_seed0/step_1').iterdir():
        if path.is_file():
            path.unlink()
    outcome = run(capfd, out, data, '--strategies', 'sequential', 'nsp2')
    assert outcome.code == 0 and calls == ['train', 'test'], outcome.err
    again = json.loads((out / 'table.json').read_text())
    assert again['matrices']['nsp2'] == table['matrices']['nsp2']
    assert torch.equal(state('nsp2', 1)['backbone.prompt.tokens'], nsp2)
    outcome = run(capfd, out, data, '--order', '1')
    assert outcome.code == 2 and 'of other settings or data' in outcome.err

    # Killed while it looked at its images, a step looks again, and sees the same.
    place = out / 'nsp2_seed0/step_1'
    seen = null_space._read(str(place / null_space.FILE))
    for name in (null_space.FILE, 'summary.json'):
        (place / name).unlink()
    known = json.loads((place / streams.STEP).read_text())
    mark = {key: known[key] for key in ('fingerprint', 'data', 'options')}
    (place / streams.STEP).write_text(json.dumps(mark))
    assert run(capfd, out, data, '--strategies', 'nsp2').code == 0
    seen_again = null_space._read(str(place / null_space.FILE))
    assert all(torch.equal(seen[key], seen_again[key]) for key in seen)

    # What is finished needs no checkpoint.
    calls.clear()
    for path in out.rglob('*.pth'):
        path.unlink()
    assert run(capfd, out, data, '--strategies', 'sequential', 'nsp2').code == 0 and not calls


@pytest.mark.slow
def test_strict_projection_moves_prompts_in_the_null_space_alone(capfd, tmp_path, data, calls):
    out = tmp_path / 'out'
    # Behind one epoch, which begins with a head of zeros, rounding would be seen.
    assert run(capfd, out, data, '--strategies', 'nsp2', '--eta', '1',
               options=['epochs=4']).code == 0
    left = null_space._read(str(out / 'nsp2_seed0/step_0/null_space.safetensors'))
    tokens = [torch.load(out / f'nsp2_seed0/step_{step}/epoch_4.pth', weights_only=False)[
        'state_dict']['backbone.prompt.tokens'].double() for step in (0, 1)]
    torch.testing.assert_close(left['prompt'].double(), tokens[0])
    for layer, change in enumerate(tokens[1] - tokens[0]):
        for key, own in (('width', change), ('number', change.T)):
            vectors, values, _ = torch.linalg.svd(left[key][layer])
            rank = int((values[:-2] - 2 * values[1:-1] + values[2:]).argmax()) + 2
            assert change.norm() > 0
            assert (own @ vectors[:, :rank]).norm() < 1e-3 * change.norm()


def stream_of(tmp_path, data, *options, domains=()):
    given = f'continual.domains={list(map(str, domains))!r}' if domains else 'continual.steps=2'
    return streams.Stream(runs.Comparison(RECIPE, tmp_path / 'out', options=[
        *TINY, f'dataset.data_root={data}', given, *options]), 'deep', list(map(str, domains)))


def test_what_a_step_begins_with(tmp_path, data, monkeypatch):
    begun, rows = [], [dict(accuracy=50.0, support=2)] * 4 + [dict(accuracy=None, support=0)]
    monkeypatch.setattr(runs.Comparison, 'train', lambda self, method, place, options, seed:
                        begun.append([o for o in options if not o.startswith('continual.')]))
    monkeypatch.setattr(streams.Stream, '_last', lambda self, place: place / 'last.pth')
    monkeypatch.setattr(streams.Stream, '_test', lambda *arguments: rows)
    stream = stream_of(tmp_path, data)
    for strategy in ('sequential', 'joint'):
        assert stream.run(strategy, 0)['matrix'] == [[50.0], [50.0, 50.0]]
    place = tmp_path / 'out/sequential_seed0/step_0/last.pth'
    # Heads of earlier steps stay, though the first may have new ones.
    assert begun == [[], [f'load_from={place}', 'new_heads=False'], [], []]
    with pytest.raises(UserError, match='the test has no image of z'):
        stream._mean([dict(rows[-1], **{'class': 'z'})])

    (place.parent / streams.STEP).unlink()
    place.touch()
    with pytest.raises(UserError, match='step_0 holds checkpoints of a run that was started other'):
        stream.run('sequential', 0)
    place.unlink()

    # A name that two classes have is none to find them by.
    monkeypatch.setattr(streams, 'draw', lambda *arguments: None)
    stream.names = ['crane', 'crane', 'c', 'd', 'e']
    stream.write(['sequential'], [0])
    assert json.loads((tmp_path / 'out/stream.json').read_text()) == stream.steps


def test_a_stream_looks_at_its_data_before(tmp_path, data):
    root = shutil.copytree(data, tmp_path / 'data')
    for name in 'cd':
        for file in (root / 'val' / name).iterdir():
            file.unlink()
    with pytest.raises(UserError, match='step 2 of 2: test_dataloader: no image of c, d'):
        stream_of(tmp_path, root, "continual.steps=[['a','b','e'],['c','d']]").check(
            ['sequential'], [0])
    with pytest.raises(UserError, match='continual.domains: .*nowhere: no folder'):
        stream_of(tmp_path, data, domains=[data, tmp_path / 'nowhere']).check(['joint'], [0])


def test_a_step_is_of_the_data_of_all_domains(tmp_path, data):
    other = shutil.copytree(data, tmp_path / 'other')
    before = stream_of(tmp_path, data, domains=[data, other])._mark(0, [])
    assert before == stream_of(tmp_path, data, domains=[data, other])._mark(0, [])
    file = other / 'val/a/0.png'
    cv2.imwrite(str(file), 255 - cv2.imread(str(file)))
    assert before != stream_of(tmp_path, data, domains=[data, other])._mark(0, [])


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--eta', '0.5'], '--eta does nothing'), (['--steps', '9'], '9, but there are 5 classes'),
    (['--strategies', 'nsp2', '--method', 'lora'], 'needs VPT-deep'),
    (['--strategies', 'nsp2', '--method', 'deep-bias'], 'projection.bias trains too'),
    (['--strategies', 'nsp2', 'custom_hooks=[{type: EMAHook}]'], 'EMAHook keeps means'),
    (['--order', '-1'], '--order must not')])
def test_wrong_streams(capfd, tmp_path, data, calls, arguments, message):
    options = [each for each in arguments if '=' in each]
    arguments = [each for each in arguments if '=' not in each]
    outcome = run(capfd, tmp_path / 'out', data, *arguments, options=options)
    assert outcome.code == 2 and message in outcome.err, outcome.err


@pytest.mark.long
def test_a_killed_stream_goes_on_to_the_same_end(tmp_path, data):
    """SIGKILL of the whole group, twice, while the second step trains."""
    def start(out):
        command = [sys.executable, '-m', 'vpt_dense', 'continual', RECIPE, '--method', 'deep',
                   '--steps', '2', '--strategies', 'nsp2', '--work-dir', str(out), '--amp', 'off',
                   '--cfg-options', f'dataset.data_root={data}', *TINY, 'epochs=16',
                   'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None',
                   'default_hooks.checkpoint.save_best=None']
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True,
                                env={**os.environ, 'OMP_NUM_THREADS': '1'},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    whole = start(tmp_path / 'whole')
    printed, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, printed.decode()
    kills = 0
    for moment in ('step_1/epoch_3.pth', 'step_1/epoch_10.pth'):
        process = start(tmp_path / 'cut')
        while process.poll() is None:
            if (tmp_path / 'cut/nsp2_seed0' / moment).is_file():
                for group in groups_below(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(group, signal.SIGKILL)
                process.wait()
                kills += 1
                break
            time.sleep(0.02)
    last = start(tmp_path / 'cut')
    printed, _ = last.communicate(timeout=300)
    assert last.returncode == 0 and kills >= 1, printed.decode()
    one, other = (json.loads((tmp_path / name / 'table.json').read_text())['matrices']
                  for name in ('whole', 'cut'))
    assert one == other
    first, second = (null_space._read(
        str(tmp_path / name / 'nsp2_seed0/step_1/null_space.safetensors'))
        for name in ('whole', 'cut'))
    assert all(torch.equal(first[key], second[key]) for key in first)


def groups_below(pid: int) -> set[int]:
    """The process groups of a process and of what it has started."""
    found, todo = {os.getpgid(pid)}, [pid]
    while todo:
        for children in Path(f'/proc/{todo.pop()}/task').glob('*/children'):
            for child in map(int, children.read_text().split()):
                with contextlib.suppress(ProcessLookupError):
                    found.add(os.getpgid(child))
                todo.append(child)
    return found


# --- prompts that the frozen backbone chooses --------------------------------------------------


def queried(kind, **kwargs):
    """A tiny ViT in float64, and what it makes of images without prompts."""
    model = randomise(tiny_vit(
        prompt=dict(type=f'vpt_dense.{kind}', **kwargs), out_type='raw')).double()
    plain = tiny_vit(out_type='raw').double().eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items()
                           if not n.startswith('prompt.')})
    x = images(3, 3, 32, 40, dtype=torch.float64)
    return model, plain, x, plain(x)[0][:, 0]


def cosine(one, other):
    return float(one @ other / one.norm() / other.norm())


def with_keys(plain, x, further):
    """The blocks with further keys and values of each image, {layer: (keys, values)} (B, h, P, d).

    Attention a head at a time, as test_token_methods.py has it.
    """
    x = plain.embed(x)[0]
    for i, layer in enumerate(plain.layers):
        normed, width = layer.ln1(x), x.shape[-1]
        heads, size, outs = 4, x.shape[-1] // 4, []
        for head in range(heads):
            rows = [slice(part * width + head * size, part * width + (head + 1) * size)
                    for part in range(3)]
            q, k, v = (normed @ layer.attn.qkv.weight[r].T + layer.attn.qkv.bias[r] for r in rows)
            if i in further:
                k, v = (torch.cat([own, more[:, head]], 1)
                        for own, more in zip((k, v), further[i], strict=True))
            outs.append((q @ k.transpose(1, 2) / size**0.5).softmax(-1) @ v)
        x = x + torch.cat(outs, -1) @ layer.attn.proj.weight.T + layer.attn.proj.bias
        x = layer.ffn(layer.ln2(x), identity=x)
    return plain.ln1(x)


def test_l2p_takes_the_prompts_with_the_nearest_keys():
    model, plain, x, queries = queried(
        'L2PPrompt', num_tokens=2, pool_size=5, chosen=3, match=0.25)
    part, rows, distances = model.prompt, [], []
    for query in queries:
        ranks = sorted(range(5), key=lambda m: -cosine(query, part.keys[m]))[:3]
        rows.append(torch.cat([part.tokens[m] for m in ranks]))
        distances.append(sum(1 - cosine(query, part.keys[m]) for m in ranks))
    entering = plain.embed(x)[0]
    tokens = torch.cat([entering[:, :1], torch.stack(rows), entering[:, 1:]], 1)
    for layer in plain.layers:
        tokens = layer(tokens)
    tokens = plain.ln1(tokens)
    model.eval()
    out = model(x)[0]
    torch.testing.assert_close(
        out, torch.cat([tokens[:, :1], tokens[:, 7:]], 1), rtol=1e-10, atol=1e-10)
    assert part.penalties() == {}
    model.train()(x)
    (term,) = part.penalties().items()
    assert term[0] == 'loss_match' and part.penalties() == {}
    assert float(term[1]) == pytest.approx(0.25 * sum(distances) / 3, rel=1e-10)
    pooled = randomise(tiny_vit(
        prompt=dict(type='vpt_dense.L2PPrompt', num_tokens=2, pool_size=5, chosen=3),
        out_type='avg_tokens', pool='prompts')).double().eval()
    pooled.load_state_dict(model.state_dict())
    torch.testing.assert_close(pooled(x)[0], tokens[:, 1:7].mean(1), rtol=1e-10, atol=1e-10)


def test_dualprompt_has_prompts_of_all_steps_and_of_each():
    model, plain, x, queries = queried(
        'DualPrompt', num_general=2, num_expert=3, general_layers=(0, 1), expert_layers=(2, 4),
        steps=3, step=1, match=0.5)
    part = model.prompt
    nearest = [max((0, 1), key=lambda t: cosine(query, part.steps[t].key)) for query in queries]
    assert len(set(nearest)) == 2  # else nothing is told apart
    for training, chosen in ((False, nearest), (True, [1] * 3)):
        further = {0: [part.general[0, side].expand(3, -1, -1, -1) for side in (0, 1)]}
        for row, layer in enumerate((2, 3)):
            further[layer] = [torch.stack([part.steps[t].tokens[row, side] for t in chosen])
                              for side in (0, 1)]
        torch.testing.assert_close(
            model.train(training)(x)[0], with_keys(plain, x, further), rtol=1e-10, atol=1e-10)
    wanted = sum(1 - cosine(query, part.steps[1].key) for query in queries) / 3
    assert float(part.penalties()['loss_match']) == pytest.approx(0.5 * wanted, rel=1e-10)


def test_coda_prompt_weighs_components():
    model, plain, x, queries = queried(
        'CODAPrompt', num_tokens=2, components=3, layers=(1, 3), steps=3, step=1, ortho=0.3)
    part, further, ortho = model.prompt, {}, 0.0
    for row, layer in enumerate((1, 2)):
        tokens, keys, attention = (
            torch.cat([part.steps[t].get_parameter(name)[row] for t in (0, 1)])
            for name in ('tokens', 'keys', 'attention'))
        for rows in (tokens, keys, attention):
            products = rows @ rows.T - torch.eye(6, dtype=torch.float64)
            ortho += float((products**2).mean())
        sums = torch.stack([
            sum(cosine(query * a, k) * p for a, k, p in zip(attention, keys, tokens, strict=True))
            for query in queries])
        further[layer] = sums.view(3, 2, 4, 2, 16).unbind(1)
    for training in (False, True):
        torch.testing.assert_close(
            model.train(training)(x)[0], with_keys(plain, x, further), rtol=1e-10, atol=1e-10)
    assert float(part.penalties()['loss_ortho']) == pytest.approx(0.3 * ortho, rel=1e-10)
    before = [parameter.clone() for parameter in part.steps[0].parameters()]
    part.begin_step()
    assert all(map(torch.equal, before, part.steps[0].parameters()))
    for name, own in part.steps[1].named_parameters():
        first = part.steps[0].get_parameter(name)
        for layer in (0, 1):
            one = torch.eye(3, dtype=torch.float64)
            torch.testing.assert_close(own[layer] @ own[layer].T, one)
            assert (own[layer] @ first[layer].T).abs().max() < 1e-8


@pytest.mark.parametrize(('prompt', 'message'), [
    (dict(type='L2PPrompt', chosen=11), 'chosen must be at most prompt.pool_size=10'),
    (dict(type='L2PPrompt', match=-1), 'match must not be negative'),
    (dict(type='DualPrompt', expert_layers=(1, 3)), 'must not share a layer'),
    (dict(type='DualPrompt', expert_layers=(2, 5)), '2 to 5 are no layers of 4'),
    (dict(type='DualPrompt', expert_layers=3), 'a pair'),
    (dict(type='CODAPrompt', layers=(0, 2), steps=2, step=2), 'step must be one of 0 to 1'),
    (dict(type='CODAPrompt', layers=(0, 2), steps=0), 'steps must be a whole number'),
    (dict(type='StepPrompts', prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=1), steps=2,
          step=2), 'step must be one of 0 to 1')])  # fmt: skip
def test_wrong_prompts(prompt, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(prompt=dict(prompt, type=f'vpt_dense.{prompt["type"]}'))


def test_a_query_is_of_a_frozen_backbone():
    prompt = dict(type='vpt_dense.L2PPrompt')
    with pytest.raises(ValueError, match='adapters: L2PPrompt asks the frozen backbone'):
        tiny_vit(prompt=prompt, adapters=[dict(type='vpt_dense.LoRA', rank=2)])
    with pytest.raises(ValueError, match=r'layers\.0\.ln1\.bias trains'):
        tiny_vit(prompt=prompt, trainable=[r'^prompt\.', r'^layers\.0\.ln1\.bias'])
    with pytest.raises(ValueError, match='L2PPrompt needs a pass without prompts'):
        MODELS.build(dict(
            type='vpt_dense.TimmVisionTransformer', model='vit_tiny_patch16_224', prompt=prompt))


def test_members_of_an_ensemble_have_queries_of_their_own():
    prompt = dict(type='vpt_dense.DualPrompt', num_general=2, num_expert=3,
                  general_layers=(0, 1), expert_layers=(1, 2), steps=2, step=1)
    model = randomise(tiny_vit(prompt=dict(
        type='vpt_dense.PromptEnsemble', seeds=[3, 4], prompt=prompt))).double()
    x = images(4, 3, 32, 40, dtype=torch.float64)
    for training, batch in ((False, x[:2]), (True, x)):
        outs = model.train(training)(batch)[0]
        for k, member in enumerate(model.prompt.members):
            single = tiny_vit(prompt=prompt).double()
            single.load_state_dict({n: t for n, t in model.state_dict().items()
                                    if not n.startswith('prompt.')}, strict=False)
            single.prompt.load_state_dict(member.state_dict())
            own = batch[2 * k : 2 * k + 2] if training else batch
            torch.testing.assert_close(
                outs[2 * k : 2 * k + 2], single.train(training)(own)[0], rtol=1e-10, atol=1e-10)
    assert set(model.prompt.penalties()) == {'m0.loss_match', 'm1.loss_match'}


STEPPED = {
    'dualprompt': ['model.backbone.prompt.general_layers=(0, 1)',
                   'model.backbone.prompt.expert_layers=(1, 2)'],
    'coda-prompt': ['model.backbone.prompt.layers=(0, 2)'],
    'l2p': [],
}


def test_the_part_of_a_step_trains_alone(data):
    from vpt_dense import building

    def trained(method, *options, **continual):
        cfg = config.load(RECIPE, [
            f'dataset.data_root={data}', *TINY, *STEPPED[method], *options,
            f'continual={dict(steps=2, step=1, **continual)!r}'], method)
        model = building.build_model(cfg)
        return model.backbone.prompt.step, {
            name.removeprefix('prompt.').rpartition('.')[0]
            for name, p in model.backbone.named_parameters() if p.requires_grad}

    wide = "model.backbone.trainable=['prompt']"
    for method in ('dualprompt', 'coda-prompt'):
        general = {''} if method == 'dualprompt' else set()
        assert trained(method) == trained(method, wide) == (1, general | {'steps.1'})
        # Frozen, images see what the first step has left, not a part that nobody trained.
        assert trained(method, strategy='frozen') == (0, set())


@pytest.mark.parametrize(('step', 'loaded', 'begins'), [
    (0, False, True), (0, True, False), (1, True, True)])
def test_a_part_that_was_loaded_has_begun(step, loaded, begins):
    model = queried('CODAPrompt', num_tokens=2, components=3, layers=(1, 3), steps=2, step=step)[0]
    before = model.prompt.steps[step].keys.clone()
    whole = torch.nn.Module()
    whole.backbone = model
    PromptLossHook().before_train(SimpleNamespace(model=whole, iter=0, _has_loaded=loaded))
    assert torch.equal(model.prompt.steps[step].keys, before) != begins


@pytest.mark.slow
@pytest.mark.parametrize('method', STEPPED)
def test_a_stream_with_prompts_of_steps(capfd, tmp_path, data, calls, method):
    out = tmp_path / 'out'
    outcome = run_tool(capfd, 'continual', RECIPE, '--method', method, '--steps', '2',
                       '--work-dir', out, '--amp', 'off', '--cfg-options',
                       f'dataset.data_root={data}', *TINY, *STEPPED[method])
    assert outcome.code == 0, outcome.err
    first, second = (torch.load(
        out / f'sequential_seed0/step_{step}/epoch_1.pth', weights_only=False)['state_dict']
        for step in (0, 1))
    moved = {name for name, tensor in second.items() if 'prompt' in name
             and not torch.equal(tensor, first[name])}
    own = {name for name in second if 'prompt.' in name and 'prompt.steps.0' not in name}
    # CODA's components of a step begin where those before leave room, general prompts go on.
    assert moved == own if method != 'l2p' else moved
    log = (out / 'sequential_seed0/step_1/output.log').read_text()
    assert ('loss_ortho' if method == 'coda-prompt' else 'loss_match') in log


def test_prompts_that_add_to_the_loss_need_their_hook(data):
    cfg = config.load(RECIPE, {'dataset.data_root': str(data)}, 'l2p')
    preflight.check_prompt_loss(cfg)
    prompt = cfg.model.backbone.prompt
    cfg.model.backbone.prompt = dict(type='vpt_dense.PromptEnsemble', prompt=prompt)
    cfg.custom_hooks = []
    with pytest.raises(UserError, match='prompt.prompt: L2PPrompt adds to the loss by a hook'):
        preflight.check_prompt_loss(cfg)


# --- forward transfer, domains ----------------------------------------------------------------


@pytest.mark.slow
def test_forward_transfer(capfd, tmp_path, data, calls):
    out = tmp_path / 'out'
    assert run(capfd, out, data).code == 0
    assert calls == ['train', 'test'] * 2
    calls.clear()
    assert run(capfd, out, data, '--strategies', 'sequential', 'alone').code == 0
    assert calls == ['test'] * 2 + ['train', 'test'] * 2  # what is trained is only tested
    table = json.loads((out / 'table.json').read_text())
    assert list(table['matrices']) == ['sequential']
    own = table['own']
    assert len(own['sequential'][0]) == len(own['alone'][0]) == 2
    assert own['sequential'][0][0] == own['alone'][0][0]  # the first step is the same
    header, _, sequential, alone = (out / 'table.md').read_text().splitlines()
    assert 'forward transfer' in header
    gain = own['sequential'][0][1] - own['alone'][0][1]
    assert sequential.split('|')[4].strip() == f'{gain:.1f}'
    assert alone.split('|')[2:5] == [' - '] * 3


@pytest.fixture(scope='module')
def other_data(tmp_path_factory, data):
    """The same classes, darker."""
    root = tmp_path_factory.mktemp('night')
    for path in data.rglob('*.png'):
        place = root / path.relative_to(data)
        place.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place), cv2.imread(str(path)) // 4)
    return root


@pytest.mark.slow
def test_a_stream_of_domains(capfd, tmp_path, data, other_data, calls):
    out = tmp_path / 'out'
    outcome = run_tool(
        capfd, 'continual', RECIPE, '--method', 'deep', '--domains', data, other_data,
        '--strategies', 'sequential', 'joint', 'alone', '--work-dir', out, '--amp', 'off',
        '--cfg-options', *TINY)
    assert outcome.code == 0, outcome.err
    assert calls == ['train', 'test', 'test'] * 4 + ['train', 'test'] * 2
    table = json.loads((out / 'table.json').read_text())
    for strategy in ('sequential', 'joint'):
        assert [list(map(len, matrix)) for matrix in table['matrices'][strategy]] == [[2, 2]]
        (matrix,) = table['matrices'][strategy]
        assert table['own'][strategy] == [[matrix[0][0], matrix[1][1]]]
    assert table['domains'] == [str(data), str(other_data)]
    assert str(other_data) in (out / 'table.md').read_text()


def test_the_data_of_domains(tmp_path, data, other_data):
    def load(**continual):
        return config.load(RECIPE, {'dataset.data_root': str(data), 'continual': dict(
            domains=[str(data), dict(data_root=str(other_data), with_label=True)],
            **continual)}, 'deep')  # fmt: skip

    cfg = load(step=1, test_on=0)
    assert [cfg[f'{name}_dataloader'].dataset.data_root for name in ('train', 'val', 'test')] == [
        str(other_data), str(data), str(data)]
    assert cfg.train_dataloader.dataset.with_label is True
    assert cfg.model.head.type == 'LinearClsHead'
    # The classes are those of the first, whatever dataset.data_root says.
    alone = config.load(RECIPE, {'continual': dict(
        domains=[str(data), 'no/such/place'], step=1)}, 'deep')
    assert alone.model.head.num_classes == 5
    assert alone.train_dataloader.dataset.metainfo.classes == CLASSES
    finished = tmp_path / 'finished.py'
    alone.dump(str(finished))
    assert config.load(str(finished)).train_dataloader == alone.train_dataloader
    prefix = load_masks('a', domains=['a', dict(data_root='b', data_prefix=dict(img_path='dark'))],
                        step=1).test_dataloader.dataset.data_prefix  # masks stay
    assert prefix == dict(img_path='dark', seg_map_path='annotations/validation')
    joint = load(step=1, strategy='joint').train_dataloader.dataset
    assert joint.type == 'ConcatDataset'
    assert [each.data_root for each in joint.datasets] == [str(data), str(other_data)]
    assert load(step=1, strategy='frozen').model.backbone.trainable == []
    assert load(step=0, strategy='frozen').model.backbone.trainable != []


# --- segmentation ------------------------------------------------------------------------------

MASKS = str(CONFIGS / 'vpt/linear_vit-s_dinov2_segfolder.py')
THINGS = ['ground', 'red', 'green', 'blue', 'white']
TINY_MASKS = [
    "model.backbone.arch={'embed_dims': 32, 'num_layers': 2, 'num_heads': 2, "
    "'feedforward_channels': 32}", 'model.backbone.init_cfg=None', 'img_size=28',
    'model.decode_head.in_channels=32', 'model.backbone.out_indices=[1]', 'batch_size=2', 'iters=2',
    'warmup=0', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2',
    'train_dataloader.num_workers=0', 'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0', f'dataset.classes={THINGS}', 'lr=0.1']  # fmt: skip


@pytest.fixture(scope='module')
def masks(tmp_path_factory):
    """Ground with one coloured square an image; the last class is in no image of training."""
    root, draw = tmp_path_factory.mktemp('masks'), np.random.default_rng(0)
    for split in ('training', 'validation'):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(8):
            label = 1 + i % 4
            picture = draw.integers(0, 60, (28, 28, 3), dtype=np.uint8)
            mask = np.zeros((28, 28), np.uint8)
            y, x = draw.integers(0, 14, 2)
            mask[y : y + 14, x : x + 14] = label
            picture[mask > 0] = [255 * (label in (each, 4)) for each in (3, 2, 1)]
            cv2.imwrite(str(root / f'images/{split}/{i}.png'), picture)
            cv2.imwrite(str(root / f'annotations/{split}/{i}.png'), mask)
    return root


def load_masks(masks, *options, method='deep', **continual):
    return config.load(MASKS, [
        *TINY_MASKS, f'dataset.data_root={masks}', *options, f'continual={continual!r}'], method)


def test_a_step_of_a_segmentation(masks):
    cfg = load_masks(masks, steps='2-1', step=1, background='ground')
    assert cfg.model.type == 'vpt_dense.StepEncoderDecoder'
    assert cfg.model.continual == dict(
        steps=[[1, 2], [3], [4]], step=1, background=0, among=[0, 1], frozen_head=False)
    in_scope('mmseg')
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 2  # images that hold class 3
    for name in ('val', 'test'):
        data = DATASETS.build(cfg[f'{name}_dataloader'].dataset)
        labels = [int(data[i]['data_samples'].gt_sem_seg.data.max()) for i in range(len(data))]
        assert labels == [1, 2, 3, 0] * 2  # what has not come is background
        (keep,) = [each for each in data.pipeline.transforms if 'KeepLabels' in repr(each)]
        found = keep.transform(dict(gt_seg_map=np.array([0, 3, 4, 255])))['gt_seg_map']
        assert found.tolist() == [0, 3, 0, 255]  # what is ignored stays so
    for again in (cfg, config.load(MASKS, [
            *TINY_MASKS, f'tta_pipeline={cfg.tta_pipeline!r}', f'dataset.data_root={masks}',
            "continual={steps: '2-1', step: 1, background: ground}"], 'deep')):
        # With --tta too.
        (steps,) = [each.transforms for each in again.tta_pipeline if 'transforms' in each]
        kinds = [each.type.rpartition('.')[2] for group in steps for each in group]
        assert kinds[-3:] == ['LoadMask', 'KeepLabels', 'PackSegInputs'], kinds
        assert kinds.count('KeepLabels') == 1
    cfg = load_masks(masks, steps=[['red', 'ground'], ['blue', 'green', 'white']], test_on='step')
    data = DATASETS.build(cfg.test_dataloader.dataset)
    assert int(data[1]['data_samples'].gt_sem_seg.data.max()) == 255  # without one: left out
    assert load_masks(masks, steps='2-1', step=1, strategy='joint', background='ground'
                      ).model.continual.steps == [[1, 2, 3], [4]]
    later = load_masks(masks, steps='2-1', step=1, strategy='eclipse_like', background='ground')
    assert later.model.backbone.prompt.type == 'vpt_dense.StepPrompts'
    assert later.model.continual.frozen_head
    ade = config.load(str(CONFIGS / 'vpt/setr_vit-l_ade20k.py'), {'continual': dict(
        steps='100-50', step=1)}, 'deep')  # of a data set that knows its classes
    assert [len(step) for step in ade.model.continual.steps] == [100, 50]
    assert ade.test_dataloader.dataset.pipeline[-2].other == 255
    with pytest.raises(UserError, match="'step' tells the classes of one step apart, and joint"):
        load_masks(masks, steps='2-1', step=1, strategy='joint', test_on='step')
    with pytest.raises(UserError, match='eclipse_like gives each step prompts of its own'):
        load_masks(masks, method='head', steps='2-1', strategy='eclipse_like', background='ground')
    with pytest.raises(UserError, match='nsp2 is for classification'):
        load_masks(masks, steps='2-1', strategy='nsp2', background='ground')
    with pytest.raises(UserError, match="'sky' is none of the classes"):
        load_masks(masks, steps='2-1', background='sky')


@pytest.mark.slow
def test_images_without_later_classes(masks, tmp_path):
    root = shutil.copytree(masks, tmp_path / 'data')
    file = root / 'annotations/training/0.png'  # of class 1
    mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    mask[0] = 3
    cv2.imwrite(str(file), mask)
    in_scope('mmseg')

    def images(**continual):
        cfg = load_masks(root, background='ground', **{'steps': '2-1', **continual})
        data = DATASETS.build(cfg.train_dataloader.dataset)
        return [Path(data.get_data_info(i)['img_path']).stem for i in range(len(data))]

    assert images() == ['0', '1', '4', '5']
    assert images(disjoint=True) == ['1', '4', '5']
    assert images(disjoint=True, step=1) == ['0', '2', '6']  # earlier classes may be there
    assert images(disjoint=True, step=1, strategy='joint') == ['0', '1', '2', '4', '5', '6']
    for i in (2, 6):
        mask = np.full((28, 28), 3, np.uint8)
        mask[0] = 4
        cv2.imwrite(str(root / f'annotations/training/{i}.png'), mask)
    cv2.imwrite(str(file), mask)
    with pytest.raises(UserError, match='no image of blue without classes of later steps'):
        images(disjoint=True, step=1)
    with pytest.raises(UserError, match='continual.disjoint must be True or False'):
        images(disjoint='no')
    # A stream says so before its first step trains.
    comparison = runs.Comparison(MASKS, tmp_path / 'out', options=[
        *TINY_MASKS, f'dataset.data_root={root}', "continual.steps='2-1'",
        'continual.background=ground', 'continual.disjoint=True'])
    with pytest.raises(UserError, match='step 2 of 3: no image of blue without classes of later'):
        streams.Stream(comparison, 'deep').check(['sequential'], [0])
    streams.Stream(comparison, 'deep').check(['joint'], [0])


def build_masks(masks, *options, **continual):
    from vpt_dense import building

    return randomise(building.build_model(load_masks(
        masks, *options, steps='2-1', background='ground', **continual)))


def test_scores_of_a_segmentation(masks):
    model = build_masks(masks, step=1).double().eval()
    head = model.decode_head
    features = images(2, 32, 3, 4, dtype=torch.float64)
    scores = head.conv_seg(features)
    assert scores.shape == (2, 5, 3, 4)
    for step, labels in enumerate(model.decode_head.conv_seg.steps[:2]):
        own = head.conv_seg.layers[step](features)
        for channel, label in enumerate(labels):
            torch.testing.assert_close(scores[:, label], own[:, 1 + channel] - own[:, 0])
    assert not scores[:, 0].any() and (scores[:, 4] == -1e4).all()
    trained = {name for name, p in model.named_parameters() if p.requires_grad
               and name.startswith('decode_head.conv_seg')}
    assert {name.split('.')[3] for name in trained} == {'1'}
    # In training: none of mine, and class 3.
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    labels = torch.tensor([0, 1, 2, 3, 4, 255, 3]).repeat(4, 1)[None]
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    x = images(1, 3, 28, 28, dtype=torch.float64)
    seen = []
    head.loss = lambda feats, samples, cfg: seen.append(samples[0].gt_sem_seg.data) or {}
    model.train().loss(x, [sample])
    assert seen[0][0, 0].tolist() == [0, 0, 0, 1, 0, 255, 1]
    assert torch.equal(sample.gt_sem_seg.data, labels)
    assert head.conv_seg(features).shape[1] == 2


def test_prompts_of_each_step_look_at_an_image(masks):
    model = build_masks(masks, step=1, strategy='eclipse_like').double().eval()
    x, metas = images(2, 3, 28, 28, dtype=torch.float64), [dict(img_shape=(28, 28))] * 2
    got = model.encode_decode(x, metas)
    last, prompts = model.decode_head.conv_seg, model.backbone.prompt
    assert (prompts.active, last.active) == (1, None)
    for step in (0, 1):
        prompts.active = step
        whole = type(model).__mro__[1].encode_decode
        steps, last.among = last.among, [step]
        plain, model.backbone.prompt = prompts, prompts.steps[step]
        own = whole(model, x, metas)
        model.backbone.prompt, last.among = plain, steps
        for label in last.steps[step]:
            torch.testing.assert_close(got[:, label], own[:, label])
    assert not got[:, 0].any() and (got[:, 4] + 1e4).abs().max() < 1e-6
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith(('backbone.prompt.steps.1.', 'decode_head.conv_seg.layers.1.'))
               for name in trained)
    model.train()
    assert not model.decode_head.norm.training and model.decode_head.conv_seg.training
    neck = ("model.neck={type: 'FPN', in_channels: [32], out_channels: 32, num_outs: 1, "
            "norm_cfg: {type: 'BN'}}")
    for strategy in ('frozen', 'eclipse_like'):
        model = build_masks(masks, neck, "model.backbone.trainable=['prompt']", step=1,
                            strategy=strategy).train()
        assert not any(p.requires_grad for p in model.neck.parameters())
        assert not model.neck.lateral_convs[0].bn.training
        assert not any(p.requires_grad for p in model.backbone.parameters()) or {
            name for name, p in model.backbone.named_parameters() if p.requires_grad} == {
            'prompt.steps.1.tokens'}


@pytest.mark.slow
def test_a_stream_of_segmentation(capfd, tmp_path, masks, calls):
    out = tmp_path / 'out'
    arguments = (
        'continual', MASKS, '--method', 'deep', '--steps', '2-1', '--background', 'ground',
        '--strategies', 'eclipse_like', 'sequential', 'frozen', 'joint', '--work-dir', out,
        '--amp', 'off', '--cfg-options', f'dataset.data_root={masks}', *TINY_MASKS)
    outcome = run_tool(capfd, *arguments)
    assert outcome.code == 0, outcome.err
    assert calls == ['train', 'test'] * 12
    table = json.loads((out / 'table.json').read_text())
    assert (table['measure'], table['steps']) == ('mIoU', [[1, 2], [3], [4]])
    for matrices in table['matrices'].values():
        assert [list(map(len, matrix)) for matrix in matrices] == [[1, 2, 3]]

    def state(strategy, step):
        return torch.load(out / f'{strategy}_seed0/step_{step}/iter_2.pth',
                          weights_only=False)['state_dict']

    def moved(strategy):
        first, second = state(strategy, 0), state(strategy, 1)
        return {name for name in second if not torch.equal(first[name], second[name])}

    assert {name.rsplit('.', 1)[0] for name in moved('eclipse_like')} == {
        'backbone.prompt.steps.1', 'decode_head.conv_seg.layers.1'}
    assert {name.rsplit('.', 1)[0] for name in moved('frozen')} == {'decode_head.conv_seg.layers.1'}
    assert {'backbone.prompt.tokens', 'decode_head.norm.weight'} <= moved('sequential')
    calls.clear()
    again = run_tool(capfd, *arguments[:4], '--steps', out / 'stream.json', *arguments[6:])
    assert again.code == 0 and not calls, again.err  # its own file says the same steps
