"""deploy/: images, manifests and dashboards say what the server does.

What needs no extra runs by default; ``make test-deploy`` runs all of it.
"""

import fnmatch
import functools
import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from test_package import RIDING
from utils import ROOT

from vpt_dense.commands import serve
from vpt_dense.serving.settings import Settings

DEPLOY = ROOT / 'deploy'
COMPOSE, KUBERNETES = DEPLOY / 'compose', DEPLOY / 'kubernetes'
#: Seconds that connections have to close in, after --timeout (uvicorn's timeout_graceful_shutdown
#: in vpt_dense/serving/server.py).
CLOSING = 5


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


@functools.cache
def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: [(instruction, the rest of it)]."""
    text = re.sub(r'^#.*\n', '', (DEPLOY / 'docker/Dockerfile').read_text(), flags=re.MULTILINE)
    lines = text.replace('\\\n', ' ').splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def told(name: str) -> list:
    """The last instruction of this name, which is a list in JSON."""
    rest = [rest for kind, rest in instructions() if kind == name][-1]
    return json.loads(rest[rest.index('['):])


def tool(name: str) -> str:
    """A program beside this Python, or of the system."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or pytest.skip(f'{name} is not here (make test-deploy)')


def check(*command: object, **options) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr


# --- the image --------------------------------------------------------------------------------


def test_the_image_gets_what_a_wheel_needs_and_no_more():
    copied = {name for kind, rest in instructions() if kind == 'COPY' and '--from' not in rest
              for name in shlex.split(rest)[:-1]}
    assert copied == {
        'requirements', 'vpt_dense', *RIDING, 'setup.cfg', 'setup.py', 'pyproject.toml',
        'MANIFEST.in', 'LICENSE', 'README.md', 'model-index.yml'}
    rules = (ROOT / '.dockerignore').read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith('#')]
    assert rules[0] == '*' and rules[-1] == '**/__pycache__'
    kept = [rule.removeprefix('!') for rule in rules[1:-1]]
    assert {name.split('/')[0] for name in kept} == copied
    assert all((ROOT / name).exists() for name in kept)
    # of pretrain/ nothing but what is in the repository: .gitignore lists the same two
    own = re.findall(r'^!/(pretrain/.+)', (ROOT / '.gitignore').read_text(), re.MULTILINE)
    assert {name for name in kept if name.startswith('pretrain')} == set(own)
    assert "'.[serve]'" in [rest for kind, rest in instructions() if kind == 'RUN'][-2]


def test_the_image_is_for_a_user_who_may_write_nowhere():
    user = [rest for kind, rest in instructions() if kind == 'USER'][-1]
    assert user == '10001:10001'
    env = dict(pair.split('=', 1) for kind, rest in instructions() if kind == 'ENV'
               for pair in shlex.split(rest))
    folders = {env[name] for name in ('HOME', 'TMPDIR', 'MPLCONFIGDIR', 'HF_HOME', 'TORCH_HOME')}
    assert {path.split('/')[1] for path in folders} == {'tmp', 'cache'}
    command = [*told('ENTRYPOINT'), *told('CMD')]
    assert command[:4] == ['tini', '--', 'vpt-dense', 'serve']
    args = serve.parse_args(command[4:])
    assert (args.host, args.port, str(args.tasks)) == ('0.0.0.0', 8000, '/tasks')


def test_the_check_of_health():
    command = told('HEALTHCHECK')
    answers = [200, 503]

    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            self.send_response(answers.pop(0) if self.path == '/readyz' else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Ready) as server:
        port = server.server_address[1]
        command = [sys.executable, *(part.replace('8000', str(port)) for part in command[1:])]
        assert str(port) in command[-1]
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def run() -> int:
            environment = dict(http_proxy='http://127.0.0.1:1')  # which is not for this machine
            return subprocess.run(command, capture_output=True, env=environment).returncode

        assert [run(), run()] == [0, 1]
        server.shutdown()
    assert run() != 0 and answers == []


def test_hadolint():
    check(tool('hadolint'), DEPLOY / 'docker/Dockerfile')


# --- a server under others --------------------------------------------------------------------


