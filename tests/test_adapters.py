"""Adapters and selections: against computations of their own, counts, starts, refusals."""

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from methods import BACKBONES
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn
from utils import CONFIGS, TINY_ARCH, images, randomise, tiny_vit

from vpt_dense import building, config, params
from vpt_dense.backbones.hosts import host_of
from vpt_dense.errors import UserError
from vpt_dense.prompts import TokenLayout
from vpt_dense.tuning import is_added

SWIGLU = dict(layer_cfgs=dict(ffn_type='swiglu_fused'), layer_scale_init_value=0.5)
VARIANTS = {'plain': {}, 'layer-scale': dict(layer_scale_init_value=0.5), 'swiglu': SWIGLU}


def with_adapter(kind: str, seed: int = 0, **kwargs) -> nn.Module:
    """A tiny ViT in float64 with one adapter; keyword arguments: of both."""
    vit = ('out_type', 'out_indices', 'layer_cfgs', 'layer_scale_init_value', 'pre_norm',
           'final_norm', 'num_registers', 'prompt', 'patch_cfg', 'img_size', 'with_cls_token')
    backbone = {key: kwargs.pop(key) for key in vit if key in kwargs}
    adapter = dict(type=f'vpt_dense.{kind.partition("-")[0]}', **kwargs)
    return randomise(tiny_vit(adapters=[adapter], **backbone), seed).double().eval()


# --- what they compute ---------------------------------------------------------------------


def reference(model: nn.Module, x: torch.Tensor, change) -> torch.Tensor:
    """A ViT written out: tokens (B, 1 + N, C) behind the last norm.

    ``change(place, layer, value, tokens)`` may change what is computed at a place of a block;
    ``tokens`` are those that enter the half of the block.
    """
    def norm(x, module):
        return F.layer_norm(x, (x.shape[-1],), module.weight, module.bias, module.eps)

    def scale(x, module):
        return x if isinstance(module, nn.Identity) else x * module.weight

    conv = model.patch_embed.projection
    x = F.conv2d(x, conv.weight, conv.bias, stride=conv.stride).flatten(2).transpose(1, 2)
    x = change('patch', 0, x, x)
    x = torch.cat((model.cls_token.expand(len(x), -1, -1), x), 1) + model.pos_embed
    for i, block in enumerate(model.layers):
        u = change('norm1', i, norm(x, block.ln1), x)
        attn = block.attn
        qkv = change('qkv', i, u @ attn.qkv.weight.T + attn.qkv.bias, u)
        q, k, v = (part.unflatten(-1, (attn.num_heads, -1)) for part in qkv.chunk(3, -1))
        weights = torch.einsum('bnhc,bmhc->bhnm', q, k).div(math.sqrt(q.shape[-1])).softmax(-1)
        mixed = torch.einsum('bhnm,bmhc->bnhc', weights, v).flatten(2)
        out = change('proj', i, mixed @ attn.proj.weight.T + attn.proj.bias, mixed)
        x = change('attention', i, x + scale(out, attn.gamma1), x)
        u = change('norm2', i, norm(x, block.ln2), x)
        (first,), last = model.block_list()[i].fc1, model.block_list()[i].fc2
        hidden = change('fc1', i, u @ first.weight.T + first.bias, u)
        if hasattr(block.ffn, 'w12'):
            gate, value = hidden.chunk(2, -1)
            hidden = F.silu(gate) * value
        else:
            hidden = F.gelu(hidden)
        z = change('fc2', i, hidden @ last.weight.T + last.bias, hidden)
        x = change('ffn', i, x + scale(z, block.ffn.gamma2), x)
        x = change('block', i, x, x)
    return change('final', 0, norm(x, model.ln1), x)


def adapter_by_hand(model):
    def change(place, layer, value, tokens):
        if place != 'fc2':
            return value
        b = model.adapters[0].bottlenecks[layer]
        low = value @ b.down.weight.T + b.down.bias
        return value + 0.5 * low * (1 + torch.erf(low / math.sqrt(2))) @ b.up.weight.T + b.up.bias
    return change


def adaptformer_by_hand(model):
    def change(place, layer, value, tokens):
        if place != 'ffn':
            return value
        b = model.adapters[0].branches[layer]
        low = (tokens @ b.down.weight.T + b.down.bias).clamp(min=0)
        return value + 0.3 * (low @ b.up.weight.T + b.up.bias)
    return change


def rep_by_hand(model):
    """As the paper has it: convolutions of size 1 behind the norms, the second one in groups."""
    def change(place, layer, value, tokens):
        if place not in ('norm1', 'norm2'):
            return value
        r = model.adapters[0].updates[2 * layer + (place == 'norm2')]
        u = value.transpose(1, 2)  # (B, C, N)
        low = F.conv1d(u, r.down.weight[:, :, None], r.down.bias)
        up = F.conv1d(low, r.up.flatten(0, 1)[:, :, None], r.bias, groups=2)
        return (u + 0.7 * up).transpose(1, 2)
    return change


def ssf_by_hand(model):
    places = ['norm1', 'qkv', 'proj', 'norm2', 'fc1', 'fc2']

    def change(place, layer, value, tokens):
        affines = model.adapters[0].affines
        if place == 'patch':
            index = 0
        elif place == 'final':
            index = len(affines) - 1
        elif place in places:
            index = 1 + 6 * layer + places.index(place)
        else:
            return value
        return affines[index].gamma * value + affines[index].beta
    return change


def rein_by_hand(model):
    def change(place, layer, value, tokens):
        if place != 'block':
            return value
        rein = model.adapters[0]
        a, b = rein.tokens[layer].factors
        t, maps = a @ b, rein.maps['64']
        f = value[:, 1:]
        s = torch.softmax(torch.einsum('bnc,mc->bnm', f, t) / 8, -1)
        mapped = t @ maps.token.weight.T + maps.token.bias
        delta = torch.einsum('bnm,mc->bnc', s, mapped) - s[..., :1] * mapped[0]
        delta = (delta + f) @ maps.feature.weight.T + maps.feature.bias
        return torch.cat((value[:, :1], f + rein.scale * delta), 1)
    return change


def lora_by_hand(model):
    def change(place, layer, value, tokens):
        if place != 'qkv':
            return value
        q, v = model.adapters[0].updates[2 * layer : 2 * layer + 2]
        updates = [1.5 * tokens @ (u.up @ u.down).T for u in (q, v)]
        return value + torch.cat((updates[0], torch.zeros_like(updates[0]), updates[1]), -1)
    return change


def on_the_grid(z, kernel, bias, groups):
    """A convolution written out as shifted products: tokens (B, n, r), the last 4x4 of them."""
    side, out = kernel.shape[-1] // 2, []
    maps = z[:, -16:].unflatten(1, (4, 4))
    wide = torch.zeros(len(z), 4 + 2 * side, 4 + 2 * side, z.shape[2], dtype=z.dtype)
    wide[:, side : side + 4, side : side + 4] = maps
    for row in range(4):
        for column in range(4):
            window = wide[:, row : row + 2 * side + 1, column : column + 2 * side + 1]
            equation = 'bhwc,chw->bc' if groups else 'bhwc,ochw->bo'
            out.append(torch.einsum(equation, window, kernel) + bias)
    return torch.stack(out, 1)


def gelu(z):
    return 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))


