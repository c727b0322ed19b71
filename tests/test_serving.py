"""vpt-dense serve: a process on loopback gives the answers of ``vpt_dense.load``, whatever comes.

What needs no extra runs by default; ``make test-serve`` runs all of it.
"""

import asyncio
import base64
import hashlib
import http.client
import importlib.util
import io
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from plain_models import FAMILIES
from safetensors.torch import save
from test_multitask import OPTIONS, configured, plain, randomise_tuned  # noqa: F401 - a fixture
from utils import ROOT

import vpt_dense
from vpt_dense.checkpoints import deltas
from vpt_dense.commands import serve
from vpt_dense.errors import UserError
from vpt_dense.multitask.loading import About
from vpt_dense.predicting.results import Classification, DepthMap, NormalMap, Segmentation
from vpt_dense.serving import answers, images, keys
from vpt_dense.serving.settings import Refused, Settings, check_name, parse_pixels

needs_extra = pytest.mark.skipif(
    importlib.util.find_spec('fastapi') is None, reason="pip install 'vpt-dense[serve]'")
READER, ADMIN = 'the-readers-key', 'the-admins-key'


# --- without the extra -----------------------------------------------------------------------


def test_what_is_refused_at_the_start(tmp_path, monkeypatch, capsys):
    for arguments, told in (
        ([], '--tasks FOLDER is needed'),
        (['--tasks', 'x', '--max-batch', '65'], 'is more than --queue 64'),
        (['--tasks', 'x', '--max-bytes', '20'], r"--max-bytes must be a size like '20MB'"),
        (['--tasks', 'x', '--cache', 'much'], r"--cache must be a size like '20MB'"),
        (['--tasks', 'x', '--max-pixels', '5T'], '--max-pixels must be a number such as 50M'),
        (['--tasks', 'x', '--timeout', '0'], '--timeout must be above 0'),
        (['--tasks', 'x', '--timeout', 'nan'], '--timeout must be above 0'),
        (['--tasks', 'x', '--wait-ms', '-1'], '--wait-ms must be 0 or more'),
        (['--tasks', 'x', '--port', '70000'], '--port must be from 0 to 65535'),
    ):
        monkeypatch.setattr(serve, '_NEEDED', ())
        with pytest.raises(UserError, match=told):
            serve.main(arguments)
    monkeypatch.setattr(serve, '_NEEDED', ('no_such_package',))
    with pytest.raises(UserError, match=r"pip install 'vpt-dense\[serve\]'"):
        serve.main(['--tasks', str(tmp_path)])
    serve.main(['--new-key', 'admin'])
    out = capsys.readouterr().out
    key, line = (row.split(': ', 1)[1] for row in out.splitlines())
    assert json.loads(line) == {hashlib.sha256(key.encode()).hexdigest(): 'admin'}
    assert [parse_pixels(text) for text in ('50M', '1.5K', '7')] == [50_000_000, 1500, 7]


def test_keys(tmp_path):
    file = tmp_path / 'keys.json'
    digests = {keys.digest(key.encode()): role
               for key, role in ((READER, 'reader'), (ADMIN, 'admin'))}
    file.write_text(json.dumps(digests))
    known = keys.Keys(file)

    def status(header: str | None, role: str) -> int:
        try:
            known.check(header, role)
        except Refused as error:
            assert (error.status == 401) == ('WWW-Authenticate' in error.headers)
            return error.status
        return 200

    assert [status(f'Bearer {key}', role) for key in (READER, ADMIN)
            for role in ('reader', 'admin')] == [200, 403, 200, 200]
    for header in (None, '', 'Bearer', 'Bearer ', f'Basic {ADMIN}', ADMIN, f'Bearer {ADMIN}x',
                   f'Bearer {keys.digest(ADMIN.encode())}', 'Bearer \udcff'):
        assert status(header, 'reader') == 401, header
    assert not known.read_again()
    file.write_text('{')  # an editor's half of it
    with pytest.raises(UserError, match='is no JSON'):
        known.read_again()
    assert not known.read_again() and status(f'Bearer {ADMIN}', 'admin') == 200
    file.write_text(json.dumps({keys.digest(b'other'): 'reader'}))
    assert known.read_again() and status(f'Bearer {ADMIN}', 'admin') == 401
    for content, told in (
        ('[]', 'must hold'), ('{}', 'must hold'), (json.dumps({'my-key': 'admin'}), 'no SHA-256'),
        (json.dumps({'0' * 64: 'root'}), "found 'root'")):
        file.write_text(content)
        with pytest.raises(UserError, match=told):
            keys.Keys(file)
    with pytest.raises(UserError, match='no such file'):
        keys.Keys(tmp_path / 'absent.json')
    nobody = keys.Keys(None)
    nobody.check(None, 'reader')
    with pytest.raises(Refused, match='start the server with --keys'):
        nobody.check(f'Bearer {ADMIN}', 'admin')


