"""`vpt-dense serve --backend onnx` and `onnx-int8`: one graph gives the answers of the models."""

import base64
import gc
import importlib
import importlib.util
import io
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from served import running, write_base, write_task
from test_multitask import configured  # noqa: F401 - a fixture
from test_serving import Server, encoded
from utils import ROOT

import vpt_dense
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError
from vpt_dense.multitask import exporting
from vpt_dense.multitask.model import MultiTask
from vpt_dense.multitask.weights import Frozen
from vpt_dense.serving import settings
from vpt_dense.serving.settings import Settings

needs_extras = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('fastapi', 'onnxruntime', 'onnxscript'))),
    reason="pip install 'vpt-dense[serve,export]'")


def folder_of(place: Path) -> Path:
    """Segmentors on one backbone: two of one structure, and one of another."""
    base, tasks = write_base(place), place / 'tasks'
    tasks.mkdir()
    for seed, (name, classes) in enumerate(dict(roads='xyz', cells='uvw', many='abcdefg').items()):
        write_task(tasks / f'{name}.safetensors', base, list(classes), seed=seed + 1)
    return tasks


@pytest.fixture(scope='module')
def tasks(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp('graph'))


@pytest.fixture(scope='module')
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp('samples')
    for i in range(3):
        (folder / f'{i}.png').write_bytes(encoded((64, 64), i))
    return folder


# --- without the extras ------------------------------------------------------------------------


def test_what_is_refused_at_the_start(tmp_path):
    def told(**options):
        with pytest.raises(UserError) as error:
            settings.read(dict(tasks='t', **options))
        return str(error.value)

    assert 'one of eager, onnx, onnx-int8, found' in told(backend='tensorrt')
    for name, value in dict(graph='g.onnx', size=(64, 64), samples='s').items():
        assert told(**{name: value}) == f'--{name} is for --backend onnx and onnx-int8'
    onnx = dict(backend='onnx')
    assert '--cache is for --backend eager' in told(cache='1GB', **onnx)
    assert 'computes on CPUs, found --device cuda' in told(device='cuda', **onnx)
    assert 'needs --samples FOLDER' in told(backend='onnx-int8')
    assert 'give it the ending .onnx' in told(graph='g.pt2', **onnx)
    for size in ((64,), (64, 0), (64, 64.5)):
        assert '--size must be a height and a width' in told(size=size, **onnx)
    assert '--size must be two whole numbers' in told(size=64, **onnx)
    found = settings.read(dict(tasks='t', graph='g.onnx', size=[8, 9], samples='s', **onnx))
    assert found == Settings(Path('t'), backend='onnx', graph=Path('g.onnx'), size=(8, 9),
                             samples=Path('s'))  # fmt: skip


def test_a_task_predicts_by_scores_from_elsewhere(tasks, tmp_path):
    """Bit for bit what the task predicts, without the shared weights; what it is given counts."""
    path = str(tasks / 'roads.safetensors')
    together, alone = MultiTask(path, dict(roads=path)), vpt_dense.load(path)
    (tmp_path / 'x.png').write_bytes(encoded((60, 70)))
    image, task, seen = str(tmp_path / 'x.png'), together._find('roads'), []

    def scores(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels.shape)
        with torch.no_grad():
            return alone(pixels)

    by_scores = task.predicting_by(scores)
    assert torch.equal(by_scores([image], False)[0], alone.predict(image))
    assert seen == [(1, 3, 80, 64)]
    model = by_scores.args[0]
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
              for t in (*model.parameters(), *model.buffers())}  # fmt: skip
    assert sum(memory.values()) < 0.2 * together.nbytes
    upside_down = task.predicting_by(lambda pixels: -scores(pixels))
    assert not torch.equal(upside_down([image], False)[0], alone.predict(image))
    assert torch.equal(together.predict([image], ['roads'])[0], alone.predict(image))  # stays


def test_a_file_is_known_by_its_numbers_and_by_what_it_computes(tasks):
    names = ('roads', 'cells')
    paths = {name: str(tasks / f'{name}.safetensors') for name in names}
    together = MultiTask(paths['roads'], paths)
    found = {name: together._find(name) for name in names}

    def prepare(order: tuple[str, ...] = names) -> exporting.Wanted:
        return exporting.prepare(
            together.frozen, {name: found[name] for name in order}, 'x', (64, 64), 3)

    wanted = prepare()
    assert wanted.card['sha256'] == prepare().card['sha256'] != prepare(names[::-1]).card['sha256']
    found['cells'].tensors[next(iter(found['cells'].tensors))].view(-1)[0] += 1e-3
    assert wanted.card['sha256'] != prepare().card['sha256']

    def run(images: np.ndarray, task: np.ndarray) -> list[np.ndarray]:
        return [wanted.module(torch.from_numpy(images), torch.from_numpy(task)).numpy()]

    with torch.no_grad():
        exporting.check(wanted, run)
        with pytest.raises(UserError, match='scores of task cells differ by'):
            exporting.check(wanted, lambda images, task: [run(images, task)[0] + 0.01 * int(task)])


