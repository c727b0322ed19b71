"""vpt_dense.client and `vpt-dense ask`: real servers, and one that fails as it is told to."""

import asyncio
import io
import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import PIL.Image
import pytest
import torch

from vpt_dense import client, errors
from vpt_dense.client import AsyncClient, Client, ServerError
from vpt_dense.commands import ask

# --- failures ----------------------------------------------------------------------------------


class Faulty(ThreadingHTTPServer):
    """Answers what it is told to, in that order, and notes what it was asked for."""

    daemon_threads = True

    def __init__(self, *answers):
        super().__init__(('127.0.0.1', 0), self.Handler)
        self.answers, self.asked = list(answers), []
        self.url = f'http://127.0.0.1:{self.server_port}'
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = 'HTTP/1.1'

        def answer(self):
            body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
            server = self.server
            server.asked.append((self.command, self.path, self.headers, body))
            status, content, headers = server.answers.pop(0)
            if status == 'gone':
                self.close_connection = True
                return
            if status == 'slow':
                time.sleep(content)
                status, content = 200, {}
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {'Content-Length': len(content), **headers}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, *_):
            pass


@pytest.fixture
def faulty():
    servers = []

    def start(*answers):
        servers.append(Faulty(*[(*each, {})[:3] for each in answers]))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def pauses(monkeypatch):
    """What the client waited, without waiting."""
    found = []
    real = time.sleep

    async def later(seconds):
        found.append(seconds)

    monkeypatch.setattr(client.time, 'sleep', lambda s: found.append(s) if s > 0.4 else real(s))
    monkeypatch.setattr(asyncio, 'sleep', later)
    return found


TASKS = {'tasks': [{'name': 'a', 'kind': 'classification', 'classes': ['x', 'y']}]}
BUSY = {'error': 'too much\nto do'}
GONE = ('gone', None)


def run(kind, url, do, **options):
    """The same with both clients."""
    if kind is Client:
        with Client(url, **options) as each:
            return do(each)

    async def later():
        async with AsyncClient(url, **options) as each:
            return await do(each)

    return asyncio.run(later())


BOTH = pytest.mark.parametrize('kind', [Client, AsyncClient])


@BOTH
def test_what_is_safe_is_repeated(kind, faulty, pauses):
    """Busy as long as the server says; a lost connection, with growing pauses."""
    server = faulty((429, BUSY, {'Retry-After': 7}), (503, BUSY), GONE, (200, TASKS))
    (task,) = run(kind, server.url, lambda each: each.tasks())
    assert task == client.Task('a', 'classification', ('x', 'y'))
    assert len(server.asked) == 4 and pauses[0] == 7
    assert 0.8 <= pauses[1] <= 1.2 and 1.6 <= pauses[2] <= 2.4


@BOTH
def test_removing_is_not_repeated_where_it_may_have_been_done(kind, faulty, pauses):
    server = faulty(GONE)
    with pytest.raises(ServerError) as caught:
        run(kind, server.url, lambda each: each.remove_task('a'))
    assert caught.value.status is None and len(server.asked) == 1 and pauses == []
    server = faulty((503, BUSY), (200, {}))
    run(kind, server.url, lambda each: each.remove_task('a/b c'))
    assert [path for _, path, *_ in server.asked] == ['/v1/tasks/a%2Fb%20c'] * 2


@BOTH
def test_what_a_proxy_has_lost_is_repeated(kind, faulty, pauses):
    """Not what a server of ours says that it failed at, nor what a second time could undo."""
    lost = (502, b'<html>'), (500, b'The actor is dead')
    server = faulty(*lost, (200, TASKS))
    assert len(run(kind, server.url, lambda each: each.tasks())) == 1
    assert len(server.asked) == 3 and len(pauses) == 2
    for answers, do in (
        ([(500, {'error': 'the server has failed'})], lambda each: each.tasks()),
        (lost[:1], lambda each: each.remove_task('a')),
    ):
        server = faulty(*answers)
        with pytest.raises(ServerError):
            run(kind, server.url, do)
        assert len(server.asked) == 1
    assert len(pauses) == 2


