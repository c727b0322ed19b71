"""Prompts as keys and values, adaptive, gated and residual prompts, against plain formulas."""

import copy
import math

import pytest
import torch
from methods import BACKBONES, KEPT
from mmengine.registry import MODELS
from torch import nn
from utils import images, randomise, tiny_vit

from vpt_dense.prompts import (
    E2VPTPrompt,
    GatedPrompt,
    ResidualPrompt,
    Site,
    TokenLayout,
    VAPTPrompt,
)
from vpt_dense.prompts.fourier_prompt import real_transform

D, LAYERS, HEADS, P = 64, 4, 4, 5


def prompt(kind, **kwargs):
    return dict(prompt=dict(type=f'vpt_dense.{kind}', num_tokens=P, **kwargs))


def cvpt(**kwargs):
    return dict(adapters=[dict(type='vpt_dense.CVPT', num_tokens=P, **{'dropout': 0.0, **kwargs})])


#: Name -> tuning, without dropout.
METHODS = {
    'prefix': prompt('PrefixPrompt'),
    'prefix-middle': prompt('PrefixPrompt', layer_range=(1, -1)),
    'e2vpt': prompt('E2VPTPrompt', num_kv_tokens=3),
    'e2vpt-two': prompt('E2VPTPrompt', num_kv_tokens=3, shared_kv=False),
    'e2vpt-last-2': prompt('E2VPTPrompt', num_kv_tokens=3, layer_range=(-2, None)),
    'vfpt': prompt('FourierPrompt', fourier_share=0.6),
    'vfpt-all': prompt('FourierPrompt', fourier_share=1, layer_range=(1, None), project_dims=7),
    'pruned': prompt('E2VPTPrompt', num_kv_tokens=3, kept=KEPT),
    'pruned-last-2': prompt(
        'E2VPTPrompt', num_kv_tokens=3, kept=KEPT[2:], layer_range=(-2, None)),
    'gated': prompt('GatedPrompt'),
    'residual': prompt('ResidualPrompt'),
    'residual-last-3': prompt('ResidualPrompt', layer_range=(1, None)),
    'lspt_like': prompt('LSPTLikePrompt', hidden_dims=6),
    'ivpt_like': prompt('IVPTLikePrompt', salient=0.2),
    'ivpt_like-middle': prompt(
        'IVPTLikePrompt', salient=1, layer_range=(1, 3), keep_outputs=False),
    'vapt': prompt('VAPTPrompt', grid=(4, 4), dropout=0.0),
    'vapt-3': prompt('VAPTPrompt', grid=(5, 3), kernel_size=3, hidden_dims=2, dropout=0.0),
    'cvpt': cvpt(),
}
method = pytest.mark.parametrize('name', METHODS)


def build(name, **kwargs):
    """A tiny ViT in float64 with values like those of training everywhere."""
    model = randomise(tiny_vit(**METHODS[name], **kwargs)).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith('attn.qkv.weight'):
                parameter.mul_(3)  # attention is far from even
    return model


# --- the formulas, block by block, head by head -----------------------------------------------


def attention(layer, asking, asked, further=None):
    """softmax(q k / sqrt(h)) v, a head at a time; ``further``: keys and values (heads, M, h)."""
    weight, bias = layer.attn.qkv.weight, layer.attn.qkv.bias
    if bias is None:
        bias = torch.zeros(3 * D).double()
    size, outs = D // HEADS, []
    for head in range(HEADS):
        q, k, v = (
            torch.einsum('bnc,hc->bnh', tokens, weight[start : start + size])
            + bias[start : start + size]
            for tokens, start in zip(
                (asking, asked, asked), (part * D + head * size for part in range(3)),
                strict=True)
        )
        if further is not None:
            k, v = (torch.cat((own, more[head].expand(len(own), -1, -1)), dim=1)
                    for own, more in zip((k, v), further, strict=True))
        weights = torch.exp(torch.einsum('bnh,bmh->bnm', q, k) / math.sqrt(size))
        outs.append(torch.einsum('bnm,bmh->bnh', weights / weights.sum(-1, keepdim=True), v))
    return torch.cat(outs, dim=-1) @ layer.attn.proj.weight.T + layer.attn.proj.bias


def run(layer, x, prompts=None, further=None, cross=None):
    """A block: what it puts out at prompts (None: there are none) and at the other tokens."""
    count = 0 if prompts is None else prompts.shape[1]
    if count:
        x = torch.cat((prompts.expand(len(x), -1, -1), x), dim=1)
    normed = layer.ln1(x)
    x = x + attention(layer, normed, normed, further)
    if cross is not None:
        x = x + attention(layer, x, cross.expand(len(x), -1, -1))
    x = layer.ffn(layer.ln2(x), identity=x)
    return x[:, :count], x[:, count:]


def by_prefix(model, x, grid):
    part = model.prompt
    for i, layer in enumerate(model.layers):
        inside = part.start <= i < part.stop
        row = i - part.start
        x = run(layer, x, further=(part.keys[row], part.values[row]) if inside else None)[1]
        yield x


def by_e2vpt(model, x, grid):
    part = model.prompt
    values = part.keys if part.values is None else part.values
    for i, layer in enumerate(model.layers):
        if i >= part.start:
            row = i - part.start
            x = run(layer, x, part.tokens[row : row + 1], (part.keys[row], values[row]))[1]
        else:
            x = run(layer, x)[1]
        yield x


def by_waves(model, x, grid):
    part, number = model.prompt, model.prompt.project[1].number
    rows, columns = torch.arange(number).double(), torch.arange(D).double()
    for i, layer in enumerate(model.layers):
        if i < part.start:
            x = run(layer, x)[1]
        else:
            tokens = part.project[0](part.tokens[i - part.start])
            made = [
                sum((tokens[n] * torch.cos(2 * math.pi * (u * n / number + v * columns / D))).sum()
                    for n in range(number))
                for u in rows for v in columns]
            made = torch.stack(made).unflatten(0, (number, D))
            x = run(layer, x, torch.cat((made, tokens[number:]))[None])[1]
        yield x