def test_the_benchmark_counts_miou(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'tools/benchmark'))
    benchmark = importlib.import_module('serve_backends')
    rng, masks, found = np.random.default_rng(0), [], []
    for i in range(3):
        truth = rng.integers(0, 5, (7, 9)).astype(np.uint8)  # 4: no class
        Image.fromarray(truth).save(tmp_path / f'{i}.png')
        masks.append(tmp_path / f'{i}.png')
        found.append(np.where(rng.random((7, 9)) < 0.6, truth % 4, rng.integers(0, 4, (7, 9))))
    truths = np.stack([np.asarray(Image.open(path)) for path in masks])
    labels, known = np.stack(found), truths < 4
    hits, parts = [[op(labels == k, truths == k)[known].sum() for k in range(4)]
                   for op in (np.logical_and, np.logical_or)]  # fmt: skip
    wanted = np.divide(hits, parts)
    assert benchmark.mean_iou(found, masks, 4) == pytest.approx(100 * np.mean(wanted), abs=1e-9)
    assert benchmark.mean_iou(found, masks, 4) < 99


# --- with them ---------------------------------------------------------------------------------


class Lines:
    """What the server logs."""

    def __init__(self, capsys: pytest.CaptureFixture) -> None:
        self.rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()
                     if line.startswith('{')]  # fmt: skip

    def of(self, event: str) -> list[dict]:
        return [row for row in self.rows if row['event'] == event]


def fixed(folder: Path, spool: Path, backend: str = 'onnx', **options):
    from vpt_dense.serving.fixed import FixedFolder

    spool.mkdir(exist_ok=True)
    return FixedFolder(Settings(folder, backend=backend, **options), spool)


@pytest.fixture(scope='module')
def graph(tasks, samples, tmp_path_factory):
    """The file of a graph, which takes half a minute to make."""
    place = tmp_path_factory.mktemp('made')
    before = held()
    folder = fixed(tasks, place / 'spool', graph=place / 'graph.onnx', samples=samples)
    assert held() == before and len(folder.model.tasks) == 3  # the models were let go
    return place / 'graph.onnx'


def held() -> int:
    """How many frozen backbones are in memory."""
    gc.collect()
    return sum(isinstance(each, Frozen) for each in gc.get_objects())


class At(Server):
    """A server that runs already."""

    def __init__(self, url: str) -> None:
        self.port = int(url.rpartition(':')[2])


@needs_extras
@pytest.mark.slow
def test_a_server_of_a_graph(tasks, graph, tmp_path, capsys):
    shutil.copytree(tasks, tmp_path / 'tasks')
    tasks = tmp_path / 'tasks'
    alone = {path.stem: vpt_dense.load(path) for path in tasks.iterdir()}
    with running(tmp_path, backend='onnx', graph=graph, wait=0.05, poll=0.2) as url:
        server = At(url)
        told = server.ask('GET', '/v1/tasks')[1]
        assert told['backend'] == 'onnx' and [row['name'] for row in told['tasks']] == [
            'cells', 'many', 'roads']
        pictures = [encoded((64, 64), seed) for seed in range(8)]
        (tmp_path / 'x').mkdir()

        def ask(i: int) -> None:
            names = ('roads', 'cells many', 'roads cells many')[i % 3]
            status, told, _ = server.predict(names, pictures[i])
            assert status == 200, told
            (tmp_path / f'x/{i}.png').write_bytes(pictures[i])
            for name, result in zip(names.split(), told['results'], strict=True):
                found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['labels_png']))))
                model = alone[name]
                with torch.no_grad():
                    best = model(model.normalise(str(tmp_path / f'x/{i}.png')))[0].topk(2, dim=0)
                sure = (best.values[0] - best.values[1] > 1e-3).numpy()
                assert sure.mean() > 0.95
                assert np.array_equal(found[sure], best.indices[0].numpy()[sure])

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(ask, range(8)))
        text = server.ask('GET', '/metrics')[1].decode()
        assert 'vpt_dense_predictions_total{task="many"} 5.0' in text
        # What a fixed graph cannot do.
        delta = (tasks / 'roads.safetensors').read_bytes()
        for method, body in (('PUT', delta), ('DELETE', None)):
            status, told, _ = server.ask(method, '/v1/tasks/roads', body)
            assert status == 409 and 'are fixed (--backend onnx): change' in told['error']
        status, told, _ = server.predict('roads', encoded((80, 64)))
        assert status == 400 and '64x64 pixels (height x width), this one is 64x80' in told['error']
        text = server.ask('GET', '/openapi.json')[1]
        assert 'Its tasks are fixed' in text['info']['description']
        assert '409' in text['paths']['/v1/tasks/{name}']['put']['responses']
        shutil.copyfile(tasks / 'many.safetensors', tasks / 'new.safetensors')
        (tasks / 'cells.safetensors').unlink()
        until = time.monotonic() + 60
        while 'vpt_dense_broken_tasks 2.0' not in server.ask('GET', '/metrics')[1].decode():
            assert time.monotonic() < until
            time.sleep(0.1)
        refused = {row['task']: row for row in Lines(capsys).of('task_refused')}
        for name, kept in (('new', 'there is no such task'), ('cells', 'stays what it was')):
            assert 'are fixed (--backend onnx)' in refused[name]['error']
            assert kept in refused[name]['result']
        assert server.predict('new', pictures[0])[0] == 404
        assert server.predict('cells', pictures[0])[0] == 200


