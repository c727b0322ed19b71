"""What timm says of its weights: statistics, place, licence; and those weights loaded."""

import ast
import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from test_timm_weights import given, same, tiny
from timm.data import resolve_model_data_config
from utils import images

import vpt_dense
from vpt_dense import pretraining as source
from vpt_dense.errors import UserError
from vpt_dense.weights import compute

NAME = 'vit_small_patch16_dinov3'


@pytest.mark.parametrize(
    'name', [NAME, 'vit_base_patch16_siglip_224', 'vit_base_patch14_reg1_tipsv2.webli',
             'vit_large_patch16_dinov3.sat493m'],
)  # fmt: skip
def test_what_timm_says(name):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=0)
    expected = resolve_model_data_config(model)
    for found in (source.of(name), source.of(f'timm://{name}'), source.of(model),
                  source.of(model.pretrained_cfg)):  # fmt: skip
        assert found.name.startswith(name)
        np.testing.assert_allclose(np.divide(found.mean, 255), expected['mean'], atol=1e-8)
        np.testing.assert_allclose(np.divide(found.std, 255), expected['std'], atol=1e-8)
        for key in ('interpolation', 'crop_pct', 'input_size'):
            assert getattr(found, key) == expected[key]
        assert found.hub_id == f'timm/{found.name}'
    if name == NAME:  # the figures that every config of this stack writes
        assert source.of(name).mean == (123.675, 116.28, 103.53)
        assert source.of(name).std == (58.395, 57.12, 57.375)


@pytest.mark.parametrize('name, words', {
    NAME: ('dinov3-license', 'same agreement', 'copy', 'acknowledge', 'no military use'),
    'vit_huge_patch14_gap_224.in1k_ijepa': ('cc-by-nc-4.0', 'no commercial use'),
    'vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m': (
        'fair-noncommercial-research-license', 'no commercial use'),
    'vit_base_patch16_sapiens2.fb': ('sapiens2-license', 'read them'),
    'vit_base_patch16_radio_v3': ('nvidia-open-model-license', 'read them'),
    'aimv2_large_patch14_224': ('apple-ascl', 'read them'),
}.items())  # fmt: skip
def test_licences_that_bind(name, words):
    note = source.licence_note(source.of(name))
    assert '\n' not in note and name.partition('.')[0] in note
    assert all(word in note for word in words)


def test_licences_that_do_not():
    for name, licence in (('vit_base_patch16_siglip_224', 'apache-2.0'), ('eva02_tiny_patch14_224',
                                                                          'mit')):  # fmt: skip
        note = source.licence_note(source.of(name))
        assert note.endswith(f': {licence}')
    unknown = source.of(NAME)._replace(licence='')
    assert 'timm states none' in source.licence_note(unknown)


@pytest.mark.parametrize('name, words', {
    'vit_smal_patch16_dinov3': 'did you mean vit_small_patch16_dinov3',
    f'{NAME}.none': "no weights 'none'.*it has: lvd1689m",
}.items())  # fmt: skip
def test_names_that_timm_does_not_have(name, words):
    for function in (source.of, source.address):
        with pytest.raises(UserError, match=words):
            function(name)


# --- the weights that timm would load ----------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the Hugging Face hub to fill, and no network beside it."""
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)

    def put(repo: str, filename: str, tensors: dict) -> None:
        folder = tmp_path / 'hub' / f'models--{repo.replace("/", "--")}'
        (folder / 'refs').mkdir(parents=True)
        (folder / 'refs' / 'main').write_text('0')
        (folder / 'snapshots' / '0').mkdir(parents=True)
        write = save_file if filename.endswith('.safetensors') else torch.save
        write(tensors, folder / 'snapshots' / '0' / filename)

    return put


def load(model, address: str) -> str:
    converted = compute(model, address)
    model.load_state_dict(converted.tensors)
    return converted.report


#: Where the weights are: (the repository and its file in the cache, what the model is made with,
#: the address).
PLACES = {
    'of timm': (
        f'timm/{NAME}.lvd1689m', 'model.safetensors', {}, f'timm://{NAME}.lvd1689m'),
    'of a user': (
        'someone/net', 'model.safetensors', dict(pretrained_cfg_overlay=dict(
            hf_hub_id='someone/net')), 'hf://someone/net'),
    'a file of a user': (
        'someone/net', 'w.pth', dict(pretrained_cfg_overlay=dict(
            hf_hub_id='someone/net', hf_hub_filename='w.pth')), 'hf://someone/net/w.pth'),
}  # fmt: skip


@pytest.mark.parametrize('place', PLACES)
def test_the_cache_of_the_hub(hub, place):
    repo, filename, kwargs, expected = PLACES[place]
    model, other = tiny(NAME, **kwargs), tiny(NAME)
    address = source.address(model)
    assert address == expected
    with pytest.raises(UserError, match='not in the local cache and cannot be downloaded'):
        load(model, address)
    state = given(other)
    other.load_state_dict(state)
    hub(repo, filename, state)
    report = load(model, address)
    assert f'{address} (timm layout' in report and f'{len(state)} tensors used' in report
    same(model, other.forward_features, images(1, 3, 64, 64), rtol=0, atol=0)


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_a_file(tmp_path, kind):
    state = given(tiny(NAME))
    path = tmp_path / 'model.safetensors'
    save_file(state, path)
    file = path if kind == 'file' else tmp_path
    model = tiny(NAME, pretrained_cfg_overlay=dict(file=str(file)))
    assert source.address(model) == str(path)
    load(model, source.address(model))
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_a_model_of_the_hub(hub, tmp_path, monkeypatch):
    """``hf-hub:`` names in timm: the config is in the repository."""
    repo = 'someone/net'
    state = given(tiny(NAME))
    hub(repo, 'model.safetensors', state)
    sizes = dict(embed_dim=64, depth=2, num_heads=2, img_size=64)
    (tmp_path / 'hub' / 'models--someone--net' / 'snapshots' / '0' / 'config.json').write_text(
        json.dumps(dict(architecture=NAME, model_args=sizes, num_classes=0, pretrained_cfg={})))
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    model = timm.create_model(f'hf-hub:{repo}', cache_dir=tmp_path / 'hub').eval()
    model.weights_family = 'timm'
    assert source.address(model) == f'hf://{repo}'
    load(model, source.address(model))
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_an_address_of_the_web():
    model = tiny(NAME, pretrained_cfg_overlay=dict(hf_hub_id=None, url='https://x.org/w.pth'))
    assert source.address(model) == 'https://x.org/w.pth'


def test_no_weights():
    model = tiny(NAME, pretrained_cfg_overlay=dict(hf_hub_id=None))
    with pytest.raises(UserError, match=f'no pretrained weights of {NAME}.lvd1689m'):
        source.address(model)


def test_no_mm_package_is_imported_with_the_modules():
    weights = Path(vpt_dense.__file__).parent / 'weights'
    names = ('../pretraining', 'pretrained', 'timm_fits', 'grids', 'reading')
    for file in (*(weights / f'{name}.py' for name in names), *(weights / 'layouts').glob('*.py')):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = getattr(node, 'module', None) or node.names[0].name
                assert not module.startswith('mm'), (file, module)
