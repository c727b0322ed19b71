"""EoMT: queries in the last blocks of our backbones, against transformers'."""

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from transformers import (
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)
from utils import in_scope, randomise

CLASSES, QUERIES, BLOCKS = 6, 5, 2
SIZES = dict(
    hidden_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=8,
    num_blocks=BLOCKS, num_queries=QUERIES, num_upscale_blocks=1,
    id2label={i: str(i) for i in range(CLASSES)})
ARCH = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=128)
PLAIN = dict(
    type='vpt_dense.VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='featmap',
    out_indices=[3], final_norm=True, layer_scale_init_value=1.0, num_registers=4)
TIMM = dict(
    type='vpt_dense.TimmVisionTransformer', model='vit_small_patch16_dinov3_qkvb', patch_size=8,
    img_size=32, embed_dim=32, depth=4, num_heads=2, norm_outputs=True)
#: Name -> (config and class of transformers', further sizes, our backbone).
KINDS = {
    'DINOv2': (EomtConfig, EomtForUniversalSegmentation, {}, PLAIN),
    'DINOv2, SwiGLU': (
        EomtConfig, EomtForUniversalSegmentation, dict(use_swiglu_ffn=True),
        dict(PLAIN, layer_cfgs=dict(ffn_type='swiglu_fused'))),
    'DINOv2 in timm': (
        EomtConfig, EomtForUniversalSegmentation, {},
        dict(TIMM, model='vit_small_patch14_reg4_dinov2')),
    'DINOv3': (
        EomtDinov3Config, EomtDinov3ForUniversalSegmentation,
        dict(intermediate_size=128, layer_norm_eps=1e-5), TIMM),
}


def theirs_of(kind, folder=None, **further):
    """A model of transformers' with a value of its own in every weight; saved if asked for."""
    config, model, sizes, _ = KINDS[kind]
    found = randomise(model(config(**{**SIZES, **sizes, **further}))).eval()
    found.attn_mask_probs.zero_()  # as behind a training
    if folder is not None:
        found.save_pretrained(folder)
    return found


def ours_of(backbone, file=None, **head):
    in_scope('mmseg')
    weights = file and dict(type='Pretrained', checkpoint=str(file))
    model = MODELS.build(dict(
        type='vpt_dense.EncoderDecoder', data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=dict(backbone, init_cfg=weights),
        decode_head=dict(dict(
            type='vpt_dense.EoMTHead', in_channels=32, num_classes=CLASSES, num_queries=QUERIES,
            num_blocks=BLOCKS, num_upscalings=1, num_points=60, init_cfg=weights), **head),
        test_cfg=dict(mode='whole')))
    model.init_weights()
    return model


@pytest.mark.parametrize('kind', KINDS)
def test_it_is_transformers(kind, tmp_path):
    """Weights load as they were saved; free queries in tests, and bound ones."""
    theirs = theirs_of(kind, tmp_path)
    ours = ours_of(KINDS[kind][3], tmp_path / 'model.safetensors').eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(x)
        maps, queries = ours.extract_feat(x)
        masks, classes = ours.decode_head.predictions((maps, queries))[-1]
        last = expected.last_hidden_state
        torch.testing.assert_close(queries, last[:, :QUERIES], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            maps.flatten(2).transpose(1, 2), last[:, -16:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(masks, expected.masks_queries_logits, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(classes, expected.class_queries_logits, rtol=1e-5, atol=1e-5)
        theirs.attn_mask_probs.fill_(1)
        bound = theirs(x)
        ours.decode_head.train()
        MessageHub.get_instance(f'eomt {kind}')  # no training runs: all queries are bound
        outputs = ours.extract_feat(x)
        assert len(outputs) == 2 + 2 * BLOCKS
        masks, classes = ours.decode_head.predictions(outputs)[-1]
    torch.testing.assert_close(masks, bound.masks_queries_logits, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(classes, bound.class_queries_logits, rtol=1e-5, atol=1e-5)
    assert (masks - expected.masks_queries_logits).abs().max() > 1e-3, 'the masks bind nothing'