def settings(arguments: list) -> Settings:
    """Those of a server that is started so: what it refuses is refused here."""
    args = serve.parse_args(list(map(str, arguments)))
    return Settings(folder=args.tasks, host=args.host, port=args.port, keys=args.keys,
                    timeout=args.timeout)  # fmt: skip


def test_compose_gives_a_server_what_it_needs():
    server = read(COMPOSE / 'compose.yaml')['services']['server']
    drain = settings(server['command']).timeout + CLOSING
    assert float(server['stop_grace_period'].removesuffix('s')) > drain
    assert server['read_only'] and server['cap_drop'] == ['ALL']
    assert any(mount.startswith('/tmp:') for mount in server['tmpfs'])
    assert (COMPOSE / server['build']['context'] / server['build']['dockerfile']).is_file()
    for name in ('server', 'prometheus', 'grafana'):
        service = read(COMPOSE / 'compose.yaml')['services'][name]
        assert all(port.startswith('127.0.0.1:') for port in service['ports'])
        for mount in service['volumes']:
            source = mount.split(':')[0]
            assert not source.startswith('.') or (COMPOSE / source).exists(), mount
    keys = read(COMPOSE / 'compose.keys.yaml')['services']['server']
    assert str(settings(keys['command']).keys) == f'/run/secrets/{keys["secrets"][0]}'
    assert keys['command'][:4] == server['command']  # a list replaces the one before


@pytest.mark.parametrize('name', ['compose.yaml', 'compose.keys.yaml'])
def test_the_schema_of_compose(name):
    check(tool('check-jsonschema'), '--builtin-schema', 'vendor.compose-spec', COMPOSE / name)


def manifests() -> dict[str, dict]:
    return {found['kind']: found for found in map(read, KUBERNETES.glob('*.yaml'))}


def test_kubernetes_gives_a_server_what_it_needs():
    found = manifests()
    assert set(found) == {'Deployment', 'Service', 'PersistentVolumeClaim', 'PodDisruptionBudget',
                          'HorizontalPodAutoscaler'}  # fmt: skip
    pod = found['Deployment']['spec']['template']['spec']
    (container,) = pod['containers']
    given = settings(container['args'])
    before = float(container['lifecycle']['preStop']['exec']['command'][1])
    assert pod['terminationGracePeriodSeconds'] >= before + given.timeout + CLOSING
    mounts = {mount['mountPath']: mount['name'] for mount in container['volumeMounts']}
    assert set(mounts.values()) == {volume['name'] for volume in pod['volumes']}
    assert {'/tmp', '/cache'} < set(mounts)  # as the image has them
    assert {str(given.folder), str(given.keys.parent)} < set(mounts)
    assert pod['securityContext']['runAsUser'] == pod['securityContext']['fsGroup'] == 10001
    assert container['securityContext']['readOnlyRootFilesystem']
    assert container['ports'][0]['containerPort'] == given.port
    routes = [container[f'{kind}Probe']['httpGet']['path']
              for kind in ('startup', 'readiness', 'liveness')]
    assert routes == ['/healthz', '/readyz', '/healthz']
    assert found['Service']['spec']['ports'][0]['targetPort'] == container['ports'][0]['name']

    labels = found['Deployment']['spec']['template']['metadata']['labels']
    assert found['Service']['spec']['selector'] == labels
    for kind in ('Deployment', 'PodDisruptionBudget'):
        assert found[kind]['spec']['selector']['matchLabels'] == labels
    claims = [volume['persistentVolumeClaim']['claimName'] for volume in pod['volumes']
              if 'persistentVolumeClaim' in volume]  # fmt: skip
    assert claims == [found['PersistentVolumeClaim']['metadata']['name']]
    scaler, deployment = found['HorizontalPodAutoscaler'], found['Deployment']
    assert scaler['spec']['scaleTargetRef']['name'] == deployment['metadata']['name']
    assert 'replicas' not in deployment['spec']  # it would be set back at each apply
    assert scaler['spec']['minReplicas'] > found['PodDisruptionBudget']['spec']['maxUnavailable']


