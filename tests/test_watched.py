"""Hooks see what mmpretrain's backbones show; empty, meta and fake inputs work as there."""

import re

import mmpretrain.models.backbones as upstream
import pytest
import torch
from methods import BACKBONES, ROWS, build
from torch._subclasses.fake_tensor import FakeTensorMode
from utils import TINY_ARCH, images, randomise, tiny_vit

from vpt_dense.tuning import is_added

VIT = dict(arch=TINY_ARCH, img_size=32, patch_size=8)
SWIN = dict(arch=dict(embed_dims=8, depths=[2, 2], num_heads=[2, 2]), window_size=2, img_size=32,
            out_indices=[0, 1])
DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
#: Prompts that stand beside the tokens in all blocks.
PROMPTS = {
    'deep': DEEP,
    'dropout': dict(**DEEP, dropout=0.5),
    'project': dict(**DEEP, project_dims=8),
    'prefix': dict(type='vpt_dense.PrefixPrompt', num_tokens=5),
    'e2vpt': dict(type='vpt_dense.E2VPTPrompt', num_tokens=5, num_kv_tokens=3),
    'vapt': dict(type='vpt_dense.VAPTPrompt', num_tokens=5, grid=(4, 4)),
}
ADAPTERS = {
    'none': None,
    'lora': [dict(type='vpt_dense.LoRA', rank=2)],
    'ssf': [dict(type='vpt_dense.SSF')],
    'rep': [dict(type='vpt_dense.RepAdapter', rank=2)],
    'cvpt': [dict(type='vpt_dense.CVPT', num_tokens=3)],
}


def shapes(value):
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    return [shapes(v) for v in value] if isinstance(value, (tuple, list)) else value


def pair(family, prompt, adapters=None, out_type=None, **kwargs):
    """Ours with prompts, and mmpretrain's with the same weights."""
    from mmengine.registry import MODELS

    if family == 'vit':
        kwargs['out_type'] = out_type or 'featmap'
        theirs = upstream.VisionTransformer(
            **VIT, **{k: v for k, v in kwargs.items() if k != 'memory'})
        ours = tiny_vit(prompt=prompt, adapters=adapters, **kwargs)
    else:
        theirs = upstream.SwinTransformer(**SWIN)
        ours = MODELS.build(dict(type='vpt_dense.SwinTransformer', prompt=prompt,
                                 adapters=adapters, **SWIN, **kwargs))
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    for model in (ours, theirs):
        model.double().eval()  # mmpretrain's returns None
    return ours, theirs


def watch(model, backward):
    """Shapes of inputs and outputs of each call of each module that upstream has too."""
    seen = []
    for name, module in model.named_modules():
        # A stage of a Swin is taken apart: prompts pass its patch merging on their own.
        if is_added(name) or not name or re.fullmatch(r'stages\.\d+', name):
            continue
        if backward:
            module.register_full_backward_hook(
                lambda _, grad_in, grad_out, name=name: seen.append((name, shapes(grad_out))))
        else:
            module.register_forward_hook(
                lambda _, args, out, name=name: seen.append((name, shapes(args), shapes(out))))
    return seen


def run(model, x, backward):
    outs = model(x)
    if backward:
        sum(out.square().sum() for out in outs).backward()
    return outs


CASES = [
    (family, prompt, adapters, memory)
    for family in ('vit', 'swin') for prompt in PROMPTS for adapters in ADAPTERS
    for memory in ('default', 'lean')
    if adapters == 'none' or (prompt == 'deep' and memory == 'default')
    if family == 'vit' or prompt in ('deep', 'dropout', 'project', 'prefix')
]


@pytest.mark.parametrize('backward', [False, True])
@pytest.mark.parametrize(('family', 'prompt', 'adapters', 'memory'), CASES)
def test_hooks_see_the_tokens_that_upstream_shows(family, prompt, adapters, memory, backward):
    """Every module is called once, and prompts are not among what goes in and comes out."""
    x = images(2, 3, 32, 40, dtype=torch.float64)
    for out_type in ('featmap', 'cls_token') if family == 'vit' else (None,):
        ours, theirs = pair(family, PROMPTS[prompt], ADAPTERS[adapters], out_type, memory=memory)
        if backward:  # so that gradients come to every module, as they do in mmpretrain's
            for model in (ours, theirs):
                model.requires_grad_(True)
        plain = [out.detach() for out in ours(x)]
        found, wanted = (watch(model, backward) for model in (ours, theirs))
        with torch.set_grad_enabled(backward):
            outs = run(ours, x, backward)
            run(theirs, x, backward)
        if family == 'swin':  # upstream's softmax is a module, the fused kernel has none
            wanted = [each for each in wanted if not each[0].endswith(('softmax', 'attn_drop'))]
        if backward:  # the order of what is not in line may differ
            found, wanted = sorted(found), sorted(wanted)
        assert found == wanted
        torch.testing.assert_close([out.detach() for out in outs], plain, rtol=1e-10, atol=1e-10)


def test_the_first_norm_shows_the_values_of_upstream():
    ours, theirs = pair('vit', DEEP)
    kept = []
    for model in (ours, theirs):
        model.layers[0].ln1.register_forward_hook(lambda _, args, out: kept.append((args, out)))
        model(images(2, 3, 32, 32, dtype=torch.float64))
    torch.testing.assert_close(*kept, rtol=0, atol=0)


@pytest.mark.parametrize('name', [
    name for name, row in ROWS.items() if 'vit' in row.fits
    and row.tuning.keys() - {'trainable'} and not name.startswith('side')  # AlexNet's pooling
])
def test_an_empty_batch_the_meta_device_and_a_first_forward_on_fake_tensors(name):
    task, size = ROWS[name].tasks[-1], BACKBONES['vit'].size
    with torch.no_grad():
        wanted = [out.shape[1:] for out in build(name, 'vit', task).eval()(images(2, 3, *size))]
        model = build(name, 'vit', task).eval()
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fake = model(mode.from_tensor(images(2, 3, *size)))
        empty = model(torch.empty(0, 3, *size))
        meta = model.to('meta')(torch.empty(2, 3, *size, device='meta'))
    for number, outs in ((2, fake), (0, empty), (2, meta)):
        assert [out.shape for out in outs] == [(number, *shape) for shape in wanted]
