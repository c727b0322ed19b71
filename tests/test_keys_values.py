"""Prompts as keys and values: equal to prompts as tokens, whatever changes between forwards."""

import copy
import threading

import pytest
import torch
import torch.nn.utils.parametrize
import torch.nn.utils.prune
from methods import ROWS, build_at_start
from test_prompted_vit import NAMES, build
from utils import images, randomise, tiny_vit

from vpt_dense.backbones import encoder_layer
from vpt_dense.backbones.attention import attention, one_product

#: Variant -> blocks whose outputs at prompt positions are thrown away.
DISCARDED = {
    'shallow': [],
    'deep': [0, 1, 2, 3],
    'prompt-fixed': [0, 1, 2, 3],
    'deep-bias': [0, 1, 2, 3],
    'deep-lora': [0, 1, 2, 3],
    'deep, dropout': [0, 1, 2, 3],
    'deep, shared': [0, 1, 2, 3],
    'deep, projected': [0, 1, 2, 3],
    'deep, first 2': [0],
    'deep, first 2, removed': [0, 1],
    'da-vpt-plus': [0, 1, 2, 3],
    'deep, last 2': [2, 3],
    'shallow, in the middle': [],
}
prompted = pytest.mark.parametrize('name', DISCARDED)


def test_every_prompted_variant_is_here():
    assert set(DISCARDED) == {name for name in NAMES if 'prompt' in ROWS[name].tuning}


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
        loss = sum(out.double().pow(2).sum() for out in outs)
        if loss.requires_grad:
            loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results.append(([out.detach() for out in outs], grads))
    return results


@prompted
@pytest.mark.parametrize('out_type', ['featmap', 'cls_token', 'raw', 'avg_featmap'])
@pytest.mark.parametrize(('training', 'recompute'), [  # recomputed is in training alone
    (False, {}), (True, {}), (True, dict(with_cp=True)), (True, dict(memory='lean')),
    *(pytest.param(False, each, marks=pytest.mark.slow)
      for each in (dict(with_cp=True), dict(memory='lean')))], ids=str)
def test_equal_to_tokens(name, out_type, training, recompute):
    (outs, grads), (plain, plain_grads) = both_ways(
        name, out_type=out_type, out_indices=(0, 1, -1), training=training,
        layer_scale_init_value=0.3, **recompute,
    )
    torch.testing.assert_close(outs, plain, rtol=1e-12, atol=1e-12)
    assert grads.keys() == plain_grads.keys()
    torch.testing.assert_close(grads, plain_grads, rtol=1e-11, atol=1e-11)


def with_one_product(monkeypatch):
    """Prompts go through one product with each image, as few prompts do on a GPU."""
    monkeypatch.setattr(encoder_layer, 'one_product', lambda *_: True)


@prompted
@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
def test_equal_to_tokens_in_one_product(monkeypatch, name, recompute):
    with_one_product(monkeypatch)
    test_equal_to_tokens(name, 'featmap', True, recompute)


def test_few_prompts_make_one_product_on_a_gpu():
    few, many = torch.zeros(1, 4, 8, device='meta'), torch.zeros(1, 5, 8, device='meta')
    x = torch.zeros(2, 32, 8, device='meta')
    assert one_product(x, few) and not one_product(x, many)
    assert not one_product(torch.zeros(2, 32, 8), few)


@pytest.mark.parametrize('one_product', [False, True])
@pytest.mark.parametrize('name', ['deep', 'deep, projected', 'deep, first 2, removed'])
def test_equal_to_tokens_in_bfloat16(monkeypatch, name, one_product):
    if one_product:
        with_one_product(monkeypatch)
    (outs, grads), (plain, plain_grads) = both_ways(
        name, autocast=torch.bfloat16, dtype=torch.float32)
    exact = both_ways(name)[1][0]
    for out, other, truth in zip(outs, plain, exact, strict=True):
        error = (other - truth).norm() / truth.norm()  # what the precision costs anyway
        assert (out - truth).norm() / truth.norm() < 1.5 * error < 0.1
    for grad, other in zip(grads.values(), plain_grads.values(), strict=True):
        assert torch.cosine_similarity(grad.flatten(), other.flatten(), dim=0) > 0.999


