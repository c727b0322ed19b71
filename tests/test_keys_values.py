"""Prompts as keys and values: equal to prompts as tokens, and never out of date at test time."""

import copy

import pytest
import torch
from test_prompted_vit import LAYERS, VARIANTS, build
from utils import images, randomise, tiny_vit

from vpt_dense.backbones.attention import attention

#: Variant -> blocks whose outputs at prompt positions are thrown away.
DISCARDED = {
    'shallow': [],
    'deep': [0, 1, 2, 3],
    'deep-bias': [0, 1, 2, 3],
    'dropout': [0, 1, 2, 3],
    'shared': [0, 1, 2, 3],
    'project': [0, 1, 2, 3],
    'first-2': [0],
    'first-2-removed': [0, 1],
    'last-2': [2, 3],
    'shallow-middle': [],
}
prompted = pytest.mark.parametrize('name', DISCARDED)


def test_every_prompted_variant_is_here():
    assert set(DISCARDED) == {name for name, (prompt, _, _) in VARIANTS.items() if prompt}


@prompted
def test_the_config_decides(name):
    model = build(name)
    layers = DISCARDED[name]
    assert model.keys_values_layers == layers
    told = f'prompts as keys and values in layers {layers}' if layers else 'prompts as tokens'
    assert told in repr(model)
    assert build(name, prompts_as='tokens').keys_values_layers == []
    with pytest.raises(ValueError, match="prompts_as must be .* found 'kv'"):
        build(name, prompts_as='kv')


def both_ways(name, size=(32, 40), training=True, autocast=None, dtype=torch.float64, **kwargs):
    """Outputs and gradients of one model with prompts as keys and values and as tokens."""
    results = []
    for prompts_as in ('keys_values', 'tokens'):
        model = build(name, prompts_as=prompts_as, **kwargs).to(dtype).train(training)
        model.prompt.dropout = 0.0  # masks would be drawn for both, but in another order
        with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
            outs = model(images(2, 3, *size, dtype=dtype))
        sum(out.double().pow(2).sum() for out in outs).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append(([out.detach() for out in outs], grads))
    return results


@prompted
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
@pytest.mark.parametrize('training', [False, True])
def test_equal_to_tokens(name, out_type, recompute, training):
    (outs, grads), (plain, plain_grads) = both_ways(
        name, out_type=out_type, out_indices=(0, 1, -1), training=training,
        layer_scale_init_value=0.3, **recompute,
    )
    torch.testing.assert_close(outs, plain, rtol=1e-12, atol=1e-12)
    assert grads.keys() == plain_grads.keys()
    torch.testing.assert_close(grads, plain_grads, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('name', ['deep', 'project', 'first-2-removed'])
def test_equal_to_tokens_in_bfloat16(name):
    (outs, grads), (plain, plain_grads) = both_ways(
        name, autocast=torch.bfloat16, dtype=torch.float32)
    exact = both_ways(name)[1][0]
    for out, other, truth in zip(outs, plain, exact, strict=True):
        error = (other - truth).norm() / truth.norm()  # what the precision costs anyway
        assert (out - truth).norm() / truth.norm() < 1.5 * error < 0.1
    for grad, other in zip(grads.values(), plain_grads.values(), strict=True):
        assert torch.cosine_similarity(grad.flatten(), other.flatten(), dim=0) > 0.999


def test_dropout_draws_masks_for_every_sample():
    model = build('dropout').train()
    x = images(1, 3, 32, 32).expand(2, -1, -1, -1)
    one, other = model(x)[0]
    assert not torch.allclose(one, other)
    model.prompt.dropout = 0.0
    one, other = model(x)[0]
    torch.testing.assert_close(one, other)


def test_only_what_is_read_is_computed():
    model = build('deep', out_type='cls_token').eval()
    model.layers[-1].register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    model.layers[-2].register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    shapes = []
    model(images(2, 3, 32, 32))
    assert shapes == [(2, 17, 64), (2, 1, 64)]  # 16 patches and cls; no prompts


def test_no_graph_before_the_first_prompted_block():
    kept = []
    model = build('last-2').train()
    for layer in model.layers:
        layer.register_forward_hook(lambda _, args, out: kept.append(out.requires_grad))
    model(images(1, 3, 32, 32))
    assert kept == [False, False, True, True]


CHANGES = {
    'load_state_dict': lambda model, other: model.load_state_dict(other.state_dict()),
    'optimizer step': lambda model, other: step(model),
    'copy_': lambda model, other: change(model.prompt.tokens),
    'frozen weight': lambda model, other: change(model.layers[1].attn.qkv.weight),
    'frozen norm': lambda model, other: change(model.layers[1].ln1.bias),
    'half and back': lambda model, other: model.bfloat16().float(),
    'double and a change': lambda model, other: (model.double(), change(model.prompt.tokens),
                                                 model.float()),
    'a swap of .data, then eval()': lambda model, other: swap(model, other),
}


def change(parameter):
    with torch.no_grad():
        parameter.mul_(-1)


def step(model):
    model.train()(images(1, 3, 32, 32))[0].square().sum().backward()
    torch.optim.SGD([model.prompt.tokens], lr=1.0).step()
    model.eval()


def swap(model, other):
    """What mmengine's EMAHook does before a validation, which then calls eval()."""
    for own, new in zip(model.parameters(), other.parameters(), strict=True):
        own.data.copy_(new.data)
    model.eval()


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('name', CHANGES)
def test_cache_is_never_stale(name, mode):
    x = images(2, 3, 32, 32)
    model = build('project').eval()
    with mode():
        before = model(x)[0]
        assert len(model._keys_values) == LAYERS
        torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
    CHANGES[name](model, randomise(build('project'), seed=5))
    expected = copy.deepcopy(model)
    expected._keys_values.clear()
    with mode():
        after = model(x)[0]
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, expected(x)[0], rtol=0, atol=0)