def mona_by_hand(model):
    def change(place, layer, value, tokens):
        if place not in ('attention', 'ffn'):
            return value
        m = model.adapters[0].branches[2 * layer + (place == 'ffn')]
        mean, variance = value.mean(-1, True), value.var(-1, unbiased=False, keepdim=True)
        normed = (value - mean) / (variance + 1e-5).sqrt() * m.norm.weight + m.norm.bias
        z = (normed * m.gamma + value * m.gamma_x) @ m.down.weight.T + m.down.bias
        found = sum(on_the_grid(z, c.weight[:, 0], c.bias, True) for c in m.filters) / 3
        assert [tuple(c.weight.shape[2:]) for c in m.filters] == [(3, 3), (5, 5), (7, 7)]
        z = torch.cat((z[:, :-16], z[:, -16:] + found), 1)
        z = z + z @ m.mix.weight.T + m.mix.bias
        return value + gelu(z) @ m.up.weight.T + m.up.bias
    return change


def convpass_by_hand(model):
    seen = {}

    def change(place, layer, value, tokens):
        if place in ('norm1', 'norm2'):
            seen[place] = value
        if place not in ('attention', 'ffn'):
            return value
        c = model.adapters[0].branches[2 * layer + (place == 'ffn')]
        z = gelu(seen['norm1' if place == 'attention' else 'norm2'] @ c.down.weight.T + c.down.bias)
        first = z[:, :-16] @ c.conv.weight[:, :, 1, 1].T + c.conv.bias
        z = torch.cat((first, on_the_grid(z, c.conv.weight, c.conv.bias, False)), 1)
        return value + 0.7 * (gelu(z) @ c.up.weight.T + c.up.bias)
    return change


def dora_by_hand(model):
    """As the paper has it: a magnitude for each row, and the weight's direction."""
    scale = 3 / math.sqrt(2)

    def change(place, layer, value, tokens):
        if place != 'qkv':
            return value
        linear, update = model.layers[layer].attn.qkv, model.adapters[0].updates[layer]
        direction = linear.weight + scale * update.low.up @ update.low.down
        magnitude = linear.weight.square().sum(1).sqrt() + update.magnitude
        weight = magnitude[:, None] * direction / direction.square().sum(1, keepdim=True).sqrt()
        return tokens @ weight.T + linear.bias
    return change


