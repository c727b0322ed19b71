"""The decoder of PMT and its losses: against transformers' and by hand."""

import math

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.registry import MODELS
from torch.nn import functional as F
from transformers.models.eomt.configuration_eomt import EomtConfig
from transformers.models.eomt.modeling_eomt import EomtLoss
from utils import in_scope, load, randomise

from vpt_dense import params
from vpt_dense.heads import query_masks
from vpt_dense.heads.plain_mask import PlainMaskHead, rotary_places

WEIGHTS = query_masks.Weights()


def targets(*classes, size=(12, 16), seed=0):
    """Masks that do not overlap."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for each in classes:
        owner = torch.randint(len(each) + 1, size, generator=generator)
        masks = torch.stack([(owner == i).double() for i in range(len(each))])
        found.append(query_masks.Target(torch.tensor(each), masks))
    return found


@pytest.mark.parametrize('classes', [([0, 3], [2]), ([1], [4, 0, 2])])
def test_losses_are_those_of_transformers(classes):
    """The same points are drawn: both draw in one order."""
    torch.manual_seed(0)
    scores = torch.randn(2, 6, 6, requires_grad=True)
    masks = torch.randn(2, 6, 6, 8, requires_grad=True)
    wanted = targets(*classes)
    wanted = [t._replace(masks=t.masks.float()) for t in wanted]
    config = EomtConfig(num_labels=5, train_num_points=50, no_object_weight=0.1, class_weight=2.0,
                        mask_weight=5.0, dice_weight=5.0)
    config.num_labels = 5
    loss = EomtLoss(config, {})
    torch.manual_seed(1)
    theirs = loss(masks, scores, [t.masks for t in wanted], [t.classes for t in wanted])
    torch.manual_seed(1)
    ours = query_masks.losses(scores, masks, wanted, WEIGHTS, num_points=50)
    for name, key, weight in (('loss_cls', 'loss_cross_entropy', 2), ('loss_mask', 'loss_mask', 5),
                              ('loss_dice', 'loss_dice', 5)):
        torch.testing.assert_close(ours[name], weight * theirs[key], rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(sum(each.values()), (scores, masks)) for each in (
        {'': 2 * theirs['loss_cross_entropy'] + 5 * theirs['loss_mask'] + 5 * theirs['loss_dice']},
        ours)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pixels_that_do_not_count_change_nothing():
    """A mask whose ignored half is anything has the loss of the other half alone."""
    torch.manual_seed(0)
    scores, masks = torch.randn(1, 4, 4), torch.randn(1, 4, 8, 8)
    counts = torch.zeros(8, 8)
    counts[:4] = 1
    truth = torch.zeros(2, 8, 8)
    truth[0, :2], truth[1, 2:4] = 1, 1
    found = []
    for below in (0.0, 1.0):
        other, seen = truth.clone(), masks.clone()
        other[:, 4:], seen[:, :, 4:] = below, 9 * below
        torch.manual_seed(1)
        # No point is drawn by how certain a mask is: it would be of the lower half, too.
        target = query_masks.Target(torch.tensor([0, 2]), other, counts)
        found.append(query_masks.losses(scores, seen, [target], WEIGHTS, 4000, importance=0.0))
    for name, value in found[0].items():
        # Bilinear values at the border of the halves have a part of both.
        torch.testing.assert_close(value, found[1][name], rtol=0.12, atol=0)
    whole = query_masks.losses(
        scores, masks, [query_masks.Target(torch.tensor([0, 2]), truth)], WEIGHTS, 4000,
        importance=0.0)
    assert abs(whole['loss_dice'] - found[0]['loss_dice']) > 0.01


def test_images_without_labels_have_no_part():
    torch.manual_seed(0)
    scores = torch.randn(2, 4, 4, requires_grad=True)
    masks = torch.randn(2, 4, 8, 8, requires_grad=True)
    labels = torch.full((2, 8, 8), 255)
    labels[0] = 1
    found = query_masks.of_labels(labels, 3, 255)
    assert found[0].classes.tolist() == [1] and found[0].counts is None
    assert not len(found[1].classes) and not found[1].counts.any()
    loss = sum(query_masks.losses(scores, masks, found, WEIGHTS, 30).values())
    for gradient in torch.autograd.grad(loss, (scores, masks)):
        assert gradient[0].any() and not gradient[1].any()
    nothing = query_masks.losses(scores, masks, found[1:] * 2, WEIGHTS, 30)
    assert all(value == 0 for value in nothing.values())
    with pytest.raises(IndexError, match='label 7 is out of bounds of 3 classes'):
        query_masks.of_labels(torch.full((1, 4, 4), 7), 3, 255)


def head(**further):
    in_scope('mmseg')
    torch.manual_seed(0)
    settings = dict(in_channels=[32, 32], in_index=[0, 1], num_classes=5, num_heads=2,
                    norm_cfg=dict(type='BN'), num_queries=7, num_blocks=3, hidden_dims=48,
                    num_points=60)
    return randomise(PlainMaskHead(**{**settings, **further}))


def maps(batch=2, size=(4, 6), dtype=torch.float32):
    return [torch.randn(batch, 32, *size, dtype=dtype) for _ in range(2)]


def test_the_decoder_by_hand():
    """Without masks, in eval mode, in float64."""
    decoder, inputs = head().double().eval(), maps(dtype=torch.float64)
    with torch.no_grad():
        ((masks, classes),) = decoder.masks(inputs)
        x = 0.0
        for i, each in enumerate(inputs):
            tokens = F.layer_norm(each.flatten(2).transpose(1, 2), (32,), eps=1e-6)
            norm = decoder.bn[i]
            tokens = (tokens - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
            tokens = tokens * norm.weight + norm.bias
            x = x + (tokens + decoder.lateral_projections[i](tokens)) * decoder.scalers[i]
        x = torch.cat((decoder.q.weight.expand(2, -1, -1), x), 1)
        for block in decoder.blocks:
            y = block.norm1(x)
            parts = [layer(y).unflatten(-1, (2, 16)) for layer in (
                block.attention.q_proj, block.attention.k_proj, block.attention.v_proj)]
            for part in parts[:2]:  # places, written out
                for n in range(24):
                    row, column = divmod(n, 6)
                    place = [2 * (row + 0.5) / 4 - 1, 2 * (column + 0.5) / 6 - 1]
                    angles = [2 * math.pi * place[axis] / 100 ** (j / 4)
                              for axis in range(2) for j in range(4)]
                    sine = torch.tensor([math.sin(a) for a in angles], dtype=torch.float64)
                    cosine = torch.tensor([math.cos(a) for a in angles], dtype=torch.float64)
                    a, b = part[:, 7 + n, :, :8].clone(), part[:, 7 + n, :, 8:].clone()
                    part[:, 7 + n, :, :8] = a * cosine - b * sine
                    part[:, 7 + n, :, 8:] = b * cosine + a * sine
            q, k, v = (part.transpose(1, 2) for part in parts)
            out = (q @ k.mT / 4).softmax(-1) @ v
            out = block.attention.o_proj(out.transpose(1, 2).flatten(2))
            x = x + block.layer_scale1.lambda1 * out
            y = block.mlp.down_proj(F.gelu(block.mlp.up_proj(block.norm2(x))))
            x = x + block.layer_scale2.lambda1 * y
        x = decoder.decoder_norm(x)
        torch.testing.assert_close(classes, decoder.class_head(x[:, :7]), rtol=1e-5, atol=1e-6)
        grid = decoder.upscale(x[:, 7:].transpose(1, 2).unflatten(-1, (4, 6)))
        assert masks.shape == (2, 7, 16, 24)
        wanted = torch.einsum('bqc,bchw->bqhw', decoder.mask_head(x[:, :7]), grid)
        torch.testing.assert_close(masks, wanted, rtol=1e-5, atol=1e-5)
        scores = decoder(inputs).exp()
        wanted = sum(
            classes.softmax(-1)[:, q, :5, None, None] * masks.sigmoid()[:, q, None]
            for q in range(7))
        torch.testing.assert_close(scores, wanted.float().to(scores), rtol=1e-4, atol=1e-6)


def test_places_are_those_of_dinov3():
    from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

    theirs = RotaryEmbeddingDinoV3(16, feat_shape=[4, 6]).get_embed((4, 6))
    sine, cosine = theirs.chunk(2, -1)
    for ours, wanted in zip(rotary_places((4, 6), 16, 'cpu'), (sine, cosine), strict=True):
        torch.testing.assert_close(ours, wanted.flatten(0, -2), rtol=1e-5, atol=1e-6)


def test_a_bound_query_sees_its_mask_alone():
    decoder, inputs = head().eval(), maps()
    with torch.no_grad():
        first, *_ = decoder.masks(inputs, [1.0, 1.0, 1.0])
        sees = decoder._sees(first[0], 7 + 24, (4, 6), 1.0)
        inside = F.interpolate(first[0], (4, 6), mode='bilinear').flatten(2) > 0
        assert torch.equal(sees[:, :7, 7:], inside) and 0 < inside.float().mean() < 1
        assert sees[:, 7:].all() and sees[:, :, :7].all()
        assert decoder._sees(first[0], 31, (4, 6), 0.0) is None
        torch.manual_seed(0)
        half = decoder._sees(first[0].expand(2, -1, -1, -1), 31, (4, 6), 0.5)[:, :7, 7:]
        free = half.all(-1) & ~inside.all(-1)
        assert 0 < free.float().mean() < 1
        free_of_all = decoder.masks(inputs, [0.0] * 3)
        torch.testing.assert_close(free_of_all[-1][0], decoder.masks(inputs)[0][0])
        assert len(free_of_all) == 4


def test_queries_are_unbound_one_block_after_the_other():
    decoder = head(num_blocks=6)
    hub = MessageHub.get_instance('unbind')
    found = {}
    for done in (0, 1500, 3000, 7000, 20190):
        hub.update_info('iter', done)
        hub.update_info('max_iters', 20190)
        found[done] = decoder.bound()
    assert found[0] == [1.0] * 6 and found[20190] == [0.0] * 6
    assert found[1500][0] == pytest.approx((1 - 1500 / (0.149 * 20190)) ** 0.9)
    assert found[3000][0] == pytest.approx(0, abs=0.02) and found[3000][1:] == [1.0] * 5
    # The authors' blocks 1 and 2 at iteration 7000: from 5384 to 8749, and from 7403 on.
    assert found[7000][1] == pytest.approx((1 - (7000 - 5384) / (8749 - 5384)) ** 0.9, abs=0.02)
    assert found[7000][2] == 1.0


@pytest.mark.parametrize(('change', 'message'), [
    (dict(in_channels=32), 'in_channels must be a list of one width for each map'),
    (dict(in_channels=[32, 16]), 'in_channels must be a list of one width for each map'),
    (dict(in_index=[0]), 'in_index must be a list with an index for each'),
    (dict(num_heads=3), 'num_heads is 3: it must divide the width 32'),
    (dict(num_classes=1), 'num_classes must be at least 2'),
    (dict(unbind=[(0, 0.5)]), r'unbind must be a pair \(start, end\) for each of the 3 blocks'),
    (dict(mask_weight=0), 'mask_weight'),
    (dict(num_queries=0), 'num_queries must be an integer of at least 1'),
])
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        head(**change)


def test_it_learns_with_any_method(mmseg_scope):
    """A tiny recipe: a step has a gradient for all that trains, and steps lower the loss."""
    from query_heads import assert_it_learns
    from test_dense_heads import tiny

    cfg = tiny('pmd_vit-l_dinov3_ade20k deep')
    cfg.model.decode_head.update(num_queries=8, num_blocks=2, hidden_dims=32, num_points=100)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    assert_it_learns(model, 0.7)
    counts = params.count(model)
    assert counts['decode head'][0] == counts['decode head'][1] > 0


def test_published_size():
    """ViT-L: about 54 M by the authors' sizes, without what they have of other tokens."""
    from vpt_dense import building

    model = building.build_model(load('pmd_vit-l_dinov3_ade20k head'), 'meta')
    found = sum(p.numel() for p in model.decode_head.parameters())
    dims, hidden = 1024, 1024
    block = (4 * dims * dims + 3 * dims) + (2 * dims * hidden + hidden + dims) + 6 * dims
    lateral = dims * dims + dims // 2 + dims + dims + 2 * dims
    upscale = 4 * dims * dims + dims + 9 * dims + 2 * dims
    assert found == (
        6 * block + 4 * lateral + 2 * upscale + 100 * dims + 2 * dims + 3 * (dims + 1) * dims
        + (dims + 1) * 151)