def test_what_cannot_help_is_not_repeated(faulty, pauses):
    refused = (404, {'error': 'there is no task a'})
    for answer, text, status in [
            (refused, 'there is no task a', 404),
            ((429, BUSY, {'Retry-After': 3600}), 'too much to do', 429),
            ((200, b'<html>'), 'does not answer in JSON', None),
            ((302, b'', {'Location': 'http://127.0.0.1:9/'}), 'it answers 302', 302),
            ((401, {'error': 'a key is needed'}), r'a key is needed \(give its key\)', 401)]:
        server = faulty(answer)
        with Client(server.url) as each, pytest.raises(ServerError, match=text) as caught:
            each.tasks()
        assert caught.value.status == status and '\n' not in str(caught.value)
        assert len(server.asked) == 1
    assert pauses == []


def test_it_gives_up_in_one_line(faulty, pauses):
    server = faulty(*[(503, BUSY)] * 3)
    with Client(server.url, retries=2) as each, pytest.raises(ServerError, match='too much to do'):
        each.tasks()
    assert len(server.asked) == 3 and len(pauses) == 2
    with Client('http://127.0.0.1:9', retries=1) as each:
        with pytest.raises(ServerError, match=r'^http://127.0.0.1:9: connection refused$'):
            each.tasks()
        assert each.ready() is False


def test_a_slow_answer_is_waited_for_once(faulty):
    server = faulty(('slow', 0.6))
    with Client(server.url, timeout=0.2) as each:
        with pytest.raises(ServerError, match=r'no answer in 0\.2 s'):
            each.tasks()
    assert len(server.asked) == 1


def test_a_key_is_sent_and_never_told(faulty):
    server = faulty((200, TASKS), (403, {'error': 'role admin is needed'}))
    with Client(server.url, key=' secret-key\n') as each:
        each.tasks()
        with pytest.raises(ServerError, match='role admin') as caught:
            each.add_task('a', b'bytes')
    assert server.asked[0][2]['Authorization'] == 'Bearer secret-key'
    assert server.asked[1][0] == 'PUT' and server.asked[1][3] == b'bytes'
    assert 'secret' not in repr(caught.value)
    for key in ('a b\nc', 'schlüssel'):
        with pytest.raises(errors.UserError, match='is it the right file'):
            Client(server.url, key)


def result(**changes):
    png = io.BytesIO()
    PIL.Image.fromarray(np.zeros((2, 3), np.uint8)).save(png, 'PNG')
    import base64

    return {'image': 'i.png', 'task': 'a', 'kind': 'segmentation', 'width': 3, 'height': 2,
            'labels_png': base64.b64encode(png.getvalue()).decode(), 'shares': {'x': 1}, **changes}


@pytest.mark.parametrize('changes, text', [
    (dict(width=4), 'has a map of 3x2 for an image of 4x2'), (dict(labels_png='%%%'), 'no result'),
    (dict(labels_png='AAAA'), 'no result'), (dict(shares=None), 'no result'),
    (dict(kind='depth'), 'no result'), (dict(task='b'), 'asked for a, it answers for b')])
def test_answers_are_checked(faulty, changes, text):
    server = faulty((200, {'results': [result()]}), (200, {'results': [result(**changes)]}))
    with Client(server.url) as each:
        assert each.predict(b'image', 'a').labels.shape == (2, 3)
        with pytest.raises(ServerError, match=text):
            each.predict(b'image', 'a')