def fact_by_hand(model):
    """Matrix by matrix: pieces of C outputs and C inputs, the last one cut."""
    adapter, r = model.adapters[0], 3
    factors = adapter.factors['64']

    def change(place, layer, value, tokens):
        if place not in ('qkv', 'proj', 'fc1', 'fc2'):
            return value
        own = adapter.updates[4 * layer + ['qkv', 'proj', 'fc1', 'fc2'].index(place)]
        parts, m = [value], 0
        for a in range(0, value.shape[-1], 64):
            for b in range(0, tokens.shape[-1], 64):
                inputs = tokens[..., b : b + 64]
                if factors.core is None:
                    g = own.middle[a // 64 * r : a // 64 * r + r, b // 64 * r : b // 64 * r + r]
                else:
                    g = sum(own.middle[m, k] * factors.core[:, :, k] for k in range(r))
                width = min(64, value.shape[-1] - a)
                left = factors.up[:width] @ g @ factors.down[:, : inputs.shape[-1]]
                parts.append(F.pad(0.5 * inputs @ left.T, (a, value.shape[-1] - a - width)))
                m += 1
        return sum(parts)
    return change


def vera_by_hand(model):
    adapter = model.adapters[0]

    def change(place, layer, value, tokens):
        if place not in ('qkv', 'proj'):
            return value
        own = adapter.updates[2 * layer + (place == 'proj')]
        fixed = adapter.fixed[f'{value.shape[-1]}x64']
        matrix = own.outer.diag() @ fixed.up @ own.inner.diag() @ fixed.down
        return value + tokens @ matrix.T
    return change


def glora_by_hand(model):
    """Number by number, all of it as one weight and one bias."""
    adapter = model.adapters[0]

    def change(place, layer, value, tokens):
        if place != 'qkv':
            return value
        linear, forms = model.layers[layer].attn.qkv, adapter.updates[layer].forms

        def form(key, rows, columns):
            if key not in forms:
                return torch.zeros(rows, columns, dtype=torch.float64)
            own = forms[key]
            found = own.up if own.down is None else torch.einsum('or,ri->oi', own.up, own.down)
            return found + torch.zeros(rows, columns, dtype=torch.float64)

        w, b = linear.weight, linear.bias
        weight = w + w * form('weight_scale', *w.shape) + form('weight_shift', *w.shape)
        bias = b + b * form('bias_scale', len(b), 1)[:, 0] + form('bias_shift', len(b), 1)[:, 0]
        return tokens @ weight.T + bias + (w @ form('input_shift', 64, 1))[:, 0]
    return change


BY_HAND = {
    'BottleneckAdapter': (dict(reduction=8), adapter_by_hand),
    'AdaptFormer': (dict(hidden_dims=8, scale=0.3), adaptformer_by_hand),
    'RepAdapter': (dict(rank=4, scale=0.7), rep_by_hand),
    'SSF': ({}, ssf_by_hand),
    'Rein': (dict(num_tokens=6, rank=2), rein_by_hand),
    'Mona': (dict(hidden_dims=8), mona_by_hand),
    'Convpass': (dict(hidden_dims=4, scale=0.7), convpass_by_hand),
    'LoRA': (dict(rank=2, alpha=3, parts=['q', 'v']), lora_by_hand),
    'DoRA': (dict(rank=2, alpha=3, rslora=True), dora_by_hand),
    'FacT': (dict(rank=3, scale=0.5, dropout=0.0), fact_by_hand),
    'GLoRA': (dict(rank=3), glora_by_hand),
    'GLoRA-vectors': (dict(
        weight_scale='vector', weight_shift='scalar', input_shift='vector', bias_scale='vector',
        bias_shift='none'), glora_by_hand),
    'GLoRA-biases': (dict(
        weight_scale='none', weight_shift='none', input_shift='none', bias_scale='scalar',
        bias_shift='scalar'), glora_by_hand),
    'GLoRA-scales': (dict(
        weight_scale='scalar', weight_shift='none', input_shift='none', bias_shift='none'),
        glora_by_hand),
    'VeRA': (dict(rank=3, targets=[r'\.(qkv|proj)$']), vera_by_hand),
    'FacT-TK': (dict(rank=3, scale=0.5, form='tk'), fact_by_hand),
}


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('kind', BY_HAND)
def test_the_formula_written_out(kind, variant):
    settings, by_hand = BY_HAND[kind]
    model = with_adapter(kind, out_type='raw', **settings, **VARIANTS[variant])
    x = images(2, 3, 32, 32, dtype=torch.float64)
    (found,) = model(x)
    torch.testing.assert_close(found, reference(model, x, by_hand(model)), rtol=1e-10, atol=1e-10)
    plain = reference(model, x, lambda place, layer, value, tokens: value)
    assert (found - plain).abs().max() > 1e-3


@pytest.mark.parametrize('kind', BY_HAND)
@pytest.mark.parametrize('recompute', [dict(memory='lean'), dict(with_cp=True)], ids=str)
def test_recomputed_blocks_have_the_same_gradients(kind, recompute):
    adapter = dict(type=f'vpt_dense.{kind.partition("-")[0]}', **BY_HAND[kind][0])
    results = []
    for kwargs in ({}, recompute):
        model = randomise(tiny_vit(adapters=[adapter], **kwargs)).double().train()
        torch.manual_seed(3)
        outs = model(images(2, 3, 32, 32, dtype=torch.float64))
        outs[0].pow(2).sum().backward()
        results.append([p.grad for p in model.adapters.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_rein_leaves_all_but_patches_alone():
    """The tokens of one block, with the class token, registers and prompts before them."""
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
    model = with_adapter('Rein', num_tokens=6, rank=2, num_registers=2, prompt=prompt)
    x = images(2, 1 + 2 + 3 + 16, 64, dtype=torch.float64)
    out = model.adapters[0].after_block(x, 1, TokenLayout(3, 3, (4, 4)))
    assert torch.equal(out[:, :6], x[:, :6])
    assert (out != x)[:, 6:].all()


def test_a_first_token_of_rein_takes_what_no_other_should_have():
    """Where all patches choose the first token, only W_f acts."""
    model = with_adapter('Rein', num_tokens=4, rank=None)
    rein = model.adapters[0]
    x = images(1, 1 + 16, 64, dtype=torch.float64)
    x[:, 1:, 0] = 10
    with torch.no_grad():
        tokens = rein.tokens[0].factors[0]
        tokens.zero_()
        tokens[0, 0] = 1000
    out = rein.after_block(x, 0, TokenLayout(1, 0, (4, 4)))
    feature = rein.maps['64'].feature
    wanted = x[:, 1:] + rein.scale * (x[:, 1:] @ feature.weight.T + feature.bias)
    torch.testing.assert_close(out[:, 1:], wanted)


# --- convolutions on the grid ------------------------------------------------------------------


CONVOLUTIONS = {'Mona': dict(hidden_dims=8), 'Convpass': dict(hidden_dims=4)}


@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_tokens_without_a_place_are_changed_one_by_one(kind):
    """Class, register and prompt tokens; and patches meet their neighbours, not these."""
    branch = with_adapter(kind, **CONVOLUTIONS[kind]).adapters[0].branches[2]
    x = images(2, 1 + 2 + 3 + 15, 64, dtype=torch.float64)
    out = branch(x, TokenLayout(3, 3, (3, 5)))
    assert torch.equal(branch(x, TokenLayout(1, 5, (3, 5))), out)
    alone = branch(x[:, 6:], TokenLayout(0, 0, (3, 5)))
    torch.testing.assert_close(out[:, 6:], alone, rtol=1e-12, atol=1e-12)
    other = x.clone()
    other[:, 1:] += 1
    torch.testing.assert_close(branch(other, TokenLayout(3, 3, (3, 5)))[:, :1], out[:, :1])
    other = x.clone()
    other[:, 6] += 1  # the first place
    moved = (branch(other, TokenLayout(3, 3, (3, 5))) - out).abs().amax((0, 2)) > 1e-9
    assert not moved[1:6].any() and moved[6]
    reach = 4 if kind == 'Mona' else 2
    near = [row < reach and column < reach for row in range(3) for column in range(5)]
    assert moved[6:].tolist() == near
    with torch.no_grad():  # the map is rows of columns
        turned = branch(x[:, 6:].unflatten(1, (3, 5)).transpose(1, 2).flatten(1, 2),
                        TokenLayout(0, 0, (5, 3)))
        for each in branch.modules():
            if isinstance(each, nn.Conv2d):
                each.weight.copy_(each.weight.transpose(2, 3).clone())
        back = branch(x[:, 6:], TokenLayout(0, 0, (3, 5))).unflatten(1, (3, 5))
    torch.testing.assert_close(turned, back.transpose(1, 2).flatten(1, 2))


@pytest.mark.parametrize('kind', CONVOLUTIONS)
@pytest.mark.parametrize('deep', [True, False])
def test_the_same_where_the_first_token_alone_is_computed(kind, deep):
    """The last block of a classifier, with prompts as keys and values; and recomputed."""
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=deep)
    adapter = dict(type=f'vpt_dense.{kind}', dropout=0.0, **CONVOLUTIONS[kind])
    results = []
    for how in ({}, dict(prompts_as='tokens'), dict(memory='lean'), dict(with_cp=True)):
        model = randomise(tiny_vit(
            prompt=prompt, adapters=[adapter], out_type='cls_token', num_registers=2, **how))
        (out,) = model.double().train()(images(2, 3, 40, 24, dtype=torch.float64))
        out.pow(2).sum().backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
        results.append([out, *(p.grad for p in model.parameters() if p.requires_grad)])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-10, atol=1e-10)


def test_mona_has_no_filters_where_nothing_reads_patches():
    def filtered(**kwargs) -> list[int]:
        model = tiny_vit(adapters=[dict(type='vpt_dense.Mona')], **kwargs)
        return [len(branch.filters) for branch in model.adapters[0].branches]

    assert filtered() == [3] * 8
    assert filtered(out_type='cls_token') == [3] * 6 + [0] * 2
    assert filtered(out_type='cls_token', out_indices=[0]) == [0] * 8
    assert filtered(out_type='raw', out_indices=[1]) == [3] * 4 + [0] * 4


def test_mona_starts_with_the_norm_almost_off():
    torch.manual_seed(0)
    for zero in (True, False):
        for branch in with_start('Mona', zero_start=zero).branches:
            assert (branch.gamma == 1e-6).all() and (branch.gamma_x == 1).all()
            assert branch.up.weight.any() != zero and branch.up.bias.any() != zero
            assert branch.down.weight.any() and branch.mix.weight.any()
    branch = with_start('Convpass').branches[3]
    assert torch.equal(branch.conv.weight[:, :, 1, 1], torch.eye(8))
    assert branch.conv.weight.sum() == 8 and not branch.conv.bias.any()
    assert not any(tensor.any() for tensor in (branch.up.weight, branch.up.bias, branch.down.bias))


def with_start(kind: str, **settings) -> nn.Module:
    return tiny_vit(adapters=[dict(type=f'vpt_dense.{kind}', **settings)]).adapters[0]


def test_convpass_does_not_call_the_norms_again():
    model = with_adapter('Convpass')
    seen = []
    for layer in model.layers:
        layer.ln1.register_forward_hook(lambda *_: seen.append(1))
        layer.ln2.register_forward_hook(lambda *_: seen.append(2))
    model(images(1, 3, 32, 32, dtype=torch.float64))
    assert seen == [1, 2] * 4


@pytest.mark.parametrize('kind', CONVOLUTIONS)
def test_patches_that_attend_to_themselves_are_on_the_grid_too(kind):
    """CLIP's last block for dense prediction."""
    cfg = dict(type='vpt_dense.CLIPVisionTransformer', arch=TINY_ARCH, img_size=32, patch_size=8,
               project_dims=16, out_type='embeddings', out_indices=[1, 3], dense_from='values')
    adapter = dict(type=f'vpt_dense.{kind}', **CONVOLUTIONS[kind])
    model = randomise(MODELS.build(dict(cfg, adapters=[adapter]))).double().eval()
    x, last = images(2, 3, 32, 48, dtype=torch.float64), model.layers[3]
    entered = []
    last.register_forward_pre_hook(lambda _, args: entered.append(args[0]))
    _, patches, _ = model(x)
    before = entered[0][:, 1:]
    values = last.attn.qkv(last.ln1(before))[..., 128:]
    layout, (first, second) = TokenLayout(0, 0, (4, 6)), model.adapters[0].branches[6:]
    made = before + last.attn.proj(values)
    if kind == 'Mona':
        made = first(made, layout)
        made = second(made + last.ffn.layers(last.ln2(made)), layout)
    else:
        made = made + first(last.ln1(before), layout)
        made = made + last.ffn.layers(last.ln2(made)) + second(last.ln2(made), layout)
    wanted = model.proj(model.ln1(made)).unflatten(1, (4, 6)).permute(0, 3, 1, 2)
    torch.testing.assert_close(patches, wanted)


# --- side-tuning -----------------------------------------------------------------------------


def alexnet_of(side: nn.Module) -> nn.Module:
    """torchvision's network with the side network's weights."""
    net = torchvision.models.alexnet().double().eval()
    net.features.load_state_dict(side.features.state_dict())
    return net


def small_side(**kwargs) -> nn.Module:
    """Values at which the side network neither dies nor explodes."""
    torch.manual_seed(0)
    model = randomise(tiny_vit(adapters=[dict(type='vpt_dense.SideNetwork')], **kwargs))
    for module in model.adapters.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()
    return model.double().eval()


@pytest.mark.slow
def test_side_network_on_vectors_is_alexnet_with_a_linear_layer():
    model = small_side(img_size=224, out_type='cls_token')
    side = model.adapters[0]
    x = images(2, 3, 224, 224, dtype=torch.float64)
    plain = tiny_vit(img_size=224, out_type='cls_token').double().eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not is_added(n)})
    net = alexnet_of(side)
    g = torch.flatten(net.avgpool(net.features(x)), 1) @ side.out[0].weight.T
    share = 1 / (1 + torch.exp(-side.alpha))
    torch.testing.assert_close(model(x)[0], share * plain(x)[0] + (1 - share) * g)
    assert g.std() > 1e-4  # it matters


