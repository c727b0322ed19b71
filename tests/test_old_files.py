"""Files that an earlier version wrote (tests/data/68b9d70) load, and compute what they did."""

import pytest
import torch
from tool_helpers import run_tool
from utils import ROOT

import vpt_dense
from vpt_dense import safe_files
from vpt_dense.errors import UserError

FOLDER = ROOT / 'tests/data/68b9d70'
KINDS = {'checkpoint': '.pth', 'delta': '.safetensors', 'folded': '_folded.pth'}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', ['deep', 'lora'])
def test_they_compute_what_they_did(method, kind):
    base = None if kind == 'folded' else FOLDER / 'base.safetensors'
    predictor = vpt_dense.load(FOLDER / f'{method}{KINDS[kind]}', base=base)
    expected = safe_files.read(FOLDER / f'{method}_expected.safetensors')
    expected = expected.get('state_dict', expected)
    with torch.no_grad():
        found = predictor.model.encode_decode(expected['images'], [dict(img_shape=(40, 56))])
    torch.testing.assert_close(found[:, ::30], expected['logits'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', ['checkpoint', 'delta'])
def test_the_frozen_part_is_compared(kind, tmp_path):
    """Its fingerprint there is that of today: other weights are refused."""
    content = safe_files.read(FOLDER / 'base.safetensors')
    tensors = dict(content.get('state_dict', content))
    tensors['backbone.cls_token'] = tensors['backbone.cls_token'] + 1
    safe_files.write_tensors(tensors, tmp_path / 'other.safetensors', {})
    with pytest.raises(UserError, match='SHA'):
        vpt_dense.load(FOLDER / f'deep{KINDS[kind]}', base=tmp_path / 'other.safetensors')


@pytest.mark.parametrize('method', ['deep', 'lora'])
def test_the_tools_read_them(capfd, tmp_path, method):
    delta = FOLDER / f'{method}.safetensors'
    assert run_tool(capfd, 'delta', 'info', delta).code == 0
    for source in (delta, FOLDER / f'{method}.pth'):
        done = run_tool(capfd, 'delta', 'extract', source, tmp_path / f'{source.name}.safetensors',
                        '--base', FOLDER / 'base.safetensors')
        assert done.code == 0, done.err
        done = run_tool(capfd, 'delta', 'diff', '--weights-only', delta,
                        tmp_path / f'{source.name}.safetensors')
        assert done.code == 0, done.out
