"""ViT-Split: against a computation by hand, the authors' counts, beside other methods, cached."""

import threading

import pytest
import torch
import torch.nn.functional as F
from methods import build, build_at_start
from mmengine.registry import MODELS
from test_dense_heads import batch, tiny
from utils import images, in_scope, load, randomise

from vpt_dense import building
from vpt_dense.adapters.vit_split import DeformableConv
from vpt_dense.backbones.feature_cache import FeatureCache

SPLIT = dict(type='vpt_dense.ViTSplit', num_blocks=2, num_maps=2)
LORA = dict(type='vpt_dense.LoRA', rank=2)


def normed(x, weight=None, bias=None):
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)


def block(x, w, heads=4):
    """A pre-norm transformer block (B, N, C), of its state dict."""
    q, k, v = F.linear(
        normed(x, w['ln1.weight'], w['ln1.bias']), w['attn.qkv.weight'], w['attn.qkv.bias']
    ).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    a = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    x = x + F.linear(a.transpose(1, 2).flatten(2), w['attn.proj.weight'], w['attn.proj.bias'])
    y = F.linear(normed(x, w['ln2.weight'], w['ln2.bias']),
                 w['ffn.layers.0.0.weight'], w['ffn.layers.0.0.bias'])
    return x + F.linear(F.gelu(y), w['ffn.layers.1.weight'], w['ffn.layers.1.bias'])


def deformed(x, w, at):
    """A deformable 3x3 convolution: each of nine places is read between its four neighbours."""
    offsets = F.conv2d(x, w[f'{at}.offsets.weight'], w[f'{at}.offsets.bias'], padding=1)
    rows, columns = x.shape[2:]
    y, x0 = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing='ij')
    total = 0
    for place in range(9):
        i, j = divmod(place, 3)
        r = y + i - 1 + offsets[:, 2 * place]  # (B, h, w)
        c = x0 + j - 1 + offsets[:, 2 * place + 1]
        at_r, at_c = r.floor().long(), c.floor().long()
        found = 0
        for dr in (0, 1):
            for dc in (0, 1):
                rr, cc = at_r + dr, at_c + dc
                share = (1 - (r - rr).abs()) * (1 - (c - cc).abs())
                inside = (rr >= 0) & (rr < rows) & (cc >= 0) & (cc < columns)
                index = (rr.clamp(0, rows - 1) * columns + cc.clamp(0, columns - 1)).flatten(1)
                value = x.flatten(2).gather(2, index[:, None].expand(-1, x.shape[1], -1))
                found = found + value.unflatten(2, (rows, columns)) * (share * inside)[:, None]
        total = total + torch.einsum('bchw,oc->bohw', found, w[f'{at}.conv.weight'][:, :, i, j])
    return total + w[f'{at}.conv.bias'][:, None, None]


def by_hand(model, x):
    """The map of ViT-Split on tokens (B, 1 + N, C) that enter the first block."""
    own = {k: v.double() for k, v in model.adapters[0].state_dict().items()}
    outs = []
    for layer in model.layers:
        x = block(x, layer.state_dict())
        outs.append(x)

    def part(name):
        return {k.removeprefix(name): v for k, v in own.items() if k.startswith(name)}

    def to_map(tokens):
        return normed(tokens)[:, 1:].mT.unflatten(2, (4, 4))

    task = outs[1]
    for i in range(2):
        task = block(task, part(f'blocks.{i}.'))
    prior = torch.cat([to_map(outs[2]), to_map(model.ln1(outs[3]))], 1)
    for name in ('prior', 'fusion'):
        both = prior if name == 'prior' else torch.cat([prior, to_map(task)], 1)
        low = F.gelu(F.conv2d(both, own[f'{name}.0.weight'], own[f'{name}.0.bias']))
        prior = F.gelu(deformed(low, own, f'{name}.2'))
    return prior


def test_the_map_is_the_formulas():
    model = build('vit-split', 'vit', 'seg').double().eval()
    x = images(2, 3, 32, 32, dtype=torch.float64)
    offsets = []
    model.adapters[0].prior[2].offsets.register_forward_hook(lambda *a: offsets.append(a[2]))
    first, last = model(x)
    assert offsets[0].abs().max() > 1  # places lie between others, and outside of the map
    torch.testing.assert_close(last, by_hand(model, model.embed(x)[0]), rtol=1e-9, atol=1e-9)
    plain = build_at_start({}, 'vit', 'seg').double().eval()
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}, strict=False)
    assert torch.equal(first, plain(x)[0])


def test_the_convolution_of_exported_graphs_is_the_same():
    layer = randomise(DeformableConv(6)).double()
    x = images(2, 6, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(layer.sampled(x), layer(x), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        program = torch.export.export(layer, (x,), strict=False)
        assert 'torchvision' not in str(program.graph)
        torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-9, atol=1e-9)


def test_the_copies_start_as_the_blocks():
    in_scope('mmseg')
    model = build_at_start(dict(adapters=[SPLIT]), 'vit', 'seg')
    randomise(model)
    copies = model.adapters[0].blocks
    model.adapters[0].start_from(model)
    for own, theirs in zip(copies, model.layers[2:], strict=True):
        theirs = theirs.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in own.state_dict().items())
        assert own.state_dict().keys() == theirs.keys()
    with torch.no_grad():
        copies[0].ln1.weight.add_(1)
    assert not torch.equal(copies[0].ln1.weight, model.layers[2].ln1.weight)


@pytest.mark.parametrize(('size', 'millions'), [('s', '10.2'), ('l', '88.6')])
def test_as_much_trains_as_its_authors_say(size, millions):
    """The table of https://github.com/JackYFL/ViT-Split, segmentation on ADE20K."""
    model = building.build_model(load(f'deconv_vit-{size}_dinov2_vit-split_ade20k'), 'meta')
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f'{trained / 1e6:.1f}' == millions


