"""Streams of classes: steps, their head and data, scores, the null space."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine import DATASETS, MODELS
from tool_helpers import in_process, run_tool
from utils import CONFIGS, ROOT, images, in_scope, randomise, tiny_vit

from vpt_dense import config, registry  # noqa: F401  registers
from vpt_dense.continual import null_space, scores, stream
from vpt_dense.errors import UserError

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
    (dict(steps=[[0, 1], [2, 3, 'x']]), "but 'x' is none of them"), (dict(steps='3-3'), 'left over'),
    (dict(steps=2, domains=['a', 'b']), 'either steps or domains'),
    (dict(domains=['a']), 'two data roots'), (dict(domains=['a', 'b'], seed=1), 'seed does nothing'),
    (dict(domains=['a', 'b'], test_on=2), 'test_on must be one of 0 to 1'),
    (dict(domains=['a', 'b'], temperature=2), 'temperature does nothing'),
    (dict(steps=2, test_on=1), 'continual.test_on'), (dict(steps=2, background='a'), 'background'),
    (dict(steps=2, strategy='eclipse_like'), 'eclipse_like is for steps of a segmentation'),
    (dict(step=1), 'a dict of'), (dict(steps=2, step=2), 'one of 0 to 1'), (5, 'a dict of'),
    (dict(steps=2, strategy='replay'), 'continual.strategy'), (dict(steps=2, x=1), 'a dict of'),
    (dict(steps=2, eta=0.9), 'eta does nothing'), (dict(steps=2, seed='a'), 'seed'),
    (dict(steps=2, step=1, strategy='nsp2'), 'needs the file'),
    (dict(steps=4), 'step 1 has one class alone'),
    (dict(steps=[[0], [1, 2, 3, 4]], strategy='joint'), 'step 0 has one class alone'),
    (dict(steps=2, temperature=0), 'temperature'),
])
def test_what_cannot_be_is_refused(data, given, message):
    with pytest.raises(UserError, match=message):
        config.load(RECIPE, {'dataset.data_root': str(data), 'continual': given}, 'deep')


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


class Sample:
    def __init__(self, label):
        self.gt_label = torch.tensor([label])


@pytest.mark.parametrize('joint', [False, True])
def test_the_head_of_a_step(joint):
    in_scope('mmpretrain')
    steps = [[4, 0], [1], [2, 3]]
    head = randomise(MODELS.build(dict(
        type='vpt_dense.StepHead', num_classes=5, in_channels=8, steps=steps, step=1, joint=joint,
        temperature=4.0, loss=dict(type='CrossEntropyLoss'))))
    trained = {name.split('.')[1] for name, p in head.named_parameters() if p.requires_grad}
    assert trained == ({'0', '1'} if joint else {'1'})
    features = images(3, 8)
    out = head((features,))
    for step, labels in enumerate(steps):
        wanted = head.steps[step](features)
        for column, label in enumerate(labels):
            expected = wanted[:, column] if step < 2 else torch.full((3,), -torch.inf)
            torch.testing.assert_close(out[:, label], expected)
    labels = [4, 1, 0] if joint else [1, 1, 1]
    loss = head.loss((features,), [Sample(label) for label in labels])['loss']
    columns = [4, 0, 1] if joint else [1]
    wanted = torch.nn.functional.cross_entropy(
        torch.stack([out[:, label] for label in columns], 1) / 4,
        torch.tensor([columns.index(label) for label in labels]))
    torch.testing.assert_close(loss, wanted)


def test_scores_of_a_stream():
    matrix = [[90.0], [80.0, 70.0], [85.0, 40.0, 60.0]]
    assert scores.average_accuracy(matrix) == pytest.approx(185 / 3)
    assert scores.forgetting(matrix) == pytest.approx(((90 - 85) + (70 - 40)) / 2)
    assert scores.forgetting([[50.0]]) is None


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


# --- runs ------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch, capfd):
    """Tools run in this process; their names."""
    found = []
    monkeypatch.setattr('vpt_dense.comparison.runs.call', in_process(capfd, found))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    return found


def run(capfd, out, data, *arguments):
    return run_tool(capfd, 'continual', RECIPE, '--method', 'deep', '--steps', '2', '--work-dir',
                    str(out), '--amp', 'off', *arguments, '--cfg-options',
                    f'dataset.data_root={data}', *TINY)


def test_a_stream(capfd, tmp_path, data, calls):
    out = tmp_path / 'a stream'
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


def test_strict_projection_moves_prompts_in_the_null_space_alone(capfd, tmp_path, data, calls):
    out = tmp_path / 'out'
    assert run(capfd, out, data, '--strategies', 'nsp2', '--eta', '1').code == 0
    left = null_space._read(str(out / 'nsp2_seed0/step_0/null_space.safetensors'))
    tokens = [torch.load(out / f'nsp2_seed0/step_{step}/epoch_1.pth', weights_only=False)[
        'state_dict']['backbone.prompt.tokens'].double() for step in (0, 1)]
    torch.testing.assert_close(left['prompt'].double(), tokens[0])
    for layer, change in enumerate(tokens[1] - tokens[0]):
        for key, own in (('width', change), ('number', change.T)):
            vectors, values, _ = torch.linalg.svd(left[key][layer])
            rank = int((values[:-2] - 2 * values[1:-1] + values[2:]).argmax()) + 2
            assert change.norm() > 0
            assert (own @ vectors[:, :rank]).norm() < 1e-3 * change.norm()


@pytest.mark.parametrize(('arguments', 'message'), [
    (['--eta', '0.5'], '--eta does nothing'), (['--steps', '9'], '9, but there are 5 classes'),
    (['--strategies', 'nsp2', '--method', 'lora'], 'needs VPT-deep'),
    (['--order', '-1'], '--order must not')])
def test_wrong_streams(capfd, tmp_path, data, calls, arguments, message):
    outcome = run(capfd, tmp_path / 'out', data, *arguments)
    assert outcome.code == 2 and message in outcome.err, outcome.err


@pytest.mark.slow
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
