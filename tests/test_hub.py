"""Deltas pushed to and pulled from a hub: a small one of our own, on this machine."""

import base64
import dataclasses
import json
import re
import threading
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import torch
import yaml
from plain_models import FAMILIES, SMALL, plain
from tool_helpers import run_tool
from utils import images

import vpt_dense
from vpt_dense import safe_files
from vpt_dense.checkpoints import deltas, hub
from vpt_dense.errors import UserError
from vpt_dense.plain import tasks
from vpt_dense.weights.base import KEY, Base

TOKEN = 'hf_test'


class Hub(BaseHTTPRequestHandler):
    """The few calls of the hub's interface that uploading and downloading small files take."""

    repos: dict  # name -> {revision -> {path -> bytes}}, and whether it is private

    def log_message(self, *args) -> None:
        pass

    def answer(self, code: int, content=b'', **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace('_', '-'), value)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(data)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers['Content-Length']))
        if self.path == '/api/validate-yaml':
            self.answer(200, dict(errors=[], warnings=[]))
            return
        if self.headers.get('Authorization') != f'Bearer {TOKEN}':
            self.answer(401, dict(error='Invalid username or password.'))
            return
        if self.path == '/api/repos/create':
            asked = json.loads(body)
            name = f'{asked["organization"]}/{asked["name"]}'
            # by its version, huggingface_hub asks for one or the other
            private = asked.get('private') or asked.get('visibility') == 'private'
            self.repos.setdefault(name, dict(private=private, main={}))
            self.answer(200, dict(url=f'{self.server.url}/{name}', name=name))
            return
        _, _, _, owner, name, call, _ = self.path.split('/')
        repo = self.repos[f'{owner}/{name}']
        if call == 'preupload':
            listed = [
                dict(path=file['path'], uploadMode='regular', shouldIgnore=False)
                for file in json.loads(body)['files']
            ]
            self.answer(200, dict(files=listed))
        elif call == 'commit':
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry['key'] == 'file':
                    content = base64.b64decode(entry['value']['content'])
                    repo['main'][entry['value']['path']] = content
            oid = sha1(body).hexdigest()
            repo[oid] = dict(repo['main'])
            url = f'{self.server.url}/{owner}/{name}/commit/{oid}'
            self.answer(200, dict(commitUrl=url, commitOid=oid, success=True))

    def do_GET(self) -> None:
        match = re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', self.path)
        repo = self.repos.get(match[1]) if match else None
        if repo is None:
            self.answer(404, b'', X_Error_Code='RepoNotFound')
        elif match[2] not in repo:
            self.answer(404, b'', X_Error_Code='RevisionNotFound')
        elif match[3] not in repo[match[2]]:
            self.answer(404, b'', X_Error_Code='EntryNotFound')
        else:
            content = repo[match[2]][match[3]]
            self.answer(200, content, ETag=f'"{sha1(content).hexdigest()}"',
                        X_Repo_Commit=sha1(match[2].encode()).hexdigest())

    do_HEAD = do_GET


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A hub that the tools talk to; its repositories are ``server.repos``."""
    handler = type('OwnHub', (Hub,), dict(repos={}))
    running = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    running.url = f'http://127.0.0.1:{running.server_port}'
    running.repos = handler.repos
    thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv('HF_ENDPOINT', running.url)
    # Clients read it when they are imported, those before 2.0 in more places.
    constants = huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', template)
    monkeypatch.setattr(constants, 'ENDPOINT', running.url)
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True)
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def delta(tmp_path):
    """A small delta with everything that a model card tells."""
    base = Base(
        checkpoint='timm://vit_tiny.demo', layout='timm', sha256='0123' * 16, tensors=28,
        parameters=1000, arch='VisionTransformer of width 32 on 4x4 patches',
    )  # fmt: skip
    state = {'backbone.prompt.tokens': torch.rand(2, 3, 32), f'backbone.{KEY}': base.to_tensor(),
             'decode_head.conv_seg.weight': torch.rand(5, 8, 1, 1)}
    meta = dict(
        format=deltas.FORMAT, cfg="model = dict(type='EncoderDecoder')\n", iter=7,
        method=dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3), trainable=['^prompt']),
        counts=dict(trainable=232, total=1232, percent=100 * 232 / 1232),
        metric=dict(mIoU=44.06), bases={'backbone.': base.__dict__},
    )  # fmt: skip
    path = tmp_path / 'tuned.safetensors'
    deltas.write(dict(state_dict=state, meta=meta), path)
    return path


def test_push_and_pull_give_the_same_file(capfd, server, delta, tmp_path):
    done = run_tool(capfd, 'delta', 'push', delta, 'me/vit', '--private')
    assert done.code == 0, done
    assert f'{server.url}/me/vit/commit/' in done.out
    repo = server.repos['me/vit']
    assert repo['private'] is True
    assert set(repo['main']) == {'delta.safetensors', 'config.py', 'README.md'}
    assert repo['main']['config.py'] == b"model = dict(type='EncoderDecoder')\n"

    out = tmp_path / 'pulled.safetensors'
    commit = next(name for name in repo if len(name) == 40)
    for more in ([], ['--revision', commit]):
        done = run_tool(capfd, 'delta', 'pull', 'me/vit', out, *more)
        assert done.code == 0, done
        assert out.read_bytes() == delta.read_bytes()
        out.unlink()


def test_what_is_pushed_knows_nothing_of_the_run_and_its_machine(
    capfd, server, delta, tmp_path, monkeypatch
):
    """Who tested by the pulled config wrote into a folder of the training's name."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path.parent / 'somebody'  # outside the current folder
    content = deltas.read(str(delta))
    record = dataclasses.replace(
        Base.from_tensor(content['state_dict'][f'backbone.{KEY}']), checkpoint=f'{home}/vit.pth')
    content['state_dict'][f'backbone.{KEY}'] = record.to_tensor()
    content['meta']['bases'] = {'backbone.': record.__dict__}
    content['meta']['cfg'] = (
        f"model = dict(backbone=dict(init_cfg=dict(checkpoint='{home}/vit.pth')))\n"
        f"data = ['{tmp_path}/data/ade', 'data/other']\n"
        f"work_dir = '{home}/work'\nload_from = 'x.pth'\nresume = True\n")
    deltas.write(content, delta)
    assert run_tool(capfd, 'delta', 'push', delta, 'me/vit').code == 0
    assert run_tool(capfd, 'delta', 'pull', 'me/vit', 'pulled.safetensors').code == 0
    pushed = server.repos['me/vit']['main']
    assert not any(str(tmp_path.parent).encode() in text for text in pushed.values())
    pulled = deltas.read('pulled.safetensors')
    assert pulled['meta']['cfg'].encode() == pushed['config.py']
    cfg = deltas.stored_config.parse(pulled['meta']['cfg'], '')
    assert set(cfg) == {'model', 'data'} and cfg.data == ['data/ade', 'data/other']
    assert cfg.model.backbone.init_cfg.checkpoint == 'vit.pth'
    assert Base.from_tensor(pulled['state_dict'][f'backbone.{KEY}']).checkpoint == 'vit.pth'
    assert pulled['meta']['bases']['backbone.']['checkpoint'] == 'vit.pth'
    assert str(home) in deltas.read(str(delta))['meta']['cfg']  # the user's own stays