def test_side_network_on_maps_is_a_convolution_resized():
    model = small_side(out_indices=[1, 3])
    x = images(2, 3, 96, 64, dtype=torch.float64)
    plain = tiny_vit(out_indices=[1, 3]).double().eval()
    plain.load_state_dict({n: t for n, t in model.state_dict().items() if not is_added(n)})
    side = model.adapters[0]
    features = alexnet_of(side).features(x)
    for out, own, weight in zip(model(x), plain(x), side.out, strict=True):
        g = torch.einsum('bihw,oi->bohw', features, weight.weight[:, :, 0, 0])
        g = F.interpolate(g, own.shape[2:], mode='bilinear')
        torch.testing.assert_close(out, side.alpha.sigmoid() * own + (1 - side.alpha.sigmoid()) * g)


@pytest.mark.slow
def test_side_network_starts_half_and_half_from_the_weights_it_is_given(tmp_path):
    torch.manual_seed(1)
    net = torchvision.models.alexnet()
    path = tmp_path / 'alexnet.pth'
    torch.save(net.state_dict(), path)
    adapter = dict(type='vpt_dense.SideNetwork', weights=str(path))
    model = tiny_vit(adapters=[adapter])
    model.init_weights()
    side = model.adapters[0]
    assert side.alpha.shape == () and side.alpha == 0
    for name, tensor in net.features.state_dict().items():
        assert torch.equal(side.features.state_dict()[name], tensor)
    torch.save(dict(state_dict={'features.0.weight': torch.zeros(3)}), path)
    with pytest.raises(UserError, match=r'adapters\.weights: .*alexnet.pth is not AlexNet'):
        tiny_vit(adapters=[adapter]).init_weights()
    path.unlink()
    with pytest.raises(UserError, match=r'alexnet\.pth: no such file'):
        tiny_vit(adapters=[adapter]).init_weights()


# --- how they start, and that they move -------------------------------------------------------


@pytest.mark.parametrize(
    'kind', ['BottleneckAdapter', 'AdaptFormer', 'RepAdapter', 'LoRA', 'DoRA', 'Mona', 'Convpass'])
@pytest.mark.parametrize('backbone', [{}, SWIGLU], ids=['plain', 'swiglu'])
def test_not_dead_after_one_step_or_two(kind, backbone):
    """What starts at zero moves first, the rest from the second step on, and nothing stays."""
    torch.manual_seed(0)
    base = randomise(tiny_vit(**backbone)).state_dict()
    model = tiny_vit(adapters=[dict(type=f'vpt_dense.{kind}')], **backbone)
    model.load_state_dict(base, strict=False)
    model.double().train()
    start = {n: p.detach().clone() for n, p in model.adapters.named_parameters()}
    optimizer = torch.optim.SGD(model.adapters.parameters(), lr=0.1)
    for step in (1, 2):
        optimizer.zero_grad()
        target = images(2, 64, 4, 4, seed=4, dtype=torch.float64)
        (model(images(2, 3, 32, 32, dtype=torch.float64))[0] * target).sum().backward()
        for name, parameter in model.adapters.named_parameters():
            first = re.search(r'\.up(\.|$)|^updates\.\d+\.bias$', name)
            if step == 2 or first:
                assert parameter.grad.abs().max() > 0, (step, name)
        optimizer.step()
    for name, parameter in model.adapters.named_parameters():
        assert (parameter != start[name]).any(), name


def test_starting_values():
    torch.manual_seed(0)
    wide = dict(arch=dict(embed_dims=256, num_layers=2, num_heads=4, feedforward_channels=512))
    built = {
        kind: tiny_vit(**wide, adapters=[dict(type=f'vpt_dense.{kind}', **settings)]).adapters[0]
        for kind, settings in {
            'BottleneckAdapter': {}, 'AdaptFormer': {}, 'RepAdapter': {}, 'SSF': {}, 'LoRA': {},
            'Rein': dict(num_tokens=50, rank=4),
        }.items()
    }

    def bound(tensor, wanted):  # of a uniform distribution
        assert wanted * 0.98 < tensor.abs().max() <= wanted * (1 + 1e-6)
        assert tensor.std().item() == pytest.approx(wanted / math.sqrt(3), rel=0.05)

    for down, up in ((built['BottleneckAdapter'].bottlenecks[1].down,
                      built['BottleneckAdapter'].bottlenecks[1].up),
                     (built['AdaptFormer'].branches[1].down, built['AdaptFormer'].branches[1].up)):
        bound(down.weight, 1 / 16)  # kaiming, a = sqrt(5): 1 / sqrt(fan in)
        assert not any(tensor.any() for tensor in (down.bias, up.weight, up.bias))
    assert built['BottleneckAdapter'].bottlenecks[0].down.weight.shape == (32, 256)
    rep = built['RepAdapter'].updates[0]
    bound(rep.down.weight, math.sqrt(6 / (256 + 8)))
    assert not any(tensor.any() for tensor in (rep.down.bias, rep.up, rep.bias))
    bound(built['LoRA'].updates[0].down, 1 / 16)
    assert not built['LoRA'].updates[0].up.any()
    gammas = torch.cat([affine.gamma for affine in built['SSF'].affines])
    betas = torch.cat([affine.beta for affine in built['SSF'].affines])
    for values, mean in ((gammas, 1), (betas, 0)):
        assert values.mean().item() == pytest.approx(mean, abs=0.002)
        assert values.std().item() == pytest.approx(0.02, rel=0.05)
    rein = built['Rein']
    for factor in rein.tokens[0].factors:
        bound(factor, math.sqrt(6 / (3 * 8 * 8 + math.sqrt(256 * 4))))
    assert rein.scale.item() == pytest.approx(1e-3)


def test_odd_reductions_round_down():
    adapter = dict(type='vpt_dense.BottleneckAdapter', reduction=7)
    assert tiny_vit(adapters=[adapter]).adapters[0].bottlenecks[0].down.out_features == 9


# --- counts ----------------------------------------------------------------------------------


def kind(name: str, **settings) -> dict:
    return dict(adapters=[dict(type=f'vpt_dense.{name}', **settings)])