def test_dropout_draws_masks_for_every_sample():
    model = build('deep, dropout').train()
    x = images(1, 3, 32, 32).expand(2, -1, -1, -1)
    one, other = model(x)[0]
    assert not torch.allclose(one, other)
    model.prompt.dropout = 0.0
    one, other = model(x)[0]
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize('watched', [None, 'layers.3', 'layers.3.ffn', 'ln1'])
def test_only_what_is_read_is_computed(watched):
    """A classifier reads the class token of the last block; a hook there reads all of them."""
    model = build('deep', out_type='cls_token').eval()
    lengths = []
    for layer in model.layers[-2:]:  # not a hook
        run = layer.ln2.forward
        layer.ln2.forward = lambda x, run=run: lengths.append(x.shape[1]) or run(x)
    alone = model(images(2, 3, 32, 32))[0]
    if watched is not None:
        model.get_submodule(watched).register_forward_hook(lambda *_: None)
        lengths.clear()
        torch.testing.assert_close(model(images(2, 3, 32, 32))[0], alone)
    assert lengths == [17, 1 if watched is None else 17]  # 16 patches and cls; no prompts


def test_no_graph_before_the_first_prompted_block():
    kept = []
    model = build('deep, last 2').train()
    for layer in model.layers:
        layer.register_forward_hook(lambda _, args, out: kept.append(out.requires_grad))
    model(images(1, 3, 32, 32))
    assert kept == [False, False, True, True]


def scale(by):
    def hook(module, args, out):
        return by * out
    return hook


class Scaled(torch.nn.Module):
    """A parametrization with a buffer of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer('by', torch.tensor(2.0))

    def forward(self, weight):
        return self.by * weight


@torch.no_grad()
def seen(model):
    """Let the model run as it is, as a test in between does."""
    model(X)


def step(model, **kwargs):
    model(X)[0].square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, **kwargs).step()


def prune(model):
    torch.nn.utils.prune.random_unstructured(model.layers[1].attn.qkv, 'weight', 0.5)
    seen(model)
    model.layers[1].attn.qkv.weight_mask.data.copy_(1 - model.layers[1].attn.qkv.weight_mask)


def parametrize(model):
    torch.nn.utils.parametrize.register_parametrization(model.prompt, 'tokens', Scaled())
    seen(model)
    model.prompt.parametrizations.tokens[0].by.data.fill_(-1)


def hook_on_and_off(model):
    handle = model.layers[1].attn.qkv.register_forward_hook(scale(3))
    seen(model)
    handle.remove()
    model.layers[2].ln1.register_forward_pre_hook(lambda module, args: (args[0] ** 2,))


def replace_at_the_same_address(model):
    own = model.prompt.tokens.detach()
    model.prompt.tokens = torch.nn.Parameter(own.neg_())


X = images(2, 3, 32, 32, dtype=torch.float64)
#: What changes between two forwards, and leaves no trace where one might look for it.
CHANGES = {
    'load_state_dict': lambda model: model.load_state_dict(
        {n: -t for n, t in model.state_dict().items()}),
    'optimizer step': step,
    'fused optimizer': lambda model: step(model, fused=True),
    'in inference mode': lambda model: torch.inference_mode()(model.prompt.tokens.data.mul_)(-1),
    'p.data.copy_': lambda model: model.prompt.tokens.data.copy_(-model.prompt.tokens),
    'frozen p.data.mul_': lambda model: model.layers[1].attn.qkv.weight.data.mul_(-1),
    'norm p.data.add_': lambda model: model.layers[1].ln1.bias.data.add_(1),
    'another parameter': replace_at_the_same_address,
    'pruning': prune,
    'parametrization': parametrize,
    'hook on the norm': lambda model: model.layers[1].ln1.register_forward_hook(scale(2)),
    'hook on qkv': lambda model: model.layers[1].attn.qkv.register_forward_hook(scale(2)),
    'hook on and off': hook_on_and_off,
    'eps': lambda model: setattr(model.layers[1].ln1, 'eps', 0.5),
    'scale of LoRA': lambda model: setattr(model.adapters[0].updates[1], 'scale', 5.0),
}


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('change', CHANGES)
def test_nothing_is_kept_between_two_forwards(change, mode):
    """Whatever has changed, prompts as keys and values are what they are as tokens."""
    lora = [dict(type='vpt_dense.LoRA', rank=2)] if 'LoRA' in change else None
    before, after = [], []
    for prompts_as in ('keys_values', 'tokens'):
        prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
        model = tiny_vit(
            prompt=prompt, adapters=lora, prompts_as=prompts_as, trainable=['prompt', 'adapters']
            if lora else ['prompt'])
        model = randomise(model).double().eval()
        with mode():
            before.append(model(X)[0])
        torch.manual_seed(0)
        CHANGES[change](model)
        with mode():
            after.append(model(X)[0])
    torch.testing.assert_close(*before, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*after, rtol=1e-12, atol=1e-12)
    assert (after[0] - before[0]).abs().max() > 1e-4


@pytest.mark.parametrize('name', [
    'lora', 'lora-qv', 'dora', 'dora-qv', 'pissa-qv', 'soma', 'fact-tt', 'fact-tk', 'vera', 'glora',
    'peft', 'peft-lora'])
@pytest.mark.parametrize('family', ['vit', 'swin', 'dinov3', 'eva02-timm'])
def test_keys_and_values_of_prompts_pass_what_adapters_do_to_their_layer(family, name):
    if 'peft' in name:
        pytest.importorskip('peft')
    tuning = dict(
        ROWS[name].tuning, prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True))
    results = []
    for prompts_as in ('keys_values', 'tokens'):
        model = randomise(build_at_start(tuning, family, 'seg', prompts_as=prompts_as))
        for update in model.adapters.parameters():
            update.data += 0.2
        model = model.double().eval()
        outs = model(images(2, 3, 32, 32, dtype=torch.float64))
        sum(out.square().sum() for out in outs).backward()
        results.append((outs, [p.grad for p in model.parameters() if p.requires_grad]))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_functional_call_and_vmap():
    model = build('deep, projected').double().eval()
    others = torch.stack([model.prompt.tokens.detach() * k for k in (1, -1, 3)])

    def run(tokens):
        return torch.func.functional_call(model, {'prompt.tokens': tokens}, X)[0]

    with torch.no_grad():
        first = model(X)[0]
        found = [run(tokens) for tokens in others]
        together = torch.func.vmap(run)(others)
        torch.testing.assert_close(model(X)[0], first, rtol=0, atol=0)
        for tokens, out in zip(others, found, strict=True):
            model.prompt.tokens.copy_(tokens)
            torch.testing.assert_close(out, model(X)[0], rtol=0, atol=0)
    torch.testing.assert_close(together, torch.stack(found), rtol=1e-12, atol=1e-12)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_thread_in_autocast_does_not_touch_another():
    """The second thread runs a whole forward while the first one is inside of its own."""
    model = build('deep').eval()
    x = X.float()

    def forward(autocast):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
            return model(x)[0]

    def meanwhile(module, args):
        if threading.current_thread() is threading.main_thread():
            other = threading.Thread(target=lambda: inside.append(forward(True)))
            other.start()
            other.join()

    exact, half = forward(False), forward(True)
    model.layers[1].register_forward_pre_hook(meanwhile)
    inside = []
    for _ in range(2):
        torch.testing.assert_close(forward(False), exact, rtol=0, atol=0)
        torch.testing.assert_close(inside.pop(), half, rtol=0, atol=0)
    assert (half - exact).abs().max() > 1e-4


def test_an_average_of_weights_is_what_is_validated(mmseg_scope):
    """mmengine's EMAHook swaps .data before a validation and back after it."""
    model = build('deep').double().eval()
    averaged = randomise(copy.deepcopy(model), seed=5)
    with torch.no_grad():
        for _ in range(2):
            for source in (averaged, model):
                torch.testing.assert_close(
                    shown(model, source), copy.deepcopy(source)(X)[0], rtol=0, atol=0)