def by_pruned(model, x, grid):
    part, pieces = model.prompt, list(model.prompt.tokens)
    for i, layer in enumerate(model.layers):
        if i < part.start:
            x = run(layer, x)[1]
        else:
            tokens = []
            for bits in part.kept[i - part.start]:
                if bits:
                    token = [pieces.pop(0) if bit == '1' else torch.zeros(D // 16).double()
                             for bit in reversed(f'{bits:016b}')]
                    tokens.append(torch.cat(token))
            keys = part.keys[i - part.start]
            x = run(layer, x, torch.stack(tokens)[None], (keys, keys))[1]
        yield x
    assert not pieces


def by_gates(model, x, grid):
    entering = model.prompt.tokens.expand(len(x), -1, -1)
    for i, layer in enumerate(model.layers):
        left, x = run(layer, x, entering)
        if i < LAYERS - 1:
            gate = 1 / (1 + torch.exp(-model.prompt.gates[i]))
            entering = gate * left + (1 - gate) * entering
        yield x


def by_residuals(model, x, grid):
    part = model.prompt
    for i, layer in enumerate(model.layers):
        row = i - part.start
        if row < 0:
            x = run(layer, x)[1]
        else:
            tokens = part.tokens[row]
            if row > 0:
                mix = part.mixes[row - 1]
                tokens = torch.stack([
                    tokens[t] + mix.bias[t]
                    + sum(mix.weight[t, s] * part.tokens[row - 1, s] for s in range(P))
                    for t in range(P)
                ])
            x = run(layer, x, tokens[None])[1]
        yield x


def by_memory(model, x, grid):
    """Gates of the LSTM one by one: input, forget, cell, output, as PyTorch orders its rows."""
    part, r, left = model.prompt, 6, None
    entering = part.tokens.expand(len(x), -1, -1)
    hidden = cell = torch.zeros(len(x), P, r).double()
    for i, layer in enumerate(model.layers):
        if i > 0:
            seen = (left + x[:, 1:].mean(1)[:, None]) @ part.down.weight.T
            memory = part.memory
            gates = [
                seen @ memory.weight_ih[rows].T + memory.bias_ih[rows]
                + hidden @ memory.weight_hh[rows].T + memory.bias_hh[rows]
                for rows in (slice(n * r, (n + 1) * r) for n in range(4))]
            taken, kept, put = (1 / (1 + torch.exp(-gates[n])) for n in (0, 1, 3))
            cell = kept * cell + taken * torch.tanh(gates[2])
            hidden = put * torch.tanh(cell)
            entering = left + hidden @ part.up.weight.T
        left, x = run(layer, x, entering)
        yield x


def by_links(model, x, grid):
    part = model.prompt
    for i, layer in enumerate(model.layers):
        if not part.start <= i < part.stop:
            x = run(layer, x)[1]
            yield x
            continue
        row = i - part.start
        own = part.tokens[row]
        if row > 0:
            before = part.tokens[row - 1]
            scores = torch.exp(torch.einsum('pc,qc->pq', own, before) / math.sqrt(D))
            own = own + part.links[row - 1] * (scores / scores.sum(1, keepdim=True)) @ before
        images = []
        for tokens in x:
            cosines = torch.stack([
                torch.stack([t @ p / t.norm() / p.norm() for p in own]).max() for t in tokens[1:]])
            number = math.ceil(part.salient * len(cosines))
            chosen = {int(n) + 1 for n in cosines.argsort(descending=True)[:number]}
            rows = []
            for n, token in enumerate(tokens):
                if n in chosen:
                    scores = torch.exp(own @ token / math.sqrt(D))
                    token = token + part.boosts[row] * (scores / scores.sum()) @ own
                rows.append(token)
            images.append(torch.stack(rows))
        x = run(layer, torch.stack(images), own[None])[1]
        yield x


def by_vapt(model, x, grid):
    part = model.prompt
    for i, layer in enumerate(model.layers):
        tokens = part.tokens if i == 0 else adaptive(part, i - 1, x[:, 1:], *grid)
        x = run(layer, x, tokens)[1]
        yield x


def adaptive(part, row, patches, height, width):
    """Prompts (B, P, C) of patches (B, h * w, C), place by place."""
    norm, kernel, mix = part.norms[row], part.kernels[row][0, 0], part.mixes[row]
    mean = patches.mean(-1, keepdim=True)
    spread = (patches - mean).square().mean(-1, keepdim=True)
    patches = (patches - mean) / torch.sqrt(spread + 1e-6) * norm.weight + norm.bias
    size = len(kernel)
    maps = {
        (r, c): sum(
            kernel[a, b] * patches[:, (r + a) * width + c + b]
            for a in range(size) for b in range(size))
        for r in range(height - size + 1) for c in range(width - size + 1)
    }
    rows, columns = part.map_size

    def bin_of(index, bins, length):
        return range(index * length // bins, -(-(index + 1) * length // bins))

    places = []
    for r in range(rows):
        for c in range(columns):
            inside = [maps[a, b] for a in bin_of(r, rows, height - size + 1)
                      for b in bin_of(c, columns, width - size + 1)]
            places.append(sum(inside) / len(inside))
    z = torch.stack([
        sum(mix.weight[t, k] * place for k, place in enumerate(places)) + mix.bias[t]
        for t in range(P)
    ], dim=1)
    return z + (z @ part.down.weight.T).clamp(min=0) @ part.up.weight.T


def by_cvpt(model, x, grid):
    for i, layer in enumerate(model.layers):
        x = run(layer, x, cross=model.adapters[0].prompts[0][i : i + 1])[1]
        yield x


FORMULAS = {
    'prefix': by_prefix, 'e2vpt': by_e2vpt, 'vfpt': by_waves, 'pruned': by_pruned,
    'gated': by_gates, 'residual': by_residuals, 'vapt': by_vapt, 'cvpt': by_cvpt,
    'lspt_like': by_memory, 'ivpt_like': by_links,
}  # fmt: skip


def expected(name, model, x):
    """What blocks 1 and 3 put out, (B, 1 + N, C), by the formula; the final norm on the last."""
    plain = randomise(tiny_vit()).double()
    plain.load_state_dict(
        {n: p for n, p in model.state_dict().items() if n.split('.')[0] not in
         ('prompt', 'adapters')})
    entering = []
    plain.layers[0].register_forward_pre_hook(lambda _, args: entering.append(args[0].detach()))
    plain(x)
    grid = [-(-n // 8) for n in x.shape[2:]]
    outs = list(FORMULAS[name.split('-')[0]](model, entering[0], grid))
    return outs[1], model.ln1(outs[3])


@method
@pytest.mark.parametrize(('size', 'options'), [
    pytest.param(size, options, marks=() if not options or size == (24, 72) else pytest.mark.slow)
    for size in ((32, 32), (48, 24), (24, 72)) for options in (
        {}, dict(prompts_as='tokens'), dict(memory='lean'), dict(with_cp=True))], ids=str)
def test_formula(name, size, options):
    x = images(2, 3, *size, dtype=torch.float64)
    model = build(name, out_type='raw', out_indices=[1, 3], **options).train()
    wanted = expected(name, model, x)
    wanted_grads = grads(model, wanted)
    outs = model(x)
    torch.testing.assert_close(outs, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads(model, outs), wanted_grads, rtol=1e-9, atol=1e-9)
    maps = build(name, out_type='featmap', out_indices=[1, 3], **options).eval()(x)
    for tokens, features in zip(wanted, maps, strict=True):
        torch.testing.assert_close(
            features.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=1e-10, atol=1e-10)
    vectors = build(name, out_type='cls_token', **options).eval()(x)[0]
    torch.testing.assert_close(vectors, wanted[1][:, 0], rtol=1e-10, atol=1e-10)


def grads(model, outs):
    model.zero_grad()
    sum(out.square().sum() for out in outs).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}


@method
def test_nothing_is_kept_between_two_forwards(name):
    first, second = (images(2, 3, 32, 40, seed=i, dtype=torch.float64) for i in (0, 1))
    model = build(name).eval()
    wanted = [model(x)[0].detach() for x in (first, second)]
    with torch.no_grad():
        outs = [model(x)[0] for x in (first, second)]
        torch.testing.assert_close(outs, wanted, rtol=1e-12, atol=1e-12)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(-1)  # unseen by its count of changes
        changed = model(first)[0]
    assert (changed - wanted[0]).abs().max() > 1e-3
    torch.testing.assert_close(changed, model(first)[0].detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(('name', 'layers'), [
    ('prefix', [0, 1, 2, 3]), ('prefix-middle', [1, 2]), ('e2vpt', [0, 1, 2, 3]),
    ('e2vpt-last-2', [2, 3]), ('residual', [0, 1, 2, 3]),
    ('vfpt', [0, 1, 2, 3]), ('vfpt-all', [1, 2, 3]), ('pruned-last-2', [2, 3]),
])  # fmt: skip
def test_folded(name, layers):
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = build(name).eval()
    keys, values = zip(*(model.prompt_keys_values(x, i) for i in layers), strict=True)
    folded = tiny_vit(trainable=[], prompt=dict(
        type='vpt_dense.FoldedPrompt', layers=layers, num_heads=HEADS,
        num_tokens=keys[0].shape[2])).double().eval()
    state = {n: t for n, t in model.state_dict().items() if not n.startswith('prompt.')}
    folded.load_state_dict(
        {**state, 'prompt.keys': torch.cat(keys), 'prompt.values': torch.cat(values)})
    torch.testing.assert_close(folded(x)[0], model(x)[0], rtol=1e-12, atol=1e-12)


@method
@pytest.mark.parametrize('memory', ['default', 'lean'])
def test_bfloat16(name, memory):
    x = images(2, 3, 32, 40)
    model = randomise(tiny_vit(**METHODS[name], memory=memory, out_type='cls_token')).double()
    model.train()
    exact = model(x.double())[0]
    wanted = grads(model, [exact])
    model = model.float()
    with torch.autocast('cpu', torch.bfloat16):
        out = model(x)[0]
    assert (out - exact).norm() / exact.norm() < 0.1
    for key, grad in grads(model, [out]).items():
        if 'mixes' not in key or not key.endswith('bias') or 'vapt' in name:
            assert grad.dtype == torch.float32
            cosine = torch.cosine_similarity(grad.flatten().double(), wanted[key].flatten(), dim=0)
            assert cosine > 0.95, key


def test_the_bias_of_residual_prompts_is_without_effect():
    """It shifts all channels of a token alike, which the first norm of the block takes away."""
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = build('residual')
    before = model(x)[0].detach()
    with torch.no_grad():
        for mix in model.prompt.mixes:
            mix.bias.add_(1)
    torch.testing.assert_close(model(x)[0], before, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(('kind', 'kwargs'), [
    ('E2VPTPrompt', dict(num_kv_tokens=3)), ('GatedPrompt', {}), ('ResidualPrompt', {}),
    ('VAPTPrompt', dict(grid=(4, 4))), ('CVPT', {}), ('LoRA', {}), ('AdaptFormer', {}),
    ('RepAdapter', {}),
])  # fmt: skip
def test_dropout_draws_masks_for_every_sample_while_training(kind, kwargs):
    tuning = (
        prompt(kind, dropout=0.5, **kwargs) if kind.endswith('Prompt')
        else dict(adapters=[dict(type=f'vpt_dense.{kind}', dropout=0.5)])
    )
    model = randomise(tiny_vit(**tuning, memory='lean')).double().train()
    x = images(1, 3, 32, 32, dtype=torch.float64).expand(2, -1, -1, -1)
    one, other = model(x)[0]
    assert (one - other).abs().max() > 1e-3
    one, other = model.eval()(x)[0]
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('silent', ['up', 'kernels'])
def test_vapt_drops_channels_and_hidden_units(silent):
    part = randomise(VAPTPrompt(
        Site(D, range(2), 2, HEADS, (8, 8), D), num_tokens=P, grid=(4, 4), dropout=0.5))
    for parameter in getattr(part, silent).parameters():
        nn.init.zeros_(parameter)
    x = images(1, 1 + 16, D).expand(2, -1, -1)
    one, other = part.train()(x, 1, layout=TokenLayout(1, 0, (4, 4)))
    assert not torch.equal(one, other)
    one, other = part.eval()(x, 1, layout=TokenLayout(1, 0, (4, 4)))
    assert torch.equal(one, other)


def test_residual_prompts_of_the_layer_before_have_masks_of_their_own():
    part = ResidualPrompt(
        Site(10_000, range(2), 2, 1, (8, 8), 10_000), num_tokens=1, dropout=0.5).train()
    with torch.no_grad():
        part.tokens.fill_(1)
        part.mixes[0].weight.fill_(10)
        part.mixes[0].bias.fill_(0)
    values = part(torch.zeros(1, 3, 10_000), 1).unique(return_counts=True)
    assert values[0].tolist() == [0, 2, 20, 22]  # dropped or doubled, each apart
    assert all(2300 < count < 2700 for count in values[1])


# --- starts ------------------------------------------------------------------------------------


def deep(**kwargs):
    return dict(prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=P, deep=True, **kwargs))


@pytest.mark.parametrize('layer_range', [(0, None), (2, None)])
@pytest.mark.parametrize('lora', [False, True])
def test_prefix_starts_as_deep_prompts(layer_range, lora):
    x = images(2, 3, 32, 40, dtype=torch.float64)
    more = dict(out_indices=[1, 3], layer_scale_init_value=0.3)
    if lora:
        more['adapters'] = [dict(type='vpt_dense.LoRA', rank=2)]
    tokens = randomise(tiny_vit(**deep(layer_range=layer_range), **more)).double()
    wanted = tokens(x)
    model = tiny_vit(**prompt('PrefixPrompt', layer_range=layer_range), **more).double()
    state = {n: t for n, t in tokens.state_dict().items() if not n.startswith('prompt.')}
    assert model.load_state_dict(state, strict=False).missing_keys == [
        'prompt.keys', 'prompt.values']
    assert (model(x)[1] - wanted[1]).abs().max() > 1e-3
    model.prompt.take_tokens(tokens.prompt.tokens, model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-10, atol=1e-10)
    assert model.prompt.keys.requires_grad
    torch.manual_seed(3)
    model.prompt.start_from(model)
    torch.manual_seed(3)
    start = torch.empty_like(tokens.prompt.tokens, dtype=torch.float32)
    tokens.prompt.tokens.data = start.uniform_(
        -math.sqrt(6 / (3 * 8 * 8 + D)), math.sqrt(6 / (3 * 8 * 8 + D))).double()
    torch.testing.assert_close(model(x), tokens(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('frozen_dtype', [None, 'bfloat16'])
def test_prefix_takes_its_start_when_the_backbone_is_initialised(frozen_dtype):
    model = tiny_vit(**prompt('PrefixPrompt'), frozen_dtype=frozen_dtype)
    for layer in model.layers:
        with torch.no_grad():
            for rows in layer.attn.qkv.weight.split(D):
                rows.copy_(nn.init.orthogonal_(torch.empty(D, D)))
            layer.attn.qkv.bias.zero_()
    model.init_weights()
    for i, layer in enumerate(model.layers):
        weight = layer.attn.qkv.weight.double()
        for parameter, rows in ((model.prompt.keys, slice(D, 2 * D)),
                                (model.prompt.values, slice(2 * D, None))):
            projected = parameter[i].double().transpose(0, 1).flatten(1)  # (P, C)
            tokens = projected @ weight[rows]  # LN1 of the prompts
            tolerance = 1e-3 if frozen_dtype is None else 0.05
            assert tokens.mean(1).abs().max() < tolerance
            assert (tokens.var(1, unbiased=False) - 1).abs().max() < tolerance


def test_prefix_starts_as_deep_prompts_on_swin():
    """In every window; the range begins in one stage and ends in the next."""
    x = images(2, 3, 32, 24, dtype=torch.float64)
    outs = []
    for kind in ('TokenPrompt', 'PrefixPrompt'):
        deep = {'deep': True} if kind == 'TokenPrompt' else {}
        tuning = prompt(kind, layer_range=(1, 4), **deep)
        model = randomise(MODELS.build({**BACKBONES['swin'].cfg, 'out_indices': (0, 1), **tuning}))
        model = model.double().eval()
        if deep:
            sets = {s: part.tokens for s, part in model.prompt.stages.items()}
            state = {n: t for n, t in model.state_dict().items() if not n.startswith('prompt')}
        else:
            model.load_state_dict(state, strict=False)
            for s, part in model.prompt.stages.items():
                part.take_tokens(sets[s], model)
        outs.append(model(x))
    assert [len(tokens) for tokens in sets.values()] == [1, 2]
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-10, atol=1e-10)
    for parameter in model.prompt.parameters():
        nn.init.constant_(parameter, math.nan)
    model.init_weights()  # which starts the prompts of every stage
    assert all(parameter.isfinite().all() for parameter in model.prompt.parameters())


def test_prefix_starts_in_every_member_of_an_ensemble():
    one = prompt('PrefixPrompt')['prompt']
    model = tiny_vit(prompt=dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=one))
    for parameter in model.prompt.parameters():
        nn.init.constant_(parameter, math.nan)
    model.init_weights()
    first, second = (member.keys for member in model.prompt.members)
    assert first.isfinite().all() and second.isfinite().all() and not torch.equal(first, second)


def test_residual_prompts_on_swin_are_linked_within_a_stage():
    model = randomise(MODELS.build({**BACKBONES['swin'].cfg, **prompt('ResidualPrompt')}))
    for part in model.prompt.stages.values():
        first, second = part.tokens
        (mix,) = part.mixes
        linked = second + mix.weight @ first + mix.bias[:, None]
        layer = part.first
        x = torch.zeros(1, 4, first.shape[1])
        torch.testing.assert_close(part(x, layer), first[None])
        torch.testing.assert_close(part(x, layer + 1), linked[None])


def test_e2vpt_on_swin_has_keys_of_every_stage():
    model = MODELS.build({**BACKBONES['swin'].cfg, **prompt('E2VPTPrompt', num_kv_tokens=3)})
    shapes = [model.prompt.keys_values(i)[0].shape for i in range(4)]
    assert shapes == [(1, 2, 3, 8)] * 2 + [(1, 4, 3, 8)] * 2


def test_cvpt_on_swin():
    """Each token attends to the prompts of its block, whatever its window."""
    x = images(2, 3, 32, 24, dtype=torch.float64)
    model = randomise(MODELS.build({**BACKBONES['swin'].cfg, **cvpt()})).double().eval()
    plain = randomise(MODELS.build(BACKBONES['swin'].cfg)).double().eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if 'adapters' not in n})
    first, second = model.adapters[0].prompts
    rows = iter([*first, *second])

    def attend(norm, args):  # in front of norm2 stands what attention left
        block = next(b for b in plain.block_list() if b.norm2 is norm)
        size, tokens, row = block.embed_dims // block.num_heads, args[0], next(rows)
        weight, bias, outs = block.qkv[0].weight, block.qkv[0].bias, []
        for head in range(block.num_heads):
            q, k, v = (
                each @ weight[start : start + size].T + bias[start : start + size]
                for each, start in zip(
                    (tokens, row, row),
                    (part * block.embed_dims + head * size for part in range(3)), strict=True)
            )
            outs.append((q @ k.T / math.sqrt(size)).softmax(-1) @ v)
        added.append(torch.cat(outs, -1) @ block.proj.weight.T + block.proj.bias)
        return (tokens + added[-1],)

    added = []
    for block in plain.block_list():
        block.norm2.register_forward_pre_hook(attend)
        # The MLP's residual goes past the norm.
        block.module.ffn.register_forward_pre_hook(
            lambda _, args, kwargs: (args, {'identity': kwargs['identity'] + added[-1]}),
            with_kwargs=True)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-10)
    assert len(added) == 4


def test_gates_lead_from_deep_shared_to_shallow_prompts():
    """Closed gates: the same prompts before every block. Open ones: they flow on freely."""
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = build('gated')
    others = {
        -1000: dict(deep=True, shared=True),
        1000: dict(deep=False),
    }
    for gamma, kwargs in others.items():
        other = randomise(tiny_vit(prompt=dict(
            type='vpt_dense.TokenPrompt', num_tokens=P, **kwargs))).double()
        other.load_state_dict(
            {n: t for n, t in model.state_dict().items() if n != 'prompt.gates'})
        with torch.no_grad():
            model.prompt.gates.fill_(gamma)
        torch.testing.assert_close(model(x), other(x), rtol=1e-10, atol=1e-10)


def test_vapt_starts_with_zeros_behind_the_first_block():
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = randomise(tiny_vit(**METHODS['vapt']))
    start = tiny_vit(**METHODS['vapt'])
    model.prompt.load_state_dict(start.prompt.state_dict())
    model = model.double()
    tokens = randomise(tiny_vit(**deep())).double()
    with torch.no_grad():
        tokens.prompt.tokens.zero_()
        tokens.prompt.tokens[0] = model.prompt.tokens[0]
    torch.testing.assert_close(model(x), tokens(x), rtol=1e-10, atol=1e-10)
    sum(out.square().sum() for out in model(x)).backward()
    moved = {n for n, p in model.prompt.named_parameters() if p.grad.abs().sum() > 0}
    # Biases shift all channels of a token alike, which the norm takes away up to rounding.
    moved -= {f'mixes.{i}.bias' for i in range(3)}
    assert moved == {'tokens', *(f'mixes.{i}.weight' for i in range(3))}  # then the rest
    with torch.no_grad():
        for parameter in model.prompt.parameters():
            parameter -= 1e-3 * parameter.grad.sign()
    model.zero_grad()
    sum(out.square().sum() for out in model(x)).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.prompt.parameters())