LAYERNORM, = Config.fromfile(CONFIGS / '_base_/methods/layernorm.py').method.trainable
#: Tuning -> parameters of ViT-B/16 and ViT-L/16. Those of partial-k, the Adapter on ViT-B and the
#: side network were counted in the VPT authors' code; the others follow from the formulas of the
#: papers. Rein's: 2,990,081 and 5,016,065 of its code less the 459,264 of its query layers.
COUNTS = [
    (dict(trainable=['partial:1']), 7_089_408, 12_598_272),
    (dict(trainable=['partial:2']), 14_177_280, 12_596_224 * 2 + 2048),
    (dict(trainable=['partial:4']), 28_353_024, 12_596_224 * 4 + 2048),
    (dict(trainable=['last:4']), 28_353_024 - 1536, 12_596_224 * 4),
    (dict(trainable=[LAYERNORM]), 12 * 4 * 768 + 1536, 24 * 4 * 1024 + 2048),
    (dict(trainable=[r'\.proj\.(weight|bias)$']), 12 * (768**2 + 768), 24 * (1024**2 + 1024)),
    (kind('BottleneckAdapter', reduction=8), 1_779_840, 6_319_104),
    (kind('AdaptFormer'), 1_189_632, 3_171_840),
    (kind('LoRA', rank=16), 589_824, 1_572_864),
    (kind('LoRA', rank=8, parts=('q', 'v')), 294_912, 786_432),
    (kind('DoRA', rank=8), 294_912 + 12 * 3 * 768, 786_432 + 24 * 3 * 1024),
    (kind('VeRA', parts=['q', 'v']), 24_576, 24 * 2 * (256 + 1024)),
    (kind('GLoRA'), 12 * (2 * 4 * 4 * 768 + 4 * 769 + 3 * 768),
     24 * (2 * 4 * 4 * 1024 + 4 * 1025 + 3 * 1024)),
    (kind('FacT'), 61_440, 106_496),
    (kind('FacT', form='tk'), 30_976, 41_472),
    (kind('SoMA', layer_range=(0, None)), 2_654_208, 294_912 * 24),
    (kind('SoMA'), None, 294_912 * 16),
    (kind('SSF'), 205_824, 544_768),
    (kind('RepAdapter'), 239_808, 639_360),
    (dict(kind('Rein'), out_type='featmap'), None, 2_990_081 - 459_264),
    (dict(kind('Rein', rank=None), out_type='featmap'), None, 5_016_065 - 459_264),
    (kind('SideNetwork'), 9_547_585, 9_547_585 + 256 * 9216),
]


@pytest.mark.parametrize(('tuning', 'base', 'large'), COUNTS, ids=lambda v: str(v)[:60])
def test_counts_on_vit_base_and_large(tuning, base, large):
    for arch, wanted in (('base', base), ('large', large)):
        if wanted is None:
            continue
        with torch.device('meta'):
            model = MODELS.build(dict(
                type='vpt_dense.VisionTransformer', arch=arch, img_size=224,
                **{'out_type': 'cls_token', **tuning}))
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == wanted


def test_rein_has_tokens_where_patches_are_read():
    def tokens(**kwargs):
        return len(tiny_vit(**kind('Rein'), **kwargs).adapters[0].tokens)

    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
    assert tokens(out_type='featmap') == tokens(out_type='avg_featmap') == 4
    assert tokens(out_type='cls_token') == 3
    assert tokens(out_type='featmap', out_indices=[0, 1]) == 2
    assert tokens(out_type='avg_tokens', pool='prompts', prompt=prompt) == 3
    assert tokens(out_type='avg_tokens', pool='both', prompt=prompt) == 4


# --- selections ------------------------------------------------------------------------------


def trained(model: nn.Module) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad}


def named(model: nn.Module, *starts: str) -> set[str]:
    return {n for n, _ in model.named_parameters() if n.startswith(starts)}


def tiny_swin(**kwargs) -> nn.Module:
    return MODELS.build({**BACKBONES['swin'].cfg, **kwargs})


def test_the_last_blocks_whatever_the_depth():
    model = tiny_vit(trainable=['last:2'])
    assert trained(model) == named(model, 'layers.2.', 'layers.3.')
    model = tiny_vit(trainable=['partial:1'])
    assert trained(model) == named(model, 'layers.3.', 'ln1.')
    model = tiny_vit(trainable=['partial:1'], final_norm=False)  # as in SETR
    assert trained(model) == named(model, 'layers.3.')
    model = tiny_vit(trainable=['partial:1'], out_type='avg_featmap', final_norm=False)
    assert trained(model) == named(model, 'layers.3.', 'ln2.')
    model = tiny_swin(trainable=['partial:3'], out_indices=(0, 1))
    assert trained(model) == named(
        model, 'stages.0.blocks.1.', 'stages.1.blocks.', 'norm0.', 'norm1.')
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
    model = tiny_vit(trainable=['last:1', r'^prompt\.'], prompt=prompt)
    assert trained(model) == named(model, 'layers.3.', 'prompt.')