def test_frozen_blocks_get_no_graph_and_cached_features_are_exact(tmp_path):
    model = build('vit-split', 'vit', 'seg').train()
    data = images(3, 3, 32, 32)

    def step(x):
        model.zero_grad(set_to_none=True)
        outs = model(x)
        assert not outs[0].requires_grad and outs[1].requires_grad
        sum(out.square().mean() for out in outs).backward()
        return [o.detach() for o in outs], {
            n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected, gradients = step(data)
    assert set(gradients) == {n for n, _ in model.named_parameters() if n.startswith('adapters.')}
    with FeatureCache(model, tmp_path, pytest.fail).attached() as cache:
        step(data)
        step(data)
        ran = [layer.register_forward_hook(lambda *_: pytest.fail('ran')) for layer in model.layers]
        order = [2, 0, 1]
        outs, _ = step(data[order])
        assert cache.computed == 3 and cache.found == 3 and cache.depth == 4
        assert all(torch.equal(o, e[order]) for o, e in zip(outs, expected, strict=True))
        _, again = step(data)
        assert all(torch.equal(again[n], gradients[n]) for n in gradients)
        for handle in ran:
            handle.remove()


def test_other_methods_act_beside_it():
    """What trains in the blocks gets gradients through them; the copies have none of it."""
    tuning = dict(
        adapters=[SPLIT, LORA], prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3))
    model = randomise(build_at_start(tuning, 'vit', 'seg')).double().train()
    data = images(1, 3, 32, 32, dtype=torch.float64)
    out = model(data)[-1]
    out.square().sum().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(grad is not None and grad.any() for grad in trained.values())
    assert {n.split('.')[1] for n in trained if n.startswith('adapters.')} == {'0', '1'}
    kept = dict(model.named_parameters())
    place = next(n for n in trained if n.startswith('adapters.1.') and n.endswith('up'))
    with torch.no_grad():
        moved = kept[place]
        moved[0, 0] += (step := 1e-6)
        up = model(data)[-1].square().sum()
        moved[0, 0] -= 2 * step
        down = model(data)[-1].square().sum()
    torch.testing.assert_close(
        (up - down) / (2 * step), trained[place][0, 0], rtol=1e-4, atol=1e-6)
    assert not any(m._forward_hooks for m in model.adapters[0].blocks.modules())


@pytest.mark.parametrize(('settings', 'message'), [
    (dict(adapters=[dict(SPLIT, num_blocks=4)]), r'adapters.num_blocks .* at most 3 .* found 4'),
    (dict(adapters=[dict(SPLIT, num_maps=3)]), r'adapters.num_maps .* at most 2 on 4 blocks'),
    (dict(adapters=[dict(SPLIT, num_maps=0)]), r'adapters.num_maps must be'),
    (dict(adapters=[SPLIT], out_indices=[1]), r'out_indices that end with 3'),
    (dict(adapters=[SPLIT], out_type='cls_token'), r"out_type='featmap'"),
    (dict(adapters=[LORA, SPLIT]), r'list it before the others'),
    (dict(adapters=[SPLIT], image_prompt=dict(type='vpt_dense.PadPrompt', width=8)), r'border of'),
    (dict(adapters=[SPLIT], type='vpt_dense.SwinTransformer'), r'ViTSplit needs .* SwinTransformer'
     ),
], ids=lambda value: None if isinstance(value, dict) else value[:20])
def test_what_does_not_fit_is_refused(settings, message):
    family = 'swin' if 'type' in settings else 'vit'
    with pytest.raises(ValueError, match=message):
        build_at_start(settings, family, 'seg')


def test_passes_of_two_threads_do_not_mix():
    model = build('vit-split', 'vit', 'seg').eval()
    batches, outs = images(2, 3, 32, 32).split(1), [None, None]
    with torch.no_grad():
        alone = [model(each)[-1] for each in batches]
    meet = threading.Barrier(2)

    def stop(*_):
        meet.wait(30)

    model.layers[3].register_forward_hook(stop)

    def go(i):
        with torch.no_grad():
            outs[i] = model(batches[i])[-1]

    threads = [threading.Thread(target=go, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, outs, alone))


def test_the_recipe_learns_and_its_head_is_the_formula(mmseg_scope):
    cfg = tiny('deconv_vit-s_dinov2_vit-split_segfolder')
    cfg.model.backbone.adapters[0].update(num_blocks=1, num_maps=2)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    head = model.decode_head
    data = model.train().data_preprocessor(batch(32, 32), training=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=3e-3), []
    for _ in range(12):
        loss = model.parse_losses(model.loss(data['inputs'], data['data_samples']))[0]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in trained)
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    x = images(2, 32, 4, 4)
    y = x
    for conv, norm in ((head.up[0], head.up[1]), (head.up[3], head.up[4])):
        y = torch.einsum('bchw,coij->bohiwj', y, conv.weight) + conv.bias[:, None, None, None, None]
        y = y.flatten(2, 3).flatten(3, 4)
        y = F.gelu(F.group_norm(y, 32, norm.weight, norm.bias))
    head.eval()
    scale = head.norm.weight / (head.norm.running_var + head.norm.eps).sqrt()
    y = (y - head.norm.running_mean[:, None, None]) * scale[:, None, None]
    y = y + head.norm.bias[:, None, None]
    y = torch.einsum('bchw,oc->bohw', y, head.conv_seg.weight[:, :, 0, 0])
    torch.testing.assert_close(
        head((x,)), y + head.conv_seg.bias[:, None, None], rtol=1e-4, atol=1e-5)
