"""Agreement with the original implementation of visual prompt tuning.

The vectors in ``data/reference`` are outputs of KMnP/vpt at commit 4410440 (the authors' code) on
small random models in eval mode: weights (float32), images, the output of every block and the
gradients of ``sum(output * probe)`` (float64). See ``data/reference/README.md``.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from utils import tiny_vit

from vpt_dense.image_prompts import base

DATA = Path(__file__).parent / 'data' / 'reference'
TOLERANCE = dict(rtol=1e-10, atol=1e-10)
P5 = dict(type='vpt_dense.TokenPrompt', num_tokens=5)
CASES = {
    'vit_noprompt': None,
    'vit_shallow_p5': P5,
    'vit_deep_p5': dict(**P5, deep=True),
    'vit_deep_p5_proj24': dict(**P5, deep=True, project_dims=24),
    'abl_deep_n2_forward': dict(**P5, deep=True, layer_range=(0, 2), keep_outputs=True),
    'abl_deep_shared': dict(**P5, deep=True, shared=True),
    'abl_pool_img_pool': dict(**P5, deep=True),
}


def read(case: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(DATA / f'{case}.safetensors', 'pt') as file:
        tensors = {key: file.get_tensor(key).double() for key in file.keys()}
        return tensors, file.metadata()


def ours(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename the original's parameters; separate query, key and value become one matrix."""
    w = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    new = {
        'cls_token': w['embeddings.cls_token'],
        'pos_embed': w['embeddings.position_embeddings'],
        'patch_embed.projection.weight': w['embeddings.patch_embeddings.weight'],
        'patch_embed.projection.bias': w['embeddings.patch_embeddings.bias'],
    }
    for kind in ('weight', 'bias'):
        new[f'ln1.{kind}'] = w[f'encoder.encoder_norm.{kind}']
        for i in range(4):
            old, layer = f'encoder.layer.{i}', f'layers.{i}'
            qkv = [w[f'{old}.attn.{part}.{kind}'] for part in ('query', 'key', 'value')]
            new[f'{layer}.attn.qkv.{kind}'] = torch.cat(qkv)
            new[f'{layer}.attn.proj.{kind}'] = w[f'{old}.attn.out.{kind}']
            new[f'{layer}.ln1.{kind}'] = w[f'{old}.attention_norm.{kind}']
            new[f'{layer}.ln2.{kind}'] = w[f'{old}.ffn_norm.{kind}']
            new[f'{layer}.ffn.layers.0.0.{kind}'] = w[f'{old}.ffn.fc1.{kind}']
            new[f'{layer}.ffn.layers.1.{kind}'] = w[f'{old}.ffn.fc2.{kind}']
    return new


def prompt_tensors(values: dict[str, torch.Tensor], prefix: str, shared: bool) -> dict:
    """The original's first and deep prompts and its projection, under our names."""
    w = {name.removeprefix(prefix): tensor for name, tensor in values.items()}
    if 'prompt_embeddings' not in w:
        return {}
    parts = [w['prompt_embeddings']]
    if 'deep_prompt_embeddings' in w and not shared:
        parts.append(w['deep_prompt_embeddings'])
    new = {'prompt.tokens': torch.cat(parts)}
    for kind in ('weight', 'bias'):
        if f'prompt_proj.{kind}' in w:
            new[f'prompt.project.{kind}'] = w[f'prompt_proj.{kind}']
    return new


def under(tensors: dict[str, torch.Tensor], room: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(room): v for k, v in tensors.items() if k.startswith(room)}


@pytest.mark.parametrize('prompts_as', ['tokens', 'keys_values'])
@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_agrees_with_the_original(case, recompute, prompts_as):
    tensors, metadata = read(case)
    assert '4410440' in metadata['source']
    weights, grads = under(tensors, 'weight/'), under(tensors, 'grad/')
    prefix = 'transformer.' if any(n.startswith('transformer.') for n in weights) else ''
    shared = bool(CASES[case] and CASES[case].get('shared'))
    pools = (json.loads(metadata['prompt_cfg']) or {}).get('VIT_POOL_TYPE') == 'img_pool'

    model = tiny_vit(prompt=CASES[case], prompts_as=prompts_as, **recompute).double()
    state = ours(weights, prefix) | prompt_tensors(weights, prefix, shared)
    model.load_state_dict(state, strict=True)
    model.eval()
    blocks, final = {}, {}
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: blocks.setdefault(i, out))
    model.ln1.register_forward_hook(lambda _, __, out: final.setdefault('out', out))

    image = tensors['input'].requires_grad_()
    (featmap,) = model(image)
    if pools:  # mean over the image tokens, as mmpretrain's GlobalAveragePooling neck does
        output = nn.AdaptiveAvgPool2d(1)(featmap).flatten(1)
    else:  # all tokens after the final norm, prompts included
        output = final['out']
    def read_from(expected, i):
        """The part of the original's tokens that we compute: prompts are [1:6] there."""
        if i not in model.keys_values_layers:
            return expected
        return torch.cat((expected[:, :1], expected[:, 6:]), dim=1)

    for i in range(4):
        torch.testing.assert_close(blocks[i], read_from(tensors[f'block/{i}'], i), **TOLERANCE)
    if not pools and 3 in model.keys_values_layers:
        # The original's loss reads the prompts' outputs too, so gradients are for the plain path
        # and the pooled case.
        torch.testing.assert_close(output, read_from(tensors['output'], 3), **TOLERANCE)
        return
    torch.testing.assert_close(output, tensors['output'], **TOLERANCE)

    loss = (output * tensors['probe']).sum()
    torch.testing.assert_close(loss.item(), float(metadata['loss']), **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(image.grad, grads['input'], **TOLERANCE)
    expected = prompt_tensors(grads, prefix, shared)
    assert bool(expected) == (CASES[case] is not None)
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, **TOLERANCE)


def test_a_border_agrees_with_the_original():
    """``pad``: the border is half a patch wide, so maps keep it (aligned=False)."""
    tensors, metadata = read('abl_pad_p4')
    assert '4410440' in metadata['source']
    weights, grads = under(tensors, 'weight/'), under(tensors, 'grad/')
    model = tiny_vit(image_prompt=dict(type='vpt_dense.PadPrompt', width=4, aligned=False))
    model.double()
    names = dict(top_bottom='prompt_embeddings_tb', left_right='prompt_embeddings_lr')
    borders = {f'image_prompt.{own}': weights[theirs] for own, theirs in names.items()}
    model.load_state_dict(ours(weights, '') | borders, strict=True)
    for name in ('mean', 'std'):  # in float64 they are not what float32 makes of them
        exact = torch.tensor(getattr(base, name.upper()), dtype=torch.float64)
        getattr(model.image_prompt, name).copy_(exact[:, None, None])
    model.eval()
    blocks, final = {}, {}
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: blocks.setdefault(i, out))
    model.ln1.register_forward_hook(lambda _, __, out: final.setdefault('out', out))
    image = tensors['input'].requires_grad_()
    model(image)
    for i in range(4):
        torch.testing.assert_close(blocks[i], tensors[f'block/{i}'], **TOLERANCE)
    torch.testing.assert_close(final['out'], tensors['output'], **TOLERANCE)
    (final['out'] * tensors['probe']).sum().backward()
    torch.testing.assert_close(image.grad, grads['input'], **TOLERANCE)
    for name, theirs in names.items():
        parameter = model.image_prompt.get_parameter(name)
        torch.testing.assert_close(parameter.grad, grads[theirs], **TOLERANCE)