@pytest.mark.parametrize(('name', 'other', 'zero'), [
    ('lspt_like', dict(deep=False), ['up.weight']), ('ivpt_like', dict(deep=True),
                                                     ['links', 'boosts'])])  # fmt: skip
def test_what_an_abstract_says_starts_as_vpt(name, other, zero):
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model, start = build(name), tiny_vit(**METHODS[name])
    values = dict(start.prompt.named_parameters())
    with torch.no_grad():
        for key in zero:
            assert not values[key].any()
            model.prompt.get_parameter(key).zero_()
    plain = randomise(tiny_vit(prompt=dict(
        type='vpt_dense.TokenPrompt', num_tokens=P, **other))).double()
    plain.load_state_dict({n: t for n, t in model.state_dict().items()
                           if not n.startswith('prompt.') or n == 'prompt.tokens'})
    torch.testing.assert_close(model(x), plain(x), rtol=1e-10, atol=1e-10)
    model.zero_grad()
    model(x)[0].square().sum().backward()
    assert all(model.prompt.get_parameter(key).grad.any() for key in zero)


@pytest.mark.parametrize('name', ['lspt_like', 'ivpt_like', 'ivpt_like-middle'])
def test_members_of_an_ensemble_act_on_their_own_tokens(name):
    settings = METHODS[name]['prompt']
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = randomise(tiny_vit(prompt=dict(
        type='vpt_dense.PromptEnsemble', seeds=[3, 4], prompt=settings))).double()
    for mode, batch in ((False, x), (True, torch.cat([x, x.flip(0)]))):
        outs = model.train(mode)(batch)[0]
        assert len(outs) == 4
        for k, member in enumerate(model.prompt.members):
            single = build(name).train(mode)
            single.load_state_dict({n: t for n, t in model.state_dict().items()
                                    if not n.startswith('prompt.')}, strict=False)
            single.prompt.load_state_dict(member.state_dict())
            own = batch if not mode else batch[2 * k : 2 * k + 2]
            torch.testing.assert_close(
                outs[2 * k : 2 * k + 2], single(own)[0], rtol=1e-10, atol=1e-10)


