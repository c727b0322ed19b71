"""The Swin transformer with prompts, adapters and prompts in image space."""

import json
import math
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from utils import images, randomise

from vpt_dense.weights import load_pretrained

DATA = Path(__file__).parent / 'data' / 'reference'
EXACT = dict(rtol=1e-10, atol=1e-10)
ARCH = dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8])
P3 = dict(type='vpt_dense.TokenPrompt', num_tokens=3)
DEEP = dict(**P3, deep=True)
LORA = dict(type='vpt_dense.LoRA', rank=2, targets=[r'\.qkv$', r'\.proj$', 'reduction'])
#: A map of 18x25 patches: windows of 4 are padded, the last stage is smaller than one.
SIZE = (72, 100)


def build(upstream: bool = False, **kwargs) -> nn.Module:
    """A tiny Swin of four stages with windows of 4, in float32 as it starts."""
    cfg = dict(
        type='mmpretrain.SwinTransformer' if upstream else 'vpt_dense.SwinTransformer',
        arch=ARCH, img_size=64, window_size=4, out_indices=(0, 1, 2, 3), pad_small_map=True,
    )  # fmt: skip
    return MODELS.build({**cfg, **kwargs})


def swin(**kwargs) -> nn.Module:
    """The same in float64 and eval mode, every parameter with a value of its own."""
    return randomise(build(**kwargs)).double().eval()


def all_grads(model: nn.Module, x: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Outputs, and the gradients of a sum that tells all outputs apart."""
    outs = model(x)
    loss = sum((out * images(*out.shape, seed=s).to(out.dtype)).sum()
               for s, out in enumerate(outs))  # fmt: skip
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return outs, grads


# --- the original ----------------------------------------------------------------------------


@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
def test_agrees_with_the_original(tmp_path, recompute):
    """KMnP/vpt at 4410440, deep prompts; its pool is over prompts and patches.

    Of the prompts' own outputs, it mixes those of a batch's images where there are several windows
    (stages 0 and 1); deep prompts are replaced, so nothing comes of it.
    """
    with safe_open(DATA / 'swin_deep_p3_b2.safetensors', 'pt') as file:
        assert '4410440' in file.metadata()['source']
        assert json.loads(file.metadata()['arch'])['swin']['embed_dim'] == 16
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        loss = float(file.metadata()['loss'])
    save_file(under(tensors, 'weight/'), tmp_path / 'swin.safetensors')

    model = build(
        prompt=DEEP, prompts_as='tokens', out_indices=(3,), pad_small_map=False,
        # The original shrinks windows to the map, 2x2 in the last stage.
        stage_cfgs=[{}, {}, {}, dict(block_cfgs=dict(window_size=2))], **recompute,
    )  # fmt: skip
    load_pretrained(model, str(tmp_path / 'swin.safetensors'))
    for name, tokens in prompts(under(tensors, 'weight/')).items():
        model.get_parameter(name).data.copy_(tokens)
    model.double().eval()
    blocks = {}
    for block in model.blocks():
        block.module.register_forward_hook(
            lambda module, _, out: blocks.setdefault(module.index, out))

    image = tensors['input'].double().requires_grad_()
    (patches,) = model(image)
    for i in range(8):
        own = 0 if i >= 4 else 3  # prompts and patches, or patches
        torch.testing.assert_close(blocks[i][:, own:], tensors[f'block/{i}'][:, own:], **EXACT)
    everything = model.norm3(blocks[7])
    torch.testing.assert_close(everything[:, 3:], patches.flatten(2).transpose(1, 2), **EXACT)
    output = everything.mean(1)
    torch.testing.assert_close(output, tensors['output'], **EXACT)

    found = (output * tensors['probe'].double()).sum()
    torch.testing.assert_close(found.item(), loss, **EXACT)
    found.backward()
    torch.testing.assert_close(image.grad, tensors['grad/input'], **EXACT)
    expected = prompts(under(tensors, 'grad/'))
    assert len(expected) == 4
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, **EXACT)


def under(tensors: dict[str, Tensor], room: str) -> dict[str, Tensor]:
    return {k.removeprefix(room): v for k, v in tensors.items() if k.startswith(room)}


def prompts(original: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's prompts under our names: the first block's stand alone there."""
    stages = [original[f'deep_prompt_embeddings_{s}'] for s in range(4)]
    stages[0] = torch.cat((original['prompt_embeddings'], stages[0]))
    return {f'prompt.stages.{s}.tokens': tokens for s, tokens in enumerate(stages)}