@needs_extras
@pytest.mark.slow
def test_a_graph_that_is_given(tasks, graph, samples, tmp_path, capsys, monkeypatch):
    """Read, made of it in int8, and refused where it is of something else."""
    own = tmp_path / 'tasks'
    shutil.copytree(tasks, own)
    whole, small = tmp_path / 'f.onnx', tmp_path / 's.onnx'
    shutil.copyfile(graph, whole)
    capsys.readouterr()
    folder = fixed(own, tmp_path / 'b', graph=whole, samples=samples)
    lines = Lines(capsys)
    assert len(lines.of('graph_read')) == 1
    assert [row['same_class'] > 0.999 for row in lines.of('graph_compared')] == [True] * 3
    path = str(samples / '0.png')
    found = folder.model.predict([path, path], [['roads'], ['many', 'roads']])
    assert [list(each) for each in found] == [['roads'], ['roads', 'many']]
    assert torch.equal(found[0]['roads'][1], found[1]['roads'][1])

    monkeypatch.setattr(exporting, 'write', lambda _, out: shutil.copyfile(graph, out))  # sooner
    fixed(own, tmp_path / 'c', 'onnx-int8', graph=small, samples=samples)
    assert sorted(path.name for path in tmp_path.glob('*onnx*')) == ['f.onnx', 's.onnx']
    rows = Lines(capsys).of('graph_compared')
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    assert all(0.9 < row['same_class'] <= 1 for row in rows) and min(
        row['least'] for row in rows) < 1  # it is another computation
    for backend, graph, kind in (('onnx', small, 'int8'), ('onnx-int8', whole, 'float32')):
        with pytest.raises(UserError, match=f'is of {kind}, which is not --backend {backend}'):
            fixed(own, tmp_path / 'd', backend, graph=graph, samples=samples)
    with pytest.raises(UserError, match=r'takes images of 64x64, found --size 64 80'):
        fixed(own, tmp_path / 'd', graph=whole, size=(64, 80))
    os.replace(own / 'cells.safetensors', tmp_path / 'away.safetensors')
    with pytest.raises(UserError, match='is of the tasks cells, many, roads, in .* remove it'):
        fixed(own, tmp_path / 'd', graph=whole)
    shutil.copyfile(own / 'roads.safetensors', own / 'cells.safetensors')
    with pytest.raises(UserError, match='is of other weights than the tasks'):
        fixed(own, tmp_path / 'd', graph=whole)
    whole.write_bytes(b'no graph')
    with pytest.raises(UserError, match=r'--graph .*f.onnx cannot be read'):
        fixed(own, tmp_path / 'd', graph=whole)


@needs_extras
@pytest.mark.slow
def test_graphs_of_configs(configured, tmp_path):  # noqa: F811
    """Classifiers are answered too; segmentors beside them, or no task at all, are refused."""
    own = tmp_path / 'tasks'
    own.mkdir()
    for name in ('flowers', 'roads'):
        deltas.write(deltas.extract(str(configured / f'{name}.pth')),
                     str(own / f'{name}.safetensors'))
    with pytest.raises(UserError, match=r'^--backend onnx: task roads looks at windows of 32x32 '
                                        'pixels, not 48x48$'):
        fixed(own, tmp_path / 'a', size=(48, 48))
    with pytest.raises(UserError, match=r'^--backend onnx: the scores of task flowers are one for '
                                        r'each class, those of roads maps'):
        fixed(own, tmp_path / 'a')
    assert list((tmp_path / 'a').glob('*.onnx')) == []
    alone = {name: vpt_dense.load(own / f'{name}.safetensors') for name in ('flowers', 'roads')}
    os.replace(own / 'roads.safetensors', tmp_path / 'roads.safetensors')
    folder = fixed(own, tmp_path / 'b')
    picture = str(configured / 'pictures/0.png')
    ((about, found),) = folder.model.predict([picture], [['flowers']])[0].values()
    expected = alone['flowers'].predict(picture)
    assert about.kind == 'classification' and found.name == expected.name
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-5)