def test_ranges_of_the_starts():
    site = Site(768, range(12), 12, 12, (16, 16), 768)
    torch.manual_seed(0)
    vpt = math.sqrt(6 / (3 * 16 * 16 + 768))
    for part in (GatedPrompt(site, 100), ResidualPrompt(site, 10), VAPTPrompt(site, 100),
                 E2VPTPrompt(site, 10, 5)):
        assert 0.99 * vpt < part.tokens.abs().max() < vpt
    for parameter in (E2VPTPrompt(site, 1, 5).keys,
                      E2VPTPrompt(site, 1, 5, shared_kv=False).values):
        bound = math.sqrt(6 / (5 * 64))
        for layer in parameter:
            assert 0.99 * bound < layer.abs().max() < bound
    assert GatedPrompt(site, 1).gates.tolist() == [-5.0] * 11
    assert GatedPrompt(site, 1, gate_init=2).gates.tolist() == [2.0] * 11
    kernels = torch.cat([k.flatten() for k in VAPTPrompt(site, 1, kernel_size=9).kernels])
    assert abs(kernels.std() - 1) < 0.1
    prompts = tiny_vit(adapters=[dict(type='vpt_dense.CVPT', num_tokens=200)]).adapters[0].prompts
    bound = math.sqrt(6 / (200 * D + LAYERS * D))
    assert 0.99 * bound < prompts[0].abs().max() < bound


