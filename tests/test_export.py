"""Exported graphs: torch.export and torch.jit.trace of every method on every backbone."""

import pytest
import torch
from methods import BACKBONES, GRAPH_PARAMS, build, few_blocks
from mmengine.registry import MODELS
from torch import nn
from utils import TINY_ARCH, images, randomise

from vpt_dense.deploy import exporting
from vpt_dense.errors import UserError

#: Every place where something stands beside the images of a batch, in few blocks.
QUICK = {
    'tokens, cls, registers, border, CVPT': dict(
        BACKBONES['vit'].cfg, arch=dict(TINY_ARCH, num_layers=2), out_type='featmap',
        num_registers=2, prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3),
        image_prompt=dict(type='vpt_dense.PadPrompt', width=8),
        adapters=[dict(type='vpt_dense.CVPT', num_tokens=2)]),
    'keys and values, cls alone, channels': dict(
        BACKBONES['vit'].cfg, arch=dict(TINY_ARCH, num_layers=2), out_type='cls_token',
        prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=3, num_kv_tokens=2),
        image_prompt=dict(type='vpt_dense.ConcatChannelPrompt', num_channels=1)),
    'tokens in windows': dict(
        BACKBONES['swin'].cfg, arch=dict(embed_dims=16, depths=[1, 1], num_heads=[2, 4]),
        prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=3)),
    'keys and values in windows, then windows alone': dict(
        BACKBONES['swin'].cfg, arch=dict(embed_dims=16, depths=[2], num_heads=[2]),
        out_indices=(0,), prompt=dict(type='vpt_dense.E2VPTPrompt', num_tokens=3, num_kv_tokens=2,
                    layer_range=(0, 1), keep_outputs=False)),
}