def shown(model, source):
    kept = [p.detach().clone() for p in model.parameters()]
    for own, new in zip(model.parameters(), source.parameters(), strict=True):
        own.data.copy_(new.data)
    out = model(X)[0]
    for own, old in zip(model.parameters(), kept, strict=True):
        own.data.copy_(old)
    return out


@pytest.mark.parametrize(('memory', 'training', 'backend'), [
    pytest.param(memory, training, backend, marks=(
        pytest.mark.long if not training or backend == 'inductor' else
        () if (memory, training, backend) == ('lean', True, 'aot_eager') else pytest.mark.slow))
    for memory in ('default', 'lean') for training in (False, True)
    for backend in ('aot_eager', 'inductor')])
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
        # Or than two roundings: old kernels compute the gradients of few keys in float32.
        limit = max(2 * error, 2 * torch.finfo(dtype).eps)
        assert (own - exact).norm() / exact.norm() < limit < 0.1


def test_every_block_uses_it():
    for name in ('full', 'deep'):
        for layer in build(name).layers:
            assert layer.attn.scaled_dot_product_attention is attention


def test_attention_drops_weights():
    ones = torch.ones(1, 1, 50, 8, dtype=torch.bfloat16)
    out = attention(ones, ones, ones, dropout_p=0.5)
    assert 0.8 < out.float().mean() < 1.2 and out.float().std() > 0.05
    assert torch.equal(attention(ones, ones, ones), ones)
