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


def images(number=2, size=(32, 32)):
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(2))


def outputs_of(backbone, training=False, size=(24, 32), **head):
    """What a backbone puts out for the same weights, queries being bound or free."""
    model = randomise(ours_of(backbone, **head)).eval()
    model.decode_head.train(training)
    MessageHub.get_instance('eomt outputs')
    return model, model.extract_feat(images(size=size))


DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=3, deep=True)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('backbone', [PLAIN, TIMM], ids=['mmpretrain', 'timm'])
def test_prompts_act_on_queries_as_on_patches(backbone, training):
    """Through keys and values alone, as among the tokens; queries see them."""
    among, beside = (
        outputs_of(dict(backbone, prompt=DEEP, prompts_as=way), training)[1]
        for way in ('tokens', 'keys_values'))
    assert len(among) == len(beside) == (2 + 2 * BLOCKS if training else 2)
    for one, other in zip(among, beside, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    model, _ = outputs_of(dict(backbone, prompt=DEEP), training)
    before = model.extract_feat(images())[1]
    with torch.no_grad():
        model.backbone.prompt.tokens[-1] *= -3  # of the last block alone
    assert not torch.allclose(before, model.extract_feat(images())[1], atol=1e-4)


@pytest.mark.parametrize('backbone', [
    PLAIN, dict(TIMM, model='vit_small_patch14_reg4_dinov2')], ids=['mmpretrain', 'timm'])
def test_adapters_act_on_queries_as_on_patches(backbone):
    """What LoRA adds, merged into the weights, is the same; SSF scales and shifts all tokens."""
    for adapter in (dict(type='vpt_dense.LoRA', rank=2), dict(type='vpt_dense.SSF')):
        model, found = outputs_of(dict(backbone, adapters=[adapter]), training=True)
        without = model.extract_feat(images(size=(24, 32)))
        for each in model.backbone.adapters:
            each.merge(model.backbone)
        merged = model.extract_feat(images(size=(24, 32)))
        for one, other, third in zip(found, without, merged, strict=True):
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(one, third, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize('memory', ['lean', 'cp'])
def test_what_is_computed_again_is_the_same(memory):
    again = dict(memory='lean') if memory == 'lean' else dict(with_cp=True)
    gradients = []
    for further in ({}, again):
        model, found = outputs_of(dict(PLAIN, prompt=DEEP, **further), training=True)
        sum(each.square().mean() for each in found).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and 'decode_head.q.weight' in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_a_bound_query_sees_its_patches_and_all_else():
    """A change of patches outside of its mask in the only block changes no bound query."""
    arch = dict(ARCH, num_layers=2)
    model = randomise(ours_of(
        dict(PLAIN, arch=arch, out_indices=[1], prompt=DEEP), num_blocks=1)).eval()
    model.decode_head.train()
    seen = []
    guest = model.backbone.layers[1]
    model.decode_head.inside = lambda masks, grid, share: torch.arange(
        16).expand(2, QUERIES, 16) < 4
    hook = guest.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    model.extract_feat(images())
    hook.remove()
    (x,), arguments = seen[0]
    sees = arguments['sees']
    first, queries = slice(0, 5), slice(5, 5 + QUERIES)
    assert x.shape[1] == 5 + QUERIES + 16 and sees.shape[1:] == (x.shape[1], x.shape[1])
    assert sees[:, queries, :9 + QUERIES].all() and not sees[:, queries, 9 + QUERIES:].any()
    assert sees[:, first].all() and sees[:, 5 + QUERIES:].all()
    with torch.no_grad():
        before = guest(x, **arguments)
        changed = x.clone()
        changed[:, 9 + QUERIES:] *= -2
        after = guest(changed, **arguments)
        torch.testing.assert_close(before[:, queries], after[:, queries])
        assert not torch.allclose(before[:, 9 + QUERIES - 1], after[:, 9 + QUERIES - 1])
        changed[:, 0] *= -2
        assert not torch.allclose(before[:, queries], guest(changed, **arguments)[:, queries])


@pytest.mark.parametrize(('leaf', 'method'), [
    ('eomt_vit-s_dinov2_segfolder', 'head'), ('eomt_vit-s_dinov2_segfolder', 'shallow'),
    ('eomt_vit-b_dinov3_ade20k', 'deep'), ('eomt_vit-b_dinov3_ade20k', 'lora'),
    ('eomt_vit-b_dinov3_ade20k', 'adapter'), ('eomt_vit-s_dinov2_segfolder', 'full')])
def test_it_learns_with_any_method(mmseg_scope, leaf, method):
    """A tiny recipe: a step has a gradient for all that trains, and steps lower the loss."""
    from query_heads import assert_it_learns
    from test_dense_heads import tiny

    cfg = tiny(f'{leaf} {method}')
    cfg.model.decode_head.update(num_queries=8, num_blocks=2, num_points=100, num_classes=150)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    assert_it_learns(model, 0.8)


def test_features_in_front_of_the_queries_are_kept(tmp_path):
    """Head-only: what is kept is in front of the first block that queries pass."""
    from vpt_dense.backbones.feature_cache import FeatureCache

    model = randomise(ours_of(dict(PLAIN, trainable=[])))
    plain = model.extract_feat(images())
    cache = FeatureCache(model.backbone, tmp_path, print)
    with cache.attached():
        model.extract_feat(images())  # sees how deep it may look
        model.extract_feat(images())
        kept = model.extract_feat(images())
    assert cache.depth == len(model.backbone.layers) - BLOCKS and cache.found == 2
    for one, other in zip(plain, kept, strict=True):
        torch.testing.assert_close(one, other)


def test_published_sizes():
    """Queries, an MLP, two upscalings and a linear layer: nothing else is added to the encoder."""
    from utils import load

    from vpt_dense import building, params

    model = building.build_model(load('eomt_vit-b_dinov3_ade20k head'), 'meta')
    dims, classes = 768, 150
    upscale = 4 * dims * dims + dims + 9 * dims + 2 * dims
    wanted = 100 * dims + 3 * (dims + 1) * dims + 2 * upscale + (dims + 1) * (classes + 1)
    assert params.count(model)['decode head'] == (wanted, wanted) == (6701719, 6701719)


@pytest.mark.parametrize(('backbone', 'head', 'message'), [
    (dict(PLAIN, out_indices=[1, 3]), {}, r'out_indices=\[3\]'),
    (dict(PLAIN, final_norm=False), {}, 'backbone.final_norm=True'),
    (dict(TIMM, norm_outputs=False), {}, 'backbone.norm_outputs=True'),
    (dict(PLAIN, image_prompt=dict(type='vpt_dense.PadPrompt', width=8)), {}, 'image_prompt'),
    (PLAIN, dict(num_blocks=4), 'num_blocks must be at most 3'),
    (PLAIN, dict(num_blocks=0), 'num_blocks must be an integer'),
    (PLAIN, dict(in_channels=[32]), 'in_channels must be'),
    (dict(type='vpt_dense.ResNet', depth=18, out_indices=[3]), {}, 'attention that hides tokens'),
    (dict(type='mmpretrain.VisionTransformer', arch=ARCH, img_size=32, patch_size=8,
          out_type='featmap'), {}, 'needs a vision transformer of vpt_dense'),
])
def test_what_cannot_be_is_refused(backbone, head, message):
    with pytest.raises((ValueError, AttributeError), match=message):
        ours_of(backbone, **head)


def test_files_that_do_not_fit_are_refused(tmp_path):
    from vpt_dense.errors import UserError

    theirs = theirs_of('DINOv2', tmp_path / 'free')
    file = tmp_path / 'free/model.safetensors'
    with pytest.raises(UserError, match=r'class_head.weight is \(7, 32\), here \(4, 32\).*allow_m'):
        ours_of(PLAIN, file, num_classes=3)
    weights = dict(type='Pretrained', checkpoint=str(file))
    model = ours_of(
        PLAIN, file, num_classes=3, init_cfg=dict(weights, allow_missing=['^class_head']))
    torch.testing.assert_close(model.decode_head.q.weight, theirs.query.weight)
    theirs.attn_mask_probs.fill_(0.5)
    theirs.save_pretrained(tmp_path / 'bound')
    with pytest.raises(UserError, match='are bound to their masks in tests'):
        ours_of(PLAIN, tmp_path / 'bound/model.safetensors')
    with pytest.raises(UserError, match='rotate queries and keys'):
        theirs_of('DINOv3', tmp_path / 'v3')
        ours_of(PLAIN, tmp_path / 'v3/model.safetensors')
    with pytest.raises(UserError, match="decode_head.init_cfg: dict.type='Pretrained'"):
        ours_of(PLAIN, init_cfg=dict(type='Normal', layer='Linear'))


def test_a_decoder_alone_gets_no_queries():
    """In mmseg's own segmentor the backbone is not told."""
    in_scope('mmseg')
    model = MODELS.build(dict(
        type='mmseg.EncoderDecoder', backbone=PLAIN, test_cfg=dict(mode='whole'),
        decode_head=dict(type='vpt_dense.EoMTHead', in_channels=32, num_classes=3)))
    with pytest.raises(ValueError, match="model.type='vpt_dense.EncoderDecoder'"):
        model.decode_head(model.extract_feat(images()))
