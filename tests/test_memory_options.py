"""What the backbone keeps for backward, what it computes again, and frozen weights held small."""

import pytest
import torch
from methods import DEEP
from test_prompted_vit import build
from torch.utils._python_dispatch import TorchDispatchMode
from utils import images, randomise, tiny_vit

LAYERS = 4


def kept_bytes(model, x) -> int:
    """Bytes of the storages that one forward pass keeps for backward, parameters left out."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # itself, if it is an output, would hold its own graph for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(x)  # holds what is kept
    assert out
    return sum(size for pointer, size in kept.items() if pointer not in known)


@pytest.mark.parametrize('name', ['deep', 'bias', 'deep, last 2'])
def test_lean_keeps_two_tensors_a_block(name):
    x = images(2, 3, 64, 64)
    model = build(name, memory='lean', final_norm=False).train()
    tokens = 2 * (64 + 1) * 64 * 4  # bytes of (B, N, C) in float32
    blocks = 2 if name == 'deep, last 2' else LAYERS
    image = x.nbytes if name == 'bias' else 0  # the patch embedding has a bias to train
    expected = 2 * blocks * tokens + image
    assert expected <= kept_bytes(model, x) < expected + 0.3 * tokens
    with_cp = build(name, with_cp=True, final_norm=False).train()
    expected = blocks * tokens + image
    assert expected <= kept_bytes(with_cp, x) < expected + 0.3 * tokens
    default = build(name, final_norm=False).train()
    assert kept_bytes(default, x) > 7 * blocks * tokens


@pytest.mark.parametrize('options', [{}, dict(memory='lean'), dict(with_cp=True)], ids=str)
def test_a_frozen_backbone_keeps_nothing(options):
    model = build('linear', **options).train()
    out = model(images(2, 3, 32, 32))[0]
    assert not out.requires_grad
    assert kept_bytes(model, images(2, 3, 32, 32)) == 0


@pytest.mark.parametrize('name', ['linear', 'deep'])
def test_a_cls_token_does_not_hold_the_other_tokens(name):
    out = build(name, out_type='cls_token').train()(images(2, 3, 32, 32))[0]
    assert out.untyped_storage().nbytes() == out.nbytes


@pytest.mark.parametrize('options', [{}, dict(memory='lean'), dict(with_cp=True)], ids=str)
def test_nothing_is_kept_before_the_first_trained_parameter(options):
    late, all_blocks = (
        build(name, final_norm=False, **options).train() for name in ('deep, last 2', 'deep'))
    x = images(2, 3, 32, 32)
    assert 0 < kept_bytes(late, x) < 0.55 * kept_bytes(all_blocks, x)


class Products(TorchDispatchMode):
    """Records the output widths of all matrix products with a bias (linear layers' forward)."""

    def __init__(self):
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.addmm.default:
            self.widths.append(out.shape[-1])
        return out


@pytest.mark.parametrize(('options', 'again'), [
    ({}, []),
    # Queries 64, keys and values of tokens and of prompts 128 each, first half of the MLP 128:
    # neither the projection nor the second half of the MLP, 64 each.
    (dict(memory='lean'), [64, 128, 128, 128]),
    (dict(with_cp=True), [64, 64, 128, 128, 128]),
], ids=str)
def test_what_is_computed_again(options, again):
    model = build('deep', **options).train()
    with Products():
        out = model(images(2, 3, 32, 32))[0]
    with Products() as products:
        out.square().sum().backward()
    assert sorted(products.widths) == sorted(again * LAYERS)


@pytest.mark.parametrize('name', ['deep', 'deep, projected', 'deep-bias', 'shallow'])
@pytest.mark.parametrize('options', [dict(memory='lean'), dict(with_cp=True)], ids=str)
def test_recomputed_under_autocast(name, options):
    results = []
    for chosen in ({}, options):
        model = build(name, **chosen).train()
        with torch.autocast('cpu', torch.bfloat16):
            out = model(images(2, 3, 32, 32))[0]
        out.float().square().sum().backward()
        results.append((out.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
@pytest.mark.parametrize('name', ['deep', 'bias', 'linear'])
def test_frozen_weights_are_held_in_half(name, dtype, training):
    model = build(name, frozen_dtype=dtype).train(training)
    half = getattr(torch, dtype)
    for own, parameter in model.named_parameters():
        frozen = not parameter.requires_grad
        held = frozen and ('qkv' in own or 'proj' in own or 'ffn' in own)
        assert parameter.dtype == (half if held else torch.float32), own
    x = images(2, 3, 32, 32)
    out = model(x)[0]
    exact = build(name).train(training)(x)[0]
    assert out.dtype == torch.float32
    error = (out - exact).norm() / exact.norm()
    assert 0 < error < (0.02 if dtype == 'bfloat16' else 0.003)
    if name == 'bias':  # the same whether autocast is on already; and trained biases get gradients
        with torch.autocast('cpu', half):
            torch.testing.assert_close(model(x)[0], out, rtol=0, atol=0)
        out.square().sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_frozen_dtype_loads_and_trains_like_autocast():
    """Weights cast once are weights cast in every step; the optimizer's state stays float32."""
    x = images(2, 3, 32, 32)
    results = []
    for options in ({}, dict(frozen_dtype='bfloat16')):
        model = tiny_vit(prompt=DEEP, **options)
        model.load_state_dict(build('deep').state_dict())
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            with torch.autocast('cpu', torch.bfloat16):
                out = model.train()(x)[0]
            out.square().mean().backward()
            optimizer.step()
        state = optimizer.state_dict()['state'][0]
        assert state['exp_avg'].dtype == model.prompt.tokens.dtype == torch.float32
        results.append((out.detach(), model.prompt.tokens.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_frozen_dtype_halves_what_autocast_keeps():
    """Autocast keeps copies of the weights for backward; held in half they are their own copies."""
    x = images(1, 3, 32, 32)
    kept = []
    for options in ({}, dict(frozen_dtype='bfloat16')):
        model = build('deep', **options).train()
        with torch.autocast('cpu', torch.bfloat16):
            kept.append(kept_bytes(model, x))
    weights = sum(p.numel() for n, p in model.named_parameters() if 'layers' in n and p.ndim == 2)
    assert kept[0] - kept[1] == pytest.approx(weights * 2, rel=0.05)  # each is kept once


@pytest.mark.parametrize(('options', 'told'), [
    (dict(memory='low'), "memory must be 'default' or 'lean', found 'low'"),
    (dict(memory='lean', with_cp=True), "memory='lean' and with_cp=True exclude each other"),
    (dict(frozen_dtype='int8'), r"frozen_dtype must be 'bfloat16', .* found 'int8'"),
    (dict(frozen_dtype='bfloat16', trainable=['.*']), 'leaves no weight'),
])
def test_bad_options(options, told):
    with pytest.raises(ValueError, match=told):
        randomise(tiny_vit(prompt=DEEP, **options))