def test_names():
    for name in ('roads', 'a', 'A-1_b.c', '0' * 64):
        check_name(name)
    for name in ('', '.', '..', '.a', '-a', '_a', 'a/b', 'a\\b', 'a b', 'ä', 'a\n', 'a\0',
                 '0' * 65):  # fmt: skip
        with pytest.raises(Refused, match='cannot be called'):
            check_name(name)


def test_answers():
    """Their forms, on results of every kind."""
    labels = np.array([[0, 1, 1], [255, 5, 0]], np.uint8)  # ids 1, 5, 0 are classes 0, 1, 2
    about = About('segmentation', ('a', 'b', 'c'), (1, 5, 0))
    told = answers.data('x.png', 't', about, Segmentation(labels, about.classes, about.ids))
    image = Image.open(io.BytesIO(base64.b64decode(told.pop('labels_png'))))
    assert image.mode == 'L' and np.asarray(image).tolist() == [[2, 0, 0], [255, 1, 2]]
    assert told == dict(image='x.png', task='t', kind='segmentation', width=3, height=2,
                        shares=dict(a=2 / 6, b=1 / 6, c=2 / 6))
    many = About('segmentation', tuple(map(str, range(300))), tuple(range(300)))
    wide = torch.tensor([[0, 299], [256, 7]])
    image = Image.open(io.BytesIO(answers.png(many, wide)))
    assert image.mode == 'I;16' and np.asarray(image).tolist() == wide.tolist()
    assert np.load(io.BytesIO(answers.npy(many, wide))).tolist() == wide.tolist()

    about = About('classification', ('a', 'b', 'c'), (0, 1, 2))
    scores = np.array([0.25, 0.5, 0.25], np.float32)
    for result in (torch.tensor(scores), Classification(1, about.classes, scores)):
        assert answers.data('x', 't', about, result)['scores'] == [
            {'class': 'b', 'score': 0.5}, {'class': 'a', 'score': 0.25},
            {'class': 'c', 'score': 0.25}]
    with pytest.raises(Refused, match='format=png is for segmentation'):
        answers.png(about, torch.tensor(scores))
    with pytest.raises(ValueError, match='not finite'):
        answers.data('x', 't', about, torch.tensor([float('nan'), 1, 0]))

    depth = np.arange(6, dtype=np.float32).reshape(2, 3)
    normals = np.stack([depth, depth, depth], axis=2)
    for kind, result, values in (('depth', DepthMap(depth, 1000.0, 10.0), depth),
                                 ('normals', NormalMap(normals), normals)):
        told = answers.data('x', 't', About(kind, (), ()), result)
        found = np.load(io.BytesIO(base64.b64decode(told['values_npy'])), allow_pickle=False)
        assert found.dtype == np.float32 and np.array_equal(found, values)
        assert (told['width'], told['height']) == (3, 2)


def encoded(size: tuple[int, int] = (60, 70), seed: int = 0, kind: str = 'PNG') -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes whose head promises many pixels."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + name + data + struct.pack(
            '>I', zlib.crc32(name + data))

    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head)
            + chunk(b'IDAT', zlib.compress(b'\0' * 10**6)) + chunk(b'IEND', b''))