@pytest.mark.parametrize(('pattern', 'message'), [
    ('last:5', r'trainable: last:5 asks for 5 of the 4 transformer blocks of Vision'),
    ('partial:0', r'trainable: partial:0 asks for 0 of the 4 transformer blocks'),
    ('last:x', r"trainable: pattern 'last:x' matches none"),
])
def test_blocks_that_are_not_there(pattern, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(trainable=[pattern])


def test_convolutional_networks_have_no_blocks_to_count():
    with pytest.raises(ValueError, match=r'last:1 asks for 1 of the 0 .* name its layers by patt'):
        MODELS.build(dict(type='vpt_dense.ResNet', depth=18, trainable=['last:1']))


@pytest.mark.parametrize('build', [
    tiny_vit, tiny_swin, lambda **kw: tiny_vit(pre_norm=True, out_type='avg_featmap', **kw),
    lambda **kw: MODELS.build({**BACKBONES['convnext'].cfg, **kw})])
def test_layernorm_is_all_norms_and_nothing_else(build):
    plain = build()
    wanted = {
        f'{name}.{own}' for name, module in plain.named_modules()
        if isinstance(module, nn.LayerNorm) for own in ('weight', 'bias')
    }
    assert wanted and trained(build(trainable=[LAYERNORM])) == wanted


@pytest.mark.parametrize('build', [tiny_vit, tiny_swin])
def test_attention_projection_is_that_of_every_block(build):
    plain = build()
    names = {module: name for name, module in plain.named_modules()}
    wanted = {
        f'{names[b.proj]}.{own}' for b in plain.block_list() for own in ('weight', 'bias')}
    assert trained(build(trainable=[r'\.proj\.(weight|bias)$'])) == wanted


def test_bias_of_a_swin_is_without_its_tables():
    names = trained(tiny_swin(trainable=['bias$']))
    assert {re.sub(r'.*\.', '', name) for name in names} == {'bias'}


def test_mlp_3_is_a_head_of_three_layers():
    cfg = config.load('configs/vpt/vit-b_mlp-3_imagefolder.py')
    parts = params.report(building.build_model(cfg, 'meta'))['parts']
    d, classes = 768, 1000
    head = 2 * (d * d + d) + 2 * 2 * d + (d + 1) * classes  # two batch norms
    assert parts['classification head']['trainable'] == head
    assert parts['backbone']['trainable'] == 0
    built = MODELS.build({**cfg.model.head, 'type': 'mmpretrain.StackedLinearClsHead'})
    built.init_weights()
    kinds = [type(m).__name__ for m in built.layers[0].children()]
    assert sorted(kinds) == ['BatchNorm1d', 'Dropout', 'Linear', 'ReLU']
    assert built.fc.fc.bias.unique().tolist() == [pytest.approx(-math.log(99), rel=1e-6)]
    assert not built.layers[0].fc.bias.any() and not built.layers[1].fc.bias.any()
    for layer in built.layers:  # kaiming normal, fan out
        assert layer.fc.weight.std().item() == pytest.approx(
            math.sqrt(2 / layer.fc.out_features), rel=0.02)


# --- variants of LoRA --------------------------------------------------------------------------


def test_rslora_divides_by_the_root_of_the_rank():
    """The same numbers as a LoRA whose alpha is that much larger."""
    x = images(2, 3, 32, 32, dtype=torch.float64)
    model = with_adapter('LoRA', rank=4, alpha=3, rslora=True)
    other = with_adapter('LoRA', rank=4, alpha=3 * math.sqrt(4))
    plain = with_adapter('LoRA', rank=4, alpha=3)
    torch.testing.assert_close(model(x), other(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(x)[0], plain(x)[0])


@pytest.mark.parametrize('settings', [
    dict(rank=3), dict(rank=3, alpha=5, targets=[r'\.(qkv|proj|fc1|fc2)$'])], ids=str)
def test_dora_has_the_gradients_of_peft(settings):
    """And its values, also after the start, where its magnitude is a norm and not a difference."""
    peft = pytest.importorskip('peft')
    import timm

    def build() -> nn.Module:
        return randomise(timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)).double()

    ours = host_of(model := build()).take_over(
        model, adapters=[dict(type='vpt_dense.DoRA', **settings)])
    ends = [t.split('.')[-1] for t in ours.adapters[0].names]
    theirs = peft.get_peft_model(build(), peft.LoraConfig(
        r=3, lora_alpha=settings.get('alpha', 3), use_dora=True, target_modules=sorted(set(ends))))
    x = images(2, 3, 32, 32, dtype=torch.float64)
    layers = theirs.base_model.model
    for name, update in zip(ours.adapters[0].names, ours.adapters[0].updates, strict=True):
        layer = layers.get_submodule(name)
        pairs = [(layer.lora_A['default'].weight, update.low.down),
                 (layer.lora_B['default'].weight, update.low.up)]
        norm = layer.lora_magnitude_vector['default'].weight
        torch.testing.assert_close(norm.double(), update.norms(layer.weight)[0], rtol=1e-6, atol=0)
        randomise(update, seed=len(name))
        with torch.no_grad():
            for their, own in pairs:
                their.data = own.double().clone()
            norm.data = update.norms(layer.weight)[0] + update.magnitude
    ours.train(), theirs.train()
    results = []
    for model in (ours, theirs):
        model(x).square().sum().backward()
    for name, update in zip(ours.adapters[0].names, ours.adapters[0].updates, strict=True):
        layer = layers.get_submodule(name)
        results += [
            (update.low.down.grad, layer.lora_A['default'].weight.grad),
            (update.low.up.grad, layer.lora_B['default'].weight.grad),
            (update.magnitude.grad, layer.lora_magnitude_vector['default'].weight.grad)]
    for own, their in results:
        torch.testing.assert_close(own, their, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-10)


def test_dora_starts_at_weights_that_come_after_it_was_built():
    """Rows of zeros, which have no direction, stay finite."""
    model = tiny_vit(**kind('DoRA', targets=[r'\.(qkv|fc2)$']))
    plain = randomise(tiny_vit())
    with torch.no_grad():
        plain.layers[1].attn.qkv.weight[3] = 0
    model.load_state_dict(plain.state_dict(), strict=False)
    x = images(2, 3, 32, 32)
    assert torch.equal(model(x)[0], plain(x)[0])
    model.train()(x)[0].sum().backward()
    assert all(p.grad.isfinite().all() for p in model.adapters.parameters())
    model.eval()
    with torch.no_grad():
        model.adapters[0].merge(model)
        torch.testing.assert_close(model(x)[0], plain(x)[0])


@pytest.mark.parametrize(('theirs', 'ours'), [
    (dict(config_A_B='lora', config_C='lora', config_D_E='vector'), dict(bias_scale='vector')),
    (dict(config_A_B='vector', config_C='vector', config_D_E='constant'), dict(
        weight_scale='vector', weight_shift='vector', input_shift='vector', bias_scale='scalar',
        bias_shift='scalar')),
    (dict(config_A_B='constant', config_C='none', config_D_E='none'), dict(
        weight_scale='scalar', weight_shift='scalar', input_shift='none', bias_shift='none')),
], ids=['products', 'vectors', 'numbers'])
def test_glora_has_the_gradients_of_peft(theirs, ours):
    peft = pytest.importorskip('peft', '0.21')
    import timm

    def build() -> nn.Module:
        return randomise(timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)).double()

    model = host_of(one := build()).take_over(one, **kind('GLoRA', rank=3, **ours))
    other = peft.get_peft_model(build(), peft.GloraConfig(r=3, target_modules=['qkv'], **theirs))
    randomise(model.adapters, seed=2)
    letters = dict(
        weight_scale='A', weight_shift='B', input_shift='C', bias_scale='D', bias_shift='E')
    pairs = []
    for name, update in zip(model.adapters[0].names, model.adapters[0].updates, strict=True):
        layer = other.base_model.model.get_submodule(name)
        for key, form in update.forms.items():
            path = getattr(layer, f'glora_{letters[key]}')['default']
            own = [form.up] if form.down is None else [form.up, form.down]
            for mine, their in zip(own, path.parameters(), strict=True):
                their.data = mine.detach().clone().view(their.shape)
                pairs.append((mine, their))
    x = images(2, 3, 32, 32, dtype=torch.float64)
    for each in (model.train(), other.train()):
        each(x).square().sum().backward()
    torch.testing.assert_close(model(x), other(x), rtol=1e-10, atol=1e-10)
    trained = sum(p.numel() for p in other.parameters() if p.requires_grad)
    assert trained == sum(mine.numel() for mine, _ in pairs) > 0
    for mine, their in pairs:
        torch.testing.assert_close(mine.grad.flatten(), their.grad.flatten(), rtol=1e-8, atol=1e-8)


def test_glora_scales_no_bias_where_there_is_none():
    with pytest.raises(ValueError, match=r"adapters\.bias_scale='vector': layers\.0.* has no bias"):
        tiny_vit(**kind('GLoRA', bias_scale='vector'), qkv_bias=False)
    tiny_vit(**kind('GLoRA'), qkv_bias=False)
    with pytest.raises(ValueError, match='GLoRA must act on .* list GLoRA before it'):
        tiny_vit(adapters=[dict(type='vpt_dense.LoRA'), dict(type='vpt_dense.GLoRA')])


@pytest.mark.parametrize('other', [dict(type='vpt_dense.LoRA'), dict(type='vpt_dense.SSF'),
                                   dict(type='vpt_dense.DoRA')])
def test_dora_comes_before_what_changes_outputs(other):
    dora = dict(type='vpt_dense.DoRA')
    with pytest.raises(ValueError, match=r'adapters: DoRA must act on .*qkv give, .*list DoRA bef'):
        tiny_vit(adapters=[other, dora])
    if other != dora:
        tiny_vit(adapters=[dora, other])


def test_dora_comes_after_what_changes_inputs_or_other_layers():
    tiny_vit(adapters=[
        dict(type='vpt_dense.LoRA', targets=['fc1']), dict(type='vpt_dense.RepAdapter'),
        dict(type='vpt_dense.DoRA', targets=['qkv$'])])


def started(kind_: str, **settings) -> tuple[nn.Module, nn.Module]:
    """A ViT with weights, and the same tuned and then started from them; in float32."""
    plain = randomise(tiny_vit()).eval()
    model = tiny_vit(**kind(kind_, **settings)).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    for adapter in model.adapters:
        adapter.start_from(model)
    return plain, model


