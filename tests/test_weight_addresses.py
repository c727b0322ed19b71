"""Where pretrained weights may be: hubs, timm's names, the web. No network is needed."""

import functools
import http.server
import threading

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vpt_dense.errors import UserError
from vpt_dense.weights import read_state_dict
from vpt_dense.weights.reading import read_source

TENSORS = {'a.weight': torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hugging Face hub to fill, and no network beside it."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)

    def put(repo, filename, revision='main'):
        folder = tmp_path / 'hub' / f'models--{repo.replace("/", "--")}'
        (folder / 'refs').mkdir(parents=True, exist_ok=True)
        (folder / 'refs' / revision).write_text(f'{revision}0')
        snapshot = folder / 'snapshots' / f'{revision}0'
        snapshot.mkdir(parents=True, exist_ok=True)
        write = save_file if filename.endswith('.safetensors') else torch.save
        write(TENSORS, snapshot / filename)

    return put


HUB = {
    'timm://vit_tiny_patch16_224': (
        'timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k', 'model.safetensors'),
    'timm://vit_base_patch14_dinov2.lvd142m': (
        'timm/vit_base_patch14_dinov2.lvd142m', 'pytorch_model.bin'),
    'hf://someone/net': ('someone/net', 'model.safetensors'),
    'hf-hub:someone/net': ('someone/net', 'open_clip_pytorch_model.bin'),
    'hf-hub:someone/net/weights.pth': ('someone/net', 'weights.pth'),
    'hf://someone/net@v2/model.safetensors': ('someone/net', 'model.safetensors', 'v2'),
}  # fmt: skip


@pytest.mark.parametrize('address', HUB)
def test_what_is_in_the_cache_needs_no_network(hub, address):
    hub('someone/other', 'model.safetensors')
    with pytest.raises(UserError, match='not in the local cache and cannot be downloaded'):
        read_state_dict(address)
    hub(*HUB[address])
    read = read_state_dict(address)
    assert read.keys() == TENSORS.keys() and torch.equal(read['a.weight'], TENSORS['a.weight'])


WRONG = {
    'timm://vit_tiny_patch16_242': r"no model 'vit_tiny_patch16_242'; did you mean vit_tiny_patch",
    'timm://vit_base_patch14_dinov2.x': r"no weights 'x' of .*; it has: lvd142m",
    'timm://vit_tiny_patch16_224': r'cannot be downloaded .*init_cfg\.checkpoint.*HF_HOME',
    'hf://someone': r'write hf://<owner>/<name>',
    'hf://a/b/c.pth': r'hf://a/b/c\.pth is not in the local cache',
    'http://127.0.0.1:9/none.pth': r'cannot be downloaded .*TORCH_HOME/hub/checkpoints',
    'open-mmlab://none': r'open-mmlab://none: mmengine knows no weights of this name',
    'nowhere://x.pth': r'the scheme nowhere:// is not known; use a path, timm://, hf://',
    'absent.pth': r'weights not found: absent\.pth \(looked in .*init_cfg\.checkpoint',
    '': r"init_cfg\.checkpoint must be a path or an address of weights, found ''",
}


@pytest.mark.parametrize('address', WRONG)
def test_one_clear_line_each(hub, tmp_path, monkeypatch, address):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setenv('MMENGINE_HOME', str(tmp_path))
    with pytest.raises(UserError, match=WRONG[address]) as error:
        read_state_dict(address)
    assert '\n' not in str(error.value)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server for the files of a folder; gives its address and the folder."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    httpd = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f'http://127.0.0.1:{httpd.server_port}', folder
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.mark.parametrize('name', ['w.pth', 'w.safetensors', 'w.npz', 'w.pth?download=true'])
def test_the_web(server, name):
    address, folder = server
    file = folder / name.partition('?')[0]
    if file.suffix == '.npz':
        np.savez(file, **{'a/weight': TENSORS['a.weight'].numpy()})
    else:
        (save_file if file.suffix == '.safetensors' else torch.save)(TENSORS, file)
    assert torch.equal(read_state_dict(f'{address}/{name}')['a.weight'], TENSORS['a.weight'])
    file.unlink()  # the second time it is in torch's cache
    assert torch.equal(read_state_dict(f'{address}/{name}')['a.weight'], TENSORS['a.weight'])


def test_a_page_in_place_of_weights(server):
    address, folder = server
    (folder / 'w.pth').write_text('<html>log in first</html>')
    with pytest.raises(UserError, match=r'w\.pth is a web page'):
        read_state_dict(f'{address}/w.pth')
    torch.save(TENSORS, folder / 'w.pth')  # the page was not kept
    assert torch.equal(read_state_dict(f'{address}/w.pth')['a.weight'], TENSORS['a.weight'])


@pytest.mark.parametrize(
    ('content', 'wrappings'),
    [
        (TENSORS, ()),
        ({'state_dict': TENSORS, 'meta': {}, 'optimizer': {'state_dict': {}}}, ('state_dict',)),
        ({'model': {'state_dict': TENSORS}, 'epoch': 1}, ('model', 'state_dict')),
        ({'student': {'a': torch.ones(1)}, 'teacher': TENSORS}, ('teacher',)),
        ({'model': TENSORS, 'model_ema': {'a': torch.ones(1)}}, ('model',)),
        ({'state_dict': {}, 'model_ema': TENSORS}, ('model_ema',)),
    ],
)
def test_wrappings_are_undone(tmp_path, content, wrappings):
    torch.save(content, tmp_path / 'w.pth')
    source = read_source(str(tmp_path / 'w.pth'))
    assert source.wrappings == wrappings
    assert source.tensors.keys() == TENSORS.keys()