def test_images_are_looked_at(tmp_path):
    for kind, suffix in images.FORMATS.items():
        content = encoded(kind=kind)
        assert images.check_header(io.BytesIO(content), 'x', 10_000) == (suffix, 4200)
        (tmp_path / 'x').write_bytes(content)
        images.check_whole(tmp_path / 'x', 'x')
        if kind != 'BMP':
            (tmp_path / 'x').write_bytes(content[:-len(content) // 3])
            with pytest.raises(Refused, match='x: a damaged image|x: not an image'):
                images.check_whole(tmp_path / 'x', 'x')
    for content, status in ((bomb(20_000, 30_000), 413), (bomb(200, 100), 413), (b'', 400),
                            (b'GIF89a' + bytes(100), 400), (b'<VRTDataset/>', 400),
                            (encoded()[:20], 400)):
        with pytest.raises(Refused) as refused:
            images.check_header(io.BytesIO(content), 'x', 10_000)
        assert refused.value.status == status


# --- a server --------------------------------------------------------------------------------


class Server:
    """A process that serves.

    Attributes:
        lines: What it has logged.
    """

    def __init__(self, *arguments: str) -> None:
        environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'vpt_dense', 'serve', '--port', '0', *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        self.lines: list[dict] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.port = int(self.wait_for('ready', 240)['url'].rpartition(':')[2])
        except BaseException:
            self.process.kill()
            raise

    def _read(self) -> None:
        for line in self.process.stderr:
            if line.startswith(b'{'):
                self.lines.append(json.loads(line))
            else:
                self.lines.append(dict(event='text', text=line.decode()))

    def wait_for(self, event: str, seconds: float = 60, **told: object) -> dict:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for line in list(self.lines):
                if line['event'] == event and told.items() <= line.items():
                    return line
            assert self.process.poll() is None or self._reader.is_alive(), self.lines[-3:]
            time.sleep(0.02)
        raise AssertionError(f'no {event} {told} within {seconds} s: {self.lines[-5:]}')

    def ask(
        self, method: str, path: str, body: bytes | None = None, key: str | None = READER,
        **headers: str,
    ) -> tuple[int, dict | bytes, http.client.HTTPMessage]:
        """(Status, content, headers) of an answer."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        if key is not None:
            headers['Authorization'] = f'Bearer {key}'
        try:
            connection.request(
                method, path, body, {k.replace('_', '-'): v for k, v in headers.items()})
            answer = connection.getresponse()
            content = answer.read()
            if answer.headers.get('Content-Type') == 'application/json':
                content = json.loads(content)
            return answer.status, content, answer.headers
        finally:
            connection.close()

    def raw(self, *parts: bytes, pause: float = 0.0) -> tuple[int, dict]:
        """(Status, error) of an answer to bytes."""
        with socket.create_connection(('127.0.0.1', self.port), timeout=60) as connection:
            for part in parts:
                try:
                    connection.sendall(part)
                except OSError:  # it has answered, and reads no more
                    break
                time.sleep(pause)
            found = b''
            while block := connection.recv(2**16):
                found += block
        head, _, body = found.partition(b'\r\n\r\n')
        return int(head.split()[1]), json.loads(body)

    def predict(self, tasks: str, *files: bytes, names: list[str] | None = None, **options: str):
        body, kind = multipart(*files, names=names)
        query = '&'.join([f'task={task}' for task in tasks.split()]
                         + [f'{key}={value}' for key, value in options.items()])
        return self.ask('POST', f'/v1/predict?{query}', body, Content_Type=kind)

    def memory(self) -> int:
        """Bytes in memory."""
        status = Path(f'/proc/{self.process.pid}/status').read_text()
        return int(status.split('VmRSS:')[1].split()[0]) * 1024

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


def multipart(*files: bytes, field: str = 'images', names: list[str] | None = None):
    """(Body, its type)."""
    parts = []
    for i, content in enumerate(files):
        name = names[i] if names else f'{i}.png'
        head = f'Content-Disposition: form-data; name="{field}"; filename="{name}"'
        parts.append(b'--limit\r\n' + head.encode() + b'\r\n\r\n' + content + b'\r\n')
    return b''.join(parts) + b'--limit--\r\n', 'multipart/form-data; boundary=limit'


def make_delta(folder: Path, name: str, seed: int, base: str, directory: Path) -> Path:
    """A delta of a kind that its name tells."""
    options = dict(OPTIONS, pretrained=True, checkpoint=base)
    build, further = dict(
        roads=(vpt_dense.create_segmentor, dict(num_classes=4, method='deep', indices=[1, 3])),
        cells=(vpt_dense.create_segmentor, dict(num_classes=3, method='lora', indices=[3])),
        brain=(vpt_dense.create_classifier, dict(num_classes=3, method='lora')),
        heart=(vpt_dense.create_classifier, dict(num_classes=5, method='bias')),
        bare=(vpt_dense.create_backbone, dict(method='deep')))[name]
    model = build(FAMILIES['dinov3'], **further, **options)
    randomise_tuned(model, seed)
    path = directory / f'{name}.safetensors'
    told = dict(classes=['x', 'y', 'z']) if name == 'brain' else {}
    vpt_dense.save_delta(model, path, **told)
    return path


class Here:
    """A server, its folder, and what its tasks give alone."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tasks = folder, folder / 'tasks'
        for name in ('tasks', 'spare', 'tmp'):
            (folder / name).mkdir()
        self.base = str(folder / 'base.pth')
        torch.save(plain('head').state_dict(), self.base)
        for seed, name in enumerate(('roads', 'cells', 'brain', 'heart')):
            make_delta(folder, name, seed, self.base, self.tasks)
        (folder / 'keys.json').write_text(json.dumps({
            keys.digest(READER.encode()): 'reader', keys.digest(ADMIN.encode()): 'admin'}))
        self.alone = {path.stem: vpt_dense.load(path) for path in self.tasks.iterdir()}
        self.server = Server(
            '--tasks', str(self.tasks), '--keys', str(folder / 'keys.json'), '--max-bytes',
            '500KB', '--max-pixels', '100K', '--timeout', '4', '--queue', '16', '--max-batch', '8',
            '--cache', '60KB')  # fmt: skip

    def check(self, result: dict, content: bytes, model: object = None) -> None:
        """Check a result against ``predict`` of the task alone."""
        path = self.folder / f'{threading.get_ident()}.png'
        path.write_bytes(content)
        expected = (model or self.alone[result['task']]).predict(path)
        if result['kind'] == 'segmentation':
            found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['labels_png']))))
            assert np.array_equal(found, expected.numpy())
            assert abs(sum(result['shares'].values()) - 1) < 1e-9
        else:
            scores = {each['class']: each['score'] for each in result['scores']}
            classes = 'xyz' if result['task'] == 'brain' else map(str, range(5))
            np.testing.assert_allclose(
                [scores[name] for name in classes], expected.numpy(), atol=1e-5)
            assert list(scores.values()) == sorted(scores.values(), reverse=True)


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    found = Here(tmp_path_factory.mktemp('served'))
    yield found
    found.server.end()