class Outs(nn.Module):
    """Outputs as a tuple, which a graph may return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        out = self.model(x)
        return out if isinstance(out, torch.Tensor) else tuple(out)


def check(model: nn.Module, size: tuple[int, int]) -> None:
    """Both kinds of graphs compute what the model does, of batches that they were not made with."""
    model = Outs(model.double().eval())
    with torch.no_grad():
        x = images(2, 3, *size, dtype=torch.float64)
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        graphs = [
            torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False).module(),
            torch.jit.trace(model, x, check_trace=False),
        ]
        for number in (1, 3):
            x = images(number, 3, *size, seed=number, dtype=torch.float64)
            wanted = model(x)
            for graph in graphs:
                torch.testing.assert_close(graph(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize('kind', QUICK)
def test_graphs_take_batches_of_any_size(kind):
    check(randomise(MODELS.build(QUICK[kind])), (32, 32))


@pytest.mark.parametrize(('name', 'family', 'task'), GRAPH_PARAMS)
def test_graphs_of_every_method_on_every_backbone(name, family, task):
    model = build(name, family, task, **few_blocks(family, task, name))
    check(model, BACKBONES[family].size)


#: Vision transformers of other kinds: with registers, without cls token, of a CLIP, SwiGLU, ...
KINDS = {
    'registers': dict(num_registers=4, out_type='featmap'),
    'patch 14': dict(patch_size=14, img_size=56, out_type='cls_token'),
    'CLIP': dict(pre_norm=True, out_type='cls_token'),
    'SwiGLU': dict(layer_cfgs=dict(ffn_type='swiglu_fused'), layer_scale_init_value=0.1,
                   out_type='avg_featmap'),
    'no cls token': dict(with_cls_token=False, out_type='featmap'),
    'in bfloat16': dict(frozen_dtype='bfloat16', out_type='cls_token'),
}


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_vision_transformers(kind):
    prompt = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)
    model = randomise(MODELS.build({**BACKBONES['vit'].cfg, 'prompt': prompt, **KINDS[kind]}))
    if kind == 'in bfloat16':  # autocast computes what is float32
        model, size = model.eval(), (32, 32)
        x = images(2, 3, *size)
        program = torch.export.export(
            Outs(model), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
        with torch.no_grad():
            for number in (1, 3):
                x = images(number, 3, *size, seed=number)
                torch.testing.assert_close(program.module()(x), Outs(model)(x))
        return
    check(model, (56, 56) if kind == 'patch 14' else (32, 32))


HEADS = {
    'SETR': dict(type='vpt_dense.SETRUPHead', in_index=1, num_convs=2, up_scale=2, kernel_size=3),
    'SETR-MLA': dict(type='vpt_dense.SETRMLAHead', in_channels=[64, 64], in_index=[0, 1],
                     mla_channels=8, up_scale=4),
    'UperNet': dict(type='vpt_dense.UPerHead', in_channels=[64, 64], in_index=[0, 1],
                    pool_scales=(1, 2)),
    'linear': dict(type='vpt_dense.LinearHead', in_index=1),
    'Segmenter': dict(type='vpt_dense.SegmenterMaskTransformerHead', in_index=1, num_layers=1,
                      num_heads=2, embed_dims=64, norm_cfg=dict(type='LN')),
    'PMD': dict(type='vpt_dense.PlainMaskHead', in_channels=[64, 64], in_index=[0, 1], num_heads=2,
                num_queries=5, num_blocks=2, hidden_dims=32),
    'ViT-Split': dict(type='vpt_dense.DeconvHead', in_index=1),
    'ensemble': dict(type='vpt_dense.SETRUPHead', in_index=1, num_convs=1, up_scale=2,
                     kernel_size=3),
}


def segmentor(kind: str = 'SETR', num_classes: int = 5, **backbone) -> nn.Module:
    """A tiny segmentor with a value of its own in every parameter."""
    head = dict(
        in_channels=64, channels=16, num_classes=num_classes, align_corners=False,
        norm_cfg=dict(type='SyncBN'), dropout_ratio=0)
    if kind in ('linear', 'ViT-Split'):
        del head['channels']
    if kind == 'PMD':
        head = dict(num_classes=num_classes, norm_cfg=head['norm_cfg'])
    head |= HEADS[kind]
    prompt, vit = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True), BACKBONES['vit']
    if kind == 'ViT-Split':
        backbone = dict(
            adapters=[dict(type='vpt_dense.ViTSplit', num_blocks=1, num_maps=1)], **backbone)
    if kind == 'ensemble':
        head = dict(type='vpt_dense.EnsembleDecodeHead', seeds=[0, 1], head=head)
        prompt = dict(type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=prompt)
    return randomise(MODELS.build(dict(
        type='vpt_dense.EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone={**vit.cfg, **vit.tasks['seg'][0], **few_blocks('vit', 'seg'), 'prompt': prompt,
                  **backbone},
        decode_head=head,
        test_cfg=dict(mode='whole'),
    ))).eval()


@pytest.mark.parametrize('kind', [
    pytest.param(kind, marks=() if kind == 'ensemble' else pytest.mark.slow) for kind in HEADS])
def test_heads_of_segmentation(mmseg_scope, kind):
    check(segmentor(kind), (32, 32))


@pytest.mark.parametrize('kind', [
    pytest.param(kind, marks=pytest.mark.slow if kind in ('SETR', 'linear') else pytest.mark.long)
    for kind in HEADS])
def test_images_of_any_size(mmseg_scope, kind):
    """Also of sizes that are no multiple of the patch."""
    model = segmentor(kind)
    module = Outs(model).eval()
    sizes = [(32, 32), (40, 64), (33, 50)]
    with torch.no_grad():
        wanted = [module(images(3, 3, *size)) for size in sizes]
        exporting._open_sizes(model)
        program = exporting.graph(module, 3, (32, 32), dynamic=True).module()
        for size, scores in zip(sizes, wanted, strict=True):
            torch.testing.assert_close(program(images(3, 3, *size)), scores)


@pytest.mark.slow
@pytest.mark.parametrize('tuning', [
    dict(image_prompt=dict(type='vpt_dense.PadPrompt', width=8)),
    dict(image_prompt=dict(type='vpt_dense.LoRVP')),
    dict(prompt=None, adapters=[dict(type='vpt_dense.AddPrompt')]),
    dict(prompt=None, adapters=[dict(type='vpt_dense.SideNetwork')]),
    dict(prompt=dict(type='vpt_dense.VAPTPrompt', num_tokens=3, hidden_dims=8, grid=(4, 4))),
], ids=['pad', 'lor-vp', 'add', 'side', 'vapt'])
def test_methods_that_know_the_size_of_images(mmseg_scope, tuning):
    model = segmentor(**tuning)
    module = Outs(model).eval()
    with torch.no_grad():
        wanted = [module(images(1, 3, *size)) for size in [(32, 32), (33, 50)]]
        exporting._open_sizes(model)
        program = exporting.graph(module, 3, (32, 32), dynamic=True).module()
        for size, scores in zip([(32, 32), (33, 50)], wanted, strict=True):
            torch.testing.assert_close(program(images(1, 3, *size)), scores, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_graph_is_told_in_one_line():
    class Deciding(nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    with pytest.raises(UserError, match='cannot be exported with images of 32x32 pixels'):
        exporting.graph(Deciding(), 3, (32, 32), dynamic=False)