@pytest.mark.parametrize(('arch', 'counts'), [
    ('base', dict(prefix=184_320, e2vpt=92_160 + 12 * 5 * 768, gated=76_800 + 11,
                  residual=1_032_700, vapt=55_608, cvpt=1_843_200, lspt=350_080,
                  ivpt=92_160 + 23)),
    ('large', dict(prefix=491_520, e2vpt=245_760 + 24 * 5 * 1024, gated=102_400 + 23,
                   residual=2_689_900, vapt=112_920, cvpt=4_915_200, lspt=433_024,
                   ivpt=245_760 + 47)),
])  # fmt: skip
def test_counts(arch, counts):
    parts = dict(
        prefix=dict(type='PrefixPrompt', num_tokens=10),
        e2vpt=dict(type='E2VPTPrompt', num_tokens=10, num_kv_tokens=5),
        gated=dict(type='GatedPrompt', num_tokens=100),
        lspt=dict(type='LSPTLikePrompt', num_tokens=100),
        ivpt=dict(type='IVPTLikePrompt', num_tokens=10),
        residual=dict(type='ResidualPrompt', num_tokens=100),
        vapt=dict(type='VAPTPrompt', num_tokens=10),
        cvpt=dict(type='CVPT'),
    )
    found = {}
    for name, part in parts.items():
        part['type'] = f'vpt_dense.{part["type"]}'
        tuning = dict(adapters=[part]) if name == 'cvpt' else dict(prompt=part)
        with torch.device('meta'):
            model = MODELS.build(
                dict(type='vpt_dense.VisionTransformer', arch=arch, **tuning))
        found[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == counts


def test_the_transform_without_complex_numbers():
    """As graphs have it; also where a prompt is as wide as that of a large model."""
    for shape in ((3, 5, 64), (2, 1, 7), (1, 50, 1024)):
        x = images(*shape, dtype=torch.float64)
        wanted = torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real
        torch.testing.assert_close(real_transform(x), wanted, rtol=1e-10, atol=1e-10)
        rough = real_transform(x.float())
        assert rough.dtype == torch.float32
        assert (rough - wanted).norm() < 1e-5 * wanted.norm()
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(real_transform(x.float()), rough)


def test_fourier_prompts_of_no_share_are_vpt_deep():
    x = images(2, 3, 32, 40, dtype=torch.float64)
    deep = randomise(tiny_vit(**prompt('TokenPrompt', deep=True))).double()
    model = tiny_vit(**prompt('FourierPrompt', fourier_share=0)).double()
    model.load_state_dict(deep.state_dict())
    assert torch.equal(model.eval()(x)[0], deep.eval()(x)[0])


def test_fourier_prompts_in_half_precision():
    part = tiny_vit(**prompt('FourierPrompt', fourier_share=0.6)).prompt.bfloat16()
    (found, *_), wanted = part.prepare(), part.tokens[0].double()
    wanted = torch.cat((torch.fft.fft2(wanted[:3]).real, wanted[3:]))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[0].double(), wanted, rtol=0.01, atol=1e-6)


def test_pruned_prompts_start_as_those_that_are_not():
    def built(**kwargs):
        torch.manual_seed(3)
        return tiny_vit(**prompt('E2VPTPrompt', num_kv_tokens=3, **kwargs))

    whole, pruned = built(), built(kept=KEPT)
    pieces = whole.prompt.tokens.detach().unflatten(-1, (16, -1))
    masks = torch.tensor([[[bits >> i & 1 for i in range(16)] for bits in row] for row in KEPT])
    assert torch.equal(pruned.prompt.tokens, pieces[masks.bool()])
    assert torch.equal(pruned.prompt.keys, whole.prompt.keys)
    for i, tokens in enumerate(pruned.prompt.prepare()):
        entering = (pieces * masks[..., None])[i][masks[i].any(-1)].flatten(1)
        assert torch.equal(tokens[0], entering)
    assert '148 pieces kept' in str(pruned.prompt)
    complete = built(kept=[[2**16 - 1] * P] * 4).double().eval()
    x = images(2, 3, 32, 40, dtype=torch.float64)
    torch.testing.assert_close(complete(x), whole.double().eval()(x), rtol=1e-12, atol=1e-12)