@needs_extra
def test_what_there_is(here):
    server = here.server
    assert server.ask('GET', '/healthz', key=None)[0] == 200
    assert server.ask('GET', '/readyz', key=None)[0] == 200
    status, told, _ = server.ask('GET', '/v1/tasks')
    assert status == 200 and 'vit_small_patch16_dinov3' in told['backbone']
    rows = {row['name']: row for row in told['tasks']}
    assert [row['kind'] for row in told['tasks']] == [
        'classification', 'segmentation', 'classification', 'segmentation']
    assert rows['brain']['classes'] == ['x', 'y', 'z'] and rows['brain']['palette'] is None
    assert len(rows['roads']['palette']) == len(rows['roads']['classes']) == 4
    for name, row in rows.items():
        content = (here.tasks / f'{name}.safetensors').read_bytes()
        assert row['bytes'] == len(content)
        assert row['sha256'] == hashlib.sha256(content).hexdigest()
    page = server.ask('GET', '/docs', key=None)[1].decode()
    assert '/v1/predict' in page and '//' not in page.replace('</', '')  # loads nothing
    assert '/v1/predict' in server.ask('GET', '/openapi.json', key=None)[1]['paths']


@needs_extra
def test_concurrent_mixed_requests_are_each_task_alone(here):
    requests = []
    for i in range(24):
        tasks = ('roads', 'brain', 'cells heart', 'roads cells brain heart')[i % 4]
        files = [encoded((40 + i, 50), 2 * i + k, ('PNG', 'JPEG')[k]) for k in range(1 + i % 2)]
        requests.append((tasks, files))

    def ask(request):
        tasks, files = request
        while True:
            status, told, headers = here.server.predict(tasks, *files)
            if status != 429:
                return status, told
            time.sleep(0.1 * int(headers['Retry-After']))

    with ThreadPoolExecutor(8) as pool:
        answered = list(pool.map(ask, requests))
    for (tasks, files), (status, told) in zip(requests, answered, strict=True):
        assert status == 200
        assert [(each['image'], each['task']) for each in told['results']] == [
            (f'{i}.png', task) for i in range(len(files)) for task in tasks.split()]
        for result in told['results']:
            here.check(result, files[int(result['image'][0])])
    text = here.server.ask('GET', '/metrics', key=None)[1].decode()
    counts = {line.rpartition(' ')[0]: float(line.rpartition(' ')[2])
              for line in text.splitlines() if not line.startswith('#')}
    # Fewer batches than pairs: requests were computed together.
    assert counts['vpt_dense_batch_size_sum'] > 1.2 * counts['vpt_dense_batch_size_count']
    assert counts['vpt_dense_batch_size_sum'] >= 24 * 1.5 * 2
    assert counts['vpt_dense_tasks'] == 4 and counts['vpt_dense_broken_tasks'] == 0
    assert counts['vpt_dense_cache_hits_total'] > 0 and counts['vpt_dense_queue'] == 0
    assert counts['vpt_dense_requests_total{route="/v1/predict",status="200"}'] >= 24


