"""Bi-LoRA: levels and rounding by hand, packed bits that give the same weights, sizes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from methods import build, build_at_start
from scipy.stats import norm
from utils import images

from vpt_dense import few_bits, safe_files
from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError

BI = dict(type='vpt_dense.BiLoRA', rank=3, parts=['q', 'v'])


def by_hand(weight, bits):
    """Rounding as the paper has it, in NumPy: to the nearest of the levels, of moments of all."""
    w = weight.detach().double().numpy()
    levels = np.array(few_bits.code(bits).levels)
    z = (w - w.mean()) / (w.std(ddof=1) + 1e-5)
    return levels[np.abs(z[..., None] - levels).argmin(-1)] * w.std(ddof=1) + w.mean()


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_levels_are_medians_of_what_becomes_them(bits):
    """By quadrature of |x - level| on the normal density too: no level is better elsewhere."""
    levels = np.array(few_bits.code(bits).levels)
    assert len(levels) == 2**bits and (np.diff(levels) > 0).all()
    edges = np.array([-np.inf, *(levels[1:] + levels[:-1]) / 2, np.inf])
    np.testing.assert_allclose(few_bits.code(bits).edges, edges[1:-1], atol=1e-12)
    for level, low, high in zip(levels, edges, edges[1:], strict=False):
        assert norm.cdf(level) - norm.cdf(low) == pytest.approx(norm.cdf(high) - norm.cdf(level))
    if bits == 1:
        assert levels[1] == pytest.approx(norm.ppf(0.75), abs=1e-12)
    x = np.linspace(-8, 8, 160001)

    def error(levels):
        return (np.abs(x[:, None] - levels).min(1) * norm.pdf(x)).sum()

    best = error(levels)
    for i in range(len(levels)):
        for step in (-0.02, 0.02):
            assert error(levels + step * (np.arange(len(levels)) == i)) > best


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_the_update_is_the_formula_and_gradients_pass_the_rounding(bits):
    from vpt_dense.adapters.bi_lora import FewBits

    torch.manual_seed(0)
    layer = FewBits(20, 12, 3, bits, 2.0, 0.1).double().eval()
    x = torch.randn(5, 20, dtype=torch.float64)
    down, up = (by_hand(w, bits) for w in (layer.down, layer.up))
    assert len(np.unique(down)) <= 2**bits
    np.testing.assert_allclose(
        layer(x).detach(), 2 * x.numpy() @ down.T @ up.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.matrix().detach(), 2 * up @ down, rtol=1e-9, atol=1e-12)
    # With c(z) = z + constant, d(q)/dw of q = c(z) s + m is what the same constant gives.
    w = layer.down.detach().clone().requires_grad_()
    m, s = w.mean(), w.std()
    z = (w - m) / (s + 1e-5)
    levels = torch.tensor(few_bits.code(bits).levels, dtype=torch.float64)
    shift = levels[(z.detach()[..., None] - levels).abs().argmin(-1)] - z.detach()
    weights = torch.randn(3, 20, dtype=torch.float64)
    (((z + shift) * s + m) * weights).sum().backward()
    (few_bits.rounded(layer.down, layer.down_levels, bits) * weights).sum().backward()
    torch.testing.assert_close(layer.down.grad, w.grad)


@pytest.mark.parametrize('bits', [1, 2, 4])
def test_packed_bits_give_the_same_features(tmp_path, bits):
    tuning = dict(adapters=[dict(BI, bits=bits)])
    model = build_at_start(tuning, 'vit', 'seg').eval()
    state = model.state_dict()
    delta = {n: t for n, t in state.items() if n.startswith('adapters.')}
    file = tmp_path / 'delta.safetensors'
    deltas.write(dict(state_dict=delta, meta={}), str(file))
    from safetensors import safe_open

    with safe_open(file, 'pt') as content:
        packed = {n: content.get_tensor(n) for n in content.keys()}
    floats = sum(t.numel() for t in packed.values() if t.is_floating_point())
    assert floats == 3 * 2 * 2 * 4  # three numbers, two matrices, queries and values of 4 blocks
    of_bits = sum(t.numel() for t in packed.values() if t.dtype == torch.uint8)
    assert of_bits == 8 * (3 * 64 * bits // 8 + 64 * -(-3 * bits // 8))
    found = safe_files.read(file)['state_dict']
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in delta.items()}
    other = build_at_start(tuning, 'vit', 'seg').eval()
    other.load_state_dict({**state, **found})
    x = images(1, 3, 32, 32)
    assert all(map(torch.equal, model(x), other(x)))
    again = {n: t for n, t in other.state_dict().items() if n in delta}
    assert all(torch.equal(t, packed[n]) for n, t in few_bits.pack(again).items())
    # Training goes on from there, with its moments.
    other.train()
    sum(out.square().mean() for out in other(x)).backward()
    grads = [p.grad for n, p in other.named_parameters() if p.requires_grad]
    assert all(grad is not None and grad.any() for grad in grads)


@pytest.mark.slow
def test_one_bit_of_rank_32_is_as_large_as_floats_of_rank_1():
    """ViT-B, queries and values: 32 times the rank in the bytes of one, and 12 a matrix beside."""
    from mmengine.registry import MODELS
    from utils import in_scope

    in_scope('mmseg')
    found = {}
    for name, adapter in dict(
            bits=dict(type='vpt_dense.BiLoRA', rank=32), floats=dict(type='vpt_dense.LoRA', rank=1),
    ).items():  # fmt: skip
        model = MODELS.build(dict(
            type='vpt_dense.VisionTransformer', arch='base', img_size=32, out_type='featmap',
            adapters=[dict(adapter, parts=['q', 'v'])]))
        added = {n: t for n, t in model.state_dict().items() if n.startswith('adapters.')}
        found[name] = deltas.size(few_bits.pack(added))
    assert found == dict(floats=147456, bits=147456 + 12 * 2 * 24)


def test_merged_weights_have_the_rounded_update():
    from vpt_dense.adapters import merge_adapters

    model = build('bi-lora', 'vit', 'seg').double().eval()
    before = model.layers[1].attn.qkv.weight.detach().clone()
    down, up = (by_hand(w, 1) for w in (
        model.adapters[0].updates[2].down, model.adapters[0].updates[2].up))
    merge_adapters(model)
    change = model.layers[1].attn.qkv.weight.detach() - before
    np.testing.assert_allclose(change[:64], up @ down, rtol=1e-8, atol=1e-12)
    assert not change[64:128].any() and change[128:].any()


def test_damaged_bits_are_told(tmp_path):
    model = build_at_start(dict(adapters=[BI]), 'vit', 'seg')
    packed = few_bits.pack(
        {n: t for n, t in model.state_dict().items() if n.startswith('adapters.')})
    name = next(n for n in packed if n.endswith('.1bit.64'))
    wrong = {
        'lost': {n: t for n, t in packed.items() if n != name.split('.1bit')[0] + '_levels'},
        'short': {**packed, name: packed[name][:, 1:].clone()}}
    for case, state in wrong.items():
        file = Path(tmp_path, f'{case}.safetensors')
        safe_files.write_tensors(state, file, {})
        with pytest.raises(UserError, match=r'damaged.*1bit\.64'):
            safe_files.read(file)


@pytest.mark.parametrize(('change', 'message'), [
    (dict(bits=3), r'adapters\.bits'), (dict(rank=0), r'adapters\.rank'),
    (dict(alpha=-1), r'adapters\.alpha'), (dict(dropout=1.5), r'adapters\.dropout'),
    (dict(targets=[r'\.fc1$']), r'adapters\.parts')])
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        build_at_start(dict(adapters=[{**BI, **change}]), 'vit', 'seg')