def test_model_card(server, delta):
    hub.push(str(delta), 'me/vit')
    text = server.repos['me/vit']['main']['README.md'].decode()
    _, header, body = text.split('---\n', 2)
    header = yaml.safe_load(header)
    assert header['base_model'] == 'timm/vit_tiny.demo'
    assert header['pipeline_tag'] == 'image-segmentation'
    assert 'license' not in header  # the user's to choose
    for needed in ('timm://vit_tiny.demo', '0123' * 16, "num_tokens=3", '232 tuned of 1,232',
                   '| mIoU | 44.06 |', '^prompt', 'me/vit', 'config.py', 'merge'):
        assert needed in body, needed


def test_a_card_that_is_there_stays(capfd, server, delta):
    """Its owner has added a licence; the next push put the first card back."""
    assert run_tool(capfd, 'delta', 'push', delta, 'me/vit').code == 0
    repo = server.repos['me/vit']['main']
    first = repo['README.md']
    repo['README.md'], repo['config.py'] = b'mine', b'old'
    assert run_tool(capfd, 'delta', 'push', delta, 'me/vit').code == 0
    assert repo['README.md'] == b'mine' and repo['config.py'] != b'old'
    assert run_tool(capfd, 'delta', 'push', delta, 'me/vit', '--force').code == 0
    assert repo['README.md'] == first


def damage(repo):
    content = bytearray(repo['main']['delta.safetensors'])
    content[-3] ^= 1
    repo['main']['delta.safetensors'] = bytes(content)