# --- prompts that tokens choose ----------------------------------------------------------------


def chosen_by_hand(model, x):
    """Cls token behind the last block, and 1 - cosine of all chosen keys by block and pool."""
    part, terms = model.prompt, []
    for i, layer in enumerate(model.layers):
        pools = [(part.class_tokens[i], part.class_keys[i], 2)]
        if i < LAYERS - 1:
            pools.append((part.patch_tokens[i], part.patch_keys[i], 1))
        allowed, prompts = [], torch.cat([tokens.flatten(0, 1) for tokens, _, _ in pools])
        found = [[] for _ in pools]
        for image in x:
            for n, token in enumerate(image):
                row = []
                for p, (tokens, keys, number) in enumerate(pools):
                    cosines = [(token @ key / token.norm() / key.norm()).item() for key in keys]
                    best = sorted(range(len(keys)), key=lambda j: -cosines[j])[:number]
                    mine = (n == 0) == (p == 0)
                    if mine:
                        cosine = torch.cosine_similarity(token.detach()[None], keys[best])
                        found[p] += list(1 - cosine)
                    row += [mine and j in best for j in range(len(keys)) for _ in tokens[j]]
                allowed.append(row)
        terms += [torch.stack(each).mean() for each in found]
        allowed = torch.tensor(allowed).unflatten(0, x.shape[:2])
        normed, asked = layer.ln1(x), layer.ln1(torch.cat((x, prompts.expand(len(x), -1, -1)), 1))
        qkv = layer.attn.qkv
        queries = (normed @ qkv.weight[:D].T + qkv.bias[:D]).unflatten(-1, (HEADS, -1))
        keys, values = (asked @ qkv.weight[D:].T + qkv.bias[D:]).unflatten(
            -1, (2, HEADS, -1)).unbind(2)
        weights = torch.einsum('bnhc,bmhc->bhnm', queries, keys).div(4).exp()
        weights = weights * torch.cat((torch.ones(*x.shape[:2], x.shape[1]), allowed), 2)[:, None]
        mixed = torch.einsum('bhnm,bmhc->bnhc', weights / weights.sum(-1, keepdim=True), values)
        x = x + mixed.flatten(2) @ layer.attn.proj.weight.T + layer.attn.proj.bias
        x = layer.ffn(layer.ln2(x), identity=x)
    return model.ln1(x)[:, 0], torch.stack(terms)


TCPA = dict(prompt=dict(
    type='vpt_dense.TCPAPrompt', num_tokens=2, class_pool=5, class_chosen=2, patch_pool=3,
    patch_chosen=1, match=0.7))


@pytest.mark.parametrize('options', [{}, dict(memory='lean'), dict(with_cp=True)], ids=str)
@pytest.mark.parametrize('registers', [0, 2])
def test_tokens_choose_their_prompts(registers, options):
    x = images(2, 3, 24, 32, dtype=torch.float64)
    model = randomise(tiny_vit(
        **TCPA, out_type='cls_token', num_registers=registers, **options)).double().train()
    entering = []
    handle = model.layers[0].register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    model(x)
    handle.remove()
    wanted, terms = chosen_by_hand(model, entering[0].detach())
    model.prompt.penalties()
    (found,) = model(x)
    penalty = model.prompt.penalties()
    assert model.prompt.penalties() == {}  # handed out once
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(penalty['loss_match'], 0.7 * terms.mean())
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 4
    grads = []
    for out, loss in ((found, penalty['loss_match']), (wanted, 0.7 * terms.mean())):
        model.zero_grad()
        (out.square().sum() + loss).backward()
        grads.append({n: model.get_parameter(n).grad for n in names})
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)
    assert all(grad.any() for grad in grads[0].values())
    model.eval()(x)
    assert model.prompt.penalties() == {}


def test_pools_that_are_chosen_whole_are_keys_and_values_for_all_of_a_kind():
    """And where all prompts are equal, it does not matter which are chosen."""
    x = images(2, 3, 32, 32, dtype=torch.float64)
    few, all_ = (randomise(tiny_vit(out_type='cls_token', prompt=dict(
        type='vpt_dense.TCPAPrompt', class_pool=4, class_chosen=chosen, patch_pool=4,
        patch_chosen=chosen))).double().eval() for chosen in (1, 4))
    assert (few(x)[0] - all_(x)[0]).abs().max() > 1e-4
    with torch.no_grad():
        for model in (few, all_):
            for tokens in (model.prompt.class_tokens, model.prompt.patch_tokens):
                tokens.copy_(tokens[:, :1])
        shared = [model.prompt.visible(torch.randn(2, 17, D), 0, model.prompt.prepare(), None)
                  for model in (few, all_)]
    assert shared[1][:, 0].sum(-1).tolist() == [4, 4] and not shared[1][:, 0, 4:].any()
    assert (shared[1][:, 1:, 4:].all() and not shared[1][:, 1:, :4].any())
    assert (shared[0].sum(-1) == 1).all()


def test_members_of_an_ensemble_choose_for_themselves():
    x = images(4, 3, 32, 32, dtype=torch.float64)
    ensemble = randomise(tiny_vit(out_type='cls_token', prompt=dict(
        type='vpt_dense.PromptEnsemble', seeds=[0, 1], **TCPA))).double()
    found = ensemble.eval()(x)[0], ensemble.train()(x)[0]
    penalties = ensemble.prompt.penalties()
    assert set(penalties) == {'m0.loss_match', 'm1.loss_match'}
    for i in range(2):
        single = tiny_vit(out_type='cls_token', **TCPA).double()
        state = ensemble.state_dict()
        member = f'prompt.members.{i}.'
        single.load_state_dict({
            n.replace(member, 'prompt.'): t for n, t in state.items()
            if not n.startswith('prompt.') or n.startswith(member)})
        torch.testing.assert_close(found[0][4 * i : 4 * i + 4], single.eval()(x)[0])
        own = x[2 * i : 2 * i + 2]
        torch.testing.assert_close(found[1][2 * i : 2 * i + 2], single.train()(own)[0])
        torch.testing.assert_close(
            penalties[f'm{i}.loss_match'], single.prompt.penalties()['loss_match'])