def test_cache_knows_autocast_and_is_left_out_of_training():
    x = images(2, 3, 32, 32)
    model = build('deep').eval()
    with torch.no_grad():
        exact = model(x)[0]
        with torch.autocast('cpu', torch.bfloat16):
            model(x)
            assert model._keys_values[1][1][0].dtype == torch.bfloat16
        torch.testing.assert_close(model(x)[0], exact, rtol=0, atol=0)
    model(x)[0].sum().backward()  # with a graph in spite of the filled cache
    assert model.prompt.tokens.grad.abs().sum() > 0
    model.train()
    assert not model._keys_values
    assert not any('keys_values' in key for key in model.state_dict())


def test_cached_values_are_computed_once():
    model = build('deep').eval()
    calls = []
    model.prompt.register_forward_pre_hook(lambda _, args: calls.append(args[1]))
    with torch.inference_mode():
        for _ in range(3):
            model(images(2, 3, 32, 32))
    assert calls == list(range(LAYERS))


def test_dropout_of_an_adapter_is_not_cached():
    """Masks of adapters in train mode are drawn for every batch, whatever the prompt's mode."""
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
    lora = dict(type='vpt_dense.LoRA', rank=2, dropout=0.5)
    model = randomise(tiny_vit(prompt=prompt, adapters=[lora])).eval()
    calls = []
    model.prompt.register_forward_pre_hook(lambda _, args: calls.append(args[1]))
    with torch.no_grad():
        model(images(1, 3, 32, 32))
        model.adapters.train()
        for _ in range(2):
            model(images(1, 3, 32, 32))
    assert calls == [*range(LAYERS)] * 3


@pytest.mark.parametrize('backend', [
    'aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('memory', ['default', 'lean'])
def test_compiled(backend, training, memory):
    x = images(2, 3, 32, 32)
    results = []
    for compiled in (False, True):
        model = build('deep', memory=memory).train(training)
        run = torch.compile(model, backend=backend) if compiled else model
        out = run(x)[0]
        out.square().sum().backward()
        results.append((out.detach(), model.prompt.tokens.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_wrapped_projection_counts():
    """A layer that stands in for qkv (a low-rank update, say) is asked, not its weight."""

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    outs = []
    for prompts_as in ('keys_values', 'tokens'):
        model = randomise(tiny_vit(
            prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True),
            prompts_as=prompts_as)).double().eval()
        for layer in model.layers:
            layer.attn.qkv.__class__ = Doubled
        outs.append(model(images(2, 3, 32, 32, dtype=torch.float64))[0])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('length', [20, 600])
def test_attention_in_half_precision(dtype, length):
    """The plain operations that replace PyTorch's kernel on a CPU are as exact as it is."""
    query, key, value = (images(2, 3, n, 16, seed=n).to(dtype).requires_grad_()
                         for n in (20, length, length + 1))
    value = value[:, :, :length]
    results = []
    for function, kind in (
        (attention, dtype), (torch.nn.functional.scaled_dot_product_attention, dtype),
        (torch.nn.functional.scaled_dot_product_attention, torch.float64),
    ):
        inputs = [t.detach().to(kind).requires_grad_() for t in (query, key, value)]
        with torch.autocast('cpu', dtype, enabled=kind == dtype):
            out = function(*inputs)
        assert out.dtype == kind
        out.square().sum().backward()
        results.append([out.detach().double(), *(t.grad.double() for t in inputs)])
    for own, other, exact in zip(*results, strict=True):
        error = (other - exact).norm() / exact.norm()
        assert (own - exact).norm() / exact.norm() < 2 * error < 0.1


def test_every_block_uses_it():
    for name in ('full', 'deep'):
        for layer in build(name).layers:
            assert layer.attn.scaled_dot_product_attention is attention


def test_attention_drops_weights():
    ones = torch.ones(1, 1, 50, 8, dtype=torch.bfloat16)
    out = attention(ones, ones, ones, dropout_p=0.5)
    assert 0.8 < out.float().mean() < 1.2 and out.float().std() > 0.05
    assert torch.equal(attention(ones, ones, ones), ones)