REFUSED = {
    'no repository': (lambda repos: repos.clear(), [], r'cannot pull .* from me/vit.*its name'),
    'no revision': (lambda repos: None, ['--revision', 'v9'], r'RevisionNotFound.*its name'),
    'no delta': (lambda repos: repos['me/vit']['main'].pop('delta.safetensors'), [],
                 r'cannot pull delta\.safetensors from me/vit'),
    'damaged': (lambda repos: damage(repos['me/vit']), [], r'me/vit: .*is damaged'),
    'no safetensors': (
        lambda repos: repos['me/vit']['main'].update({'delta.safetensors': b'<html>'}), [],
        r'me/vit: .*is a web page'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_pull_refuses_in_one_line(capfd, server, delta, tmp_path, case):
    change, options, pattern = REFUSED[case]
    hub.push(str(delta), 'me/vit')
    change(server.repos)
    out = tmp_path / 'pulled.safetensors'
    done = run_tool(capfd, 'delta', 'pull', 'me/vit', out, *options)
    assert done.code in (1, 2)
    (line,) = done.err.strip().splitlines()
    assert re.search(pattern, line), line
    assert not out.exists()


@pytest.mark.parametrize('command', ['push', 'pull'])
def test_without_network(capfd, delta, tmp_path, monkeypatch, command):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')  # the discard port: nobody listens
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    arguments = [delta, 'me/vit'] if command == 'push' else ['me/vit', tmp_path / 'x.safetensors']
    done = run_tool(capfd, 'delta', command, *arguments)
    assert done.code in (1, 2)
    (line,) = done.err.strip().splitlines()
    assert re.search(rf'cannot {command} .*me/vit.*network', line), line
    assert not (tmp_path / 'x.safetensors').exists()


def test_offline_mode(capfd, delta, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    done = run_tool(capfd, 'delta', 'pull', 'me/vit', tmp_path / 'x.safetensors')
    (line,) = done.err.strip().splitlines()
    assert 'cannot pull delta.safetensors from me/vit' in line and 'network' in line


def test_a_wrong_token_is_named(capfd, server, delta, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_other')
    done = run_tool(capfd, 'delta', 'push', delta, 'me/vit')
    (line,) = done.err.strip().splitlines()
    assert re.search(r'cannot push to me/vit.*(hf auth login|HF_TOKEN)', line), line


def test_a_whole_checkpoint_is_not_pushed_as_a_delta(capfd, server, delta, tmp_path):
    """Merged files carried the mark of the delta that they were made of."""
    merged = deltas.read(str(delta))
    del merged['state_dict'][f'backbone.{KEY}']
    safe_files.write(merged, tmp_path / 'merged.pth')
    deltas.write(merged, tmp_path / 'merged.safetensors')
    safe_files.write(deltas.read(str(delta)), tmp_path / 'delta.pth')  # hubs want safetensors
    for name in ('merged.pth', 'merged.safetensors', 'delta.pth'):
        done = run_tool(capfd, 'delta', 'push', tmp_path / name, 'me/vit')
        assert done.code == 2 and f'{name} is no delta but a whole checkpoint' in done.err
    assert server.repos == {}
    delta.rename(tmp_path / 'delta.bin')
    assert run_tool(capfd, 'delta', 'push', tmp_path / 'delta.bin', 'me/vit').code == 0


def test_what_is_no_delta_or_no_name_is_refused(tmp_path, delta):
    plain = tmp_path / 'plain.safetensors'
    safe_files.write_tensors({'a': torch.zeros(1)}, plain, {})
    with pytest.raises(UserError, match=r'plain\.safetensors is no delta.*extract'):
        hub.push(str(plain), 'me/vit')
    for name in ('a b', '../up', 'a/b/c'):
        with pytest.raises(UserError, match='REPO_ID .*write OWNER/NAME'):
            hub.push(str(delta), name)
    with pytest.raises(UserError, match=r'x\.pth: deltas are \.safetensors files'):
        hub.pull('me/vit', str(tmp_path / 'x.pth'))


@pytest.mark.parametrize('build', [vpt_dense.create_classifier, vpt_dense.create_segmentor])
def test_models_of_plain_pytorch_are_pushed_and_come_back(build, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(plain('dinov3').state_dict(), 'w.pth')
    model = build(FAMILIES['dinov3'], 3, 'deep', checkpoint='w.pth', img_size=64,
                  model_options=SMALL).eval()  # fmt: skip
    model.push_to_hub('me/tuned', private=True)
    pushed = server.repos['me/tuned']
    assert pushed['private'] and set(pushed['main']) == {
        'README.md', 'config.json', 'delta.safetensors'}
    card = yaml.safe_load(pushed['main']['README.md'].decode().split('---')[1])
    assert card['library_name'] == 'vpt_dense' and 'visual-prompt-tuning' in card['tags']
    task = 'classification' if isinstance(model, tasks.Classifier) else 'segmentation'
    assert card['pipeline_tag'] == f'image-{task}'
    found = type(model).from_pretrained('me/tuned')
    pixels = images(2, 3, 64, 64)
    assert torch.equal(found(pixels), model(pixels))
    (commit,) = (revision for revision in pushed if revision not in ('private', 'main'))
    found = type(model).from_pretrained('me/tuned', revision=commit, base='w.pth')
    assert torch.equal(found(pixels), model(pixels))
    with pytest.raises(UserError, match="from_pretrained: there is no argument 'bas'"):
        type(model).from_pretrained('me/tuned', bas='w.pth')