@pytest.mark.parametrize('name', ['PiSSA', 'SoMA'])
def test_singular_components_are_those_of_the_weights(name):
    """By numpy in float64: the largest of PiSSA, the smallest of SoMA; each of q, k and v."""
    settings = dict(rank=5) if name == 'SoMA' else dict(rank=5, alpha=2, parts=['q', 'k', 'v'])
    plain, model = started(name, **settings)
    (adapter,) = model.adapters
    scale = settings.get('alpha', 5) / 5
    layers = [1, 2, 3] if name == 'SoMA' else range(4)
    suffixes = ['attn.qkv'] * 3 + (
        ['attn.proj', 'ffn.layers.0.0', 'ffn.layers.1'] if name == 'SoMA' else [])
    assert sorted(adapter.names) == sorted(f'layers.{i}.{s}' for i in layers for s in suffixes)
    thirds = {}
    for layer, update in zip(adapter.names, adapter.updates, strict=True):
        weight = plain.get_submodule(layer).weight.detach().double().numpy()
        if layer.endswith('qkv'):
            index = thirds[layer] = thirds.get(layer, -1) + 1
            weight = weight[64 * index : 64 * (index + 1)]
        u, s, v = np.linalg.svd(weight, full_matrices=False)
        some = slice(0, 5) if name == 'PiSSA' else slice(-5, None)
        wanted = torch.from_numpy((u[:, some] * s[some]) @ v[some])
        found = scale * update.up.double() @ update.down.double()
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
        # The singular value is shared by the two factors.
        ours = (update.down.double().norm(dim=1) ** 2 * scale).detach().numpy()
        np.testing.assert_allclose(ours, s[some], rtol=1e-3, atol=1e-5)
        assert torch.equal(update.up, update.first_up)
        assert torch.equal(update.down, update.first_down)
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], plain(x)[0], rtol=0, atol=1e-6)
    state = model.state_dict()
    assert all(torch.equal(state[n], t) for n, t in plain.state_dict().items())


def test_pissa_is_that_of_peft():
    """Start, outputs after steps and all: PEFT changes the base's weights, ours stay."""
    peft = pytest.importorskip('peft')
    import timm

    def build() -> nn.Module:
        return randomise(timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0))

    model = build()
    ours = host_of(model).take_over(
        model, adapters=[dict(type='vpt_dense.PiSSA', rank=3, alpha=2)])
    theirs = peft.get_peft_model(build(), peft.LoraConfig(
        r=3, lora_alpha=2, init_lora_weights='pissa', target_modules=['qkv']))
    x = images(2, 3, 32, 32, dtype=torch.float64)
    for name, update in zip(ours.adapters[0].names, ours.adapters[0].updates, strict=True):
        layer = theirs.base_model.model.get_submodule(name)
        their = layer.lora_B['default'].weight @ layer.lora_A['default'].weight
        torch.testing.assert_close(update.up @ update.down, their, rtol=0, atol=1e-5)
        assert not torch.allclose(model.get_submodule(name).weight, layer.base_layer.weight)
    ours.double().train(), theirs.double().train()
    for model in (ours, theirs):
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.05)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-5)
    assert (ours(x) - build().double()(x)).abs().max() > 1e-3


def test_both_pairs_are_in_what_is_saved_and_no_component_is_computed_again(monkeypatch):
    _, model = started('SoMA', rank=3)
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    state = model.state_dict()
    monkeypatch.setattr(torch.linalg, 'svd', None)
    again = tiny_vit(**kind('SoMA', rank=3)).eval()
    again.load_state_dict(state)
    x = images(2, 3, 32, 32)
    assert torch.equal(again(x)[0], model(x)[0])
    assert {'adapters.0.updates.0.first_up', 'adapters.0.updates.0.first_down'} <= state.keys()


def test_components_are_those_of_weights_that_init_cfg_loads(tmp_path):
    plain = randomise(tiny_vit(), seed=4)
    path = tmp_path / 'base.pth'
    torch.save({f'backbone.{n}': t for n, t in plain.state_dict().items()}, path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    model = tiny_vit(**kind('PiSSA', rank=64), init_cfg=init_cfg)
    assert not model.adapters[0].updates[0].up.any()  # as a LoRA until the weights are there
    model.init_weights()
    for i, update in enumerate(model.adapters[0].updates):  # all there is
        torch.testing.assert_close(
            update.up @ update.down, plain.layers[i].attn.qkv.weight, rtol=0, atol=1e-5)


def test_the_matrices_of_vera_are_of_its_seed_and_stay_in_what_is_saved():
    def build(**settings) -> nn.Module:
        torch.manual_seed(settings.get('seed', 1))  # which has no part in it
        return tiny_vit(**kind('VeRA', rank=300, targets=[r'\.(qkv|fc1|fc2)$'], **settings))

    model, again, other = build(), build(), build(seed=3)
    fixed = dict(model.adapters[0].fixed.named_buffers())
    assert fixed.keys() == {
        f'{shape}.{name}' for shape in ('192x64', '128x64', '64x128') for name in ('down', 'up')}
    for name, tensor in fixed.items():
        bound = math.sqrt(6 / tensor.shape[1])  # kaiming uniform
        assert 0.98 * bound < tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert torch.equal(tensor, again.adapters[0].fixed.get_buffer(name))
        assert not torch.equal(tensor, other.adapters[0].fixed.get_buffer(name))
    for update in model.adapters[0].updates:
        assert not update.outer.any() and update.inner.unique().tolist() == [pytest.approx(0.1)]
    randomise(model)
    other.load_state_dict(model.state_dict())
    x = images(2, 3, 32, 32)
    assert torch.equal(other.eval()(x)[0], model.eval()(x)[0])
    assert 'adapters.0.fixed.192x64.down' in model.state_dict()


def test_vera_computes_what_peft_does():
    peft = pytest.importorskip('peft')
    import timm

    def build() -> nn.Module:
        return randomise(timm.models.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=0)).double()

    ours = host_of(model := build()).take_over(model, **kind('VeRA', rank=5))
    theirs = peft.get_peft_model(build(), peft.VeraConfig(r=5, target_modules=['qkv']))
    randomise(ours.adapters, seed=2)
    (fixed,) = ours.adapters[0].fixed.values()
    theirs.base_model.vera_A['default'].data = fixed.down
    theirs.base_model.vera_B['default'].data = fixed.up
    for name, update in zip(ours.adapters[0].names, ours.adapters[0].updates, strict=True):
        layer = theirs.base_model.model.get_submodule(name)
        layer.vera_A['default'], layer.vera_B['default'] = fixed.down, fixed.up
        layer.vera_lambda_d['default'].data = update.inner.data
        layer.vera_lambda_b['default'].data = update.outer.data
    x = images(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-6, atol=1e-6)
    assert (ours(x) - build()(x)).abs().max() > 1e-3


def test_soma_takes_queries_keys_and_values_apart_in_every_family():
    model = tiny_swin(**kind('SoMA', rank=2))
    names = model.adapters[0].names
    assert {name[:17] for name in names} == {
        'stages.0.blocks.1', 'stages.1.blocks.0', 'stages.1.blocks.1'}
    assert len(names) == 3 * (3 + 3) and sum(name.endswith('qkv') for name in names) == 9
    model = tiny_vit(**kind('SoMA', rank=2, layer_range=(-1, None), targets=['fc2']))
    assert model.adapters[0].names == ['layers.3.ffn.layers.1']


# --- targets of LoRA --------------------------------------------------------------------------


