"""vpt-dense serve as replicas of Ray Serve, as deploy/ray/serve.yaml starts it (make test-ray)."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import served
import yaml
from PIL import Image
from test_deploy import DEPLOY
from utils import ROOT

import vpt_dense
from vpt_dense.client import Client
from vpt_dense.errors import UserError
from vpt_dense.serving import keys
from vpt_dense.serving.settings import Settings, read

CONFIG = DEPLOY / 'ray/serve.yaml'
needs_ray = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ('ray', 'fastapi', 'prometheus_client'))),
    reason="pip install 'vpt-dense[ray,serve]'")
ADMIN = 'the-admins-key'


def test_options():
    assert read(dict(tasks='a', cache=None)) == Settings(Path('a'))
    assert read(dict(tasks='a', keys='k', cache='1MB', max_bytes='2KB', max_pixels='3K', wait_ms=5,
                     max_batch=2, queue=3, timeout=4)) == Settings(
        Path('a'), keys=Path('k'), cache=10**6, max_bytes=2000, max_pixels=3000, wait=0.005,
        max_batch=2, queue=3, timeout=4)
    for given, told in (
        (dict(), '--tasks FOLDER is needed'), (dict(task='a'), "no option 'task'; there are tasks"),
        (dict(tasks=3), '--tasks must be a text, found 3'),
        (dict(tasks='a', max_batch='4'), "--max-batch must be a whole number, found '4'"),
        (dict(tasks='a', queue=True), '--queue must be a whole number, found True'),
        (dict(tasks='a', max_batch=0), '--max-batch must be 1 or more, found 0'),
        (dict(tasks='a', timeout='60'), "--timeout must be a number, found '60'"),
    ):
        with pytest.raises(UserError, match=told):
            read(given)


@needs_ray
def test_what_a_cluster_is_refused():
    from vpt_dense.serving.ray_app import NAME, build

    for given, told in (
        (dict(tasks='deltas'), 'tasks: deltas must be an absolute path'),
        (dict(tasks='/t', base='b.pth'), 'base: b.pth must be an absolute path'),
        (dict(tasks='/t', port=80), 'port is one of http_options'),
        (dict(tasks='/t', replicas=2), "no option 'replicas'"),
    ):
        with pytest.raises(UserError, match=told):
            build(given)
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config['applications']
    settings = read(application['args'])
    (told,) = application['deployments']
    assert told['name'] == NAME and told['max_ongoing_requests'] == settings.queue
    assert told['autoscaling_config']['target_ongoing_requests'] == settings.max_batch
    assert config['http_options']['request_timeout_s'] > settings.timeout
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema(**config)


def replicas(name: str) -> set[int]:
    """The processes of the replicas of an application."""
    found = set()
    for place in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            if place.read_bytes().startswith(f'ray::ServeReplica:{name}:'.encode()):
                found.add(int(place.parent.name))
        except OSError:
            continue
    return found


def wait_for(what, seconds: float, process: subprocess.Popen):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)
    return found


@needs_ray
@pytest.mark.slow
def test_replicas_of_which_one_is_killed(tmp_path):
    served.write_tasks(tmp_path)
    (tmp_path / 'keys.json').write_text(f'{{"{keys.digest(ADMIN.encode())}": "admin"}}')
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    config = yaml.safe_load(CONFIG.read_text())
    config['http_options'].update(host='127.0.0.1', port=port)
    (application,) = config['applications']
    name = application['name'] = f'test-{os.getpid()}'
    application['args'].update(
        tasks=str(tmp_path / 'tasks'), keys=str(tmp_path / 'keys.json'))
    (told,) = application['deployments']
    told['ray_actor_options']['num_cpus'] = 0.5
    told['autoscaling_config']['max_replicas'] = 2
    (tmp_path / 'serve.yaml').write_text(yaml.safe_dump(config))
    rng = np.random.default_rng(0)
    images, wanted = [], []
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
            tmp_path / f'{i}.png')
        images.append(tmp_path / f'{i}.png')
    tasks = ['roads', 'animal']
    for task in tasks:
        alone = vpt_dense.load(tmp_path / f'tasks/{task}.safetensors')
        wanted.append([alone.predict(str(image)).numpy() for image in images])

    environment = {**os.environ, 'RAY_USAGE_STATS_ENABLED': '0', 'PYTHONPATH': str(ROOT)}
    environment.pop('RAY_ADDRESS', None)
    with (tmp_path / 'log').open('w') as log:
        process = subprocess.Popen(
            [sys.executable, '-c', 'from ray.serve.scripts import cli; cli()', 'run',
             str(tmp_path / 'serve.yaml')],
            cwd=tmp_path, env=environment, stdout=log, stderr=log)
    url = f'http://127.0.0.1:{port}'
    right, wrong, stop = [0], [], threading.Event()

    def ask(worker: int) -> None:
        with Client(url, ADMIN, retries=5) as client:
            turn = worker
            while not stop.wait(0.05):
                i = turn % len(images)
                turn += 1
                try:
                    roads, animal = client.predict(images[i], tasks)
                    # rounding, which is another in each batch, decides where classes are equal
                    assert np.mean(roads.labels != wanted[0][i]) < 2e-3
                    scores = dict(animal.scores)
                    assert np.allclose(
                        [scores[name] for name in sorted(scores)], wanted[1][i], atol=1e-5)
                    right[0] += 1
                except Exception as error:  # told below
                    wrong.append(error)
                    return

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    try:
        with Client(url, ADMIN) as client:
            wait_for(client.ready, 300, process)
            first = wait_for(lambda: len(found := replicas(name)) == 2 and found, 60, process)
            for thread in threads:
                thread.start()
            wait_for(lambda: right[0] >= 20 or wrong, 60, process)
            os.kill(min(first), signal.SIGKILL)
            so_far = right[0]
            second = wait_for(lambda: len(found := replicas(name)) == 2 and found != first
                              and found, 90, process)
            assert len(first & second) == 1  # the other one went on
            wait_for(lambda: right[0] >= so_far + 40 or wrong, 60, process)
            stop.set()
            for thread in threads:
                thread.join()
            assert wrong == []

            # a task that one of them was given comes to both
            client.add_task('again', tmp_path / 'tasks/animal.safetensors')
            wait_for(lambda: all('again' in {task.name for task in client.tasks()}
                                 for _ in range(12)), 30, process)
            response = client._client.get('metrics')
            assert response.status_code == 404 and 'ray_serve_' in response.json()['error']
    except BaseException:
        print((tmp_path / 'log').read_text()[-5000:])
        raise
    finally:
        stop.set()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert not replicas(name)
