"""Rotary places computed into one tensor, against timm's formula."""

import pytest
import torch
from timm.layers import apply_rot_embed

from vpt_dense.backbones.rotation import turn_last

HALVES = pytest.mark.parametrize('half', [False, True])


def example(dtype=torch.float64):
    """Tokens (2, 3, 2 + 5, 8) and the sine and cosine of five places."""
    torch.manual_seed(0)
    angles = torch.rand(5, 8, dtype=dtype)  # not equal in pairs, to be told apart
    return torch.randn(2, 3, 7, 8, dtype=dtype), angles.sin(), angles.cos()


def plain(tokens, sine, cosine, half):
    """What timm computes."""
    first, patches = tokens[:, :, :2], tokens[:, :, 2:]
    return torch.cat((first, apply_rot_embed(patches, sine, cosine, half=half)), 2)


@HALVES
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_timms_bit_for_bit(half, dtype):
    tokens, sine, cosine = example()
    tokens, sine, cosine = tokens.to(dtype), sine.float(), cosine.float()
    if dtype == torch.float64:
        sine, cosine = sine.double(), cosine.double()
    # As attention has them: one layer's output, split into heads.
    tokens = tokens.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    ours, theirs = turn_last(tokens, sine, cosine, half), plain(tokens, sine, cosine, half)
    assert ours.dtype == dtype
    assert torch.equal(ours[:, :, :2], tokens[:, :, :2])
    assert torch.equal(ours, theirs)
    direction = torch.randn_like(ours)
    gradients = [torch.autograd.grad(out, tokens, direction)[0] for out in (ours, theirs)]
    quicker = turn_last(tokens, sine, cosine, half, exact=False)
    torch.testing.assert_close(quicker, theirs, rtol=0, atol=4 * torch.finfo(dtype).eps)
    if dtype == torch.bfloat16:  # timm's are rounded on the way
        torch.testing.assert_close(*gradients, rtol=0, atol=0.05)
    else:
        assert torch.equal(*gradients)


@HALVES
@pytest.mark.parametrize('exact', [True, False])
def test_its_gradients_are_right(half, exact):
    tokens, *places = example()
    tokens = tokens[:1, :1].requires_grad_()

    def turned(tokens):
        return turn_last(tokens, *places, half, exact)

    assert torch.autograd.gradcheck(turned, tokens, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(turned, tokens)


@HALVES
@pytest.mark.parametrize(('where', 'exact'), [(0, True), (2, False)])
def test_vmap(half, where, exact):
    tokens, *places = example()
    batches = torch.stack([tokens, 2 * tokens], where)
    mapped = torch.vmap(lambda each: turn_last(each, *places, half, exact), where, where)(batches)
    alone = torch.stack(
        [turn_last(each, *places, half, exact) for each in (tokens, 2 * tokens)], where)
    assert torch.equal(mapped, alone)


@HALVES
def test_places_that_train_get_gradients(half):
    tokens, sine, cosine = example()
    sine.requires_grad_()
    turned = turn_last(tokens, sine, cosine, half)
    torch.testing.assert_close(turned, plain(tokens, sine, cosine, half))
    turned.square().sum().backward()
    assert sine.grad.abs().sum() > 0