def test_names_of_blocks_are_targets_in_every_family():
    targets = [r'\.(fc1|fc2|proj)$']
    for model, wanted in (
        (tiny_vit(**kind('LoRA', targets=targets)),
         ['attn.proj', 'ffn.layers.0.0', 'ffn.layers.1']),
        (tiny_vit(**kind('LoRA', targets=targets), **SWIGLU), ['attn.proj', 'ffn.w12', 'ffn.w3']),
    ):
        names = model.adapters[0].names
        assert set(names) == {f'layers.{i}.{name}' for i in range(4) for name in wanted}
    model = tiny_swin(**kind('LoRA', targets=targets))
    assert len(model.adapters[0].names) == 12
    # By their own names too; never what tuning itself added.
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=2, project_dims=4)
    model = tiny_vit(prompt=prompt, **kind('LoRA', targets=['.']))
    assert not any(is_added(name) for name in model.adapters[0].names)


@pytest.mark.slow
def test_copies_have_hooks_of_their_own():
    x = images(1, 3, 32, 32, dtype=torch.float64)
    for name, (settings, _) in BY_HAND.items():
        model = with_adapter(name, **settings)
        before = model(x)[0]
        other = copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.adapters.parameters():
                parameter.add_(0.1)
        assert not torch.allclose(other(x)[0], before), name
        assert torch.equal(model(x)[0], before), name


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'settings', 'message'), [
    ('BottleneckAdapter', dict(reduction=0), r'adapters\.reduction must be an integer'),
    ('BottleneckAdapter', dict(reduction=65), r'adapters\.reduction=65 leaves nothing'),
    ('AdaptFormer', dict(hidden_dims=1.5), r'adapters\.hidden_dims must be an integer'),
    ('AdaptFormer', dict(dropout=1), r'adapters\.dropout must be a number'),
    ('RepAdapter', dict(rank=0), r'adapters\.rank must be an integer'),
    ('RepAdapter', dict(rank=3), r'adapters\.groups=2 must divide adapters\.rank=3 .*found 3'),
    ('RepAdapter', dict(rank=6, groups=3), r'adapters\.groups=3 must divide .*found 64'),
    ('Rein', dict(num_tokens=1), r'adapters\.num_tokens must be an integer of at least 2'),
    ('Rein', dict(rank=0), r'adapters\.rank must be an integer'),
    ('LoRA', dict(parts='qv'), r"adapters\.parts must be some of 'q', 'k', 'v', found 'qv'"),
    ('LoRA', dict(parts=['q', 'q']), r"adapters\.parts must be some of 'q', 'k', 'v'"),
    ('LoRA', dict(parts=2), r"adapters\.parts must be some of 'q', 'k', 'v', found 2"),
    ('LoRA', dict(alpha=0), r'adapters\.alpha must be a number above 0, found 0'),
    ('LoRA', dict(alpha='8'), r"adapters\.alpha must be a number above 0, found '8'"),
    ('AdaptFormer', dict(scale=None), r'adapters\.scale must be a number above 0, found None'),
    ('RepAdapter', dict(scale=[1]), r'adapters\.scale must be a number above 0, found \[1\]'),
    ('Rein', dict(scale=math.nan), r'adapters\.scale must be a number, found nan'),
    ('AddPrompt', dict(per_token='no'), r"adapters\.per_token must be True or False, found 'no'"),
    ('AddPrompt', dict(deep=1), r'adapters\.deep must be True or False, found 1'),
    ('SideNetwork', dict(weights=5), r'adapters\.weights must be a path, .* found 5'),
    ('LoRA', dict(rslora=True), r'adapters\.rslora=True divides .*alpha=None; say adapters\.alpha'),
    ('LoRA', dict(rslora='no', alpha=1), r"adapters\.rslora must be True or False, found 'no'"),
    ('PiSSA', dict(rank=65), r'adapters\.rank=65 is above the 64 singular values of layers'),
    ('FacT', dict(form='cp'), r"adapters\.form must be 'tt' or 'tk', found 'cp'"),
    ('FacT', dict(scale=0), r'adapters\.scale must be a number above 0, found 0'),
    ('VeRA', dict(seed=-1), r'adapters\.seed must be an integer of at least 0, found -1'),
    ('VeRA', dict(start=0), r'adapters\.start=0 would never change'),
    ('VeRA', dict(parts=['x']), r"adapters\.parts must be some of 'q', 'k', 'v', found \['x'\]"),
    ('GLoRA', dict(rank=0), r'adapters\.rank must be an integer'),
    ('GLoRA', dict(weight_scale='full'), r"adapters\.weight_scale must be 'lora', 'vector', 'scal"),
    ('GLoRA', dict(input_shift='scalar'), r"adapters\.input_shift must be 'lora', 'vector' or 'n"),
    ('GLoRA', dict(bias_scale='lora'), r"adapters\.bias_scale must be 'vector', 'scalar' or"),
    ('GLoRA', dict.fromkeys(('weight_scale', 'weight_shift', 'input_shift', 'bias_shift'), 'none'),
     r"adapters: weight_scale, .*, bias_shift of GLoRA are all 'none'; choose one"),
    ('PiSSA', dict(alpha=0), r'adapters\.alpha must be a number above 0, found 0'),
    ('PiSSA', dict(parts='q'), r"adapters\.parts must be some of 'q', 'k', 'v', found 'q'"),
    ('SoMA', dict(rank=0), r'adapters\.rank must be an integer'),
    ('SoMA', dict(layer_range=(4, None)), r'adapters\.layer_range must be a pair .*4 layers'),
    ('SoMA', dict(targets=[r'layers\.0\..*qkv']), r'adapters\.targets=.* names no layer of the bl'),
    ('LoRA', dict(parts=[]), r"adapters\.parts must be some of 'q', 'k', 'v'"),
    ('LoRA', dict(parts=['q'], targets=['proj$']), r'adapters\.parts=.*targets matches layers\.0'),
    ('LoRA', dict(targets=['nothing']), r"adapters\.targets: pattern 'nothing' matches no linear"),
])  # fmt: skip
def test_bad_settings_fail_when_the_config_is_built(name, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(**kind(name, **settings))


def test_side_network_refuses_what_it_cannot_mix_with():
    with pytest.raises(ValueError, match=r"SideNetwork needs maps or vectors, out_type is 'raw'"):
        tiny_vit(**kind('SideNetwork'), out_type='raw')
    with pytest.raises(ValueError, match=r'SideNetwork takes images of 3 channels, the backbone 4'):
        tiny_vit(**kind('SideNetwork'), in_channels=4)


@pytest.mark.parametrize('build', [tiny_vit, tiny_swin])
@pytest.mark.parametrize(('settings', 'message'), [
    (dict(prompt=dict(type='vpt_dense.LoRA')), r'prompt: LoRA .*; list it under `adapters`'),
    (dict(prompt='x'), r"prompt needs a dict with a 'type', found 'x'"),
    (dict(image_prompt=[1]), r"image_prompt needs a dict with a 'type', found \[1\]"),
    (dict(adapters=[dict(type='vpt_dense.TokenPrompt', num_tokens=3)]),
     r'adapters: TokenPrompt .*; list it under `prompt`'),
    (dict(adapters=[dict(type='torch.nn.Linear')]), r'adapters: Linear .*; it is no method'),
    (dict(adapters=[dict(rank=3)]), r"adapters needs a dict with a 'type', found \{'rank': 3\}"),
    (dict(adapters=5), r'adapters must be a list of dicts, one for each adapter, found 5'),
    (dict(trainable=5), r'trainable must be a list of regular expressions, found 5'),
])  # fmt: skip
def test_parts_under_the_wrong_key(build, settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_convolutional_networks_take_no_adapters():
    with pytest.raises(ValueError, match='adapters: SSF needs transformer blocks, ResNet'):
        MODELS.build(dict(type='vpt_dense.ResNet', depth=18, **kind('SSF')))