def test_images_in_every_form():
    array = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    turned = PIL.Image.fromarray(array)
    turned.getexif()[0x0112] = 6  # to be turned clockwise
    for image, expected in [
            (array, array), (array[..., 0], array[..., 0]), (PIL.Image.fromarray(array), array),
            (turned, np.rot90(array, -1))]:
        name, content = client.encode(image, 4)
        assert name == 'image_4.png'
        assert (np.asarray(PIL.Image.open(io.BytesIO(content))) == expected).all()
    assert client.encode(b'raw') == ('image_0', b'raw')
    for image, text in [
            (array.astype(float), 'float64'), (array[..., :2], r'\(5, 7, 2\)'), (3, 'not a int'),
            ('no such.png', 'no such file'), (turned.convert('CMYK'), 'CMYK')]:
        with pytest.raises(errors.UserError, match=text):
            client.encode(image)


def test_importing_it_is_light():
    code = ('import sys, vpt_dense.client; print([name for name in '
            '("torch", "cv2", "mmengine", "matplotlib") if name in sys.modules])')
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'


def test_urls(faulty):
    for url in ('127.0.0.1:8000', 'ftp://a', 'http://'):
        with pytest.raises(errors.UserError, match='is no URL of a server'):
            Client(url)


@pytest.mark.parametrize('argv, text', [
    (['http://a', ',', 'x.png'], 'name a task'), (['http://a', 't', 'x', '--force'], 'of --out'),
    (['http://a', 't', 'x', '--timeout', '0'], 'above 0')])
def test_ask_refuses_what_makes_no_sense(argv, text):
    with pytest.raises(errors.UserError, match=text):
        ask.parse_args(argv)


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(client.KEY, raising=False)
    assert client.read_key(None) is None
    monkeypatch.setenv(client.KEY, 'abc')
    assert client.read_key(None) == 'abc'
    (tmp_path / 'key').write_text('def\n')
    assert client.read_key(str(tmp_path / 'key')) == 'def'
    for content in (b'', b'two words', b'\xff\xfe'):
        (tmp_path / 'key').write_bytes(content)
        with pytest.raises(errors.UserError, match='--key-file'):
            client.read_key(str(tmp_path / 'key'))


# --- a real server, with the extra serve ---------------------------------------------------------