@needs_extra
def test_files_as_answers(here):
    content = encoded(seed=5)
    (here.folder / 'x.png').write_bytes(content)
    status, body, headers = here.server.predict('roads', content, format='png')
    labels = here.alone['roads'].predict(here.folder / 'x.png').numpy()
    assert status == 200 and headers['Content-Type'] == 'image/png'
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(body))), labels)
    body = here.server.predict('roads', content, format='npy')[1]
    assert np.array_equal(np.load(io.BytesIO(body), allow_pickle=False), labels)
    body = here.server.predict('brain', content, format='npy')[1]
    scores = here.alone['brain'].predict(here.folder / 'x.png').numpy()
    np.testing.assert_allclose(np.load(io.BytesIO(body), allow_pickle=False), scores, atol=1e-5)


def malformed(here: Here) -> dict[str, tuple]:
    """Name -> (statuses, function that asks)."""
    server, good = here.server, encoded()
    delta = (here.tasks / 'roads.safetensors').read_bytes()
    flipped = bytearray(delta)
    flipped[-9] ^= 4
    checkpoint = io.BytesIO()
    torch.save(dict(state_dict=dict(a=torch.zeros(2)), meta=dict(cfg='')), checkpoint)
    body, kind = multipart(good)
    spare = here.folder / 'spare'
    if not (spare / 'bare.safetensors').exists():
        other = str(here.folder / 'other.pth')
        torch.save(plain('head', seed=7).state_dict(), other)
        make_delta(here.folder, 'bare', 1, here.base, spare)
        make_delta(here.folder, 'roads', 1, other, spare)
        options = dict(OPTIONS, pretrained=True, checkpoint=here.base)
        model = vpt_dense.create_classifier(FAMILIES['dinov3'], 3, 'bias', **options)
        with torch.no_grad():
            model.head.bias[1] = float('nan')
        vpt_dense.save_delta(model, spare / 'nan.safetensors')
        model = vpt_dense.create_classifier(FAMILIES['dinov3'], 3, 'full', **options)
        vpt_dense.save_delta(model, spare / 'full.safetensors')

    def predict(*files: bytes, query: str = 'task=roads', key: str | None = READER):
        content, kind = multipart(*files)
        return lambda: server.ask('POST', f'/v1/predict?{query}', content, key, Content_Type=kind)

    def sent(content: bytes, kind: str | None, query: str = 'task=roads'):
        headers = {} if kind is None else dict(Content_Type=kind)
        return lambda: server.ask('POST', f'/v1/predict?{query}', content, **headers)

    def ask(*arguments, **headers):
        return lambda: server.ask(*arguments, **headers)

    def put(content: bytes, name: str = 'new'):
        return lambda: server.ask('PUT', f'/v1/tasks/{name}', content, ADMIN)

    def raw(*parts: bytes, pause: float = 0.0):
        return lambda: server.raw(*parts, pause=pause)

    head = (b'POST /v1/predict?task=roads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer '
            + READER.encode() + b'\r\nContent-Type: ' + kind.encode() + b'\r\n')
    start = body[:body.index(b'\r\n\r\n') + 4] + bytes(2000)
    chunks = [b'%x\r\n%s\r\n' % (len(part), part) for part in (start, *[bytes(2**16)] * 9)]
    cases: dict[str, tuple] = {
        'truncated PNG': (400, predict(good[:-500])),
        'truncated JPEG': (400, predict(encoded(kind='JPEG')[:-300])),
        'truncated head': (400, predict(good[:25])),
        'flipped bytes': (400, predict(good[:200] + bytes(50) + good[250:])),
        'one bad image of two': (400, predict(good, b'no image')),
        'text': (400, predict(b'no image at all')),
        'empty file': (400, predict(b'')),
        'GIF': (400, predict(encoded(kind='GIF'))),
        'a raster that names files': (400, predict(b'<VRTDataset rasterXSize="1"></VRTDataset>')),
        'bomb': (413, predict(bomb(10_000, 10_000))),
        'large bomb': (413, predict(bomb(60_000, 60_000))),
        'no file': (400, predict()),
        'other field': (400, sent(*multipart(good, field='image'))),
        'a field that is no file': (400, sent(
            b'--limit\r\nContent-Disposition: form-data; name="images"\r\n\r\nx\r\n--limit--\r\n',
            kind)),
        'a part without a name': (400, sent(
            b'--limit\r\nContent-Type: image/png\r\n\r\nx\r\n--limit--\r\n', kind)),
        'no boundary': (400, sent(body, 'multipart/form-data')),
        'another boundary': (400, sent(body, 'multipart/form-data; boundary=other')),
        'no end': (400, sent(body[:-12], kind)),
        'only the start': (400, sent(body[:60], kind)),
        'no body': (400, sent(b'', kind)),
        'JSON': (415, sent(b'{}', 'application/json')),
        'a form': (415, sent(b'images=x', 'application/x-www-form-urlencoded')),
        'no type': (415, sent(body, None)),
        'unknown task': (404, predict(good, query='task=road')),
        'no task': (400, predict(good, query='')),
        'empty task': (400, predict(good, query='task=')),
        'task with a path': (400, predict(good, query='task=../roads')),
        'task with a zero': (400, predict(good, query='task=roads%00')),
        'long task': (400, predict(good, query='task=' + 'a' * 300)),
        'no such format': (400, predict(good, query='task=roads&format=xml')),
        'PNG of two tasks': (400, predict(good, query='task=roads&task=cells&format=png')),
        'PNG of a classifier': (400, predict(good, query='task=brain&format=png')),
        'array of two images': (400, predict(good, good, query='task=roads&format=npy')),
        'unknown parameter': (400, predict(good, query='task=roads&wait=nan')),
        'too many pairs': (413, predict(*[encoded((9, 9))] * 9, query='task=roads&task=brain')),
        'too many files': (400, predict(*[encoded((9, 9))] * 17)),
        'large body': (413, predict(bytes(600_000))),
        'large chunks': (413, raw(head + b'Transfer-Encoding: chunked\r\n\r\n', *chunks)),
        'absurd length': (413, raw(head + b'Content-Length: 99999999999999\r\n\r\n')),
        'no key': (401, predict(good, key=None)),
        'wrong key': (401, predict(good, key='guess')),
        'key with a line': (401, predict(good, key='a b')),
        'reader deletes': (403, ask('DELETE', '/v1/tasks/roads')),
        'reader puts': (403, ask('PUT', '/v1/tasks/roads', delta)),
        'GET predict': (405, ask('GET', '/v1/predict?task=roads')),
        'POST tasks': (405, ask('POST', '/v1/tasks')),
        'PATCH a task': (405, ask('PATCH', '/v1/tasks/roads')),
        'no such path': (404, ask('GET', '/v1/nothing')),
        'files of the machine': (404, ask('GET', '/../../etc/passwd')),
        'put a path': (404, put(delta, '..%2F..%2Fevil')),
        'put a hidden name': (400, put(delta, '.evil')),
        'put a long name': (400, put(delta, 'a' * 65)),
        'put nothing': (400, put(b'')),
        'put text': (400, put(b'hello' * 100)),
        'put a pickle': (400, put(pickle.dumps(dict(a=1)))),
        'put a checkpoint': (400, put(checkpoint.getvalue())),
        'put half': (400, put(delta[:len(delta) // 2])),
        'put flipped': (400, put(bytes(flipped))),
        'put tensors': (400, put(save(dict(a=torch.zeros(2))))),
        'put another record': (400, put(save(dict(a=torch.zeros(2)), dict(
            format='vpt_dense delta of plain PyTorch 1', backbones='{"backbone.": {"method": 1, '
            '"origin": 2, "base": 3}}')))),
        "put another base's": (400, put((spare / 'roads.safetensors').read_bytes())),
        'put a bare backbone': (400, put((spare / 'bare.safetensors').read_bytes())),
        'put NaN': (400, put((spare / 'nan.safetensors').read_bytes())),
        'put all that was tuned': (400, put((spare / 'full.safetensors').read_bytes())),
        'put too much': (413, put(bytes(600_000))),
        'delete what is not there': (404, ask('DELETE', '/v1/tasks/none', None, ADMIN)),
        'huge header': (400, raw(b'GET /healthz HTTP/1.1\r\nX: ' + b'a' * 70_000)),
        'no HTTP': (400, raw(b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n')),
        'length that is no number': (400, raw(head + b'Content-Length: many\r\n\r\n')),
        'two lengths': (400, raw(head + b'Content-Length: 1\r\nContent-Length: 2\r\n\r\n')),
        'no host': (400, raw(b'GET /v1/tasks HTTP/1.1\r\n\r\n')),
        'slow body': (408, raw(
            head + b'Content-Length: 1000\r\n\r\n', b'--limit', b'\r\n', pause=0.5)),
    }
    return cases


@needs_extra
def test_malformed_requests(here):
    server = here.server
    cases = malformed(here)
    assert len(cases) >= 60
    before, tasks = {path.name for path in here.tasks.iterdir()}, server.ask('GET', '/v1/tasks')[1]
    memory, wrong = 0, {}
    for again in range(3):
        for name, (status, ask) in cases.items():
            if again and name == 'slow body':
                continue
            found, content, *_ = ask()
            text = content.get('error', '') if isinstance(content, dict) else ''
            if (found != status or list(content) != ['error'] or not text or '\n' in text
                    or str(here.tasks) in text or 'vpt-dense-serve-' in text):
                wrong[name] = found, content
        assert not wrong
        memory = memory or server.memory()
    assert server.memory() < memory + 30 * 10**6
    assert {path.name for path in here.tasks.iterdir()} == before
    assert server.ask('GET', '/v1/tasks')[1] == tasks
    assert not [line for line in server.lines if line['event'] == 'failed']
    content = encoded(seed=9)
    status, told, _ = server.predict('roads', content, names=['../../a b"c.png'.replace('"', '')])
    assert status == 200 and told['results'][0]['image'] == '../../a bc.png'
    here.check(told['results'][0], content)


@needs_extra
def test_more_than_may_wait_is_told_to_come_again(here):
    files = [encoded((90, 90), i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: here.server.predict('roads brain', *files), range(8)))
    statuses = [status for status, *_ in found]
    assert set(statuses) == {200, 429}
    for status, told, headers in found:
        if status == 429:
            assert int(headers['Retry-After']) >= 1 and 'wait already' in told['error']
        else:
            for result in told['results']:
                here.check(result, files[int(result['image'][0])])


@needs_extra
def test_tasks_come_change_and_go(here):
    server, content = here.server, encoded(seed=11)
    first = make_delta(here.folder, 'cells', 21, here.base, here.folder / 'spare')
    target = here.tasks / 'fresh.safetensors'
    status, row, _ = server.ask('PUT', '/v1/tasks/fresh', first.read_bytes(), ADMIN)
    assert status == 201 and row['name'] == 'fresh'
    assert target.read_bytes() == first.read_bytes()

    def check(path: Path) -> None:
        (result,) = server.predict('fresh', content)[1]['results']
        here.check(result, content, vpt_dense.load(path))

    check(first)
    second = make_delta(here.folder, 'roads', 22, here.base, here.folder / 'spare')
    assert server.ask('PUT', '/v1/tasks/fresh', second.read_bytes(), ADMIN)[0] == 200
    check(second)
    # Into the folder itself, in two writes: as a whole it is loaded, a half of it never.
    half = first.read_bytes()
    with target.open('wb') as stream:
        stream.write(half[:1000])
        stream.flush()
        time.sleep(0.3)
        stream.write(half[1000:])
    digest = hashlib.sha256(half).hexdigest()
    server.wait_for('task_loaded', task='fresh', sha256=digest)
    check(first)
    target.write_bytes(half[:2000])
    told = server.wait_for('task_refused', task='fresh')
    assert 'truncated' in told['error'] and 'stays' in told['result']
    check(first)
    text = server.ask('GET', '/metrics', key=None)[1].decode()
    assert 'vpt_dense_broken_tasks 1.0' in text and 'result="refused"' in text
    target.unlink()
    server.wait_for('task_removed', task='fresh')
    assert server.predict('fresh', content)[0] == 404
    assert server.ask('PUT', '/v1/tasks/fresh', half, ADMIN)[0] == 201
    assert server.ask('DELETE', '/v1/tasks/fresh', None, ADMIN)[0] == 200
    assert not target.exists() and server.predict('fresh', content)[0] == 404
    # Keys too.
    file = here.folder / 'keys.json'
    known = json.loads(file.read_text())
    file.write_text(json.dumps({**known, keys.digest(b'third'): 'reader'}))
    server.wait_for('keys_read')
    assert server.ask('GET', '/v1/tasks', key='third')[0] == 200


@needs_extra
def test_the_end_loses_nothing(here):
    """Last of this server: it ends under load."""
    server, files = here.server, [encoded((50, 40 + i), i) for i in range(6)]
    found, lost, stop = [], [], threading.Event()
    sent = [0.0]

    def load(number: int) -> None:
        while not stop.is_set():
            i = number % len(files)
            begun = time.monotonic()
            try:
                status, told, _ = server.predict('roads brain', files[i])
            except (OSError, http.client.HTTPException) as error:
                if not sent[0] or begun < sent[0]:
                    lost.append(error)
                return
            found.append((begun, status, told, i))

    threads = [threading.Thread(target=load, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(1.5)
    sent[0] = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    assert server.ask('GET', '/readyz', key=None)[0] == 503
    code = server.process.wait(30)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert code == 0 and not lost
    ended = server.wait_for('stopped')
    assert ended['accepted'] == ended['answered'] > 10
    statuses = {True: set(), False: set()}
    for begun, status, told, i in found:
        statuses[begun < sent[0]].add(status)
        if status == 200:
            for result in told['results']:
                here.check(result, files[i])
    assert statuses[True] <= {200, 429, 503} and 200 in statuses[True]
    assert 503 in statuses[False] and statuses[False] <= {503}


@needs_extra
def test_an_empty_folder_and_a_wrong_one(tmp_path):
    from vpt_dense.serving.tasks import Folder

    with pytest.raises(UserError, match='no such folder'):
        Folder(Settings(tmp_path / 'absent'), tmp_path)
    with pytest.raises(UserError, match='name them with --backbone'):
        Folder(Settings(tmp_path), tmp_path)


@needs_extra
def test_what_takes_too_long(tmp_path, here):
    from vpt_dense.serving.batching import Batcher, Sent
    from vpt_dense.serving.tasks import Folder

    settings = Settings(here.tasks, max_batch=2, queue=2)
    (tmp_path / 'x.png').write_bytes(encoded())

    async def ask(seconds: float) -> list:
        batcher = Batcher(Folder(settings, tmp_path), settings)
        batcher.start()
        try:
            return await batcher.predict([Sent('x', tmp_path / 'x.png', 1)], ['roads'], seconds)
        finally:
            await batcher.stop()

    assert len(asyncio.run(ask(30.0))) == 1
    with pytest.raises(Refused, match='not done within') as refused:
        asyncio.run(ask(0.001))
    assert refused.value.status == 504


@needs_extra
@pytest.mark.slow
def test_tasks_of_configs(configured, tmp_path):  # noqa: F811
    """A segmentor and classifiers of configs, whose deltas are read as their configs say."""
    (tmp_path / 'tasks').mkdir()
    for name in ('roads', 'flowers', 'bias'):
        delta = deltas.extract(str(configured / f'{name}.pth'))
        deltas.write(delta, str(tmp_path / f'tasks/{name}.safetensors'))
    alone = {path.stem: vpt_dense.load(path) for path in (tmp_path / 'tasks').iterdir()}
    server = Server('--tasks', str(tmp_path / 'tasks'))
    try:
        rows = {row['name']: row for row in server.ask('GET', '/v1/tasks')[1]['tasks']}
        for name, predictor in alone.items():
            assert rows[name]['classes'] == list(predictor.classes)
            assert rows[name]['ids'] == list(predictor.ids)
        assert rows['roads']['palette'] == alone['roads'].palette
        pictures = sorted((configured / 'pictures').iterdir())
        status, told, _ = server.predict('roads flowers bias', *(p.read_bytes() for p in pictures))
        assert status == 200 and len(told['results']) == 9
        for result in told['results']:
            expected = alone[result['task']].predict(str(pictures[int(result['image'][0])]))
            if result['kind'] == 'segmentation':
                found = np.asarray(Image.open(io.BytesIO(base64.b64decode(result['labels_png']))))
                assert np.array_equal(np.asarray(expected.ids)[found], expected.labels)
            else:
                assert result['scores'][0]['class'] == expected.name
                assert abs(result['scores'][0]['score'] - expected.score) < 1e-5
        assert server.ask('PUT', '/v1/tasks/new', b'x')[0] == 403  # there are no keys
        assert server.end() == 0
    finally:
        server.process.kill()


@needs_extra
def test_bodies_do_not_wait_for_acknowledgements(tmp_path):
    """Small packets are sent at once: otherwise each answer takes 40 ms more."""
    from vpt_dense.serving.server import _listen

    found = []

    async def serve_once() -> None:
        listener = _listen(Settings(tmp_path, port=0))
        done = asyncio.Event()

        async def answer(reader, writer):
            told = writer.get_extra_info('socket')
            found.append(told.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()
            done.set()

        async with await asyncio.start_server(answer, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            await done.wait()
            writer.close()

    asyncio.run(serve_once())
    assert found and all(found)