def test_prompts_change_from_block_to_block_as_a_linear_map():
    x = images(2, 3, 32, 32, dtype=torch.float64)
    model = randomise(tiny_vit(**prompt(
        'PAEPrompt', koopman=0.7, lyapunov=0.3, koopman_dims=6, layer_range=(1, None)))).double()
    own = model.prompt
    with torch.no_grad():
        own.tokens[0] *= 30  # some z are longer than 1, some are not
        own.tokens[1] /= 30
    model.train()(x)
    found = own.penalties()
    assert own.penalties() == {}  # handed out once
    koopman = lyapunov = 0.0
    singular = torch.linalg.eigvalsh(own.energy.T @ own.energy)[-1]
    long = []
    for before, behind in zip(own.tokens[:-1], own.tokens[1:], strict=True):
        z, step = before @ own.inward.T, own.step
        koopman += (z @ step - behind @ own.inward.T).pow(2).mean()
        rises = []
        for a, b in zip(z, z @ step, strict=True):
            values = []
            for v in (a, b):
                long.append(bool(v.norm() > 1))
                u = v / v.norm() if v.norm() > 1 else v
                values.append((own.energy @ u).square().sum() / singular)
            rises.append(torch.log1p((values[1] - values[0]).exp()))
        lyapunov += 10 * torch.tanh(torch.stack(rises).mean() / 10)
    assert len(own.tokens) == 3 and set(long) == {True, False}
    wanted = dict(loss_koopman=0.7 * koopman, loss_lyapunov=0.3 * lyapunov)
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    plain = tiny_vit(**prompt('TokenPrompt', deep=True, layer_range=(1, None))).double()
    plain.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))
    assert own.penalties() == {}


# --- what is special ---------------------------------------------------------------------------


def test_cvpt_takes_the_raw_weights_of_the_block():
    """LoRA on the block changes its self-attention and not the attention to the prompts."""
    x = images(2, 3, 32, 40, dtype=torch.float64)
    both = [*cvpt()['adapters'], dict(type='vpt_dense.LoRA', rank=2)]
    model = randomise(tiny_vit(adapters=both, out_type='raw')).double().eval()
    cross = model.adapters[0]
    alone = randomise(tiny_vit(**cvpt(), out_type='raw')).double().eval()
    alone.load_state_dict({n: t for n, t in model.state_dict().items() if 'adapters.1' not in n})
    with torch.no_grad():
        wanted = alone(x)[0]
        assert (model(x)[0] - wanted).abs().max() > 1e-3
        tokens = images(2, 7, D, dtype=torch.float64)
        for i in range(LAYERS):
            one, other = (each.after_attention(tokens, tokens, i, TokenLayout(1, 0, (2, 3)))
                          for each in (cross, alone.adapters[0]))
            torch.testing.assert_close(one, other)
        for update in model.adapters[1].updates:
            update.up.zero_()
        torch.testing.assert_close(model(x)[0], wanted, rtol=1e-12, atol=1e-12)


def test_cvpt_trains_shared_weights_through_both():
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = build('cvpt', out_type='raw', out_indices=[1, 3], trainable=[r'qkv', r'^adapters'])
    plain = copy.deepcopy(model)  # the formula's gradients reach the same tensors
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert len(names) == 2 * LAYERS + 1
    entering = []
    handle = plain.layers[0].register_forward_pre_hook(
        lambda _, args: entering.append(args[0].detach()))
    plain(x)
    handle.remove()
    outs = list(by_cvpt(plain, entering[0], None))
    torch.testing.assert_close(
        grads(model, model(x)), grads(plain, (outs[1], plain.ln1(outs[3]))),
        rtol=1e-9, atol=1e-9)


def test_cvpt_adds_no_second_name_and_copies_with_its_backbone():
    x = images(2, 3, 32, 40, dtype=torch.float64)
    model = build('cvpt').eval()
    assert [n for n in model.state_dict() if n.startswith('adapters')] == [
        'adapters.0.prompts.0']
    before = model(x)[0].detach()
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(x)[0], before, rtol=0, atol=0)
    for block, layer in zip(other.adapters[0].blocks, other.layers, strict=True):
        assert block.qkv == (layer.attn.qkv,) and block.proj is layer.attn.proj
    with torch.no_grad():
        for layer in other.layers:
            layer.attn.proj.weight.mul_(2)
    torch.testing.assert_close(model(x)[0], before, rtol=0, atol=0)
    assert (other(x)[0] - before).abs().max() > 1e-3


def test_cvpt_without_biases_of_queries():
    x = images(2, 3, 32, 32, dtype=torch.float64)
    model = randomise(tiny_vit(**cvpt(), qkv_bias=False)).double()
    zeros = randomise(tiny_vit(**cvpt())).double()
    biases = {f'layers.{i}.attn.qkv.bias': torch.zeros(3 * D) for i in range(LAYERS)}
    zeros.load_state_dict({**model.state_dict(), **biases})
    torch.testing.assert_close(model(x)[0], zeros(x)[0], rtol=1e-12, atol=1e-12)


def test_vapt_reads_what_enters_each_block():
    """Another image gives other prompts, and each sample has its own."""
    model = build('vapt').eval()
    x = images(3, 17, D, dtype=torch.float64)
    layout = TokenLayout(1, 0, (4, 4))
    with torch.no_grad():
        tokens = model.prompt(x, 2, None, layout)
        again = model.prompt(x[[2, 0, 1]], 2, None, layout)
        cls = model.prompt(torch.cat((-x[:, :1], x[:, 1:]), 1), 2, None, layout)
    assert tokens.shape == (3, P, D)
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3
    torch.testing.assert_close(again, tokens[[2, 0, 1]])
    torch.testing.assert_close(cls, tokens)  # of the patches alone