MODELS = {}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Tasks, whose models are then in MODELS, and images."""
    pytest.importorskip('fastapi')
    from served import write_tasks

    folder = tmp_path_factory.mktemp('served')
    MODELS.update(write_tasks(folder))
    (folder / 'photos/sub').mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ('a.png', 'sub/b.png', 'sub/c.png'):
        small = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        image = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / 'photos' / name), image)
    return folder


@pytest.fixture(scope='module')
def url(folder):
    from served import running

    with running(folder, keys=dict(reads='reader', rules='admin')) as url:
        yield url


def expected(name, path):
    """What the model itself finds."""
    return MODELS[name].predict(np.asarray(PIL.Image.open(path)))


def test_predictions_are_those_of_the_model(url, folder):
    photos = sorted((folder / 'photos').rglob('*.png'))
    with Client(url, 'reads') as each:
        assert each.ready(wait=10)
        tasks = {task.name: task for task in each.tasks()}
        assert tasks['roads'].classes == ('ground', 'road', '<b>car</b>')
        assert len(tasks['many'].palette) == 300 and tasks['animal'].kind == 'classification'
        found = each.predict(photos, ['many', 'animal', 'roads'])
        assert [[r.task for r in row] for row in found] == [['many', 'animal', 'roads']] * 3
        one = each.predict(np.asarray(PIL.Image.open(photos[0])), 'roads')
    for row, path in zip(found, photos, strict=True):
        for result in row:
            model = torch.as_tensor(expected(result.task, path))
            if result.kind == 'classification':
                order = model.argsort(descending=True)
                classes = tasks['animal'].classes
                assert [name for name, _ in result.scores] == [classes[i] for i in order]
                assert np.allclose([s for _, s in result.scores], model[order], atol=1e-5)
            else:
                assert result.labels.dtype == (np.uint16 if result.task == 'many' else np.uint8)
                assert (result.labels == model.numpy()).all()
                share = (result.labels == 1).mean()
                assert abs(result.shares[tasks[result.task].classes[1]] - share) < 1e-9
    assert (one.labels == found[0][2].labels).all()

    async def later():
        async with AsyncClient(url, 'reads') as each:
            assert await each.ready()
            return await each.predict(photos, 'roads')

    assert all((a.labels == b[2].labels).all()
               for a, b in zip(asyncio.run(later()), found, strict=True))


def test_tasks_come_and_go(url, folder):
    with Client(url, 'reads') as reader, pytest.raises(ServerError) as caught:
        reader.add_task('more', folder / 'tasks/roads.safetensors')
    assert caught.value.status == 403
    with Client(url, 'rules') as admin:
        admin.add_task('more', folder / 'tasks/roads.safetensors')
        tasks = {task.name: task for task in admin.tasks()}
        assert tasks['more'].sha256 == tasks['roads'].sha256
        admin.remove_task('more')
        assert 'more' not in {task.name for task in admin.tasks()}
        with pytest.raises(ServerError, match='more'):
            admin.remove_task('more')


def call(capsys, *argv):
    """Exit code, what was printed, the last line of errors."""
    old, sys.argv = sys.argv, ['vpt-dense', 'ask', *map(str, argv)]
    try:
        with pytest.raises(SystemExit) as stop:
            errors.main(lambda: ask.main(list(map(str, argv))))
    finally:
        sys.argv = old
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err.strip().splitlines()[-1:]


def test_ask_writes_what_predict_writes(url, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(client.KEY, 'reads')
    out = tmp_path / 'out'
    photos = folder / 'photos'
    (photos / 'broken.png').write_bytes(b'no image')
    code, said, last = call(capsys, url, 'roads,animal,many', photos, '--out', out, '--overlay')
    (photos / 'broken.png').unlink()
    assert code == 2 and 'broken.png' in last[0]
    for name in ('roads', 'many'):
        for path in ('a.png', 'sub/b.png', 'sub/c.png'):
            labels = cv2.imread(str(out / name / 'labels' / path), cv2.IMREAD_UNCHANGED)
            assert (labels == np.asarray(expected(name, photos / path))).all()
        assert (out / name / 'overlays/sub/b.jpg').is_file()
    lines = [json.loads(line) for line in
             (out / 'animal/predictions.jsonl').read_text().splitlines()]
    assert [line['path'] for line in lines] == [
        str(photos / name) for name in ('a.png', 'sub/b.png', 'sub/c.png')]
    assert set(lines[0]) == {'path', 'class', 'score', 'top'} and len(lines[0]['top']) == 5
    summary = json.loads((out / 'roads/summary.json').read_text())
    assert summary['predicted'] == 3 and len(summary['skipped']) == 1 and summary['sha256']
    code, *_ = call(capsys, url, 'roads', photos, '--out', out / 'roads', '--skip-existing')
    assert code == 0 and json.loads(
        (out / 'roads/summary.json').read_text())['existing'] == 3


def test_ask_prints_and_explains(url, folder, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv(client.KEY, raising=False)
    photo = folder / 'photos/a.png'
    code, _, last = call(capsys, url, 'roads', photo)
    assert code == 2 and 'key' in last[0]
    (tmp_path / 'key').write_text('reads\n')
    key = ('--key-file', tmp_path / 'key')
    code, said, _ = call(capsys, url, 'animal,roads', photo, *key, '--top-k', '2')
    animal, roads = map(json.loads, said.splitlines())
    assert code == 0 and animal['task'] == 'animal' and len(animal['top']) == 2
    assert set(roads['shares']) == {'ground', 'road', '<b>car</b>'}
    code, _, last = call(capsys, url, 'roda', photo, *key)
    assert code == 2 and "did you mean 'roads'?" in last[0]
    code, _, last = call(capsys, url, 'roads', photo, *key, '--top-k', '2')
    assert code == 2 and '--top-k is for classification' in last[0]