def test_the_schemas_of_kubernetes(tmp_path):
    validate = tool('kubernetes-validate')
    check(validate, '--strict', *sorted(KUBERNETES.glob('*.yaml')))
    wrong = tmp_path / 'wrong.yaml'  # the tool does see what is wrong
    wrong.write_text((KUBERNETES / 'deployment.yaml').read_text().replace(
        'readinessProbe', 'readynessProbe'))
    assert subprocess.run([validate, '--strict', wrong], capture_output=True).returncode


# --- metrics ----------------------------------------------------------------------------------


def expressions() -> dict[str, str]:
    """Of each alert and each panel what it asks Prometheus for."""
    found = {rule['alert']: rule['expr'] for group in read(COMPOSE / 'alerts.yml')['groups']
             for rule in group['rules']}
    dashboard = json.loads((COMPOSE / 'grafana/dashboards/serving.json').read_text())
    for panel in dashboard['panels']:
        for target in panel['targets']:
            found[f'{panel["title"]}, {target["refId"]}'] = target['expr']
    return found


@pytest.mark.skipif(importlib.util.find_spec('prometheus_client') is None,
                    reason="pip install 'vpt-dense[serve]'")  # fmt: skip
def test_every_metric_is_one_of_the_servers():
    from vpt_dense.serving.metrics import Metrics

    metrics = Metrics(lambda: dict(hits=0, misses=0, tasks=0, bytes=0))
    ends = dict(counter=['_total'], gauge=[''], histogram=['_bucket', '_sum', '_count'])
    families = {family.name: [family.name + end for end in ends[family.type]]
                for family in metrics._registry.collect()}
    known = {name for names in families.values() for name in names}
    of = {where: set(re.findall(r'vpt_dense_\w+', text)) for where, text in expressions().items()}
    assert {where: names - known for where, names in of.items() if names - known} == {}
    shown = set().union(*of.values())
    assert [family for family, names in families.items() if not shown & set(names)] == []
    labels = {'instance', 'le', 'job', *(
        label for metric in vars(metrics).values() for label in getattr(metric, '_labelnames', ()))}
    for where, text in expressions().items():
        asked = {*re.findall(r'(\w+)=~?"', text),
                 *(name.strip() for by in re.findall(r'by \(([^)]+)\)', text)
                   for name in by.split(','))}  # fmt: skip
        assert asked <= labels, where


def test_what_grafana_finds():
    (source,) = read(COMPOSE / 'grafana/datasources/prometheus.yml')['datasources']
    dashboard = json.loads((COMPOSE / 'grafana/dashboards/serving.json').read_text())
    used = [dashboard['templating']['list'][0], *dashboard['panels'], *(
        target for panel in dashboard['panels'] for target in panel['targets'])]
    assert {each['datasource']['uid'] for each in used} == {source['uid']}
    (job,) = read(COMPOSE / 'prometheus.yml')['scrape_configs']
    assert job['static_configs'] == [dict(targets=['server:8000'])]
    assert f'job="{job["job_name"]}"' in expressions()['VptDenseDown']
    services = read(COMPOSE / 'compose.yaml')['services']
    assert {'server', 'prometheus'} < set(services)
    assert source['url'] == 'http://prometheus:9090'
    (provider,) = read(COMPOSE / 'grafana/dashboards/folder.yml')['providers']
    assert any(fnmatch.fnmatch(mount, f'*:{provider["options"]["path"]}:ro')
               for mount in services['grafana']['volumes'])


def test_promtool(tmp_path):
    """Syntax, and alerts.yml's answers to alerts_test.yml; panels as rules, which it can check."""
    promtool = tool('promtool')
    check(promtool, 'check', 'config', 'prometheus.yml', cwd=COMPOSE)
    check(promtool, 'test', 'rules', 'alerts_test.yml', cwd=COMPOSE)
    cases = {case['alertname'] for group in read(COMPOSE / 'alerts_test.yml')['tests']
             for case in group['alert_rule_test']}
    assert cases == {name for name in expressions() if name.startswith('VptDense')}
    rules = [dict(record=f'panel:{i}', expr=text.replace('$__rate_interval', '1m'))
             for i, text in enumerate(expressions().values())]
    file = tmp_path / 'panels.yml'
    file.write_text(yaml.safe_dump(dict(groups=[dict(name='panels', rules=rules)])))
    check(promtool, 'check', 'rules', file)