ERRORS = {
    'prefix tokens': (prompt('PrefixPrompt') | dict(prompt=dict(
        type='vpt_dense.PrefixPrompt', num_tokens=0)),
        r'prompt\.num_tokens must be an integer of at least 1, found 0'),
    'prefix range': (prompt('PrefixPrompt', layer_range=(3, 3)),
                     r'prompt\.layer_range must be a pair .* of the 4 layers, found \(3, 3\)'),
    'e2vpt': (prompt('E2VPTPrompt', num_kv_tokens=1.5),
              r'prompt\.num_kv_tokens must be an integer of at least 1, found 1\.5'),
    'gate': (prompt('GatedPrompt', gate_init='low'),
             r"prompt\.gate_init must be a number, found 'low'"),
    'memory': (prompt('LSPTLikePrompt', hidden_dims=0),
               r'prompt\.hidden_dims must be an integer of at least 1, found 0'),
    'salient': (prompt('IVPTLikePrompt', salient=0),
                r'prompt\.salient must be a number above 0 and at most 1, found 0'),
    'residual': (prompt('ResidualPrompt', dropout=1),
                 r'prompt\.dropout must be a number in \[0, 1\), found 1'),
    'vapt grid': (prompt('VAPTPrompt', grid=14),
                  r'prompt\.grid must be a pair \(rows, columns\), found 14'),
    'vapt side': (prompt('VAPTPrompt', grid=(14, 0)),
                  r'prompt\.grid must be an integer of at least 1, found 0'),
    'vapt kernel': (prompt('VAPTPrompt', grid=(4, 2), kernel_size=3),
                    r'prompt\.kernel_size must be at most a side of prompt\.grid \(4, 2\), '
                    r'found 3'),
    'vapt small': (prompt('VAPTPrompt', kernel_size=5),
                   r'prompt\.kernel_size=5 needs images .*, found 4 x 4 patches'),
    'vapt small ensemble': (dict(prompt=dict(
        type='vpt_dense.PromptEnsemble', seeds=[0], **prompt('VAPTPrompt', kernel_size=5))),
        r'prompt\.kernel_size=5 needs images .*, found 4 x 4 patches'),
    'kept layers': (prompt('E2VPTPrompt', num_kv_tokens=3, kept=[[1] * P] * 3),
                    r'prompt\.kept must be 5 numbers from 0 to 65535 for each of 4 layers'),
    'kept tokens': (prompt('E2VPTPrompt', num_kv_tokens=3, kept=[[1] * 4] * 4), 'prompt.kept must'),
    'kept bits': (prompt('E2VPTPrompt', num_kv_tokens=3, kept=[[65536] * P] * 4), r'\.kept must'),
    'kept none': (prompt('E2VPTPrompt', num_kv_tokens=3, kept=[[1] * P] * 3 + [[0] * P]),
                  r'not all 0 in one; vpt-dense analyse pruning'),
    'kept shared': (prompt('E2VPTPrompt', num_kv_tokens=3, kept=KEPT, shared=True),
                    r'prompt\.kept prunes .*; leave prompt\.shared and prompt\.project_dims out'),
    'kept width': (dict(prompt('E2VPTPrompt', num_kv_tokens=3, kept=KEPT), arch=dict(
        embed_dims=40, num_layers=4, num_heads=4, feedforward_channels=80)),
        r'prompt\.kept: 16 does not divide the width 40'),
    'chosen': (dict(prompt=dict(type='vpt_dense.TCPAPrompt', class_pool=3, class_chosen=4)),
               r'prompt\.class_chosen must be at most prompt\.class_pool=3, found 4'),
    'pool': (dict(prompt=dict(type='vpt_dense.TCPAPrompt', patch_pool=0)),
             r'prompt\.patch_pool must be an integer of at least 1, found 0'),
    'match': (dict(prompt=dict(type='vpt_dense.TCPAPrompt', match=-1)),
              r'prompt\.match must not be negative, found -1'),
    'no class': (TCPA, r"TCPAPrompt has prompts for the class token; it needs out_type='cls_to"),
    'seen by all': (dict(TCPA, out_type='cls_token', prompts_as='tokens'),
                    r'TCPAPrompt hides prompts from tokens, which takes prompts as keys and val'),
    'one block': (prompt('PAEPrompt', layer_range=(3, None)),
                  r'PAEPrompt compares the prompts of .* leaves 1 block; take two'),
    'koopman': (prompt('PAEPrompt', koopman=-1), r'prompt\.koopman must not be negative, found -1'),
    'share': (prompt('FourierPrompt', fourier_share=1.5),
              r'prompt\.fourier_share must be a number from 0 to 1, found 1\.5'),
    'no share': (prompt('FourierPrompt', fourier_share='all'),
                 r"prompt\.fourier_share must be a number, found 'all'"),
    'small share': (prompt('FourierPrompt', fourier_share=0.05),
                    r'prompt\.fourier_share=0\.05 of prompt\.num_tokens=5 is no token'),
    'flag': (prompt('TokenPrompt', deep='no'), r"prompt\.deep must be True or False, found 'no'"),
    'e2vpt flag': (prompt('E2VPTPrompt', num_kv_tokens=3, shared_kv=1),
                   r'prompt\.shared_kv must be True or False, found 1'),
    'infinite gate': (prompt('GatedPrompt', gate_init=math.inf),
                      r'prompt\.gate_init must be a number, found inf'),
    'mean': (prompt('PixelPrompt', start='image', mean=5),
             r'prompt\.mean must be 3 numbers, .*, found 5'),
    'no mean': (prompt('PixelPrompt', start='image', mean=[]),
                r'prompt\.mean must be 3 numbers, .*, found \[\]'),
    'std': (prompt('PixelPrompt', start='image', std=[1, 0, 1]),
            r'prompt\.std must be a number above 0, found 0'),
    'vapt rank': (prompt('VAPTPrompt', hidden_dims=0),
                  r'prompt\.hidden_dims must be an integer of at least 1, found 0'),
    'e2vpt dims': (prompt('E2VPTPrompt', num_kv_tokens=3, shared_kv=False, project_dims=0),
                   r'prompt\.project_dims must be an integer of at least 1, found 0'),
    'cvpt tokens': (dict(adapters=[dict(type='vpt_dense.CVPT', num_tokens=-1)]),
                    r'adapters\.num_tokens must be an integer of at least 1, found -1'),
    'cvpt dropout': (dict(adapters=[dict(type='vpt_dense.CVPT', dropout=2)]),
                     r'adapters\.dropout must be a number in \[0, 1\), found 2'),
}


def test_vapt_names_an_image_that_is_smaller_than_its_kernel():
    model = tiny_vit(**prompt('VAPTPrompt', kernel_size=3))
    model(images(1, 3, 24, 32))
    with pytest.raises(ValueError, match=r'kernel_size=3 needs images .*, found 2 x 4 patches'):
        model(images(1, 3, 16, 32))


@pytest.mark.parametrize('name', ERRORS)
def test_bad_options_fail_when_the_config_is_built(name):
    tuning, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        tiny_vit(**tuning)


ONE = dict(embed_dims=D, num_layers=1, num_heads=HEADS, feedforward_channels=2 * D)


@pytest.mark.parametrize(('method', 'out_type', 'trained'), [
    (prompt('GatedPrompt'), 'featmap', {'prompt.tokens'}),
    (prompt('VAPTPrompt', grid=(4, 4)), 'cls_token', {'prompt.tokens'}),
    (prompt('ResidualPrompt'), 'cls_token', {'prompt.tokens'}),
    (prompt('LSPTLikePrompt'), 'cls_token', {'prompt.tokens'}),
    (prompt('IVPTLikePrompt'), 'cls_token', {'prompt.tokens', 'prompt.boosts'}),
    (dict(prompt=dict(type='vpt_dense.TCPAPrompt')), 'cls_token', {
        'prompt.class_tokens', 'prompt.class_keys'}),
    (dict(adapters=[dict(type='vpt_dense.Rein', num_tokens=3, rank=2)]), 'featmap', None),
], ids=['gated', 'vapt', 'residual', 'lspt', 'ivpt', 'tcpa', 'rein'])
def test_one_block_trains_nothing_that_cannot_act(method, out_type, trained):
    model = randomise(tiny_vit(**method, arch=ONE, out_type=out_type))
    out = model(images(2, 3, 32, 32))[0].square().sum()
    (out + sum(model.prompt.penalties().values() if trained else [])).backward()
    found = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.numel() and p.grad is not None and p.grad.any() for p in found.values())
    assert trained is None or found.keys() == trained


def test_refining_what_nothing_reads_is_refused():
    rein = dict(type='vpt_dense.Rein', num_tokens=3)
    with pytest.raises(ValueError, match='Rein refines patches, but of the 1 blocks .* none has'):
        tiny_vit(adapters=[rein], arch=ONE, out_type='cls_token')
